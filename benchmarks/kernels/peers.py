"""Which peers a run compares with: those that are here, by name, and what is said of each that is not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from . import gpu, torch_peers
from .case import Call, Case, Elsewhere, one_line

# From the inputs of a case its call, or None where the peer has no operator for such inputs.
Make = Callable[[Mapping[str, Any]], Call | Elsewhere | None]


@dataclass(frozen=True)
class Peer:
    """Somebody else's operators: what makes its call, by the name of the case.

    `tolerance`: how much more than the kernel it may be off, relative to the largest element.
    """

    name: str
    makes: Mapping[str, Make]
    tolerance: float = 0.0


TORCH = {
    "cpu": (Peer("torch int4pack", torch_peers.INT4_CPU),),
    "cuda": (
        Peer("torch int4pack", torch_peers.INT4_CUDA),
        Peer("torch._scaled_mm", torch_peers.SCALED_MM),
        Peer("torch flash", torch_peers.FLASH),
        Peer("torch flex_attention", torch_peers.FLEX),
    ),
}
# name of the distribution -> the peer that is compared where it is installed
INSTALLED = {
    "flashinfer-python": Peer("flashinfer", gpu.FLASHINFER),
    "liger-kernel": Peer("liger", gpu.LIGER),
    "gemlite": Peer("gemlite", gpu.GEMLITE),
    # It rounds the weights anew, to grids of its own.
    "torchao": Peer("torchao", gpu.TORCHAO, tolerance=0.2),
}


def found(device: str, release: Callable[[str], str] = version) -> tuple[list[Peer], dict[str, str]]:
    """The peers of this interpreter, and what to say of each: that it is compared, or is not here."""
    peers, said = list(TORCH[device]), {"torch eager": "compared", "torch compile": "compared with --compile"}
    said |= {peer.name: f"compared: {cases(peer)}" for peer in peers}
    for name, peer in INSTALLED.items() if device == "cuda" else ():
        try:
            said[peer.name] = f"{release(name)}, compared: {cases(peer)}"
        except PackageNotFoundError:
            said[peer.name] = f"not here (pip install {name}): {cases(peer)}"
        else:
            peers.append(peer)
    return peers, said


def cases(peer: Peer) -> str:
    return ", ".join(peer.makes)


def beside(case: Case, peers: Sequence[Peer]) -> Case:
    """The case with the calls of those peers that know it; one that cannot make its call is among the failed."""
    others, failed, tolerances = dict(case.others), dict(case.failed), dict(case.tolerances)
    for peer in peers:
        if case.name not in peer.makes:
            continue
        try:
            call = peer.makes[case.name](case.inputs)
        except Exception as reason:
            failed[peer.name] = one_line(reason)
            continue
        if call is not None:
            others[peer.name], tolerances[peer.name] = call, peer.tolerance
    return replace(case, others=others, failed=failed, tolerances=tolerances)
