"""Trained weights for another vocabulary: ids keep their meanings."""

import numpy as np
import pytest
import torch
from corpora import small_corpus
from models import tiny_config
from trainers import new_run

from pamusic.checkpoint import Checkpoint, save_checkpoint
from pamusic.errors import UsageError
from pamusic.model.config import LedgerConfig, RecallConfig
from pamusic.model.perceiver_ar import PerceiverAR
from pamusic.resources import tokenizers_folder
from pamusic.tokens.grammar import ledger_ranges, recall_ranges
from pamusic.tokens.tokenizer import load_tokenizer
from pamusic.tokens.vocabulary import load_vocabulary
from pamusic.tokens.vocabulary_map import NOTHING, nearest_ids
from pamusic.training.vocabulary_transfer import transfer_vocabulary

PERFORMANCE, PIANO = (load_tokenizer(name).vocabulary for name in ("performance", "piano"))


def meaning(id, of=PIANO, among=PERFORMANCE):
    nearest = int(nearest_ids(of, among)[id])
    return None if nearest == NOTHING else among.event(nearest)


@pytest.mark.parametrize(
    ("event", "nearest"),
    [
        (("note_on", 60), ("note_on", 60)),
        (("note_off", 21), ("note_off", 21)),
        (("time_shift", 100), ("time_shift", 100)),
        (("velocity", 1), ("velocity", 1)),  # 1 to 3, and 1 to 4
        (("velocity", 22), ("velocity", 17)),  # 64 to 66; 65 to 68 is nearer than 61 to 64
        (("velocity", 43), ("velocity", 32)),  # 127, and 125 to 127
        (("sustain", 3), None),
        (("soft", 0), None),
        (("start", 0), ("start", 0)),
        (("pad", 0), ("pad", 0)),
    ],
)
def test_an_id_finds_the_one_that_means_most_nearly_the_same(event, nearest):
    assert meaning(PIANO.id(*event)) == nearest


def test_what_a_vocabulary_has_no_room_for_goes_to_the_nearest_it_has():
    low, high = (PERFORMANCE.id("note_on", pitch) for pitch in (0, 127))
    assert meaning(low, of=PERFORMANCE, among=PIANO) == ("note_on", 21)
    assert meaning(high, of=PERFORMANCE, among=PIANO) == ("note_on", 108)


@pytest.fixture
def coarse(tmp_path):
    """The piano's vocabulary with steps of 20 ms, a pedal that is down or up, and other loudnesses."""
    text = (tokenizers_folder() / "piano.toml").read_text()
    changes = {"step_ms = 10": "step_ms = 20", "bins = 43": "bins = 64", "last = 43": "last = 64"}
    changes['kind = "sustain" # the right pedal, up, a third down, two thirds down, or down\nfirst = 0\nlast = 3'] = (
        'kind = "sustain"\nfirst = 0\nlast = 1'
    )
    for old, new in changes.items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    (tmp_path / "coarse.toml").write_text(text)
    return load_vocabulary(tmp_path / "coarse.toml")


@pytest.mark.parametrize(
    ("event", "nearest"),
    [
        (("time_shift", 5), ("time_shift", 2)),  # 50 ms; 40 is as near as 60
        (("time_shift", 6), ("time_shift", 3)),
        (("time_shift", 1), ("time_shift", 1)),
        (("sustain", 0), ("sustain", 0)),
        (("sustain", 1), ("sustain", 0)),  # a third
        (("sustain", 2), ("sustain", 1)),
        (("sustain", 3), ("sustain", 1)),
        (("velocity", 43), ("velocity", 64)),
    ],
)
def test_near_is_of_what_is_meant_not_of_numbers(coarse, event, nearest):
    assert meaning(PIANO.id(*event), among=coarse) == nearest


def test_of_two_as_near_it_is_the_lower_one(coarse):
    # Bins of two velocities, whose middle is 21, 27, 33 …, between those of three, whose middle is 19.5, 22.5 …
    for velocity_bin in (11, 14, 17, 20, 23, 26):
        middle, below = 2 * velocity_bin - 0.5, (2 * velocity_bin - 1) // 3
        assert middle - (3 * below - 1) == 3 * (below + 1) - 1 - middle
        assert meaning(coarse.id("velocity", velocity_bin), of=coarse, among=PIANO) == ("velocity", below)


def test_each_id_of_a_vocabulary_is_nearest_to_itself():
    for vocabulary in (PERFORMANCE, PIANO):
        assert np.array_equal(nearest_ids(vocabulary, among=vocabulary), np.arange(len(vocabulary)))


@pytest.fixture
def trained():
    """Weights that are all different, with a ledger and recall, for performance events."""
    config = tiny_config(
        vocab_size=len(PERFORMANCE),
        pad_id=PERFORMANCE.id("pad"),
        ledger=LedgerConfig(**ledger_ranges(PERFORMANCE)),
        recall=RecallConfig(**recall_ranges(PERFORMANCE), far=16, like=0.9),
    )
    torch.manual_seed(3)
    model = PerceiverAR(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return Checkpoint("trained", model, load_tokenizer("performance"), {"step": 7})


def test_music_without_pedals_is_to_carried_weights_what_it_was_to_those_before(trained):
    # Of pitches, times and velocities that both vocabularies have; so logits of what both have are the same.
    piano = transfer_vocabulary(trained, load_tokenizer("piano")).model
    rng = np.random.default_rng(5)
    events = [("start", 0), ("velocity", 1)]
    for pitch in rng.integers(21, 109, 40).tolist():
        events += [("note_on", pitch), ("time_shift", int(rng.integers(1, 101))), ("note_off", pitch)]
    before, now = (torch.tensor([[of.id(*event) for event in events]]) for of in (PERFORMANCE, PIANO))
    nearest = torch.from_numpy(nearest_ids(PIANO, among=PERFORMANCE))
    shared = nearest != NOTHING

    trained.model.recall = piano.recall = None  # a copy goes to one id alone, not to all that mean nearly the same
    with torch.no_grad():
        logits, carried_logits = trained.model(before), piano(now)

    torch.testing.assert_close(carried_logits[..., shared], logits[..., nearest[shared]], atol=1e-5, rtol=1e-5)
    average = logits.mean(-1, keepdim=True)
    torch.testing.assert_close(carried_logits[..., ~shared], average.expand(-1, -1, 8), atol=1e-5, rtol=1e-5)


def test_events_there_were_none_of_begin_as_random_as_those_of_a_new_model(trained):
    pedals = transfer_vocabulary(trained, load_tokenizer("piano")).model.embedding.weight[PIANO.id("sustain", 0) :][:8]
    assert 0.8 < pedals.std() < 1.2
    assert len({tuple(row) for row in pedals.tolist()}) == 8


def test_the_ledger_and_the_gate_keep_what_they_know(trained):
    piano = transfer_vocabulary(trained, load_tokenizer("piano")).model
    before, now = (model.ledger.weight.unflatten(1, (-1, 8)) for model in (trained.model, piano))
    assert torch.equal(now, before[:, 21:109])
    assert torch.equal(piano.recall.gate.weight, trained.model.recall.gate.weight)


def test_constants_that_training_does_not_set_stay(trained):
    config = transfer_vocabulary(trained, load_tokenizer("piano")).model.config
    assert (config.recall.far, config.recall.like, config.recall.num_slots) == (16, 0.9, 88)
    assert (config.vocab_size, config.pad_id, config.ledger.num_ticks) == (len(PIANO), PIANO.id("pad"), 100)


def test_a_run_on_a_corpus_of_another_tokenizer_begins_with_what_is_carried_over(tmp_path, trained):
    save_checkpoint(tmp_path / "trained", trained.model, trained.tokenizer, metadata={})
    corpus = small_corpus(tmp_path / "c", tokenizer="piano")
    trainer = new_run(
        corpus.path, init_from=str(tmp_path / "trained"), out=tmp_path / "run", steps=2, cooldown_steps=0,
        device="cpu", precision="fp32", compile=False,
    )  # fmt: skip
    begun = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
    trainer.train()

    told = f"starts from the weights of {tmp_path / 'trained'}, carried over from performance to piano events"
    assert trainer.plan.started_from == told.removeprefix("starts from the weights of ")
    expected = transfer_vocabulary(trained, load_tokenizer("piano")).model.state_dict()
    assert all(torch.equal(begun[name], expected[name]) for name in expected)
    assert any(not torch.equal(weight, begun[name]) for name, weight in trainer.model.state_dict().items())
    assert trainer.training.lr == pytest.approx(0.012)
    with pytest.raises(UsageError, match=r"has another vocabulary than .*; leave --train-only out"):
        new_run(corpus.path, init_from=str(tmp_path / "trained"), only="recall")
