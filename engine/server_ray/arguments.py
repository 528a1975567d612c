"""What `khub engine serve`'s arguments say of the cluster."""

from __future__ import annotations

import argparse
from dataclasses import dataclass


@dataclass(frozen=True)
class ClusterOptions:
    """`replicas`: fewest and most. `queued_tokens`: for how many there is one more. `cpus`, `gpus`: of each.

    `up`, `down`: seconds for which more or fewer must have been wanted.
    """

    replicas: tuple[int, int] = (1, 1)
    queued_tokens: int = 8192
    cpus: float = 1.0
    gpus: float = 0.0
    up: float = 10.0
    down: float = 120.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of serving on a cluster."""
    default = ClusterOptions()
    group = parser.add_argument_group(
        "on a cluster",
        "Replicas of the server under Ray Serve, behind the address that this command listens on: on the cluster "
        "that $RAY_ADDRESS names, else on this machine. Needs pip install 'kernel-hub[ray]'.",
    )
    add = group.add_argument
    add("--ray", action="store_true", help="serve with replicas on a Ray cluster")
    add(
        "--replicas",
        type=_range,
        default=default.replicas,
        metavar="N[:MOST]",
        help="how many, or between how many by what is queued (default: 1)",
    )
    add(
        "--queued-tokens",
        type=_positive,
        default=default.queued_tokens,
        metavar="N",
        help="one replica for every N tokens that wait to be computed (default: %(default)s)",
    )
    add(
        "--replica-cpus",
        type=_share,
        default=default.cpus,
        metavar="N",
        help="cores of each replica (default: 1)",
    )
    add(
        "--replica-gpus",
        type=_share,
        default=default.gpus,
        metavar="N",
        help="GPUs of each replica (default: 0)",
    )


def cluster_of(args: argparse.Namespace) -> ClusterOptions:
    """What the arguments say."""
    return ClusterOptions(args.replicas, args.queued_tokens, args.replica_cpus, args.replica_gpus)


def _range(text: str) -> tuple[int, int]:
    fewest, colon, most = text.partition(":")
    found = int(fewest), int(most if colon else fewest)
    if not 1 <= found[0] <= found[1]:
        raise argparse.ArgumentTypeError(f"{text} is not N or N:MOST with 1 <= N <= MOST")
    return found


def _positive(text: str) -> int:
    found = int(text)
    if found < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return found


def _share(text: str) -> float:
    found = float(text)
    if not 0 <= found <= 1024:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1024")
    return found
