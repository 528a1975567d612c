"""Agreement with the resolver of stock `kernels` 0.17.2, but for the additions that docs/resolver.md lists."""

from __future__ import annotations

import json
import random
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from hub_loader import Environment, Torch
from hub_loader.manifest import BackendInfo
from hub_loader.resolver import Decision, resolve
from hub_loader.variant import parse_variant

pytestmark = pytest.mark.slow

PEER = Path(__file__).with_name("peer_resolver.py")
PAGE = Path(__file__).parents[2] / "docs" / "resolver.md"
CASES = 10_000
# What we refuse and the peer takes: the rule's name in docs/resolver.md, by how our reason begins.
REFUSED = {
    "needs glibc": "glibc",
    "is compiled for compute capability": "GPU",
    "lists the malformed compute capability": "GPU",
    "needs a driver for CUDA": "driver",
    "needs torch, which is not installed": "torch for noarch",
}


@pytest.fixture(scope="module")
def peer(stock_python: Path) -> Path:
    """The stock client's interpreter: its resolver needs no torch."""
    return stock_python


def random_environment(rng: random.Random) -> Environment:
    version = (2, rng.choice([9, 10, 11]))
    toolkits: list[dict[str, Any]] = [
        {},
        {"cuda": (12, rng.choice([6, 8, 10]))},
        {"cuda": (13, rng.choice([0, 2]))},
        {"rocm": (6, rng.choice([3, 10]))},
        {"xpu": (2025, 2)},
    ]
    toolkit = {"cuda": None, **rng.choice(toolkits)}
    system, arch = rng.choice([("linux", "x86_64")] * 4 + [("linux", "aarch64"), ("darwin", "aarch64")])
    if system == "darwin":
        toolkit = {"cuda": None}
    abi = None if system == "darwin" else rng.random() < 0.9
    torch = Torch(version, f"{version[0]}.{version[1]}.0", cxx11_abi=abi, **toolkit)
    gpu = torch.cuda is not None and rng.random() < 0.5
    return Environment(
        python=rng.choice(["cp311", "cp311", "cp312", "cp313t"]),
        arch=arch,
        os=system,
        glibc=rng.choice([(2, 36), (2, 36), (2, 28), (2, 17), None]) if system == "linux" else None,
        torch=torch if rng.random() < 0.9 else None,
        tvm_ffi=rng.choice([None, (0, 1), (0, 2)]),
        compute_capabilities=rng.choice([((9, 0),), ((8, 6),), ((8, 0), (12, 0))]) if gpu else (),
        macos=rng.choice([(15, 6), (26, 0)]) if system == "darwin" else None,
        driver_cuda=rng.choice([(12, 8), (13, 0)]) if gpu else None,
    )


def random_name(rng: random.Random) -> str:
    if rng.random() < 0.2:
        return f"torch-{rng.choice(['cpu', 'cuda', 'rocm', 'xpu', 'metal', 'universal'])}"
    minor, abi = rng.choice([9, 10, 11]), rng.choice(["", "-cxx11", "-cxx11", "-cxx98"])
    framework = rng.choice(
        [
            f"torch2{minor}{abi}",
            f"torch2{minor}{abi}",
            f"torch-stable-abi2{minor}",
            f"tvm-ffi0{rng.choice('12')}",
        ]
    )
    backends = ["cpu", "cpu", "cu126", "cu128", "cu1210", "cu130", "cu132", "rocm63", "rocm610", "xpu20252"]
    python = rng.choice(["", "", "", "", "cp311-", "cp313t-"])
    backend, platform = rng.choice(backends), rng.choice(["x86_64-linux"] * 4 + ["aarch64-linux"])
    if rng.random() < 0.1:
        backend, platform = rng.choice(["metal", "cpu"]), "aarch64-darwin"
    return f"{python}{framework}-{backend}-{platform}"


def question(environment: Environment, backend: str, names: list[str]) -> str:
    torch = environment.torch
    toolkit = (
        None if torch is None else {"cuda": torch.cuda, "rocm": torch.rocm, "xpu": torch.xpu}.get(backend)
    )
    return json.dumps(
        {
            "variants": names,
            "backend": [backend, toolkit],
            "arch": environment.arch,
            "os": environment.os,
            "torch": None if torch is None else torch.version,
            "cxx11_abi": None if torch is None else torch.cxx11_abi,
            "tvm_ffi": environment.tvm_ffi,
            "macos": environment.macos,
            "free_threaded": environment.python.endswith("t"),
        }
    )


def differences(ours: tuple[Decision, ...], theirs: list[str]) -> set[str]:
    """The additions by which two answers differ; an AssertionError for a difference that is none of them."""
    found = set()
    accepted = [decision.variant for decision in ours if decision.accepted]
    reasons = {decision.variant: decision.reason for decision in ours}
    for name in set(theirs) - set(accepted):
        rules = [rule for beginning, rule in REFUSED.items() if reasons[name].startswith(beginning)]
        assert rules, f"{name}: we refuse because it {reasons[name]}, the peer does not"
        found |= set(rules)
    for name in set(accepted) - set(theirs):
        variant = parse_variant(name)
        version = variant.backend.version
        assert variant.python is not None or (version is not None and version[1] >= 10), f"we take {name}"
        found.add("interpreter tag" if variant.python is not None else "two-digit minor")
    common = [name for name in accepted if name in theirs]
    by_peer = [name for name in theirs if name in accepted]
    exact_first = sorted(by_peer, key=lambda name: parse_variant(name).framework.name != "torch")
    assert common == exact_first
    if exact_first != by_peer:
        found.add("exact before stable")
    return found


def test_the_resolver_agrees_with_the_peers_on_10000_random_cases_but_for_the_additions(peer: Path) -> None:
    rng = random.Random(20260)
    cases, questions = [], []
    for _ in range(CASES):
        environment = random_environment(rng)
        backend = rng.choice([environment.backend] * 3 + ["cpu"])
        archs = [("9.0",), ("8.0", "12.0"), ("8.0+PTX",), ("sm_90",), ()]
        names = {random_name(rng) for _ in range(rng.randint(1, 30))}
        infos = {name: BackendInfo("any", rng.choice(archs)) for name in sorted(names)}
        ours = resolve(environment, infos, backend)
        cases.append((ours, environment))
        # The peer leaves ties to the order that it is given: in our order, a tie is no difference.
        questions.append(question(environment, backend, [decision.variant for decision in ours]))
    done = subprocess.run(
        [peer, PEER], input="\n".join(questions), capture_output=True, text=True, check=True, timeout=600
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == CASES
    seen: Counter[str] = Counter()
    for (ours, environment), theirs in zip(cases, answers, strict=True):
        try:
            found = differences(ours, theirs)
        except AssertionError as error:
            raise AssertionError(f"{environment}: ours {ours}, the peer's {theirs}: {error}") from error
        seen.update(found)
        if not found and theirs:
            assert ours[0].variant == theirs[0]
            seen["the same choice"] += 1
    # The comparison is worth something: answers that agree, and each addition at work.
    assert seen["the same choice"] > CASES / 10
    additions = set(REFUSED.values()) | {"interpreter tag", "two-digit minor", "exact before stable"}
    assert set(seen) == additions | {"the same choice"}
    documented = PAGE.read_text()
    assert all(f"\n| {addition} |" in documented for addition in additions)
