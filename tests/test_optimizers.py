"""Averaged weights are what the formula says, and lending them changes nothing."""

import torch
from models import tiny_model

from pamusic.training.optimizers import Average


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
