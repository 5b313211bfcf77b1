"""A GPU that is not there, for tests of the GPU paths and for counts of what they do."""
