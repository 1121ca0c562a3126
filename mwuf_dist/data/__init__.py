"""Raw data to batches: `sources` read it, `split` divides it, `shards` store it, `prepare` ties the three together."""
