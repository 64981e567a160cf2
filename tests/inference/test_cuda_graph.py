"""A recorded step gives what a `TokenStep` gives; and what is recorded at one token is right at every other."""

import pytest
import torch
from models import VOCAB, N, outspoken_model, piece
from recording import operations_of
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pamusic.inference.cuda_graph import CudaGraphStep
from pamusic.inference.session import REFILLS, InferenceConfig, InferenceSession
from pamusic.inference.token_step import ROTARY_BLOCK, RotaryTable
from pamusic.model.config import RecallConfig

RECALL = RecallConfig(
    num_slots=5,
    first_opening=0,
    first_closing=5,
    numbers=((10, 4),),
    far=4,
    like=0.5,
    sharp=8.0,
)


def both(model, precision="fp32", **how):
    """A reader, and one that records."""
    reader, recording = (InferenceSession(model, InferenceConfig(precision=precision, **how)) for _ in range(2))
    recording._stepper = CudaGraphStep(model, precision, record=operations_of)
    recording._begin()
    return reader, recording


def close(a, b):
    return torch.allclose(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("policy", [REFILLS[0], *REFILLS[2:], 1])
@pytest.mark.parametrize(("prime_length", "num_layers"), [(1, 1), (20, 3)])
def test_a_recorded_step_says_what_a_step_says(policy, prime_length, num_layers):
    model, ids = outspoken_model(num_layers, context_length=16, cross_num_heads=2, num_heads=4), piece(400)
    reader, recording = both(model, refill=policy)

    assert close(reader.prefill(ids[:prime_length]), recording.prefill(ids[:prime_length]))
    for place in range(prime_length, 400):
        assert close(reader.step([ids[place]]), recording.step([ids[place]])), f"token {place}"


@pytest.mark.slow
def test_with_halved_weights_it_says_nearly_what_a_step_with_halved_weights_says():
    reader, recording = both(outspoken_model(3), "bf16")
    ids = piece(200)
    differences, spread = [], []
    for id in ids:
        said = reader.step([id])
        differences.append((said - recording.step([id])).abs().max().item())
        spread.append(said.std().item())
    assert max(differences) < 0.05 * min(spread)


class OnTheCard(TorchDispatchMode):
    """In which nothing is computed on the CPU, so that nothing has to be sent from there."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        assert all(each.device.type == "meta" for each in tree_leaves(result) if isinstance(each, torch.Tensor))
        return result


def test_turns_are_made_where_they_are_needed():
    turns = RotaryTable(torch.ones(3, 2, 16, device="meta"), 0.25)
    with OnTheCard():
        own, of_partners, _ = turns.around(1000)
    assert own.shape == of_partners.shape == (ROTARY_BLOCK, 3, 2, 1, 16)


@pytest.mark.slow
@pytest.mark.parametrize("parts", [{"ledger": None}, {"recall": RECALL}])
def test_rows_are_recorded_anew_when_others_go_on(parts):
    model, ids = outspoken_model(**parts), piece(60)
    reader, recording = both(model)
    randomness = torch.Generator().manual_seed(2)

    for each in (reader, recording):
        each.prefill(ids)
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
    recording._stepper = CudaGraphStep(model)
    recording._begin()

    reader.prefill(ids[:5])
    recording.prefill(ids[:5])
    assert all(close(reader.step([id]), recording.step([id])) for id in ids[5:])
