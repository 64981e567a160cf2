"""One position at a time, of several fields: what the model says in one parallel pass, in fewer operations."""

import numpy as np
import pytest
import torch
from fields import NOTES
from models import tiny_config

from pamusic.inference.int8 import ReferenceKernel
from pamusic.inference.native_kernel import kernel
from pamusic.inference.session import InferenceConfig, InferenceSession
from pamusic.model.config import ClockConfig, OffsetsConfig
from pamusic.model.perceiver_ar import PerceiverAR
from pamusic.tokens.positions import offset_edges

VOCABULARY = NOTES.vocabulary
SIZES = tuple(field.size for field in VOCABULARY.fields)
EDGES = offset_edges(VOCABULARY)
EXTRAS = {
    "plain": {},
    "conv": {"conv_width": 4},
    "offsets": {"offsets": OffsetsConfig(**EDGES)},
    "clock": {"clock": ClockConfig(shift_edges=EDGES["shift_edges"])},
    "all": {
        "conv_width": 3, "offsets": OffsetsConfig(**EDGES), "clock": ClockConfig(shift_edges=EDGES["shift_edges"]),
    },
}  # fmt: skip
extras = pytest.mark.parametrize("extra", EXTRAS.values(), ids=EXTRAS.keys())


def model_of(seed=0, **changes):
    torch.manual_seed(seed)
    sizes = {"context_length": 24, "num_latents": 8, "d_model": 64, "num_heads": 2, "cross_num_heads": 2}
    config = tiny_config(
        vocab_size=len(VOCABULARY), pad_id=VOCABULARY.id("pad"), field_sizes=SIZES, **{**sizes, **changes}
    )
    model = PerceiverAR(config).eval()
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=float("norm" in name), std=0.2)
    return model


def positions(rows, n, seed=0):
    """Any ids of the fields, `[rows, n, fields]`; times are short."""
    draws = torch.Generator().manual_seed(seed)
    starts = [field.start for field in VOCABULARY.fields]
    columns = [
        torch.randint(0, min(size, 90), (rows, n), generator=draws) + at for size, at in zip(SIZES, starts, strict=True)
    ]
    return torch.stack(columns, dim=-1)


@torch.inference_mode()
def predicted(session, tokens, num_prime):
    """Logits `[steps, rows, vocab]` of all fields, given the true ids, from the prime on."""
    prediction, found = session.prefill(tokens[0, :num_prime].tolist()), []
    session.select([0] * len(tokens))
    prediction = prediction.expand(len(tokens))
    for place in range(num_prime, tokens.shape[1]):
        following = tokens[:, place]
        found.append(torch.cat([prediction.logits(field, following[:, :field]) for field in range(4)], dim=-1))
        prediction = session.step(following)
    return torch.stack(found)


@torch.inference_mode()
def in_one_pass(model, tokens, num_prime, num_latents):
    """The same by a parallel pass for each step, with as many latents as are in use then."""
    found, in_use = [], min(num_latents // 2, num_prime)
    for place in range(num_prime, tokens.shape[1]):
        following = tokens[:, place - in_use + 1 : place + 1]
        found.append(model(tokens[:, :place], num_latents=in_use, following=following)[:, -1])
        in_use = in_use + 1 if in_use < num_latents else num_latents // 2
    return torch.stack(found)


def tokens_of(rows, n, num_prime):
    """Rows that begin alike."""
    tokens = positions(rows, n)
    tokens[1:, :num_prime] = tokens[:1, :num_prime]
    return tokens


@extras
@pytest.mark.parametrize("num_prime", [1, 3, 10])
def test_steps_say_what_a_parallel_pass_says_over_refills(extra, num_prime):
    model, tokens = model_of(**extra), tokens_of(3, 23, num_prime)

    found = predicted(InferenceSession(model), tokens, num_prime)
    torch.testing.assert_close(found, in_one_pass(model, tokens, num_prime, 8), atol=2e-4, rtol=1e-4)


@extras
def test_rows_beyond_the_context_are_what_they_are_alone(extra):
    model, tokens = model_of(**extra), tokens_of(3, 60, 2)

    together = predicted(InferenceSession(model), tokens, 2)
    for row in range(3):
        alone = predicted(InferenceSession(model), tokens[row : row + 1], 2)
        torch.testing.assert_close(together[:, row : row + 1], alone, atol=2e-4, rtol=1e-4)


@extras
@pytest.mark.parametrize("refill", ["half", "slide", "all"])
def test_int8_says_nearly_the_same(extra, refill):
    model, tokens = model_of(**extra), tokens_of(2, 50, 5)

    whole = predicted(InferenceSession(model, InferenceConfig(refill=refill)), tokens, 5)
    int8 = InferenceConfig(refill=refill, precision="int8")
    by_reference = predicted(InferenceSession(model, int8, ReferenceKernel()), tokens, 5)
    without = predicted(InferenceSession(model, int8), tokens, 5)
    scale = whole.abs().mean()
    assert (by_reference - whole).abs().mean() < 0.03 * scale
    assert (without - whole).abs().mean() < 0.03 * scale
    assert not torch.equal(by_reference, whole)


@extras
def test_the_compiled_kernel_says_what_the_reference_says(extra):
    compiled = kernel(32)
    if compiled is None:
        pytest.skip("there is no C++ compiler")
    model, tokens, int8 = model_of(**extra), tokens_of(6, 50, 5), InferenceConfig(precision="int8")

    found = predicted(InferenceSession(model, int8, compiled), tokens, 5)
    meant = predicted(InferenceSession(model, int8, ReferenceKernel()), tokens, 5)
    assert (found - meant).abs().mean() < 5e-3 * meant.abs().mean()
    assert np.corrcoef(found.flatten(), meant.flatten())[0, 1] > 0.9999


def test_bf16_says_nearly_the_same():
    model, tokens = model_of(**EXTRAS["all"]), tokens_of(2, 30, 5)

    whole = predicted(InferenceSession(model), tokens, 5)
    halved = predicted(InferenceSession(model, InferenceConfig(precision="bf16")), tokens, 5)
    assert (halved - whole).abs().mean() < 0.03 * whole.abs().mean()


def test_sliding_forgets_the_oldest_latent_and_needs_no_refill():
    model, tokens = model_of(**EXTRAS["all"], num_layers=1), tokens_of(2, 40, 9)
    session = InferenceSession(model, InferenceConfig(refill="slide"))

    found = predicted(session, tokens, 9)
    assert session.caches.num_latents == 8
    with torch.inference_mode():
        whole = model(tokens[:, :9], num_latents=8, following=tokens[:, 2:10])[:, -1]
    torch.testing.assert_close(found[0], whole, atol=2e-4, rtol=1e-4)
