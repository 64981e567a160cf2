"""The experiments on the paper's claims: equal operations, the same music in another order, rows measured once."""

import csv
import importlib
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from corpora import small_corpus

from pamusic.corpus.corpus import open_corpus
from pamusic.corpus.writer import writing_corpus
from pamusic.tokens.grid import GridNotes
from pamusic.tokens.tokenizer import load_tokenizer

FOLDER = Path(__file__).parents[1] / "benchmarks" / "paper"


@pytest.fixture
def script(monkeypatch):
    """A function that imports a script by its name."""
    monkeypatch.syspath_prepend(str(FOLDER))
    yield importlib.import_module
    for path in FOLDER.glob("*.py"):
        sys.modules.pop(path.stem, None)


@pytest.fixture
def chord(tmp_path):
    """A corpus of one piece: three keys go down together and up together, then one more."""
    tokenizer = load_tokenizer("performance")
    onset, offset, pitch = np.array([0, 0, 0, 50]), np.array([50, 50, 50, 100]), np.array([60, 64, 67, 72])
    path = tmp_path / "corpus-performance"
    with writing_corpus(path, tokenizer) as writer:
        ids = tokenizer.ids_from_grid(GridNotes(onset, offset, pitch, np.full(4, 16)))
        writer.add(ids, name="a.mid", split="validation", num_notes=4, seconds=1.0, sha256=64 * "0")
        writer.close()
    return path


@pytest.mark.parametrize(("order", "pitches"), [("as written", [60, 64, 67, 72]), ("high to low", [67, 64, 60, 72])])
def test_a_reordered_corpus_has_the_same_notes_in_another_order(script, chord, order, pitches):
    path = script("order").reordered(chord, order)
    corpus = open_corpus(path)
    ids = corpus.piece(0)

    assert [int(token) for token in ids if token < 128] == pitches  # the note-ons
    assert [int(token) - 128 for token in ids if 128 <= token < 256] == pitches  # the note-offs
    assert sorted(ids.tolist()) == sorted(open_corpus(chord).piece(0).tolist())
    assert script("order").reordered(chord, order) == path  # made once


def test_the_entropy_of_an_order_counts_simultaneous_onsets_and_releases(script, chord):
    (piece,) = open_corpus(chord).pieces
    expected = 2 * math.log(6) / (piece.num_tokens + 1)  # three onsets, three releases; the end is a token too
    assert script("order").order_nats(chord, 1) == pytest.approx(expected)


def test_every_architecture_gets_the_operations_of_the_first_to_half_a_step(script, tmp_path):
    small_corpus(tmp_path / "corpus-notes", tokenizer="notes")
    common, architectures = script("common"), script("architectures")
    for scale in common.SCALES.values():
        arms = architectures.arms(scale, tmp_path, tmp_path)
        of_step = [common.arm_flops_of_step(arm, scale) for arm in arms]
        totals = [arm.settings["steps"] * flops for arm, flops in zip(arms, of_step, strict=True)]
        assert arms[0].settings["steps"] == scale.settings["steps"]
        for total, flops in zip(totals, of_step, strict=True):
            assert abs(total - totals[0]) <= flops / 2


@pytest.mark.slow
def test_an_experiment_continues_where_it_was_interrupted(script, tmp_path, monkeypatch):
    small_corpus(tmp_path / "corpus-notes", tokenizer="notes")
    common, scale_script = script("common"), script("scale")
    shortest = replace(
        common.SCALES["smoke"],
        settings={**common.SCALES["smoke"].settings, "steps": 2, "num_latents": 16, "validate_every": 1},
        num_pieces=1,
    )
    monkeypatch.setitem(common.SCALES, "smoke", shortest)
    monkeypatch.setattr(common, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(sys, "argv", ["scale.py", "no-maestro", str(tmp_path), "--smoke"])
    calls, original = [], common.pamusic

    def interrupted(*words):
        calls.append(words[0])
        if calls.count("train") == 2:  # stopped after a step, as by Ctrl-C
            original(*words, "--max-minutes", 0)
            raise KeyboardInterrupt
        return original(*words)

    monkeypatch.setattr(common, "pamusic", interrupted)
    first_two = common.Experiment(
        name="scale",
        arms=lambda *asked: scale_script.arms(*asked)[:2],
        measure=scale_script.measure,
        draw=scale_script.draw,
        num_axes=2,
    )
    with pytest.raises(KeyboardInterrupt):
        common.run_experiment(first_two, "")
    path = tmp_path / "results" / "scale-smoke.csv"
    (before,) = common.read_rows(path)
    calls.clear()
    stopped = next(run for run in tmp_path.glob("smoke-*") if (run / "state.pt").exists())
    assert (stopped / "finished").exists()
    common.run_experiment(first_two, "")

    assert calls == ["train", "evaluate"]  # of the second arm alone
    assert not (stopped / "state.pt").exists()
    assert [row["steps"] for row in common.read_rows(path)] == ["2", "2"]
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == before
    assert [row["arm"] for row in rows] == ["perceiver-ar 16", "transformer 16"]
    assert all(0 < float(row["nats_per_token"]) < 50 for row in rows)
    assert path.with_suffix(".png").stat().st_size > 10_000
