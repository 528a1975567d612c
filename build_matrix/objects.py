"""Name a compiled file by all that goes into it, so that what exists under its name is never stale.

An object's key is a digest of its command line, its source, every header that the source could include,
and the toolchain. Nothing else of a kernel matters to it: changing one file recompiles what includes it, and
variants, checkouts and versions that agree on an object share it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path

_FORMAT = 1
_INCLUDE = re.compile(r"(?:#|%:)[ \t]*(?:include|include_next|import)\b[ \t]*(.*)")
_OPERAND = re.compile(r'"([^"]+)"|<([^>]+)>')
# What can read a file without a plain #include.
_OPAQUE = re.compile(r"\bincbin\b|\b__has_include|(?:#|%:)[ \t]*embed\b")


def reachable(source: Path, search: Sequence[Path], everything: Iterable[Path]) -> dict[Path, bytes]:
    """`source` and every file that it could include from its own folder or from `search`, with their bytes.

    Read from the text, whatever the preprocessor would skip included: more files than the compiler opens,
    never fewer. Where the text does not say which file (`#include MACRO`), `everything` is taken.
    """
    found: dict[Path, bytes] = {}
    waiting = [source.resolve()]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found[path] = path.read_bytes()
        names, opaque = _included(found[path])
        if opaque:
            waiting += (other.resolve() for other in everything)
        for name in names:
            places = (folder / name for folder in (path.parent, *search))
            waiting += (place.resolve() for place in places if place.is_file())
    return found


@cache
def _included(source: bytes) -> tuple[tuple[str, ...], bool]:
    """The names that a source includes, and whether it may read files that it does not name."""
    text = source.decode(errors="replace").replace("\\\n", "")
    operands = [_OPERAND.match(directive[1]) for directive in _INCLUDE.finditer(text)]
    names = tuple(dict.fromkeys(operand[1] or operand[2] for operand in operands if operand))
    return names, None in operands or _OPAQUE.search(text) is not None


def object_key(
    command: Sequence[str | Path],
    files: Mapping[Path, bytes],
    toolchain: Sequence[str],
    places: Mapping[Path, str],
) -> str:
    """The key of what `command` makes of `files`.

    `places` gives folders whose path must not matter a name: two checkouts of one source have equal keys.
    """
    digests = {place_name(path, places): hashlib.sha256(data).hexdigest() for path, data in files.items()}
    words = [place_name(word, places) for word in command]
    content = [_FORMAT, words, sorted(digests.items()), list(toolchain)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def place_name(word: str | Path, places: Mapping[Path, str]) -> str:
    """`word` with each folder of `places` replaced by its name, the innermost first."""
    text = str(word)
    for place, name in sorted(places.items(), key=lambda item: -len(str(item[0]))):
        text = text.replace(str(place), name)
    return text
