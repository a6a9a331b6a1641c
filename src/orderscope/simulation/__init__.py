"""The simulator: predictions for other orders of a recorded run."""
