"""Where a registry keeps what it has: `--data`, `--database` and `--storage`, the same for every command.

Commands add the arguments with `add_arguments` and open what they need with `open_store`.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

from .blobs import BlobStore
from .clock import utc_now
from .collect import touch
from .store import Store


@dataclass(frozen=True)
class Place:
    """A data folder, and where the database and the blobs are if not in it.

    With `redirect` clients fetch large files from the storage itself, where it can sign addresses.
    """

    data: Path
    database: str | None = None
    storage: str | None = None
    redirect: bool = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--data`, `--database` and `--storage`."""
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        metavar="DIR",
        help="the registry's data folder; made if it is new",
    )
    parser.add_argument(
        "--database",
        metavar="URL",
        default=os.environ.get("KHUB_DATABASE"),
        help="postgresql://USER:PASSWORD@HOST/NAME (default: $KHUB_DATABASE, else a file in the data folder)",
    )
    parser.add_argument(
        "--storage",
        metavar="URL",
        default=os.environ.get("KHUB_STORAGE"),
        help="s3://BUCKET/PREFIX for the files' content (default: $KHUB_STORAGE, else the data folder)",
    )


def place_of(args: argparse.Namespace) -> Place:
    """What the arguments name."""
    return Place(args.data, args.database, args.storage, getattr(args, "redirect", False))


def open_store(args: argparse.Namespace) -> Store:
    """The metadata of the registry that the arguments name. Raises RegistryError, UsageError."""
    return Store(args.data, args.database)


def open_blobs(place: Place, store: Store) -> BlobStore:
    """The content of the registry whose metadata `store` is. Raises RegistryError, UsageError."""
    return BlobStore(place.data, place.storage, touch=lambda sha256: touch(store, sha256, utc_now()))
