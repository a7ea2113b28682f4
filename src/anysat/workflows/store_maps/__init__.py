"""Maps that are computed from the embeddings of finished stores, without encoding anything."""
