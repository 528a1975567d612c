from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from engine.sampler import SamplingParams, probabilities, sample
from hub_loader.errors import UsageError

LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0, 3.0])


def draw(params: SamplingParams, count: int, logits: torch.Tensor = LOGITS) -> list[int]:
    generator = params.generator()
    return [sample(logits[None], [params], [generator])[0] for _ in range(count)]


def test_sample_at_temperature_zero_then_the_likeliest_token() -> None:
    assert draw(SamplingParams(), 3) == [4, 4, 4]


@given(
    temperature=st.floats(0.1, 5),
    top_k=st.integers(1, 40),
    top_p=st.floats(0.05, 0.99),
    seed=st.integers(0, 2**32),
)
def test_probabilities_for_any_setting_equal_transformers_warpers(
    temperature: float, top_k: int, top_p: float, seed: int
) -> None:
    logits = torch.randn(32, generator=torch.Generator().manual_seed(seed)) * 3
    warpers = LogitsProcessorList(
        [TemperatureLogitsWarper(temperature), TopKLogitsWarper(top_k), TopPLogitsWarper(top_p)]
    )
    expected = warpers(torch.zeros(1, 1, dtype=torch.long), logits[None])[0].softmax(-1)
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p)
    torch.testing.assert_close(probabilities(logits, params), expected)


def test_sample_at_temperature_one_then_frequencies_follow_the_softmax() -> None:
    count = 4000
    drawn = Counter(draw(SamplingParams(temperature=1.0, seed=3), count))
    for token, chance in enumerate(LOGITS.softmax(-1).tolist()):
        # Five standard deviations of a binomial; the seed is fixed, so this never flickers.
        assert abs(drawn[token] - count * chance) < 5 * (count * chance * (1 - chance)) ** 0.5


def test_sample_with_top_k_then_only_the_k_likeliest() -> None:
    assert set(draw(SamplingParams(temperature=5.0, top_k=2, seed=0), 200)) == {0, 4}


def test_sample_with_a_tiny_top_p_then_only_the_likeliest() -> None:
    assert set(draw(SamplingParams(temperature=5.0, top_p=0.01, seed=0), 50)) == {4}


def test_sample_with_equal_seeds_then_equal_tokens_and_other_seeds_differ() -> None:
    flat = torch.zeros(1000)
    first = draw(SamplingParams(temperature=1.0, seed=7), 20, flat)
    assert first == draw(SamplingParams(temperature=1.0, seed=7), 20, flat)
    assert first != draw(SamplingParams(temperature=1.0, seed=8), 20, flat)
    assert draw(SamplingParams(temperature=1.0), 20, flat) != draw(SamplingParams(temperature=1.0), 20, flat)


def test_sample_in_a_mixed_batch_then_each_row_follows_its_own_request() -> None:
    greedy, drawn = SamplingParams(), SamplingParams(temperature=1.0, seed=7)
    flat = torch.zeros(1000)
    flat[9] = 0.1
    alone = draw(drawn, 1, flat)
    tokens = sample(torch.stack((flat, flat)), [greedy, drawn], [None, drawn.generator()])
    assert tokens == [9, *alone]


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_tokens", 0), ("temperature", -0.1), ("temperature", float("nan")), ("top_k", -1), ("top_p", 0.0)],
)
def test_params_out_of_range_then_a_usage_error_names_the_one(name: str, value: float) -> None:
    with pytest.raises(UsageError, match=f"{name} is"):
        SamplingParams(**{name: value})
