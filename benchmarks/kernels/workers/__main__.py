"""Make and time calls as they are asked for: `python __main__.py MODULE.py THREADS`, by any Python from 3.10 on.

A question is a line of JSON on the standard input, an answer one on the standard output: {"make": case} is answered
with {"made": true or false}, {"result": FILE} with {} once the result is in the file, and {"time": hot} with
{"us": microseconds} of one call; where it is to be hot, of the calls of a millisecond after one of them untimed.
Whatever goes wrong is answered with {"error": what}.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

# Seconds. OpenMP's threads of another process spin for some milliseconds after their work, on the same cores. Of a hot
# call as many are timed as take a while.
_REST = 0.01
_A_WHILE = 1e-3


def main(module: Path, threads: int) -> None:
    """Load the module by its path, since its name may be that of the library it measures."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    folder = str(Path(__file__).resolve().parent)
    sys.path[:] = [place for place in sys.path if place != folder]
    made: tuple[Callable[[], object], Callable[[], bytes]] | None = None

    def answer(question: dict[str, Any]) -> dict[str, Any]:
        nonlocal made
        if "make" in question:
            made = None  # the last case's tensors go before the next one's come
            made = operators.make(question["make"])
            return {"made": made is not None}
        assert made is not None, "nothing was made"
        call, result = made
        if "result" in question:
            call()
            Path(question["result"]).write_bytes(result())
            return {}
        time.sleep(_REST)
        operators.wake()
        if question["time"]:
            mean_of_a_while(call)
            return {"us": mean_of_a_while(call)}
        begun = time.perf_counter()
        call()
        return {"us": (time.perf_counter() - begun) * 1e6}

    def say(what: Callable[[], dict[str, Any]]) -> None:
        try:
            said = what()
        except Exception as error:
            said = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(said), file=answers, flush=True)

    spec = importlib.util.spec_from_file_location("operators", module)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{module} is no Python module")
    operators = importlib.util.module_from_spec(spec)

    def start() -> dict[str, Any]:
        assert spec.loader is not None
        spec.loader.exec_module(operators)
        return {"version": operators.start(threads)}

    say(start)
    for line in sys.stdin:
        question = json.loads(line)
        say(partial(answer, question))


def mean_of_a_while(call: Callable[[], object]) -> float:
    calls, begun = 0, time.perf_counter()
    while (taken := time.perf_counter() - begun) < _A_WHILE:
        call()
        calls += 1
    return taken / calls * 1e6


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
