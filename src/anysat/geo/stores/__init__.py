"""Zarr stores of areas, written shard by shard."""
