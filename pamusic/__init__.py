"""Symbolic piano music with Perceiver AR: tokenize, train, evaluate, sample, render.

    >>> import pamusic
    >>> piece = pamusic.load("small").sample(seconds=5, seed=1)

Names are imported when they are first used: `import pamusic` alone imports no PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_MODULE_OF = {
    **dict.fromkeys(
        (
            "MidiFile",
            "Model",
            "Piece",
            "evaluate",
            "load",
            "read_midi",
            "synthesize",
            "tokenize",
            "write_midi",
        ),
        "pamusic.api",
    ),
    "Corpus": "pamusic.corpus.corpus",
    "Likelihood": "pamusic.evaluation.likelihood",
    "PamusicError": "pamusic.errors",
    "Performance": "pamusic.music.performance",
    "SampleRequest": "pamusic.compose.request",
    "SamplingConfig": "pamusic.sampling.config",
    "Tokenizer": "pamusic.tokens.tokenizer",
    "UsageError": "pamusic.errors",
    "load_tokenizer": "pamusic.tokens.tokenizer",
    "open_corpus": "pamusic.corpus.corpus",
}

if TYPE_CHECKING:
    from pamusic.api import MidiFile as MidiFile
    from pamusic.api import Model as Model
    from pamusic.api import Piece as Piece
    from pamusic.api import evaluate as evaluate
    from pamusic.api import load as load
    from pamusic.api import read_midi as read_midi
    from pamusic.api import synthesize as synthesize
    from pamusic.api import tokenize as tokenize
    from pamusic.api import write_midi as write_midi
    from pamusic.compose.request import SampleRequest as SampleRequest
    from pamusic.corpus.corpus import Corpus as Corpus
    from pamusic.corpus.corpus import open_corpus as open_corpus
    from pamusic.errors import PamusicError as PamusicError
    from pamusic.errors import UsageError as UsageError
    from pamusic.evaluation.likelihood import Likelihood as Likelihood
    from pamusic.music.performance import Performance as Performance
    from pamusic.sampling.config import SamplingConfig as SamplingConfig
    from pamusic.tokens.tokenizer import Tokenizer as Tokenizer
    from pamusic.tokens.tokenizer import load_tokenizer as load_tokenizer


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULE_OF])
