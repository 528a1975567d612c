"""`khub sign INDEX|DIST ORG/NAME`: sign a built package without publishing it."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from ..errors import UsageError
from ..manifest import INDEX_NAME
from ..trust.dsse import ENVELOPE_NAME
from ..trust.judge import prove
from ..trust.sign import KEY_VARIABLE, STATEMENT_NAME, sign_index, signing_key
from ..trust.trusted import write_file
from ._common import add_json, print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe `khub sign`."""
    parser.epilog = (
        f"Writes {ENVELOPE_NAME} beside {INDEX_NAME}; `khub publish` uploads it with the package. It\n"
        "holds for the one repository that is named.\n\n"
        "examples:\n"
        "  khub sign dist/paged-attention org/paged-attention --key release.key\n"
        f'  {KEY_VARIABLE}="$SECRET" khub sign dist/paged-attention org/paged-attention    in CI: the key\'s PEM text'
    )
    parser.add_argument(
        "package", metavar="INDEX|DIST", type=Path, help=f"a built package, or its {INDEX_NAME}"
    )
    parser.add_argument("repo_id", metavar="ORG/NAME", help="the repository that it will be published in")
    parser.add_argument(
        "--key", type=Path, metavar="FILE", help=f"the private key; {KEY_VARIABLE} when left out"
    )
    add_json(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    path = args.package / INDEX_NAME if args.package.is_dir() else args.package
    if not path.is_file():
        raise UsageError(f"{path} does not exist: name a folder that `khub build` wrote")
    private = signing_key(args.key)
    if private is None:
        raise UsageError(f"there is no key to sign with: pass --key FILE, or set {KEY_VARIABLE}")
    statement = path.with_name(STATEMENT_NAME)
    built = statement.read_bytes() if statement.is_file() else None
    out = path.with_name(ENVELOPE_NAME)
    envelope = sign_index(path.read_bytes(), args.repo_id, private, signed=int(time.time()), built=built)
    write_file(out, envelope, 0o644)
    proof = prove(envelope, origin=str(out))
    if args.json:
        print_json(
            {"envelope": str(out), "repo_id": proof.repo_id, "version": proof.version, "key": proof.key_id}
        )
    else:
        print(f"{proof.repo_id} version {proof.version}: signed with the key {proof.key_id[:16]}\n{out}")
    return 0
