"""Our TUF client behind the command line that the tuf-conformance suite drives; see docs/tuf.md."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from urllib.parse import urlsplit

from tuf.api.exceptions import DownloadError, RepositoryError
from tuf.ngclient import Updater

from hub_loader.config import Config
from hub_loader.errors import KernelHubError
from hub_loader.trust.tuf_updater import updater


def main() -> int:
    """Run one command of the suite's protocol."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--metadata-dir", type=Path, required=True)
    parser.add_argument("--metadata-url", default="http://127.0.0.1:1/")
    parser.add_argument("--target-name", action="append", default=[])
    parser.add_argument("--target-dir", type=Path)
    parser.add_argument("--target-base-url")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("init").add_argument("trusted_root", type=Path)
    commands.add_parser("refresh")
    commands.add_parser("download")
    args = parser.parse_args()
    given = (
        args.metadata_dir / "given-root"
    )  # what the user gave; everything else in the folder is the client's
    try:
        if args.command == "init":
            given.write_bytes(args.trusted_root.read_bytes())
        client = _client(args, given.read_bytes())
        if args.command == "refresh":
            client.refresh()
        for name in args.target_name:
            _download(client, name, args.target_dir, args.target_base_url)
    except (RepositoryError, DownloadError, KernelHubError, LookupError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


def _client(args: argparse.Namespace, root: bytes) -> Updater:
    url = urlsplit(args.metadata_url)
    config = Config(f"{url.scheme}://{url.netloc}", args.metadata_dir / "cache", offline=False, token=None)
    return updater(config, args.metadata_url, args.metadata_dir, root, None)


def _download(client: Updater, name: str, folder: Path, base: str) -> None:
    client.target_dir = str(folder)
    found = client.get_targetinfo(name)
    if found is None:
        raise LookupError(f"{name} is no target")
    if client.find_cached_target(found) is None:
        client.download_target(found, target_base_url=base)


if __name__ == "__main__":
    sys.exit(main())
