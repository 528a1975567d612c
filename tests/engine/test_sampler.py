from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from engine.chances import distributions
from engine.params import SamplingParams
from engine.sampler import Draws, sample
from hub_loader.errors import UsageError

LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0, 3.0])


def draw(params: SamplingParams, count: int, logits: torch.Tensor = LOGITS) -> list[int]:
    line = Draws.start(params, [])
    return [sample(logits[None], [line])[0].token for _ in range(count)]


def test_sample_at_temperature_zero_then_the_likeliest_token() -> None:
    assert draw(SamplingParams(), 3) == [4, 4, 4]


@given(
    temperature=st.floats(0.1, 5),
    top_k=st.sampled_from([0, 1, 2, 7, 30, 4000]),
    top_p=st.floats(0.05, 0.99),
    min_p=st.floats(0.0, 0.5),
    vocabulary=st.sampled_from([32, 5000]),
    seed=st.integers(0, 2**32),
)
def test_probabilities_for_any_setting_equal_transformers_warpers(
    temperature: float, top_k: int, top_p: float, min_p: float, vocabulary: int, seed: int
) -> None:
    logits = torch.randn(vocabulary, generator=torch.Generator().manual_seed(seed)) * 3
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature), TopPLogitsWarper(top_p)])
    if top_k:
        warpers.insert(1, TopKLogitsWarper(top_k))
    warpers.append(MinPLogitsWarper(min_p))
    expected = warpers(torch.zeros(1, 1, dtype=torch.long), logits[None])[0].softmax(-1)
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    torch.testing.assert_close(distributions(logits[None], [params])[0].float(), expected)


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
    lines = [Draws.start(greedy, []), Draws.start(drawn, [])]
    assert [choice.token for choice in sample(torch.stack((flat, flat)), lines)] == [9, *alone]


@given(penalty=st.floats(0.5, 2), seed=st.integers(0, 2**32))
def test_repetition_penalty_for_any_logits_equals_transformers(penalty: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(16, generator=generator) * 3
    seen = torch.randint(16, (6,), generator=generator)
    expected = RepetitionPenaltyLogitsProcessor(penalty)(seen[None], logits[None].clone())[0]
    line = Draws(SamplingParams(repetition_penalty=penalty), seen[:3].tolist(), seen[3:].tolist())
    assert sample(logits[None], [line])[0].token == int(expected.argmax())


def test_presence_and_frequency_penalties_count_generated_tokens_only() -> None:
    line = Draws(SamplingParams(presence_penalty=0.6, frequency_penalty=0.5), [0, 0, 0, 0], [4, 4])
    assert sample(LOGITS[None], [line])[0].token == 0  # 4 lost 1.6 of its 3.0


def test_logit_bias_moves_single_tokens_and_leaves_the_logits_as_they_were() -> None:
    logits = LOGITS.clone()
    line = Draws(SamplingParams(logit_bias={3: 50.0}), [])
    assert sample(logits[None], [line])[0].token == 3
    assert torch.equal(logits, LOGITS)


def test_logprobs_are_the_models_own_before_temperature_and_bias() -> None:
    line = Draws(SamplingParams(logprobs=2, temperature=0.7, logit_bias={3: 50.0}), [])
    [choice] = sample(LOGITS[None], [line])
    logs = LOGITS.log_softmax(-1)
    assert choice.token == 3
    assert choice.logprob == pytest.approx(float(logs[3]))
    assert [token for token, _ in choice.top] == [4, 0]
    assert [value for _, value in choice.top] == pytest.approx([float(logs[4]), float(logs[0])])


def test_draw_when_cuts_leave_one_token_of_a_large_vocabulary_then_it_is_that_one() -> None:
    logits = torch.full((1, 5000), -30.0)
    logits[0, 4321] = 10.0
    line = Draws.start(SamplingParams(temperature=1.0, top_p=0.5), [])
    assert {sample(logits, [line])[0].token for _ in range(20)} == {4321}


def test_draw_when_top_p_reaches_past_the_candidates_then_all_of_it_can_come() -> None:
    logits = torch.zeros(1, 5000)
    line = Draws.start(SamplingParams(temperature=1.0, top_p=0.999, seed=1), [])
    assert len({sample(logits, [line])[0].token for _ in range(3000)}) > 2000


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", 0),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("min_p", 1.5),
        ("n", 0),
    ],
)
def test_params_out_of_range_then_a_usage_error_names_the_one(name: str, value: float) -> None:
    with pytest.raises(UsageError, match=f"{name} is"):
        SamplingParams(**{name: value})


@pytest.mark.parametrize("temperature", [1e-45, 1e-9, 9.9e-4])
def test_a_temperature_too_low_to_divide_by_is_greedy(temperature: float) -> None:
    line = Draws.start(SamplingParams(temperature=temperature, seed=1), [])
    logits = torch.randn(1, 100, generator=torch.Generator().manual_seed(3))
    assert sample(logits, [line])[0].token == int(logits.argmax())


@pytest.mark.parametrize("penalty", [0.0, 1e-45, 1e9])
def test_a_repetition_penalty_that_leaves_no_number_is_refused(penalty: float) -> None:
    with pytest.raises(UsageError, match=r"repetition_penalty .*0\.01 to 100"):
        SamplingParams(repetition_penalty=penalty)
