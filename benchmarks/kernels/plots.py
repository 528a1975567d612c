"""The rows as a picture: how much faster than each peer, and the part of the machine's limit. PNG and SVG."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

from .case import Result

_DOTS = ("black", "tab:orange", "tab:green", "tab:purple", "tab:cyan", "tab:pink")


def draw(rows: Sequence[Result], title: str, out: Path) -> list[Path]:
    """Writes `out` with the suffixes .png and .svg; returns both.

    Raises:
        SystemExit: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise SystemExit("--plot needs matplotlib: pip install 'kernel-hub[bench]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    labels = [f"{row.name}, {row.shape}, {row.dtype}" for row in rows]
    figure, (ratios, parts) = pyplot.subplots(1, 2, figsize=(13, 1.2 + 0.28 * len(rows)), sharey=True)
    colours = ["tab:blue" if row.ratio >= 1 else "tab:red" for row in rows]
    ratios.barh(labels, [row.ratio for row in rows], color=colours)
    names = dict.fromkeys(name for row in rows for name in row.other_ratios)
    for peer, colour in zip(names, cycle(_DOTS), strict=False):
        beside = [(row.other_ratios[peer], at) for at, row in enumerate(rows) if peer in row.other_ratios]
        ratios.scatter(
            *zip(*beside, strict=True), label=peer, color=colour, edgecolors="white", s=28, zorder=3
        )
    if any(row.other_ratios for row in rows):
        ratios.legend(loc="upper right", fontsize="small")
    ratios.axvline(1, color="black", linewidth=1)
    ratios.set(xscale="log", xlabel="times as fast as torch eager, dots: as other peers (medians)")
    parts.barh(labels, [row.percent or 0 for row in rows], color="tab:blue")
    parts.axvline(100, color="black", linewidth=1)
    parts.set(xlabel="% of what the machine reached in the same turns")
    ratios.invert_yaxis()
    figure.suptitle(title)
    figure.tight_layout()
    written = [out.with_suffix(suffix) for suffix in (".png", ".svg")]
    for path in written:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return written
