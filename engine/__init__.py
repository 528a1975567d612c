"""A reference continuous-batching engine whose kernels are swapped in by name."""
