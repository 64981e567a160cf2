"""A model of several fields: its probabilities, its caches, its training, its score and what is drawn from it."""

import dataclasses
import json
import math
import os
import re
import signal

import numpy as np
import pytest
import torch
from builders import performance
from corpora import small_corpus
from fields import NOTES, compound_text, tokenizer_of
from flat_sampling import stream_many
from models import tiny_config
from trainers import make_trainer, new_run, resumed_run
from typer.testing import CliRunner

from pamusic.checkpoint import check_corpus, load_checkpoint, save_checkpoint
from pamusic.cli.app import app
from pamusic.compose.token_stream import constraints_of
from pamusic.corpus.corpus import open_corpus
from pamusic.corpus.writer import writing_corpus
from pamusic.device import Machine
from pamusic.errors import PamusicError, UsageError
from pamusic.evaluation.likelihood import evaluate, score, transposition_maps
from pamusic.inference.session import InferenceSession
from pamusic.model.config import ClockConfig, KeyRecallConfig, ModelConfig, OffsetsConfig
from pamusic.model.fields import by_field, field_slices
from pamusic.model.flops import forward_flops
from pamusic.model.perceiver_ar import PerceiverAR
from pamusic.music.midi import midi_bytes, read_midi
from pamusic.sampling.config import SamplingConfig
from pamusic.sampling.constraints import PrimeTokens
from pamusic.sampling.decoding import DecodingConfig
from pamusic.sampling.ending import StopCondition
from pamusic.sampling.generate import generate
from pamusic.tokens.positions import offset_edges
from pamusic.training.config import TrainingConfig
from pamusic.training.data import NOT_SCORED, TrainingBatches, make_batch, validation_batches
from pamusic.training.learner import Learner

SIZES = (5, 4, 3)
CPU = Machine(torch.device("cpu"), "fp32", False, "for tests")
VOCABULARY = NOTES.vocabulary
NOTES_SIZES = tuple(field.size for field in VOCABULARY.fields)


# Fields of 5, 4 and 3 ids: 0, 1, 2, 3 or more ticks; anything; 0, 1 or 2 ticks.
OFFSETS = OffsetsConfig(shift_edges=(0, 1, 2, 3, 4, 6), length_edges=(0, 1, 2, 4), num_positions=5, reach=1)
CLOCK = ClockConfig(shift_edges=(0, 1, 2, 3, 4, 6))
# Two notes among the four keys; what is moved leads from one to the other.
RECALL = KeyRecallConfig(first_key=6, num_keys=2, shift_edges=(0, 1, 2, 3, 4, 6), lengths=(1, 2, 4), ages=(2, 9))
EXTRAS = {
    "plain": {},
    "conv": {"conv_width": 4},
    "offsets": {"offsets": OFFSETS},
    "clock": {"clock": CLOCK},
    "recall": {"recall": RECALL},
    "all": {"conv_width": 3, "offsets": OFFSETS, "clock": CLOCK, "recall": RECALL},
}
extras = pytest.mark.parametrize("extra", EXTRAS.values(), ids=EXTRAS.keys())


def model_of(sizes=SIZES, seed=0, **changes):
    """A model whose every weight is random, so that it says something different everywhere."""
    shape = {"vocab_size": sum(sizes), "pad_id": sum(sizes) - 1, "field_sizes": sizes, **changes}
    model = PerceiverAR(tiny_config(**shape)).eval()
    torch.manual_seed(seed)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.3)
    return model


def positions(*shape, sizes=SIZES, seed=0):
    """Any ids `[*shape, fields]`; never padding, which is the last one."""
    random = torch.Generator().manual_seed(seed)
    starts = [ids.start for ids in field_slices(sizes, sum(sizes))]
    highest = [*sizes[:-1], sizes[-1] - 1]
    columns = [
        start + torch.randint(0, size, shape, generator=random) for start, size in zip(starts, highest, strict=True)
    ]
    return torch.stack(columns, dim=-1)


@extras
def test_the_probabilities_of_all_positions_add_up_to_one(extra):
    model, tokens = model_of(**extra), positions(1, 20)
    every = torch.cartesian_prod(*(torch.arange(ids.start, ids.stop) for ids in field_slices(SIZES, 12)))
    assert every.shape == (60, 3)

    with torch.inference_mode():
        following = every[:, None].expand(60, 16, 3)
        logits = model(tokens.expand(60, -1, -1), following=following)
        log_p = sum(
            of_field.log_softmax(-1).gather(-1, target[..., None])[..., 0]
            for of_field, target in by_field(logits, following, SIZES)
        )

    np.testing.assert_allclose(log_p.exp().sum(0), 1, atol=1e-5)
    assert log_p.std(0).min() > 0.1  # and it is no uniform distribution


@extras
def test_a_field_is_predicted_given_those_before_it_and_no_others(extra):
    model, tokens = model_of(**extra), positions(1, 20)
    following = positions(1, 16, seed=1)
    with torch.inference_mode():
        logits = model(tokens, following=following)
        for field in range(3):
            changed = following.clone()
            ids = field_slices(SIZES, 12)[field]
            changed[..., field] = ids.start + (changed[..., field] - ids.start + 1) % (ids.stop - ids.start)
            other = model(tokens, following=changed)
            for seen, its in enumerate(field_slices(SIZES, 12)):
                same = torch.equal(logits[..., its], other[..., its])
                assert same == (seen <= field)


@extras
def test_no_position_sees_a_later_one(extra):
    model, tokens, following = model_of(**extra), positions(1, 40), positions(1, 16, seed=1)
    with torch.inference_mode():
        before = model(tokens, following=following)
        tokens[0, 30] = positions(1, seed=5)[0]
        after = model(tokens, following=following)

    assert torch.equal(before[0, : 30 - 24], after[0, : 30 - 24])
    assert not torch.allclose(before[0, 30 - 24 :], after[0, 30 - 24 :])


@extras
def test_padding_is_seen_by_nobody(extra):
    model, tokens, following = model_of(**extra), positions(1, 40), positions(1, 16, seed=1)
    padded = torch.cat([torch.full((1, 9, 3), 11), tokens], dim=1)

    with torch.inference_mode():
        torch.testing.assert_close(
            model(padded, following=following), model(tokens, following=following), atol=1e-5, rtol=1e-5
        )


@extras
def test_with_caches_it_says_the_same(extra):
    model, tokens, following = model_of(**extra), positions(2, 40), positions(2, 16, seed=1)
    with torch.inference_mode():
        whole = model(tokens, following=following)
        caches = model.new_caches(2)
        model.read(tokens[:, :34], caches)
        first = model.extend(tokens[:, 24:34], caches, following=following[:, :10])
        model.read(tokens[:, 34:], caches)
        second = model.extend(tokens[:, 34:], caches, following=following[:, 10:])

    torch.testing.assert_close(torch.cat([first, second], dim=1), whole, atol=1e-5, rtol=1e-5)


@extras
def test_however_the_context_is_read_it_is_the_same_beyond_its_length_too(extra):
    """At once, or in pieces of which one is longer than the context."""
    model, tokens = model_of(**extra, context_length=20, num_latents=4), positions(1, 60)
    following = positions(1, 4, seed=1)
    with torch.inference_mode():
        logits = []
        for sizes in ([60], [1, 18, 1, 25, 15], [30, 30], [1] * 60):
            caches = model.new_caches(1)
            for some in tokens.split(sizes, dim=1):
                model.read(some, caches)
            logits.append(model.extend(tokens[:, -4:], caches, following=following))

    for each in logits[1:]:
        torch.testing.assert_close(each, logits[0], atol=1e-5, rtol=1e-5)


def test_kept_positions_of_the_prefix_are_all_that_is_seen_of_it():
    model, tokens, following = model_of(), positions(1, 40), positions(1, 16, seed=1)
    kept = torch.tensor([[-1, 3, 7, 20]])
    with torch.inference_mode():
        before = model(tokens, prefix_indices=kept, following=following)
        other = tokens.clone()
        other[0, [0, 5, 21]] = positions(3, seed=9)
        assert torch.equal(model(other, prefix_indices=kept, following=following), before)
        other[0, 7] = positions(1, seed=9)[0]
        assert not torch.equal(model(other, prefix_indices=kept, following=following), before)


def test_a_convolution_gives_keys_of_the_prefix_the_positions_before_them():
    """What is kept of a prefix knows its neighbours, though nobody attends to these."""
    model, tokens, following = model_of(conv_width=3), positions(1, 40), positions(1, 16, seed=1)
    kept = torch.tensor([[20]])
    with torch.inference_mode():
        before = model(tokens, prefix_indices=kept, following=following)
        for place, matters in ((20, True), (19, True), (18, True), (17, False), (21, False)):
            other = tokens.clone()
            other[0, place] = (tokens[0, place] - torch.tensor([0, 5, 9]) + 1) % torch.tensor([5, 4, 2]) + torch.tensor(
                [0, 5, 9]
            )
            assert torch.equal(model(other, prefix_indices=kept, following=following), before) != matters, place


def test_what_still_lasts_is_reckoned_from_the_last_onset():
    offsets = model_of(offsets=OFFSETS).fields.offsets
    # Shifts 0, 2, 1, 4 (a bin of 4 and 5); lengths 2 (a bin of 2 and 3), 1, 0, 2.
    tokens = torch.tensor([[[0, 5, 11], [2, 5, 10], [1, 5, 9], [4, 5, 11]]])

    lasting = offsets.lasting(tokens, 2)

    assert lasting.shape == (1, 2, 5)
    assert lasting[0, 0].tolist()[-3:] == [2 - 3, 3 - 3, 3 - 3]  # at onset 3: ends at 2, 3 and 3
    assert lasting[0, 1].tolist()[-4:] == [2 - 7, 3 - 7, 3 - 7, 9 - 7]
    assert (lasting[0, :, 0] < 0).all()


def test_with_a_clock_alone_the_time_between_two_positions_matters_not_when_they_are():
    """Attention sees the same where everything is later, and something else where a rest is longer."""
    model, tokens, following = model_of(clock=CLOCK), positions(1, 30), positions(1, 16, seed=1)
    with torch.inference_mode():
        caches, later = model.new_caches(1), model.new_caches(1)
        later.now += 1000
        for cache in (caches, later):
            model.read(tokens, cache)
        logits = [model.extend(tokens[:, 14:], cache, following=following) for cache in (caches, later)]
        torch.testing.assert_close(*logits, atol=1e-5, rtol=1e-5)
        without = PerceiverAR(dataclasses.replace(model.config, clock=None)).eval()
        without.load_state_dict(model.state_dict())
        assert not torch.allclose(without(tokens, following=following), model(tokens, following=following), atol=1e-2)


@torch.inference_mode()
def test_ends_raise_what_lies_near_them_and_nothing_else():
    offsets = model_of(offsets=OFFSETS).fields.offsets
    latents = torch.randn(1, 32, generator=torch.Generator().manual_seed(0))
    lasting = torch.tensor([[-3, 0, 2, 2, 5]])
    to_left, here, to_right = (latents @ offsets.kernels[0].weight.T)[0]

    added = offsets(latents, lasting, None)[0]

    two, one = math.log(3), math.log(2)  # ends two ticks on, twice; and five ticks on, in the last bin
    expected = [0, two * to_right, two * here, two * to_left + one * to_right, one * here]
    torch.testing.assert_close(added, torch.stack([torch.as_tensor(float(each)) for each in expected]))
    (a, b, c) = offsets(latents, lasting, torch.tensor([1]))[
        0
    ]  # a shift of one tick later: ends in 1, 1 and 4, beyond the last bin
    to_left, here, to_right = (latents @ offsets.kernels[1].weight.T)[0]
    for got, wanted in ((a, two * to_right), (b, two * here + one * to_right), (c, two * to_left + one * here)):
        assert float(got) == pytest.approx(float(wanted), rel=1e-5)


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="field_sizes must be positive and sum to 12"):
        tiny_config(vocab_size=12, pad_id=11, field_sizes=(5, 5))
    with pytest.raises(ValueError, match="need a model with one id a position"):
        tiny_config(vocab_size=391, field_sizes=(390, 1), ledger={"num_slots": 1})
    with pytest.raises(ValueError, match="several fields a position"):
        tiny_config(conv_width=3)
    with pytest.raises(ValueError, match="conv_width must be between 1"):
        tiny_config(vocab_size=12, pad_id=11, field_sizes=SIZES, conv_width=0)
    with pytest.raises(
        ValueError, match=r"edges of offsets must fit the ids of the first and the last field, got \[5, 3\]"
    ):
        tiny_config(vocab_size=12, pad_id=11, field_sizes=(5, 3, 4), offsets=OFFSETS)
    with pytest.raises(ValueError, match="shift_edges of the clock must fit the 4 ids of the first field"):
        tiny_config(vocab_size=12, pad_id=11, field_sizes=(4, 5, 3), clock=CLOCK)
    with pytest.raises(ValueError, match="of position and of clock must sum to at most 1"):
        tiny_config(vocab_size=12, pad_id=11, field_sizes=SIZES, clock=CLOCK, rotary_fraction=0.8)
    config = tiny_config(vocab_size=12, pad_id=11, field_sizes=SIZES, offsets=OFFSETS, clock=CLOCK, conv_width=3)
    assert ModelConfig.from_json({**dataclasses.asdict(config), "field_sizes": list(SIZES)}) == config
    old = {name: value for name, value in dataclasses.asdict(tiny_config()).items() if name != "field_sizes"}
    assert ModelConfig.from_json(old) == tiny_config()  # as checkpoints have it that were written before


def test_the_small_heads_are_counted():
    events, fields = (tiny_config(vocab_size=12, pad_id=11, field_sizes=sizes) for sizes in ((), SIZES))

    more = forward_flops(fields, num_keys=64, num_latents=16) - forward_flops(events, num_keys=64, num_latents=16)

    d, hidden = 32, 64
    assert more == 2 * 16 * 2 * (2 * d * hidden)  # two fields are given others: up and down, two operations each


@pytest.fixture
def corpus(tmp_path):
    return small_corpus(tmp_path / "corpus", tokenizer="notes")


def config_for(corpus, **changes):
    vocabulary = corpus.tokenizer.vocabulary
    sizes = tuple(field.size for field in vocabulary.fields)
    return tiny_config(vocab_size=len(vocabulary), pad_id=vocabulary.id("pad"), field_sizes=sizes, **changes)


def test_a_corpus_gives_back_what_was_written(corpus):
    assert corpus.ids.shape == (sum(piece.num_tokens for piece in corpus.pieces), 4)
    for index, piece in enumerate(corpus.pieces):
        ids = corpus.piece(index)
        assert ids.shape == (piece.num_tokens, 4)
        assert np.array_equal(NOTES.encode(NOTES.decode(ids)), ids)
    assert corpus.count_of_kinds()["length"] == len(corpus.ids)


def test_a_corpus_cut_short_is_refused(corpus):
    data = (corpus.path / "tokens.bin").read_bytes()
    (corpus.path / "tokens.bin").write_bytes(data[:-2])
    with pytest.raises(PamusicError, match=f"must have {len(data)} bytes, got {len(data) - 2}"):
        open_corpus(corpus.path)


def test_windows_are_pieces_of_the_music_in_another_key_and_tempo(corpus):
    model = config_for(corpus, context_length=32, num_latents=8)
    batch = TrainingBatches(corpus, model, TrainingConfig(seed=3)).batch(5)

    assert batch.tokens.shape == (8, 32, 4)
    assert batch.targets.shape == (8, 8, 4)
    for tokens, targets in zip(batch.tokens, batch.targets, strict=True):
        there = tokens[(tokens != model.pad_id).any(-1)]
        assert torch.equal(there[1:][-7:], targets[:-1])  # what follows a latent is the next one
        for place, field in enumerate(VOCABULARY.fields):
            its = there[:, place]
            assert ((its >= field.start) & (its < field.start + field.size)).all()
    plain = TrainingConfig(seed=3, stretch=0, transpose_down=0, transpose_up=0)
    window = TrainingBatches(corpus, model, plain).batch(5).tokens[0]
    there = window[(window != model.pad_id).any(-1)].numpy()
    pieces = [np.concatenate([VOCABULARY.border("start")[None], corpus.piece(i)]) for i in range(len(corpus))]
    assert any(
        np.array_equal(piece[i : i + len(there)], there) for piece in pieces for i in range(len(piece) - len(there) + 1)
    )


def test_what_follows_an_end_is_not_scored(tmp_path):
    corpus = small_corpus(tmp_path / "short", notes_of_pieces=(20, 30, 25), tokenizer="notes")
    model = config_for(corpus, context_length=64, num_latents=60)
    batches = TrainingBatches(corpus, model, TrainingConfig(seed=1))
    start = VOCABULARY.id("start")

    seen = 0
    for step in range(6):
        batch = batches.batch(step)
        assert not (batch.targets == start).any()
        ends = (batch.tokens[:, -60:] == VOCABULARY.id("end")).any(-1)  # behind each stands a start, or padding
        assert (batch.targets[ends] == NOT_SCORED).all()
        seen += int(ends.sum())
    assert seen > 0


def test_validation_windows_score_each_position_once(corpus):
    model = config_for(corpus, context_length=32, num_latents=8)
    batches = validation_batches(corpus, model, 1000, 4)

    (piece,) = corpus.split("validation")
    assert sum(int(batch.num_scored) for batch in batches) == corpus.pieces[piece].num_tokens + 1


def test_the_loss_is_that_of_plain_arithmetic(corpus):
    config = config_for(corpus, context_length=32, num_latents=8)
    learner = Learner(config, TrainingConfig(z_loss=0.0, batch_size=2), CPU)
    torch.manual_seed(5)
    for parameter in learner.model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    batch = TrainingBatches(corpus, config, TrainingConfig(batch_size=2)).batch(0)

    with torch.no_grad():
        _, nats = learner._eager_loss(batch.tokens, batch.targets, batch.prefix_indices, None)
        logits = learner.model(batch.tokens, prefix_indices=batch.prefix_indices, following=batch.targets.clamp(min=0))
    expected = 0.0
    for row in range(2):
        for place in range(8):
            for field, ids in enumerate(field_slices(NOTES_SIZES, len(VOCABULARY))):
                target = int(batch.targets[row, place, field])
                if target != NOT_SCORED:
                    expected -= float(logits[row, place, ids].log_softmax(-1)[target - ids.start])

    assert float(nats) == pytest.approx(expected, rel=1e-5)


def test_it_learns_and_goes_on_as_if_it_had_not_stopped(corpus, tmp_path):
    offsets = OffsetsConfig(**offset_edges(VOCABULARY))
    clock = ClockConfig(shift_edges=offsets.shift_edges)
    config = config_for(corpus, context_length=32, num_latents=8, offsets=offsets, conv_width=4, clock=clock)
    training = TrainingConfig(steps=60, batch_size=4, warmup_steps=5, cooldown_steps=20, validate_every=20, lr=0.02)
    whole = make_trainer(tmp_path / "whole", corpus, config, training, CPU)
    whole.train()
    first = make_trainer(tmp_path / "part", corpus, config, training, CPU)
    first.train(lambda report: os.kill(os.getpid(), signal.SIGTERM) if report.step == 30 else None)
    assert first.step < 60
    second = make_trainer(tmp_path / "part", corpus, config, training, CPU, resume_from=tmp_path / "part")
    second.train()

    assert whole.best_nats < 0.8 * sum(math.log(size) for size in NOTES_SIZES)
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, second.model.state_dict()[name]), name


@torch.inference_mode()
def plain_score(model, tokens, block):
    """The protocol spelled out: each block by one pass over its window; nats `[n - 1, fields]`."""
    nats, num_scored, config = [], len(tokens) - 1, model.config
    ends = list(range(num_scored, 0, -block))[::-1]
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        first = max(0, end - config.context_length)
        window = torch.tensor(tokens[first:end].astype(np.int64))[None]
        n = min(config.num_latents, window.shape[1])
        following = torch.tensor(tokens[end - n + 1 : end + 1].astype(np.int64))[None]
        logits = model(window, num_latents=n, following=following)[0]
        for i in range(start, end):
            of_position = by_field(logits[i - end], torch.tensor(tokens[i + 1].astype(np.int64)), config.field_sizes)
            nats.append([-of_field.log_softmax(-1)[target].item() for of_field, target in of_position])
    return np.array(nats)


def test_the_score_equals_the_plain_one_and_counts_what_bins_leave_open(tmp_path):
    slow = performance(*((3 * k, 3 * k + 2.8 + k / 100, 40 + k % 40, 64) for k in range(60)))
    with writing_corpus(tmp_path / "slow", NOTES) as writer:
        ids = NOTES.encode(slow)
        writer.add(ids, name="slow.mid", split="validation", num_notes=60, seconds=180.0, sha256=64 * "0")
        writer.close(sources=[], refused=[])
    corpus = open_corpus(tmp_path / "slow")
    model = model_of(NOTES_SIZES, context_length=64, num_latents=16)
    model = PerceiverAR(dataclasses.replace(model.config, pad_id=VOCABULARY.id("pad"))).eval()
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.2)
    tokens = np.concatenate([VOCABULARY.border("start")[None], corpus.piece(0), VOCABULARY.border("end")[None]])

    nats, correct = score(model, tokens)

    assert correct.shape == (len(tokens) - 1,)
    np.testing.assert_allclose(nats, plain_score(model, tokens, 8), atol=2e-4)
    total = evaluate(model, corpus, "validation")
    shifts, lengths = VOCABULARY.range("time_shift"), VOCABULARY.range("length")
    within = sum(
        math.log(shifts.size[position[0] - shifts.start]) + math.log(lengths.size[position[3] - lengths.start])
        for position in ids
    )
    assert within > 60  # almost all of them stand in bins
    assert total.nats == pytest.approx(nats.sum() + within, rel=1e-6)
    assert total.nats_within_bins == pytest.approx(within)
    assert sum(total.nats_of_field.values()) == pytest.approx(total.nats)
    numbers = total.numbers()
    parts = [numbers[f"bits_per_note_{field.name}"] for field in VOCABULARY.fields]
    assert sum(parts) == pytest.approx(numbers["bits_per_note"], abs=0.003)
    twice = evaluate(model, corpus, "validation", num_keys=3)
    assert twice.nats != pytest.approx(total.nats, rel=1e-4)


def test_another_key_moves_the_notes_alone():
    (_, up) = transposition_maps(VOCABULARY, 2)
    keys = VOCABULARY.range("note_on")

    assert sorted(up) == list(range(len(VOCABULARY)))
    assert (np.flatnonzero(up != np.arange(len(VOCABULARY))) == keys.start + np.arange(88)).all()


def drawn(model, prime, *, num_rows=1, seed=0, length=40, tokenizer=NOTES, seconds=None, **options):
    """Positions drawn with all fields filtered and keys in any order, where `options` do not say otherwise."""
    constraints = constraints_of(tokenizer.vocabulary)
    options = {"filtered": [True] * len(tokenizer.vocabulary.fields), "rank_of_id": None, **options}
    decoding = DecodingConfig(
        constraints=dataclasses.replace(constraints, **options),
        stop=StopCondition(max_tokens=length, seconds=seconds, min_tokens_before_end=1),
    )
    steps = generate(InferenceSession(model), PrimeTokens(prime.tolist()), decoding, num_rows=num_rows, seed=seed)
    return [[ids for ids in row if ids is not None] for row in zip(*steps, strict=True)]


PRIME = VOCABULARY.border("start")[None]


@pytest.fixture(scope="module", params=["plain", "with offsets and a convolution"])
def talker(request):
    torch.manual_seed(0)
    more = (
        {
            "offsets": OffsetsConfig(**offset_edges(VOCABULARY)),
            "conv_width": 4,
            "clock": ClockConfig(shift_edges=offset_edges(VOCABULARY)["shift_edges"]),
        }
        if request.param != "plain"
        else {}
    )
    config = tiny_config(
        **more,
        vocab_size=len(VOCABULARY),
        pad_id=VOCABULARY.id("pad"),
        field_sizes=NOTES_SIZES,
        context_length=48,
        num_latents=8,
    )
    model = PerceiverAR(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.2)
    return model


def test_what_is_drawn_is_music_and_a_row_does_not_depend_on_the_others(talker):
    rows = drawn(talker, PRIME, num_rows=3, seed=5)

    assert rows[1] == drawn(talker, PRIME, seed=6)[0]
    assert rows[0] != rows[1]
    for row in rows:
        ids = np.array(row)
        assert not NOTES.decode_counted(ids)[1].borders
        for here in range(4):
            for there in range(here):
                assert VOCABULARY.fits[ids[:, here], ids[:, there]].all()


def test_a_drawn_id_is_where_its_number_falls_in_the_distribution(talker):
    rows = drawn(talker, PRIME, seed=3, length=30)
    numbers = torch.rand(256, 4, generator=torch.Generator().manual_seed(3))
    allowed = torch.from_numpy(VOCABULARY.fits).clone()
    allowed[:, [VOCABULARY.id("start"), VOCABULARY.id("pad")]] = False
    read = [torch.tensor(PRIME.astype(np.int64))[0]]
    num_latents = 0  # in use, when the last position has been read
    with torch.inference_mode():
        for place, position in enumerate(torch.tensor(rows[0])):
            # Up to a refill each position is a latent; the refill makes half of them anew.
            num_latents = num_latents + 1 if num_latents < 8 else 4
            following = position[None, None].expand(1, num_latents, 4)
            tokens = torch.stack(read)[None]
            logits = talker(tokens, num_latents=num_latents, following=following)[0, -1]
            for field, ids in enumerate(field_slices(NOTES_SIZES, len(VOCABULARY))):
                can_stand = allowed.any(0)[ids].clone()
                for before in position[:field]:
                    can_stand &= allowed[before][ids]
                p = logits[ids].masked_fill(~can_stand, float("-inf")).softmax(-1)
                order = p.argsort(descending=True)
                kept = torch.zeros(len(p), dtype=torch.bool)
                kept[order[(p[order].cumsum(0) - p[order]) < 0.99]] = True
                p = torch.where(kept, p, 0).double()
                cumulative = (p / p.sum()).cumsum(0)
                where = int(position[field]) - ids.start
                low = float(cumulative[where - 1]) if where else 0.0
                assert low - 1e-4 <= float(numbers[place, field]) <= float(cumulative[where]) + 1e-4
            read.append(position)


def test_filters_leave_shifts_and_lengths_alone(notes_checkpoint):
    def composed(seed, **sampling):
        steps = stream_many(
            load_checkpoint(notes_checkpoint), seed=seed, length=60, sampling=SamplingConfig(**sampling)
        )
        return np.array([row for (row,) in steps])

    one, two = (composed(seed, top_k=1) for seed in (1, 2))
    shifts = {tuple(ids[:, 0]) for ids in (one, two)}
    assert len(shifts) == 2
    lengths = [ids[:, 3][ids[:, 1] == key] for ids in (one, two) for key in one[:, 1]]
    assert max(len(set(each)) for each in lengths) > 5  # of one key: not the likeliest each time
    again = composed(1, top_k=1, top_p=0.5)
    assert (again == one).all()
    cold = [composed(seed, temperature=0) for seed in (1, 2)]
    assert (cold[0] == cold[1]).all()


def test_the_likeliest_key_is_taken_given_the_shift_that_was_drawn(notes_checkpoint):
    model = load_checkpoint(notes_checkpoint).model
    steps = stream_many(load_checkpoint(notes_checkpoint), seed=1, length=1, sampling=SamplingConfig(top_k=1))
    ((first,),) = steps
    with torch.inference_mode():
        logits = model(torch.from_numpy(PRIME.astype(np.int64))[None], following=torch.tensor([[first]]))[0, -1]
    _, key, _, _ = field_slices(NOTES_SIZES, len(VOCABULARY))
    can_stand = torch.from_numpy(VOCABULARY.fits)[first[0]].clone()
    can_stand[[VOCABULARY.id(border) for border in ("start", "end", "pad")]] = False

    assert first[1] == logits.masked_fill(~can_stand, -torch.inf)[key].argmax() + key.start


def test_it_stops_at_its_length_its_seconds_or_the_end(talker):
    no_end = [VOCABULARY.id(border) for border in ("start", "end", "pad")]
    assert len(drawn(talker, PRIME, length=7, forbidden_ids=no_end)[0]) == 7
    short = np.array(drawn(talker, PRIME, length=200, seconds=200.0, forbidden_ids=no_end, seed=2)[0])
    assert 0 < VOCABULARY.seconds_of_id[short].sum() <= 200.0
    assert len(short) < 200
    end = VOCABULARY.id("end")
    ends = PerceiverAR(talker.config).eval()  # its head is zero: all are equally likely, the end among 94
    rows = drawn(ends, PRIME, num_rows=8, length=600)
    assert min(len(row) for row in rows) < 600
    assert not any(end in ids for row in rows for ids in row)
    barred = drawn(ends, PRIME, num_rows=2, length=400, end=None, forbidden_ids=no_end)
    assert not any(end in ids for row in barred for ids in row)


def test_rows_that_have_ended_leave_the_others_as_they_are(talker):
    rows = drawn(talker, PRIME, num_rows=5, seed=20, length=200, seconds=150.0)
    alone = [drawn(talker, PRIME, seed=20 + row, length=200, seconds=150.0)[0] for row in range(5)]

    assert len({len(row) for row in rows}) > 2
    assert rows == alone


def test_logits_that_are_no_numbers_are_told(talker):
    broken = PerceiverAR(talker.config).eval()
    torch.nn.init.constant_(broken.head.weight, float("nan"))
    with pytest.raises(PamusicError, match="are not numbers"):
        drawn(broken, PRIME)


def test_a_checkpoint_keeps_its_fields(talker, tmp_path):
    save_checkpoint(tmp_path / "c", talker, NOTES, metadata={})
    again = load_checkpoint(tmp_path / "c")

    assert again.model.config == talker.config
    assert again.tokenizer.vocabulary == VOCABULARY
    tokens, following = positions(1, 20, sizes=NOTES_SIZES), positions(1, 8, sizes=NOTES_SIZES)
    with torch.inference_mode():
        assert torch.equal(again.model(tokens, following=following), talker(tokens, following=following))
    with pytest.raises(
        PamusicError, match=r"was tokenized with performance .* but .* reads notes .* --tokenizer notes …"
    ):
        check_corpus(again, small_corpus(tmp_path / "events"))


MORE = {"offsets": True, "conv_width": 3, "clock": True}


def test_a_configuration_that_is_none_is_refused():
    fields = {"shift_edges": (0, 1, 2), "length_edges": (0, 1, 2)}
    for wrong in ({"num_positions": 2.5}, {"reach": -1}, {"shift_edges": (-7, 1, 2)}, {"length_edges": (0, 2, 1)}):
        with pytest.raises(ValueError, match=r"offsets need num_positions|edges must be whole numbers"):
            OffsetsConfig(**{**fields, **wrong})
    with pytest.raises(ValueError, match="edges must be whole numbers"):
        ClockConfig(shift_edges=(0, 1.5))
    assert OffsetsConfig(**{name: list(edges) for name, edges in fields.items()}) == OffsetsConfig(**fields)


def test_rows_that_are_chosen_keep_their_time():
    model, tokens, following = model_of(clock=CLOCK), positions(3, 30), positions(3, 16, seed=1)
    with torch.inference_mode():
        caches = model.new_caches(3)
        model.read(tokens[:, :20], caches)
        caches.select(torch.tensor([2, 0]))
        model.read(tokens[[2, 0], 20:], caches)
        chosen = model.extend(tokens[[2, 0], 14:], caches, following=following[[2, 0]])
        whole = model(tokens, following=following)

    torch.testing.assert_close(chosen, whole[[2, 0]], atol=1e-5, rtol=1e-5)


def test_what_only_events_have_is_refused_in_one_line(corpus, tmp_path):
    with pytest.raises(UsageError, match="with 4 fields a position; --ledger is for events"):
        new_run(corpus.path, out=tmp_path / "run", size="tiny", ledger=True)
    events = small_corpus(tmp_path / "events")
    for name, value in MORE.items():
        with pytest.raises(UsageError, match=f"has performance, .*; leave {name} out"):
            new_run(events.path, out=tmp_path / "run", size="tiny", **{name: value})
    assert not (tmp_path / "run").exists()
    run = new_run(corpus.path, out=tmp_path / "run", size="tiny", steps=10, device="cpu", **MORE)
    assert run.model.config.field_sizes == NOTES_SIZES
    assert len(run.model.config.offsets.length_edges) == NOTES_SIZES[-1] + 1
    assert run.model.config.ledger is None
    run.train()
    with pytest.raises(UsageError, match="--ledger is for events"):
        resumed_run(tmp_path / "run", steps=20, ledger=True)


def test_a_new_model_of_notes_has_what_is_worth_its_time_unless_told_otherwise(corpus, tmp_path):
    usual = new_run(corpus.path, out=tmp_path / "a", size="tiny", steps=10, device="cpu").model.config
    plain = {"conv_width": 1, "offsets": False, "clock": False}
    bare = new_run(corpus.path, out=tmp_path / "b", size="tiny", steps=10, device="cpu", **plain).model.config

    assert (usual.conv_width, usual.offsets is None, usual.clock is None) == (4, False, False)
    assert (bare.conv_width, bare.offsets, bare.clock) == (1, None, None)


def test_a_new_model_of_fields_without_lengths_has_no_offsets(tmp_path):
    (tmp_path / "mine.toml").write_text(compound_text(), encoding="utf-8")
    compound = small_corpus(tmp_path / "c", tokenizer=str(tmp_path / "mine.toml"))
    config = new_run(compound.path, out=tmp_path / "a", size="tiny", steps=10, device="cpu").model.config

    assert (config.conv_width, config.offsets, config.clock is None) == (4, None, False)


def test_weights_read_their_own_vocabulary_alone(corpus, talker, tmp_path):
    save_checkpoint(tmp_path / "notes", talker, NOTES, metadata={})
    events = small_corpus(tmp_path / "events")
    with pytest.raises(PamusicError, match=r"was tokenized with performance .* reads notes "):
        new_run(events.path, init_from=str(tmp_path / "notes"), out=tmp_path / "run")
    with pytest.raises(PamusicError, match=r"was tokenized with notes .* reads performance"):
        new_run(corpus.path, init_from="small", out=tmp_path / "run")
    compound = tokenizer_of(tmp_path, compound_text())
    (tmp_path / "mine.toml").rename(tmp_path / "compound.toml")
    assert compound.fingerprint != NOTES.fingerprint


def test_a_batch_of_one_field_is_what_it_was(tmp_path):
    events = small_corpus(tmp_path / "events")
    windows = [events.piece(0)[:40].astype(np.uint16)]
    batch = make_batch(windows, tiny_config())

    assert batch.tokens.tolist() == [[390] * 25 + windows[0][:-1].tolist()]
    assert batch.targets.tolist() == [windows[0][-16:].tolist()]
    assert int(batch.num_scored) == 16


def pamusic(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def notes_checkpoint(talker, tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoints") / "notes"
    save_checkpoint(path, talker, NOTES, metadata={})
    return path


def test_sample_and_replay_make_the_same_file(notes_checkpoint, elsewhere):
    words = ("--no-guard", "--returns", "none", "--precision", "fp32", "--length", 40, "--seed", 3)
    done = pamusic("sample", "--checkpoint", notes_checkpoint, *words, "-o", "a.mid")
    assert done.exit_code == 0, done.output
    again = pamusic("replay", "a.mid", "-o", "b.mid")

    assert again.exit_code == 0, again.output
    assert (elsewhere / "a.mid").read_bytes() == (elsewhere / "b.mid").read_bytes()
    assert "the same, byte for byte" in again.stderr
    row = [ids for (ids,) in stream_many(load_checkpoint(notes_checkpoint), seed=3, length=40)]
    played = read_midi((elsewhere / "a.mid").read_bytes())
    meant = NOTES.decode(np.array(row))
    assert played.notes["pitch"].tolist() == meant.notes["pitch"].tolist()
    np.testing.assert_allclose(played.notes["onset"], meant.notes["onset"], atol=0.002)


def test_several_pieces_and_the_best_of_some(notes_checkpoint, elsewhere):
    done = pamusic(
        "sample", "--checkpoint", notes_checkpoint, "--num-samples", 2, "--seconds", 60, "--seed", 3, "-o", "a.mid"
    )
    assert done.exit_code == 0, done.output
    words = ("--no-guard", "--seconds", 60, "--seed", 4)
    alone = pamusic("sample", "--checkpoint", notes_checkpoint, *words, "-o", "b.mid")
    assert alone.exit_code == 0, alone.output

    second, same = (read_midi((elsewhere / name).read_bytes()) for name in ("a-2.mid", "b.mid"))
    assert second.equals(same)
    assert second.duration <= 60.001
    best = pamusic("sample", "--checkpoint", notes_checkpoint, "--best-of", 3, "--length", 30, "-o", "c.mid")
    assert best.exit_code == 0, best.output
    assert "comparing 3 pieces" in best.stderr


@pytest.mark.parametrize(
    "words",
    [("notes", "--release-bias", 2), ("small", "--temperature-length", 2)],
)
def test_what_a_vocabulary_gives_no_meaning_is_refused_in_one_line(notes_checkpoint, elsewhere, words):
    name, *option = words
    checkpoint = notes_checkpoint if name == "notes" else name
    done = pamusic("sample", "--checkpoint", checkpoint, "--length", 20, *option)

    assert done.exit_code == 2
    line = done.stderr.splitlines()[-1]
    assert line.startswith(f"pamusic: error: {option[0]} has no effect with")
    assert line.endswith("; leave it out")
    assert [*elsewhere.iterdir()] == []


def test_the_benchmark_measures_positions(notes_checkpoint):
    words = ("--num-samples", 1, "--num-samples", 3, "--context-length", 32, "--json")
    done = pamusic("benchmark", notes_checkpoint, *words)

    assert done.exit_code == 0, done.output
    speeds = json.loads(done.stdout)["speeds"]
    assert [each["num"] for each in speeds] == [1, 3]
    assert all(0 < each["notes_per_second"] <= each["tokens_per_second"] for each in speeds)


def test_what_caches_cost_is_measured_over_all_fields(notes_checkpoint, corpus):
    done = pamusic("evaluate", notes_checkpoint, corpus.path, "--split", "validation", "--cache-drift", "--json")

    assert done.exit_code == 0, done.output
    drifts = {each["refill"]: each["nats_per_token"] for each in json.loads(done.stdout)["drift"]}
    assert set(drifts) == {"all", "half", "slide"}
    assert all(5 < nats < 60 for nats in drifts.values())


def test_evaluate_tells_what_each_field_costs(notes_checkpoint, corpus):
    done = pamusic("evaluate", notes_checkpoint, corpus.path, "--split", "validation", "--json")

    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    parts = [told[f"bits_per_note_{field.name}"] for field in VOCABULARY.fields]
    assert sum(parts) == pytest.approx(told["bits_per_note"], abs=0.003)
    table = pamusic("evaluate", notes_checkpoint, corpus.path, "--split", "validation").stderr
    for name, bits in zip((field.name for field in VOCABULARY.fields), parts, strict=True):
        assert re.search(rf"│ {name} +│ +{bits} │", table), table  # none is cut off


def test_edges_of_a_checkpoint_are_not_told_one_by_one(talker, notes_checkpoint, tmp_path):
    other = PerceiverAR(dataclasses.replace(talker.config, offsets=OffsetsConfig(**offset_edges(VOCABULARY), reach=2)))
    save_checkpoint(tmp_path / "other", other, NOTES, metadata={})

    refused = pamusic("average", notes_checkpoint, tmp_path / "other", "-o", tmp_path / "mean")
    assert refused.exit_code == 1
    assert "have different shapes (offsets)" in refused.stderr
    told = pamusic("inspect", tmp_path / "other")
    assert told.exit_code == 0
    assert "339 values, from 0 to 6001" in told.stdout
    assert len(told.stdout.splitlines()) < 60


def test_tokenize_and_inspect_tell_what_is_cut_short_or_left_out(elsewhere):
    music = performance((0, 1, 60, 64), (1, 90, 62, 64), (200, 201, 20, 64), (300, 301, 64, 64))
    (elsewhere / "a.mid").write_bytes(midi_bytes(music))

    done = pamusic("tokenize", "a.mid", "--tokenizer", "notes", "-o", "c", "--workers", 1)
    assert done.exit_code == 0, done.output
    told = " ".join(done.stderr.split())
    assert "1 note outside pitches 21 to 108 of notes, left out" in told
    assert "1 note or pedal longer than 60 seconds, cut short" in told
    assert "1 rest longer than 60 seconds, cut short" in told
    about = json.loads(pamusic("inspect", "a.mid", "--tokenizer", "notes", "--json").stdout)
    (trip,) = about["round_trips"]
    assert trip["num_clipped"] == {"notes_or_pedals": 1, "rests": 1}
    assert trip["lost"] == {"outside the pitches": 1}


def test_a_piece_that_may_end_has_a_note_before_it_does(talker):
    ends = PerceiverAR(talker.config).eval()
    with torch.no_grad():
        for name, parameter in ends.named_parameters():
            torch.nn.init.constant_(parameter, 1.0 if "norm" in name or parameter.dim() == 1 else 0.1)
        ends.head.weight[VOCABULARY.id("end")] = 5.0

    rows = drawn(ends, PRIME, num_rows=4)

    assert [len(row) for row in rows] == [1] * 4


def test_an_id_of_another_field_is_told(corpus):
    data = np.fromfile(corpus.path / "tokens.bin", np.uint16)
    data[0] = VOCABULARY.id("note_on", 60)  # where a shift stands
    data.tofile(corpus.path / "tokens.bin")
    with pytest.raises(PamusicError, match=r"tokens.bin is broken .* has ids of other fields in shift"):
        open_corpus(corpus.path).piece(0)
