"""Caches of eight bits: conversions bit by bit against torch's, and `attend` over them against float64.

What is stored counts as it is: attention over it is as exact as over any other cache.
"""

from __future__ import annotations

import attention_reference as reference
import pytest
import torch
from test_attend import MIXED, TOLERANCE, assert_close, check, classic, make_step
from test_cache import as_flash, decode_step

FP8 = {"fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}
SINKS = torch.tensor([0.5, -2.0, 3.0, 1.0])

names = pytest.mark.parametrize("name", FP8)


def rounded(values, name):
    """To nearest by torch; it makes infinity or NaN of what is too large, so that is cut off before."""
    largest = torch.finfo(FP8[name]).max
    return values.float().clamp(-largest, largest).to(FP8[name])


def same_numbers(actual, expected):
    """Equal bits, but for NaNs, which are all alike."""
    nan = expected.float().isnan()
    assert torch.equal(actual.float().isnan(), nan)
    bits = actual.view(torch.uint8), expected.view(torch.uint8)
    assert torch.equal(bits[0][~nan], bits[1][~nan])


def edges(name):
    """Every number, what lies half way between two, the neighbours of that, and what has no room."""
    codes = torch.arange(256, dtype=torch.int16).to(torch.uint8).view(FP8[name]).float()
    numbers = codes[codes.isfinite()].sort().values
    middles = (numbers[1:] + numbers[:-1]) / 2
    ends = torch.tensor([0.0, -0.0, 1e-30, 465.0, 480.0, 60000.0, 61440.0, 1e30, torch.inf, torch.nan])
    values = torch.cat([numbers, middles, ends, -ends])
    up, down = torch.full_like(values, torch.inf), torch.full_like(values, -torch.inf)
    return torch.cat([values, values.nextafter(up), values.nextafter(down)])


def quantized_step(seed, lens, name, **options):
    """As `make_step`, with a cache of eight bits. Unused slots hold NaN."""
    step = make_step(seed, lens, **options)
    for cache in ("key_cache", "value_cache"):
        nan = step[cache].isnan()
        step[cache] = rounded(step[cache].float() * 3, name)
        step[cache].view(torch.uint8)[nan] = 0x7F
        assert torch.equal(step[cache].float().isnan(), nan)
    return step


@names
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_convert_fp8_of_each_code_is_its_number(kernel, dtype, name):
    codes = torch.arange(256, dtype=torch.int16).to(torch.uint8).view(4, 64)
    out = torch.zeros(4, 64, dtype=dtype)
    kernel.convert_fp8(out, codes, 1.0, name)
    torch.testing.assert_close(out, codes.view(FP8[name]).to(dtype), rtol=0, atol=0, equal_nan=True)


@names
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_convert_fp8_of_numbers_is_the_nearest(kernel, dtype, name):
    values = torch.cat([edges(name), torch.randn(500), torch.randn(500) * 100, torch.randn(500) * 1e-3]).to(
        dtype
    )
    out = torch.zeros(len(values), dtype=torch.uint8)
    kernel.convert_fp8(out, values, 1.0, name)
    same_numbers(out.view(FP8[name]), rounded(values, name))


@names
def test_convert_fp8_with_a_scale_is_of_the_quotient_and_the_product(kernel, name):
    values = torch.randn(3, 50) * 7
    out, back = torch.zeros(3, 50, dtype=FP8[name]), torch.zeros(3, 50)
    kernel.convert_fp8(out, values, 0.37, name)
    same_numbers(out, rounded(values / torch.tensor(0.37), name))
    kernel.convert_fp8(back, out, 0.37, name)
    assert torch.equal(back, out.float() * torch.tensor(0.37))


def test_convert_fp8_of_blocks_that_are_apart_leaves_what_is_between(kernel):
    values, room = torch.randn(3, 2, 7, 5), torch.zeros(3, 2, 7, 5, dtype=torch.uint8)
    kernel.convert_fp8(room[:, 1], values[:, 0])
    same_numbers(
        room[:, 1].contiguous().view(torch.float8_e4m3fn), rounded(values[:, 0], "fp8_e4m3").contiguous()
    )
    assert not room[:, 0].any()


@pytest.mark.parametrize(
    "output,input,kv_dtype,error,message",
    [
        (torch.zeros(4), torch.zeros(4), "fp8", ValueError, "input must be uint8 or torch.float8_e4m3fn"),
        (torch.zeros(4).byte(), torch.zeros(4), "fp4", ValueError, 'kv_cache_dtype must be "auto" or one of'),
        (torch.zeros(4).byte(), torch.zeros(4), "auto", ValueError, "for a output of uint8"),
        (torch.zeros(4).byte(), torch.zeros(4).byte(), "fp8", RuntimeError, "input must be float32"),
        (
            torch.zeros(4).byte(),
            torch.zeros(4).to(torch.float8_e5m2),
            "fp8",
            RuntimeError,
            "one of output and input",
        ),
        (torch.zeros(4).byte(), torch.zeros(4).double(), "fp8", RuntimeError, "input must be float32"),
        (
            torch.zeros(4).byte(),
            torch.zeros(5),
            "fp8",
            RuntimeError,
            "input must have size 4 in dimension 0, got 5",
        ),
        (
            torch.zeros(4, 4).byte(),
            torch.zeros(4, 4).T,
            "fp8",
            RuntimeError,
            "input must have contiguous blocks",
        ),
        (torch.zeros(()).byte(), torch.zeros(()), "fp8", RuntimeError, "output must have a dimension"),
    ],
)
def test_convert_fp8_of_a_bad_argument_raises_with_its_name(kernel, output, input, kv_dtype, error, message):
    with pytest.raises(error, match=message):
        kernel.convert_fp8(output, input, 1.0, kv_dtype)


@names
@pytest.mark.parametrize("layout", ["flash", "classic"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_a_write_into_a_cache_of_eight_bits_is_the_nearest_number(kernel, dtype, layout, name):
    values = edges(name)
    values = torch.cat([values, torch.randn(-len(values) % 48)]).to(dtype).view(-1, 3, 16)
    tokens = len(values)
    if layout == "flash":
        caches = torch.zeros(2, tokens, 2, 3, 16, dtype=torch.uint8).unbind()
        function = kernel.reshape_and_cache_flash
    else:
        caches = (
            torch.zeros(tokens, 3, 1, 2, 16, dtype=torch.uint8),
            torch.zeros(tokens, 3, 16, 2, dtype=torch.uint8),
        )
        function = kernel.reshape_and_cache
    slots = torch.randperm(tokens)
    slots[0] = -1
    function(values, -values, *caches, slots, name, 0.3, torch.tensor([2.5]))
    for cache, written in zip(as_flash(*caches), (values.float() / torch.tensor(0.3), -values.float() / 2.5)):
        expected = torch.zeros(2 * tokens, 3, 16, dtype=torch.uint8)
        expected[slots[1:]] = rounded(written[1:], name).view(torch.uint8)
        same_numbers(cache.flatten(0, 1).contiguous().view(FP8[name]), expected.view(FP8[name]))


@names
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("head_size", [32, 64, 80, 96, 112, 120, 128, 192, 256, 36])
def test_attend_over_eight_bits_with_each_head_size_is_the_reference(kernel, head_size, dtype, name):
    step = quantized_step(head_size, [(1, 19), (3, 8)], name, head_size=head_size, dtype=dtype)
    check(kernel, step, k_scale=0.25, v_scale=torch.tensor([1.75]))


@names
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"causal": False, "k_scale": 0.5},
        {"window": 5, "sinks": SINKS, "v_scale": 3.0},
        {"softcap": 5.0, "k_scale": torch.tensor(0.125)},
        {"alibi_slopes": torch.tensor([0.5, 0.25, 0.125, 0.0625]), "sinks": SINKS, "k_scale": 1},
    ],
    ids="-".join,
)
def test_attend_over_eight_bits_of_a_mixed_step_is_the_reference(kernel, options, dtype, name):
    check(kernel, quantized_step(1, MIXED, name, dtype=dtype), **options)


@names
@pytest.mark.parametrize("heads,kv_heads", [(4, 4), (6, 2), (5, 1)])
def test_attend_over_eight_bits_with_each_grouping_of_heads_is_the_reference(kernel, heads, kv_heads, name):
    step = quantized_step(
        heads, [(1, 21), (2, 9)], name, heads=heads, kv_heads=kv_heads, head_size=32, block_size=3
    )
    check(kernel, step, sinks=torch.randn(heads), k_scale=0.5, v_scale=0.5)


@names
def test_attend_over_eight_bits_of_a_tree_is_the_reference(kernel, name):
    step = quantized_step(2, [(5, 40), (1, 20)], name)
    mask = torch.randint(-(2**31), 2**31, (6, 2), dtype=torch.int64).to(torch.int32)
    check(kernel, step, tree_mask=mask, sinks=SINKS, k_scale=0.5)


@names
def test_attend_over_eight_bits_after_a_long_context_is_the_reference(cpu_kernel, name):
    step = quantized_step(9, [(1, 3000), (2, 2049)], name, head_size=32)
    check(cpu_kernel, step, sinks=SINKS, k_scale=0.5, v_scale=0.75)


@names
def test_attend_over_a_classic_cache_of_eight_bits_is_attend_over_the_flash_layout(kernel, name):
    step = quantized_step(2, MIXED, name)
    expected = kernel.attend(**step, k_scale=0.5, v_scale=0.5).double()
    step["key_cache"], step["value_cache"] = classic(step["key_cache"], step["value_cache"])
    assert step["key_cache"].shape[-1] == 16
    assert_close(kernel.attend(**step, k_scale=0.5, v_scale=0.5), expected, torch.float32)


@names
def test_attend_over_eight_bits_gives_the_same_bits_alone_and_in_any_batch(kernel, name):
    step = quantized_step(6, [(1, 37), (6, 21), (1, 50)], name, head_size=32)
    options = {"sinks": SINKS, "k_scale": 0.5, "v_scale": 0.75}
    together = kernel.attend(**step, **options)
    for seq, token in ((0, 0), (1, 6), (2, 7)):
        alone = step | {
            "query": step["query"][token : token + 1],
            "block_tables": step["block_tables"][seq : seq + 1],
            "seq_lens": step["seq_lens"][seq : seq + 1],
            "query_start_loc": torch.tensor([0, 1], dtype=torch.int32),
        }
        assert torch.equal(kernel.attend(**alone, **options)[0], together[token])


@names
def test_attend_over_a_nan_that_is_seen_is_nan(kernel, name):
    step = quantized_step(3, [(1, 20)], name)
    step["value_cache"].view(torch.uint8)[step["block_tables"][0, 0], 5, 0, 7] = 0xFF
    out = kernel.attend(**step)
    assert torch.equal(out.isnan().nonzero(), torch.tensor([[0, 0, 7], [0, 1, 7]]))


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("kv_cache_dtype", ["fp8", *FP8])
def test_paged_attention_over_a_written_classic_cache_of_eight_bits_is_the_reference(
    kernel, kv_cache_dtype, version
):
    step = decode_step(torch.bfloat16)
    caches = torch.zeros(12, 2, 5, 8, 16, dtype=torch.uint8), torch.zeros(12, 2, 80, 8, dtype=torch.uint8)
    scales = torch.tensor(0.5), torch.tensor(0.25)
    kernel.reshape_and_cache(step["key"], step["value"], *caches, step["slots"], kv_cache_dtype, *scales)
    out = torch.full_like(step["query"], torch.nan)
    scratch = (torch.empty(0),) * 3 if version == 2 else ()
    function = kernel.paged_attention_v2 if version == 2 else kernel.paged_attention_v1
    tail = (2, 0.1, step["tables"], step["lens"], 8, 23, None, kv_cache_dtype, *scales)
    function(out, *scratch, step["query"], *caches, *tail)
    dtype = FP8.get(kv_cache_dtype, torch.float8_e4m3fn)
    expected, _ = reference.attend(
        step["query"],
        *(cache.contiguous().view(dtype) for cache in as_flash(*caches)),
        block_tables=step["tables"],
        seq_lens=step["lens"],
        query_start_loc=torch.arange(5, dtype=torch.int32),
        scale=0.1,
        k_scale=0.5,
        v_scale=0.25,
    )
    assert_close(out, expected, torch.bfloat16)


@pytest.mark.parametrize(
    "key,value,options,message",
    [
        (torch.uint8, torch.uint8, {}, "key_cache must be Float, Float8_e4m3fn or Float8_e5m2, got Byte"),
        (torch.float8_e4m3fn, torch.float8_e5m2, {}, "value_cache must be Float8_e4m3fn, got Float8_e5m2"),
        (torch.float8_e4m3fn, torch.float32, {}, "value_cache must be Float8_e4m3fn, got Float"),
        (
            torch.float8_e5m2,
            torch.float8_e5m2,
            {"k_scale": torch.ones(2)},
            "k_scale must have 1 element, got 2",
        ),
        (
            torch.float8_e5m2,
            torch.float8_e5m2,
            {"v_scale": torch.ones(1).half()},
            "v_scale must be Float, got Half",
        ),
    ],
)
def test_attend_over_caches_of_the_wrong_dtypes_raises_with_their_names(kernel, key, value, options, message):
    step = make_step(0, [(2, 20)])
    step |= {"key_cache": step["key_cache"].nan_to_num().to(key)}
    step |= {"value_cache": step["value_cache"].nan_to_num().to(value)}
    with pytest.raises(RuntimeError, match=message):
        kernel.attend(**step, **options)


def test_a_write_into_uint8_that_is_not_named_raises(kernel):
    caches = torch.zeros(2, 2, 4, 2, 8, dtype=torch.uint8).unbind()
    new = torch.zeros(1, 2, 8)
    with pytest.raises(
        ValueError, match='kv_cache_dtype must be "fp8", "fp8_e4m3" or "fp8_e5m2" for a key_cache'
    ):
        kernel.reshape_and_cache_flash(new, new, *caches, torch.tensor([0]))
    with pytest.raises(ValueError, match='key_cache must be uint8 or torch.float8_e5m2 for "fp8_e5m2"'):
        caches = [cache.view(torch.float8_e4m3fn) for cache in caches]
        kernel.reshape_and_cache_flash(new, new, *caches, torch.tensor([0]), "fp8_e5m2")
