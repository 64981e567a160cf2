"""A recorded step gives what a `Stepper` gives; and what is recorded at one token is right at every other."""

import pytest
import torch
from models import VOCAB, N, outspoken_model, piece
from recording import operations_of

from pamusic.model.reader import REFILLS, Reader
from pamusic.model.recorded import RecordedStepper


def both(model, **how):
    """A reader, and one that records."""
    reader, recording = Reader(model, **how), Reader(model, **how)
    recording._stepper = RecordedStepper(model, record=operations_of)
    recording._begin()
    return reader, recording


def close(a, b):
    return torch.allclose(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("policy", [REFILLS[0], *REFILLS[2:], 1])
@pytest.mark.parametrize(("prime_length", "num_layers"), [(1, 1), (20, 3)])
def test_a_recorded_step_says_what_a_step_says(policy, prime_length, num_layers):
    model, ids = outspoken_model(num_layers, context_length=16, cross_num_heads=2, num_heads=4), piece(400)
    reader, recording = both(model, refill=policy)

    assert close(reader.read(ids[:prime_length]), recording.read(ids[:prime_length]))
    for place in range(prime_length, 400):
        assert close(reader.step([ids[place]]), recording.step([ids[place]])), f"token {place}"


def test_rows_are_recorded_anew_when_others_go_on():
    model, ids = outspoken_model(ledger=None), piece(60)
    reader, recording = both(model)
    randomness = torch.Generator().manual_seed(2)

    for each in (reader, recording):
        each.read(ids)
        each.select([0] * 5)
    for rows in ([0, 1, 2, 3, 4], [0, 3, 4], [2]):
        for each in (reader, recording):
            each.select(rows)
        for _ in range(2 * N):
            new = torch.randint(0, VOCAB - 3, (len(rows),), generator=randomness).tolist()
            assert close(reader.step(new), recording.step(new))


def test_without_a_card_nothing_is_recorded():
    model, ids = outspoken_model(), piece(40)
    reader, recording = both(model)
    recording._stepper = RecordedStepper(model)
    recording._begin()

    reader.read(ids[:5])
    recording.read(ids[:5])
    assert all(close(reader.step([id]), recording.step([id])) for id in ids[5:])
