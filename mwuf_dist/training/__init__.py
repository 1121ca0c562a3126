"""The five stages of a run, the loop they share, and checkpoints."""
