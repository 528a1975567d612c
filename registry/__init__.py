"""A self-hosted Hub for kernels: protocol, storage and accounts."""
