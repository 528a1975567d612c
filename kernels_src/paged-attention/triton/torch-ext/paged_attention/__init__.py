"""The package in Triton, with the functions of the compiled variants."""

from . import _operators  # noqa: F401  registers what the functions call
from ._face import (
    attend,
    copy_blocks,
    paged_attention_v1,
    paged_attention_v2,
    reshape_and_cache,
    reshape_and_cache_flash,
)

__all__ = [
    "attend",
    "copy_blocks",
    "paged_attention_v1",
    "paged_attention_v2",
    "reshape_and_cache",
    "reshape_and_cache_flash",
]
