"""Keys that followed earlier, similar passages: which match counts, what it adds, and that it alone is trained."""

import dataclasses

import numpy as np
import pytest
import torch
from corpora import small_corpus
from models import tiny_config
from trainers import new_run, resumed_run

from pamusic.checkpoint import load_checkpoint, save_checkpoint
from pamusic.errors import UsageError
from pamusic.model import key_recall as module
from pamusic.model.config import KeyRecallConfig, ModelConfig
from pamusic.model.key_recall import KeyRecall
from pamusic.model.perceiver_ar import PerceiverAR

SIZES = (6, 9, 3)  # times of 0 to 5 ticks; a pedal, six keys, two other ids; anything
LENGTHS, AGES = (1, 2, 3, 5), (4, 20)
CONFIG = KeyRecallConfig(first_key=7, num_keys=6, shift_edges=tuple(range(7)), lengths=LENGTHS, ages=AGES)


def music(length, seed=0, rows=1):
    """Random positions `[rows, length, 3]` with few keys, so that passages return, and other ids between them."""
    random = np.random.default_rng(seed)
    shift, key, last = (random.integers(0, size, (rows, length)) for size in SIZES)
    key = np.where(random.random((rows, length)) < 0.7, 1 + key % 3 * 2, key)
    return torch.from_numpy(np.stack([shift, 6 + key, 15 + last], axis=-1))


def plain(positions):
    """The twin, by the words: the code of each key after all positions, for the same keys and for moved ones."""
    now, notes = 0, []
    for shift, key, _ in positions.tolist():
        now += shift
        if 7 <= key < 13:
            notes.append((key - 7, now))
    keys = [key for key, _ in notes]
    found = [{}, {}]
    for place in range(len(keys) - 1):
        by = keys[-1] - keys[place]
        same = moved = 0
        while same <= place and keys[place - same] == keys[-1 - same]:
            same += 1
        while moved < place and keys[place - moved] - keys[place - moved - 1] == keys[-1 - moved] - keys[-2 - moved]:
            moved += 1
        for way, length in ((0, same), (1, moved if by else 0)):
            key = keys[place + 1] + by
            if length and 0 <= key < 6:
                length_class = sum(least <= length for least in LENGTHS) - 1
                age_class = sum(age <= notes[-1][1] - notes[place][1] for age in AGES)
                of_key = found[way].get(key)
                if of_key is None or length_class >= of_key[0]:
                    found[way][key] = (length_class, age_class)
    codes = np.zeros((2, 6), int)
    for way in range(2):
        for key, (length_class, age_class) in found[way].items():
            codes[way, key] = 1 + (way * len(LENGTHS) + length_class) * (len(AGES) + 1) + age_class
    return codes


def test_the_longest_match_of_each_key_counts_and_of_equals_the_nearest():
    tokens, recall = music(120, rows=2), KeyRecall(CONFIG, SIZES)
    codes = recall(tokens, 110)

    assert codes.shape == (2, 110, 2, 6)
    for row in range(2):
        for n in range(110):
            np.testing.assert_array_equal(codes[row, n].numpy(), plain(tokens[row, : 11 + n]))
    assert len(codes.unique()) > 16  # most ways, lengths and ages occur


def test_a_figure_is_found_again_in_its_own_key_and_in_another():
    recall = KeyRecall(CONFIG, SIZES)
    keys = [0, 1, 3, 5, 0, 1, 3]
    in_its_key = torch.tensor([[[1, 7 + key, 15] for key in keys]])
    higher = torch.tensor([[[1, 7 + key, 15] for key in [0, 1, 3, 2, 1, 2, 4]]])

    same, moved = recall(in_its_key, 1)[0, 0]
    assert same.nonzero().tolist() == [[5]]
    assert int(same[5]) == 1 + 2 * 3 + 1  # three notes long, 4 ticks ago
    assert not moved[5]
    same, moved = recall(higher, 1)[0, 0]
    assert moved.nonzero().tolist() == [[3]]  # two intervals that led down a step then
    assert int(moved[3]) == 1 + 4 * 3 + 1 * 3 + 1
    assert not same.any()


def test_positions_that_are_not_notes_are_passed_over():
    recall = KeyRecall(CONFIG, SIZES)
    keys = [0, 1, 3, 5, 0, 1, 3]
    notes = [[0, 7 + key, 15] for key in keys]
    pedal = [0, 6, 16]
    between = [each for note in notes for each in (note, pedal)]

    with_pedals = recall(torch.tensor([between]), 1)
    assert with_pedals.any()
    assert torch.equal(with_pedals, recall(torch.tensor([notes]), 1))
    assert not recall(torch.tensor([[pedal] * 5]), 3).any()


def test_it_is_the_same_in_parts_and_where_values_cannot_be_read(monkeypatch):
    tokens, recall = music(90, rows=3), KeyRecall(CONFIG, SIZES)
    whole = recall(tokens, 50)
    monkeypatch.setattr(module, "PAIRS", 3 * 90 * 7)
    assert torch.equal(recall(tokens, 50), whole)

    every = torch.meshgrid
    monkeypatch.setattr(
        module,
        "_pairs",
        lambda equal: tuple(i.flatten() for i in every(*map(torch.arange, equal.shape), indexing="ij")),
    )
    assert torch.equal(recall(tokens, 50), whole)


def test_a_bias_is_added_to_the_logits_of_keys_alone():
    model = PerceiverAR(tiny_config(vocab_size=18, pad_id=14, field_sizes=SIZES, recall=CONFIG)).eval()
    tokens, following = music(60), music(16, seed=1)
    torch.nn.init.normal_(model.head.weight)
    with torch.inference_mode():
        before = model(tokens, following=following)
        plainly = PerceiverAR(dataclasses.replace(model.config, recall=None)).eval()
        plainly.load_state_dict({name: value for name, value in model.state_dict().items() if "recall" not in name})
        assert torch.equal(before, plainly(tokens, following=following))  # a new recall changes nothing

        values = torch.randn(model.recall.bias_of_code.weight.shape)
        values[0] = 0
        model.recall.bias_of_code.weight.copy_(values)
        added = model(tokens, following=following) - before
    codes = np.stack([plain(tokens[0, : 45 + n]) for n in range(16)])
    expected = values[:, 0].numpy()[codes].sum(1)
    np.testing.assert_allclose(added[0, :, 7:13], expected, atol=1e-5)
    assert not added[..., :7].any()
    assert not added[..., 13:].any()


def test_weights_of_notes_can_be_taught_to_recall_and_nothing_else_changes(tmp_path):
    corpus = small_corpus(tmp_path / "corpus", tokenizer="notes")
    how = {"steps": 6, "batch_size": 2, "validate_every": 6, "ema_decay": 0.0, "device": "cpu"}
    first = new_run(corpus.path, out=tmp_path / "first", size="tiny", **how)
    first.train()
    trainer = new_run(
        corpus.path, out=tmp_path / "run", init_from=str(tmp_path / "first"), recall=True, only="recall", lr=0.5, **how
    )
    trainer.train()

    before, after = (load_checkpoint(tmp_path / run / "last").model.state_dict() for run in ("first", "run"))
    assert set(after) - set(before) == {"recall.bias_of_code.weight"}
    assert all(torch.equal(after[name], before[name]) for name in before)
    learned = after["recall.bias_of_code.weight"]
    assert learned[0] == 0  # no match
    assert learned.abs().max() > 0.01
    resumed = resumed_run(tmp_path / "run", steps=9)
    assert torch.equal(resumed.model.recall.bias_of_code.weight, learned)


def test_a_checkpoint_keeps_it(tmp_path):
    from fields import NOTES

    sizes = tuple(field.size for field in NOTES.vocabulary.fields)
    keys = NOTES.vocabulary.range("note_on")
    recall = KeyRecallConfig(first_key=keys.start, num_keys=len(keys), shift_edges=tuple(range(sizes[0] + 1)))
    shape = {"vocab_size": sum(sizes), "pad_id": NOTES.vocabulary.id("pad"), "field_sizes": sizes}
    model = PerceiverAR(tiny_config(**shape, recall=recall))
    save_checkpoint(tmp_path / "c", model, NOTES, metadata={})

    assert load_checkpoint(tmp_path / "c").model.config == model.config


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lengths": (2, 3)}, "lengths from 1"),
        ({"lengths": (1, 1)}, "whole numbers that rise"),
        ({"ages": ()}, "lengths from 1 and an age"),
        ({"first_key": 3}, "must be ids of the second field"),
        ({"num_keys": 10}, "must be ids of the second field"),
        ({"shift_edges": (0, 1)}, "must fit the 6 ids of the first field"),
    ],
)
def test_what_does_not_fit_is_refused(changes, words):
    shape = {"context_length": 64, "num_latents": 16, "d_model": 16, "num_layers": 1, "num_heads": 1}
    with pytest.raises(UsageError, match=words):
        ModelConfig(
            vocab_size=18,
            pad_id=14,
            field_sizes=SIZES,
            cross_num_heads=1,
            recall=dataclasses.replace(CONFIG, **changes),
            **shape,
        )
    with pytest.raises(UsageError, match="recall of keys needs several fields"):
        ModelConfig(vocab_size=18, pad_id=14, cross_num_heads=1, recall=CONFIG, **shape)
