"""`khub verify [LOCK]`: check every byte of the cache, or of what a lock file names."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ..cache_folder import read
from ..config import load_config
from ..errors import IntegrityError, InvalidKernelError
from ..listing import ListedVariant, parse_listed_variant
from ..locked import find_lock
from ..lockfile import LockFile
from ..manifest import METADATA_NAME, sha256_hex
from ..source_build import built_kernel
from ..store import Store
from ..trust.signers import cached_signers
from ..verify import verify_package
from ._common import add_json, print_json


@dataclass(frozen=True)
class Verdict:
    """A variant: `problem` is None if every byte is as promised; `path` None if there is nothing to read.

    `signed` says who has signed it, "" where the cache has no index.json of it.
    """

    what: str
    path: str | None
    problem: str | None
    signed: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe `khub verify`."""
    parser.epilog = (
        "examples:\n  khub verify\n  khub verify path/to/kernels.lock\n\n"
        f"Exits with {IntegrityError.exit_code} if anything is not as promised. Locked variants that are not in the "
        "cache are listed and are no error."
    )
    parser.add_argument(
        "lock",
        metavar="LOCK",
        nargs="?",
        type=Path,
        help="a lock file or its folder; the whole cache without",
    )
    add_json(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    config = load_config()
    store = Store(config.cache)
    signers = cached_signers(config)
    found = verify_cache(store) if args.lock is None else _locked(store, find_lock(args.lock))
    verdicts = [
        verdict if verdict.path is None else _with_signer(verdict, signers.get(Path(verdict.path).name, ""))
        for verdict in found
    ]
    return report(store, verdicts, args.json)


def report(store: Store, verdicts: list[Verdict], as_json: bool) -> int:
    """Print the verdicts; returns the exit code."""
    if as_json:
        print_json({"cache": str(store.root), "variants": [asdict(verdict) for verdict in verdicts]})
    else:
        for verdict in verdicts:
            state = verdict.problem or ("verified" if verdict.path else "not looked at")
            print(f"{state}: {verdict.what}")
            if verdict.signed:
                print(f"  {verdict.signed}")
        print(f"{sum(verdict.path is not None for verdict in verdicts)} variants looked at in {store.root}")
    return IntegrityError.exit_code if any(verdict.problem for verdict in verdicts) else 0


def _with_signer(verdict: Verdict, sentence: str) -> Verdict:
    return replace(verdict, signed="; ".join(filter(None, (sentence, verdict.signed))))


def verify_cache(store: Store) -> Iterator[Verdict]:
    """The verdict on each variant in the cache."""
    for folder in store.variants():
        yield Verdict(str(folder), str(folder), _problem(store, folder.name, None))
    for folder in store.builds():
        yield Verdict(str(folder), str(folder), _problem_of_build(folder))


def _problem_of_build(folder: Path) -> str | None:
    """What is wrong with a package that was built here, by its own index: nobody else knows its digest."""
    try:
        built_kernel(folder).verify().close()
    except (IntegrityError, InvalidKernelError) as error:
        return str(error)
    return None


def _locked(store: Store, lock: LockFile) -> Iterator[Verdict]:
    for kernel in lock.kernels:
        if not kernel.variants:
            what = f"{kernel.request}: the lock has its commit alone, no digest to check: run `khub lock`"
            yield Verdict(what, None, None)
        for name, variant in sorted(kernel.variants.items()):
            folder = store.variant(variant.key)
            what = f"{kernel.request} {name}"
            if folder.is_dir():
                signer = "" if kernel.signer is None else f"locked with the signer {kernel.signer[:16]}"
                yield Verdict(what, str(folder), _problem(store, variant.key, variant.manifest), signer)
            else:
                yield Verdict(f"{what} is not in the cache", None, None)


def _problem(store: Store, key: str, manifest: str | None) -> str | None:
    """What is wrong with the variant that the cache keeps under `key`."""
    folder = store.variant(key)
    cure = f"delete the folder {folder}"
    try:
        listed = _listed(store, key)
        package = verify_package(folder, indexed=listed, cure=cure)
    except (IntegrityError, InvalidKernelError) as error:
        return str(error)
    package.close()
    wanted = manifest or (key if listed is None else package.digest)
    if package.digest != wanted:
        return f"{folder / METADATA_NAME} is corrupt: expected sha256 {wanted}, got {package.digest}: {cure}"
    return None


def _listed(store: Store, key: str) -> ListedVariant | None:
    path = store.listing(key)
    data = read(path)
    if data is None:
        return None
    if sha256_hex(data) != key:
        raise IntegrityError(f"{path} is corrupt: delete it and {store.variant(key)}")
    return parse_listed_variant(data, origin=str(path))
