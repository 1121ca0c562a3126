"""Deltas: what a job has changed, as a numbered file that servers and other copies of the state replay."""
