"""How fast fastdiff is, beside what else does the same work: `fastdiff bench`."""
