"""The torch releases, CUDA toolkits and Pythons that a compatibility matrix has rows and columns for.

The releases and their toolkits are those of torch's wheels on PyPI, as the build matrix knows them; a test holds
one to the other. A variant that names another version adds a column of its own.
"""

from __future__ import annotations

from hub_loader.variant import Version

TORCH = (
    "2.5.1",
    "2.6.0",
    "2.7.1",
    "2.8.0",
    "2.9.1",
    "2.10.0",
    "2.11.0",
    "2.12.1",
    "2.13.0",
    "2.14.1",
    "2.15.0",
)
CUDA: tuple[Version, ...] = ((12, 4), (12, 6), (12, 8), (13, 0), (13, 2))
# The last one stands for the interpreters without the GIL, which load no stable-ABI module.
PYTHON = ("3.10", "3.11", "3.12", "3.13", "3.14", "3.15", "3.14t")
PLATFORMS = (("x86_64", "linux"), ("aarch64", "linux"))
GLIBC: Version = (2, 28)
MACOS: Version = (26, 0)
