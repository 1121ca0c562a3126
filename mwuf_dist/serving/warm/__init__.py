"""`mwuf warm`, the daily job: new interactions move the embeddings of new items, and nothing else."""
