"""`khub registry trust save-keys | load-keys`: the server's own keys, apart from every other backup.

Who has them and the line to a reader can keep that reader on an old list; who has a backup can not. Backups are
copied to more places and read by more people than a server's secrets are, and a key that is lost is replaced by one
ceremony. So `khub registry backup` never has them in it.
"""

from __future__ import annotations

import argparse
import json
import os

from hub_loader.errors import UsageError
from hub_loader.trust.sign import PASSPHRASE_VARIABLE, ask_passphrase

from .repository import TufRepository
from .roles import ONLINE


def online_keys(repository: TufRepository) -> dict[str, list[str]]:
    """The ids of the keys that the current root names for snapshot and timestamp; none before the first ceremony."""
    offline = repository.offline()
    if offline is None:
        return {}
    return {role: list(offline.root.signed.roles[role].keyids) for role in ONLINE}


def lacking_keys(repository: TufRepository) -> str | None:
    """What an operator has to do where the server's keys are not here, in a sentence; None where they are."""
    roles = repository.keys.lacking(online_keys(repository))
    if not roles:
        return None
    return (
        f"The key that signs {' and '.join(roles)} is not here: `khub registry trust load-keys FILE` brings back what "
        "`save-keys` wrote; without it, `khub registry trust rotate` each of them."
    )


def save(args: argparse.Namespace, repository: TufRepository) -> int:
    """Write the keys to a file."""
    needed = _needed(args, repository)
    saved = repository.keys.save(needed, args.file, os.environ.get(PASSPHRASE_VARIABLE) or None)
    sealed = "" if os.environ.get(PASSPHRASE_VARIABLE) else ", not encrypted"
    return _say(args, saved, f"{args.file}: {len(saved)} keys{sealed}. Keep it apart from backups.")


def load(args: argparse.Namespace, repository: TufRepository) -> int:
    """Take keys back from such a file."""
    wanted = [keyid for keyids in _needed(args, repository).values() for keyid in keyids]
    loaded = repository.keys.load(wanted, args.file, lambda: ask_passphrase(str(args.file), os.environ))
    return _say(
        args, loaded, f"{len(loaded)} keys are here now; a running server signs with them at its next turn."
    )


def _needed(args: argparse.Namespace, repository: TufRepository) -> dict[str, list[str]]:
    needed = online_keys(repository)
    if not needed:
        raise UsageError(f"{args.data} is no TUF repository yet: begin with `khub registry trust init`")
    return needed


def _say(args: argparse.Namespace, keyids: list[str], sentence: str) -> int:
    print(json.dumps({"keys": keyids}) if args.json else sentence)
    return 0
