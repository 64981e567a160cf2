"""Measure the claim of Perceiver AR that it attends to a hundred thousand tokens, on a task without music.

    python benchmarks/paper/copy_task.py [--smoke | --gpu] [--lengths 1024 4096] [--seeds 1 2] [--runs runs/paper]

The task is the copy task of the paper (Hawthorne et al. 2022, arXiv:2202.07765): random symbols, and then the same
symbols again. In the second half, the right prediction is the symbol half a sequence earlier, and nothing else helps.
The paper's longest sequence has 131,072 tokens. So has ours: a marker, 65,535 symbols, a marker, the same 65,535
symbols; the marker after them is the last target. The model predicts its last positions. The window of each batch ends
anywhere in the second half. It has one cross-attention and the layers of its latents, as always.

How this differs from the paper:
- The second half repeats the symbols in the same order. The published code of the paper reverses them. Then the
  distance to the source differs at each position. Our positions are relative only, so we ask for a fixed distance.
- The rotary embedding covers all of each head. With a quarter, as for music, too few frequencies tell neighbours apart.
- The settings for one core are small: 16 symbols instead of 256, 1 layer instead of 6, 128 latents instead of 1,024.
- Most rows use a curriculum, which the column `curriculum` names. With `none`, the model sees all keys from the first
  step, as in the paper. With `keys`, it first sees no keys of the prefix but the sources of its targets. When training
  costs less than 0.25 nats a token, four times as many keys are visible, in random places, until all are. The
  distance is the one of the full length from the first step. All accuracies are measured with all keys visible. The
  curriculum helps to find the sources. So its rows show that the model can attend so far, and not how fast it learns
  that unaided.

Each row is one model. Its accuracy counts the symbols, not the markers, of fresh sequences, by the moving average of
the weights. `steps_to_99` is the number of steps after which 99 % of the symbols were right for the first time. A row
ends at 99.9 %, or at a limit of steps; that it did not learn is a result, too. The control sees a quarter of a
sequence, so no source. It makes as many steps as the row of that length, and must stay at chance.

Rows go to `benchmarks/results/paper/copy.csv`. A row that is there is not measured again. The state of an unfinished
row is saved every few minutes to `--runs`, and the same command continues from it, with the same numbers. A row that
would need more memory than `--max-gib`, by the prediction of the trainer, is left out. `--smoke` takes short sequences,
in files of its own, and about five minutes on one core. The reported rows with the curriculum take about eight minutes
a seed on one core. `--gpu` takes the paper's length, latents, layers, symbols and steps on a CUDA device, with a width
and a batch of our choice; it has not been run yet.

This file is also an example of how to train a model of `pamusic` on other data: a `ModelConfig` and a `TrainingConfig`
make a `Learner`, and its `update` takes a `Batch` of ids and targets.
"""

from __future__ import annotations

import argparse
import datetime
import math
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from common import RESULTS, add_rows, read_rows
from torch import Tensor

from pamusic.compose.benchmark import machine
from pamusic.device import Machine, choose_machine
from pamusic.files import written_atomically
from pamusic.model.config import ModelConfig
from pamusic.training.config import TrainingConfig
from pamusic.training.data import Batch
from pamusic.training.learner import Learner
from pamusic.training.memory import available_memory, memory_needed

NONE, KEYS = "none", "keys"  # curricula
TRAIN, CHECK, FINAL = range(3)  # streams of random numbers, so that no sequence is both trained on and scored
STEPS_OF_CHECK = 25  # steps between two checks
WINDOWS_OF_CHECK, WINDOWS_AT_END = 8, 32
LEARNED, ENOUGH = 0.99, 0.999  # accuracy that `steps_to_99` waits for, and accuracy at which training ends
MORE_KEYS = 0.25  # nats per token in training below which the curriculum shows more keys
MORE_AT_ONCE = 4  # times as many
KEY = ("setting", "length", "context", "curriculum", "seed")


@dataclass(frozen=True, kw_only=True)
class Task:
    """The copy task.

    Attributes:
        length: Tokens of a whole sequence, without the last marker.
        context: Tokens of a window; less than half of `length` in the control, otherwise all.
        latents: Predicted positions of a window.
        symbols: Number of different symbols.
    """

    length: int
    context: int
    latents: int
    symbols: int

    @property
    def half(self) -> int:
        """Distance from a target to its source."""
        return self.length // 2

    def sequence(self, rng: np.random.Generator) -> Tensor:
        """Return marker, symbols, marker, the same symbols, marker: `[length + 1]`."""
        part = np.concatenate([[self.symbols], rng.integers(0, self.symbols, self.half - 1)])
        return torch.from_numpy(np.concatenate([part, part, [self.symbols]]))

    def batch(self, rng: np.random.Generator, size: int, visible: int | None = None) -> Batch:
        """Return windows that end at the same random position of the second half.

        Args:
            rng: Source of all random choices.
            size: Number of windows.
            visible: Visible keys of the prefix: the sources, and others at random; None for all.
        """
        end = int(rng.integers(self.half + self.latents, self.length + 1))
        begin = max(0, end - self.context)
        sequences = torch.stack([self.sequence(rng) for _ in range(size)])
        targets = sequences[:, end - self.latents + 1 : end + 1]
        prefix = end - begin - self.latents
        seen = None if visible is None or visible >= prefix else self._seen(rng, end, prefix, visible)
        return Batch(sequences[:, begin:end], targets, None if seen is None else seen.expand(size, -1))

    def _seen(self, rng: np.random.Generator, end: int, prefix: int, visible: int) -> Tensor:
        """Return `visible` positions of a prefix in order, `[visible]`; the sources of the targets are among them."""
        order = rng.random(prefix)
        order[max(0, end - self.latents + 1 - self.half) : end + 1 - self.half] = -1  # these come first
        return torch.from_numpy(np.sort(np.argpartition(order, visible - 1)[:visible]))


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What to measure: a size of the model, and lengths.

    Attributes:
        name: Name of the files.
        lengths: Lengths with the curriculum.
        unaided: Lengths without a curriculum.
        control: Length at which the control is measured.
        seeds: Seeds of each length.
        most_steps: Steps after which a row ends, learned or not.
    """

    name: str
    lengths: tuple[int, ...]
    unaided: tuple[int, ...]
    control: int
    seeds: tuple[int, ...]
    latents: int = 128
    symbols: int = 16
    d_model: int = 64
    layers: int = 1
    cross_heads: int = 2
    batch_size: int = 4
    most_steps: int = 2000

    def model(self, task: Task) -> ModelConfig:
        return ModelConfig(
            vocab_size=task.symbols + 2, pad_id=task.symbols + 1, context_length=task.context,
            num_latents=task.latents, d_model=self.d_model, num_layers=self.layers,
            num_heads=max(1, self.d_model // 64), cross_num_heads=self.cross_heads, rotary_fraction=1.0,
        )  # fmt: skip

    def training(self, seed: int) -> TrainingConfig:
        """Return settings of training, with higher rates and more decay than music has.

        At low rates, some rows stay where a few symbols, as queries, attend to a wrong place: the attention is sharp
        before it is right. Steps until the task of 4,096 tokens was learned, for two seeds: with `lr` 0.01, decay 0.01
        and ratio 1, not in 275 and 350; with 0.02, 0.01 and 0.5, in 250 and 250; with these settings, in 200 and 200.
        """
        return TrainingConfig(
            steps=self.most_steps, batch_size=self.batch_size, lr=0.02, adamw_lr_ratio=1.0, weight_decay=1.0,
            warmup_steps=50, cooldown_steps=0, prefix_dropout=0.0, ema_decay=0.9, seed=seed,
        )  # fmt: skip


REPORTED = Setting(
    name="copy", lengths=(1024, 4096, 16384, 65536, 131072), unaided=(1024, 4096), control=4096, seeds=(1, 2)
)
SMOKE = Setting(name="copy-smoke", lengths=(256, 1024, 4096), unaided=(256, 1024), control=1024, seeds=(1,), latents=64)
GPU = Setting(
    name="copy-gpu", lengths=(131072,), unaided=(131072,), control=131072, seeds=(1, 2), latents=1024, symbols=256,
    d_model=512, layers=6, cross_heads=4, batch_size=8, most_steps=25_000,
)  # fmt: skip


@dataclass
class Progress:
    """Where a row is, apart from its weights.

    Attributes:
        visible: Visible keys of the prefix; None for all.
        all_keys_from: Step from which all keys were visible, or None.
        steps_to_99: Steps after which the accuracy exceeded 0.99 for the first time, or None.
        seconds: Seconds of training, checks included.
        is_done: Whether training has ended.
    """

    visible: int | None = None
    all_keys_from: int | None = None
    steps_to_99: int | None = None
    seconds: float = 0.0
    is_done: bool = False


def random(seed: int, stream: int, number: int) -> np.random.Generator:
    """Return the random numbers of a batch; another seed, stream or number gives others."""
    return np.random.default_rng([seed, stream, number])


def train(
    task: Task, learner: Learner, progress: Progress, most_steps: int, on_check: Callable[[str], None] = lambda _: None
) -> None:
    """Train until the task is learned or the limit of steps is reached; change `progress`.

    A step depends only on the seed, its number and the state before it. So a row may be interrupted at any check.

    Args:
        task: What to learn.
        learner: Model in training.
        progress: Where the row is.
        most_steps: Limit of steps.
        on_check: Called with a message at every check, where learner and progress can be saved.
    """
    seed, size = learner.training.seed, learner.training.batch_size
    while not progress.is_done:
        begun, costs = time.perf_counter(), list[float]()
        while len(costs) < STEPS_OF_CHECK and learner.step < most_steps:
            costs.append(float(learner.update(task.batch(random(seed, TRAIN, learner.step), size, progress.visible))))
        nats, (_, accuracy, _) = sum(costs) / len(costs), score(task, learner, CHECK, WINDOWS_OF_CHECK)
        if accuracy > LEARNED and progress.steps_to_99 is None:
            progress.steps_to_99 = learner.step
        shown = progress.visible
        if shown is None:
            progress.is_done = accuracy > ENOUGH
        elif nats < MORE_KEYS:
            more = MORE_AT_ONCE * shown
            progress.visible = None if more >= task.context - task.latents else more
            progress.all_keys_from = learner.step if progress.visible is None else None
        progress.is_done = progress.is_done or learner.step >= most_steps
        progress.seconds += time.perf_counter() - begun
        on_check(f"step {learner.step:,}: {nats:.3f} nats with {shown or 'all'} keys, {accuracy:.3f} right with all")


@torch.no_grad()
def score(task: Task, learner: Learner, stream: int, windows: int) -> tuple[float, float, int]:
    """Return nats per symbol, accuracy and number of symbols, on sequences that are not trained on."""
    nats, right, count = 0.0, 0, 0
    learner.model.eval()
    with learner.average.in_place(), learner.machine.autocast():  # type: ignore[union-attr]
        for number in range(windows):
            batch = task.batch(random(learner.training.seed, stream, number), 1).to(learner.machine.device)
            log_probs = learner.model(batch.tokens).float().log_softmax(-1)
            symbols = batch.targets < task.symbols
            nats -= float(log_probs.gather(-1, batch.targets[..., None])[..., 0][symbols].sum())
            right += int((log_probs.argmax(-1) == batch.targets)[symbols].sum())
            count += int(symbols.sum())
    return nats / count, right / count, count


def measured(
    setting: Setting, task: Task, curriculum: str, seed: int, most_steps: int, asked: argparse.Namespace, where: Machine
) -> dict[str, object] | None:
    """Return a row, continued from its saved state if there is one; None if it needs too much memory."""
    name = f"{task.length:,}, context {task.context:,}, curriculum {curriculum}, seed {seed}"
    shape, training = setting.model(task), setting.training(seed)
    memory = memory_needed(shape, training, where)
    available = min(asked.max_gib * 2**30, available_memory(where.device) or math.inf)
    at_once = memory.largest_micro_batch(int(available), training.batch_size)
    if not at_once:
        print(f"{name}: left out, needs {memory.needed(1) / 2**30:.1f} GiB", flush=True)
        return None
    learner = Learner(shape, replace(training, micro_batch=at_once), where)
    progress = Progress(visible=task.latents if curriculum == KEYS else None)
    state = asked.runs / f"{setting.name}-{task.length}-{task.context}-{curriculum}-{seed}.pt"
    if state.exists():
        saved = torch.load(state, map_location=where.device, weights_only=True)
        learner.load_state_dict(saved["learner"])
        progress = Progress(**saved["progress"])
        progress.is_done = learner.step >= most_steps
    print(f"{name}: from step {learner.step:,}, {memory.needed(at_once) / 2**20:.0f} MiB predicted", flush=True)
    last_save = time.monotonic()

    def save_and_tell(words: str) -> None:
        nonlocal last_save
        print(f"{name}: {words}, {progress.seconds:.0f} s", flush=True)
        if time.monotonic() - last_save > 60 * asked.save_minutes:
            with written_atomically(state) as draft:
                torch.save({"learner": learner.state_dict(), "progress": asdict(progress)}, draft)
            last_save = time.monotonic()

    train(task, learner, progress, most_steps, save_and_tell)
    nats, accuracy, count = score(task, learner, FINAL, WINDOWS_AT_END)
    return {
        "setting": setting.name, "length": task.length, "context": task.context, "curriculum": curriculum,
        "latents": task.latents, "layers": setting.layers, "d_model": setting.d_model, "symbols": task.symbols,
        "parameters": learner.model.num_parameters(), "seed": seed, "batch_size": training.batch_size,
        "steps": learner.step, "predicted_tokens": learner.step * training.batch_size * task.latents,
        "steps_to_99": progress.steps_to_99,
        "steps_with_all_keys": learner.step - (0 if curriculum == NONE else progress.all_keys_from or learner.step),
        "seconds": round(progress.seconds, 1), "nats_per_token": round(nats, 4), "accuracy": round(accuracy, 5),
        "chance": 1 / task.symbols, "scored_symbols": count, "precision": where.precision, "threads": asked.threads,
        "date": datetime.date.today().isoformat(), "machine": machine(),
    }  # fmt: skip


def wanted(setting: Setting) -> Iterator[tuple[int, int, str, int]]:
    """Yield length, context, curriculum and seed of each row: short lengths first, rows without curriculum last."""
    for length in setting.lengths:
        for seed in setting.seeds:
            yield length, length, KEYS, seed
            if length == setting.control:
                yield length, length // 4, NONE, seed
    for length in setting.unaided:
        for seed in setting.seeds:
            yield length, length, NONE, seed


def key_of(row: dict[str, str]) -> tuple[str, ...]:
    return tuple(row[name] for name in KEY)


def draw(rows: list[dict[str, str]], path: Path) -> None:
    """Draw accuracy, steps to 99 % and seconds against the length."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib import ticker

    figure, axes = plt.subplots(1, 3, figsize=(13, 4.2), layout="constrained")
    panels = (
        ("accuracy", "accuracy of copied symbols, fresh sequences"),
        ("steps_to_99", "steps until 99 % are right"),
        ("seconds", "seconds of training"),
    )
    lines = (
        ("curriculum of keys", KEYS, True, "o-"),
        ("no curriculum", NONE, True, "s--"),
        ("control, sees a quarter", NONE, False, "x:"),
    )
    for ax, (column, title) in zip(axes, panels, strict=True):
        for label, curriculum, is_whole, style in lines:
            points = sorted(
                (int(row["length"]), float(row[column]))
                for row in rows
                if row["curriculum"] == curriculum and (row["length"] == row["context"]) == is_whole and row[column]
            )
            lengths = sorted({length for length, _ in points})
            means = [float(np.mean([y for x, y in points if x == length])) for length in lengths]
            (line,) = ax.plot(lengths, means, style, label=label, markersize=4)
            ax.plot([x for x, _ in points], [y for _, y in points], style[0], color=line.get_color(), alpha=0.5)
        ax.set_xscale("log", base=2)
        ax.set(xlabel="length of the sequence, tokens", title=title)
        ax.title.set_fontsize(10)
        ax.grid(alpha=0.3)
    axes[0].axhline(float(rows[0]["chance"]), color="grey", linewidth=1, label="chance")
    axes[0].set_ylim(-0.02, 1.05)
    axes[0].legend(fontsize=8)
    axes[1].set_ylim(bottom=0)
    axes[2].set_yscale("log")
    for set_formatter in (axes[2].yaxis.set_major_formatter, axes[2].yaxis.set_minor_formatter):
        set_formatter(ticker.FuncFormatter(lambda y, _: f"{y:,.0f}" if f"{y:.0e}"[0] in "125" else ""))
    last = rows[-1]
    figure.supxlabel(
        f"{last['symbols']} symbols, {last['latents']} latents, {last['layers']} layer(s), width {last['d_model']},"
        f" {int(last['parameters']):,} weights; seed {' and '.join(sorted({r['seed'] for r in rows}))}, lines are means"
        f"\n{last['precision']}, {last['threads']} thread(s), {last['machine']}, {last['date']}", fontsize=7,
    )  # fmt: skip
    figure.savefig(path, dpi=130, metadata={"Software": f"matplotlib, Python {platform.python_version()}"})
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--smoke", action="store_true")
    which.add_argument("--gpu", action="store_true")
    parser.add_argument("--lengths", type=int, nargs="+", help="measure these lengths of the setting only")
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--steps", type=int, help="limit of steps of a row; of a row in the table, it changes nothing")
    parser.add_argument("--runs", type=Path, default=Path("runs/paper"), help="folder for states of unfinished rows")
    parser.add_argument("--save-minutes", type=float, default=3.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--max-gib", type=float, default=10.0)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    setting = SMOKE if asked.smoke else GPU if asked.gpu else REPORTED
    if asked.seeds:
        setting = replace(setting, seeds=tuple(asked.seeds))
    if asked.steps:
        setting = replace(setting, most_steps=asked.steps)
    if asked.gpu and asked.max_gib == parser.get_default("max_gib"):
        asked.max_gib = math.inf
    where = choose_machine("cuda" if asked.gpu else "cpu", "auto", compile=False)  # windows differ in length
    for folder in (RESULTS, asked.runs):
        folder.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{setting.name}.csv"
    for length, context, curriculum, seed in wanted(setting):
        rows = {key_of(row): row for row in read_rows(path)}
        key = (setting.name, str(length), str(context), curriculum, str(seed))
        if key in rows or (asked.lengths and length not in asked.lengths):
            continue
        most_steps = setting.most_steps
        if context < length:  # a control: as many steps as the row that sees everything
            whole = rows.get((setting.name, str(length), str(length), KEYS, str(seed)))
            most_steps = most_steps if whole is None else int(whole["steps"])
        task = Task(length=length, context=context, latents=setting.latents, symbols=setting.symbols)
        row = measured(setting, task, curriculum, seed, most_steps, asked, where)
        if row is None:
            continue
        add_rows(path, [row])
        (asked.runs / f"{setting.name}-{length}-{context}-{curriculum}-{seed}.pt").unlink(missing_ok=True)
        print(f"{length:,}, {curriculum}: {row['accuracy']} right after {row['steps']} steps", flush=True)
        draw(read_rows(path), path.with_suffix(".png"))
    if path.exists():
        draw(read_rows(path), path.with_suffix(".png"))


if __name__ == "__main__":
    main()
