"""Muon computes what PyTorch's does; averaged weights are what the formula says, and lending them changes nothing."""

from copy import deepcopy

import pytest
import torch
from models import tiny_model

from pamusic.training import muon
from pamusic.training.muon import Muon, orthogonalize
from pamusic.training.optimizers import Average

SHAPES = ((24, 24), (64, 16), (16, 64), (1, 8))


def steps(make, num_steps, state=None):
    """Weights and saved state after so many updates with the same gradients."""
    draws = torch.Generator().manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(shape, generator=draws)) for shape in SHAPES]
    optimizer = make(weights, lr=0.02, weight_decay=0.01, momentum=0.95)
    if state is not None:
        optimizer.load_state_dict(deepcopy(state))
    for _ in range(num_steps):
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=draws)
        optimizer.step()
    return torch.cat([weight.detach().flatten() for weight in weights]), optimizer.state_dict()


def test_in_bfloat16_muon_is_pytorchs_to_the_last_bit(monkeypatch):
    monkeypatch.setattr(muon, "has_fast_bf16", lambda device: True)
    own, state = steps(Muon, 5)
    theirs, their_state = steps(torch.optim.Muon, 5)

    assert torch.equal(own, theirs)
    assert {tuple(each) for each in state["state"].values()} == {tuple(each) for each in their_state["state"].values()}


def test_in_float32_muon_is_near_pytorchs_and_more_exact(monkeypatch):
    monkeypatch.setattr(muon, "has_fast_bf16", lambda device: False)
    own, _ = steps(Muon, 5)
    theirs, _ = steps(torch.optim.Muon, 5)

    assert own.dtype == torch.float32
    torch.testing.assert_close(own, theirs, atol=2e-3, rtol=0)
    assert not torch.equal(own, theirs)


def test_a_state_of_pytorchs_muon_is_resumed(monkeypatch):
    monkeypatch.setattr(muon, "has_fast_bf16", lambda device: True)
    _, state = steps(torch.optim.Muon, 3)

    assert torch.equal(steps(Muon, 4, state)[0], steps(torch.optim.Muon, 4, state)[0])


@pytest.mark.parametrize("is_fast", [False, True])
def test_orthogonalized_keeps_directions_and_levels_singular_values(monkeypatch, is_fast):
    monkeypatch.setattr(muon, "has_fast_bf16", lambda device: is_fast)
    matrix = torch.randn(48, 32, generator=torch.Generator().manual_seed(1))
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    found = orthogonalize(matrix)

    assert found.dtype == (torch.bfloat16 if is_fast else torch.float32)
    inner = u.T @ found.float() @ vh.T  # diagonal where the singular vectors are kept
    assert inner.diagonal().min() > 0.6
    assert inner.diagonal().max() < 1.25
    assert (inner - inner.diagonal().diag()).abs().max() < (0.05 if is_fast else 1e-4)
    assert torch.equal(matrix, torch.randn(48, 32, generator=torch.Generator().manual_seed(1)))


def test_muon_takes_matrices_alone():
    with pytest.raises(ValueError, match=r"needs matrices, got a parameter of shape \(3,\)"):
        Muon([torch.nn.Parameter(torch.zeros(3))], lr=0.1)


def test_the_average_is_the_formula_applied_by_hand():
    model = tiny_model()
    weight = model.head.weight
    average, by_hand = Average(model, decay=0.5), weight.detach().clone()

    for step in (1, 2, 3, 100):
        with torch.no_grad():
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(step)))
        average.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        by_hand = decay * by_hand + (1 - decay) * weight.detach()

    torch.testing.assert_close(average.state_dict()["head.weight"], by_hand)


def test_a_model_that_was_lent_the_average_has_its_own_weights_again():
    model = tiny_model()
    average = Average(model, decay=0.9)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    own = {name: weight.clone() for name, weight in model.state_dict().items()}
    averaged = {name: weight.clone() for name, weight in average.state_dict().items()}

    with average.in_place():
        assert all(torch.equal(weight, averaged[name]) for name, weight in model.state_dict().items())

    assert all(torch.equal(weight, own[name]) for name, weight in model.state_dict().items())
    assert all(torch.equal(weight, averaged[name]) for name, weight in average.state_dict().items())
