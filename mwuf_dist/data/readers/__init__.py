"""Raw files to Arrow tables: how they are written, IDs, times, labels, drawn negatives."""
