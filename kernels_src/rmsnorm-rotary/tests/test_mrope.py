"""Angles by several positions for each token, against the definition and the models that have them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import rows_reference as reference
import torch


def make(axes: int, tokens: int, pairs: int, dtype: torch.dtype = torch.float32):
    angles = torch.randn(50, pairs)
    cache = torch.cat((angles.cos(), angles.sin()), dim=1).to(dtype)
    return torch.randint(0, 50, (axes, tokens)), cache


def by_definition(positions, cache, sections, interleaved):
    """Pair by pair."""
    pairs, axes = cache.shape[1] // 2, len(sections)
    if interleaved:
        axis_of = [pair % axes if pair < axes * sections[pair % axes] else 0 for pair in range(pairs)]
    else:
        axis_of = [axis for axis, count in enumerate(sections) for _ in range(count)]
    columns = [
        cache[positions[axis], half * pairs + pair] for half in (0, 1) for pair, axis in enumerate(axis_of)
    ]
    return torch.stack(columns, dim=1)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("sections", [[16, 24, 24], [24, 20, 20], [8, 0, 4], [5, 5], [7], [0, 0, 6]])
@pytest.mark.parametrize("tokens", [0, 1, 9])
def test_each_pair_turns_by_the_position_of_its_axis(cpu_kernel, sections, interleaved, tokens):
    positions, cache = make(len(sections), tokens, sum(sections))
    actual = cpu_kernel.mrope_cos_sin(positions, cache, sections, interleaved)
    expected = by_definition(positions, cache, sections, interleaved)
    assert torch.equal(actual, expected.reshape(tokens, 2 * sum(sections)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("interleaved", [False, True])
def test_rotation_by_them_is_that_by_each_axis_where_its_pairs_are(kernel, interleaved, dtype):
    sections, tokens = [8, 12, 12], 5
    positions, cache = make(3, tokens, 32, dtype)
    angles = kernel.mrope_cos_sin(positions, cache, sections, interleaved)
    query, key = torch.randn(tokens, 4, 64).to(dtype), torch.randn(tokens, 2, 64).to(dtype)
    place = torch.arange(tokens)
    expected = [
        reference.rotary(place, x, by_definition(positions, cache, sections, interleaved), True)
        for x in (query, key)
    ]
    kernel.rotary_embedding(place, query, key, 64, angles, True)
    for actual, wanted in zip((query, key), expected, strict=True):
        limit = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype]
        assert (actual.double() - wanted).abs().max() <= limit * wanted.abs().max()


def test_equal_positions_are_those_of_a_text(cpu_kernel):
    positions, cache = make(1, 9, 12)
    for interleaved in (False, True):
        angles = cpu_kernel.mrope_cos_sin(positions.expand(3, 9), cache, [4, 4, 4], interleaved)
        assert torch.equal(angles, cache[positions[0]])


def test_under_torch_compile_it_is_itself(cpu_kernel):
    positions, cache = make(3, 7, 12)
    compiled = torch.compile(cpu_kernel.mrope_cos_sin, fullgraph=True, backend="eager")
    assert torch.equal(
        compiled(positions, cache, (4, 4, 4), True),
        cpu_kernel.mrope_cos_sin(positions, cache, (4, 4, 4), True),
    )


@pytest.mark.parametrize(
    "shape,sections,message",
    [
        ((2, 7), [4, 4, 4], r"positions must be \[3, num_tokens\], one row for each of .* \[4, 4, 4\], got \[2, 7\]"),
        ((7,), [12], r"positions must be \[1, num_tokens\], .* got \[7\]"),
        ((3, 7), [4, 4, 5], r"sections must add up to the 12 pairs of cos_sin_cache, got \[4, 4, 5\]"),
        ((2, 7), [13, -1], r"sections must add up to the 12 pairs of cos_sin_cache, got \[13, -1\]"),
        ((0, 7), [], r"sections must add up to the 12 pairs of cos_sin_cache, got \[\]"),
    ],
)  # fmt: skip
def test_bad_arguments_raise_with_what_is_wrong(cpu_kernel, shape, sections, message):
    with pytest.raises(ValueError, match=message):
        cpu_kernel.mrope_cos_sin(torch.zeros(shape, dtype=torch.int64), make(1, 1, 12)[1], sections)


def test_the_models_that_have_them_have_the_same(cpu_kernel):
    from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLRotaryEmbedding
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextRotaryEmbedding

    sections = [8, 12, 12]
    positions, cache = make(3, 6, 32)
    given = SimpleNamespace(mrope_section=sections)
    for theirs, interleaved in ((Qwen2VLRotaryEmbedding, False), (Qwen3VLTextRotaryEmbedding, True)):
        expected = [
            theirs.recomposition_frequencies(given, half[positions][:, None])[0, :, :32]
            for half in cache.chunk(2, dim=1)
        ]
        actual = cpu_kernel.mrope_cos_sin(positions, cache, sections, interleaved)
        assert torch.equal(actual, torch.cat(expected, dim=1))
