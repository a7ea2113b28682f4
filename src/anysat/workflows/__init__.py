"""One file per workflow: its config and the function that runs it. Heavy imports wait until it runs."""
