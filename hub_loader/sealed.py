"""Copies of files in memory that nobody can change any more, the process itself included (Linux)."""

from __future__ import annotations

import fcntl
import os
import sys

# A copy is memory that processes do not share and the system cannot drop. Larger libraries are opened in place.
MAX_SEALED_BYTES = 32 << 20
_MAX_NAME_BYTES = 200  # the system allows 249


def sealed_copy(descriptor: int, name: str) -> int | None:
    """A new descriptor of a sealed copy of an open file; None where it is too large or there are no such copies.

    `name` is what /proc/<pid>/maps, and so profilers and debuggers, show: /memfd:<name> (deleted).
    """
    if sys.platform != "linux" or os.fstat(descriptor).st_size > MAX_SEALED_BYTES:
        return None
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        copy = os.memfd_create(os.fsdecode(os.fsencode(name)[:_MAX_NAME_BYTES]), flags)
    except OSError:  # an old kernel, or a policy against it
        return None
    try:
        offset = 0
        while offset <= MAX_SEALED_BYTES and (sent := os.sendfile(copy, descriptor, offset, 1 << 20)):
            offset += sent
        seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
        fcntl.fcntl(copy, fcntl.F_ADD_SEALS, seals)
    except OSError:
        os.close(copy)
        return None
    return copy
