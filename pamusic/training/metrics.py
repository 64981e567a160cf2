"""Write the metrics of a run: a table, a plot, and TensorBoard files if TensorBoard is installed.

Knows rows of numbers and the run's folder; knows no model. `metrics.csv` is the source, and the plot is drawn from it.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

from pamusic.errors import PamusicError
from pamusic.files import ERRNO_ADVICE, written_atomically

TRAIN, VALIDATION, AVERAGED = "train", "validation", "validation_ema"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement.

    Attributes:
        step: Number of updates made.
        latent_tokens: Latent tokens trained so far.
        seconds: Training time so far, without validation and saving.
        split: `train` (mean since the row before, with dropout), `validation`, or `validation_ema` of averaged weights.
        nats_per_token: Loss without z-loss.
        rate: Learning rate of the last update, as a share of the peak.
        grad_norm: Gradient norm of the last update, before clipping.
        tokens_per_second: Latent tokens per second since the row before.
        waited: Share of this time that was spent waiting for batches.
    """

    step: int
    latent_tokens: int
    seconds: float
    split: str
    nats_per_token: float
    rate: float
    grad_norm: float | str = ""
    tokens_per_second: float | str = ""
    waited: float | str = ""


COLUMNS = tuple(field.name for field in fields(Row))


class Metrics:
    """The table of a run, written row by row."""

    def __init__(self, run: Path) -> None:
        self._path, self._picture = run / "metrics.csv", run / "curves.png"
        self._tensorboard: Any = None

    def begin(self, step: int) -> None:
        """Keep only the rows up to `step`, because later ones will be computed again."""
        rows: list[list[str]] = []
        if self._path.is_file() and step > 0:
            with self._path.open(newline="") as file:
                rows = [row for row in csv.reader(file) if row and row[0].isdigit() and int(row[0]) <= step]
        rows = [(row + [""] * len(COLUMNS))[: len(COLUMNS)] for row in rows if len(row) >= 6]
        with written_atomically(self._path) as temporary, temporary.open("w", newline="") as file:
            csv.writer(file).writerows([COLUMNS, *rows])
        self._tensorboard = _tensorboard(self._path.parent, step)

    def add(self, rows: Iterable[Row]) -> None:
        """Append rows to the table.

        Raises:
            PamusicError: The table cannot be written, for example because the disk is full.
        """
        rows = list(rows)
        try:
            with self._path.open("a", newline="") as file:
                csv.writer(file).writerows(astuple(row) for row in rows)
        except OSError as error:
            raise PamusicError(
                f"cannot write {self._path}: {ERRNO_ADVICE.get(error.errno or 0, error.strerror)}"
            ) from None
        if self._tensorboard is None:
            return
        for row in rows:
            self._tensorboard.add_scalar(f"nats_per_token/{row.split}", row.nats_per_token, row.step)
            if row.split == TRAIN:
                for name in ("rate", "grad_norm", "tokens_per_second"):
                    self._tensorboard.add_scalar(name, getattr(row, name), row.step)

    def draw(self) -> None:
        """Draw the table as `curves.png`, and flush TensorBoard files."""
        if self._tensorboard is not None:
            self._tensorboard.flush()
        draw_curves({"": read_metrics(self._path)}, self._picture)


def read_metrics(path: Path) -> list[Row]:
    """Return the rows of a `metrics.csv`, skipping rows that a crash left incomplete."""
    rows = []
    with path.open(newline="") as file:
        for values in csv.DictReader(file):
            try:
                numbers: dict[str, Any] = {name: _number(values.get(name) or "") for name in COLUMNS}
                numbers |= {name: int(values[name]) for name in ("step", "latent_tokens")}
                rows.append(Row(**{**numbers, "split": values["split"]}))
            except (ValueError, TypeError, KeyError):
                continue
    return rows


def draw_curves(runs: Mapping[str, list[Row]], path: Path) -> None:
    """Draw loss and rate over latent tokens as a PNG picture.

    Args:
        runs: Rows of each run, by its name. One run gets a curve per split; several get only their validation.
        path: Path of the picture.
    """
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    losses, rates = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    if len(runs) == 1:
        (rows,) = runs.values()
        _draw_splits(losses, rows)
        _draw_rate(rates, rows, "0.4")
    else:
        colors = colormaps["turbo"].resampled(max(2, len(runs)))
        for place, (name, rows) in enumerate(runs.items()):
            averaged = [row for row in rows if row.split == AVERAGED]
            _draw_loss(losses, averaged or [row for row in rows if row.split == VALIDATION], name, colors(place), ".")
            _draw_rate(rates, rows, colors(place))
    if losses.lines:
        losses.legend(frameon=False)
    losses.set_ylabel("nats per token" if len(runs) == 1 else "validation, nats per token")
    rates.set_ylabel("rate / peak")
    rates.set_xlabel("latent tokens, millions")
    with written_atomically(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def _draw_splits(ax: Any, rows: list[Row]) -> None:
    """Draw a curve for each split of a run."""
    styles = {TRAIN: ("train", "0.7", ""), VALIDATION: ("validation", "C0", "."), AVERAGED: ("averaged", "C1", ".")}
    for split, (label, color, marker) in styles.items():
        _draw_loss(ax, [row for row in rows if row.split == split], label, color, marker)
    train = [row.nats_per_token for row in rows if row.split == TRAIN]
    if train:
        ax.set_ylim(top=max(train[len(train) // 20 :]) + 0.1)  # the first steps would flatten all the rest


def _draw_loss(ax: Any, rows: list[Row], label: str, color: Any, marker: str) -> None:
    rows = [row for row in rows if math.isfinite(row.nats_per_token)]
    if rows:
        millions, nats = [row.latent_tokens / 1e6 for row in rows], [row.nats_per_token for row in rows]
        ax.plot(millions, nats, color=color, marker=marker, label=f"{label}, {nats[-1]:.3f} at the end")


def _draw_rate(ax: Any, rows: list[Row], color: Any) -> None:
    train = [row for row in rows if row.split == TRAIN]
    ax.plot([row.latent_tokens / 1e6 for row in train], [row.rate for row in train], color=color)


def _number(text: str) -> float | str:
    return text if text in ("", TRAIN, VALIDATION, AVERAGED) else float(text)


def _tensorboard(run: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)
