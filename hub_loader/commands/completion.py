"""`khub completion SHELL`: a script by which a shell completes commands, options and paths."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import MissingExtraError

_SHELLS = ("bash", "zsh", "fish")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe `khub completion`."""
    parser.epilog = (
        "examples, each for one user, from the next shell on:\n"
        "  khub completion bash > ~/.local/share/bash-completion/completions/khub\n"
        "  khub completion zsh > ~/.zfunc/_khub    (with fpath+=~/.zfunc before compinit in ~/.zshrc)\n"
        "  khub completion fish > ~/.config/fish/completions/khub.fish\n\n"
        "The script knows the commands of the extras that are installed: make it again after installing another."
    )
    parser.add_argument("shell", choices=_SHELLS, help="the shell that is to complete")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    try:
        import shtab
    except ModuleNotFoundError:
        raise MissingExtraError(
            "`khub completion` needs 'shtab', which is not installed: pip install 'kernel-hub[completion]'"
        ) from None
    from ..cli import COMMANDS, make_parser

    parser = make_parser(COMMANDS, complete=False)
    for action in _actions(parser):
        if action.type is Path:
            action.complete = shtab.FILE
    print(shtab.complete(parser, shell=args.shell))
    return 0


def _actions(parser: argparse.ArgumentParser) -> Iterator[Any]:
    """Every argument of a parser and of those below it."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from _actions(below)
