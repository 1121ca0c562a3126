"""Prepared shards to batches, in an order that is a pure function of (manifest, seed, epoch)."""
