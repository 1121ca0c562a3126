"""Raw data to prepared shards, in steps that run in this process or on a Ray cluster."""
