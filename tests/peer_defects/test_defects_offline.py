"""Offline: what was brought while online has to load without the hub."""

from __future__ import annotations

from collections.abc import Callable

from clients import Client, Shelf
from packages import Package

Plain = Callable[..., Package]
GET = "print(client.get_kernel(sys.argv[1], version=1, trust_remote_code=True).value())"
LOCKED = "print(client.load_kernel(sys.argv[1], lockfile=Path('kernels.lock')).value())"


def test_kernel_of_a_version_when_it_was_loaded_online_loads_offline(
    client: Client, shelf: Shelf, plain: Plain, org: str
) -> None:
    shelf.put(f"{org}/demo", plain(value=20).folder)
    assert client.scenario(GET, f"{org}/demo") == "20"
    said = client.scenario(GET, f"{org}/demo", HF_HUB_OFFLINE="1")
    client.expect(
        said, ours="20", peer=r"ValueError: Version 1 of '.*/demo' is not available in the local cache .*"
    )


def test_kernel_of_a_commit_when_it_was_loaded_online_loads_offline(
    client: Client, shelf: Shelf, plain: Plain, org: str
) -> None:
    commit = shelf.put(f"{org}/demo", plain(value=20).folder)
    code = "print(client.get_kernel(sys.argv[1], revision=sys.argv[2], trust_remote_code=True).value())"
    assert client.scenario(code, f"{org}/demo", commit) == "20"
    said = client.scenario(code, f"{org}/demo", commit, HF_HUB_OFFLINE="1")
    client.expect(said, ours="20", peer=r"FileNotFoundError: Cannot find a local snapshot for .*")


def test_locked_kernels_when_downloaded_as_documented_for_a_container_load_offline(
    client: Client, shelf: Shelf, plain: Plain, org: str
) -> None:
    shelf.put(f"{org}/demo", plain(value=20).folder)
    shelf.relay.trusted.add(org)
    (client.folder / "pyproject.toml").write_text(f'[tool.kernels.dependencies]\n"{org}/demo" = 1\n')
    client.command("lock", *(["."] if client.kind == "peer" else ["--trust-remote-code", f"{org}/demo"]))
    client.command("download", ".") if client.kind == "peer" else client.command("sync")
    said = client.scenario(LOCKED, f"{org}/demo", HF_HUB_OFFLINE="1")
    client.expect(said, ours="20", peer=r"FileNotFoundError: Cannot find a local snapshot for .*")
