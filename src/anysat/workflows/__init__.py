"""One file or folder per command: its options, and the function that runs it."""
