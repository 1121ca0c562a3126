"""`mwuf export`: warm embeddings and the dense model as files for a server."""
