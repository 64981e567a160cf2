"""What followed where the music stood as it does now is copied, as far as the gate trusts it, cached or not."""

import dataclasses
import math

import pytest
import torch
from models import VOCAB, N, outspoken_model, piece, uncached
from recording import operations_of

from pamusic.checkpoint import load_checkpoint, save_checkpoint
from pamusic.inference.cuda_graph import CudaGraphStep
from pamusic.inference.session import REFILLS, InferenceConfig, InferenceSession
from pamusic.model import recall as module
from pamusic.model.config import ModelConfig, RecallConfig
from pamusic.model.perceiver_ar import PerceiverAR
from pamusic.model.recall import Recall, RecallCache
from pamusic.tokens.grammar import recall_ranges
from pamusic.tokens.tokenizer import load_tokenizer

SLOTS, FAR, DECAY, LIKE, SHARP, REACH, SPREAD = 5, 4, 0.8, 0.96, 120.0, 3, 0.7
CONFIG = RecallConfig(
    num_slots=SLOTS,
    first_opening=0,
    first_closing=5,
    numbers=((10, 4), (14, 7)),
    decay=DECAY,
    like=LIKE,
    sharp=SHARP,
    far=FAR,
    reach=REACH,
    spread=SPREAD,
)

EXACT = dataclasses.replace(CONFIG, spread=0.0)  # copies of numbers are of these alone


def plain(ids, window=10**6, config=CONFIG):
    """The twin, by the words: shares after the last id, of what followed in the last `window` ids, as a dictionary."""

    def openings(upto):
        return [id - config.first_opening for id in ids[:upto] if 0 <= id - config.first_opening < config.num_slots]

    def state(upto):
        opened, found = openings(upto), {}
        for age, slot in enumerate(reversed(opened)):
            if abs(slot - opened[-1]) <= config.reach:
                found[slot - opened[-1]] = found.get(slot - opened[-1], 0.0) + config.decay**age
        return found

    def moved(id, by):
        for first in (config.first_opening, config.first_closing):
            if 0 <= id - first < config.num_slots:
                return id + by if 0 <= id - first + by < config.num_slots else None
        return id

    def like(a, b):
        lengths = math.hypot(*a.values()) * math.hypot(*b.values())
        return sum(a[place] * b.get(place, 0.0) for place in a) / lengths if lengths else 0.0

    def beside(id):
        for first, count in config.numbers:
            if first <= id < first + count and config.spread:
                return {other: math.exp(-abs(other - id) / config.spread) for other in range(first, first + count)}
        return {id: 1.0}

    def last(upto):
        return (openings(upto) or [0])[-1]

    now, weights = state(len(ids)), {}
    for follower in range(max(1, len(ids) - window), len(ids) - FAR + 1):
        by = last(len(ids)) - last(follower)
        copy, before = moved(ids[follower], by), moved(ids[follower - 1], by)
        if copy is not None:
            near = beside(ids[-1]).get(before, 0.0)
            weight = near * math.exp(SHARP * (like(now, state(follower)) - LIKE))
            weights[copy] = weights.get(copy, 0.0) + weight
    shares, in_all = {}, 1 + sum(weights.values())
    for id, weight in weights.items():
        for other, near in beside(id).items():
            shares[other] = shares.get(other, 0.0) + near / sum(beside(id).values()) * weight / in_all
    return shares


def as_tensor(shares):
    found = torch.zeros(VOCAB)
    for id, share in shares.items():
        found[id] = share
    return found


def repeating(length, seed=1):
    """Ids in which passages come again."""
    return (piece(max(1, length // 3), seed) * 4)[:length]


def made(config=CONFIG, seed=0):
    torch.manual_seed(seed)
    return Recall(config, VOCAB, 8)


def model_that_recalls(num_layers=2, **changes):
    """One whose gate is half open, more or less."""
    model = outspoken_model(num_layers, recall=CONFIG, **changes)
    torch.nn.init.zeros_(model.recall.gate.bias)
    return model


def test_what_followed_the_same_openings_is_copied():
    """0 1 2 opened, then 11; again 0 1 2: what follows is 11, as likely as likeness outweighs doubt."""
    ids = [0, 1, 2, 11, 12, 13, 0, 1, 2]
    (shares,) = made(EXACT)(torch.tensor([ids]), 1)[0]
    before, now = [DECAY**2, DECAY, 1.0], [DECAY**2 + DECAY**5, DECAY + DECAY**4, 1 + DECAY**3]
    assert [x / y for x, y in zip(now, before, strict=True)] == pytest.approx([1 + DECAY**3] * 3)  # so the cosine is 1

    weight = math.exp(SHARP * (1 - LIKE))
    assert shares[11].item() == pytest.approx(weight / (1 + weight), abs=1e-4)
    assert shares.sum().item() == pytest.approx(weight / (1 + weight), abs=1e-4)


@pytest.mark.parametrize(
    ("followed", "follows"),
    [
        (6, 8),  # what closes 1 becomes what closes 3
        (12, 12),  # of no slot
        (9, None),  # what closes 4 would close 6, which is not there
    ],
)
def test_a_passage_is_found_again_in_another_key_and_what_followed_is_moved(followed, follows):
    """0 1 2 opened and something; now 2 3 4."""
    recall = made(dataclasses.replace(EXACT, decay=0.1))
    (shares,) = recall(torch.tensor([[0, 1, 2, followed, 13, 12, 11, 2, 3, 4]]), 1)[0]
    if follows is None:
        assert shares.max() < 1e-2
    else:
        assert shares[follows] > 0.9


def test_openings_are_moved_and_those_that_would_be_of_no_slot_are_not_copied():
    """1 0 2 and 4 opened after 1; now 2 1 3, and what was 4 would be 5."""
    recall = made(dataclasses.replace(EXACT, decay=0.1))
    before, now = [1, 0, 2, 11, 13], [2, 1, 3, 11, 13]
    (shares,) = recall(torch.tensor([[*before, 3, 12, 12, *now]]), 1)[0]
    assert shares[4] > 0.9
    (shares,) = recall(torch.tensor([[*before, 4, 12, 12, *now]]), 1)[0]
    assert shares.max() < 1e-2


def test_copies_of_a_number_count_for_those_beside_it_and_of_nothing_else():
    recall = made()
    (shares,) = recall(torch.tensor([[0, 1, 2, 11, 20, 20, 20, 0, 1, 2]]), 1)[0]
    found = (shares / shares.sum())[9:16].tolist()
    near = [math.exp(-abs(11 - id) / SPREAD) for id in range(10, 14)]
    assert found == pytest.approx([0, *(each / sum(near) for each in near), 0, 0], abs=1e-3)


def test_it_takes_the_same_id_before_or_one_near_it():
    """After 11 the opening that followed 11 is copied, and not what followed 2; after 10, too, but less surely."""
    found = []
    for last in (11, 10):
        ids = torch.tensor([[0, 1, 2, 11, 4, 12, 0, 1, 2, last]])
        (shares,) = made()(ids, 1)[0]
        assert shares.argmax().item() == 4
        assert shares[11] < 1e-3
        found.append(shares[4].item())
        (exact,) = made(EXACT)(ids, 1)[0]
        assert (exact[4] > 0.5) == (last == 11)
        assert exact[4] > 0.5 or exact.max() < 1e-3
    assert found[0] > found[1] > 0.3


@pytest.mark.parametrize("length", [1, FAR, FAR + 1, 30, 90])
@pytest.mark.parametrize("n", [1, 40])
def test_shares_are_those_of_the_plain_twin(length, n):
    ids = repeating(length)
    n = min(n, length)
    found = made()(torch.tensor([ids, ids[::-1]]), n)
    for row, own in enumerate((ids, ids[::-1])):
        for place in range(length - n, length):
            expected = as_tensor(plain(own[: place + 1]))
            torch.testing.assert_close(found[row, place - length + n], expected, atol=2e-4, rtol=1e-3)
    assert length < 30 or found.sum(-1).max() > 0.9


def test_so_many_are_asked_at_a_time_that_memory_is_bounded(monkeypatch):
    ids = torch.tensor([repeating(90)])
    whole = made()(ids, 50)
    monkeypatch.setattr(module, "QUERIES", 7)
    assert torch.allclose(made()(ids, 50), whole, atol=1e-6)


def test_nothing_depends_on_what_comes_later():
    ids = repeating(60)
    whole = made()(torch.tensor([ids]), 60)[0]
    for length in (10, 31, 59):
        assert torch.allclose(made()(torch.tensor([ids[:length]]), length)[0], whole[:length], atol=1e-5)


@pytest.mark.parametrize("at_once", [[90], [1] * 90, [40, 1, 1, 30, 18]])
def test_a_memory_knows_the_same_however_it_was_given_it(at_once):
    ids, recall = torch.tensor([repeating(90), repeating(90, seed=2)]), made()
    expected, memory, stop = recall(ids, 90), RecallCache(recall, 2, 256), 0
    for count in at_once:
        new = ids[:, stop : stop + count]
        memory.step(new[:, 0]) if count == 1 else memory.enter(new)
        stop += count
        torch.testing.assert_close(memory.copy_probs(), expected[:, stop - 1], atol=3e-4, rtol=1e-3)


def test_rows_of_a_memory_go_on_by_themselves():
    ids, recall = torch.tensor([repeating(90), repeating(90, seed=2)]), made()
    memory = RecallCache(recall, 1, 256)
    memory.enter(ids[:1, :50])
    memory.select(torch.tensor([0, 0, 0]))
    other = torch.cat([ids[0, :50], ids[1, 50:]])
    for place in range(50, 90):
        memory.step(torch.stack([ids[0, place], other[place], ids[0, place]]))
    expected = recall(torch.stack([other, ids[0]]), 1)[:, 0]
    memory.select(torch.tensor([1, 2]))
    torch.testing.assert_close(memory.copy_probs(), expected, atol=3e-4, rtol=1e-3)
    torch.testing.assert_close(memory.rows(slice(1, 2)).copy_probs(), memory.copy_probs()[1:])


def test_beyond_the_window_a_memory_knows_what_followed_in_it_and_whole_states():
    ids, recall, window = repeating(900), made(), 300
    memory, most = RecallCache(recall, 1, window), 0.0
    for place, id in enumerate(ids):
        memory.step(torch.tensor([id]))
        if place % 37 == 0:
            expected = as_tensor(plain(ids[: place + 1], window))
            torch.testing.assert_close(memory.copy_probs()[0], expected, atol=2e-3, rtol=2e-3)
            most = max(most, expected.sum().item())
    assert most > 0.9


def test_states_are_compared_alike_where_nothing_may_be_looked_at(monkeypatch):
    ids = torch.tensor([repeating(90)])
    looked = made()(ids, 60)
    monkeypatch.setattr(module, "_can_be_looked_at", lambda ids: False)
    assert torch.allclose(made()(ids, 60), looked, atol=1e-6)


def test_whole_numbers_add_up_to_the_same(monkeypatch):
    ids, recall = torch.tensor([repeating(90)]), made()
    expected = recall(ids, 60)
    monkeypatch.setattr(module, "_adds_in_any_order", lambda ids: True)
    assert torch.allclose(recall(ids, 60), expected, atol=1e-6)


def test_endless_repetition_is_certain_and_no_more_than_that():
    """So many copies that the sums of their weights are rounded: logits stay numbers, and so do gradients."""
    ids = torch.tensor([[0, 5, 15] * 3000])
    recall = made(dataclasses.replace(CONFIG, far=16))
    memory = RecallCache(recall, 1, ids.shape[1])
    memory.enter(ids)
    for shares in (recall(ids, 4)[0], memory.copy_probs()):
        logits = torch.zeros(len(shares), VOCAB, requires_grad=True)
        gate = torch.full((len(shares), 1), 40.0, requires_grad=True)
        mixed = recall.mix(logits, gate, shares)
        mixed[:, 3].sum().backward()
        assert shares.sum(1).max() <= 1 + 1e-6
        assert mixed.isfinite().all()
        assert logits.grad.isfinite().all()
        assert gate.grad.isfinite().all()


def test_a_memory_forgets_what_has_left_the_window():
    recall = made(EXACT)
    ids = [0, 1, 2, 11, *[12, 13] * 200, 0, 1, 2]
    found = []
    for window in (500, 100):
        memory = RecallCache(recall, 1, window)
        for id in ids:
            memory.step(torch.tensor([id]))
        found.append(memory.copy_probs()[0, 11].item())
    assert found[0] > 0.9
    assert found[1] == 0


@pytest.mark.parametrize("gate", [-30.0, 0.0, 30.0])
def test_a_mixture_is_of_what_was_said_and_what_is_copied(gate):
    randomness = torch.Generator().manual_seed(0)
    logits = torch.randn(3, VOCAB, generator=randomness) * 3
    shares = torch.rand(3, VOCAB, generator=randomness).softmax(-1) * torch.tensor([[0.0], [0.5], [0.999]])
    found = made().mix(logits, torch.full((3, 1), gate), shares)

    trusted = torch.tensor(gate).sigmoid() * shares
    expected = logits.softmax(-1) * (1 - trusted.sum(-1, keepdim=True)) + trusted
    torch.testing.assert_close(found.softmax(-1), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.logsumexp(-1), logits.logsumexp(-1), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("policy", [REFILLS[0], *REFILLS[2:], 1])
@pytest.mark.parametrize("prime_length", [1, 20])
def test_cached_logits_are_those_of_one_pass(policy, prime_length):
    model, ids = model_that_recalls(num_layers=1), repeating(60)
    readers = [InferenceSession(model, InferenceConfig(refill=policy)) for _ in range(2)]
    readers[1]._stepper = CudaGraphStep(model, record=operations_of)
    readers[1]._begin()
    found = [reader.prefill(ids[:prime_length]) for reader in readers]
    for place in range(prime_length, 60):
        assert torch.allclose(found[0], found[1], atol=1e-3)
        alive = readers[0].caches.num_latents
        expected = uncached(model, ids[:place], alive)
        assert torch.allclose(found[0][0], expected, atol=1e-3), f"token {place}"
        found = [reader.step([ids[place]]) for reader in readers]


def test_rows_recall_what_each_has_read():
    model, ids = model_that_recalls(), repeating(60)
    together, alone = InferenceSession(model), InferenceSession(model)
    together.prefill(ids[:30])
    together.select([0] * 6)
    alone.prefill(ids[:30])
    for place in range(30, 30 + 3 * N):
        rows = together.step([ids[place]] * 5 + [3])
        assert torch.allclose(rows[:5], alone.step([ids[place]]).expand(5, -1), atol=1e-3)


def test_blocks_that_are_scored_recall_what_was_read_before():
    model, ids = model_that_recalls(), torch.tensor([repeating(60)])
    caches = model.new_caches(1)
    model.read(ids[:, :40], caches)
    model.read(ids[:, 40:], caches)
    found = model.extend(ids[:, -N:], caches)
    assert torch.allclose(found, model(ids), atol=1e-3)


def test_shares_are_the_same_whatever_weights_are():
    model, ids = model_that_recalls(), torch.tensor([repeating(60)])
    expected = model.recall(ids, 60)
    rounded = model.to(torch.bfloat16)
    assert rounded.recall.gate.weight.dtype == torch.bfloat16
    assert torch.equal(rounded.recall(ids, 60), expected)
    assert rounded(ids).isfinite().all()


def test_what_comes_again_is_foreseen_and_the_gate_learns_to_trust_it():
    """Random openings, twice: a model that says nothing learns from its gate alone to copy the second time."""
    model = model_that_recalls(num_layers=0, context_length=128)
    torch.nn.init.zeros_(model.head.weight)
    torch.nn.init.constant_(model.recall.gate.bias, -4.0)
    drawn = torch.randint(0, SLOTS, (40,), generator=torch.Generator().manual_seed(3))
    ids = torch.cat([drawn, drawn])[None]

    def nats():
        logits = model(ids[:, :-1], num_latents=30)
        return torch.nn.functional.cross_entropy(logits[0], ids[0, -30:])

    before = nats().item()
    optimizer = torch.optim.Adam(model.recall.parameters(), lr=0.3)
    for _ in range(60):
        optimizer.zero_grad()
        nats().backward()
        optimizer.step()
    assert before == pytest.approx(math.log(VOCAB), abs=0.3)
    assert nats().item() < 0.7 * before


def test_weights_that_recall_are_kept_and_read_again(tmp_path):
    tokenizer = load_tokenizer("performance")
    vocabulary = tokenizer.vocabulary
    recall = RecallConfig(**recall_ranges(vocabulary))
    shape = {"context_length": 128, "num_latents": 16, "d_model": 32, "num_layers": 1, "num_heads": 2}
    config = ModelConfig(
        vocab_size=len(vocabulary), pad_id=vocabulary.id("pad"), cross_num_heads=1, recall=recall, **shape
    )
    torch.manual_seed(0)
    model = PerceiverAR(config).eval()
    torch.nn.init.normal_(model.recall.gate.weight)
    save_checkpoint(tmp_path / "c", model, tokenizer, metadata={})
    again = load_checkpoint(tmp_path / "c").model
    assert again.config == config
    assert torch.equal(again.recall.gate.weight, model.recall.gate.weight)


@pytest.mark.parametrize("name", ["performance", "piano"])
def test_ids_are_those_of_the_vocabulary(name):
    vocabulary = load_tokenizer(name).vocabulary
    recall = Recall(RecallConfig(**recall_ranges(vocabulary)), len(vocabulary), 8)
    named = [vocabulary.event(id) for id in range(len(vocabulary))]
    assert [kind == "note_on" for kind, _ in named] == (recall.slot_of_id < recall.num_slots).tolist()
    by_5 = recall.moved.view(len(vocabulary) + 1, -1)[:, recall.num_slots - 1 + 5]
    for id, (kind, value) in enumerate(named):
        if kind in ("note_on", "note_off"):
            is_there = (kind, value + 5) in named
            assert by_5[id] == (vocabulary.id(kind, value + 5) if is_there else len(vocabulary))
        else:
            assert by_5[id] == id
        near = {named[other] for other in recall.beside[id].nonzero()[:, 0].tolist()}
        assert {other for other, _ in near} == {kind}
        assert (len(near) > 1) == (kind in ("time_shift", "velocity"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"first_opening": -1},
        {"first_opening": VOCAB},
        {"decay": 1},
        {"sharp": 0},
        {"far": 0},
        {"num_slots": 0},
        {"first_closing": -1},
        {"first_closing": VOCAB},
        {"reach": 0},
        {"spread": -1.0},
        {"spread": math.nan},
        {"numbers": ((VOCAB - 1, 2),)},
        {"like": math.nan},
        {"sharp": 1e5},
    ],
)
def test_ids_that_are_not_there_are_refused(wrong):
    with pytest.raises(ValueError, match="recall"):
        outspoken_model(recall=RecallConfig(**{**vars(CONFIG), **wrong}))


def test_a_configuration_that_lacks_something_is_refused():
    fields = dataclasses.asdict(outspoken_model(recall=CONFIG).config)
    assert ModelConfig.from_json(fields).recall == CONFIG
    del fields["recall"]["first_closing"]
    with pytest.raises(TypeError, match="first_closing"):
        ModelConfig.from_json(fields)
