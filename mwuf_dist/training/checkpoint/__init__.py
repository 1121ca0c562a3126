"""Checkpoints: when they are saved, and the files they are made of."""
