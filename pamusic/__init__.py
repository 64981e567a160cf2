"""Symbolic piano music with Perceiver AR: tokenize, train, evaluate, sample, render.

    >>> import pamusic
    >>> piece = pamusic.load().sample(seconds=5, seed=1)

Names are imported on first use: `import pamusic` alone does not import PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_MODULE_OF = {
    **dict.fromkeys(["MidiFile", "read_midi", "synthesize", "write_midi"], "pamusic.api.midi"),
    **dict.fromkeys(["Model", "Piece", "load"], "pamusic.api.model"),
    **dict.fromkeys(["evaluate", "load_tokenizer", "open_corpus", "tokenize"], "pamusic.api.corpora"),
    **dict.fromkeys(["Event", "EventType"], "pamusic.music.events"),
    **dict.fromkeys(["PamusicError", "UsageError"], "pamusic.errors"),
    "Corpus": "pamusic.corpus.corpus",
    "Likelihood": "pamusic.evaluation.likelihood",
    "Performance": "pamusic.music.performance",
    "SampleRequest": "pamusic.compose.request",
    "Tokenizer": "pamusic.tokens.tokenizer",
}
__all__ = sorted(_MODULE_OF)

if TYPE_CHECKING:
    from pamusic.api.corpora import evaluate as evaluate
    from pamusic.api.corpora import load_tokenizer as load_tokenizer
    from pamusic.api.corpora import open_corpus as open_corpus
    from pamusic.api.corpora import tokenize as tokenize
    from pamusic.api.midi import MidiFile as MidiFile
    from pamusic.api.midi import read_midi as read_midi
    from pamusic.api.midi import synthesize as synthesize
    from pamusic.api.midi import write_midi as write_midi
    from pamusic.api.model import Model as Model
    from pamusic.api.model import Piece as Piece
    from pamusic.api.model import load as load
    from pamusic.compose.request import SampleRequest as SampleRequest
    from pamusic.corpus.corpus import Corpus as Corpus
    from pamusic.errors import PamusicError as PamusicError
    from pamusic.errors import UsageError as UsageError
    from pamusic.evaluation.likelihood import Likelihood as Likelihood
    from pamusic.music.events import Event as Event
    from pamusic.music.events import EventType as EventType
    from pamusic.music.performance import Performance as Performance
    from pamusic.tokens.tokenizer import Tokenizer as Tokenizer


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULE_OF])
