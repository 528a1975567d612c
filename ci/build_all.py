"""What CI does, here: every cell by itself as CI's jobs do, then merge, audit, table, and publish when asked.

    python ci/build_all.py [--kernel FOLDER]... [--select GLOB] [--out DIR] [--publish ORG]

The commands are those of `.github/workflows/build.yml` and `publish.yml`; each is printed before it runs. A cell
that fails stops no other; the exit code says that one did.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KHUB = [sys.executable, "-m", "hub_loader"]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kernel", type=Path, action="append", help="a kernel's folder (all of kernels_src)")
    parser.add_argument("--select", action="append", default=[], metavar="GLOB", help="only these variants")
    parser.add_argument("--out", type=Path, default=Path("dist"), help="where packages go (dist)")
    parser.add_argument("--publish", metavar="ORG", help="publish to HF_ENDPOINT as ORG/<kernel name>")
    args = parser.parse_args()
    files = [*ROOT.glob("kernels_src/*/build.toml"), *ROOT.glob("kernels_src/*/triton/build.toml")]
    kernels = args.kernel or sorted(path.parent for path in files)
    selects = [word for glob in args.select for word in ("--select", glob)]
    printed = run([*KHUB, "matrix", *kernels, *selects, "--github"]).stdout
    jobs = json.loads(printed.removeprefix("matrix="))["include"]

    parts: dict[str, list[Path]] = {}
    reports: list[Path] = []
    failed = False
    for number, job in enumerate(jobs):
        part = args.out / "parts" / f"{number}" / job["name"]
        part.mkdir(parents=True, exist_ok=True)
        build = [*KHUB, "build", job["kernel"], "--select", job["select"], "--out", part, "--json"]
        done = run(build, check=False)
        if not done.stdout:
            return done.returncode  # the reason is on stderr
        reports.append(part.parent / "report.json")
        reports[-1].write_text(done.stdout)
        if done.returncode:
            failed = True
        else:
            parts.setdefault(job["name"], []).append(part)
    for name, built in parts.items():
        run([sys.executable, ROOT / "ci" / "merge.py", args.out / name, *built])
        run([*KHUB, "audit", args.out / name])
    print(run([sys.executable, ROOT / "ci" / "table.py", *reports]).stdout, end="")
    if args.publish and not failed:
        for name in parts:
            run([*KHUB, "publish", args.out / name, f"{args.publish}/{name}"])
    return 1 if failed else 0


def run(words: list[str | Path], check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command and return what it printed; with `check`, one that fails ends the script."""
    command = [str(word) for word in words]
    print(f"$ {shlex.join(command)}", file=sys.stderr, flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if check and done.returncode:
        print(done.stdout, end="", file=sys.stderr)
        sys.exit(done.returncode)
    return done


if __name__ == "__main__":
    sys.exit(main())
