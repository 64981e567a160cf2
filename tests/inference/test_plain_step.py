"""Cached steps of the architectures without latents equal parallel passes over what they see."""

import pytest
import torch
from models import FIELDS, N, piece, plain_model, positions

from pamusic.errors import UsageError
from pamusic.evaluation.likelihood import score
from pamusic.inference.precision import resolve_precision
from pamusic.inference.session import InferenceConfig, InferenceSession

CONTEXT = 24
KINDS = pytest.mark.parametrize("fields", [{}, FIELDS], ids=["one id", "fields"])


def ids_of(model, length, seed=1):
    return (positions if model.config.field_sizes else piece)(length, seed)


@torch.inference_mode()
def uncached(model, ids, chosen):
    """Logits after the last position of a parallel pass; of all fields, given the chosen ids of the next position."""
    following = None if chosen is None else torch.tensor([[chosen]])
    return model(torch.tensor([ids]), num_latents=1, following=following)[0, -1]


def of_row(prediction, row, chosen):
    if chosen is None:
        return prediction[row]
    ids = torch.tensor([chosen] * len(prediction.states))
    return torch.cat([prediction.logits(field, ids[:, :field])[row] for field in range(len(chosen))])


def seen_by_a_transformer(prime_length, length, refill):
    """Number of last positions that a Transformer sees after each position, prime included."""
    kept = refill + CONTEXT - N
    seen = min(prime_length, kept)
    for _ in range(prime_length, length):
        yield seen
        seen = kept if seen == CONTEXT else seen + 1
    yield seen


@KINDS
@pytest.mark.parametrize(("refill", "kept"), [("half", 4), (1, 1), ("all", 8)])
@pytest.mark.parametrize("prime_length", [1, 20, 40])
def test_a_transformer_reads_on_until_its_context_is_full_and_then_without_the_oldest(
    fields, refill, kept, prime_length
):
    model = plain_model("transformer", context_length=CONTEXT, **fields)
    ids, chosen = ids_of(model, 90), ids_of(model, 1, seed=2)[0] if fields else None
    session = InferenceSession(model, InferenceConfig(refill=refill))

    prediction = session.prefill(ids[:prime_length])
    for length, seen in enumerate(seen_by_a_transformer(prime_length, 90, kept), start=prime_length):
        expected = uncached(model, ids[length - seen : length], chosen)
        torch.testing.assert_close(of_row(prediction, 0, chosen), expected, atol=1e-4, rtol=1e-4)
        if length < 90:
            prediction = session.step([ids[length]])


@pytest.mark.parametrize("prime_length", [1, 40])
def test_a_sliding_transformer_of_one_block_sees_the_last_positions(prime_length):
    model, ids = plain_model("transformer", 0, context_length=CONTEXT), piece(200)
    session = InferenceSession(model, InferenceConfig(refill="slide"))

    prediction = session.prefill(ids[:prime_length])
    for length in range(prime_length, 200):
        expected = uncached(model, ids[max(0, length - CONTEXT) : length], None)
        torch.testing.assert_close(prediction[0], expected, atol=1e-4, rtol=1e-4)
        prediction = session.step([ids[length]])


@KINDS
@pytest.mark.parametrize("prime_length", [1, 8, 21, 40])
def test_a_transformer_xl_carries_its_states_along(fields, prime_length):
    model = plain_model("transformer-xl", context_length=CONTEXT, **fields)
    ids, chosen = ids_of(model, 90), ids_of(model, 1, seed=2)[0] if fields else None
    session = InferenceSession(model)

    prediction = session.prefill(ids[:prime_length])
    first = max(0, prime_length - CONTEXT)
    for length in range(prime_length, 90):
        expected = uncached(model, ids[first:length], chosen)
        torch.testing.assert_close(of_row(prediction, 0, chosen), expected, atol=1e-4, rtol=1e-4)
        assert session.caches.num_latents <= 2 * N
        prediction = session.step([ids[length]])


@KINDS
@pytest.mark.parametrize("architecture", ["transformer", "transformer-xl"])
def test_each_row_is_as_if_it_were_alone(fields, architecture):
    model = plain_model(architecture, context_length=CONTEXT, **fields)
    ids, chosen = ids_of(model, 5), ids_of(model, 1, seed=2)[0] if fields else None
    rows = [ids_of(model, 60, seed) for seed in range(3, 9)]
    alone, together = [InferenceSession(model) for _ in rows], InferenceSession(model)
    for session in (*alone, together):
        session.prefill(ids)
    together.select([0] * len(rows))
    for place in range(60):
        of_all = together.step([row[place] for row in rows])
        for row, session in enumerate(alone):
            own = session.step([rows[row][place]])
            torch.testing.assert_close(of_row(of_all, row, chosen), of_row(own, 0, chosen), atol=1e-4, rtol=1e-4)
        if place == 40:
            together.select([1, 3])
            rows, alone = [rows[1], rows[3]], [alone[1], alone[3]]


def test_a_session_may_have_other_segments_and_another_context():
    model, ids = plain_model("transformer-xl"), piece(60)
    other = plain_model("transformer-xl", num_latents=5, context_length=30)
    session = InferenceSession(model, InferenceConfig(num_latents=5, context_length=30))

    prediction = session.prefill(ids[:40])
    for length in range(40, 60):
        torch.testing.assert_close(prediction[0], uncached(other, ids[10:length], None), atol=1e-4, rtol=1e-4)
        prediction = session.step([ids[length]])


@KINDS
def test_a_transformer_is_scored_by_passes_over_the_context_of_each_block(fields):
    model = plain_model("transformer", context_length=CONTEXT, **fields)
    tokens = ids_of(model, 61)
    nats, _ = score(model, tokens, block=3)

    for stop in range(3, 61, 3):
        first = max(0, stop - CONTEXT)
        for place in range(stop - 3, stop):
            logits = uncached(model, tokens[first : place + 1], tokens[place + 1] if fields else None)
            torch.testing.assert_close(
                float(nats[place].sum()), cost(model, logits, tokens[place + 1]), atol=1e-4, rtol=0
            )


@KINDS
@pytest.mark.parametrize("first", [1, 25])
def test_a_transformer_xl_is_scored_with_its_states_carried_along(fields, first):
    model = plain_model("transformer-xl", context_length=CONTEXT, **fields)
    tokens = ids_of(model, 65)
    nats, _ = score(model, tokens, block=N, first=first)

    assert len(nats) == 65 - first
    for place in range(first - 1, 64):
        logits = uncached(model, tokens[: place + 1], tokens[place + 1] if fields else None)
        torch.testing.assert_close(
            float(nats[place + 1 - first].sum()), cost(model, logits, tokens[place + 1]), atol=1e-4, rtol=0
        )


def cost(model, logits, ids):
    """Nats of an id, or of all fields of a position."""
    if not model.config.field_sizes:
        return -float(logits.log_softmax(-1)[ids])
    parts = logits.split(model.config.field_sizes)
    starts = (0, 8, 14)
    return -sum(float(part.log_softmax(-1)[id - start]) for part, id, start in zip(parts, ids, starts, strict=True))


def test_only_a_perceiver_ar_has_steps_in_int8():
    assert resolve_precision("auto", "cpu", True) == "int8"
    assert resolve_precision("auto", "cpu", True, "transformer") == "fp32"
    assert resolve_precision("bf16", "cpu", False, "transformer-xl") == "bf16"
    with pytest.raises(UsageError, match="int8 is for perceiver-ar, not for transformer; use auto, bf16 or fp32"):
        InferenceSession(plain_model("transformer"), InferenceConfig(precision="int8"))


@pytest.mark.parametrize("architecture", ["transformer", "transformer-xl"])
def test_bf16_steps_are_near_those_in_fp32(architecture, monkeypatch):
    monkeypatch.setattr("pamusic.inference.session.has_fast_bf16", lambda device: True)
    model, ids = plain_model(architecture), piece(40)
    exact, halved = InferenceSession(model), InferenceSession(model, InferenceConfig(precision="bf16"))
    for session in (exact, halved):
        session.prefill(ids[:10])
    for id in ids[10:]:
        before, after = exact.step([id]), halved.step([id])
        assert after.dtype == torch.float32
        assert 0 < (before - after).abs().mean() < 0.1 * before.std()
