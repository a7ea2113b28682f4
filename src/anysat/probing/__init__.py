"""What frozen embeddings are worth: health, nearest neighbours. Nothing here trains an encoder."""
