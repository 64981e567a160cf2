"""Share what the experiments on the paper's claims have in common: runs, rows and figures.

An experiment is a list of arms. Each arm is trained by `pamusic train`, with several seeds, and then measured. Its rows
go to a CSV file. A row that is there is not measured again, and a run that is there is resumed, so an interrupted
experiment continues by the same command. Arms with equal settings are trained once, for all experiments together.

There are three scales. `smoke` shows in minutes that everything works; its numbers decide nothing. `reported` has two
seeds and at least 1,500 steps and is for a CPU in the background. `gpu` is for a GPU.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import hashlib
import json
import math
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results" / "paper"
Row = dict[str, Any]

# What `conv_width`, `offsets` and `clock` add to a model of notes is ours, not the paper's.
PLAIN = {"conv_width": 1, "offsets": False, "clock": False}


@dataclass(frozen=True, kw_only=True)
class Scale:
    """The size of an experiment.

    Attributes:
        name: `smoke`, `reported` or `gpu`.
        settings: Settings of `pamusic train` that all arms share.
        seeds: Seeds of training.
        num_pieces: Pieces of the validation split to score.
    """

    name: str
    settings: dict[str, Any]
    seeds: Sequence[int]
    num_pieces: int

    def pick(self, *, smoke: Any, reported: Any, gpu: Any) -> Any:
        """Return the value for this scale."""
        return {"smoke": smoke, "reported": reported, "gpu": gpu}[self.name]


SCALES = {
    scale.name: scale
    for scale in (
        Scale(
            name="smoke",
            settings={
                "size": "tiny", "d_model": 64, "num_layers": 2, "num_latents": 128, "batch_size": 4, "steps": 240,
                "validate_every": 40, "validation_windows": 48,
            },
            seeds=(1,),
            num_pieces=4,
        ),
        Scale(
            name="reported",
            settings={
                "size": "tiny", "d_model": 128, "num_layers": 3, "num_heads": 4, "num_latents": 256, "batch_size": 8,
                "steps": 1500, "validate_every": 100, "validation_windows": 96,
            },
            seeds=(1, 2),
            num_pieces=24,
        ),
        Scale(
            name="gpu",
            settings={
                "size": "small", "d_model": 512, "num_layers": 8, "num_heads": 8, "num_latents": 1024,
                "batch_size": 16, "steps": 6000, "validate_every": 250, "validation_windows": 96,
            },
            seeds=(1, 2),
            num_pieces=137,
        ),
    )
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One of the models that an experiment compares.

    Attributes:
        label: Name in rows and figures.
        settings: Settings of `pamusic train` beyond those of the scale.
        columns: Columns of its rows that say what differs.
        corpus: Folder of its corpus.
    """

    label: str
    corpus: Path
    settings: dict[str, Any] = field(default_factory=dict)
    columns: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Run:
    """A trained arm.

    Attributes:
        arm, seed, scale: What was trained.
        path: Folder of the run.
        maestro: MAESTRO, from which the corpus was made.
    """

    arm: Arm
    seed: int
    scale: Scale
    path: Path
    maestro: Path

    def record(self) -> Row:
        """Return the `run.json` of the run."""
        return json.loads((self.path / "run.json").read_text(encoding="utf-8"))

    def metrics(self, split: str) -> list[Row]:
        """Return the rows of `metrics.csv` of a split: train, validation, or validation_ema."""
        return [row for row in read_rows(self.path / "metrics.csv") if row["split"] == split]

    def last_step(self) -> int:
        """Return the number of steps made; 0 if there is no run."""
        return max((int(row["step"]) for row in self.metrics("train")), default=0)

    def undisturbed_tokens_per_second(self) -> float:
        """Return the speed on a machine without other work: the fastest tenth of the rates after the start."""
        rates = sorted(float(row["tokens_per_second"]) for row in self.metrics("train") if row["tokens_per_second"])
        return rates[math.floor(0.9 * (len(rates) - 1))]

    def shape(self) -> Any:
        """Return the `ModelConfig`."""
        from pamusic.model.config import ModelConfig

        return ModelConfig.from_json(self.record()["model"])

    def flops_of_step(self) -> int:
        """Return the operations of a step, forward and backward; with a random number of latents, their mean."""
        training = self.record()["training"]
        return flops_of_step(self.shape(), training["batch_size"], training["prefix_dropout"], training["min_latents"])

    def evaluate(self, *words: object) -> Row:
        """Return what `pamusic evaluate` says about the run's best weights on the validation split."""
        told = pamusic(
            "evaluate", self.path, self.arm.corpus, "--split", "validation", "--max-pieces", self.scale.num_pieces,
            "--json", *words,
        )  # fmt: skip
        return json.loads(told)

    def columns(self) -> Row:
        """Return the columns that every row of an experiment begins with."""
        shape, last = self.shape(), self.metrics("train")[-1]
        return {
            "arm": self.arm.label,
            **self.arm.columns,
            "seed": self.seed,
            "architecture": shape.architecture,
            "context_length": shape.context_length,
            "num_latents": shape.num_latents,
            "d_model": shape.d_model,
            "num_parameters": num_parameters(shape),
            "steps": int(last["step"]),
            "predicted_tokens": int(last["latent_tokens"]),
            "tflops": float(f"{self.flops_of_step() * int(last['step']) / 1e12:.4g}"),
            "seconds": round(int(last["latent_tokens"]) / self.undisturbed_tokens_per_second(), 1),
        }


def flops_of_step(shape: Any, batch_size: int, prefix_dropout: float, min_latents: int | None = None) -> int:
    """Return the operations of a step, forward and backward, counted by `pamusic.model.flops`."""
    from pamusic.model.flops import training_flops

    halvings = 0 if min_latents is None else (shape.num_latents // min_latents).bit_length() - 1
    shapes = [shape.resized(num_latents=shape.num_latents >> k) for k in range(halvings + 1)]
    return batch_size * sum(training_flops(each, prefix_dropout=prefix_dropout) for each in shapes) // len(shapes)


def arm_flops_of_step(arm: Arm, scale: Scale) -> int:
    """Return the operations of a step of an arm that is not trained yet."""
    from pamusic.corpus.corpus import open_corpus
    from pamusic.training.config import TrainingConfig
    from pamusic.training.model_shape import new_shape
    from pamusic.training.settings import RunSettings

    settings = RunSettings(**{**scale.settings, **arm.settings})
    shape = new_shape(str(settings.size), settings, open_corpus(arm.corpus).tokenizer.vocabulary)
    usual = TrainingConfig.prefix_dropout if settings.architecture is None else 0.0
    dropped = usual if settings.prefix_dropout is None else settings.prefix_dropout
    return flops_of_step(shape, settings.batch_size or TrainingConfig.batch_size, dropped, settings.min_latents)


def with_equal_operations(arms: Sequence[Arm], scale: Scale) -> list[Arm]:
    """Return arms with as many steps as give each the operations of the first one."""
    steps, first = scale.settings["steps"], arm_flops_of_step(arms[0], scale)
    return [
        replace(arm, settings={**arm.settings, "steps": round(steps * first / arm_flops_of_step(arm, scale))})
        for arm in arms
    ]


def num_parameters(shape: Any) -> int:
    """Return the number of weights of a shape."""
    import torch

    from pamusic.model.architectures import build_model

    with torch.device("meta"):
        return build_model(shape).num_parameters()


def pamusic(*words: object) -> str:
    """Run a command and return its standard output.

    Raises:
        SystemExit: The command failed; it has said why.
    """
    done = subprocess.run([sys.executable, "-m", "pamusic", *map(str, words)], stdout=subprocess.PIPE)
    if done.returncode:
        raise SystemExit(f"pamusic {' '.join(map(str, words))}: exit status {done.returncode}")
    return done.stdout.decode()


def corpus(maestro: Path, folder: Path, tokenizer: str = "notes") -> Path:
    """Return a corpus of MAESTRO in `folder`, made if it is not there."""
    path = folder / f"corpus-{tokenizer}"
    if not path.is_dir():
        pamusic("tokenize", maestro, "--tokenizer", tokenizer, "--out", path)
    return path


def trained(arm: Arm, seed: int, scale: Scale, maestro: Path, folder: Path) -> Run:
    """Return the run of an arm, trained, or resumed, if it is not finished yet."""
    settings = {**scale.settings, **arm.settings, "seed": seed}
    words = [word for name, value in settings.items() for word in ("--set", f"{name}={_toml(value)}")]
    name = hashlib.sha256(f"{arm.corpus.name} {sorted(words)}".encode()).hexdigest()[:12]
    path = folder / f"{scale.name}-{name}"
    run = Run(arm=arm, seed=seed, scale=scale, path=path, maestro=maestro)
    if run.last_step() < settings["steps"]:  # a run that Ctrl-C stopped has a checkpoint, too
        if (path / "state.pt").exists():
            pamusic("train", "--resume", path)
        else:
            how = ["--no-compile"] if scale.name == "smoke" else []  # it would take longer than the steps
            pamusic("train", arm.corpus, "--out", path, "--overwrite", *words, *how)
        if run.last_step() < settings["steps"]:
            raise SystemExit(f"{path}: stopped at step {run.last_step():,}; the same command continues it")
        (path / "state.pt").unlink(missing_ok=True)
    return run


def _toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else f'"{value}"' if isinstance(value, str) else str(value)


def curve(run: Run) -> list[Row]:
    """Return operations, seconds and validation loss, of the averaged weights, at each validation."""
    per_second, flops = run.undisturbed_tokens_per_second(), run.flops_of_step()
    return [
        {
            "step": int(row["step"]),
            "tflops": float(f"{flops * int(row['step']) / 1e12:.4g}"),
            "seconds": round(int(row["latent_tokens"]) / per_second, 1),
            "nats_per_token": round(float(row["nats_per_token"]), 4),
        }
        for row in run.metrics("validation_ema")
    ]


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A claim and how it is measured.

    Attributes:
        name: Name of its files.
        arms: Returns the arms at a scale, given MAESTRO and the folder of runs.
        measure: Returns the rows of a run; each is added to `Run.columns`, and may override them.
        draw: Draws all rows into an array of axes.
        num_axes: Number of axes.
    """

    name: str
    arms: Callable[[Scale, Path, Path], list[Arm]]
    measure: Callable[[Run], list[Row]]
    draw: Callable[[Sequence[Any], list[Row]], None]
    num_axes: int = 1


def run_experiment(experiment: Experiment, doc: str | None) -> None:
    """Train, measure and draw, as the command line says."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("maestro", type=Path, help="MAESTRO: a folder or a zip archive")
    parser.add_argument("folder", type=Path, nargs="?", default=Path("runs/paper"), help="keep the runs here")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--smoke", action="store_true", help="a few small steps: minutes")
    which.add_argument("--gpu", action="store_true", help="the size for a GPU")
    parser.add_argument("--steps", type=int, help="train for so many steps, in files of their own")
    asked = parser.parse_args()
    scale = SCALES["smoke" if asked.smoke else "gpu" if asked.gpu else "reported"]
    if asked.steps is not None:
        scale = replace(scale, settings={**scale.settings, "steps": asked.steps})
    name = {"smoke": f"{experiment.name}-smoke", "reported": experiment.name, "gpu": f"{experiment.name}-gpu"}
    ending = "" if asked.steps is None else f"-{asked.steps}"
    path = RESULTS / f"{name[scale.name]}{ending}.csv"
    arms = experiment.arms(scale, asked.maestro, asked.folder)
    for seed in scale.seeds:
        for arm in arms:
            wanted = {"arm": arm.label, "seed": str(seed)}
            if any(all(row[key] == value for key, value in wanted.items()) for row in read_rows(path)):
                continue
            run = trained(arm, seed, scale, asked.maestro, asked.folder)
            stamp = {"date": datetime.date.today().isoformat(), "machine": machine(run)}
            add_rows(path, [{**run.columns(), **row, **stamp} for row in experiment.measure(run)])
            draw(experiment, path)
    print(f"{path}\n{path.with_suffix('.png')}")


def machine(run: Run) -> str:
    """Return the machine of a run, its device and its precision, in words."""
    from pamusic.compose.benchmark import machine as this_machine

    used = run.record()["machine"]
    return f"{this_machine()}, {used['device']}, {used['precision']}"


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a CSV file; none if there is no file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def add_rows(path: Path, rows: Iterable[Row]) -> None:
    """Append rows to a CSV file, all in one write; its columns are those of its first row."""
    rows = list(rows)
    before = read_rows(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list((before or rows)[0]), lineterminator="\n")
        if not before:
            writer.writeheader()
        writer.writerows(rows)


def means(rows: Iterable[Row], key: str, value: str) -> list[tuple[float, float]]:
    """Return pairs (key, mean value over seeds), in the order of the key."""
    of_key: dict[float, list[float]] = {}
    for row in rows:
        of_key.setdefault(float(row[key]), []).append(float(row[value]))
    return [(each, sum(values) / len(values)) for each, values in sorted(of_key.items())]


def by_arm(rows: Iterable[Row], name: str = "arm") -> dict[str, list[Row]]:
    """Return rows by a column, in the order of their first appearance."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row[name], []).append(row)
    return groups


def draw(experiment: Experiment, path: Path) -> None:
    """Draw the figure of a CSV file beside it, with a line on how it was measured."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = read_rows(path)
    figure, axes = plt.subplots(1, experiment.num_axes, figsize=(5 * experiment.num_axes, 4), layout="constrained")
    axes = [axes] if experiment.num_axes == 1 else list(axes)
    experiment.draw(axes, rows)
    for ax in axes:
        ax.grid(alpha=0.3)
        if ax.get_xscale() == "log":
            ax.set_xscale("log", base=2)
            ax.xaxis.set_major_formatter(lambda x, place: f"{x:,.0f}" if x >= 1000 else f"{x:.3g}")
    seeds = sorted({row["seed"] for row in rows})
    steps = sorted({int(row["steps"]) for row in rows})
    note = f"seeds {', '.join(seeds)}; {' to '.join(f'{s:,}' for s in sorted({steps[0], steps[-1]}))} steps"
    figure.supxlabel(f"{note}\n{rows[-1]['machine']}, {rows[-1]['date']}", fontsize=6)
    figure.savefig(
        path.with_suffix(".png"), dpi=130, metadata={"Software": f"matplotlib, Python {platform.python_version()}"}
    )
    plt.close(figure)
