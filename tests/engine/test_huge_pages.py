"""Weights in huge pages are the weights."""

from __future__ import annotations

import mmap

import torch

from engine.pages import in_huge_pages


def test_large_weights_in_huge_pages_are_the_same_and_small_ones_stay_where_they_are() -> None:
    large = torch.randn(1300, 1024).to(torch.bfloat16)[:1290]
    assert in_huge_pages(large) is large  # under 4 MiB
    for dtype in (torch.float32, torch.bfloat16):
        weight = torch.randn(2100, 1024).to(dtype)
        held = in_huge_pages(weight)
        assert torch.equal(held, weight)
        assert (held.dtype, held.is_contiguous()) == (dtype, True)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            assert held.data_ptr() != weight.data_ptr()
