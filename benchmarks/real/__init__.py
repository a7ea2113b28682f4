"""Real labelled tasks, one protocol each, and the simple models that an encoder is to be compared with."""
