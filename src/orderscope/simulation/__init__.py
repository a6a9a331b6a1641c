"""Ask a recorded run."""
