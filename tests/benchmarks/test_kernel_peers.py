"""The peers of the kernels' benchmark: which are asked, and how they are checked."""

from __future__ import annotations

import sys
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from itertools import pairwise
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from kernel_cases import (
    case_of,
    cases,
    dequantize,
    measured,
    ones,
    part,
    quantize,
)
from torch.nn import functional


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_case_measures_a_peer_with_the_same_result_even_where_calls_write_their_inputs(
    dtype: torch.dtype,
) -> None:
    for case in cases(dtype):
        row = part("case").measure(replace(case, others={"again": case.peer}), 2, "cpu", {})
        assert not row.failed, row
        assert row.other_ratios["again"] > 0


def test_prefill_is_held_against_the_products_of_the_keys_that_each_token_sees() -> None:
    case = case_of(
        "attend (prefill)"
    )  # of 48 tokens, 4 heads of 32: a logit and its value's part are 2 · 32 each
    assert case.against == "fma"
    assert case.work == pytest.approx(4 * sum(4 * 32 * (token + 1) for token in range(48)), rel=0.03)


def test_peer_with_a_wrong_result_is_failed_without_a_ratio_and_the_kernel_is_still_measured() -> None:
    def raises() -> torch.Tensor:
        raise RuntimeError("no such instruction\nand more")

    others = {"wrong": lambda: torch.zeros(3), "short": lambda: torch.ones(2), "raises": raises}
    others |= {"right": lambda: torch.ones(4, 3), "rough": lambda: torch.full((3,), 1.01)}
    case = ones(others=others, tolerances={"rough": 0.02})
    row = part("case").measure(case, 3, "cpu", {})
    assert row.other_ratios.keys() == {"right", "rough"}
    assert row.failed["wrong"] == "relative error 1.0e+00"
    assert row.failed["short"].startswith("ValueError: a result of shape (2,)")
    assert row.failed["raises"] == "RuntimeError: no such instruction"
    assert row.kernel_us[0] > 0
    assert "wrong left out: relative error 1.0e+00" in part("case").line(row)


def test_peer_that_fails_in_its_turn_is_failed_and_the_others_go_on() -> None:
    calls = []

    def fails_later() -> torch.Tensor:
        calls.append(1)
        if len(calls) > 2:
            raise RuntimeError("gone")
        return torch.ones(3)

    row = part("case").measure(ones(others={"later": fails_later, "b": lambda: torch.ones(3)}), 5, "cpu", {})
    assert row.failed == {"later": "RuntimeError: gone"}
    assert row.other_ratios.keys() == {"b"}


def test_peer_that_took_long_enough_has_fewer_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    case = part("case")
    monkeypatch.setattr(case, "_ENOUGH", 0.0)
    turns = {"kernel": 0, "slow": 0}

    def counted(name: str) -> Any:
        def call() -> torch.Tensor:
            turns[name] += 1
            return torch.ones(3)

        return call

    big = replace(ones(others={"slow": counted("slow")}), kernel=counted("kernel"), work=1 << 30)
    assert "slow" in case.measure(big, 9, "cpu", {}).other_ratios
    assert turns == {"kernel": 1 + 9, "slow": 1 + 3}


def test_peers_make_calls_for_the_cases_they_know_and_failures_are_kept() -> None:
    peers = part("peers")

    def breaks(inputs: Any) -> Any:
        raise ImportError("libfancy.so")

    row = measured(
        ones(inputs={"n": 3}),
        peers.Peer("knows", {"ones": lambda inputs: lambda: torch.ones(inputs["n"])}),
        peers.Peer("has none", {"ones": lambda inputs: None}),
        peers.Peer("other case", {"twos": breaks}),
        peers.Peer("breaks", {"ones": breaks}),
    )
    assert row.other_ratios.keys() == {"knows"}
    assert row.failed == {"breaks": "ImportError: libfancy.so"}


def test_peers_of_a_gpu_that_are_absent_and_present_are_each_said() -> None:
    def release(name: str) -> str:
        if name == "torchao":
            return "1.0"
        raise PackageNotFoundError(name)

    peers, said = part("peers").found("cuda", release)
    assert [peer.name for peer in peers][-1] == "torchao"
    assert said["torchao"] == "1.0, compared: matmul int4"
    assert said["liger"] == "not here (pip install liger-kernel): rms_norm, silu_and_mul"
    assert said["torch eager"] == "compared"
    names = {name for peer in part("peers").INSTALLED.values() for name in peer.makes}
    assert names <= {case.name for case in cases(torch.float32)}


@pytest.mark.parametrize("name", ["attend (prefill)", "attend (decode)"])
def test_torchs_flash_and_flex_attention_give_the_result_of_the_case(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    peers = part("peers")
    chosen = [peer for peer in peers.TORCH["cuda"] if name in peer.makes]
    row = measured(case_of(name), *chosen)
    assert row.other_ratios.keys() == {peer.name for peer in chosen}, row.failed


def test_torchs_int4_product_is_that_of_the_case() -> None:
    for name in ("matmul int4", "matmul int4, x in 8 bits"):
        row = measured(case_of(name, torch.bfloat16), *part("peers").TORCH["cpu"])
        assert row.other_ratios.keys() == {"torch int4pack"}, row.failed


def test_torchs_product_of_bytes_is_that_of_the_case() -> None:
    row = measured(case_of("matmul fp8, x in 8 bits", torch.bfloat16), *part("peers").TORCH["cuda"])
    assert row.other_ratios.keys() == {"torch._scaled_mm"}, row.failed


def test_flashinfer_gets_the_pages_of_each_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrapper:
        def __init__(self, workspace: torch.Tensor, layout: str, **options: Any) -> None:
            assert layout == "NHD"

        def plan(self, *given: Any, causal: bool = False, **types: Any) -> None:
            self.rows = given[0].tolist() if causal else None
            offsets, pages, last = (tensor.tolist() for tensor in given[-7:-4])
            self.pages = [pages[a:b] for a, b in pairwise(offsets)]
            self.lengths = [(len(p) - 1) * given[-1] + end for p, end in zip(self.pages, last, strict=True)]
            assert given[-4:] == (4, 2, 32, 16)

        def run(self, query: torch.Tensor, caches: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
            rows = query.chunk(len(self.pages))
            out = []
            for mine, pages, length in zip(rows, self.pages, self.lengths, strict=True):
                k, v = (c[pages].flatten(0, 1)[:length].transpose(0, 1) for c in caches)
                q, causal = mine.transpose(0, 1), self.rows is not None
                one = functional.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)
                out.append(one.transpose(0, 1))
            return torch.cat(out)

    fake = SimpleNamespace(
        BatchDecodeWithPagedKVCacheWrapper=Wrapper, BatchPrefillWithPagedKVCacheWrapper=Wrapper
    )
    monkeypatch.setitem(sys.modules, "flashinfer", fake)  # type: ignore[arg-type]
    monkeypatch.setattr(part("gpu"), "_WORKSPACE", 16)
    for name in ("attend (decode)", "attend (prefill)"):
        row = measured(case_of(name), part("peers").INSTALLED["flashinfer-python"])
        assert row.other_ratios.keys() == {"flashinfer"}, row.failed


def test_liger_and_gemlite_get_what_their_functions_take(monkeypatch: pytest.MonkeyPatch) -> None:
    def add(name: str, **members: Any) -> None:
        module = ModuleType(name)
        module.__dict__.update(members)
        monkeypatch.setitem(sys.modules, name, module)

    def norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        return functional.rms_norm(x, weight.shape, weight, eps)

    class Linear:
        def __init__(self, **about: Any) -> None:
            self.group = about["group_size"]

        def pack(self, values: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, bias: None) -> None:
            self.weight = (values - zeros.repeat_interleave(self.group, 1)) * scales.repeat_interleave(
                self.group, 1
            )

        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            return functional.linear(x, self.weight)

    add("liger_kernel")
    add("liger_kernel.ops")
    add("liger_kernel.ops.rms_norm", LigerRMSNormFunction=SimpleNamespace(apply=norm))
    gate = SimpleNamespace(apply=lambda a, b: functional.silu(a) * b)
    add("liger_kernel.ops.swiglu", LigerSiLUMulFunction=gate)
    add("gemlite", GemLiteLinear=Linear, DType=SimpleNamespace(FP16=0, BF16=1))
    peers = part("peers").INSTALLED
    for name in ("rms_norm", "silu_and_mul"):
        assert measured(case_of(name), peers["liger-kernel"]).other_ratios.keys() == {"liger"}
    row = measured(case_of("matmul int4", torch.bfloat16), peers["gemlite"])
    assert row.other_ratios.keys() == {"gemlite"}, row.failed


def test_weights_for_gptq_are_laid_out_as_it_reads_them() -> None:
    def gemm_int4_forward(
        x: torch.Tensor, weight: torch.Tensor, zeros: torch.Tensor, scales: torch.Tensor, group: int
    ) -> torch.Tensor:
        """32 rows lie together: for two channels of theirs 32 bytes, whose low bits come first."""
        bytes_of = weight.view(weight.shape[0] // 32, weight.shape[1], 32)
        both = torch.cat([bytes_of & 15, bytes_of >> 4], dim=-1).view(len(bytes_of), -1, 32, 2)
        values = both.transpose(1, 2).reshape(weight.shape[0], -1).float()
        wide = (t.t().float().repeat_interleave(group, dim=1) for t in (zeros, scales))
        return functional.linear(x, ((values - next(wide)) * next(wide)).to(x.dtype))

    community = part("community")
    kernel = SimpleNamespace(gemm_int4_forward=gemm_int4_forward)
    make = community._bound(community._ROWS["quantization-gptq"]["matmul int4"], kernel)
    row = measured(case_of("matmul int4", torch.bfloat16), part("peers").Peer("gptq", {"matmul int4": make}))
    assert row.other_ratios.keys() == {"gptq"}, row.failed
    assert make(case_of("matmul int4").inputs) is None


@pytest.mark.parametrize("batch", [3, 200])
def test_paged_attention_of_the_community_gets_the_classic_layout(batch: int) -> None:
    called = []

    def attend(
        out: torch.Tensor, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, *rest: Any
    ) -> None:
        kv_heads, scale, tables, lengths, block = rest[:5]
        assert keys.shape[1:] == (kv_heads, 8, block, 4) and values.shape[1:] == (kv_heads, 32, block)
        for row, length in enumerate(lengths.tolist()):
            pages = tables[row].long()
            k = keys[pages].permute(1, 0, 3, 2, 4).reshape(kv_heads, -1, 32)[:, :length]
            v = values[pages].permute(1, 0, 3, 2).reshape(kv_heads, -1, 32)[:, :length]
            one = functional.scaled_dot_product_attention(
                query[row, :, None], k, v, scale=scale, enable_gqa=True
            )
            out[row] = one[:, 0]

    def first(*given: Any) -> None:
        called.append("v1")
        attend(*given)

    def second(
        out: torch.Tensor, sums: torch.Tensor, most: torch.Tensor, part: torch.Tensor, *given: Any
    ) -> None:
        called.append("v2")
        assert part.shape[:3] == sums.shape == most.shape == (3, 4, 2)
        attend(out, *given)

    community, tiny = part("community"), part("models").Model(64, 4, 2, 32, 128)
    case = part("attention").attention(None, tiny, batch, 1024 if batch == 3 else 32, torch.float32)
    kernel = SimpleNamespace(paged_attention_v1=first, paged_attention_v2=second)
    make = community._bound(community._ROWS["paged-attention"]["attend (decode)"], kernel)
    row = measured(replace(case, kernel=case.peer), part("peers").Peer("c", {"attend (decode)": make}))
    assert row.other_ratios.keys() == {"c"}, row.failed
    assert set(called) == {"v2" if batch == 3 else "v1"}


def test_package_without_a_build_for_the_device_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "rotary"
    (folder / "torch-ext" / "rotary").mkdir(parents=True)
    (folder / "torch-ext" / "rotary" / "__init__.py").touch()
    (folder / "torch-ext" / "binding.cpp").touch()
    (folder / "k.cu").touch()
    (folder / "build.toml").write_text(
        '[general]\nname = "rotary"\nversion = 1\nlicense = "MIT"\nbackends = ["cuda"]\n'
        '[torch]\nsrc = ["torch-ext/binding.cpp"]\n'
        '[kernel.k]\nbackend = "cuda"\ndepends = ["torch"]\nsrc = ["k.cu"]\n'
    )
    peer, said = part("community").community(tmp_path, "cpu", tmp_path / "out")
    assert peer.makes == {}
    assert said["kernels-community/rotary"].startswith(f"no cpu build for torch {torch.__version__}")
    assert said["kernels-community/rmsnorm"].startswith("could not be built: ")


def test_q4_0_blocks_stand_for_the_values_of_the_weight() -> None:
    packed = quantize(torch.empty(3, 256), "int4")
    blocks = part("elsewhere").q4_0(packed)
    assert blocks.shape == (3, 8, 18)
    scales = blocks[..., :2].contiguous().view(torch.float16).float()
    values = torch.cat([blocks[..., 2:] & 15, blocks[..., 2:] >> 4], dim=-1).float() - 8
    torch.testing.assert_close((values * scales).flatten(1), dequantize(packed), rtol=1e-3, atol=0)
