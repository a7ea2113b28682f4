"""Learning without labels: what is hidden, what is predicted, and how far off the prediction is."""
