"""Answers: a question is answered, not refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from clients import Client, Shelf
from packages import Package

Plain = Callable[..., Package]


@pytest.mark.parametrize(
    ("arguments", "peer"),
    [
        ("sys.argv[1] + '/nothing', version=1", r"RepositoryNotFoundError: .*"),
        ("sys.argv[1] + '/demo', version=7", r"ValueError: Version 7 not found, .*"),
        ("sys.argv[1] + '/demo', revision='v7'", r"RevisionNotFoundError: .*"),
        ("sys.argv[1] + '/demo', version=1, backend='rocm'", r"ValueError: Invalid backend 'rocm', .*"),
    ],
    ids=["repository", "version", "revision", "backend"],
)
def test_has_kernel_when_it_is_not_there_is_false(
    client: Client, shelf: Shelf, plain: Plain, org: str, arguments: str, peer: str
) -> None:
    shelf.put(f"{org}/demo", plain(variants=("torch-cpu",)).folder)
    said = client.scenario(f"print(client.has_kernel({arguments}, trust_remote_code=True))", org)
    client.expect(said, ours="False", peer=peer)


def test_variants_for_a_backend_that_is_not_here_are_listed_with_reasons(
    client: Client, shelf: Shelf, plain: Plain, org: str
) -> None:
    shelf.put(f"{org}/demo", plain(variants=("torch-cpu", "torch-rocm")).folder)
    code = """
for decision in client.get_kernel_variants(sys.argv[1], version=1, backend="rocm"):
    print(type(decision).__name__, decision.variant.variant_str, decision.reason)
"""
    said = client.scenario(code, f"{org}/demo")
    client.expect(
        said,
        ours=r"VariantRejected torch-(cpu|rocm) .*\nVariantRejected torch-(cpu|rocm) .*",
        peer=r"ValueError: Invalid backend 'rocm', system supported backends: .*",
    )
