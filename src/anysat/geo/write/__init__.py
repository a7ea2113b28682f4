"""Write results to georeferenced files, and describe them."""
