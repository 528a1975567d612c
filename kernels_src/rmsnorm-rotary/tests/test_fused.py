"""`qk_norm_rope_cache` against float64: the norm of heads, their rotation and the cache's write in one pass."""

from __future__ import annotations

import pytest
import rows_reference as reference
import torch
from test_rows import assert_close, dtypes, make_rotary, neox


def make_fused(
    dtype, *, tokens=9, heads=3, kv_heads=2, head_size=64, rotary_dim=None, norms="both", block_size=4
):
    rotary = make_rotary(dtype, tokens=tokens, head_size=head_size, rotary_dim=rotary_dim)
    blocks = tokens // block_size + 2
    slots = torch.randperm(blocks * block_size)[:tokens]
    slots[tokens // 2 : tokens // 2 + 1] = -1
    return {
        "qkv": torch.randn(tokens, (heads + 2 * kv_heads) * head_size).to(dtype),
        "q_weight": torch.randn(head_size).to(dtype) if norms in ("both", "query") else None,
        "k_weight": torch.randn(head_size).to(dtype) if norms == "both" else None,
        "positions": rotary["positions"],
        "cos_sin_cache": rotary["cos_sin_cache"],
        "key_cache": torch.randn(blocks, block_size, kv_heads, head_size).to(dtype),
        "value_cache": torch.randn(blocks, block_size, kv_heads, head_size).to(dtype),
        "slot_mapping": slots,
        "num_heads": heads,
    }


def check_fused(kernel, args, is_neox):
    heads, (_, block_size, kv_heads, head_size) = args["num_heads"], args["key_cache"].shape
    split = [heads, kv_heads, kv_heads]
    query, key, _ = args["qkv"].unflatten(1, (sum(split), head_size)).split(split, dim=1)
    expected = []
    for part, weight in ((query, args["q_weight"]), (key, args["k_weight"])):
        normed = part.double() if weight is None else reference.rms_norm(part, weight, 1e-5)
        expected.append(reference.rotary(args["positions"], normed, args["cos_sin_cache"], is_neox))
    caches = [args[name].clone() for name in ("key_cache", "value_cache")]
    rows = [args["qkv"][:, i * head_size :].clone() for i in (heads, heads + kv_heads)]
    kernel.qk_norm_rope_cache(**args, is_neox=is_neox, epsilon=1e-5)
    assert_close(args["qkv"][:, : heads * head_size].unflatten(1, (heads, head_size)), expected[0])
    assert torch.equal(args["qkv"][:, heads * head_size :], rows[0])
    written = [token for token, slot in enumerate(args["slot_mapping"].tolist()) if slot >= 0]
    for token in written:
        block, within = divmod(args["slot_mapping"][token].item(), block_size)
        assert_close(args["key_cache"][block, within], expected[1][token])
        assert torch.equal(args["value_cache"][block, within].flatten(), rows[1][token])
        for cache, name in zip(caches, ("key_cache", "value_cache")):
            cache[block, within] = args[name][block, within]
    for cache, name in zip(caches, ("key_cache", "value_cache")):  # nothing else was written
        assert torch.equal(cache, args[name])


@neox
@dtypes
@pytest.mark.parametrize(
    "head_size,rotary_dim", [(7, 6), (32, 32), (80, 80), (96, 40), (120, 120), (128, 128), (256, 64)]
)
def test_qk_norm_rope_cache_of_each_width_is_the_reference(kernel, head_size, rotary_dim, dtype, is_neox):
    check_fused(kernel, make_fused(dtype, tokens=3, head_size=head_size, rotary_dim=rotary_dim), is_neox)


@neox
@pytest.mark.parametrize("norms", ["query", "none"])
def test_qk_norm_rope_cache_without_weights_is_the_reference(kernel, norms, is_neox):
    check_fused(kernel, make_fused(torch.float32, norms=norms), is_neox)


@pytest.mark.parametrize("heads,kv_heads", [(1, 1), (16, 8), (33, 3), (5, 17), (0, 2), (2, 0)])
def test_qk_norm_rope_cache_of_any_number_of_heads_is_the_reference(kernel, heads, kv_heads):
    check_fused(kernel, make_fused(torch.bfloat16, heads=heads, kv_heads=kv_heads), True)


@dtypes
@pytest.mark.parametrize("tokens", [0, 1, 2, 300])
def test_qk_norm_rope_cache_of_any_number_of_tokens_is_the_reference(kernel, tokens, dtype):
    check_fused(kernel, make_fused(dtype, tokens=tokens, block_size=16), True)


def test_qk_norm_rope_cache_of_rows_and_caches_that_are_not_aligned_is_the_reference(kernel):
    args = make_fused(torch.float32)
    wide = torch.randn(9, args["qkv"].shape[1] + 5)
    joint = torch.randn(4, 4, 2, 2, 67)
    args |= {"qkv": wide[:, 3:-2], "key_cache": joint[:, :, 0, :, :64], "value_cache": joint[:, :, 1, :, 3:]}
    outside = wide[:, :3].clone(), wide[:, -2:].clone(), joint[:, :, 0, :, 64:].clone()
    check_fused(kernel, args, True)
    assert torch.equal(wide[:, :3], outside[0]) and torch.equal(wide[:, -2:], outside[1])
    assert torch.equal(joint[:, :, 0, :, 64:], outside[2])


def test_qk_norm_rope_cache_of_more_tokens_than_slots_writes_the_first(kernel):
    args = make_fused(torch.float32)
    args["slot_mapping"] = args["slot_mapping"][:6]
    check_fused(kernel, args, True)


def test_qk_norm_rope_cache_out_of_range_raises_and_changes_nothing(cpu_kernel):
    for name, index, value, message in [
        ("positions", 3, 50, r"positions\[3\] must be a row of cos_sin_cache \(0 to 49\), got 50"),
        ("slot_mapping", 2, 16, r"slot_mapping\[2\] must be below the 16 slots of the cache, got 16"),
    ]:
        args = make_fused(torch.float32)
        args[name][index] = value
        before = args["qkv"].clone(), args["key_cache"].clone()
        with pytest.raises(RuntimeError, match=message):
            cpu_kernel.qk_norm_rope_cache(**args)
        assert torch.equal(args["qkv"], before[0]) and torch.equal(args["key_cache"], before[1])


@pytest.mark.parametrize(
    "change,message",
    [
        ({"num_heads": 4}, "qkv must have size 512 in dimension 1: 4 heads and twice 2 of 64; got 448"),
        ({"num_heads": -1}, "num_heads must not be negative, got -1"),
        ({"qkv": torch.zeros(8, 448)}, "the 9 tokens of positions"),
        ({"qkv": torch.zeros(9, 896)[:, ::2]}, "contiguous in its last dimension"),
        ({"positions": torch.zeros(9, 1, dtype=torch.int64)}, "positions must have 1 dimension"),
        ({"q_weight": torch.zeros(63)}, "q_weight must have the 64 elements of a head"),
        ({"k_weight": torch.zeros(64).half()}, "k_weight must be Float, got Half"),
        ({"key_cache": torch.zeros(4, 4, 2, 64).half()}, "key_cache must be Float, got Half"),
        ({"key_cache": torch.zeros(4, 4, 128)}, "key_cache must have 4 dimensions, got 3"),
        ({"value_cache": torch.zeros(4, 4, 2, 32)}, "value_cache must have the shape of key_cache"),
        ({"cos_sin_cache": torch.zeros(50, 66)}, "even width of at most head_size 64, got 66"),
        ({"slot_mapping": torch.zeros(10, dtype=torch.int64)}, "not be longer than the 9 tokens"),
        ({"slot_mapping": torch.zeros(9, dtype=torch.int32)}, "slot_mapping must be Long, got Int"),
    ],
)
def test_qk_norm_rope_cache_of_a_bad_argument_raises_with_its_name(kernel, change, message):
    with pytest.raises(RuntimeError, match=message):
        kernel.qk_norm_rope_cache(**(make_fused(torch.float32) | change))


def test_qk_norm_rope_cache_of_a_token_gives_the_same_bits_alone_and_in_any_batch(kernel, monkeypatch):
    args = make_fused(torch.bfloat16, heads=5)
    alone = {name: v.clone() if isinstance(v, torch.Tensor) else v for name, v in args.items()}
    kernel.qk_norm_rope_cache(**args)
    monkeypatch.setenv("CUDA_EMULATOR_ORDER", "reverse")
    for token in range(9):
        one = {name: alone[name][token : token + 1] for name in ("qkv", "positions", "slot_mapping")}
        kernel.qk_norm_rope_cache(**(alone | one))
    assert all(torch.equal(args[name], alone[name]) for name in ("qkv", "key_cache", "value_cache"))
