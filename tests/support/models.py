"""Tiny real models for tests."""

import torch

from pamusic.checkpoint import save_checkpoint
from pamusic.model.architectures import build_model
from pamusic.model.config import LedgerConfig, ModelConfig
from pamusic.model.perceiver_ar import PerceiverAR


def tiny_config(**changes):
    fields = {
        "vocab_size": 391, "pad_id": 390, "context_length": 64, "num_latents": 16, "d_model": 32, "num_layers": 2,
        "num_heads": 2, "cross_num_heads": 1,
    }  # fmt: skip
    return ModelConfig(**{**fields, **changes})


def tiny_model(seed=0, **changes):
    """A model whose every weight is random: a new one predicts a uniform distribution, for its head is zero."""
    torch.manual_seed(seed)
    model = PerceiverAR(tiny_config(**changes)).eval()
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.15)
    return model


def random_checkpoint(path, tokenizer):
    """The folder of a tiny model that says anything at all."""
    vocab_size, pad_id = len(tokenizer.vocabulary), tokenizer.vocabulary.id("pad")
    shape = {"context_length": 128, "num_latents": 16, "d_model": 32, "num_layers": 2, "num_heads": 2}
    if tokenizer.vocabulary.shape:
        shape["field_sizes"] = tuple(field.size for field in tokenizer.vocabulary.fields)
    model = PerceiverAR(ModelConfig(vocab_size=vocab_size, pad_id=pad_id, cross_num_heads=1, **shape))
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.2)
    save_checkpoint(path, model, tokenizer, metadata={})
    return path


VOCAB, START, END, PAD = 24, 21, 22, 23
N, CONTEXT = 8, 64
LEDGER = LedgerConfig(num_slots=5, first_opening=0, first_closing=5, first_tick=10, num_ticks=4)


def outspoken_model(num_layers=2, seed=0, **changes):
    """A model that says something different everywhere: output projections and gains are random too."""
    shape = {
        "vocab_size": VOCAB,
        "pad_id": PAD,
        "context_length": CONTEXT,
        "num_latents": N,
        "d_model": 32,
        "num_heads": 2,
        "cross_num_heads": 1,
        "ledger": LEDGER,
        **changes,
    }
    model = build_model(ModelConfig(num_layers=num_layers, **shape)).eval()
    torch.manual_seed(seed)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.3)
    return model


PLAIN = {"ledger": None, "cross_num_heads": 2}
FIELDS = {"field_sizes": (8, 6, 7), "vocab_size": 21, "pad_id": 20}


def plain_model(architecture, num_layers=2, **changes):
    """An outspoken model without the parts that only a Perceiver AR can have."""
    return outspoken_model(num_layers, **{**PLAIN, "architecture": architecture, **changes})


def positions(length, seed=1):
    """Ids of each field of `FIELDS`, as lists."""
    random = torch.Generator().manual_seed(seed)
    ends = [(0, 8), (8, 14), (14, 21)]
    return torch.stack([torch.randint(*end, (length,), generator=random) for end in ends], dim=-1).tolist()


def piece(length, seed=1):
    return torch.randint(0, START, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@torch.inference_mode()
def uncached(model, ids, num_latents):
    """The plain twin of a cached reader: one parallel pass over everything; logits `[vocab]` after the last id."""
    return model(torch.tensor([ids]), num_latents=num_latents)[0, -1]
