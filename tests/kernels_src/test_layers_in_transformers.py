"""A Llama and a Qwen3 of transformers, random and tiny, run with the layers of rmsnorm-rotary.

Logits are held against a float64 run of the model as it comes: the largest error over the largest logit.
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM
from transformers.models.llama import modeling_llama
from transformers.models.qwen3 import modeling_qwen3

from hub_loader import (
    LocalLayerRepository,
    Mode,
    get_local_kernel,
    kernelize,
    kernelized_layers,
    replace_kernel_forward_from_hub,
    use_kernel_forward_from_hub,
    use_kernel_mapping,
    use_kernelized_func,
)

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
SMALL = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "eos_token_id": None,
}
# name -> (its module, norms that run in a forward pass)
MODELS: dict[str, tuple[ModuleType, int]] = {"Llama": (modeling_llama, 5), "Qwen3": (modeling_qwen3, 9)}


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The CPU package of rmsnorm-rotary: the one KHUB_KERNEL_BUILD holds, else built here."""
    if given := os.environ.get("KHUB_KERNEL_BUILD"):
        return Path(given) / "rmsnorm-rotary"
    out = tmp_path_factory.mktemp("rmsnorm-rotary")
    source = ROOT / "kernels_src" / "rmsnorm-rotary"
    select = ["--select", "torch-stable-abi*-cpu-x86_64-*", "--out", str(out)]
    command = [sys.executable, "-m", "hub_loader", "build", str(source), *select]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    return out


@pytest.fixture
def make_model(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], nn.Module]]:
    """Makes a model of classes that are marked as transformers marks them when its own hooks are on."""
    rotations = []

    def make(name: str) -> nn.Module:
        module, _ = MODELS[name]
        norm, attention = getattr(module, f"{name}RMSNorm"), getattr(module, f"{name}Attention")
        rotation = use_kernel_forward_from_hub("rotary_pos_emb")(module.apply_rotary_pos_emb)
        rotations.append(rotation)
        monkeypatch.setattr(module, "apply_rotary_pos_emb", rotation)
        for attribute in ("kernel_layer_name", "kernel_condition"):
            monkeypatch.setattr(norm, attribute, None, raising=False)
        replace_kernel_forward_from_hub(norm, "RMSNorm")
        monkeypatch.setattr(attention, "__init__", attention.__init__)
        use_kernelized_func(rotation)(attention)
        config, cls = {
            "Llama": (LlamaConfig(**SMALL), LlamaForCausalLM),
            "Qwen3": (Qwen3Config(**SMALL), Qwen3ForCausalLM),
        }[name]
        torch.manual_seed(7)
        model: nn.Module = cls(config).eval()
        with torch.no_grad():  # norms of ones would hide a norm that forgets its weight
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        return model

    yield make
    for rotation in rotations:
        kernelize(rotation, mode=Mode.INFERENCE, device="cpu")


def use_our_layers(package: Path) -> Any:
    norm = LocalLayerRepository(package, layer_name="RMSNorm")
    rotation = LocalLayerRepository(package, layer_name="apply_rotary_transformers")
    return use_kernel_mapping({"RMSNorm": {"cpu": norm}, "rotary_pos_emb": {"cpu": rotation}})


def tokens() -> torch.Tensor:
    return torch.randint(0, 128, (2, 9), generator=torch.Generator().manual_seed(3))


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual.double() - expected).abs().max() / expected.abs().max())


def calls(run: Callable[[], object], namespace: str) -> Counter[str]:
    """How often each operator of a namespace runs."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run()
    names = [event.name for event in profile.events() if event.name.startswith(f"{namespace}::")]
    return Counter(name.partition("::")[2] for name in names)


models = pytest.mark.parametrize("name", MODELS)


@models
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_kernelized_model_gives_the_logits_of_a_float64_run(
    make_model: Callable[[str], nn.Module], package: Path, name: str, dtype: torch.dtype
) -> None:
    model = make_model(name).to(dtype)
    with torch.no_grad():
        expected = copy.deepcopy(model).double()(tokens()).logits
        own_error = relative_error(model(tokens()).logits, expected)
        with use_our_layers(package):
            kernelize(model, mode=Mode.INFERENCE, use_fallback=False)
        error = relative_error(model(tokens()).logits, expected)
        counted = calls(lambda: model(tokens()), get_local_kernel(package).__name__)
    print(f"{name} {dtype}: {error:.1e} kernelized, {own_error:.1e} as it comes")
    assert error <= TOLERANCE[dtype]
    assert all(choice.kernel for choice in kernelized_layers(model))
    assert counted == {"rms_norm": MODELS[name][1], "rotate_halves": 2}


@models
def test_kernelized_model_generates_the_same_tokens(
    make_model: Callable[[str], nn.Module], package: Path, name: str
) -> None:
    model: Any = make_model(name)
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(tokens(), **options)
    with use_our_layers(package):
        kernelize(model, mode=Mode.INFERENCE, use_fallback=False)
    assert torch.equal(model.generate(tokens(), **options), expected)


@models
def test_kernelized_model_trains_with_the_gradients_of_a_float64_run(
    make_model: Callable[[str], nn.Module], package: Path, name: str
) -> None:
    model: Any = make_model(name).train()
    exact: Any = copy.deepcopy(model).double()
    exact(tokens(), labels=tokens()).loss.backward()
    with use_our_layers(package):
        kernelize(model, mode=Mode.TRAINING, use_fallback=False)
    model(tokens(), labels=tokens()).loss.backward()
    for (parameter_name, parameter), reference in zip(
        model.named_parameters(), exact.parameters(), strict=True
    ):
        assert relative_error(parameter.grad, reference.grad) < 1e-4, parameter_name


@models
def test_kernelized_model_is_one_graph_that_gives_the_same_logits(
    make_model: Callable[[str], nn.Module], package: Path, name: str
) -> None:
    model = make_model(name)
    with torch.no_grad():
        expected = copy.deepcopy(model).double()(tokens()).logits
        with use_our_layers(package):
            kernelize(model, mode=Mode.INFERENCE | Mode.TORCH_COMPILE, use_fallback=False)
        torch._dynamo.reset()
        explanation = torch._dynamo.explain(model)(tokens())
        assert (explanation.graph_break_count, explanation.graph_count) == (0, 1)
        torch._dynamo.reset()
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        error = relative_error(compiled(tokens()).logits, expected)
        counted = calls(lambda: compiled(tokens()), get_local_kernel(package).__name__)
    assert error <= TOLERANCE[torch.float32]
    assert counted == {"rms_norm": MODELS[name][1], "rotate_halves": 2}


@pytest.mark.heavy
def test_kernelized_model_compiled_by_inductor_gives_the_same_logits(
    make_model: Callable[[str], nn.Module], package: Path
) -> None:
    model = make_model("Llama")
    with torch.no_grad():
        expected = copy.deepcopy(model).double()(tokens()).logits
        with use_our_layers(package):
            kernelize(model, mode=Mode.INFERENCE | Mode.TORCH_COMPILE, use_fallback=False)
        torch._dynamo.reset()
        compiled = torch.compile(model, fullgraph=True)
        assert relative_error(compiled(tokens()).logits, expected) <= TOLERANCE[torch.float32]
        counted = calls(lambda: compiled(tokens()), get_local_kernel(package).__name__)
    assert counted == {"rms_norm": 5, "rotate_halves": 2}
