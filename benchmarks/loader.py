"""hub_loader against the stock `kernels` 0.17.2: import, and getting a kernel that is loaded, on disk, or nowhere yet.

    python benchmarks/loader.py [--repeat N] [--package FOLDER] [--venv FOLDER] [--large-mb N] [--json FILE]

Both are installed in one venv made for this, beside the torch of this interpreter, and load one variant of one
package from one registry on loopback, by the same call with the same arguments (`trust_remote_code=True`, which spares
the stock client a request). That both loaded the same build is checked in every run. Every run is a fresh process, and
the clients' runs alternate, so that a neighbour's load meets both.

- import: `import X` and `from X import get_kernel` with nothing else imported; timed in the process, and the whole
  process from outside, the interpreter's start included.
- cold: an empty cache. warm: the cache of the cold run, in a new process. torch is imported before the clock starts.
  `call` is get_kernel alone, `whole` with the client's import, for what one imports early the other imports late;
  `process` is from the start of the process to the kernel, with the interpreter's start and torch's import.
- loaded: the same call again in the same process.
- The registry is 0 and 50 ms away: each request waits one round trip; in rows "and handshakes" the first of a
  connection waits one more, as over TCP. Requests and connections are those that the registry saw; depth is the
  longest chain of requests of which each began after the one before it had ended.
- install: the greatest resident memory of a process that brings the package into the cache, and of one that brings a
  package with a library of `--large-mb`.

hub_loader hashes what it downloads and what it loads from disk in all of these.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from _loader_world import ORG, STOCK, Exchange, World, build_package, hub, make_python, publish, publish_large
from _report import ROOT, commit, machine, spread

CLIENTS = ("hub_loader", "kernels")
# How far away the registry is: seconds of a round trip, and whether TCP's handshake costs one more.
DISTANCES = {"0 ms": (0.0, False), "50 ms": (0.05, False), "50 ms and handshakes": (0.05, True)}
Distance = tuple[float, bool]
PROGRAM = (ROOT / "benchmarks" / "_loader_client.py").read_text()
# The stock client sends requests in every call: few of them are enough, and many would be minutes.
AGAIN = {"hub_loader": {"batches": 20, "calls": 1000}, "kernels": {"batches": 5, "calls": 1}}

Row = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeat", type=int, default=10, metavar="N", help="runs of each (10)")
    parser.add_argument(
        "--package", type=Path, help="a built package; else kernels_src/paged-attention is built"
    )
    parser.add_argument(
        "--venv", type=Path, help="the clients' venv, made if it is not there; else a temporary one"
    )
    parser.add_argument(
        "--large-mb", type=int, default=500, metavar="N", help="size of the large variant (500)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the hub and the folder go, too
    load_before = os.getloadavg()
    with tempfile.TemporaryDirectory(prefix="khub-bench-") as folder:
        work = Path(folder)
        package = args.package or build_package(work / "package")
        python = make_python(args.venv or work / "venv")
        with hub(work / "hub") as url:
            world = World(python, work, url, work / "hub")
            revision = publish(world, package, "kernel")
            publish_large(world, "large", args.large_mb * 1_000_000)
            results = measure(world, revision, args.repeat)
        installed = versions(python)
    print(table(results))
    load_after = os.getloadavg()
    print(f"load average {load_before[0]:.1f} before, {load_after[0]:.1f} after on {os.cpu_count()} cores")
    if args.json:
        report = {
            "machine": machine() | {"load_before": load_before, "load_after": load_after},
            "versions": installed,
            **commit(),
            "large_bytes": args.large_mb * 1_000_000,
            "results": results,
        }
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


def measure(world: World, revision: str, repeat: int) -> dict[str, Row]:
    """Every row by its name: for each client its figures, and the ratios of the stock client's to ours."""
    rows = {
        "import X": alternate(repeat, lambda client: imported(world, client, "package")),
        "from X import get_kernel": alternate(repeat, lambda client: imported(world, client, "function")),
    }
    for ask, arguments in (("version=1", {"version": 1}), ("revision=<commit>", {"revision": revision})):
        for away, distance in DISTANCES.items():
            pairs = [
                {client: loads(world, client, arguments, distance) for client in CLIENTS}
                for _ in range(repeat)
            ]
            check_same([run for pair in pairs for both in pair.values() for run in both])
            for number, case in enumerate(("cold", "warm")):
                figures = {client: summary([pair[client][number] for pair in pairs]) for client in CLIENTS}
                rows[f"{case}, {ask}, {away}"] = compared(figures)
            again = {client: loaded([pair[client][1] for pair in pairs]) for client in CLIENTS}
            rows[f"loaded, {ask}, {away}"] = compared(again)
    for name in ("kernel", "large"):
        rows[f"install {name}"] = alternate(
            min(repeat, 3), lambda client, name=name: installs(world, client, name)
        )
    return rows


def alternate(repeat: int, run: Callable[[str], Row]) -> Row:
    """The figures of both clients, whose runs take turns."""
    pairs = [{client: run(client) for client in CLIENTS} for _ in range(repeat)]
    check_same([run for pair in pairs for run in pair.values()])
    return compared({client: summary([pair[client] for pair in pairs]) for client in CLIENTS})


def imported(world: World, client: str, case: str) -> Row:
    """An import in a fresh process, and all of that process."""
    start = time.perf_counter()
    run = client_run(world, world.work, client, case)
    return {**run, "process_s": time.perf_counter() - start}


def loads(world: World, client: str, arguments: dict[str, Any], distance: Distance) -> tuple[Row, Row]:
    """The runs of a process that finds the cache empty, and of one after it that calls again and again."""
    asked = {"arguments": {"repo_id": f"{ORG}/kernel", "trust_remote_code": True, **arguments}}
    with tempfile.TemporaryDirectory(dir=world.work) as home:
        cold = loaded_run(world, Path(home), client, {**asked, "batches": 0, "calls": 0}, distance)
        warm = loaded_run(world, Path(home), client, asked | AGAIN[client], distance)
    return cold, warm


def loaded_run(world: World, home: Path, client: str, asked: Row, distance: Distance) -> Row:
    """One process that loads the kernel, with what the hub saw of it until then, and of each call afterwards."""
    world.begin(*distance)
    start = time.monotonic()
    run = client_run(world, home, client, "load", asked)
    seen, loaded_at = world.exchanges(), run.pop("loaded_at")
    exchanges = [exchange for exchange in seen if exchange.start < loaded_at]
    calls = asked["batches"] * asked["calls"]
    return {
        **run,
        "whole_s": run["import_s"] + run["call_s"],
        "process_s": loaded_at - start,
        "requests": len(exchanges),
        "connections": sum(exchange.new_connection for exchange in exchanges),
        "depth": depth(exchanges),
        "again_requests": [(len(seen) - len(exchanges)) / calls] if calls else [],
    }


def installs(world: World, client: str, name: str) -> Row:
    """One process that brings a package into an empty cache."""
    world.begin(0.0)
    arguments = {"repo_id": f"{ORG}/{name}", "version": 1, "trust_remote_code": True}
    with tempfile.TemporaryDirectory(dir=world.work) as home:
        return client_run(world, Path(home), client, "install", {"arguments": arguments})


def client_run(world: World, home: Path, client: str, case: str, asked: Row | None = None) -> Row:
    """What the client's program prints; its current folder is empty but for a cache."""
    command = [world.python, "-c", PROGRAM, client, case, json.dumps(asked or {})]
    done = subprocess.run(command, env=world.environment(home), cwd=home, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{client} {case} failed with {done.returncode}:\n{done.stderr}")
    run: Row = json.loads(done.stdout.splitlines()[-1])
    return run


def depth(exchanges: list[Exchange]) -> int:
    """The greatest number of requests of which each began after the one before it had ended."""
    count, last = 0, float("-inf")
    for exchange in sorted(exchanges, key=lambda exchange: exchange.end):
        if exchange.start >= last:
            count, last = count + 1, exchange.end
    return count


def check_same(runs: list[Row]) -> None:
    """End the benchmark unless both clients had the same build in every run."""
    found = {(run.get("id"), run.get("torch")) for run in runs}
    if len(found) != 1:
        raise SystemExit(f"the clients loaded different builds: {sorted(map(str, found))}")


def summary(runs: list[Row]) -> Row:
    """The spread of every figure that the runs have; of counts as well, which may differ."""
    return {
        name: spread([run[name] for run in runs])
        for name, value in runs[0].items()
        if isinstance(value, int | float)
    }


def loaded(runs: list[Row]) -> Row:
    """Nanoseconds and requests of a further call."""
    return {
        "again_ns": spread([value for run in runs for value in run["again_ns"]]),
        "requests": spread([value for run in runs for value in run["again_requests"]]),
    }


def compared(figures: dict[str, Row]) -> Row:
    """The figures, and how many times ours the stock client's medians are (above 1: ours is less)."""
    ours, stock = (figures[client] for client in CLIENTS)
    ratios = {
        name: stock[name]["median"] / ours[name]["median"]
        for name in ours
        if name.endswith(("_s", "_ns", "_bytes")) and ours[name]["median"]
    }
    return {**figures, "ratios": ratios}


def versions(python: Path) -> dict[str, str]:
    """Of the interpreter and what both clients stand on."""
    code = (
        "import json; from importlib.metadata import version; "
        "print(json.dumps({n: version(n) for n in ('kernels', 'huggingface_hub', 'torch')}))"
    )
    found = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    own = {"python": platform.python_version(), "kernel-hub": version("kernel-hub"), "stock": STOCK}
    return own | json.loads(found.stdout)


def table(results: dict[str, Row]) -> str:
    """A line for each figure: median (least … greatest) of both, and the ratio."""
    lines = [f"{'median (least … greatest)':<48}{'hub_loader':>30}{'kernels':>30}{'ratio':>9}"]
    for case, row in results.items():
        for name in row[CLIENTS[0]]:
            what = f"{case}: {name.rpartition('_')[0] or name}"
            cells = "".join(f"{cell(name, row[client][name]):>30}" for client in CLIENTS)
            ratio = f"{row['ratios'][name]:.1f}x" if name in row["ratios"] else ""
            lines.append(f"{what:<48}{cells}{ratio:>9}")
    return "\n".join(lines)


def cell(name: str, values: dict[str, float]) -> str:
    """A spread in the unit for people: ms, µs or MB; counts as they are."""
    units = {"s": (1e3, "ms"), "ns": (1e-3, "µs"), "bytes": (1e-6, "MB")}
    factor, unit = units.get(name.rpartition("_")[2], (1, ""))
    median, low, high = (short(values[key] * factor) for key in ("median", "min", "max"))
    return f"{median} ({low} … {high}) {unit}".rstrip()


def short(value: float) -> str:
    """Three digits, or all of a whole part that is longer."""
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


if __name__ == "__main__":
    sys.exit(main())
