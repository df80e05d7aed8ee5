"""Training: one flat loop over a Task."""
