"""`mwuf adopt`: warm embeddings for new items of a model that was trained elsewhere."""
