"""The frontier as a picture: what runs wait longer against what stands there for nothing."""

from collections.abc import Mapping, Sequence
from pathlib import Path

Point = tuple[float, float]
"""(wasted instance-seconds per run, added ms per run)."""


def frontier(path: Path, title: str, curves: Mapping[str, Sequence[Point]]) -> None:
    """Writes a picture of the kind its name ends with (.png, .svg, .pdf). Both axes are logarithmic, but for what is near 0.

    Raises ValueError for another kind, and OSError.
    """
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8.0, 5.2), layout="constrained")
    try:
        markers = "osD^v<>Pp*Xh"
        for number, (name, points) in enumerate(curves.items()):
            ordered = sorted(points)
            axes.plot(
                [waste for waste, _ in ordered],
                [added for _, added in ordered],
                marker=markers[number % len(markers)],
                linestyle="-" if len(points) > 1 else "none",
                linewidth=1.2,
                markersize=6,
                label=name,
                color=f"C{number % 10}" if number < 10 else "black",
            )
        axes.set_xscale("symlog", linthresh=0.1)
        axes.set_yscale("symlog", linthresh=1.0)
        axes.set_xlim(left=0.0)
        axes.set_ylim(bottom=0.0)
        axes.set_xlabel("wasted instance-seconds per run")
        axes.set_ylabel("added milliseconds per run (mean)")
        axes.set_title(title, loc="left", fontsize=10)
        axes.grid(visible=True, linewidth=0.3)
        axes.legend(fontsize=8, loc="best")
        figure.savefig(path, dpi=130, metadata={"Date": None} if path.suffix == ".svg" else None)
    finally:
        plt.close(figure)
