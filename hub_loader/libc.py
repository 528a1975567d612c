"""Which C library this interpreter runs on, and its version: glibc by its own word, musl by its loader's.

musl has no call that tells its version. Its dynamic loader prints it when run without arguments, and the
interpreter's own ELF header names that loader.
"""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path

from .variant import Version

_PT_INTERP = 3


def glibc_version() -> Version | None:
    """(major, minor) of glibc; None where the C library is another one."""
    try:
        reported = os.confstr("CS_GNU_LIBC_VERSION")
    except (AttributeError, ValueError, OSError):  # musl, macOS, Windows
        return None
    return parse_glibc(reported or "")


def musl_version(executable: Path) -> Version | None:
    """(major, minor) of the musl that `executable` (an ELF file) is linked to; None where it is not."""
    try:
        with executable.open("rb") as file:
            loader = elf_interpreter(file.read(1 << 16))  # the program headers lie at the beginning
    except OSError:
        return None
    if loader is None or "musl" not in loader:
        return None
    import subprocess  # slow to import, needed on musl alone

    try:
        told = subprocess.run([loader], capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return parse_musl(told.stderr)


def parse_glibc(text: str) -> Version | None:
    """The version in "glibc 2.36"."""
    match = re.match(r"glibc (\d+)\.(\d+)", text, re.ASCII)
    return (int(match[1]), int(match[2])) if match else None


def parse_musl(text: str) -> Version | None:
    """The version in what musl's loader prints: a line "musl libc (x86_64)", then "Version 1.2.4"."""
    match = re.match(r"musl libc\b.*\nVersion (\d+)\.(\d+)", text, re.ASCII)
    return (int(match[1]), int(match[2])) if match else None


def elf_interpreter(image: bytes) -> str | None:
    """The path in the PT_INTERP header of an ELF file's first bytes; None for a static or foreign file."""
    if len(image) < 64 or image[:4] != b"\x7fELF" or image[4] not in (1, 2) or image[5] not in (1, 2):
        return None
    wide, order = image[4] == 2, "<" if image[5] == 1 else ">"
    table = struct.unpack_from(order + ("Q" if wide else "I"), image, 32 if wide else 28)[0]
    size, count = struct.unpack_from(order + "HH", image, 54 if wide else 42)
    fields, where = (order + "QQQQQ", 8) if wide else (order + "IIII", 4)  # p_offset, …, p_filesz
    for index in range(count):
        entry = table + index * size
        if entry + where + struct.calcsize(fields) > len(image):
            return None
        if struct.unpack_from(order + "I", image, entry)[0] != _PT_INTERP:
            continue
        values = struct.unpack_from(fields, image, entry + where)
        offset, length = values[0], values[3]
        return image[offset : offset + length].rstrip(b"\0").decode(errors="replace") or None
    return None
