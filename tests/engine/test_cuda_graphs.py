"""Steps padded for CUDA graphs: the same tokens, and padding rows write nothing. Recording itself needs a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from engine_models import MakeModel, mixed_prompts

from engine import LLM, SamplingParams
from engine.batch import Batch, build_batch
from engine.config import Experts
from engine.device import CPU, find_device
from engine.graphs import DecodeGraphs, Run, sizes_up_to, why_not
from engine.kernel_table import Binding
from engine.scheduler import Chunk, Step
from engine.sequence import Sequence
from engine.torch_ops import plan_step
from hub_loader.errors import UsageError


def decodes(count: int, length: int = 5) -> Batch:
    lines = [Sequence(i, list(range(length)), 9, blocks=[3 * i, 3 * i + 1, 3 * i + 2]) for i in range(count)]
    return build_batch(Step([Chunk(line, length - 1, length, True) for line in lines]), 4, plan_step)


def repeats(recorded: list[Run]) -> Callable[[Run], Run]:
    """A recorder without a GPU: the "graph" runs the same function on the same buffers again."""

    def record(run: Run) -> Run:
        recorded.append(run)
        return run

    return record


def with_graphs(llm: LLM, sizes: tuple[int, ...], record: Callable[[Run], Run]) -> DecodeGraphs:
    width = len(llm._cache[0][0])
    graphs = DecodeGraphs(lambda batch: llm.model.forward(batch, llm._cache), sizes, width, CPU, record)
    llm._graphs = graphs
    return graphs


@pytest.mark.parametrize("asynchronous", [False, True])
def test_padded_decodes_give_the_tokens_of_unpadded_ones(make_model: MakeModel, asynchronous: bool) -> None:
    prompts = mixed_prompts(count=9, vocabulary=256, seed=31)
    wishes = [
        SamplingParams(max_tokens=20 + 2 * number, ignore_stop=True, temperature=number % 2, seed=number)
        for number in range(9)
    ]
    plain = LLM(make_model())
    expected = [
        plain.generate([prompt], wish)[0].tokens for prompt, wish in zip(prompts, wishes, strict=True)
    ]
    llm = LLM(make_model(), asynchronous=asynchronous, token_budget=60, num_blocks=60)
    recorded: list[Run] = []
    with_graphs(llm, (1, 4, 12), repeats(recorded))
    ids = [llm.add(prompt, wish) for prompt, wish in zip(prompts, wishes, strict=True)]
    done = {}
    while llm.busy:
        done |= {d.request_id: d.completion.tokens for d in llm.step() if d.completion}
    assert [done[each] for each in ids] == expected
    assert len(recorded) == 3, "one recording for each size that was met"


def test_padding_rows_write_nothing_and_read_only_the_first_block() -> None:
    seen: list[Batch] = []

    def forward(batch: Batch) -> torch.Tensor:
        seen.append(Batch(**{k: None if v is None else v.clone() for k, v in vars(batch).items()}))
        return torch.arange(len(batch.tokens)).float()[:, None]

    graphs = DecodeGraphs(forward, (2, 4, 8), 6, CPU, repeats([]))
    for count in (7, 3, 8):
        batch = decodes(count, length=4 + count)
        logits = graphs.run(batch)
        assert logits is not None and logits.flatten().tolist() == list(range(count))
        padded = seen[-1]
        rows = 4 if count == 3 else 8
        for name in ("tokens", "positions", "slot_mapping", "seq_lens"):
            assert getattr(padded, name)[:count].tolist() == getattr(batch, name).tolist()
        assert padded.slot_mapping.tolist()[count:] == [-1] * (rows - count)
        assert padded.seq_lens.tolist()[count:] == [1] * (rows - count)
        assert not padded.block_tables[count:].any()
        width = batch.block_tables.shape[1]
        assert torch.equal(padded.block_tables[:count, :width], batch.block_tables)
        assert padded.query_start_loc.tolist() == list(range(rows + 1))
        assert padded.sample_rows.tolist() == list(range(rows))


def test_batches_that_are_no_decodes_or_too_many_are_left_to_the_ordinary_way() -> None:
    graphs = DecodeGraphs(lambda batch: torch.zeros(len(batch.tokens), 1), (4,), 6, CPU, repeats([]))
    assert graphs.run(decodes(5)) is None
    prompt = Sequence(0, [1, 2, 3], 4, blocks=[0])
    assert graphs.run(build_batch(Step([Chunk(prompt, 0, 3, True)]), 4, plan_step)) is None
    assert graphs.run(build_batch(Step([Chunk(prompt, 0, 1, False)]), 4, plan_step)) is None
    wide = Sequence(0, list(range(40)), 4, blocks=list(range(10)))
    assert graphs.run(build_batch(Step([Chunk(wide, 39, 40, True)]), 4, plan_step)) is None
    assert graphs.run(decodes(4)) is not None


def test_a_recording_that_fails_is_said_once_and_steps_go_on_without(
    make_model: MakeModel, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(run: Run) -> Run:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    params = SamplingParams(max_tokens=6, ignore_stop=True)
    expected = LLM(make_model()).generate([[1, 2, 3]], params)
    llm = LLM(make_model())
    graphs = with_graphs(llm, (4,), fail)
    assert [c.tokens for c in llm.generate([[1, 2, 3]], params)] == [c.tokens for c in expected]
    assert "operation not permitted" in graphs.refused
    assert caplog.text.count("steps run without CUDA graphs") == 1


def test_sizes_grow_with_the_batch_and_end_with_the_largest() -> None:
    assert sizes_up_to(1) == (1,)
    assert sizes_up_to(5) == (1, 2, 4, 5)
    assert sizes_up_to(100)[-4:] == (56, 64, 96, 100)
    for most in range(1, 600):
        sizes = sizes_up_to(most)
        assert list(sizes) == sorted(set(sizes)) and sizes[-1] == most


def test_slots_in_plain_torch_and_experts_are_why_there_are_no_graphs(make_model: MakeModel) -> None:
    config = LLM(make_model()).config
    attention, plain = Binding("attention", "a/b"), [Binding("norm"), Binding("qkv")]
    assert "plain torch in slot kv_write" in why_not([attention, Binding("kv_write"), *plain], config)
    assert why_not([attention, Binding("kv_write", "a/b"), *plain], config) == ""
    assert why_not([attention, Binding("kv_write"), Binding("qkv", "a/b")], config) == ""
    assert "plain torch in slot attention" in why_not([Binding("attention"), Binding("qkv", "a/b")], config)
    mixture = replace(config, experts=Experts(4, 2, 32, True))
    assert "asks the device which experts" in why_not([], mixture)


def test_devices_and_graphs_that_are_not_here_are_refused_with_the_cure(make_model: MakeModel) -> None:
    with pytest.raises(UsageError, match="cuda_graphs: there are none on a CPU"):
        LLM(make_model(), cuda_graphs=True)
    for name in ("gpu", "meta", "tpu:0"):
        with pytest.raises(UsageError, match="expected cpu, cuda or cuda:NUMBER"):
            find_device(name)
    with pytest.raises(UsageError, match=r"sees \d+ CUDA devices here: use device='cpu'"):
        find_device(f"cuda:{torch.cuda.device_count()}")
