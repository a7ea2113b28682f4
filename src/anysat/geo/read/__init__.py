"""Read imagery: rasters, cubes, folders and STAC catalogs become sources that are read window by window."""
