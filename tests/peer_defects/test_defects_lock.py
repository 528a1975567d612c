"""Lock files: they hold what the bytes must be, not only which commit to ask for."""

from __future__ import annotations

import shutil
from collections.abc import Callable

from clients import Client, Shelf
from packages import Package

Plain = Callable[..., Package]


def test_locked_kernel_when_the_hub_has_other_bytes_at_the_commit_is_refused(
    client: Client, shelf: Shelf, plain: Plain, org: str
) -> None:
    locked = shelf.put(f"{org}/demo", plain(value=1).folder)
    shelf.relay.trusted.add(org)
    (client.folder / "pyproject.toml").write_text(f'[tool.kernels.dependencies]\n"{org}/demo" = 1\n')
    client.command("lock", *(["."] if client.kind == "peer" else ["--trust-remote-code", f"{org}/demo"]))
    shelf.relay.lies[locked] = shelf.put(f"{org}/demo", plain(value=66).folder)
    shutil.rmtree(client.cache)
    code = "print(client.get_locked_kernel(sys.argv[1], lockfile=Path('kernels.lock')).value())"
    said = client.scenario(code, f"{org}/demo")
    client.expect(said, ours=r"IntegrityError: .*kernels\.lock.*", peer="66")
