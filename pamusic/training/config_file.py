"""A run's settings from a TOML file. Knows names and values; knows no run.

    size = "small"
    steps = 8000
    lr = 0.01
    num_layers = 8

What may stand there: `size`, every field of `TrainingConfig`, and the model's shape, by the fields of `ModelConfig`.
"""

from __future__ import annotations

import difflib
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

from pamusic.errors import PamusicError
from pamusic.model.config import ModelConfig
from pamusic.training.config import TrainingConfig

OF_CORPUS = {"vocab_size", "pad_id", "field_sizes"}  # of the model's shape, what comes with the corpus
SHAPE = {field.name for field in fields(ModelConfig)} - OF_CORPUS
TYPES = {"size": "str", **{field.name: str(field.type) for field in (*fields(ModelConfig), *fields(TrainingConfig))}}
# Whether there is one; what it is comes with the corpus.
TYPES |= dict.fromkeys(("ledger", "recall", "offsets", "clock"), "bool")
KINDS: dict[str, tuple[str, tuple[type, ...]]] = {  # by the name of a field's type
    "int": ("a whole number", (int,)),
    "float": ("a number", (float, int)),
    "bool": ("true or false", (bool,)),
    "str": ("a word", (str,)),
}


def read_recipe(path: Path) -> dict[str, Any]:
    """The settings in a file, by name.

    Raises:
        PamusicError: it cannot be read, or has a name in it that we do not know, or a value of the wrong kind.
    """
    try:
        recipe = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PamusicError(f"{path}: no such file; check the path") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise PamusicError(
            f"{path}: is not a TOML file of settings ({error}); write lines such as: steps = 8000"
        ) from None
    known = TYPES.keys() - OF_CORPUS
    for name, value in recipe.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; the nearest is {near[0]}" if near else f"; there is {', '.join(sorted(known))}"
            raise PamusicError(f"{path}: no setting is called {name!r}{hint}")
        words, kinds = KINDS[TYPES[name].removesuffix(" | None")]
        if type(value) not in kinds:
            raise PamusicError(f"{path}: {name} is {words}, not {value!r}")
    return recipe
