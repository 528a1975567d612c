"""`get_kernel(choose="fastest")` on compiled packages from a real registry. Who wins is never a matter of real speed:
the losers sleep, or the winner does nothing."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from khub_process import ROOT, Hub, StartHub, khub_command, khub_environment
from signing import sign_package, trust_key

from hub_loader import (
    IntegrityError,
    NoMatchingVariantError,
    OfflineError,
    UsageError,
    Workload,
    get_choices,
    get_kernel,
)
from hub_loader.config import load_config
from hub_loader.manifest import parse_index
from hub_loader.store import Store

TINY = ROOT / "tests" / "build_matrix" / "tiny-relu"
RELEASE = "".join(torch.__version__.split(".")[:2])
STABLE, EXACT = "torch-stable-abi210-cpu-x86_64-linux", f"torch{RELEASE}-cxx11-cpu-x86_64-linux"
PYTHON = "torch-cpu"
WORKLOAD = Workload("relu", (torch.linspace(-1, 1, 64),))
_BUILD = """
[general]
name = "tiny-relu"
version = 1
edition = 5
license = "Apache-2.0"
backends = ["cpu"]

[torch-noarch]
"""


def khub(*arguments: object, **environment: str) -> str:
    done = subprocess.run(
        khub_command(*map(str, arguments)),
        env=khub_environment() | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(folder: Path, python: str) -> Path:
    """Two compiled variants, and one in Python from a source of its own, in one package."""
    khub("build", TINY, "--select", f"{{{STABLE},{EXACT}}}", "--out", folder / "package")
    inside = folder / "source" / "torch-ext" / "tiny_relu"
    inside.mkdir(parents=True)
    (folder / "source" / "build.toml").write_text(_BUILD)
    (inside / "__init__.py").write_text(python)
    khub("build", folder / "source", "--out", folder / "package")
    return folder / "package"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sleepy = "import time, torch\n\ndef relu(input):\n    time.sleep(0.05)\n    return torch.relu(input)\n"
    return build(tmp_path_factory.mktemp("three"), sleepy)


@pytest.fixture(scope="module")
def hub(start_hub: StartHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A registry for this file."""
    started = start_hub(tmp_path_factory.mktemp("hub") / "data")
    yield started
    started.stop()


@pytest.fixture(scope="module")
def published(package: Path, hub: Hub) -> str:
    publish(package, "fast/relu", hub)
    return "fast/relu"


def publish(package: Path, repo_id: str, hub: Hub) -> None:
    sign_package(package, repo_id)
    trust_key(hub.url, "fast")
    khub("publish", package, repo_id, HF_ENDPOINT=hub.url, HF_TOKEN=hub.token("fast"), HF_HUB_OFFLINE="0")


@pytest.fixture(autouse=True)
def environment(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The registry, a cache of the test's own, and a process that remembers nothing."""
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "LOCAL_KERNELS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("hub_loader.entry._modules", {})
    monkeypatch.setattr("hub_loader.pinned._versions", {})
    monkeypatch.setattr("hub_loader.fallback._choices", {})
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("KERNELS_CACHE", str(tmp_path / "cache"))


def _slow(input: torch.Tensor) -> torch.Tensor:
    time.sleep(0.05)
    return torch.relu(input)


SLOW, INSTANT = SimpleNamespace(relu=_slow), SimpleNamespace(relu=lambda input: input)


def test_fastest_times_variants_and_references_once_and_says_what_it_took(
    published: str, package: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "hub_loader"):
        for _ in range(2):
            kernel = get_kernel(
                published, version=1, choose="fastest", workload=WORKLOAD, references={"mine": SLOW}
            )
    assert torch.equal(kernel.relu(torch.tensor([-1.0, 2.0])), torch.tensor([0.0, 2.0]))
    ((_, choice),) = get_choices()
    verdict = choice.verdict
    assert verdict is not None
    assert choice.variant == verdict.chosen
    assert choice.variant in (STABLE, EXACT)
    assert choice.step == {STABLE: "stable-abi", EXACT: "exact"}[choice.variant]
    assert set(verdict.seconds) == {STABLE, EXACT, PYTHON, "mine"}
    assert min(verdict.seconds[PYTHON], verdict.seconds["mine"]) > verdict.seconds[choice.variant]
    said = [record.message for record in caplog.records if "fastest" in record.message]
    assert len(said) == 1
    assert (
        f"{choice.variant} ({choice.step}): fastest on {verdict.key['device']}: {choice.variant} " in said[0]
    )
    index = parse_index((package / "index.json").read_bytes(), origin="index.json")
    digests = {name: f"relu of {variant.metadata.sha256}" for name, variant in index.variants.items()}
    assert verdict.key["kernels"] == {**digests, "mine": "relu of mine"}
    assert verdict.key["torch"] == torch.__version__


_PROCESS = """
import json, torch
from hub_loader import Workload, get_choices, get_kernel, get_loaded_kernels
size = {size}
workload = Workload("relu", (torch.linspace(-1, 1, size),))
get_kernel("{repo}", version=1, choose="fastest", workload=workload)
((_, choice),) = get_choices()
print(json.dumps([choice.verdict.remembered, choice.variant, [k.variant for k in get_loaded_kernels()]]))
"""


def process(repo: str, size: int = 64, **environment: str) -> tuple[bool, str, list[str]]:
    code = _PROCESS.format(repo=repo, size=size)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=khub_environment() | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    remembered, variant, loaded = json.loads(done.stdout)
    return remembered, variant, loaded


@pytest.mark.slow
def test_fastest_in_another_process_takes_the_verdict_and_fetches_and_loads_nothing_else(
    published: str, tmp_path: Path
) -> None:
    remembered, variant, loaded = process(published)
    assert (remembered, sorted(loaded)) == (False, sorted([STABLE, EXACT, PYTHON]))
    assert process(published, HF_HUB_OFFLINE="1") == (True, variant, [variant])
    assert process(published, size=65)[0] is False  # another shape is another question

    elsewhere = tmp_path / "elsewhere"
    verdicts = load_config().cache / "autotune"
    shutil.copytree(verdicts, elsewhere / verdicts.relative_to(tmp_path / "cache"))
    assert process(published, KERNELS_CACHE=str(elsewhere)) == (True, variant, [variant])
    assert len(Store(elsewhere / "kernel-hub").variants()) == 1


def test_fastest_when_the_callers_own_code_wins_returns_it_and_says_so(
    published: str, caplog: pytest.LogCaptureFixture
) -> None:
    big = Workload("relu", (torch.ones(4_000_000),))
    with caplog.at_level(logging.INFO, "hub_loader"):
        kernel = get_kernel(
            published, version=1, choose="fastest", workload=big, references={"nothing": INSTANT}
        )
    assert kernel is INSTANT
    ((_, choice),) = get_choices()
    assert (choice.step, choice.variant) == ("reference", None)
    assert choice.verdict is not None
    assert choice.verdict.chosen == "nothing"
    assert "reference: fastest on" in caplog.text


def test_fastest_passes_over_what_cannot_run_here_and_says_why_each_time(
    hub: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    package = build(tmp_path, "import a_compiler_that_is_not_here\n\ndef relu(input):\n    return input\n")
    publish(package, "fast/partly", hub)
    (tmp_path / "one").mkdir()
    for repeated in (False, True):  # what is missing may be installed between the two
        get_choices_before = len(get_choices())
        kernel = get_kernel(
            "fast/partly",
            version=1,
            choose="fastest",
            workload=WORKLOAD,
            references={"mine": SLOW, "other": SimpleNamespace(forward=_slow)},
            user_agent=str(repeated),
        )
        assert kernel.relu(torch.tensor([-1.0])) == 0
        assert get_choices_before == (1 if repeated else 0)
        verdict = get_choices()[-1][1].verdict
        assert verdict is not None
        assert "No module named 'a_compiler_that_is_not_here'" in verdict.failed[PYTHON]
        assert "has no attribute 'relu'" in verdict.failed["other"]
    with pytest.raises(NoMatchingVariantError, match=f"no implementation has 'gelu' here: {EXACT}: "):
        get_kernel("fast/partly", version=1, choose="fastest", workload=Workload("gelu"))


def test_fastest_when_a_loser_is_corrupt_refuses_instead_of_passing_over(
    published: str, package: Path
) -> None:
    get_kernel(published, version=1, choose="fastest", workload=WORKLOAD)
    index = parse_index((package / "index.json").read_bytes(), origin="index.json")
    cache = load_config().cache
    damaged = Store(cache).variant(index.variants[PYTHON].metadata.sha256) / "__init__.py"
    damaged.chmod(0o644)
    damaged.write_text("raise SystemExit('ran')\n")
    shutil.rmtree(cache / "autotune")
    with pytest.raises(IntegrityError, match="__init__.py"):
        get_kernel(published, version=1, choose="fastest", workload=Workload("relu", (torch.ones(3),)))


def test_fastest_offline_without_a_verdict_needs_every_variant(
    published: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    get_kernel(published, version=1)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(OfflineError, match="not in the cache"):
        get_kernel(published, version=1, choose="fastest", workload=WORKLOAD)


def test_fastest_when_local_kernels_names_a_folder_loads_that(
    published: str, package: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.copytree(package / "build" / PYTHON, tmp_path / "own" / "build" / PYTHON)
    monkeypatch.setenv("LOCAL_KERNELS", f"{published}={tmp_path / 'own'}")
    kernel = get_kernel(
        published, version=1, choose="fastest", workload=WORKLOAD, references={"nothing": INSTANT}
    )
    assert kernel is not INSTANT
    assert get_choices() == []  # nothing was asked of the hub


@pytest.mark.parametrize(
    ("arguments", "cure"),
    [
        ({"choose": "quickest"}, 'write choose="fastest"'),
        ({"workload": WORKLOAD}, 'write choose="fastest"'),
        ({"references": {"mine": SLOW}}, 'write choose="fastest"'),
        ({"choose": "fastest"}, "pass workload=Workload"),
        ({"choose": "fastest", "workload": WORKLOAD, "references": {PYTHON: SLOW}}, "give it another name"),
    ],
)
def test_fastest_when_the_arguments_contradict_each_other_says_what_to_write(
    published: str, arguments: dict[str, object], cure: str
) -> None:
    with pytest.raises(UsageError, match=cure):
        get_kernel(published, version=1, **arguments)  # type: ignore[arg-type]
