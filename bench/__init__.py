"""What fastdiff's claims rest on: programs that measure, and the results they left in `results/`."""
