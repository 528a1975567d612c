"""The main job, end to end: source -> package -> hub -> a verified kernel in a process -> generated tokens.

Every step is a command a user could type; it is printed before it runs. What is made lies in `.demo`, and a
second run reuses it. Ctrl-C at any step stops the hub; whatever was finished is reused, nothing is half-made.

    python ci/demo.py [--max-tokens N] [--state DIR]
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "engine" / "models" / "stdlib-llama"
KERNELS = ("paged-attention", "rmsnorm-rotary", "dense-linear", "quantized-matmul")
ORG = "kernel-hub"
KHUB = [sys.executable, "-m", "hub_loader"]
PROMPTS = (
    "def main():",
    "import os",
    "class Error(Exception):",
    "for name in names:",
    "    def __init__(self, name, value=None):",
    'if __name__ == "__main__":',
    "return self._",
    "from collections import",
    "try:",
    "with open(path, 'rb') as f:",
    "@property",
    "raise ValueError(",
    "# Copyright",
    "    while True:",
    "def read(self, size=-1):",
    '"""Return the',
)
# label, options of `khub engine generate`, whose tokens its own must equal. Quantized weights are other
# weights, so there the hub's kernels are held against plain torch with the same weights.
RUNS = (
    ("torch ops", ("--kernels", "torch"), "transformers"),
    ("hub kernels", ("--kernels", "hub"), "transformers"),
    ("torch ops, int8", ("--kernels", "torch", "--quantize", "int8"), ""),
    ("hub kernels, int8", ("--kernels", "hub", "--quantize", "int8"), "torch ops, int8"),
)
FETCH = """
import json, sys, time
import torch  # the user's own: not part of what is timed
from hub_loader import get_kernel, get_loaded_kernels
fetched = []
for name in sys.argv[1:]:
    start = time.perf_counter()
    get_kernel(name)
    fetched.append({"variant": get_loaded_kernels()[-1].variant, "seconds": time.perf_counter() - start})
print(json.dumps(fetched))
"""


@dataclass(frozen=True)
class Row:
    """A line of the final table."""

    step: str
    seconds: float
    variant: str = ""
    tokens_per_second: float | None = None


class DemoError(Exception):
    """A step failed; the message says which and what it printed."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--max-tokens", type=int, default=48, help="tokens generated for each prompt (48)")
    parser.add_argument(
        "--state", type=Path, default=ROOT / ".demo", help="where to keep what is made (.demo)"
    )
    args = parser.parse_args()
    args.state.mkdir(parents=True, exist_ok=True)
    try:
        rows = run(args.state.resolve(), args.max_tokens)
    except DemoError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ndemo: interrupted; run it again to go on", file=sys.stderr)
        return 130
    print("\n" + table(rows))
    return 0


def run(state: Path, max_tokens: int) -> list[Row]:
    """All steps in order; returns the table's rows."""
    rows = []
    backends = "{cpu,cu130}" if Path("/proc/driver/nvidia/version").exists() else "cpu"
    select = f"torch{{-stable-abi*,213-*}}-{backends}-x86_64-*"
    for name in KERNELS:
        say(f"Compile {name} from source, audit it, package it")
        arguments = (
            "build",
            f"kernels_src/{name}",
            "--select",
            select,
            "--out",
            state / "dist" / name,
            "--json",
        )
        seconds, done = khub(arguments, json_output=True)
        cells = done["cells"]
        reused = all(cell["reused"] for cell in cells)
        variants = ", ".join(cell["variant"] for cell in cells)
        rows.append(Row(f"build {name}" + (" (reused)" if reused else ""), seconds, variants))

    say("Serve a hub for kernels on this machine")
    start = time.perf_counter()
    with serve(state / "registry") as url:
        rows.append(Row(f"serve {url}", time.perf_counter() - start))
        token = khub_text(
            ("registry", "token", "create", "--data", state / "registry", "--org", ORG, "--write")
        )
        key = state / "release.key"
        if not key.exists():
            say("Make the publisher's key")
            khub(("keygen", key, "--comment", ORG))
        client = {
            "HF_ENDPOINT": url,
            "HF_TOKEN": token.splitlines()[-1],
            "HF_HOME": str(state / "hf"),
            "KERNELS_CACHE": str(state / "cache"),
            "HF_HUB_OFFLINE": "0",
            "KHUB_TRUST_FILE": str(state / "trust.json"),
            # A model this small is fastest on one thread, and does not stall where others use the cores.
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        }
        say("Trust that key: what others sign, and what nobody signs, is refused")
        khub(("trust", "add", ORG, f"{key}.pub"), client)
        for name in KERNELS:
            say(f"Sign {name} and publish it with the stock Hub client")
            arguments = ("publish", state / "dist" / name, f"{ORG}/{name}", "--sign-key", key, "--json")
            seconds, done = khub(arguments, client, True)
            rows.append(Row(f"publish {name}", seconds, f"{done['branch']} at {done['commit'][:12]}"))
        say("Fetch them in a fresh process: resolve, download, verify, bind")
        names = [f"{ORG}/{name}" for name in KERNELS]
        _, fetched = command([sys.executable, "-c", FETCH, *names], client, json_output=True)
        for name, done in zip(KERNELS, fetched, strict=True):
            rows.append(Row(f"get_kernel {name}", done["seconds"], done["variant"]))
        rows += generate(state, client, max_tokens)
    return rows


def generate(state: Path, client: dict[str, str], max_tokens: int) -> list[Row]:
    """Generate with transformers, torch ops and hub kernels; greedy tokens must be equal where weights are."""
    prompts = state / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS) + "\n")
    say(f"Generate {max_tokens} tokens for {len(PROMPTS)} prompts with transformers, the reference")
    script = ROOT / "ci" / "reference.py"
    _, done = command([sys.executable, script, MODEL, prompts, max_tokens], client, json_output=True)
    tokens: dict[str, list[list[int]]] = {"transformers": done["tokens"]}
    rows = [Row("transformers", done["seconds"], "", sum(map(len, done["tokens"])) / done["seconds"])]
    for label, options, peer in RUNS:
        say(f"Generate the same in one continuous batch: {label}")
        arguments = ("engine", "generate", "--model", MODEL, "--prompts-file", prompts, *options)
        _, done = khub((*arguments, "--max-tokens", max_tokens, "--json"), client, json_output=True)
        tokens[label] = [completion["tokens"] for completion in done["completions"]]
        if peer:
            for prompt, ours, theirs in zip(PROMPTS, tokens[label], tokens[peer], strict=True):
                if ours != theirs:
                    raise DemoError(f"{label}: the tokens for {prompt!r} are not those of {peer}")
        variants = sorted({slot["variant"] for slot in done["slots"]} - {"-"})
        count = sum(map(len, tokens[label]))
        step = f"{label} (tokens equal {peer})" if peer else label
        rows.append(Row(step, done["seconds"], ", ".join(variants), count / done["seconds"]))
    print("\n    " + (PROMPTS[0] + done["completions"][0]["text"]).replace("\n", "\n    "))
    return rows


@contextmanager
def serve(data: Path) -> Iterator[str]:
    """Run `khub serve` on a free port; yields its address."""
    arguments = [*KHUB, "serve", "--data", str(data), "--port", "0", "--json"]
    show(arguments, {})
    # In a session of its own, so that Ctrl-C reaches this process first and the hub is stopped in order.
    server = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        if not line:
            raise DemoError(f"khub serve stopped with exit code {server.wait()}")
        yield json.loads(line)["url"]
    finally:
        server.terminate()
        server.wait()


def khub(arguments: tuple[Any, ...], extra: dict[str, str] | None = None, json_output: bool = False) -> Any:
    """Run a `khub` command; returns (seconds, its JSON)."""
    return command([*KHUB, *map(str, arguments)], extra or {}, json_output)


def khub_text(arguments: tuple[Any, ...]) -> str:
    """Run a `khub` command; returns what it printed."""
    return str(command([*KHUB, *map(str, arguments)], {}, False)[1])


def command(words: list[Any], extra: dict[str, str], json_output: bool) -> tuple[float, Any]:
    """Run a command from the project's root with `extra` environment; returns (seconds, output)."""
    words = [str(word) for word in words]
    show(words, extra)
    start = time.perf_counter()
    done = subprocess.run(words, cwd=ROOT, env={**os.environ, **extra}, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise DemoError(f"`{display(words)}` failed with exit code {done.returncode}")
    seconds = time.perf_counter() - start
    return seconds, json.loads(done.stdout) if json_output else done.stdout.strip()


def say(text: str) -> None:
    print(f"\n{text}", flush=True)


def show(words: list[str], extra: dict[str, str]) -> None:
    hidden = {**extra, **({"HF_TOKEN": "…"} if "HF_TOKEN" in extra else {})}
    shown = [f"{key}={value}" for key, value in hidden.items() if key in ("HF_ENDPOINT", "HF_TOKEN")]
    print("  $ " + " ".join([*shown, display(words)]), flush=True)


def display(words: list[str]) -> str:
    """A command as a user would type it: khub by name, paths from here, no program text."""
    text = shlex.join("…" if "\n" in word else word for word in words)
    text = text.replace(shlex.join(KHUB), "khub").replace(sys.executable, "python")
    return text.replace(f"{ROOT}/", "")


def table(rows: list[Row]) -> str:
    """The rows as an aligned table."""
    cells = [("step", "time", "variant", "tokens/s")]
    for row in rows:
        speed = "" if row.tokens_per_second is None else f"{row.tokens_per_second:.1f}"
        cells.append((row.step, f"{row.seconds:.2f} s", row.variant, speed))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(line.rstrip() for line in lines)


if __name__ == "__main__":
    sys.exit(main())
