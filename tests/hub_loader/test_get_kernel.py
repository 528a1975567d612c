"""get_kernel against a real server: what it asks, what it keeps, what it refuses."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from packages import native_package, native_variant, python_package
from static_hub import StaticHub

import hub_loader
from hub_loader import get_kernel

LOAD = "import sys, hub_loader; print(hub_loader.get_kernel({!r}).{}())"


def in_new_process(code: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_get_kernel_when_cold_then_asks_refs_index_and_each_file_once(hub: StaticHub, tmp_path: Path) -> None:
    package = native_package(tmp_path / "source")
    commit = hub.publish("org/demo", "v1", package.folder)
    kernel = get_kernel("org/demo")
    assert kernel.__name__ == package.id
    assert kernel.answer() == 42
    base = f"/kernels/org/demo/resolve/{commit}"
    files = [
        f"{base}/build/{native_variant()}/{p}" for p in ("metadata.json", *package_files(package.variants))
    ]
    assert sorted(hub.requests) == sorted(
        ["/api/kernels/org/demo/refs", f"{base}/index.json", f"{base}/index.json.dsse", *files]
    )


def package_files(variants: object) -> list[str]:
    (folder,) = variants.values()  # type: ignore[attr-defined]
    paths = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return [path for path in paths if path != "metadata.json"]


def test_get_kernel_when_loaded_then_sends_no_request(hub: StaticHub, tmp_path: Path) -> None:
    hub.publish("org/demo", "v1", python_package(tmp_path / "source").folder)
    first = get_kernel("org/demo", version=1)
    sent = len(hub.requests)
    assert get_kernel("org/demo", version=1) is first
    assert len(hub.requests) == sent


def test_get_kernel_when_a_commit_is_given_then_refs_are_not_asked(hub: StaticHub, tmp_path: Path) -> None:
    commit = hub.publish("org/demo", "v1", python_package(tmp_path / "source").folder)
    get_kernel("org/demo", revision=commit)
    assert not any(path.endswith("/refs") for path in hub.requests)


def test_get_kernel_when_cached_by_another_process_then_no_request_until_the_ref_is_old(
    hub: StaticHub, tmp_path: Path
) -> None:
    hub.publish("org/demo", "v1", native_package(tmp_path / "source").folder)
    assert in_new_process(LOAD.format("org/demo", "answer")).stdout == "42\n"
    hub.clear()
    assert in_new_process(LOAD.format("org/demo", "answer")).stdout == "42\n"
    assert hub.requests == []
    done = in_new_process(LOAD.format("org/demo", "answer"), KHUB_REFRESH="0")
    assert (done.stdout, hub.requests) == ("42\n", ["/api/kernels/org/demo/refs"])
    hub.clear()
    by_version = "import hub_loader; print(hub_loader.get_kernel('org/demo', version=1).answer())"
    done = in_new_process(by_version, KHUB_REFRESH="0")
    asked = [f"/kernels/org/demo/resolve/v1/index.json{end}" for end in ("", ".dsse")]
    assert (done.stdout, sorted(hub.requests)) == ("42\n", asked)


def test_get_kernel_when_offline_after_a_fetch_then_loads_without_a_request(
    hub: StaticHub, tmp_path: Path
) -> None:
    hub.publish("org/demo", "v1", native_package(tmp_path / "source").folder)
    hub_loader.fetch_kernel("org/demo", version=1)
    hub.requests.clear()
    done = in_new_process(LOAD.format("org/demo", "answer"), HF_HUB_OFFLINE="1")
    assert (done.stdout, done.stderr, hub.requests) == ("42\n", "", [])


def test_get_kernel_when_offline_and_not_cached_then_says_what_to_do(
    hub: StaticHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(hub_loader.OfflineError, match="khub get org/demo --version 1"):
        get_kernel("org/demo", version=1)
    assert hub.requests == []


def test_get_kernel_when_the_hub_is_gone_then_uses_the_cache_and_warns(
    hub: StaticHub, tmp_path: Path
) -> None:
    hub.publish("org/demo", "v1", python_package(tmp_path / "source", value=7).folder)
    hub_loader.fetch_kernel("org/demo")
    hub.stop()
    done = in_new_process(LOAD.format("org/demo", "value"), KHUB_REFRESH="0")
    assert done.stdout == "7\n"
    assert "using what it said last" in done.stderr
    assert hub.endpoint in done.stderr


def test_get_kernel_when_no_version_is_given_then_the_newest_stays_chosen(
    hub: StaticHub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "hub_loader")
    for version in (2, 10):
        package = python_package(tmp_path / f"source{version}", value=version, version=version)
        hub.publish("org/demo", f"v{version}", package.folder)
    assert get_kernel("org/demo").value() == 10
    hub.publish("org/demo", "v11", python_package(tmp_path / "source11", value=11, version=11).folder)
    assert get_kernel("org/demo").value() == 10
    assert [record.message for record in caplog.records].count(caplog.messages[0]) == 1
    assert "v10 is the newest version" in caplog.messages[0]


def test_get_kernel_when_two_processes_fetch_at_once_then_both_load(hub: StaticHub, tmp_path: Path) -> None:
    hub.publish("org/demo", "v1", native_package(tmp_path / "source").folder)
    code = LOAD.format("org/demo", "answer")
    both = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    assert [process.communicate(timeout=60)[0] for process in both] == ["42\n", "42\n"]
    assert list((tmp_path / "cache/kernel-hub/tmp").iterdir()) == []


def test_get_kernel_when_a_token_is_set_then_sends_it(
    hub: StaticHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.publish("org/demo", "v1", python_package(tmp_path / "source").folder)
    get_kernel("org/demo")
    assert set(hub.tokens) == {"Bearer hf_secret"}


def test_has_kernel_when_nothing_fits_or_exists_then_is_false(hub: StaticHub, tmp_path: Path) -> None:
    hub.publish("org/demo", "v1", python_package(tmp_path / "source").folder)
    assert hub_loader.has_kernel("org/demo", version=1, backend="cpu")
    assert not hub_loader.has_kernel("org/demo", version=2)
    assert not hub_loader.has_kernel("org/demo", backend="cuda")
    assert not hub_loader.has_kernel("org/nothing")


def test_get_loaded_kernels_when_one_is_loaded_then_tells_where_from(hub: StaticHub, tmp_path: Path) -> None:
    package = python_package(tmp_path / "source")
    commit = hub.publish("org/demo", "v1", package.folder)
    module = get_kernel("org/demo")
    (loaded,) = [kernel for kernel in hub_loader.get_loaded_kernels() if kernel.metadata.id == package.id]
    assert loaded.module is module
    assert loaded.repo_info == hub_loader.RepoInfo("org/demo", commit)
    assert loaded.variant == "torch-cpu"
    assert loaded.path.parent == tmp_path / "cache/kernel-hub/variants"


def test_importing_hub_loader_then_imports_neither_torch_nor_huggingface_hub() -> None:
    code = "import sys, hub_loader; print({'torch', 'huggingface_hub', 'httpx', 'httpx2'} & {*sys.modules})"
    assert in_new_process(code).stdout == "set()\n"


def test_get_kernel_when_warm_offline_then_never_imports_huggingface_hub(
    hub: StaticHub, tmp_path: Path
) -> None:
    hub.publish("org/demo", "v1", python_package(tmp_path / "source").folder)
    hub_loader.fetch_kernel("org/demo")
    code = (
        "import sys, hub_loader; hub_loader.get_kernel('org/demo'); print('huggingface_hub' in sys.modules)"
    )
    assert in_new_process(code, HF_HUB_OFFLINE="1").stdout == "False\n"


def test_get_kernel_when_threads_ask_at_once_then_one_loads_for_all(hub: StaticHub, tmp_path: Path) -> None:
    hub.publish("org/demo", "v1", python_package(tmp_path / "source").folder)
    with ThreadPoolExecutor(8) as pool:
        modules = set(pool.map(get_kernel, ["org/demo"] * 8))
    assert len(modules) == 1
    assert len(hub.requests) == len(set(hub.requests))


def test_get_kernel_when_offline_and_another_version_is_cached_then_says_offline_not_missing(
    hub: StaticHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.publish("org/demo", "v1", python_package(tmp_path / "source").folder)
    hub_loader.fetch_kernel("org/demo", version=1)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(hub_loader.OfflineError, match="org/demo version 2: it is not in the cache"):
        get_kernel("org/demo", version=2)
