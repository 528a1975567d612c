"""Packages with sigstore bundles, as the public Hub has them: identities instead of keys, checked without a network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from packages import Package, python_package
from sigstore_world import SigstoreWorld
from static_hub import StaticHub

import hub_loader
from hub_loader import PolicyError, get_kernel
from hub_loader.cli import main
from hub_loader.errors import MissingExtraError, SignatureError, UsageError

WORKFLOW = "https://github.com/org/kernels/.github/workflows/build.yaml@refs/heads/main"
ISSUER = "https://token.actions.githubusercontent.com"
LOAD = "import hub_loader; print(hub_loader.get_kernel('org/demo', version=1).value())"
NAME = "metadata.json.sigstore"


@pytest.fixture(scope="module")
def world() -> SigstoreWorld:
    return SigstoreWorld()


@pytest.fixture
def package(hub: StaticHub, tmp_path: Path) -> Package:
    """A package of org/demo without index.json, published and not signed yet."""
    made = python_package(tmp_path / "source", value=7, has_index=False)
    hub.publish("org/demo", "v1", made.folder)
    return made


@pytest.fixture
def root(world: SigstoreWorld, tmp_path: Path) -> Path:
    path = tmp_path / "trusted_root.json"
    path.write_bytes(world.trusted_root())
    return path


def sign(package: Package, world: SigstoreWorld, identity: str = WORKFLOW, issuer: str = ISSUER) -> Path:
    (folder,) = package.variants.values()
    path = folder / NAME
    path.write_bytes(world.bundle((folder / "metadata.json").read_bytes(), identity, issuer))
    return path


def trust(root: Path, identity: str = WORKFLOW, issuer: str = ISSUER) -> None:
    options = ["--identity", identity, "--issuer", issuer, "--trusted-root", str(root)]
    assert main(["trust", "add", "org", *options]) == 0


def refused(hub: StaticHub, error: type[Exception], says: str) -> None:
    hub.clear()
    with pytest.raises(error, match=says):
        get_kernel("org/demo", version=1)
    assert not any(path.endswith(".py") for path in hub.requests)


def test_bundle_of_a_trusted_identity_then_loads_and_again_without_the_library_or_a_request(
    hub: StaticHub, package: Package, world: SigstoreWorld, root: Path, tmp_path: Path
) -> None:
    sign(package, world)
    with pytest.raises(PolicyError, match="it is not signed"):
        get_kernel("org/demo", version=1)
    trust(root)
    assert hub_loader.has_kernel("org/demo", version=1)
    assert get_kernel("org/demo", version=1).value() == 7
    hub.clear()
    code = "import sys; sys.modules['sigstore'] = sys.modules['cryptography'] = None\n" + LOAD
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, hub.requests) == ("7\n", []), done.stderr
    assert main(["trust", "remove", "org", WORKFLOW]) == 0
    environ = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", LOAD], env=environ, capture_output=True, text=True, timeout=60
    )
    assert "PolicyError" in done.stderr


@pytest.mark.parametrize(
    ("identity", "issuer"), [(WORKFLOW.replace("org", "evil"), ISSUER), (WORKFLOW, "https://evil.example")]
)
def test_bundle_of_another_identity_or_issuer_is_refused(
    hub: StaticHub, package: Package, world: SigstoreWorld, root: Path, identity: str, issuer: str
) -> None:
    sign(package, world, identity, issuer)
    trust(root)
    refused(hub, PolicyError, "is signed by none of")
    assert get_kernel("org/demo", version=1, trust_remote_code=["org/demo"]).value() == 7


def test_bundle_of_another_authority_is_refused(hub: StaticHub, package: Package, root: Path) -> None:
    sign(package, SigstoreWorld())
    trust(root)
    refused(hub, SignatureError, "does not hold")


def test_bundle_of_an_authority_of_ones_own_does_not_hold_under_the_root_of_the_library(
    hub: StaticHub, package: Package, world: SigstoreWorld
) -> None:
    sign(package, world)
    assert main(["trust", "add", "org", "--identity", WORKFLOW, "--issuer", ISSUER]) == 0
    refused(hub, SignatureError, "does not hold")


def test_bundle_over_another_manifest_is_refused_whatever_is_allowed(
    hub: StaticHub, package: Package, world: SigstoreWorld, root: Path
) -> None:
    (folder,) = package.variants.values()
    (folder / NAME).write_bytes(world.bundle(b"{}", WORKFLOW, ISSUER))
    for allowed in (None, True):
        with pytest.raises((SignatureError, PolicyError)):
            get_kernel("org/demo", version=1, trust_remote_code=allowed)
    trust(root)
    refused(hub, SignatureError, "signs another metadata.json")


@pytest.mark.parametrize("data", [b"", b"{}", b"[" * 10_000, b'{"mediaType": 1}', b" " * (1 << 20) + b"{}"])
def test_bundle_that_is_none_is_refused_whatever_is_allowed(
    hub: StaticHub, package: Package, data: bytes
) -> None:
    (folder,) = package.variants.values()
    (folder / NAME).write_bytes(data)
    with pytest.raises(SignatureError, match="is not a sigstore bundle"):
        get_kernel("org/demo", version=1, trust_remote_code=True)


def test_bundle_whose_log_entry_was_changed_is_refused(
    hub: StaticHub, package: Package, world: SigstoreWorld, root: Path
) -> None:
    path = sign(package, world)
    data = json.loads(path.read_bytes())
    entry = data["verificationMaterial"]["tlogEntries"][0]
    entry["integratedTime"] = str(int(entry["integratedTime"]) + 60)
    path.write_text(json.dumps(data))
    trust(root)
    refused(hub, SignatureError, "does not hold")


def test_variant_without_a_bundle_is_refused_where_identities_are_trusted(
    hub: StaticHub, package: Package, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hub_loader.config._PUBLIC_HOSTS", ("127.0.0.1",))
    hub.trusted.add("org")  # whose word does not count then
    trust(root)
    refused(hub, PolicyError, "metadata.json.sigstore of org/demo at .* is not there")


def test_bundle_without_the_library_is_refused_and_names_the_extra(
    hub: StaticHub, package: Package, world: SigstoreWorld, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign(package, world)
    trust(root)
    monkeypatch.setitem(sys.modules, "sigstore.models", None)
    refused(hub, MissingExtraError, r"pip install 'kernel-hub\[sigstore\]'")


def test_trusted_root_that_is_gone_is_named(
    hub: StaticHub, package: Package, world: SigstoreWorld, root: Path
) -> None:
    sign(package, world)
    trust(root)
    root.unlink()
    refused(hub, UsageError, "trusted_root.json cannot be read")


def test_lock_then_checks_the_bundle_of_every_variant(
    hub: StaticHub,
    package: Package,
    world: SigstoreWorld,
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sign(package, world)
    (tmp_path / "pyproject.toml").write_text('[tool.kernels.dependencies]\n"org/demo" = 1\n')
    monkeypatch.chdir(tmp_path)
    assert main(["lock"]) == PolicyError.exit_code
    trust(root)
    assert main(["lock"]) == main(["sync"]) == 0
    assert hub_loader.load_kernel("org/demo", lockfile="kernels.lock").value() == 7
    assert (
        hub_loader.get_locked_kernel("org/demo", lockfile="kernels.lock", trust_remote_code=False).value()
        == 7
    )
    assert WORKFLOW in hub_loader.explain("org/demo", version=1).signed
