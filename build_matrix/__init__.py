"""Plan the matrix, provide toolchains, compile, audit, package and publish kernels."""
