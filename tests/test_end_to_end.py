"""The whole chain on this machine: our matrix, our hub, our loader, our engine, and the stock clients."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from khub_process import Hub

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "engine" / "models" / "stdlib-llama"
KERNELS = ("paged-attention", "rmsnorm-rotary", "quantized-matmul")
KHUB = [sys.executable, "-m", "hub_loader"]
STABLE = "torch-stable-abi210-cpu-x86_64-linux"
EXACT = "torch213-cxx11-cpu-x86_64-linux"

# A decode step of two sequences against torch's own attention, on whatever module `kernel` is.
CHECK = """
import torch
torch.manual_seed(int(sys.argv[1]))
block_size, lengths = 16, [37, 5]
key_cache, value_cache = torch.randn(2, 8, block_size, 2, 64)
tables = torch.tensor([[6, 1, 3], [4, 0, 0]], dtype=torch.int32)
query = torch.randn(2, 8, 64)
out = kernel.attend(query, key_cache, value_cache, block_tables=tables, scale=0.125,
                    seq_lens=torch.tensor(lengths, dtype=torch.int32),
                    query_start_loc=torch.tensor([0, 1, 2], dtype=torch.int32))
for i, length in enumerate(lengths):
    rows = lambda cache: cache[tables[i].long()].flatten(0, 1)[:length].repeat_interleave(4, 1).transpose(0, 1).double()
    reference = torch.nn.functional.scaled_dot_product_attention(
        query[i][:, None].double(), rows(key_cache), rows(value_cache), scale=0.125)[:, 0]
    error = (out[i].double() - reference).abs().max() / reference.abs().max()
    assert error < 1e-5, error
print("equal", kernel.__name__)
"""
OURS = "import sys\nfrom hub_loader import get_kernel\nkernel = get_kernel('org/paged-attention')\n" + CHECK
STOCK = (
    "import sys\nfrom kernels import get_kernel\n"
    "kernel = get_kernel('org/paged-attention', version=1, trust_remote_code=True)\n" + CHECK
)


@dataclass
class World:
    """A hub with the three kernels published under `org`, and the environment of its clients."""

    url: str
    token: str
    dist: Path
    packages: dict[str, dict[str, object]]

    def environment(self, home: Path, **extra: str) -> dict[str, str]:
        own = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "KERNELS_CACHE": str(home / "cache"), **extra}
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "KERNELS_"))}
        return kept | own


@pytest.fixture(scope="module")
def world(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> World:
    dist = tmp_path_factory.mktemp("dist")
    key = tmp_path_factory.mktemp("key") / "release.key"
    run([*KHUB, "keygen", key])
    run([*KHUB, "trust", "add", "org", f"{key}.pub", "--hub", hub.url])
    world = World(hub.url, hub.token("org"), dist, {})
    for name in KERNELS:
        select = "torch{-stable-abi*,213-*}-cpu-x86_64-*"
        arguments = ["build", ROOT / "kernels_src" / name, "--select", select, "--out", dist / name]
        run([*KHUB, *arguments])
        environment = world.environment(tmp_path_factory.mktemp("publisher"), HF_TOKEN=world.token)
        arguments = ["publish", dist / name, f"org/{name}", "--sign-key", key, "--json"]
        done = run([*KHUB, *arguments], environment)
        world.packages[name] = json.loads(done.stdout)
    return world


def run(
    command: list[object], environment: dict[str, str] | None = None, code: int = 0
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([str(word) for word in command], env=environment, capture_output=True, text=True)
    assert done.returncode == code, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


def test_get_kernel_in_a_fresh_process_gives_the_reference_result_then_works_offline(
    world: World, tmp_path: Path
) -> None:
    run([sys.executable, "-c", OURS, 1], world.environment(tmp_path))
    offline = world.environment(tmp_path, HF_HUB_OFFLINE="1")
    assert "equal _paged_attention_cpu_" in run([sys.executable, "-c", OURS, 2], offline).stdout


@pytest.mark.parametrize("victim", ["*.abi3.so", "__init__.py"])
def test_get_kernel_when_one_byte_of_the_cache_is_flipped_refuses_and_names_the_file(
    world: World, tmp_path: Path, victim: str
) -> None:
    environment = world.environment(tmp_path)
    run([*KHUB, "get", "org/paged-attention"], environment)
    (path,) = (tmp_path / "cache").glob(f"kernel-hub/variants/*/{victim}")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)
    refused = run([*KHUB, "get", "org/paged-attention"], environment, code=13)
    assert refused.stderr.count("\n") == 1
    assert str(path) in refused.stderr
    assert str(path) in run([sys.executable, "-c", OURS, 1], environment, code=1).stderr
    # The cure that the message names.
    run(["rm", "-r", path.parent])
    run([sys.executable, "-c", OURS, 1], environment)


def test_explain_gives_each_variant_its_verdict(world: World, tmp_path: Path) -> None:
    done = run([*KHUB, "explain", "org/paged-attention", "--json"], world.environment(tmp_path))
    explanation = json.loads(done.stdout)
    assert explanation["chosen"] == EXACT
    assert {d["variant"]: d["accepted"] for d in explanation["decisions"]} == {EXACT: True, STABLE: True}


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["org/no-such-kernel"], 10, "org/no-such-kernel"),
        (["org/paged-attention", "--version", "9"], 11, "it has v1"),
        (["org/paged-attention", "--backend", "cuda"], 12, "no variant that fits"),
    ],
)
def test_get_of_what_is_not_there_is_one_line_with_its_own_exit_code(
    world: World, tmp_path: Path, arguments: list[str], code: int, says: str
) -> None:
    done = run([*KHUB, "get", *arguments], world.environment(tmp_path), code=code)
    assert done.stderr.count("\n") == 1
    assert says in done.stderr


def test_publish_without_a_token_says_what_to_set(world: World, tmp_path: Path) -> None:
    package = world.dist / "paged-attention"
    done = run([*KHUB, "publish", package, "org/paged-attention"], world.environment(tmp_path), code=17)
    assert "HF_TOKEN" in done.stderr


def mixed_prompts(count: int) -> list[str]:
    """Prompts of 1 to about 200 tokens: prefixes of the standard library's own text."""
    text = Path(json.__file__).read_text() + Path(subprocess.__file__).read_text()
    return [text[101 * n : 101 * n + 1 + 23 * n] for n in range(count)]


def reference_tokens(prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    tokens = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        output = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, do_sample=False
        )
        tokens.append(output[0, len(prompt) :].tolist())
    return tokens


def test_greedy_tokens_of_32_prompts_in_one_batch_equal_transformers_with_torch_and_with_hub_kernels(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engine import LLM, SamplingParams

    for key, value in world.environment(tmp_path).items():
        monkeypatch.setenv(key, value)
    hub_kernels = {
        "attention": "org/paged-attention",
        "kv_write": "org/paged-attention@1",
        "norm": "org/rmsnorm-rotary",
        "rotary": "org/rmsnorm-rotary",
        "activation": "org/rmsnorm-rotary",
    }
    new_tokens = 24
    prompts = mixed_prompts(32)
    found = {}
    for name, kernels in (("torch", "torch"), ("hub", hub_kernels)):
        llm = LLM(MODEL, kernels=kernels)
        completions = llm.generate(prompts, SamplingParams(max_tokens=new_tokens))
        found[name] = [list(completion.tokens) for completion in completions]
        if name == "hub":
            assert {b.slot for b in llm.kernels.bindings if b.variant == EXACT} == set(hub_kernels)
    expected = reference_tokens([list(completion.prompt_tokens) for completion in completions], new_tokens)
    assert found["torch"] == expected
    assert found["hub"] == expected


@pytest.mark.slow
def test_stock_kernels_client_loads_our_package_and_gets_the_reference_result(
    world: World, tmp_path: Path, stock_torch_python: Path
) -> None:
    environment = world.environment(tmp_path / "home")
    assert "equal _paged_attention_cpu_" in run([stock_torch_python, "-c", STOCK, 3], environment).stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "rmsnorm-rotary",
        *(pytest.param(name, marks=pytest.mark.heavy) for name in KERNELS if name != "rmsnorm-rotary"),
    ],
)
def test_build_of_the_cuda_variant_of_each_kernel_compiles_each_arch_without_a_gpu(
    tmp_path: Path, name: str
) -> None:
    run([*KHUB, "build", ROOT / "kernels_src" / name, "--select", "*cu130-x86_64*", "--out", tmp_path])
    index = json.loads((tmp_path / "index.json").read_text())
    assert index["variants"]["torch-stable-abi210-cu130-x86_64-linux"]["backend"] == {
        "type": "cuda",
        "archs": ["8.0", "9.0", *(["9.0a"] if name == "quantized-matmul" else []), "10.0", "12.0"],
    }
    assert "keeps its promises" in run([*KHUB, "audit", tmp_path]).stdout


@pytest.mark.slow
def test_demo_prints_the_table(tmp_path: Path) -> None:
    printed = run([sys.executable, ROOT / "ci" / "demo.py", "--state", tmp_path]).stdout
    table = printed[printed.rindex("step ") :]
    for row in (
        "hub kernels (tokens equal transformers)",
        "hub kernels, int8 (tokens equal torch ops, int8)",
    ):
        assert row in table
    assert EXACT in table


@pytest.mark.slow
@pytest.mark.heavy
def test_demo_interrupted_at_one_step_after_another_goes_on_and_reuses_what_is_built(tmp_path: Path) -> None:
    from build_matrix.toolchain.cache import default_root

    toolchains = (
        tmp_path / "toolchains"
    )  # everything but the objects, so that there is something to interrupt
    toolchains.mkdir()
    for part in default_root().iterdir():
        if part.name not in ("objects", "libraries") and not part.name.startswith("."):
            (toolchains / part.name).symlink_to(part)
    command = [
        sys.executable,
        str(ROOT / "ci" / "demo.py"),
        "--state",
        str(tmp_path / "state"),
        "--max-tokens",
        "8",
    ]
    environment = {**os.environ, "KHUB_TOOLCHAINS": str(toolchains)}
    for marker in (
        "Compile paged",
        "Compile quantized",
        "Serve",
        "Sign rmsnorm",
        "Fetch them",
        "hub kernels",
    ):
        # A group of its own: a terminal's Ctrl-C reaches the demo and the command it runs alike.
        demo = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert demo.stdout is not None
        assert any(marker in line for line in demo.stdout), marker
        time.sleep(0.7)
        os.killpg(demo.pid, signal.SIGINT)
        demo.stdout.read()
        assert demo.wait() == 130, marker
    run(command, environment)
    again = run(command, environment).stdout
    assert "hub kernels (tokens equal transformers)" in again
    assert again.count("(reused)") == len((*KERNELS, "dense-linear"))
