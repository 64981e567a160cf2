"""Check a run's settings as a TOML file has them. Knows names and types of settings; knows no file and no run.

    size = "small"
    steps = 8000
    lr = 0.01
    num_layers = 8

Every field of `RunSettings` may stand there: `size`, those of `TrainingConfig`, and the model's shape.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import fields

from pamusic.errors import UsageError
from pamusic.training.settings import RunSettings

KINDS: dict[str, tuple[str, tuple[type, ...]]] = {  # type of a field -> its name in words, types of TOML it takes
    "int": ("a whole number", (int,)),
    "float": ("a number", (float, int)),
    "bool": ("true or false", (bool,)),
    "str": ("a word", (str,)),
}


def settings_of(values: Mapping[str, object], where: str) -> RunSettings:
    """Return the settings that values are, by name.

    Args:
        values: as TOML has them.
        where: they stand, for errors.

    Raises:
        UsageError: a name is unknown, or a value of the wrong type.
    """
    types = {field.name: str(field.type).removesuffix(" | None") for field in fields(RunSettings)}
    for name, value in values.items():
        if name not in types:
            near = difflib.get_close_matches(name, types, n=1)
            hint = f"; the nearest is {near[0]}" if near else f"; there is {', '.join(sorted(types))}"
            raise UsageError(f"{where}: no setting is called {name!r}{hint}")
        words, kinds = KINDS[types[name]]
        if type(value) not in kinds:
            raise UsageError(f"{where}: {name} is {words}, not {value!r}")
    return RunSettings.from_options(values)
