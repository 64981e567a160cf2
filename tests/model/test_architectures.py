"""The architectures that Perceiver AR is compared with: who sees whom, what learns from what, and what it costs."""

import dataclasses

import pytest
import torch
from models import FIELDS, outspoken_model, piece, plain_model, positions, tiny_config
from torch.utils.flop_counter import FlopCounterMode

from pamusic.errors import UsageError
from pamusic.model import attention
from pamusic.model.architectures import build_model
from pamusic.model.config import ARCHITECTURES, LedgerConfig, ModelConfig, preset
from pamusic.model.flops import scoring_flops, training_flops, window_flops
from pamusic.model.rotary import rotation

RIVALS = ("transformer", "transformer-xl")

# Who changes whom: a row for each output, a column for each input. Three latents; segments of two in two blocks.
SEEN = {
    "perceiver-ar": """
        111111..
        1111111.
        11111111""",
    "transformer": """
        1.......
        11......
        111.....
        1111....
        11111...
        111111..
        1111111.
        11111111""",
    "transformer-xl": """
        1.......
        11......
        111.....
        1111....
        11111...
        111111..
        ..11111.
        ..111111""",
}
LATENTS = {"perceiver-ar": 3, "transformer": 3, "transformer-xl": 2}


@torch.inference_mode()
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("fields", [{}, FIELDS])
def test_an_output_sees_the_inputs_of_the_matrix_and_no_others(architecture, fields):
    model = plain_model(architecture, 1, context_length=8, num_latents=LATENTS[architecture], **fields)
    tokens = torch.tensor([positions(8) if fields else piece(8)])
    following = torch.tensor([positions(8, seed=2)]) if fields else None

    def logits(tokens):
        n = model.config.num_targets
        return model(tokens, following=None if following is None else following[:, -n:])[0]

    before, columns = logits(tokens), []
    for position in range(8):
        changed = tokens.clone()
        changed[0, position] = torch.tensor(positions(9)[8]) if fields else (changed[0, position] + 1) % 20
        columns.append((logits(changed) != before).any(-1))

    seen = torch.tensor([[place == "1" for place in row.strip()] for row in SEEN[architecture].split()])
    assert torch.equal(torch.stack(columns, dim=-1), seen)


def by_hand(model, ids):
    """Transformer-XL as in its paper: segment after segment, with the states before each block kept from the last."""
    config, kept = model.config, None
    blocks, logits = [model.first, *model.layers], []
    for start in range(0, len(ids), config.num_latents):
        x = model.embedding(torch.tensor([ids[start : start + config.num_latents]]))
        inputs = []
        for i, block in enumerate(blocks):
            inputs.append(x.detach())
            whole = x if kept is None else torch.cat([kept[i], x], dim=1)
            first, n = start + x.shape[1] - whole.shape[1], x.shape[1]
            turn = rotation(torch.arange(first, start + n), 16, config.rotary_fraction)
            own = tuple(each[-n:] for each in turn)
            keys, values = block.attention.keys_values(block.attention_norm(whole), turn)
            scores = block.attention.queries(block.attention_norm(x), own) @ keys.mT / 4
            hidden = torch.ones(n, whole.shape[1], dtype=torch.bool).triu(whole.shape[1] - n + 1)
            x = x + block.attention.merged(scores.masked_fill(hidden, float("-inf")).softmax(-1) @ values)
            x = x + block.mlp(block.mlp_norm(x))
        kept = inputs
        logits.append(model.head(model.norm(x)))
    return torch.cat(logits, dim=1)


@pytest.mark.parametrize("length", [5, 8, 24, 29])
@pytest.mark.parametrize("recompute", [False, True])
def test_segments_side_by_side_are_the_segments_of_the_paper_one_by_one(length, recompute):
    model, ids = plain_model("transformer-xl"), piece(length)
    model.recompute = recompute
    weights = torch.randn(length, 24, generator=torch.Generator().manual_seed(3))
    found = []
    for logits in (by_hand(model, ids), model(torch.tensor([ids]))):
        (logits[0] * weights).sum().backward()
        found.append((logits.detach(), {name: weight.grad.clone() for name, weight in model.named_parameters()}))
        model.zero_grad()

    (expected, slopes), (logits, own_slopes) = found
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    for name, slope in slopes.items():
        torch.testing.assert_close(own_slopes[name], slope, atol=2e-3, rtol=2e-3, msg=name)


@pytest.mark.parametrize(("architecture", "learned"), [("transformer", range(20)), ("transformer-xl", range(16, 20))])
def test_what_a_prediction_can_teach_the_embeddings(architecture, learned):
    """It sees 20 ids in segments of 8. The states of the earlier segments are constants to it."""
    model = plain_model(architecture)
    model(torch.arange(20)[None])[0, -1].square().sum().backward()

    taught = model.embedding.weight.grad.abs().sum(-1) > 0
    assert taught.nonzero()[:, 0].tolist() == list(learned)


@torch.inference_mode()
@pytest.mark.parametrize("architecture", RIVALS)
def test_padding_behind_a_window_changes_nothing(architecture):
    model, ids = plain_model(architecture), piece(21)
    padded = torch.tensor([[*ids, *[model.config.pad_id] * 43]])
    torch.testing.assert_close(model(padded)[:, :21], model(torch.tensor([ids])), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", RIVALS)
@pytest.mark.parametrize("fields", [{}, FIELDS])
def test_operations_are_those_that_torch_counts(architecture, fields, monkeypatch):
    monkeypatch.setattr(attention, "QUERY_BLOCK", 1)  # otherwise torch counts what the mask hides, too
    model = plain_model(architecture, num_latents=16, **fields).train()
    ids = torch.tensor([positions(64) if fields else piece(64)])
    following = ids if fields else None

    with FlopCounterMode(display=False) as forward:
        logits = model(ids, following=following)
    with FlopCounterMode(display=False) as backward:
        logits.sum().backward()
    assert forward.get_total_flops() == window_flops(model.config)
    assert forward.get_total_flops() + backward.get_total_flops() == training_flops(model.config)


@torch.inference_mode()
@pytest.mark.parametrize("architecture", RIVALS)
def test_operations_of_scoring_are_those_of_a_block(architecture, monkeypatch):
    monkeypatch.setattr(attention, "QUERY_BLOCK", 1)
    model, ids = plain_model(architecture, num_latents=16), torch.tensor([piece(105)])
    caches = model.new_caches(1)
    for start in range(0, 96, 8):
        model.block_logits(ids[:, : start + 9], start, caches, 16)

    with FlopCounterMode(display=False) as counter:
        model.block_logits(ids, 96, caches, 16)
    assert counter.get_total_flops() == 8 * scoring_flops(model.config, block=8)


@pytest.mark.parametrize("size", ["tiny", "small", "medium"])
def test_equal_settings_are_almost_equal_numbers_of_weights(size):
    shape = {"vocab_size": 391, "pad_id": 390}
    with torch.device("meta"):
        models = [build_model(preset(size, architecture=name, **shape)) for name in ARCHITECTURES]

    perceiver, transformer, xl = (model.num_parameters() for model in models)
    width = models[0].config.d_model
    heads = width // preset(size, **shape).num_heads, width // preset(size, **shape).cross_num_heads
    assert transformer == xl
    assert perceiver - transformer == width**2 + width + 2 * (heads[1] - heads[0])  # to_latents, context_norm, gains
    assert perceiver / transformer < 1.03


@torch.inference_mode()
def test_a_long_square_of_attention_equals_the_same_in_blocks(monkeypatch):
    queries, keys, values = torch.randn(3, 2, 2, 300, 16, generator=torch.Generator().manual_seed(1)).unbind(0)
    in_blocks = attention.attend(queries, keys, values)
    monkeypatch.setattr(attention, "SQUARE_IN_BLOCKS", 299)
    monkeypatch.setattr(attention, "_attend_in_blocks", None)  # it is not called
    torch.testing.assert_close(attention.attend(queries, keys, values), in_blocks, atol=1e-5, rtol=1e-5)


def test_a_configuration_without_an_architecture_is_a_perceiver_ar():
    """As in every checkpoint and run from before there were others."""
    written = dataclasses.asdict(tiny_config())
    del written["architecture"]
    assert ModelConfig.from_json(written) == tiny_config()
    assert tiny_config().num_targets == tiny_config().num_latents


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"architecture": "lstm"}, "unknown architecture 'lstm'; use one of perceiver-ar, transformer, transformer-xl"),
        (
            {"architecture": "transformer", "ledger": LedgerConfig(
                num_slots=5, first_opening=0, first_closing=5, first_tick=10, num_ticks=4)},
            "ledger belongs to perceiver-ar, not to transformer; leave it out",
        ),
        (
            {"architecture": "transformer-xl", "field_sizes": (200, 191), "conv_width": 4},
            "conv_width belongs to perceiver-ar, not to transformer-xl; leave it out",
        ),
    ],
)  # fmt: skip
def test_an_architecture_has_no_parts_of_another(changes, reason):
    with pytest.raises(UsageError, match=reason):
        tiny_config(**changes)


def test_a_perceiver_ar_is_what_is_built_by_default():
    assert type(build_model(tiny_config())) is type(outspoken_model())
