"""What the scheduler's part of a pipeline's step costs; see `__main__`."""
