"""Writes into the cache, block copies and the drop-in decode functions.

Writes and copies move bits, so they have no tolerance.
"""

from __future__ import annotations

import attention_reference as reference
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def empty_caches(layout, num_blocks, block_size, heads, head_size, dtype):
    if layout == "flash":
        shape = (num_blocks, block_size, heads, head_size)
        return torch.full(shape, torch.nan, dtype=dtype), torch.full(shape, torch.nan, dtype=dtype)
    x = 16 // dtype.itemsize
    key = torch.full((num_blocks, heads, head_size // x, block_size, x), torch.nan, dtype=dtype)
    return key, torch.full((num_blocks, heads, head_size, block_size), torch.nan, dtype=dtype)


def as_flash(key_cache, value_cache):
    if key_cache.dim() == 4:
        return key_cache, value_cache
    return key_cache.permute(0, 3, 1, 2, 4).flatten(3), value_cache.permute(0, 3, 1, 2)


def write(kernel, layout, key, value, key_cache, value_cache, slots):
    if layout == "flash":
        kernel.reshape_and_cache_flash(key, value, key_cache, value_cache, slots)
    else:
        kernel.reshape_and_cache(key, value, key_cache, value_cache, slots, "auto", 1.0, 1.0)


@pytest.mark.parametrize("layout", ["flash", "classic"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_reshape_and_cache_of_any_slots_writes_those_slots_and_no_other(kernel, layout, dtype, data):
    block_size = data.draw(st.sampled_from([1, 3, 8, 16]))
    heads, head_size = data.draw(st.integers(1, 4)), data.draw(st.sampled_from([8, 40, 64]))
    num_blocks = 5
    slots = data.draw(st.lists(st.integers(-1, num_blocks * block_size - 1), max_size=9))
    slots = [slot if slot not in slots[:i] else -1 for i, slot in enumerate(slots)]
    qkv = torch.randn(
        len(slots), 3, heads, head_size, generator=torch.Generator(torch.get_default_device()).manual_seed(1)
    ).to(dtype)
    key, value = qkv[:, 0], qkv[:, 2]  # views, not contiguous
    key_cache, value_cache = empty_caches(layout, num_blocks, block_size, heads, head_size, dtype)
    write(kernel, layout, key, value, key_cache, value_cache, torch.tensor(slots, dtype=torch.int64))
    for cache, written in zip(as_flash(key_cache, value_cache), (key, value)):
        expected = torch.full((num_blocks * block_size, heads, head_size), torch.nan, dtype=dtype)
        for token, slot in enumerate(slots):
            if slot >= 0:
                expected[slot] = written[token]
        torch.testing.assert_close(cache.flatten(0, 1), expected, rtol=0, atol=0, equal_nan=True)


def test_reshape_and_cache_of_fewer_slots_than_tokens_writes_the_first_tokens(kernel):
    key_cache, value_cache = empty_caches("flash", 2, 4, 2, 8, torch.float32)
    key, value = torch.randn(2, 5, 2, 8)
    kernel.reshape_and_cache_flash(key, value, key_cache, value_cache, torch.tensor([6]))
    assert torch.equal(key_cache[1, 2], key[0])
    assert key_cache.isnan().sum() == key_cache.numel() - key[0].numel()


def test_reshape_and_cache_of_a_slot_out_of_range_raises_and_writes_nothing(cpu_kernel):
    key_cache, value_cache = empty_caches("flash", 2, 4, 2, 8, torch.float32)
    key, value = torch.randn(2, 2, 2, 8)
    with pytest.raises(
        RuntimeError, match=r"slot_mapping\[1\] must be below the 8 slots of the cache, got 8"
    ):
        cpu_kernel.reshape_and_cache_flash(key, value, key_cache, value_cache, torch.tensor([0, 8]))
    assert key_cache.isnan().all()


def test_reshape_and_cache_of_the_wrong_layout_raises(kernel):
    flash, classic = (empty_caches(layout, 2, 4, 2, 8, torch.float32) for layout in ("flash", "classic"))
    key, value = torch.randn(2, 1, 2, 8)
    with pytest.raises(ValueError, match="5 dimensions of the classic layout, got 4"):
        write(kernel, "classic", key, value, *flash, torch.tensor([0]))
    with pytest.raises(ValueError, match="4 dimensions of the flash layout, got 5"):
        write(kernel, "flash", key, value, *classic, torch.tensor([0]))


def test_reshape_and_cache_of_other_heads_raises(kernel):
    caches = empty_caches("flash", 2, 4, 2, 8, torch.float32)
    with pytest.raises(RuntimeError, match="key must have size 2 in dimension 1, got 3"):
        kernel.reshape_and_cache_flash(torch.randn(1, 3, 8), torch.randn(1, 3, 8), *caches, torch.tensor([0]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(6, 16, 2, 8), (6, 3, 1, 5), (6, 2, 4, 8, 4)], ids=str)
def test_copy_blocks_of_pairs_copies_those_blocks_of_every_layer(kernel, dtype, shape):
    layers = [torch.randn(shape).to(dtype) for _ in range(4)]
    before = [layer.clone() for layer in layers]
    kernel.copy_blocks(layers[:2], layers[2:], torch.tensor([[0, 3], [0, 1], [5, 4]]))
    for layer, old in zip(layers, before):
        assert torch.equal(layer, old[[0, 0, 2, 0, 5, 5]])


def test_copy_blocks_of_interleaved_caches_copies_the_blocks(kernel):
    both = torch.randn(4, 2, 8, 2, 8)
    expected = both[[0, 0, 2, 3]].clone()
    kernel.copy_blocks([both[:, 0]], [both[:, 1]], torch.tensor([[0, 1]]))
    assert torch.equal(both, expected)


def test_copy_blocks_of_no_pair_copies_nothing(kernel):
    cache = torch.randn(3, 4)
    before = cache.clone()
    kernel.copy_blocks([cache], [cache], torch.zeros(0, 2, dtype=torch.int64))
    assert torch.equal(cache, before)


def test_copy_blocks_of_a_block_out_of_range_raises(cpu_kernel):
    with pytest.raises(RuntimeError, match=r"blocks of the cache \(0 to 2\), got 3"):
        cpu_kernel.copy_blocks([torch.randn(3, 4)], [torch.randn(3, 4)], torch.tensor([[0, 3]]))


def test_copy_blocks_of_blocks_that_are_not_contiguous_raises(kernel):
    cache = torch.randn(3, 4, 5).transpose(1, 2)
    with pytest.raises(RuntimeError, match="contiguous blocks"):
        kernel.copy_blocks([cache], [cache], torch.tensor([[0, 1]]))


def test_copy_blocks_of_caches_in_eight_bits_copies_the_blocks(kernel):
    cache = torch.randint(256, (4, 3, 5), dtype=torch.uint8)
    expected = cache[[0, 0, 2, 3]].clone()
    kernel.copy_blocks([cache.view(torch.float8_e4m3fn)], [cache], torch.tensor([[0, 1]]))
    assert torch.equal(cache, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.uint8], ids=str)
def test_swap_blocks_copies_the_blocks_of_one_cache_to_those_of_another(kernel, dtype):
    both = torch.randn(5, 2, 3, 2, 8).to(dtype)
    src, dst = both[:, 0], torch.zeros(4, 3, 2, 8).to(dtype)  # the source's blocks are apart
    kernel.swap_blocks(src, dst, torch.tensor([[4, 0], [1, 3]], device="cpu"))
    expected = torch.zeros(4, 3, 2, 8).to(dtype)
    expected[0], expected[3] = src[4], src[1]
    assert torch.equal(dst.float(), expected.float())


def test_swap_blocks_between_devices_copies_there_and_back(kernel):
    on_device = torch.randn(4, 3, 8)
    before, host = on_device.clone(), torch.zeros(5, 3, 8, device="cpu")
    kernel.swap_blocks(on_device, host, torch.tensor([[2, 4]], device="cpu"))
    on_device[2] = 0
    kernel.swap_blocks(host, on_device, torch.tensor([[4, 0]], device="cpu"))
    assert torch.equal(on_device[0], before[2])


@pytest.mark.parametrize(
    "dst,mapping,message",
    [
        (torch.zeros(2, 3), torch.tensor([[0, 2]]), r"blocks of dst \(0 to 1\), got 2"),
        (torch.zeros(2, 3), torch.tensor([[-1, 0]]), r"blocks of src \(0 to 3\), got -1"),
        (torch.zeros(2, 3), torch.tensor([[0, 1]], dtype=torch.int32), "block_mapping must be int64"),
        (torch.zeros(2, 3), torch.tensor([0, 1]), "block_mapping must be int64"),
        (torch.zeros(2, 4), torch.tensor([[0, 1]]), "src and dst must have the same dtype and blocks"),
        (torch.zeros(2, 3).half(), torch.tensor([[0, 1]]), "src and dst must have the same dtype and blocks"),
    ],
)
def test_swap_blocks_of_a_bad_argument_raises_and_copies_nothing(cpu_kernel, dst, mapping, message):
    with pytest.raises(ValueError, match=message):
        cpu_kernel.swap_blocks(torch.ones(4, 3), dst, mapping)
    assert not dst.any()


def decode_step(dtype, block_size=8, heads=4, kv_heads=2, head_size=80):
    """One token per sequence; the classic cache is filled through reshape_and_cache by the caller."""
    lens = [5, 23, 8, 1]
    tables = torch.arange(12, dtype=torch.int32).flip(0).view(4, 3)
    return {
        "query": torch.randn(4, heads, head_size).to(dtype),
        "tables": tables,
        "lens": torch.tensor(lens, dtype=torch.int32),
        "key": torch.randn(sum(lens), kv_heads, head_size).to(dtype),
        "value": torch.randn(sum(lens), kv_heads, head_size).to(dtype),
        "slots": torch.tensor(
            [
                int(tables[s, i // block_size]) * block_size + i % block_size
                for s in range(4)
                for i in range(lens[s])
            ]
        ),
    }


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("alibi", [False, True], ids=["", "alibi"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_paged_attention_over_a_written_classic_cache_is_the_reference(kernel, dtype, alibi, version):
    step = decode_step(dtype)
    caches = empty_caches("classic", 12, 8, 2, 80, dtype)
    kernel.reshape_and_cache(step["key"], step["value"], *caches, step["slots"], "auto", 1.0, 1.0)
    slopes = torch.tensor([0.5, 0.25, 0.125, 0.0625]) if alibi else None
    out = torch.full_like(step["query"], torch.nan)
    scratch = (torch.empty(0), torch.empty(0), torch.empty(0)) if version == 2 else ()
    function = kernel.paged_attention_v2 if version == 2 else kernel.paged_attention_v1
    function(
        out,
        *scratch,
        step["query"],
        *caches,
        2,
        0.1,
        step["tables"],
        step["lens"],
        8,
        23,
        slopes,
        "auto",
        1.0,
        1.0,
    )
    expected, _ = reference.attend(
        step["query"],
        *as_flash(*caches),
        block_tables=step["tables"],
        seq_lens=step["lens"],
        query_start_loc=torch.arange(5, dtype=torch.int32),
        scale=0.1,
        alibi_slopes=slopes,
    )
    tolerance = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype]
    assert (out.double() - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize(
    "change,message",
    [
        ({"kv_cache_dtype": "int8"}, 'kv_cache_dtype must be "auto" or one of "fp8"'),
        (
            {"kv_cache_dtype": "fp8"},
            'key_cache must be uint8 or torch.float8_e4m3fn for "fp8", got torch.float32',
        ),
        ({"num_kv_heads": 4}, "2 KV heads and blocks of 8"),
        ({"block_size": 16}, "2 KV heads and blocks of 8"),
        ({"blocksparse_vert_stride": 8}, "block-sparse"),
        ({"blocksparse_local_blocks": 1}, "block-sparse"),
    ],
)
def test_paged_attention_v1_of_an_argument_it_does_not_support_raises(kernel, change, message):
    step = decode_step(torch.float32)
    key_cache, value_cache = empty_caches("classic", 12, 8, 2, 80, torch.float32)
    arguments = {
        "out": step["query"].clone(),
        "query": step["query"],
        "key_cache": key_cache,
        "value_cache": value_cache,
        "num_kv_heads": 2,
        "scale": 0.1,
        "block_tables": step["tables"],
        "seq_lens": step["lens"],
        "block_size": 8,
        "max_seq_len": 23,
        "alibi_slopes": None,
        "kv_cache_dtype": "auto",
        "k_scale": 1.0,
        "v_scale": 1.0,
    }
    with pytest.raises(ValueError, match=message):
        kernel.paged_attention_v1(**(arguments | change))


def test_operators_keep_the_promises_of_their_schemas(cpu_kernel):
    """Mutation is declared, the fakes agree, aliasing is none: what torch.compile relies on."""
    namespace = cpu_kernel._ops.ops
    query, keys, values = torch.randn(3, 4, 32), torch.randn(5, 8, 2, 32), torch.randn(5, 8, 2, 32)
    tables, lengths, starts = (
        torch.tensor(v, dtype=torch.int32) for v in ([[1, 3], [2, 0]], [12, 1], [0, 2, 3])
    )
    slopes, sinks, scale = torch.rand(4), torch.rand(4), torch.ones(1)
    plain, small = (keys, values), (keys.to(torch.float8_e5m2), values.to(torch.float8_e5m2))
    # torch cannot compare tensors of eight bits, as its check of the schema does.
    some = ("test_autograd_registration", "test_faketensor")
    full = (*some, "test_schema", "test_aot_dispatch_dynamic")
    for lse, caches, options, checks in (
        (None, plain, (starts, None, None, None, None, None), full),
        (torch.empty(3, 4), plain, (starts, slopes, sinks, None, None, None), full),
        (torch.empty(3, 4), small, (starts, slopes, sinks, scale, scale, None), some),
    ):
        arguments = (
            torch.empty_like(query),
            lse,
            query,
            *caches,
            tables,
            lengths,
            *options,
            0.2,
            True,
            0,
            0.0,
        )
        torch.library.opcheck(namespace.attend.default, arguments, test_utils=checks)
    classic = torch.zeros(5, 2, 8, 8, 4), torch.zeros(5, 2, 32, 8)
    for caches, scales, checks in (
        (plain, (None, None), full),
        (classic, (None, None), full),
        (small, (scale, scale), some),
    ):
        new, slots = torch.randn(2, 3, 2, 32), torch.tensor([0, -1, 39])
        torch.library.opcheck(
            namespace.reshape_and_cache.default, (*new, *caches, slots, *scales), test_utils=checks
        )
    state = torch.randn(3, 4, 32), torch.randn(3, 4)
    torch.library.opcheck(namespace.merge_states.default, (*map(torch.empty_like, state), *state, *state))
    torch.library.opcheck(namespace.convert_fp8.default, (small[0], keys, 2.0), test_utils=some)
    torch.library.opcheck(namespace.copy_blocks.default, ([keys], [values], torch.tensor([[0, 4]])))
