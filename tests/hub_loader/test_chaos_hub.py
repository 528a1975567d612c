"""A hub that breaks off, lies or is gone: an error that says what to do, and nothing a later load would take."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from packages import python_package, unique_id, write_package
from static_hub import StaticHub

import hub_loader
from hub_loader import get_kernel, install_kernel
from hub_loader.manifest import BackendInfo, FileEntry, Index, IndexedVariant, Metadata, sha256_hex

SIZE = 3_000_000
LOAD = "from hub_loader import get_kernel; print(get_kernel('org/demo', version=1).value())"


def publish(hub: StaticHub, tmp_path: Path, **options: object) -> Path:
    package = python_package(tmp_path / "source", value=7, data=os.urandom(SIZE), **options)
    hub.publish("org/demo", "v1", package.folder)
    hub.block = 100_000
    return package.variants["torch-cpu"]


def variants(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "cache/kernel-hub/variants").glob("*"))


def partial_files(tmp_path: Path) -> dict[str, bytes]:
    files = (path for path in (tmp_path / "cache/kernel-hub/partial").rglob("*") if path.is_file())
    return {path.name: path.read_bytes() for path in files if path.stat().st_size}


def in_new_process(code: str = LOAD, **environ: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **environ}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment
    )


@pytest.mark.parametrize("has_index", [True, False])
def test_interrupted_download_then_only_what_is_missing_is_asked_for(
    hub: StaticHub, tmp_path: Path, has_index: bool
) -> None:
    publish(hub, tmp_path, has_index=has_index)
    hub.truncated["data.bin"] = 2_000_000
    with pytest.raises(hub_loader.DownloadError, match="expected 3000000 bytes, got 2000000 .*try again"):
        get_kernel("org/demo", version=1, trust_remote_code=True)
    assert variants(tmp_path) == []
    hub.truncated.clear()
    hub.clear()
    hub.sent.clear()
    assert get_kernel("org/demo", version=1, trust_remote_code=True).value() == 7
    assert hub.sent == {"data.bin": 1_000_000}
    assert [path.rpartition("/")[2] for path in hub.requests] == ["data.bin"]


def test_interrupted_download_when_the_hub_knows_no_ranges_then_starts_over(
    hub: StaticHub, tmp_path: Path
) -> None:
    publish(hub, tmp_path)
    hub.truncated["data.bin"] = 2_000_000
    with pytest.raises(hub_loader.DownloadError):
        get_kernel("org/demo", version=1)
    hub.truncated.clear()
    hub.ranges = False
    assert get_kernel("org/demo", version=1).value() == 7


@pytest.mark.parametrize("damage", ["changed", "longer", "whole but changed", "link"])
def test_interrupted_download_when_what_came_is_damaged_then_starts_over(
    hub: StaticHub, tmp_path: Path, damage: str
) -> None:
    folder = publish(hub, tmp_path)
    hub.truncated["data.bin"] = 2_000_000
    with pytest.raises(hub_loader.DownloadError):
        get_kernel("org/demo", version=1)
    hub.truncated.clear()
    (path,) = (tmp_path / "cache/kernel-hub/partial").rglob("data.bin")
    if damage == "changed":  # as after a power cut: the length is on disk, the bytes are not
        path.write_bytes(bytes(2_000_000))
    elif damage == "longer":
        path.write_bytes(bytes(SIZE + 1))
    elif damage == "whole but changed":
        path.write_bytes(bytes(SIZE))
        path.chmod(0o444)
    else:
        path.unlink()
        (tmp_path / "victim").write_bytes(b"precious")
        path.symlink_to(tmp_path / "victim")
        (path.parent / "stray").mkdir()
        (path.parent / "stray" / "evil.py").write_text("1")
    assert get_kernel("org/demo", version=1).value() == 7
    (cached,) = variants(tmp_path)
    assert (cached / "data.bin").read_bytes() == (folder / "data.bin").read_bytes()
    if damage == "link":
        assert (tmp_path / "victim").read_bytes() == b"precious"


def test_interrupted_download_when_the_hub_answers_another_range_then_it_is_not_appended(
    hub: StaticHub, tmp_path: Path
) -> None:
    publish(hub, tmp_path)
    hub.truncated["data.bin"] = 2_000_000
    with pytest.raises(hub_loader.DownloadError):
        get_kernel("org/demo", version=1)
    hub.truncated.clear()
    hub.headers["Content-Range"] = f"bytes 5-{SIZE - 1}/{SIZE}"
    assert get_kernel("org/demo", version=1).value() == 7


@pytest.mark.parametrize(
    ("lie", "error", "message"),
    [
        (
            "shorter",
            hub_loader.DownloadError,
            r"data\.bin of org/demo: expected 3000000 bytes, got 2999999 bytes: try",
        ),
        (
            "longer",
            hub_loader.DownloadError,
            r"data\.bin of org/demo: expected at most 3000000 bytes, the hub sends m",
        ),
        (
            "endless",
            hub_loader.DownloadError,
            r"data\.bin of org/demo: expected at most 3000000 bytes.*check HF_ENDP",
        ),
        (
            "wrong",
            hub_loader.IntegrityError,
            r"data\.bin of org/demo: the hub sent other bytes.*ask the publisher",
        ),
        (
            "empty",
            hub_loader.DownloadError,
            r"data\.bin of org/demo: expected 3000000 bytes, got 0 bytes: try again",
        ),
        (
            "endless index",
            hub_loader.DownloadError,
            r"index\.json of org/demo: expected at most .*check HF_ENDPOINT",
        ),
    ],
)
def test_lying_hub_then_its_bytes_are_refused_and_the_truth_loads_afterwards(
    hub: StaticHub, tmp_path: Path, lie: str, error: type[Exception], message: str
) -> None:
    folder = publish(hub, tmp_path)
    truth = (folder / "data.bin").read_bytes()
    wrong = {"shorter": truth[:-1], "longer": truth + b"\0", "wrong": bytes(SIZE), "empty": b""}
    if lie.startswith("endless"):
        hub.endless.add("index.json" if lie.endswith("index") else "data.bin")
    else:
        hub.replaced["data.bin"] = wrong[lie]
    for _ in range(2):
        with pytest.raises(error, match=message) as caught:
            get_kernel("org/demo", version=1)
        assert "\n" not in str(caught.value)
        assert variants(tmp_path) == []
    assert sum(hub.sent.values()) < 100 << 20  # an endless body is cut
    hub.endless.clear()
    hub.replaced.clear()
    assert get_kernel("org/demo", version=1).value() == 7


def test_lying_hub_when_only_the_etag_is_wrong_then_the_bytes_decide(hub: StaticHub, tmp_path: Path) -> None:
    publish(hub, tmp_path)
    hub.headers.update({"ETag": '"0000"', "X-Linked-Etag": '"1111"', "X-Linked-Size": "5"})
    assert get_kernel("org/demo", version=1).value() == 7


def test_lying_hub_when_its_answer_inflates_without_end_then_it_is_cut(
    hub: StaticHub, tmp_path: Path
) -> None:
    publish(hub, tmp_path)
    hub.headers["Content-Encoding"] = "gzip"
    hub.replaced["index.json"] = gzip.compress(bytes(64 << 20))
    with pytest.raises(hub_loader.DownloadError, match=r"index\.json of org/demo: expected at most"):
        get_kernel("org/demo", version=1)
    hub.headers.clear()
    hub.replaced.clear()
    assert get_kernel("org/demo", version=1).value() == 7


def test_lying_hub_when_the_rest_of_an_interrupted_file_is_wrong_then_refuses_and_keeps_nothing(
    hub: StaticHub, tmp_path: Path
) -> None:
    publish(hub, tmp_path)
    hub.truncated["data.bin"] = 2_000_000
    with pytest.raises(hub_loader.DownloadError):
        get_kernel("org/demo", version=1)
    assert len(partial_files(tmp_path)["data.bin"]) == 2_000_000
    hub.truncated.clear()
    hub.replaced["data.bin"] = bytes(SIZE)
    with pytest.raises(hub_loader.IntegrityError, match=r"data\.bin"):
        get_kernel("org/demo", version=1)
    assert partial_files(tmp_path) == {}
    hub.replaced.clear()
    assert get_kernel("org/demo", version=1).value() == 7


def test_hub_gone_then_what_is_cached_loads_and_what_is_not_says_what_to_do(
    hub: StaticHub, tmp_path: Path
) -> None:
    publish(hub, tmp_path)
    install_kernel("org/demo", version=1)
    hub.stop()
    warm = in_new_process()
    assert (warm.stdout, warm.stderr) == ("7\n", "")
    asked = in_new_process(KHUB_REFRESH="0")
    assert asked.stdout == "7\n"
    assert "using what it said last" in asked.stderr
    cold = in_new_process(KERNELS_CACHE=str(tmp_path / "other"))
    assert f"cannot reach {hub.endpoint}" in cold.stderr.splitlines()[-1]
    assert "check the network and HF_ENDPOINT" in cold.stderr.splitlines()[-1]


def test_hub_gone_between_index_and_files_then_says_so_and_the_next_call_works(
    hub: StaticHub, tmp_path: Path
) -> None:
    publish(hub, tmp_path)
    hub.status["/build/"] = (503, "")
    with pytest.raises(hub_loader.DownloadError, match="answered 503: try again later"):
        get_kernel("org/demo", version=1)
    assert variants(tmp_path) == []
    hub.status.clear()
    assert get_kernel("org/demo", version=1).value() == 7


def publish_zeros(hub: StaticHub, folder: Path, size: int) -> None:
    """A package with a library of `size` zero bytes, which is nowhere on disk."""
    digest, name = hashlib.sha256(), "_library.so"
    for _ in range(size >> 20):
        digest.update(bytes(1 << 20))
    kernel_id, init = unique_id(), b"def value(): return 7\n"
    package = write_package(folder, {"__init__.py": init}, kernel_id=kernel_id)
    files = {"__init__.py": FileEntry(sha256_hex(init), len(init)), name: FileEntry(digest.hexdigest(), size)}
    metadata = Metadata(
        id=kernel_id,
        name="demo",
        version=1,
        license="Apache-2.0",
        backend=BackendInfo("cpu", ()),
        digest={path: entry.sha256 for path, entry in files.items()},
    ).to_json()
    (package.variants["torch-cpu"] / "metadata.json").write_bytes(metadata)
    entry = FileEntry(sha256_hex(metadata), len(metadata))
    variant = IndexedVariant(kernel_id, BackendInfo("cpu", ()), entry, files)
    (folder / "index.json").write_bytes(Index("demo", 1, {"torch-cpu": variant}).to_json())
    hub.zeros[name] = size
    hub.publish("org/demo", "v1", folder)


@pytest.mark.heavy
def test_variant_of_500_mb_then_it_streams_through_bounded_memory(hub: StaticHub, tmp_path: Path) -> None:
    """The peak of a process that fetches and proves 500 MB is at most 32 MB above that of one that fetches 1 MB."""
    code = (
        "import json, resource; from hub_loader import install_kernel; install_kernel('org/demo', version=1); "
        "print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))"
    )
    peaks = []
    for size in (1 << 20, 500 << 20):
        cache = tmp_path / str(size)
        publish_zeros(hub, cache / "source", size)
        done = in_new_process(code, KERNELS_CACHE=str(cache))
        assert done.returncode == 0, done.stderr
        peaks.append(json.loads(done.stdout) / 1024)
    print(f"peak of a process: {peaks[0]:.0f} MB with 1 MB, {peaks[1]:.0f} MB with 500 MB")
    assert peaks[1] < peaks[0] + 32
