"""What is learned from labels: probes and fine-tuning, their data, runs and reports."""
