"""Data on disk: layouts, datasets, statistics, checks, the generated world, one mixed stream."""
