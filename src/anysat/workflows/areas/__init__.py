"""What commands over areas share: their inputs, options and the run itself."""
