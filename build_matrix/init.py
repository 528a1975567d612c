"""`khub init`: a new kernel project that builds and passes its test, copied from `template/`.

The template is itself a kernel, called my-kernel, so what is copied is what is tested.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from pathlib import Path

from hub_loader.errors import UsageError
from hub_loader.manifest import check_kernel_name, python_name

_TEMPLATE = Path(__file__).with_name("template")
_NAME = "my-kernel"
# What a first build compiles: one variant takes seconds, the whole matrix minutes and gigabytes.
HERE = f"torch-stable-*-cpu-{platform.machine()}*"


def add_init(parser: argparse.ArgumentParser) -> None:
    """Arguments of `khub init`."""
    parser.epilog = (
        f"example:\n  khub init fused-norm && cd fused-norm && khub build . --select '{HERE}' && pytest"
    )
    parser.add_argument(
        "name", metavar="NAME", help="the kernel's name: lower-case letters, digits and dashes"
    )
    parser.add_argument("--json", action="store_true", help="print JSON for scripts")
    parser.set_defaults(run=_init)


def create_project(name: str, parent: Path) -> Path:
    """Write the project `parent/name`; returns it. It appears whole or not at all.

    Raises:
        InvalidKernelError: not a kernel's name.
        UsageError: the folder is there already, or cannot be written.
    """
    check_kernel_name(name)
    project = parent / name
    if project.exists():
        raise UsageError(f"{project} exists already: choose another name, or remove it")
    try:
        with tempfile.TemporaryDirectory(prefix=".khub-init-", dir=parent) as staging:
            _copy(Path(staging) / name, name)
            (Path(staging) / name).rename(project)
    except OSError as error:
        raise UsageError(f"{project} cannot be written ({error.strerror}): choose another folder") from None
    return project


def _copy(project: Path, name: str) -> None:
    """The template with every file and line that names it renamed."""

    def renamed(text: str) -> str:
        return text.replace(_NAME, name).replace(python_name(_NAME), python_name(name))

    for source in sorted(_TEMPLATE.rglob("*")):
        if source.is_file() and "__pycache__" not in source.parts:
            target = project / renamed(source.relative_to(_TEMPLATE).as_posix())
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(renamed(source.read_text(encoding="utf-8")), encoding="utf-8")


def _init(args: argparse.Namespace) -> int:
    project = create_project(args.name, Path.cwd())
    files = [path.relative_to(project).as_posix() for path in sorted(project.rglob("*")) if path.is_file()]
    if args.json:
        print(json.dumps({"project": str(project), "files": files}, indent=2))
    else:
        print(f"{project}\n" + "\n".join(f"  {path}" for path in files))
        print(f"next: cd {args.name} && khub build . --select '{HERE}' && pytest")
        print(
            "      pytest needs torch; `khub build .` compiles every variant, also for CUDA and other processors"
        )
    return 0
