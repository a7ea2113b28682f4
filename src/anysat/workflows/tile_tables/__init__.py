"""Tables with one row per tile."""
