"""What the verbs of `khub registry trust` do."""

from __future__ import annotations

import argparse
import getpass
import json
import re
from collections.abc import Sequence
from pathlib import Path

from securesystemslib.signer import SSlibKey
from tuf.api.metadata import Root, Targets

from hub_loader.errors import UsageError
from hub_loader.trust.keys import parse_public_key, read_private
from hub_loader.trust.tuf_keys import signer_of, tuf_key

from ..errors import RequestError
from ..place import open_store
from . import ceremony, key_commands, roles
from .ceremony import Draft, Offline
from .repository import TufRepository

_KEYID = re.compile(r"[0-9a-f]{8,64}", re.ASCII)


def init(args: argparse.Namespace) -> int:
    """Draft the first root and targets."""
    repository = _repository(args)
    if repository.offline() is not None:
        raise UsageError(f"{args.data} is a TUF repository already: `khub registry trust status` shows it")
    keys = read_keys(args.keys)
    targets = roles.Keys(read_keys(args.targets_keys), args.targets_threshold or 1)
    if not args.targets_keys:
        targets = roles.Keys(keys, args.targets_threshold or args.threshold)
    lifetimes = roles.Lifetimes(
        *(int(getattr(args, f"{role}_days") * 86400) for role in ("root", "targets", "snapshot", "timestamp"))
    )
    _new_folder(args.out)
    try:
        offline = {Root.type: roles.Keys(keys, args.threshold), Targets.type: targets}
        for role, signers in offline.items():
            roles.check_threshold(role, len({key.keyid for key in signers.keys}), signers.threshold)
        online = {role: roles.Keys([repository.keys.create()]) for role in roles.ONLINE}
        root = roles.first_root(offline | online, lifetimes, roles.now())
    except ValueError as error:
        raise UsageError(str(error)) from None
    return _write(args, [root, roles.first_targets(lifetimes, roles.now())])


def delegate(args: argparse.Namespace) -> int:
    """Draft who publishes for an organization."""
    before = _offline(args)
    return _write(args, [ceremony.with_publishers(before, args.org, read_keys(args.keys), roles.now())])


def rotate(args: argparse.Namespace) -> int:
    """Draft other keys for a role; targets is drafted again too, for it needs their signatures."""
    before, add = _offline(args), read_keys(args.add)
    remove = [find_key(before, key) for key in args.remove]
    if args.role in roles.ONLINE:
        if add or remove or args.threshold:
            raise UsageError(
                f"{args.role}: the server makes its own key: leave --add, --remove and --threshold out"
            )
        remove = list(before.root.signed.roles[args.role].keyids)
        add = [_repository(args).keys.create()]
    elif not (add or remove or args.threshold):
        raise UsageError(f"{args.role}: say which keys to --add or --remove, or another --threshold")
    drafts: list[Draft] = [ceremony.with_keys(before, args.role, add, remove, args.threshold, roles.now())]
    if args.role == Targets.type:
        drafts.append(ceremony.renewed(before, Targets.type, roles.now()))
    return _write(args, drafts)


def revoke(args: argparse.Namespace) -> int:
    """Draft that a key signs nothing any more."""
    before = _offline(args)
    return _write(args, ceremony.without_key(before, find_key(before, args.key), roles.now()))


def renew(args: argparse.Namespace) -> int:
    """Draft a role again, good for longer."""
    return _write(args, [ceremony.renewed(_offline(args), args.role, roles.now())])


def sign(args: argparse.Namespace) -> int:
    """Add a signature to drafts."""
    private = read_private(args.key, lambda: getpass.getpass(f"Passphrase of {args.key}: "))
    signer, said = signer_of(private), []
    drafts = [(path, ceremony.parse_draft(_read(path), str(path))) for path in args.drafts]
    for path, draft in drafts:
        ceremony.sign_draft(draft, signer)
        path.write_bytes(ceremony.to_bytes(draft))
        said.append({"file": str(path), "role": draft.signed.type, "version": draft.signed.version})
    if args.json:
        print(json.dumps({"key": signer.public_key.keyid, "signed": said}, indent=2))
    else:
        for row in said:
            print(
                f"{row['file']}: {row['role']} version {row['version']}, signed by {signer.public_key.keyid[:12]}"
            )
    return 0


def apply(args: argparse.Namespace) -> int:
    """Take signed drafts."""
    repository = _repository(args)
    drafts = [ceremony.parse_draft(_read(path), str(path)) for path in args.drafts]
    before = repository.offline()
    said = repository.apply(drafts)
    _forget_keys(repository, before)
    versions = {draft.signed.type: draft.signed.version for draft in drafts}
    if args.json:
        print(json.dumps({"applied": versions, "refused": said}, indent=2))
        return 0
    print("; ".join(f"{role} is now version {version}" for role, version in versions.items()))
    for sentence in said:
        print(sentence)
    return 0


def status(args: argparse.Namespace) -> int:
    """Show every role."""
    found = _repository(args).status()
    if args.json:
        rows = [vars(row) | {"expires": row.expires.isoformat()} for row in found]
        print(json.dumps(rows, indent=2))
        return 0
    for row in found:
        print(
            f"{row.role:<24} version {row.version:<5} until {row.expires:%Y-%m-%d %H:%M} UTC  {row.problem or 'good'}"
        )
        print(f"{'':<24} {row.threshold} of: {' '.join(keyid[:16] for keyid in row.keys) or 'no key'}")
    if not found:
        print("No TUF repository yet: khub registry trust init --help")
    return 0


def refresh(args: argparse.Namespace) -> int:
    """Sign snapshot and timestamp again."""
    repository = _repository(args)
    if repository.offline() is None:
        raise UsageError(f"{args.data} is no TUF repository yet: begin with `khub registry trust init`")
    done = repository.refresh(force=args.force)
    print(json.dumps({"signed": done}) if args.json else f"{'Signed again' if done else 'Nothing is due'}.")
    return 0


def save_keys(args: argparse.Namespace) -> int:
    """Write the server's keys to a file."""
    return key_commands.save(args, _repository(args))


def load_keys(args: argparse.Namespace) -> int:
    """Take the server's keys from a file."""
    return key_commands.load(args, _repository(args))


def root(args: argparse.Namespace) -> int:
    """Write the current root."""
    try:
        data = _repository(args).root()
    except RequestError as error:
        raise UsageError(error.message) from None
    args.out.write_bytes(data)
    print(
        json.dumps({"root": str(args.out)})
        if args.json
        else f"{args.out}: give it to readers, by a way they trust"
    )
    return 0


def read_keys(texts: Sequence[str]) -> list[SSlibKey]:
    """Public keys: files that hold a line of `khub keygen`, or such lines. Raises UsageError."""
    return [tuf_key(parse_public_key(_line(text)).raw) for text in texts]


def find_key(offline: Offline, text: str) -> str:
    """The id that a file, a line or the first 8 or more digits of an id name. Raises UsageError."""
    if not _KEYID.fullmatch(text):
        return read_keys([text])[0].keyid
    targets = offline.targets.signed.delegations
    known = {*offline.root.signed.keys, *(targets.keys if targets else {})}
    found = [keyid for keyid in known if keyid.startswith(text)]
    if len(found) != 1:
        which = "several keys" if found else "no key"
        raise UsageError(
            f"{which} here have an id that begins with {text}: `khub registry trust status` lists them"
        )
    return found[0]


def _line(text: str) -> str:
    path = Path(text)
    return _read(path).decode("utf-8", "replace") if " " not in text and path.exists() else text


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None


def _repository(args: argparse.Namespace) -> TufRepository:
    return TufRepository(open_store(args), args.data)


def _offline(args: argparse.Namespace) -> Offline:
    found = _repository(args).offline()
    if found is None:
        raise UsageError(f"{args.data} is no TUF repository yet: begin with `khub registry trust init`")
    return found


def _new_folder(folder: Path) -> None:
    taken = [name for name in ("root.json", "targets.json") if (folder / name).exists()]
    if taken:
        raise UsageError(f"{folder / taken[0]} exists: drafts are not overwritten, name another --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder} cannot be made: {error.strerror}") from None


def _write(args: argparse.Namespace, drafts: Sequence[Draft]) -> int:
    _new_folder(args.out)
    files = {}
    for draft in drafts:
        path = args.out / f"{draft.signed.type}.json"
        path.write_bytes(ceremony.to_bytes(draft))
        files[draft.signed.type] = str(path)
    if args.json:
        print(json.dumps({"drafts": files}, indent=2))
        return 0
    paths = " ".join(files.values())
    print(
        f"Drafted {paths}. Have each holder of a key run\n  khub registry trust sign {paths} --key KEY\nand then"
    )
    print(f"  khub registry trust apply --data {args.data} {paths}")
    return 0


def _forget_keys(repository: TufRepository, before: Offline | None) -> None:
    """Remove the server's keys that the root before named and the new one does not."""
    after = repository.offline()
    if before is not None and after is not None:
        for keyid in set(before.root.signed.keys) - set(after.root.signed.keys):
            repository.keys.remove(keyid)
