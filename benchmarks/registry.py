"""The registry under load: many cold loads at once, and reading and writing at once, on loopback.

    python benchmarks/registry.py [--loads N] [--seconds N] [--workers N]
                                  [--database URL] [--storage URL] [--json FILE]

A `khub serve` of its own, of one process or `--workers` of them, on a new data folder, or on the database and bucket
named. Server and clients share the machine, so its figures are what is left beside the clients: fewer clients' cores
than this has make them better.

- cold loads: `--loads` processes, forked from one that has imported the loader, each call `get_kernel` once at the
  same moment with an empty cache of its own. One package: `__init__.py`, metadata, index and a file of 2 MB. Latency
  is that of the whole call, hashing and unpacking included. A second round asks again, as a second fleet would.
- mixed: for `--seconds`, 16 connections read (a branch's commit, its tree, a small file, 256 KB of the large one) and
  4 write (a commit of two files, each connection to a branch of its own). Latency is that of a request.
- memory: the server's greatest resident set (VmHWM), of all its processes together.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
from _loader_world import write_package
from _report import ROOT, commit, machine

REPO = "bench/kernel"
LARGE = 2_000_000
READERS, WRITERS = 16, 4
_KHUB = "import sys; from hub_loader.cli import main; sys.exit(main())"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--loads", type=int, default=200, metavar="N", help="cold loads at once (200)")
    parser.add_argument("--seconds", type=float, default=60, metavar="N", help="of the mixed load (60)")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes that serve (1)")
    parser.add_argument("--database", metavar="URL", help="Postgres; else SQLite")
    parser.add_argument("--storage", metavar="URL", help="a bucket; else a folder")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the server and the folder go, too
    load_before = os.getloadavg()
    with tempfile.TemporaryDirectory(prefix="khub-bench-") as folder, server(Path(folder), args) as hub:
        publish(hub, Path(folder))
        results = {
            "cold loads": cold_loads(hub, Path(folder) / "first", args.loads),
            "cold loads again": cold_loads(hub, Path(folder) / "second", args.loads),
            **mixed(hub, args.seconds),
        }
        memory = hub.peak_bytes()
    report = {
        "machine": machine() | {"load_before": load_before, "load_after": os.getloadavg()},
        "versions": {name: version(name) for name in ("starlette", "uvicorn", "sqlalchemy", "obstore")}
        | {"python": platform.python_version()},
        **commit(),
        "server": {
            "workers": args.workers,
            "database": "postgres" if args.database else "sqlite",
            "storage": "s3" if args.storage else "folder",
            "peak_bytes": memory,
        },
        "loads": args.loads,
        "seconds": args.seconds,
        "results": results,
    }
    for name, row in results.items():
        figures = "  ".join(f"{key} {value:.4g}" for key, value in row.items())
        print(f"{name:<20} {figures}")
    print(f"server: {memory / 1e6:.0f} MB at most")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


@dataclass(frozen=True)
class Hub:
    """The server under load."""

    url: str
    token: str
    process: int

    def client(self) -> httpx.Client:
        """A connection of its own, with the right to write."""
        return httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {self.token}"}, timeout=120)

    def peak_bytes(self) -> int:
        """The greatest resident set of each of the server's processes, together."""
        children = Path(f"/proc/{self.process}/task/{self.process}/children").read_text().split()
        return sum(_peak_bytes(int(process)) for process in (self.process, *children))


def _peak_bytes(process: int) -> int:
    status = Path(f"/proc/{process}/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))


@contextmanager
def server(folder: Path, args: argparse.Namespace) -> Iterator[Hub]:
    """`khub serve` in a process of its own, which ends with the block."""
    where = ["--data", str(folder / "data")]
    for option in ("database", "storage"):
        if getattr(args, option) is not None:
            where += [f"--{option}", getattr(args, option)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    token = subprocess.run(
        [sys.executable, "-c", _KHUB, "registry", "token", "create", *where, "--org", "bench", "--write"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()[-1]
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            _KHUB,
            "serve",
            *where,
            "--port",
            "0",
            "--json",
            "--workers",
            str(args.workers),
        ],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if not line:
            raise SystemExit(f"the server ended with {process.wait()}")
        yield Hub(json.loads(line)["url"], token, process.pid)
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


def publish(hub: Hub, folder: Path) -> None:
    """Version 1 of the package, in one commit."""
    files = {"__init__.py": b"__all__ = []\n", "table.bin": os.urandom(LARGE)}
    write_package(folder / "package", files, "_kernel_universal_0000001", {})
    with hub.client() as client:
        body = {"name": "kernel", "organization": "bench", "type": "kernel"}
        client.post("/api/repos/create", json=body).raise_for_status()
        client.post(f"/api/kernels/{REPO}/branch/v1", json={}).raise_for_status()
        paths = [path for path in sorted((folder / "package").rglob("*")) if path.is_file()]
        content = {str(path.relative_to(folder / "package")): path.read_bytes() for path in paths}
        client.post(f"/api/kernels/{REPO}/commit/v1", content=commit_body(content)).raise_for_status()


def commit_body(files: dict[str, bytes]) -> str:
    """The JSON lines of a commit."""
    lines: list[dict[str, Any]] = [{"key": "header", "value": {"summary": "bench"}}]
    for path, content in files.items():
        value = {"path": path, "content": base64.b64encode(content).decode(), "encoding": "base64"}
        lines.append({"key": "file", "value": value})
    return "\n".join(map(json.dumps, lines))


# -- cold loads


def cold_loads(hub: Hub, caches: Path, count: int) -> dict[str, float]:
    """`count` processes that call get_kernel at the same moment, each with a cache of its own."""
    environment = {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONPATH": str(ROOT)}
    program = ROOT / "benchmarks" / "_registry_loads.py"
    done = subprocess.run(
        [sys.executable, program, REPO, str(caches), str(count)],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    answer = json.loads(done.stdout)
    return summary(answer["seconds"], answer["wall"])


# -- reading and writing


def mixed(hub: Hub, seconds: float) -> dict[str, dict[str, float]]:
    """Readers and writers at once; a row for each kind of request."""
    stop = time.monotonic() + seconds
    seen: dict[str, list[float]] = {}
    lock = threading.Lock()

    def keep(name: str, took: float) -> None:
        with lock:
            seen.setdefault(name, []).append(took)

    def timed(client: httpx.Client, name: str, method: str, url: str, **options: Any) -> None:
        start = time.perf_counter()
        client.request(method, url, **options).raise_for_status()
        keep(name, time.perf_counter() - start)

    def read() -> None:
        files = f"/kernels/{REPO}/resolve/v1"
        with hub.client() as client:
            while time.monotonic() < stop:
                timed(client, "commit of a branch", "GET", f"/api/kernels/{REPO}/revision/v1")
                timed(client, "tree", "GET", f"/api/kernels/{REPO}/tree/v1?recursive=true")
                timed(client, "small file", "GET", f"{files}/index.json")
                part = {"Range": "bytes=1000000-1262143"}
                timed(client, "256 KB", "GET", f"{files}/build/torch-universal/table.bin", headers=part)

    def write(number: int) -> None:
        with hub.client() as client:
            client.post(f"/api/kernels/{REPO}/branch/w{number}", json={}).raise_for_status()
            while time.monotonic() < stop:
                body = commit_body({"a": os.urandom(10_000), "b": os.urandom(10_000)})
                timed(client, "commit", "POST", f"/api/kernels/{REPO}/commit/w{number}", content=body)

    threads = [threading.Thread(target=read) for _ in range(READERS)]
    threads += [threading.Thread(target=write, args=(number,)) for number in range(WRITERS)]
    start = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wall = time.monotonic() - start
    return {f"mixed, {name}": summary(values, wall) for name, values in sorted(seen.items())}


def summary(seconds: Sequence[float], wall: float) -> dict[str, float]:
    """How many, how many a second, and their median, 99th percentile and greatest in milliseconds."""
    cuts = statistics.quantiles(seconds, n=100) if len(seconds) > 1 else [seconds[0]] * 99
    return {
        "count": len(seconds),
        "per_second": len(seconds) / wall,
        "p50_ms": cuts[49] * 1000,
        "p99_ms": min(cuts[98], max(seconds)) * 1000,
        "max_ms": max(seconds) * 1000,
    }


if __name__ == "__main__":
    sys.exit(main())
