"""`attend` against float64. Errors are relative to the largest absolute value of the expected tensor."""

from __future__ import annotations

import attention_reference as reference
import pytest
import torch

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def make_step(seed, lens, *, heads=4, kv_heads=2, head_size=64, block_size=16, dtype=torch.float32):
    """A mixed step: `lens` has (query_len, seq_len) pairs. Blocks are shuffled, and unused slots hold NaN."""
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    blocks_needed = [-(-seq_len // block_size) for _, seq_len in lens]
    num_blocks = sum(blocks_needed) + 3
    order = torch.randperm(num_blocks, generator=generator, dtype=torch.int32)
    block_tables = torch.full((len(lens), max([*blocks_needed, 1])), 2**30, dtype=torch.int32)
    shape = (num_blocks, block_size, kv_heads, head_size)
    key_cache = torch.full(shape, torch.nan, dtype=dtype)
    value_cache = torch.full(shape, torch.nan, dtype=dtype)
    used = 0
    for i, (_, seq_len) in enumerate(lens):
        table = order[used : used + blocks_needed[i]]
        block_tables[i, : blocks_needed[i]] = table
        used += blocks_needed[i]
        slots = (table[:, None] * block_size + torch.arange(block_size)).flatten()[:seq_len]
        for cache in (key_cache, value_cache):
            rows = torch.randn(seq_len, kv_heads, head_size, generator=generator)
            cache.view(-1, kv_heads, head_size)[slots] = rows.to(dtype)
    query_lens = torch.tensor([0] + [query_len for query_len, _ in lens])
    return {
        "query": torch.randn(int(query_lens.sum()), heads, head_size, generator=generator).to(dtype),
        "key_cache": key_cache,
        "value_cache": value_cache,
        "block_tables": block_tables,
        "seq_lens": torch.tensor([seq_len for _, seq_len in lens], dtype=torch.int32),
        "query_start_loc": query_lens.cumsum(0).to(torch.int32),
        "scale": head_size**-0.5,
    }


def assert_close(actual, expected, dtype):
    assert actual.dtype == dtype
    error = (actual.double() - expected).abs().max().item() if expected.numel() else 0.0
    largest = expected.abs().max().item() if expected.numel() else 1.0
    assert error <= TOLERANCE[dtype] * max(largest, 1e-30), f"relative error {error / largest:.2e}"


def check(kernel, step, **options):
    out, lse = kernel.attend(**step, **options, return_lse=True)
    expected, expected_lse = reference.attend(**step, **options)
    assert_close(out, expected, step["query"].dtype)
    torch.testing.assert_close(lse.double(), expected_lse, rtol=1e-5, atol=1e-5)


MIXED = [(1, 37), (5, 5), (1, 1), (7, 40), (0, 12), (1, 64), (3, 0)]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("head_size", [32, 64, 80, 96, 112, 120, 128, 192, 256, 36])
def test_attend_with_each_head_size_and_dtype_is_the_reference(kernel, head_size, dtype):
    check(kernel, make_step(head_size, [(1, 19), (3, 8)], head_size=head_size, dtype=dtype))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_attend_over_a_mixed_step_is_the_reference(kernel, dtype, seed):
    check(kernel, make_step(seed, MIXED, dtype=dtype))


@pytest.mark.parametrize("heads,kv_heads", [(4, 4), (4, 2), (8, 2), (8, 1), (6, 2), (5, 1), (16, 2), (1, 1)])
def test_attend_with_each_grouping_of_heads_is_the_reference(kernel, heads, kv_heads):
    check(kernel, make_step(heads, [(1, 21), (2, 9)], heads=heads, kv_heads=kv_heads, head_size=32))


@pytest.mark.parametrize("block_size", [1, 3, 8, 16, 32, 64, 128, 256])
def test_attend_with_each_block_size_is_the_reference(kernel, block_size):
    check(kernel, make_step(block_size, [(1, 45), (2, 33)], block_size=block_size, head_size=32))


CHUNKS = [(40, 40), (17, 90), (1, 20), (16, 16), (70, 330), (33, 33)]
# What long chunks are to CPUs alone; test_attend_spans has those of all.
on_cpus = pytest.mark.parametrize(
    "kernel",
    ["cpu", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("cpu-baseline", "cpu-wide"))],
    indirect=True,
)


@on_cpus
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("head_size", [32, 36, 80, 256])
def test_attend_of_long_chunks_is_the_reference(kernel, head_size, dtype):
    check(kernel, make_step(head_size, CHUNKS, head_size=head_size, dtype=dtype))


@on_cpus
@pytest.mark.parametrize("heads,kv_heads", [(4, 4), (6, 2), (5, 1), (40, 1)])
def test_attend_of_long_chunks_with_each_grouping_of_heads_is_the_reference(kernel, heads, kv_heads):
    check(kernel, make_step(heads, [(50, 50), (18, 31)], heads=heads, kv_heads=kv_heads, head_size=32))


@on_cpus
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_attend_of_long_chunks_over_the_classic_layout_is_the_reference(kernel, dtype):
    step = make_step(3, CHUNKS, head_size=32, dtype=dtype)
    expected, _ = reference.attend(**step)
    step["key_cache"], step["value_cache"] = classic(step["key_cache"], step["value_cache"])
    assert_close(kernel.attend(**step), expected, dtype)


def test_attend_of_a_long_chunk_keeps_a_value_that_is_no_number_from_those_before_it(kernel):
    step = make_step(4, [(64, 130)], head_size=32)
    expected, _ = reference.attend(**step)
    where = (step["block_tables"][0, 100 // 16], 100 % 16)
    step["value_cache"][where] = torch.nan
    out = kernel.attend(**step)
    assert_close(out[:34], expected[:34], torch.float32)  # positions 66 to 99
    assert out[34:].isnan().all()


@pytest.mark.parametrize(
    "options",
    [
        {"causal": False},
        {"window": 1},
        {"window": 5},
        {"window": 33},
        {"window": 1000},
        {"softcap": 5.0},
        {"alibi_slopes": torch.tensor([0.5, 0.25, 0.125, 0.0625])},
        {"sinks": torch.tensor([0.5, -2.0, 3.0, -torch.inf])},
        {"sinks": torch.tensor([90.0, -90.0, 0.0, 1.0]), "causal": False},
        {"sinks": torch.tensor([0.5, -2.0, 3.0, 1.0]), "window": 5, "softcap": 2.0},
        {"window": 7, "softcap": 2.0, "alibi_slopes": torch.tensor([0.5, 0.25, 0.125, 0.0625])},
    ],
    ids=lambda options: "-".join(options),
)
def test_attend_with_an_option_is_the_reference(kernel, options):
    check(kernel, make_step(7, [*MIXED, (35, 80)], head_size=32), **options)


def test_attend_of_one_token_over_itself_is_its_value(kernel):
    step = make_step(0, [(1, 1)])
    out = kernel.attend(**step)
    value = step["value_cache"][step["block_tables"][0, 0], 0]
    assert torch.equal(out[0], value.repeat_interleave(2, dim=0))


def test_attend_over_an_empty_sequence_is_zero(kernel):
    out, lse = kernel.attend(**make_step(0, [(2, 0)]), return_lse=True)
    assert torch.equal(out, torch.zeros_like(out))
    assert torch.equal(lse, torch.full_like(lse, -torch.inf))


def test_attend_over_an_empty_sequence_with_sinks_is_zero_and_the_sinks(kernel):
    sinks = torch.randn(4)
    out, lse = kernel.attend(**make_step(0, [(2, 0)]), sinks=sinks, return_lse=True)
    assert torch.equal(out, torch.zeros_like(out))
    assert torch.equal(lse, sinks.expand(2, 4))


@pytest.mark.parametrize("lens", [[], [(0, 5)]], ids=["no sequences", "no tokens"])
def test_attend_of_an_empty_batch_is_empty(kernel, lens):
    assert kernel.attend(**make_step(0, lens)).shape == (0, 4, 64)


def test_attend_over_shared_blocks_is_the_reference(kernel):
    step = make_step(1, [(1, 40), (1, 40), (2, 35)])
    step["block_tables"][1, :2] = step["block_tables"][0, :2]
    step["block_tables"][2, :2] = step["block_tables"][0, :2]
    check(kernel, step)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_attend_over_the_classic_layout_is_the_reference(kernel, dtype):
    step = make_step(2, MIXED, dtype=dtype)
    expected, _ = reference.attend(**step)
    step["key_cache"], step["value_cache"] = classic(step["key_cache"], step["value_cache"])
    assert_close(kernel.attend(**step), expected, dtype)


def classic(key_cache, value_cache):
    num_blocks, block_size, heads, head_size = key_cache.shape
    x = 16 // key_cache.element_size()
    key = key_cache.view(num_blocks, block_size, heads, head_size // x, x).permute(0, 2, 3, 1, 4).contiguous()
    return key, value_cache.permute(0, 2, 3, 1).contiguous()


def test_attend_with_large_logits_is_the_reference(kernel):
    step = make_step(3, [(2, 50)])
    step["scale"] = 10.0
    check(kernel, step)


def test_attend_over_views_of_larger_tensors_is_the_reference(kernel):
    step = make_step(4, MIXED, head_size=32)
    tokens = step["query"].shape[0]
    qkv = torch.randn(tokens, 4 + 2 + 2, 32)
    qkv[:, :4] = step["query"]
    step["query"] = qkv[:, :4]
    both = torch.stack([step["key_cache"], step["value_cache"]], dim=1)
    step["key_cache"], step["value_cache"] = both[:, 0], both[:, 1]
    wide_tables = torch.full((len(MIXED), 20), -1, dtype=torch.int32)
    wide_tables[:, : step["block_tables"].shape[1]] = step["block_tables"]
    step["block_tables"] = wide_tables
    out = torch.zeros(tokens, 4, 64)[:, :, :32]
    assert kernel.attend(**step, out=out) is out
    assert_close(out, reference.attend(**step)[0], torch.float32)


def test_attend_twice_gives_the_same_bits(kernel):
    step = make_step(5, MIXED)
    assert torch.equal(kernel.attend(**step), kernel.attend(**step))


def test_attend_of_a_sequence_gives_the_same_bits_alone_and_in_any_batch(kernel):
    step = make_step(6, [(1, 37), (6, 21), (1, 50)], head_size=32)
    sinks = torch.randn(4)
    together = kernel.attend(**step, sinks=sinks)
    for seq in range(3):
        begin, end = step["query_start_loc"][seq : seq + 2].tolist()
        for first in range(begin, end):  # even a prefill chunk token by token
            alone = kernel.attend(
                step["query"][first : first + 1],
                step["key_cache"],
                step["value_cache"],
                block_tables=step["block_tables"][seq : seq + 1],
                seq_lens=step["seq_lens"][seq : seq + 1] - (end - 1 - first),
                query_start_loc=torch.tensor([0, 1], dtype=torch.int32),
                scale=step["scale"],
                sinks=sinks,
            )
            assert torch.equal(alone[0], together[first])


def test_attend_with_the_emulated_threads_in_reverse_gives_the_same_bits(kernel, monkeypatch):
    step = make_step(8, [(1, 37), (2, 9)], head_size=32)
    forward = kernel.attend(**step)
    monkeypatch.setenv("CUDA_EMULATOR_ORDER", "reverse")
    assert torch.equal(kernel.attend(**step), forward)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_attend_over_a_long_context_is_the_reference(cpu_kernel, dtype):
    step = make_step(9, [(1, 3000), (2, 2049)], dtype=dtype, head_size=32)
    check(cpu_kernel, step)
    check(cpu_kernel, step, sinks=torch.tensor([4.0, 8.0, 9.0, -1.0]))  # once, though there are many spans


@pytest.mark.slow
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_attend_over_32k_tokens_is_the_reference(cpu_kernel, dtype):
    check(cpu_kernel, make_step(10, [(1, 32768), (3, 32001)], dtype=dtype, head_size=128, kv_heads=1))


@pytest.mark.parametrize(
    "change,message",
    [
        ({"query": torch.randn(2, 4, 64, dtype=torch.float64)}, "query must be float32, float16 or bfloat16"),
        ({"query": torch.randn(2, 64)}, "query must have 3 dimensions, got 2"),
        ({"query": torch.randn(2, 3, 64)}, "multiple of the 2 KV heads"),
        ({"query": torch.randn(2, 4, 32)}, "head size of query, 32, got 64"),
        ({"query": torch.randn(2, 4, 128)[:, :, ::2]}, "contiguous in its last dimension, got stride 2"),
        (
            {"query": torch.randn(2, 4, 64).half()},
            "key_cache must be Half, Float8_e4m3fn or Float8_e5m2, got Float",
        ),
        ({"seq_lens": torch.tensor([20])}, "seq_lens must be Int, got Long"),
        (
            {"block_tables": torch.zeros(3, 2, dtype=torch.int32)},
            "block_tables must have size 1 in dimension 0",
        ),
        ({"query_start_loc": torch.tensor([0], dtype=torch.int32)}, "query_start_loc must have size 2"),
        ({"alibi_slopes": torch.zeros(3)}, "alibi_slopes must have size 4"),
        ({"sinks": torch.zeros(3)}, "sinks must have size 4"),
        ({"sinks": torch.zeros(4).half()}, "sinks must be Float, got Half"),
        ({"k_scale": 2.0}, "k_scale needs an FP8 cache: leave it out, the dtype of key_cache is Float"),
        ({"v_scale": torch.ones(1)}, "v_scale needs an FP8 cache"),
        ({"out": torch.zeros(1, 4, 64)}, "out must have size 2 in dimension 0, got 1"),
        ({"softcap": -1.0}, "softcap must not be negative"),
    ],
)
def test_attend_of_a_bad_argument_raises_with_its_name(kernel, change, message):
    step = make_step(0, [(2, 20)]) | change
    with pytest.raises(RuntimeError, match=message):
        kernel.attend(**step)


@pytest.mark.parametrize(
    "name,value,message",
    [
        ("seq_lens", [33], r"seq_lens\[0\] must be between 0 and the 32 slots of a block table, got 33"),
        ("seq_lens", [-1], r"seq_lens\[0\] must be between"),
        ("block_tables", [[0, 99]], r"block_tables\[0, 1\] must be a block of the cache \(0 to 4\), got 99"),
        ("block_tables", [[-1, 0]], r"block_tables\[0, 0\] must be a block"),
        ("query_start_loc", [0, 1], "query_start_loc must end with the 2 tokens of query, got 1"),
        ("query_start_loc", [1, 2], "query_start_loc must start with 0"),
    ],
)
def test_attend_on_the_cpu_of_a_value_out_of_range_raises(cpu_kernel, name, value, message):
    step = make_step(0, [(2, 20)]) | {name: torch.tensor(value, dtype=torch.int32)}
    with pytest.raises(RuntimeError, match=message):
        cpu_kernel.attend(**step)


@pytest.mark.parametrize("options", [{"window": 0}, {"window": -3}, {"window": 4, "causal": False}])
def test_attend_with_a_window_that_means_nothing_raises(kernel, options):
    with pytest.raises(ValueError, match="window"):
        kernel.attend(**make_step(0, [(2, 20)]), **options)


def test_attend_under_torch_compile_is_attend(cpu_kernel):
    step = make_step(0, [(2, 20)])
    compiled = torch.compile(lambda: cpu_kernel.attend(**step) + 1, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(), cpu_kernel.attend(**step) + 1)
