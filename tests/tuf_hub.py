"""A real registry that is a TUF repository: its ceremonies, its publishers, and keys for whoever steals them."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi
from khub_process import Hub
from tuf.api.metadata import Metadata

from build_matrix.targets import Publisher
from hub_loader.cli import main
from hub_loader.config import Config
from hub_loader.trust.keys import generate, public_line, public_of, read_private, write_private
from hub_loader.trust.tuf_client import add_root, root_of


def new_key(folder: Path, name: str) -> Path:
    """A private key file; its public line lies beside it, with .pub after its name."""
    key, path = generate(), folder / f"{name}.key"
    write_private(path, key, None)
    path.with_name(f"{path.name}.pub").write_text(public_line(public_of(key, name)) + "\n")
    return path


@dataclass
class TufHub:
    """A registry whose root is held by two of three people, who also delegate to publishers."""

    hub: Hub
    folder: Path
    people: list[Path] = field(default_factory=list)
    _count: Any = field(default_factory=itertools.count)
    _tokens: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """The registry's address."""
        return self.hub.url

    def found(self, *options: object) -> None:
        """The first ceremony."""
        self.people = [new_key(self.folder, name) for name in ("alice", "bob", "carol")]
        keys = [f"{path}.pub" for path in self.people]
        self.ceremony("init", "--keys", *keys, "--threshold", 2, *options)

    def ceremony(self, *verb: object, signers: list[Path] | None = None) -> None:
        """Draft, sign by `signers` (alice and bob), apply."""
        out = self.folder / f"ceremony-{next(self._count)}"
        self.trust(*verb, "--out", out)
        drafts = sorted(out.iterdir())
        for key in self.people[:2] if signers is None else signers:
            assert main(["registry", "trust", "sign", *map(str, drafts), "--key", str(key)]) == 0
        self.trust("apply", *drafts)

    def trust(self, verb: object, *arguments: object, code: int = 0) -> None:
        """`khub registry trust VERB --data …`."""
        assert main(["registry", "trust", *map(str, (verb, "--data", self.hub.data, *arguments))]) == code

    def delegate(self, org: str, *keys: Path) -> None:
        """Let these publish for `org`, and nobody else."""
        self.ceremony("delegate", "--org", org, "--keys", *(f"{key}.pub" for key in keys))

    def root(self) -> bytes:
        """The current root."""
        path = self.folder / f"root-{next(self._count)}.json"
        self.trust("root", "--out", path)
        return path.read_bytes()

    def token(self, org: str) -> str:
        """A token that may write to `org`."""
        if org not in self._tokens:
            self._tokens[org] = self.hub.token(org)
        return self._tokens[org]

    def config(self, org: str | None = None, url: str | None = None) -> Config:
        """What a publisher of `org`, or a reader, runs under."""
        token = self.token(org) if org else None
        return Config(url or self.url, self.folder / "cache", offline=False, token=token)

    def commit(self, repo_id: str, version: int, files: dict[str, bytes]) -> str:
        """Upload files to a version's branch with the stock client; returns the commit."""
        api = HfApi(endpoint=self.url, token=self.token(repo_id.partition("/")[0]))
        api.create_repo(repo_id, repo_type="kernel", exist_ok=True)
        api.create_branch(repo_id, repo_type="kernel", branch=f"v{version}", exist_ok=True)
        operations = [CommitOperationAdd(path, data) for path, data in files.items()]
        return api.create_commit(
            repo_id, operations, commit_message="Publish", repo_type="kernel", revision=f"v{version}"
        ).oid

    def publisher(self, org: str, key: Path) -> Publisher:
        """A publisher who was given the hub's root."""
        if root_of(self.url) is None:
            add_root(self.url, self.root(), "root.json")
        given = root_of(self.url)
        assert given is not None
        return Publisher(self.config(org), given, org, read_private(key, lambda: ""))

    def publish(self, repo_id: str, key: Path, index: bytes, version: int = 1) -> str:
        """Commit an index.json and make it the version's target; returns the commit."""
        commit = self.commit(repo_id, version, {"index.json": index})
        assert self.publisher(repo_id.partition("/")[0], key).publish(repo_id, version, commit, index)
        return commit


def index_of(version: int, text: str = "") -> bytes:
    """An index.json that lists nothing."""
    return json.dumps({"schema": 1, "name": "demo", "version": version, "variants": {}, "x": text}).encode()


def signed(data: bytes) -> dict[str, Any]:
    """What a metadata file says."""
    return Metadata[Any].from_bytes(data).signed.to_dict()
