"""The package in Triton, with the functions of the compiled variants."""

from . import _operators  # noqa: F401  registers what the functions call
from ._face import (
    attend,
    convert_fp8,
    copy_blocks,
    merge_states,
    paged_attention_v1,
    paged_attention_v2,
    reshape_and_cache,
    reshape_and_cache_flash,
    swap_blocks,
)

__all__ = [
    "attend",
    "convert_fp8",
    "copy_blocks",
    "merge_states",
    "paged_attention_v1",
    "paged_attention_v2",
    "reshape_and_cache",
    "reshape_and_cache_flash",
    "swap_blocks",
]
