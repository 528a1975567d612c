"""Hubs whose TUF root the user gave: what they list now, or listed when they were last asked.

Beside the trust file, `<its name without .json>.tuf/<hub>/` has the root that was given (root.json), the metadata that
was believed last (metadata/), by which an older state of the hub is noticed, and what followed from it
(namespaces/<org>.json). What holds, and for how long:

    asked within KHUB_REFRESH seconds      what it said
    else                                   it is asked; what breaks a rule of TUF is refused
    cannot be reached                      what it said last, until that expires, with a warning
    HF_HUB_OFFLINE                         what it said last, expired or not, with a warning that says how old it is
"""

from __future__ import annotations

import logging
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, unquote

from ..config import Config
from ..errors import DownloadError, MissingExtraError, OfflineError, SignatureError, UsageError
from ..locks import exclusive
from ..manifest import sha256_hex
from ..record import Record
from .evidence import TufTarget
from .trusted import trust_path, write_file
from .tuf_names import target_of
from .tuf_record import Namespace, read_namespace

logger = logging.getLogger("hub_loader")
_T = TypeVar("_T")
_said: set[tuple[str, str]] = set()


class GivenRoot(Record):
    """A hub, and the root that the user gave for it."""

    hub: str
    path: Path
    data: bytes


def root_of(hub: str) -> GivenRoot | None:
    """The root given for a hub; None for a hub without one.

    Raises:
        UsageError: it cannot be read, or anybody may write it.
    """
    path = _folder(hub) / "root.json"
    try:
        with path.open("rb") as file:
            mode, data = os.fstat(file.fileno()).st_mode, file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(f"the root {path} cannot be read ({error.strerror}): set KHUB_TRUST_FILE") from None
    if stat.S_IMODE(mode) & stat.S_IWOTH:
        raise UsageError(
            f"the root {path} may be written by anybody: give it again with `khub trust add --root`"
        )
    return GivenRoot(hub, path, data)


def roots() -> list[GivenRoot]:
    """Every root that was given, by hub."""
    hubs = [unquote(path.parent.name) for path in sorted(_folder("x").parent.glob("*/root.json"))]
    return [given for hub in hubs if (given := root_of(hub)) is not None]


def add_root(hub: str, data: bytes, origin: str) -> int:
    """Trust a hub from this root on; returns its version. What was believed from another root is forgotten.

    Raises:
        SignatureError: it is no root, or not signed as it says.
        UsageError: it cannot be kept.
        MissingExtraError
    """
    _require_tuf(hub)
    from .tuf_updater import check_root

    version, folder = check_root(data, origin), _folder(hub)
    path = folder / "root.json"
    if not path.exists() or path.read_bytes() != data or path.stat().st_mode & stat.S_IWOTH:
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            for name in ("metadata", "namespaces"):
                if (folder / name).exists():
                    shutil.rmtree(folder / name)
            write_file(path, data, 0o644)
        except OSError as error:
            raise _unwritable(folder, error) from None
    return version


def remove_root(hub: str) -> None:
    """Ask no TUF metadata of a hub any more. Raises UsageError: no root was given for it."""
    given = root_of(hub)
    if given is None:
        raise UsageError(f"no root was given for {hub}: `khub trust list` shows those that were")
    try:
        given.path.unlink()
        shutil.rmtree(given.path.parent)
    except OSError as error:
        raise _unwritable(given.path.parent, error) from None


def target(config: Config, repo_id: str, version: int, *, fresh: bool = False) -> TufTarget | None:
    """What the hub's TUF metadata says of a version; None if it does not list it. Raises as `namespace`."""
    found = namespace(config, repo_id.partition("/")[0], fresh=fresh)
    return None if found is None else found.target(target_of(repo_id, version))


def namespace(config: Config, org: str, *, fresh: bool = False) -> Namespace | None:
    """What the hub lists of an organization; None for a hub without a given root.

    Raises:
        SignatureError: what the hub shows breaks a rule of TUF, has expired, or a publisher's key was revoked.
        DownloadError: the hub cannot be reached, and what it said last has expired or there is nothing.
        OfflineError: offline, and it was never asked.
        MissingExtraError: the hub has to be asked, and `tuf` is not installed.
    """
    given = root_of(config.endpoint)
    if given is None:
        return None
    path = given.path.parent / "namespaces" / f"{org}.json"
    known = _known(path, given)
    if config.offline:
        return _offline(config, org, known)
    if known is None or fresh or not _holds(config, known):
        try:
            known = _ask(config, given, path, org, known, fresh)
        except DownloadError as error:
            known = _unreachable(org, known, error)
    if known.refused is not None:
        raise SignatureError(f"{org}: {known.refused}: ask its publisher to sign again")
    if known.expires <= time.time():
        raise SignatureError(
            f"{org}: what {config.endpoint} said of it has expired: load it once while online"
        )
    return known


def known_namespace(hub: str, org: str) -> Namespace | None:
    """What a hub listed of an organization when this machine asked last, however old; sends no request.

    None without a root for the hub, or where it was never asked. Raises UsageError: what is kept is damaged.
    """
    given = root_of(hub)
    return None if given is None else _known(given.path.parent / "namespaces" / f"{org}.json", given)


def with_metadata(given: GivenRoot, use: Callable[[Path], _T]) -> _T:
    """What `use` returns of the hub's metadata folder, which no other process changes meanwhile.

    Where the folder cannot be locked, as on a read-only disk, it is a copy that is gone afterwards.
    """
    folder = given.path.parent / "metadata"
    try:
        with suppress(OSError):
            folder.mkdir(mode=0o700, exist_ok=True)
        with exclusive(folder.with_suffix(".lock")) as mine:
            if mine:
                return use(folder)
        with tempfile.TemporaryDirectory(prefix="khub-tuf-") as scratch:
            copy = Path(scratch) / "metadata"
            if folder.exists():
                shutil.copytree(folder, copy, symlinks=True)
            return use(copy)
    except OSError as error:
        raise _unwritable(folder, error) from None


def _ask(
    config: Config, given: GivenRoot, path: Path, org: str, before: Namespace | None, fresh: bool
) -> Namespace:
    _require_tuf(config.endpoint)
    from .tuf_updater import fetch_namespace

    def ask(folder: Path) -> Namespace:
        known = _known(path, given)
        if known is not None and known != before and not fresh:  # another process has asked meanwhile
            return known
        found = fetch_namespace(config, folder, given.data, org)
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            write_file(path, found.to_json(), 0o600)
        except OSError as error:
            _say_once(
                str(path), f"{path} cannot be written ({error.strerror}): the hub is asked at every load"
            )
        return found

    return with_metadata(given, ask)


def _holds(config: Config, known: Namespace) -> bool:
    """Whether the hub need not be asked again; a clock set back asks."""
    now = time.time()
    return 0 <= now - known.as_of < config.refresh and now < known.expires and known.refused is None


def _known(path: Path, given: GivenRoot) -> Namespace | None:
    known = read_namespace(path)
    return known if known is not None and known.root == sha256_hex(given.data) else None


def _offline(config: Config, org: str, known: Namespace | None) -> Namespace:
    if known is None:
        raise OfflineError(
            f"{org}: {config.endpoint} has a root given here, its TUF metadata was never asked for, and HF_HUB_OFFLINE "
            "is set: unset it once"
        )
    if known.refused is not None:
        raise SignatureError(f"{org}: {known.refused}: ask its publisher to sign again")
    if known.expires <= time.time():
        _say_once(
            org,
            f"{org}: what {config.endpoint} said of it is {age(known)} old and has expired; what was listed then may "
            "still be loaded, because HF_HUB_OFFLINE is set",
        )
    return known


def _unreachable(org: str, known: Namespace | None, error: DownloadError) -> Namespace:
    if known is None:
        raise error
    if known.refused is None and known.expires <= time.time():
        raise SignatureError(
            f"{error}; what it said of {org} last is {age(known)} old and has expired: bring the hub back, or set "
            "HF_HUB_OFFLINE=1 to go on with what was listed then"
        )
    _say_once(org, f"{error}; using what it said {age(known)} ago")
    return known


def age(known: Namespace) -> str:
    """How long ago the hub said it, in words."""
    seconds = max(0, int(time.time() - known.as_of))
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length} {unit}"
    return f"{seconds} seconds"


def _say_once(about: str, sentence: str) -> None:
    if (about, sentence) not in _said:
        _said.add((about, sentence))
        logger.warning("%s", sentence)


def _folder(hub: str) -> Path:
    trust = trust_path()
    return trust.with_name(f"{trust.stem}.tuf") / quote(hub, safe="")


def _require_tuf(hub: str) -> None:
    try:
        import tuf  # noqa: F401
    except ModuleNotFoundError:
        raise MissingExtraError(
            f"{hub} has a TUF root given here, which cannot be checked without `tuf`: pip install 'kernel-hub[trust]'"
        ) from None


def _unwritable(path: Path, error: OSError) -> UsageError:
    return UsageError(f"{path} cannot be used ({error}): set KHUB_TRUST_FILE to a file in a folder of yours")
