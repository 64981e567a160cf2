"""Plot likelihood by position, context and compute, or the comparison of two sets of pieces, as PNG.

Knows numbers and matplotlib.
"""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pamusic.evaluation.comparison import StatisticComparison
    from pamusic.evaluation.likelihood import Likelihood
    from pamusic.evaluation.sweep import SweepPoint


def likelihood_picture(total: Likelihood | None, points: list[SweepPoint], num_latents: int) -> bytes:
    """Plot a likelihood and a sweep, and return a PNG file.

    Args:
        total: Likelihood of a split by position, or None.
        points: Points of a sweep.
        num_latents: Number of latents of the model, at which the sweep varies the context.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    by_context = [p for p in points if p.num_latents == min(num_latents, p.context_length)]
    longest = max((p.context_length for p in points), default=0)
    by_latents = sorted((p for p in points if p.context_length == longest), key=lambda p: p.flops)
    panels = [total is not None, len(by_context) > 1, len(by_latents) > 1]
    figure = Figure(figsize=(4.5 * max(1, sum(panels)), 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = iter(figure.subplots(1, max(1, sum(panels)), squeeze=False)[0])
    if total is not None:
        ax, stretches = next(axes), total.by_position()
        ax.plot([max(s["from"], 1) for s in stretches], [s["nats_per_token"] for s in stretches], marker=".")
        ax.set(xscale="log", xlabel="position in the piece, tokens (from)", ylabel="nats per token")
    if len(by_context) > 1:
        ax = next(axes)
        ax.plot([p.context_length for p in by_context], [p.nats_per_token for p in by_context], marker=".")
        ax.set(xscale="log", xlabel="context, tokens", ylabel="nats per token")
    if len(by_latents) > 1:
        ax = next(axes)
        ax.plot([p.flops / 1e6 for p in by_latents], [p.nats_per_token for p in by_latents], marker=".")
        for p in by_latents:
            ax.annotate(f" {p.num_latents:,} latents", (p.flops / 1e6, p.nats_per_token), fontsize=8)
        ax.set(xscale="log", xlabel="million operations a token", ylabel="nats per token")
    return _png(figure)


def comparison_picture(rows: list[StatisticComparison]) -> bytes:
    """Plot the distances within the real set and between the sets for each statistic, and return a PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    across = 4
    down = -(-len(rows) // across)
    figure = Figure(figsize=(3.2 * across, 2.1 * down), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(down, across, squeeze=False).ravel()
    for ax, row in zip(axes, rows, strict=False):
        for density, label in zip(row.densities, ("real to real", "real to generated"), strict=True):
            ax.plot(row.distances, density, label=label)
        ax.fill_between(row.distances, row.densities.min(0), alpha=0.2, color="gray")
        ax.set_title(f"{row.name.replace('_', ' ')}: {row.overlap:.2f}", fontsize=9)
        ax.set_xlim(left=0)
        ax.set_yticks([])
        ax.tick_params(labelsize=7)
    for ax in axes[len(rows) :]:
        ax.set_axis_off()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=9)
    return _png(figure)


def _png(figure: Figure) -> bytes:
    png = BytesIO()
    figure.savefig(png, dpi=110, format="png")
    return png.getvalue()
