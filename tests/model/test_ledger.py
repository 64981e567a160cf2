"""The ledger says what is open and for how long, and says the same however the ids come."""

import math
from dataclasses import asdict, replace

import pytest
import torch
from models import LEDGER, VOCAB, N, outspoken_model, piece, tiny_config, uncached

from pamusic.checkpoint import load_checkpoint, save_checkpoint
from pamusic.inference.session import InferenceConfig, InferenceSession
from pamusic.model.config import LedgerConfig, ModelConfig
from pamusic.model.ledger import FIRST_AGE, LAST_AGE, NUM_AGES, Ledger, shares_of_ages
from pamusic.model.perceiver_ar import PerceiverAR
from pamusic.tokens.grammar import ledger_ranges
from pamusic.tokens.tokenizer import load_tokenizer


def plain_ages(ids):
    """The twin in plain words: slot -> ticks since it was opened, of those that are open after the ids."""
    opened_at, now = {}, 0
    for id in ids:
        if id < 5:
            opened_at[id] = now
        elif id < 10:
            opened_at.pop(id - 5, None)
        elif id < 14:
            now += id - 9
    return [now - opened_at[slot] if slot in opened_at else -1 for slot in range(5)]


def a_ledger():
    return Ledger(LEDGER, VOCAB, 8)


@pytest.mark.parametrize("n", [1, 7, 60])
def test_it_knows_what_is_open_and_since_when(n):
    ids = torch.tensor([piece(60), piece(60, seed=2)])

    ages = a_ledger().ages(ids, n)

    assert ages.tolist() == [[plain_ages(row[:end]) for end in range(61 - n, 61)] for row in ids.tolist()]
    assert ages.min() == -1
    assert ages.max() > 10


@pytest.mark.parametrize("sizes", [[0] * 60, [1] * 60, [60], [1, 18, 0, 0, 1, 5, 33]])
def test_entered_bit_by_bit_it_says_the_same_of_a_window(sizes):
    ledger, ids, window = a_ledger(), torch.tensor([piece(60), piece(60, seed=2)]), 20
    entries, read = ledger.new_entries(2), 0

    for size in sizes:  # 0: one id, as a step takes it
        if size:
            ledger.enter(ids[:, read : read + size], entries)
        else:
            ledger.step(ids[:, read], entries, window)
        read += size or 1
        assert torch.equal(entries.ages(window), ledger.ages(ids[:, max(0, read - window) : read], 1)[:, 0])
    assert read == 60


def test_rows_of_a_ledger_can_be_left_out_and_repeated():
    ledger, ids = a_ledger(), torch.tensor([piece(30), piece(30, seed=2)])
    entries = ledger.new_entries(2)
    ledger.enter(ids[:, :20], entries)

    entries.select(torch.tensor([1, 1, 0]))
    ledger.enter(ids[[1, 0, 0], 20:], entries)

    mixed = [ids[1].tolist(), ids[1, :20].tolist() + ids[0, 20:].tolist(), ids[0].tolist()]
    assert entries.ages(100).tolist() == [plain_ages(row) for row in mixed]


def test_an_age_is_shared_by_the_two_marks_next_to_it():
    shares = shares_of_ages()
    none, struck, first, *_ = shares[[0, 1, 1 + FIRST_AGE, 1 + LAST_AGE]]

    assert none.tolist() == [0] * NUM_AGES
    assert struck.tolist() == [1] + [0] * (NUM_AGES - 1)
    assert first.tolist() == [0, 1] + [0] * (NUM_AGES - 2)
    assert shares[-1].tolist() == [0] * (NUM_AGES - 1) + [1]
    place = math.log2(1 + 2 / FIRST_AGE)
    assert shares[1 + 2, :2].tolist() == pytest.approx([1 - place, place], abs=1e-6)
    assert shares[1:].sum(1).tolist() == pytest.approx([1] * (LAST_AGE + 1))
    assert (shares > 0).sum(1).max() == 2


def test_what_is_old_is_as_old_as_can_be_told():
    ledger = a_ledger()
    torch.nn.init.normal_(ledger.weight)
    waits = [torch.tensor([[0, *[13] * (LAST_AGE // 4 + more)]]) for more in (-5, 1, 300)]
    young, old, older = (ledger(ids, 1) for ids in waits)

    assert torch.equal(old, older)
    assert not torch.allclose(young, old)


def test_what_is_left_out_of_the_prefix_is_in_the_ledger_all_the_same():
    model, ids = outspoken_model(), torch.tensor([piece(40)])
    nothing = torch.full((1, 4), -1)
    opened, closed = ids.clone(), ids.clone()
    opened[0, 3], closed[0, 3] = 2, 2 + 5
    for other in (opened, closed):
        other[0, 4:32] = other[0, 4:32].clamp(min=10)  # no slot is opened or closed from there to the latents

    assert not torch.allclose(model(opened, prefix_indices=nothing), model(closed, prefix_indices=nothing))
    silent = outspoken_model(ledger=None)
    assert torch.equal(silent(opened, prefix_indices=nothing), silent(closed, prefix_indices=nothing))


def test_a_reader_keeps_the_ledger_of_each_row():
    model, (ids, other) = outspoken_model(), (piece(40), piece(40, seed=2))
    reader = InferenceSession(model, InferenceConfig(refill="all"))
    reader.prefill(ids[:10])
    reader.select([0, 0])

    for length, (mine, yours) in enumerate(zip(ids[10:], other[10:], strict=True), start=11):
        logits = reader.step([mine, yours])
        for row, follows in zip(logits, (ids, other), strict=True):
            expected = uncached(model, [*ids[:10], *follows[10:length]], min(length, N))
            assert torch.allclose(row, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["performance", "piano"])
def test_a_vocabulary_says_where_keys_and_time_stand(name):
    vocabulary = load_tokenizer(name).vocabulary
    ledger = Ledger(LedgerConfig(**ledger_ranges(vocabulary)), len(vocabulary), 8)

    ids = torch.tensor([[vocabulary.id(*event) for event in [
        ("velocity", 9), ("note_on", 60), ("time_shift", 100), ("time_shift", 3), ("note_on", 64), ("note_off", 60),
        ("time_shift", 7),
    ]]])  # fmt: skip
    ages = ledger.ages(ids, 4)[0]
    lowest = vocabulary.range("note_on").first
    keys = [60 - lowest, 64 - lowest]

    assert ages[:, keys].tolist() == [[103, -1], [103, 0], [-1, 0], [-1, 7]]
    assert (ages >= 0).sum() == 5


def test_a_ledger_of_ids_that_are_not_there_is_refused():
    with pytest.raises(ValueError, match="ids of the ledger must be between 0 and 390"):
        tiny_config(ledger=replace(LEDGER, first_tick=390))


def test_a_checkpoint_keeps_its_ledger(tmp_path):
    tokenizer = load_tokenizer("performance")
    config = tiny_config(ledger=LedgerConfig(**ledger_ranges(tokenizer.vocabulary)))
    model = PerceiverAR(config).eval()
    torch.nn.init.normal_(model.ledger.weight)

    save_checkpoint(tmp_path / "c", model, tokenizer, metadata={})
    loaded = load_checkpoint(tmp_path / "c").model

    assert loaded.config == config == ModelConfig.from_json(asdict(config))
    assert torch.equal(loaded.ledger.weight, model.ledger.weight)
