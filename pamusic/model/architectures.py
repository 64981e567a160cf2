"""Build the model of a configuration. Knows the architectures by name."""

from __future__ import annotations

from pamusic.model.config import PERCEIVER_AR, TRANSFORMER, TRANSFORMER_XL, ModelConfig
from pamusic.model.perceiver_ar import PerceiverAR
from pamusic.model.sequence_model import SequenceModel
from pamusic.model.transformer import Transformer
from pamusic.model.transformer_xl import TransformerXL

MODELS: dict[str, type[PerceiverAR] | type[Transformer]] = {
    PERCEIVER_AR: PerceiverAR,
    TRANSFORMER: Transformer,
    TRANSFORMER_XL: TransformerXL,
}


def build_model(config: ModelConfig) -> SequenceModel:
    """Return a new model with random weights."""
    return MODELS[config.architecture](config)
