"""Which provider serves a slot, and what is said about it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from engine_models import MakeModel

from engine import LLM, SamplingParams, torch_ops
from engine.kernels import HUB, SLOTS, Binding, bind, format_bindings, parse_sources, slot_sources
from hub_loader.errors import NoMatchingVariantError, UsageError


@dataclass
class FakeHub:
    """Stands in for the loader: every repository holds the torch functions and counts its calls."""

    asked: list[tuple[Any, ...]]
    calls: dict[str, int]
    kernels: list[Any]
    local: bool = False

    def get_kernel(self, repo_id: str, version: int | None = None) -> ModuleType:
        self.asked.append((repo_id, version))
        module = ModuleType(repo_id)
        for names in SLOTS.values():
            for name in names:
                setattr(module, name, self._counted(repo_id, name))
        metadata = SimpleNamespace(version=version or 3)
        self.kernels.append(
            SimpleNamespace(
                module=module,
                metadata=metadata,
                variant=f"variant-of-{repo_id}",
                repo_info=None if self.local else repo_id,
                path=Path(repo_id),
            )
        )
        return module

    def get_local_kernel(self, path: Path) -> ModuleType:
        self.local = True
        return self.get_kernel(path.name)

    def get_loaded_kernels(self) -> list[Any]:
        return self.kernels

    def explain(self, repo_id: str, version: int | None = None) -> Any:
        decision = SimpleNamespace(variant=f"variant-of-{repo_id}", reason=f"fits {version}")
        return SimpleNamespace(signer="0123456789abcdef" * 4, signed="signed by …", decisions=[decision])

    def explain_folder(self, path: Path) -> Any:
        return self.explain(path.name)

    def _counted(self, repo_id: str, name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls[f"{repo_id}:{name}"] = self.calls.get(f"{repo_id}:{name}", 0) + 1
            return getattr(torch_ops, name)(*args, **kwargs)

        return call


@pytest.fixture
def hub() -> FakeHub:
    return FakeHub([], {}, [])


def test_torch_serves_every_slot_when_asked_for() -> None:
    kernels = bind(slot_sources("torch", None))
    assert kernels.bindings == tuple(Binding(slot, reason="nothing else was asked for") for slot in SLOTS)
    assert kernels.attend is torch_ops.attend


def test_hub_serves_all_but_planner_and_matmul_and_matmul_too_when_quantized() -> None:
    plain = {"matmul": "torch", "planner": "torch"}
    assert slot_sources("hub", None) == HUB | plain
    assert slot_sources("hub", "int4") == HUB | plain | {"matmul": "kernel-hub/quantized-matmul"}


def test_mapping_leaves_other_slots_to_torch() -> None:
    sources = slot_sources({"norm": "org/norms@2"}, None)
    assert sources == dict.fromkeys(SLOTS, "torch") | {"norm": "org/norms@2"}


def test_bind_loads_each_repository_once_and_tells_version_and_variant(hub: FakeHub) -> None:
    sources = slot_sources({"attention": "org/a@1", "kv_write": "org/a@1", "norm": "org/b"}, None)
    kernels = bind(sources, hub)
    assert hub.asked == [("org/a", 1), ("org/b", None)]
    bound = {b.slot: (b.source, b.version, b.variant, b.signature, b.reason) for b in kernels.bindings}
    signed = "key 0123456789abcdef"
    assert bound["attention"] == bound["kv_write"] == ("org/a@1", "v1", "variant-of-org/a", signed, "fits 1")
    assert bound["norm"] == ("org/b", "v3", "variant-of-org/b", signed, "fits None")
    assert bound["matmul"] == ("torch", "-", "-", "-", "nothing else was asked for")


def test_bind_when_the_source_is_a_folder_then_loaded_from_there(hub: FakeHub, tmp_path: Path) -> None:
    kernels = bind({"norm": str(tmp_path)} | _torch_but("norm"), hub)
    assert hub.asked == [(tmp_path.name, None)]
    binding = next(b for b in kernels.bindings if b.slot == "norm")
    assert (binding.variant, binding.signature) == (
        f"variant-of-{tmp_path.name}",
        "none: a folder of this machine",
    )


def test_bind_when_the_loader_refuses_then_its_error_reaches_the_caller() -> None:
    def refuse(repo_id: str, version: int | None) -> ModuleType:
        raise NoMatchingVariantError(f"{repo_id}: nothing fits")

    with pytest.raises(NoMatchingVariantError, match="org/a: nothing fits"):
        bind(slot_sources({"norm": "org/a"}, None), SimpleNamespace(get_kernel=refuse))


def test_bind_when_a_package_lacks_a_function_then_it_is_named() -> None:
    with pytest.raises(UsageError, match="'org/a' has no function 'rms_norm', which slot 'norm' calls"):
        bind(
            slot_sources({"norm": "org/a"}, None),
            SimpleNamespace(get_kernel=lambda *_, **__: ModuleType("a")),
        )


@pytest.mark.parametrize("source", ["nothing", "org/a@newest", "org/a@", "a/b/c", "/no/such/folder"])
def test_bind_when_the_source_is_malformed_then_the_forms_are_taught(source: str) -> None:
    with pytest.raises(UsageError, match="org/name@version"):
        bind({"norm": source} | _torch_but("norm"))


@pytest.mark.parametrize(
    ("kernels", "words"),
    [
        ("cuda", "expected 'torch', 'hub' or a mapping"),
        ({"softmax": "torch"}, "unknown kernel slot 'softmax': the slots are attention"),
        ({"matmul": "org/quantized"}, "set quantize too"),
    ],
)
def test_sources_that_make_no_sense_are_refused(kernels: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        slot_sources(kernels, None)


def test_parse_sources_reads_words_and_pairs() -> None:
    assert parse_sources("hub") == "hub"
    assert parse_sources("norm=org/b@2, matmul=torch") == {"norm": "org/b@2", "matmul": "torch"}
    with pytest.raises(UsageError, match="slot=source"):
        parse_sources("norm")


def test_table_has_a_line_for_each_slot() -> None:
    bound = Binding("attention", "org/a", "v1", "torch-cpu", "key 0123", "the best fit", "passed")
    assert format_bindings([bound, Binding("norm", reason="asked for")]).splitlines() == [
        "slot       source  version  variant    signature  why           self-test",
        "attention  org/a   v1       torch-cpu  key 0123   the best fit  passed",
        "norm       torch   -        -          -          asked for",
    ]


def test_function_that_a_provider_may_lack_is_plain_torch_there(hub: FakeHub) -> None:
    sources = dict.fromkeys(SLOTS, "torch") | {"activation": "org/gates"}
    assert bind(sources, hub).gelu_tanh_and_mul is torch_ops.gelu_tanh_and_mul
    module = hub.get_kernel("org/gates")
    module.gelu_tanh_and_mul = hub._counted("org/gates", "gelu_tanh_and_mul")  # type: ignore[attr-defined]
    hub.get_kernel = lambda repo_id, version=None: module  # type: ignore[method-assign]
    assert bind(sources, hub).gelu_tanh_and_mul is module.gelu_tanh_and_mul


@pytest.mark.parametrize("quantize", ["int4", None])
def test_weights_are_multiplied_as_the_kernel_prepacks_them(
    make_model: MakeModel, quantize: str | None
) -> None:
    made: list[Any] = []
    multiplied: set[int] = set()

    def prepack(packed: Any) -> Any:
        made.append(replace(packed))
        return made[-1]

    def matmul(x: Any, packed: Any, bias: Any = None) -> Any:
        multiplied.add(packed.scales.data_ptr())
        return torch_ops.matmul(x, packed, bias=bias)

    kernels = replace(bind(slot_sources("torch", None)), matmul=matmul, prepack=prepack)
    LLM(make_model(), kernels=kernels, quantize=quantize).generate([[1, 2, 3]], SamplingParams(max_tokens=2))
    assert multiplied == {packed.scales.data_ptr() for packed in made}
    assert bool(made) == (quantize is not None)


@pytest.mark.parametrize("quantize", ["int4", "w4a8"])
def test_only_w4a8_allows_a_kernel_to_round_activations_and_not_in_the_output_layer(
    make_model: MakeModel, quantize: str
) -> None:
    seen: set[tuple[str, bool]] = set()

    def matmul(x: Any, packed: Any, bias: Any = None, int8_activations: bool = False) -> Any:
        seen.add((packed.format, int8_activations))
        return torch_ops.matmul(x, packed, bias=bias)

    kernels = replace(bind(slot_sources("torch", None)), matmul=matmul)
    LLM(make_model(), kernels=kernels, quantize=quantize).generate([[1, 2, 3]], SamplingParams(max_tokens=2))
    assert seen == {("int4", quantize == "w4a8"), ("int8", False)}


def test_every_function_of_a_bound_kernel_runs_and_tokens_stay_the_same(
    hub: FakeHub, make_model: MakeModel
) -> None:
    folder, prompts, params = make_model(), [[1, 2, 3], [4] * 20], SamplingParams(max_tokens=5)
    expected = [c.tokens for c in LLM(folder, quantize="int8").generate(prompts, params)]
    for qkv in ("org/all", "torch"):  # which takes the place of other slots' functions
        kernels = bind(dict.fromkeys(SLOTS, "org/all") | {"qkv": qkv}, hub)
        llm = LLM(folder, kernels=kernels, quantize="int8")
        tested, hub.calls = hub.calls, {}
        assert [c.tokens for c in llm.generate(prompts, params)] == expected
        fused = {"org/all:qk_norm_rope_cache"}
        apart = {"org/all:rotary_embedding", "org/all:reshape_and_cache_flash"}
        assert set(hub.calls) & (fused | apart) == (fused if qkv == "org/all" else apart)
        hub.calls |= tested
    assert set(hub.calls) == {f"org/all:{name}" for names in SLOTS.values() for name in names}


def _torch_but(slot: str) -> dict[str, str]:
    return {name: "torch" for name in SLOTS if name != slot}
