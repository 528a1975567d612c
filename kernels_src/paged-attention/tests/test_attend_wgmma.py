"""`attend` with what compute capability 9.0 has of its own, against float64. The emulator says it is such a device."""

from __future__ import annotations

import os

import attention_reference as reference
import pytest
import torch
from test_attend import MIXED, assert_close, check, make_step
from test_attend_spans import HALVES, LONG
from test_tree_mask import random_mask

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the Triton variant has no such instructions", allow_module_level=True)

ON_GPU = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)

orders = pytest.mark.parametrize("order", ["forward", "reverse"])


@pytest.fixture(scope="module", params=["cuda-emulated", *(["cuda"] if ON_GPU else [])])
def kernel(request, builds):
    with torch.device("cuda" if request.param == "cuda" else "cpu"):
        yield builds(request.path.parent.parent, request.param)


@pytest.fixture(autouse=True)
def hopper(monkeypatch):
    monkeypatch.setenv("CUDA_EMULATOR_CAPABILITY", "9.0")


def attend_alone(kernel, step, seq, token, size, **options):
    """Tokens `token` and on of a sequence, as a chunk of their own."""
    begin, end = step["query_start_loc"][seq : seq + 2].tolist()
    return kernel.attend(
        step["query"][begin + token : begin + token + size],
        step["key_cache"],
        step["value_cache"],
        block_tables=step["block_tables"][seq : seq + 1],
        seq_lens=step["seq_lens"][seq : seq + 1] - (end - begin - token - size),
        query_start_loc=torch.tensor([0, size], dtype=torch.int32),
        scale=step["scale"],
        **options,
    )


@orders
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("head_size", [8, 64, 80, 120, 128])
def test_attend_with_each_head_size_is_the_reference(kernel, head_size, dtype, order, monkeypatch):
    monkeypatch.setenv("CUDA_EMULATOR_ORDER", order)
    check(kernel, make_step(0, [*MIXED, (70, 150)], head_size=head_size, dtype=dtype))


@orders
@pytest.mark.parametrize("block_size", [8, 16, 32, 64, 128, 256])
def test_attend_with_each_size_of_a_page_is_the_reference(kernel, block_size, order, monkeypatch):
    monkeypatch.setenv("CUDA_EMULATOR_ORDER", order)
    lens = [*MIXED, (1, 400), (40, 333)]
    check(kernel, make_step(1, lens, block_size=block_size, dtype=torch.bfloat16))


@pytest.mark.parametrize("heads,kv_heads", [(1, 1), (5, 1), (8, 1), (70, 1), (16, 2), (6, 3)])
def test_attend_with_each_grouping_of_heads_is_the_reference(kernel, heads, kv_heads):
    """70 rows of one token are more than a warpgroup has."""
    lens = [(1, 600), (3, 100), (30, 64), (1, 0)]
    check(kernel, make_step(2, lens, heads=heads, kv_heads=kv_heads, dtype=torch.float16))


@orders
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_attend_over_several_spans_is_the_reference(kernel, dtype, order, monkeypatch):
    monkeypatch.setenv("CUDA_EMULATOR_ORDER", order)
    check(kernel, make_step(3, LONG, dtype=dtype))


def test_attend_over_longer_spans_is_the_reference(kernel):
    check(kernel, make_step(4, [(1, 8192 + 700)], heads=2, kv_heads=1, head_size=32, dtype=torch.float16))


@pytest.mark.parametrize(
    "options",
    [
        {"causal": False},
        {"window": 5},
        {"window": 600},
        {"softcap": 5.0},
        {"alibi_slopes": torch.tensor([0.5, 0.25, 0.125, 0.0625])},
        {"sinks": torch.tensor([0.5, -2.0, 3.0, -torch.inf])},
        {"window": 540, "softcap": 2.0, "alibi_slopes": torch.tensor([0.5, 0.25, 0.0, 0.0625])},
    ],
    ids=lambda options: "-".join(options),
)
def test_attend_with_an_option_is_the_reference(kernel, options):
    lens = [*MIXED, (1, 1100), (66, 560)]
    check(kernel, make_step(5, lens, head_size=32, dtype=torch.float16), **options)


def test_attend_of_trees_is_the_reference(kernel):
    step = make_step(6, [*MIXED, (9, 90), (40, 570)], dtype=torch.bfloat16)
    check(kernel, step, tree_mask=random_mask(6, len(step["query"]), 3), window=40)


def test_attend_without_the_starts_of_queries_is_the_reference(kernel):
    step = make_step(7, [(1, length) for length in (700, 1, 64, 65)], dtype=torch.bfloat16)
    expected, _ = reference.attend(**step)
    assert_close(kernel.attend(**step | {"query_start_loc": None}), expected, torch.bfloat16)


@orders
def test_attend_of_more_sequences_than_threads_that_plan_is_the_reference(kernel, order, monkeypatch):
    """Runs of them ask for nothing, and every tenth is long enough to be a task of its own kind."""
    monkeypatch.setenv("CUDA_EMULATOR_ORDER", order)
    lens = [(0, i % 9) if i % 50 > 40 else (20, 24) if i % 10 == 3 else (1, 1 + i % 40) for i in range(300)]
    check(kernel, make_step(8, lens, heads=2, kv_heads=1, head_size=16, dtype=torch.float16))


def test_attend_over_views_of_larger_tensors_is_the_reference(kernel):
    """A cache whose blocks hold keys beside values, and one KV head."""
    step = make_step(9, MIXED, heads=3, kv_heads=1, dtype=torch.bfloat16)
    both = torch.stack([step["key_cache"], step["value_cache"]], dim=1)
    step["key_cache"], step["value_cache"] = both[:, 0], both[:, 1]
    check(kernel, step)


def test_attend_does_not_read_what_lies_before_every_window(kernel):
    step = make_step(10, [(1, 175), (3, 190)], dtype=torch.float16)
    expected, _ = reference.attend(**step, window=20)
    for seq, first in ((0, 155), (1, 168)):
        for key in range(first):
            where = (step["block_tables"][seq, key // 16], key % 16)
            step["key_cache"][where] = step["value_cache"][where] = torch.nan
        step["block_tables"][seq, : first // 16] = 2**30
    assert_close(kernel.attend(**step, window=20), expected, torch.float16)


def test_attend_does_not_see_the_keys_of_a_block_out_of_range(kernel):
    step = make_step(11, [(1, 200), (40, 150)], dtype=torch.bfloat16)
    without = step | {"block_tables": step["block_tables"].clone(), "seq_lens": step["seq_lens"].clone()}
    without["block_tables"][0, 2:-1] = step["block_tables"][0, 3:]
    without["seq_lens"][0] -= 16
    expected, _ = reference.attend(**without)
    for block in (-1, len(step["key_cache"])):
        step["block_tables"][0, 2] = block
        assert_close(kernel.attend(**step), expected, torch.bfloat16)


@pytest.mark.parametrize("dtype,order", [(HALVES[0], "forward"), (HALVES[1], "reverse")], ids=str)
def test_attend_gives_the_same_bits_alone_and_in_any_batch_and_chunk(kernel, dtype, order, monkeypatch):
    step = make_step(12, LONG, dtype=dtype, head_size=128)
    together = kernel.attend(**step)
    monkeypatch.setenv("CUDA_EMULATOR_ORDER", order)
    for seq, (count, _) in enumerate(LONG):
        begin = int(step["query_start_loc"][seq])
        for size in {1, 17, 64} & set(range(count + 1)):
            for token in {0, count // 2, count - size} & set(range(count - size + 1)):
                alone = attend_alone(kernel, step, seq, token, size)
                assert torch.equal(alone, together[begin + token : begin + token + size])


def test_other_devices_agree_and_add_up_in_another_order(kernel, monkeypatch):
    step = make_step(13, LONG, dtype=torch.float16)
    here, lse = kernel.attend(**step, return_lse=True)
    monkeypatch.setenv("CUDA_EMULATOR_CAPABILITY", "12.0")
    there, other = kernel.attend(**step, return_lse=True)
    torch.testing.assert_close(lse, other, rtol=1e-5, atol=1e-5)
    assert_close(here, there.double(), torch.float16)
    assert ON_GPU or not torch.equal(lse, other)  # or there was one kernel for both
