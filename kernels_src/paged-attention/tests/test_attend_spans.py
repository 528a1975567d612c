"""`attend` in half precision over several spans of keys: what a GPU computes on tensor cores, split among warps."""

from __future__ import annotations

import attention_reference as reference
import pytest
import torch
from test_attend import MIXED, assert_close, check, make_step
from test_fp8 import FP8, quantized_step

HALVES = [torch.float16, torch.bfloat16]
# Around the ends of spans (512 keys), of one token, of a draft, and of more rows than one warp has.
LONG = [(1, 1300), (70, 1100), (3, 600), (1, 512), (1, 513), (20, 530), (1, 3), (0, 700)]


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_attend_over_several_spans_is_the_reference(kernel, dtype):
    check(kernel, make_step(0, LONG, dtype=dtype))


@pytest.mark.parametrize("name", FP8)
@pytest.mark.parametrize(
    "dtype,head_size", [(torch.float16, 64), (torch.bfloat16, 128), (torch.float16, 192)], ids=str
)
def test_attend_over_several_spans_of_eight_bits_is_the_reference(kernel, dtype, head_size, name):
    lens = [(1, 600), (35, 560), (3, 513), (1, 3)]
    step = quantized_step(7, lens, name, dtype=dtype, head_size=head_size)
    check(kernel, step, k_scale=0.3, v_scale=torch.tensor([0.7]), sinks=torch.tensor([0.5, -2.0, 3.0, 1.0]))


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
def test_attend_does_not_read_what_lies_before_every_window(kernel, dtype):
    """Its blocks may be somebody else's by now."""
    step = make_step(8, [(1, 75), (3, 90)], dtype=dtype)
    expected, _ = reference.attend(**step, window=20)
    for seq, first in ((0, 55), (1, 68)):
        for key in range(first):
            where = (step["block_tables"][seq, key // 16], key % 16)
            step["key_cache"][where] = step["value_cache"][where] = torch.nan
    assert_close(kernel.attend(**step, window=20), expected, dtype)


@pytest.mark.parametrize("heads,kv_heads", [(1, 1), (20, 1), (8, 2)])
def test_attend_of_single_tokens_over_several_spans_is_the_reference(kernel, heads, kv_heads):
    lens = [(1, 1300), (1, 40), (1, 1025), (1, 0)]
    check(kernel, make_step(1, lens, heads=heads, kv_heads=kv_heads, dtype=torch.bfloat16))


def test_attend_over_longer_spans_is_the_reference(kernel):  # they double after 16 of 512
    check(kernel, make_step(2, [(1, 8192 + 700)], heads=2, kv_heads=1, head_size=32, dtype=torch.float16))


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
def test_attend_with_an_option_in_half_precision_is_the_reference(kernel, options):
    lens = [*MIXED, (1, 1100), (66, 560)]
    check(kernel, make_step(3, lens, head_size=32, dtype=torch.float16), **options)


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
def test_attend_over_several_spans_gives_the_same_bits_alone_and_in_any_batch(request, kernel, dtype):
    """A long chunk is cut into others as long as CPUs take for long: they sum those in an order of their own."""
    lens = LONG
    if request.node.callspec.params["kernel"] == "cuda-emulated" and dtype == torch.float32:
        lens = [
            (1, 1300),
            (20, 530),
            (3, 600),
            (1, 3),
            (0, 700),
        ]  # without tensor cores a long chunk takes minutes
    step = make_step(4, lens, dtype=dtype)
    together = kernel.attend(**step)
    for seq, (count, length) in enumerate(lens):
        begin, size = int(step["query_start_loc"][seq]), 1 if count < 16 else 16
        for token in sorted({0, count // 2, count - size} & set(range(count - size + 1))):
            alone = kernel.attend(
                step["query"][begin + token : begin + token + size],
                step["key_cache"],
                step["value_cache"],
                block_tables=step["block_tables"][seq : seq + 1],
                seq_lens=torch.tensor([length - count + token + size], dtype=torch.int32),
                query_start_loc=torch.tensor([0, size], dtype=torch.int32),
                scale=step["scale"],
            )
            assert torch.equal(alone, together[begin + token : begin + token + size])


def test_attend_with_the_emulated_threads_in_reverse_gives_the_same_bits_over_spans(kernel, monkeypatch):
    step = make_step(5, [(1, 600), (40, 50)], head_size=32, dtype=torch.float16)
    forward = kernel.attend(**step)
    monkeypatch.setenv("CUDA_EMULATOR_ORDER", "reverse")
    assert torch.equal(kernel.attend(**step), forward)


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
def test_attend_on_a_gpu_does_not_see_the_keys_of_a_block_out_of_range(builds, request, dtype):
    """Checking them would mean waiting for the device; the CPU refuses them."""
    kernel = builds(request.path.parent.parent, "cuda-emulated")
    step = make_step(6, [(1, 100), (1, 20)], dtype=dtype)
    without = step | {"block_tables": step["block_tables"].clone(), "seq_lens": step["seq_lens"].clone()}
    without["block_tables"][0, 2:-1] = step["block_tables"][0, 3:]
    without["seq_lens"][0] -= 16
    expected, _ = reference.attend(**without)
    for block in (-1, len(step["key_cache"]), 2**30):
        step["block_tables"][0, 2] = block
        assert_close(kernel.attend(**step), expected, dtype)
