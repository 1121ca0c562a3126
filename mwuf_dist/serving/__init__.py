"""A finished run at work: its embeddings as tensors and files, its model for a server, one item explained."""
