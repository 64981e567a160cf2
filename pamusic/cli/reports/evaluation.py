"""Print the results of `pamusic evaluate` and `compare`: tables on standard error, and the result. Knows words."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from pamusic.cli.terminal import log, progress, progress_callback, result, table
from pamusic.errors import UsageError

if TYPE_CHECKING:
    from pamusic.corpus.corpus import Corpus
    from pamusic.evaluation.comparison import StatisticComparison, StatisticSet
    from pamusic.evaluation.likelihood import Likelihood
    from pamusic.evaluation.sweep import SweepPoint
    from pamusic.model.sequence_model import SequenceModel


PART = "bits_per_note_"  # prefix of the parts of bits per note
LAG_WORDS = {"2s": "up to 2 s", "12s": "2 to 12 s", "60s": "12 to 60 s", "later": "more"}


class Split(StrEnum):
    """The splits of a corpus, as option values."""

    train = "train"
    validation = "validation"
    test = "test"


def print_scores(total: Likelihood, points: list[SweepPoint], about: dict[str, Any], *, as_json: bool) -> None:
    """Print the likelihood of a split; the result is its nats per token, or everything as JSON."""
    numbers: dict[str, Any] = {**total.numbers(), "by_position": total.by_position()}
    if as_json:
        result(json.dumps({**about, **numbers, "sweep": [point.numbers() for point in points]}))
        return
    stretches = numbers.pop("by_position")
    parts = {name: numbers.pop(name) for name in list(numbers) if name.startswith(PART)}
    table([{"split": about["split"], **numbers}])
    if parts:
        named = {name.removeprefix(PART).replace("_", " "): bits for name, bits in parts.items()}
        rows = [{"field": name, "bits per note": bits} for name, bits in named.items()]
        table(rows, "By field, in the piece's own key; each field includes the values within its bins")
    table(stretches, "By position in the piece, in tokens")
    table([point.numbers() for point in points], "The same tokens, scored with other contexts and latents")
    result(f"{total.nats_per_token:.4f}")


def check_drift(asked: bool, num_tokens: int | None, unheeded: object) -> None:
    """Raise an error for options that `--cache-drift` ignores, or that need it."""
    if asked and unheeded:
        raise UsageError(
            "--cache-drift reports nothing else, in fp32; leave out --sweep, --plot, --stride, --num-keys and bf16"
        )
    if num_tokens is not None and not asked:
        raise UsageError("--drift-tokens requires --cache-drift; use both or none")


def check_keys(num_keys: int, sweep: bool) -> None:
    """Raise an error if `--sweep` would ignore the number of keys."""
    if sweep and num_keys > 1:
        raise UsageError(f"--sweep scores each piece in its own key; leave out --sweep, or --num-keys {num_keys}")


def print_drift(
    model: SequenceModel,
    corpus: Corpus,
    about: dict[str, Any],
    num_pieces: int,
    num_tokens: int | None,
    *,
    as_json: bool,
) -> None:
    """Print the cost of each refill policy; the result is a line with its name and nats per token for each, or JSON."""
    from pamusic.evaluation.cache_drift import drift

    bar = progress(what="drift", unit="stretch")

    move = progress_callback(bar)

    def tell(policy: str, done: int, of: int) -> None:
        bar.set_postfix_str(policy)
        move(done, of)

    drifts = drift(
        model, corpus, about["split"], num_pieces=num_pieces, num_tokens=num_tokens,
        num_latents=about["num_latents"], context_length=about["context_length"], progress=tell,
    )  # fmt: skip
    bar.close()
    rows = [each.numbers() for each in drifts]
    if as_json:
        result(json.dumps({**about, "drift": rows}))
        return
    table(rows, "The same tokens, read one by one, by what is recomputed when all latents are in use")
    for each in drifts:
        result(f"{each.refill} {each.nats_per_token:.4f}")


def print_comparison(
    rows: list[StatisticComparison], about: dict[str, Any], sets: tuple[StatisticSet, StatisticSet], *, as_json: bool
) -> None:
    """Print how similar the real and the generated set are; the result is the mean overlap, or everything as JSON."""
    from pamusic.evaluation.comparison import mean_overlap

    overlap, reachable = mean_overlap(rows)
    repetition = {which: each.repetition() for which, each in zip(("real", "generated"), sets, strict=True)}
    if as_json:
        shares = {which: {lag: round(share, 5) for lag, share in of.items()} for which, of in repetition.items()}
        alike = {"overlap": round(overlap, 4), "reachable": round(reachable, 4), "repetition": shares}
        result(json.dumps({**about, **alike, "statistics": [row.numbers() for row in rows]}))
        return

    def pair(values: tuple[float, float] | None) -> str:
        return "" if values is None else f"{values[0]:.3g} ±{values[1]:.2g}"

    table(
        [
            {
                "statistic": row.name.replace("_", " "),
                "real": pair(row.real),
                "generated": pair(row.generated),
                "overlap": f"{row.overlap:.2f}",
                "at best": f"{row.reachable:.2f}",
                "nats": f"{row.divergence:.3f}",
            }
            for row in rows
        ],
        f"{about['num_real']} real and {about['num_generated']} generated pieces, {about['seconds']:g} seconds of each",
    )
    table(
        [
            {"": which, **{LAG_WORDS[lag]: f"{share:.2%}" for lag, share in of.items()}}
            for which, of in repetition.items()
        ],
        "Figures of 8 consecutive notes that occurred before in their piece, by time since then",
    )
    log("overlap: from 0 to 1; at best: overlap of the real pieces with each other; nats: divergence of the distances")
    log("the result is the mean overlap of all statistics, without the four of repetition by lag")
    for which, num_short in zip(("real", "generated"), about["num_shorter"], strict=True):
        if num_short:
            log(f"{num_short} of the {which} pieces are shorter, and used whole")
    if not any(row.name == "sustain" for row in rows):
        log("the sustain pedal is not compared, since one of the sets has none; the other statistics include its sound")
    result(f"{overlap:.4f}")
