"""Run a contestant: `python __main__.py MODULE.py PLAN.json ANSWER.json`, by any Python from 3.10 on."""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import sys
from pathlib import Path


def main(module: Path, plan: Path, answer: Path) -> None:
    """Load the module by its path, since its name may be that of the library it measures."""
    todo = json.loads(plan.read_text())
    if hasattr(os, "sched_setaffinity"):  # before any library makes threads
        os.sched_setaffinity(0, todo["processors"])
    folder = str(Path(__file__).resolve().parent)
    sys.path[:] = [place for place in sys.path if place != folder]
    spec = importlib.util.spec_from_file_location("contestant", module)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{module} is no Python module")
    contestant = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(contestant)
    result = contestant.run(todo)
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    result["peak_memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    answer.write_text(json.dumps(result))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
