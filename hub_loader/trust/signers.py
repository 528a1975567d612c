"""Who has signed what is in the cache, by variant: for a person who looks through it. Sends no request."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

from ..config import Config
from ..manifest import INDEX_NAME
from ..pin import Version, cached_version
from ..store import LOCKED, Store
from .gate import look


def cached_signers(config: Config) -> dict[str, str]:
    """A sentence for each variant, by key, whose index.json is in the cache; the last hub's where there are several."""
    found: dict[str, str] = {}
    for path in sorted(Store(config.cache).root.glob(f"hubs/*/*/*/*/{INDEX_NAME}")):
        hub, repo_id, commit = _place(path)
        if hub == LOCKED:  # the same from every hub
            continue
        there = replace(config, endpoint=hub, offline=True)
        version = cached_version(there, repo_id, commit)
        if isinstance(version, Version):
            sentence = look(there, version).reason
            found |= {variant.key: sentence for variant in version.variants.values()}
    return found


def _place(path: Path) -> tuple[str, str, str]:
    hub, org, name, commit = path.parts[-5:-1]
    return unquote(hub), f"{org}/{name}", commit
