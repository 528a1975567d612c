"""Run by the interpreter of a venv with stock `kernels`: answers what its resolver accepts, best first.

Reads one JSON object a line from standard input: the variants' names in the order given to the resolver, and the
system's parameters; writes a JSON list of names a line.
"""

from __future__ import annotations

import json
import logging
import sys

from kernels import backends, variants  # type: ignore[import-not-found]
from packaging.version import Version


def version(pair: list[int] | None) -> Version | None:
    return None if pair is None else Version(f"{pair[0]}.{pair[1]}")


def selected(name: str, pair: list[int] | None) -> object:
    plain = {"cpu": backends.CPU, "metal": backends.Metal}
    versioned = {"cuda": backends.CUDA, "rocm": backends.ROCm, "xpu": backends.XPU}
    return plain[name]() if name in plain else versioned[name](version=version(pair))


def parsed(names: list[str]) -> list[object]:
    """As the client reads a repository: names outside its grammar are passed over."""
    found = []
    for name in names:
        try:
            found.append(variants.parse_variant(name))
        except ValueError:
            continue
    return found


def main() -> None:
    logging.disable(logging.CRITICAL)
    for line in sys.stdin:
        asked = json.loads(line)
        # Its one question to the interpreter that is no parameter.
        variants._is_unsupported_free_threaded_build = lambda answer=asked["free_threaded"]: answer
        accepted, _ = variants._resolve_variant_for_system(
            variants=parsed(asked["variants"]),
            selected_backend=selected(*asked["backend"]),
            cpu=asked["arch"],
            os=asked["os"],
            torch_version=version(asked["torch"]),
            torch_cxx11_abi=asked["cxx11_abi"],
            tvm_ffi_version=version(asked["tvm_ffi"]),
            macos_version=version(asked["macos"]),
        )
        print(json.dumps([variant.variant_str for variant in accepted]))


main()
