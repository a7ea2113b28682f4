"""What frozen embeddings are worth: health, nearest neighbours, linear probes. Nothing here trains an encoder."""
