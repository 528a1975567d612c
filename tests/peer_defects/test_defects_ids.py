"""Ids: no package takes the name of a module, no two share one."""

from __future__ import annotations

from collections.abc import Callable

from clients import Client, Shelf
from packages import Package

Plain = Callable[..., Package]


def test_kernel_with_the_id_of_a_module_is_refused_and_the_module_stays(
    client: Client, shelf: Shelf, plain: Plain, org: str
) -> None:
    shelf.put(f"{org}/demo", plain(value=66, kernel_id="json").folder)
    code = """
import json
try:
    client.get_kernel(sys.argv[1], version=1, trust_remote_code=True)
except Exception as error:
    print(type(error).__name__)
print(hasattr(sys.modules["json"], "dumps"))
"""
    said = client.scenario(code, f"{org}/demo")
    client.expect(said, ours="InvalidKernelError\nTrue", peer="False")


def test_two_kernels_with_one_id_never_share_submodules(
    client: Client, shelf: Shelf, plain: Plain, org: str
) -> None:
    for value, name in ((1, "first"), (2, "second")):
        shelf.put(f"{org}/{name}", plain(value=value, kernel_id="_demo_cpu_shared").folder)
    code = """
get = lambda name: client.get_kernel(f"{sys.argv[1]}/{name}", version=1, trust_remote_code=True).value()
print(get("first"))
print(get("second"))
"""
    said = client.scenario(code, org)
    client.expect(said, ours=r"1\nInvalidKernelError: .*_demo_cpu_shared.*", peer=r"1\n1")
