"""Fetch a file whole: resumed where it was interrupted, shown in bytes, checked against its pin."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from pathlib import Path
from urllib.parse import unquote, urlsplit

import httpx
from tqdm import tqdm

from hub_loader.errors import ToolchainError

from .pins import Pins
from .traffic import Count, uncounted

_CHUNK = 1 << 20
_ATTEMPTS = 4


def download(url: str, name: str, folder: Path, pins: Pins, count: Count = uncounted) -> Path:
    """Fetch `url` (http, https or file) to `folder/name`; a partial file of an earlier try is continued.

    `count` is told what came over the network.

    Raises:
        ToolchainError: unreachable, or not the file that is locked; a wrong file is not kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, partial = folder / name, folder / f".{name}.part"
    with (folder / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process that fetches the same file
        if not path.is_file():
            parts = urlsplit(url)
            if parts.scheme == "file":
                shutil.copyfile(unquote(parts.path), partial)
            else:
                _continue(url, name, partial, count)
            with partial.open("rb+") as file:
                os.fsync(file.fileno())
            partial.replace(path)
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    try:
        pins.check(name, digest.hexdigest())
    except ToolchainError:
        path.unlink()
        raise
    return path


def _continue(url: str, name: str, partial: Path, count: Count) -> None:
    """Append to `partial` what is missing of it, trying again where the connection breaks."""
    reason = ""
    with (
        httpx.Client(follow_redirects=True, timeout=60) as client,
        tqdm(desc=name, unit="B", unit_scale=True, disable=None, leave=False) as bar,
    ):
        for _ in range(_ATTEMPTS):
            try:
                _append(client, url, partial, bar, count)
                return
            except httpx.TransportError as error:
                reason = str(error) or type(error).__name__
            except httpx.HTTPStatusError as error:
                reason = f"HTTP {error.response.status_code}"
                if error.response.status_code < 500:
                    break
    raise ToolchainError(f"{url}: {reason}; check the network or the package index")


def _append(client: httpx.Client, url: str, partial: Path, bar: tqdm[None], count: Count) -> None:
    have = partial.stat().st_size if partial.exists() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with client.stream("GET", url, headers=headers) as response:
        if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # nothing is missing; the digest decides whether that is so
        response.raise_for_status()
        resumed = response.status_code == httpx.codes.PARTIAL_CONTENT
        have = have if resumed else 0
        bar.total = have + int(response.headers.get("Content-Length", 0)) or None
        bar.update(have - bar.n)
        with partial.open("ab" if resumed else "wb") as file:
            for chunk in response.iter_raw():  # as it comes, so that all of it is kept if it breaks off
                file.write(chunk)
                bar.update(len(chunk))
                count(len(chunk))
