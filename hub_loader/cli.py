"""`khub`: one command, nouns as users say them.

Commands that belong to the loader live beside this file; the others are found through the entry-point
group `khub.commands`, so that a bare install, which lacks their dependencies, says what to install.
Every command exits 0 on success and with the error's own code otherwise (see `errors.py`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Collection, Sequence
from importlib import import_module
from importlib.metadata import entry_points, version

from .errors import KernelHubError, MissingExtraError

AddArguments = Callable[[argparse.ArgumentParser], None]

# name -> (one line of help, extra that brings its dependencies; None: always there)
COMMANDS: dict[str, tuple[str, str | None]] = {
    "env": ("show what the resolver sees on this machine", None),
    "explain": ("each variant of a kernel: chosen, or why not", None),
    "get": ("fetch the fitting variant into the cache and verify it", None),
    "list": ("the versions of a kernel", None),
    "lock": ("pin a project's kernels, to the byte, in kernels.lock", None),
    "sync": ("bring locked kernels into a cache, for containers and hosts without a network", None),
    "verify": ("check every byte of the cache, or of what a lock file names", None),
    "keygen": ("make a key to sign packages with", None),
    "sign": ("sign a built package as a version of a repository", None),
    "trust": ("add, list and remove the keys whose signatures count here", None),
    "cache": ("list or clear what is in the cache", None),
    "bench": ("run a benchmark of a source checkout: kernels, loader, build, registry, engines", None),
    "completion": ("print a script by which bash, zsh or fish completes commands and options", None),
    "init": ("write a new kernel project that builds and passes its test", "build"),
    "build": ("compile kernel source into a package, one variant for each selected cell", "build"),
    "matrix": ("list the cells of the build matrix", "build"),
    "audit": ("check built binaries against what their variant names promise", "build"),
    "publish": ("upload a built package to a hub", "build"),
    "yank": ("take a published version back, signed", "build"),
    "resign": ("sign an organization's TUF targets again: new key, or soon expired", "build"),
    "serve": ("run a hub for kernels", "registry"),
    "registry": ("manage a hub: accounts, tokens, limits, the audit log", "registry"),
    "engine": ("generate text with kernels swapped in by name", "engine"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `khub`. Returns the exit code; prints one line to stderr for an expected error."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    wanted = next((a for a in arguments if not a.startswith("-")), None)
    try:
        args = make_parser((wanted,)).parse_args(arguments)  # imports only the command that runs
        return int(args.run(args))
    except KernelHubError as error:
        print(f"khub: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("khub: interrupted; nothing was left half-written", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output went away, as `head` does
        return 141


def make_parser(described: Collection[str | None], *, complete: bool = True) -> argparse.ArgumentParser:
    """The command line, with the arguments of the commands `described`.

    Raises:
        MissingExtraError: one of them is not installed; without `complete` it stays as it is.
    """
    parser = argparse.ArgumentParser(
        prog="khub",
        description="Precompiled kernels: build them, serve them, load them verified, run them.",
        epilog="`khub COMMAND --help` shows a command's arguments and examples.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show this program's version and exit")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, (summary, extra) in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name in described:
            try:
                _add_arguments(name, extra)(command)
            except MissingExtraError:
                if complete:
                    raise
    return parser


class _Version(argparse.Action):
    """argparse's own action wants the version beforehand; every command would read it from the disk."""

    def __call__(self, parser: argparse.ArgumentParser, *given: object) -> None:
        print(f"khub {version('kernel-hub')}")
        parser.exit()


def _add_arguments(name: str, extra: str | None) -> AddArguments:
    if extra is None:
        return import_module(f".commands.{name}", __package__).add_arguments  # type: ignore[no-any-return]
    for entry_point in entry_points(group="khub.commands", name=name):
        try:
            return entry_point.load()  # type: ignore[no-any-return]
        except ModuleNotFoundError as error:
            raise MissingExtraError(
                f"`khub {name}` needs {error.name!r}, which is not installed: "
                f"pip install 'kernel-hub[{extra}]'"
            ) from None
    raise MissingExtraError(
        f"`khub {name}` is not registered: reinstall with pip install 'kernel-hub[{extra}]'"
    )
