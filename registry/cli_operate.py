"""`khub registry gc | backup | restore | fsck`."""

from __future__ import annotations

import argparse
import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

from hub_loader.errors import IntegrityError, RegistryError

from .accounts.audit import prune, shell
from .accounts.command_parts import Parsers, duration, verb
from .clock import utc_now
from .place import open_blobs, open_store, place_of


def add_operate(nouns: Parsers, common: argparse.ArgumentParser) -> None:
    """Add the commands; `common` has the arguments that say where the registry is."""
    gc = verb(nouns, common, "gc", _gc, "delete content that nothing refers to", description=_GC)
    gc.add_argument(
        "--grace",
        type=float,
        default=24.0,
        metavar="HOURS",
        help="for how long it must have been so (default: %(default)s; 0 only while nothing is uploaded)",
    )
    gc.add_argument(
        "--audit-older-than",
        type=duration,
        metavar="TIME",
        help="also remove entries of the audit log that are older than 400d, 52w (default: none)",
    )
    backup = verb(
        nouns,
        common,
        "backup",
        _backup,
        "write everything to one file, while the registry is in use",
        description=_BACKUP,
    )
    backup.add_argument("file", type=Path, metavar="FILE", help="a new file")
    restore = verb(
        nouns, common, "restore", _restore, "fill an empty registry from a backup", description=_RESTORE
    )
    restore.add_argument("file", type=Path, metavar="FILE", help="what `khub registry backup` wrote")
    fsck = verb(
        nouns, common, "fsck", _fsck, "check every reference, commit, tree and byte", description=_FSCK
    )
    fsck.add_argument("--repair", action="store_true", help="put damaged content aside, remove leftovers")


_GC = """\
Delete content that no commit refers to: uploads that were not followed by a commit, and what only deleted
repositories had. It is marked first, and deleted by a later run if it was unused for the grace period in
between. A server does this once a day by itself. The audit log is kept for ever unless --audit-older-than says
otherwise, and then says what was removed.

examples:
  khub registry gc --data hub
  khub registry gc --data hub --audit-older-than 400d"""
_BACKUP = """\
Write a backup to FILE, which appears when it is complete. Servers may go on reading and writing. The backup
has hashes of tokens: keep it as safe as the registry. The keys that sign for the server are not in it, so that who
reads a backup cannot sign: `khub registry trust save-keys` writes them to a file of their own.

example:
  khub registry backup --data hub backup.tar"""
_RESTORE = """\
Fill an empty registry from a backup, whatever database and storage it was made of; every byte is checked on
the way. No server may run on the data folder meanwhile.

examples:
  khub registry restore --data new-hub backup.tar
  khub registry restore --data spool --database postgresql://khub@db/hub --storage s3://bucket/hub backup.tar"""
_FSCK = """\
Check references, commits and trees, and hash all content. Exits with 13 if something is wrong. With --repair
damaged content is put aside, so that uploading the same file again brings it back.

example:
  khub registry fsck --data hub"""


def _gc(args: argparse.Namespace) -> int:
    from .collect import collect

    store = open_store(args)
    done = collect(store, open_blobs(place_of(args), store), utc_now(), timedelta(hours=args.grace))
    entries = 0
    if args.audit_older_than is not None:
        with store.write() as session:
            entries = prune(session, shell(), utc_now() - args.audit_older_than)
    store.close()
    if args.json:
        print(json.dumps(asdict(done) | {"audit_entries": entries}))
    else:
        print(f"Deleted {done.deleted} blobs ({_size(done.deleted_bytes)}); ", end="")
        print(f"{done.waiting} ({_size(done.waiting_bytes)}) are unused and wait for {args.grace:g} hours.")
        if args.audit_older_than is not None:
            print(f"Removed {entries} entries of the audit log.")
    return 0


def _backup(args: argparse.Namespace) -> int:
    from .backup import backup

    store = open_store(args)
    saved = backup(store, open_blobs(place_of(args), store), args.file, utc_now())
    store.close()
    if args.json:
        print(json.dumps(asdict(saved)))
    else:
        print(f"{args.file}: {saved.rows} rows, {saved.blobs} blobs ({_size(saved.bytes)}).")
    if saved.missing:
        raise IntegrityError(
            f"{args.file} was written without {len(saved.missing)} blobs that are missing or damaged, the first "
            f"{saved.missing[0]}: `khub registry fsck` says what uses them."
        )
    return 0


def _restore(args: argparse.Namespace) -> int:
    from .backup import restore

    args.data.mkdir(parents=True, exist_ok=True)
    with _alone(args.data):
        saved = restore(place_of(args), args.file)
    lacking = _lacking_keys(args)
    if args.json:
        print(json.dumps(asdict(saved) | {"keys": lacking}))
    else:
        print(f"Restored {saved.rows} rows and {saved.blobs} blobs ({_size(saved.bytes)}) into {args.data}.")
        if lacking:
            print(lacking)
    return 0


def _lacking_keys(args: argparse.Namespace) -> str | None:
    from .tuf.key_commands import lacking_keys
    from .tuf.repository import TufRepository

    store = open_store(args)
    try:
        return lacking_keys(TufRepository(store, args.data))
    finally:
        store.close()


def _fsck(args: argparse.Namespace) -> int:
    from .fsck import fsck

    store = open_store(args)
    blobs = open_blobs(place_of(args), store)
    checked = fsck(store, blobs, repair=args.repair)
    store.close()
    if args.repair:
        blobs.clear_temporary()
    if args.json:
        print(json.dumps(asdict(checked)))
    else:
        for problem in checked.problems:
            print(f"{problem.where}: {problem.what}" + (f" ({problem.repaired})" if problem.repaired else ""))
        print(f"{checked.repos} repositories, {checked.commits} commits, ", end="")
        print(f"{checked.blobs} blobs ({_size(checked.bytes)}): {len(checked.problems)} problems.")
    if checked.problems:
        cure = "" if args.repair else " `--repair` puts damaged content aside."
        raise IntegrityError(f"The registry has {len(checked.problems)} problems.{cure}")
    return 0


@contextmanager
def _alone(data: Path) -> Iterator[None]:
    """Hold the lock that servers share. Raises RegistryError if one runs."""
    with (data / "serve.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RegistryError(f"{data} is being served: stop the server, or name another folder.") from None
        yield


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
