"""Embeddings of any ground: windows read, encoded, fused over overlaps and written, shard by shard."""
