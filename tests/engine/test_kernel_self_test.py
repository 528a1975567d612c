"""A kernel serves after it computed here what plain torch does; what it is and why it was taken is in the table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_models import SHIPPED, MakeModel
from khub_process import Hub, khub
from signing import KEY, private_pem
from test_gguf_files import WriteModel, write_gguf  # noqa: F401  a fixture

from engine import LLM, SamplingParams, torch_ops
from engine.kernel_table import Binding
from engine.kernels import SLOTS, Kernels, bind, slot_sources
from engine.self_test import proven
from engine.shapes import Shapes
from hub_loader.errors import SelfTestError
from hub_loader.manifest import BackendInfo, FileEntry, Index, IndexedVariant, Metadata, sha256_hex
from hub_loader.trust.keys import public_line, public_of

SHAPES = Shapes(4, 2, 32, 64, 96, 1e-6, 16, torch.float32, ({}, {"window": 8, "softcap": 30.0}))
VARIANT = "torch-cpu"
NORM = """
from engine.torch_ops import fused_add_rms_norm
from engine import torch_ops

def rms_norm(out, input, weight, epsilon):
    torch_ops.rms_norm(out, input, weight, epsilon)
    out *= SCALE
"""


def swapped(slot: str, **functions: Any) -> Kernels:
    """Plain torch, but for a kernel "org/x" in one slot."""
    kernels = bind(slot_sources("torch", None))
    bindings = [Binding(slot, "org/x", variant="v") if b.slot == slot else b for b in kernels.bindings]
    return replace(kernels, **functions, bindings=tuple(bindings))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("slot", SLOTS)
def test_kernel_that_is_right_passes_and_the_table_says_how_far_off_it_is(
    slot: str, dtype: torch.dtype
) -> None:
    shapes = replace(SHAPES, dtype=dtype, quantized=frozenset({"int4", "int8"}))
    table = {b.slot: b for b in proven(swapped(slot), shapes, seed=1).bindings}
    assert table[slot].test.startswith("passed, off by ")
    assert all(not b.test for b in table.values() if b.slot != slot)


def _without_its_last_token(query: torch.Tensor, *args: Any, seq_lens: torch.Tensor, **options: Any) -> Any:
    return torch_ops.attend(query, *args, seq_lens=(seq_lens - 1).clamp_min(1), **options)


def _blind_to_trees(*args: Any, tree_mask: torch.Tensor | None = None, **options: Any) -> Any:
    return torch_ops.attend(*args, **options)


def _leaving_one_out(*args: torch.Tensor) -> None:
    torch_ops.reshape_and_cache_flash(*(a[:-1] for a in args[:2]), *args[2:4], args[4][:-1])


def _keeping_values(*args: Any) -> None:
    torch_ops.qk_norm_rope_cache(*args[:6], args[6].clone(), *args[7:])


def _without_norms(qkv: torch.Tensor, *args: Any) -> None:
    torch_ops.qk_norm_rope_cache(qkv, None, None, *args[2:])


def _not_a_number(out: torch.Tensor, *args: Any) -> None:
    out.fill_(float("nan"))


def _raising(*args: Any) -> None:
    raise RuntimeError("no kernel image is available")


def _with_swapped_halves(positions: Any, query: Any, key: Any, size: int, table: Any, neox: bool) -> None:
    torch_ops.rotary_embedding(positions, query, key, size, table, not neox)


@pytest.mark.parametrize(
    ("slot", "function", "wrong", "words"),
    [
        ("attention", "attend", _without_its_last_token, "attend is off by"),
        ("attention", "attend", _blind_to_trees, "attend is off by"),
        ("kv_write", "reshape_and_cache_flash", _leaving_one_out, "reshape_and_cache_flash is off by"),
        ("norm", "rms_norm", _not_a_number, "rms_norm is off by nan"),
        ("rotary", "rotary_embedding", _with_swapped_halves, "rotary_embedding is off by"),
        ("qkv", "qk_norm_rope_cache", _keeping_values, "qk_norm_rope_cache is off by"),
        ("qkv", "qk_norm_rope_cache", _without_norms, "qk_norm_rope_cache is off by"),
        ("activation", "silu_and_mul", _raising, "RuntimeError: no kernel image is available"),
        ("activation", "gelu_tanh_and_mul", torch_ops.silu_and_mul, "gelu_tanh_and_mul is off by"),
        ("matmul", "matmul", lambda x, packed, bias: x[:, :1], "matmul is off by inf"),
        (
            "matmul",
            "prepack",
            lambda p: replace(p, scales=p.scales * 2),
            "matmul of what prepack made is off by",
        ),
        ("matmul", "quantize", lambda w, f: torch_ops.quantize(w * 1.1, f), "quantize is off by"),
        (
            "planner",
            "plan_step",
            lambda *a, **k: replace(torch_ops.plan_step(*a, **k), tokens=torch.ones(6)),
            "tokens",
        ),
    ],
)
def test_kernel_that_is_wrong_is_refused_with_the_reason_and_falls_back_if_allowed(
    slot: str, function: str, wrong: Any, words: str
) -> None:
    kernels, shapes = swapped(slot, **{function: wrong}), replace(SHAPES, quantized=frozenset({"int8"}))
    with pytest.raises(SelfTestError, match=words) as refused:
        proven(kernels, shapes, seed=1)
    assert str(refused.value).startswith(f"slot {slot}: org/x (v) fails its self-test on this CPU")
    assert "fall_back" in str(refused.value)
    fallen = proven(kernels, shapes, fall_back=True, seed=1)
    assert getattr(fallen, function) is getattr(torch_ops, function)
    binding = next(b for b in fallen.bindings if b.slot == slot)
    assert (binding.source, binding.test, binding.reason) == ("torch", "failed", str(refused.value))


def test_matmul_kernel_that_is_wrong_with_int8_activations_is_refused() -> None:
    def wrong(x: torch.Tensor, *args: Any, int8_activations: bool = False, **options: Any) -> torch.Tensor:
        return torch_ops.matmul(x / 2 if int8_activations else x, *args, **options)

    shapes = replace(SHAPES, quantized=frozenset({"int4", "int8"}))
    with pytest.raises(SelfTestError, match="matmul with int8_activations is off by"):
        proven(swapped("matmul", matmul=wrong), shapes, seed=1)


def test_matmul_kernel_is_tested_only_where_weights_are_quantized() -> None:
    table = proven(swapped("matmul", matmul=_raising), SHAPES).bindings
    assert next(b for b in table if b.slot == "matmul").test == ""


def test_model_in_blocks_runs_in_plain_torch_where_the_kernel_that_multiplies_blocks_fails(
    write_gguf: WriteModel,  # noqa: F811
) -> None:
    path, params = write_gguf("Q4_K"), SamplingParams(max_tokens=4, ignore_stop=True)
    kernels = swapped("matmul", matmul=_raising, formats=frozenset({"int4", "int8", "gguf"}))
    llm = LLM(path, kernels=kernels, fall_back=True)
    assert [b.test for b in llm.kernel_table if b.slot == "matmul"] == ["failed"]
    assert llm.generate([[1, 2]], params)[0].tokens == LLM(path).generate([[1, 2]], params)[0].tokens


def test_engine_refuses_a_wrong_kernel_before_the_first_token_and_runs_without_it_if_allowed(
    make_model: MakeModel,
) -> None:
    kernels = swapped("norm", rms_norm=_not_a_number)
    with pytest.raises(SelfTestError, match="slot norm"):
        LLM(make_model(), kernels=kernels)
    llm = LLM(make_model(), kernels=kernels, fall_back=True)
    assert [b.test for b in llm.kernel_table if b.slot == "norm"] == ["failed"]
    params = SamplingParams(max_tokens=4)
    assert llm.generate([[1, 2]], params)[0].tokens == LLM(make_model()).generate([[1, 2]], params)[0].tokens


# -- a kernel on a hub


def publish_norm(hub: Hub, folder: Path, repo_id: str, scale: float) -> None:
    """Publish a package of Python alone, signed with the tests' key, and trust that key."""
    name = repo_id.partition("/")[2]
    kernel_id = f"_{name.replace('-', '_')}_cpu_0000001"
    data = NORM.replace("SCALE", str(scale)).encode()
    backend, entry = BackendInfo("cpu"), FileEntry(sha256_hex(data), len(data))
    metadata = Metadata(kernel_id, name, 1, "Apache-2.0", backend, {"__init__.py": entry.sha256}).to_json()
    build = folder / "build" / VARIANT
    build.mkdir(parents=True)
    (build / "__init__.py").write_bytes(data)
    (build / "metadata.json").write_bytes(metadata)
    stated = FileEntry(sha256_hex(metadata), len(metadata))
    variant = IndexedVariant(kernel_id, backend, stated, {"__init__.py": entry})
    (folder / "index.json").write_bytes(Index(name, 1, {VARIANT: variant}).to_json())
    key, public = folder / "release.key", folder / "release.pub"
    key.write_text(private_pem())
    key.chmod(0o600)
    public.write_text(public_line(public_of(KEY, "tests")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", hub.url)
        patch.setenv("HF_TOKEN", hub.token("engine"))
        for command in (
            ("trust", "add", "engine", public, "--hub", hub.url),
            ("publish", folder, repo_id, "--sign-key", key),
        ):
            done = khub(*command)
            assert done.returncode == 0, done.stderr


@pytest.fixture
def at_hub(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("KERNELS_CACHE", str(tmp_path / "cache"))
    return hub


def generate(*arguments: str) -> subprocess.CompletedProcess[str]:
    main = "import sys; from hub_loader.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", main, "engine", "generate", "--model", str(SHIPPED), "--prompt", "x = "]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, "--max-tokens", "3", *arguments], env=environment, capture_output=True, text=True
    )


@pytest.mark.slow
def test_table_of_a_kernel_from_a_hub_has_its_version_variant_signer_and_why(
    at_hub: Hub, tmp_path: Path
) -> None:
    publish_norm(at_hub, tmp_path / "right", "engine/right-norm", 1.0)
    done = generate("--kernels", "norm=engine/right-norm@1", "--json")
    assert done.returncode == 0, done.stderr
    norm = next(slot for slot in json.loads(done.stdout)["slots"] if slot["slot"] == "norm")
    assert norm["test"].startswith("passed")
    assert norm | {"test": ""} == {
        "slot": "norm",
        "source": "engine/right-norm@1",
        "version": "v1",
        "variant": VARIANT,
        "signature": f"key {sha256_hex(public_of(KEY, '').raw)[:16]}",
        "reason": "needs no compiled code; the best fit",
        "test": "",
    }
    assert "key " in done.stderr


@pytest.mark.slow
def test_kernel_from_a_hub_that_is_wrong_ends_the_command_unless_it_may_fall_back(
    at_hub: Hub, tmp_path: Path
) -> None:
    publish_norm(at_hub, tmp_path / "wrong", "engine/wrong-norm", 1.01)
    refused = generate("--kernels", "norm=engine/wrong-norm")
    assert (refused.returncode, refused.stdout) == (SelfTestError.exit_code, "")
    assert "slot norm: engine/wrong-norm (torch-cpu) fails its self-test" in refused.stderr
    fallen = generate("--kernels", "norm=engine/wrong-norm", "--fall-back")
    assert fallen.returncode == 0, fallen.stderr
    assert "failed" in fallen.stderr
