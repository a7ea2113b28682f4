"""Read imagery that a STAC catalog or API describes."""
