"""The kernels against their peers: `khub bench kernels`."""
