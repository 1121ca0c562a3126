"""Launchers: each only builds the runtime and calls the same training function."""
