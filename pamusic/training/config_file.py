"""Read a run's settings from a TOML file. Knows names and types of settings; knows no run.

    size = "small"
    steps = 8000
    lr = 0.01
    num_layers = 8

Every field of `RunSettings` may stand there: `size`, those of `TrainingConfig`, and the model's shape.
"""

from __future__ import annotations

import difflib
import tomllib
from dataclasses import fields
from pathlib import Path

from pamusic.errors import PamusicError
from pamusic.training.settings import RunSettings

KINDS: dict[str, tuple[str, tuple[type, ...]]] = {  # type of a field -> its name in words, types of TOML it takes
    "int": ("a whole number", (int,)),
    "float": ("a number", (float, int)),
    "bool": ("true or false", (bool,)),
    "str": ("a word", (str,)),
}


def read_settings(path: Path) -> RunSettings:
    """Return the settings in a file.

    Raises:
        PamusicError: it cannot be read, or has an unknown name in it, or a value of the wrong type.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PamusicError(f"{path}: no such file; check the path") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise PamusicError(
            f"{path}: is not a TOML file of settings ({error}); write lines such as: steps = 8000"
        ) from None
    types = {field.name: str(field.type).removesuffix(" | None") for field in fields(RunSettings)}
    for name, value in values.items():
        if name not in types:
            near = difflib.get_close_matches(name, types, n=1)
            hint = f"; the nearest is {near[0]}" if near else f"; there is {', '.join(sorted(types))}"
            raise PamusicError(f"{path}: no setting is called {name!r}{hint}")
        words, kinds = KINDS[types[name]]
        if type(value) not in kinds:
            raise PamusicError(f"{path}: {name} is {words}, not {value!r}")
    return RunSettings(**values)
