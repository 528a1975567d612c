"""Sign test packages with a key of this run, and trust it, as `khub sign` and `khub trust add` do."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from hub_loader.trust.dsse import ENVELOPE_NAME
from hub_loader.trust.keys import generate, public_of
from hub_loader.trust.sign import sign_index
from hub_loader.trust.trusted import KeyEntry, change_trust

KEY = generate()


def sign_package(folder: Path, repo_id: str, key: Any = KEY, **options: Any) -> Path:
    """Write index.json.dsse beside the index.json in `folder`; `options` are those of `sign_index`."""
    index = (folder / "index.json").read_bytes()
    options.setdefault("signed", int(time.time()))
    path = folder / ENVELOPE_NAME
    path.write_bytes(sign_index(index, repo_id, key, **options))
    return path


def trust_key(endpoint: str, org: str, key: Any = KEY, comment: str = "tests") -> None:
    """Add the key to the trust file that KHUB_TRUST_FILE names."""
    change_trust(lambda trust: trust.add(KeyEntry(endpoint, org, public_of(key, comment))))


def private_pem() -> str:
    """The key as KHUB_SIGNING_KEY holds it."""
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
