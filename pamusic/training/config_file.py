"""Check the settings of a run from a TOML file. Knows names and types of settings; knows no file and no run.

    size = "small"
    steps = 8000
    lr = 0.01
    num_layers = 8

Every field of `RunSettings` is allowed: `size`, the fields of `TrainingConfig`, and the model's shape.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import fields

from pamusic.errors import UsageError
from pamusic.training.settings import RunSettings

KINDS: dict[str, tuple[str, tuple[type, ...]]] = {  # type of a field -> description, accepted TOML types
    "int": ("a whole number", (int,)),
    "float": ("a number", (float, int)),
    "bool": ("true or false", (bool,)),
    "str": ("a word", (str,)),
}


def settings_of(values: Mapping[str, object], where: str) -> RunSettings:
    """Return settings from values by name.

    Args:
        values: Values as read from TOML.
        where: Source of the values, for error messages.

    Raises:
        UsageError: A name is unknown, or a value has the wrong type.
    """
    types = {field.name: str(field.type).removesuffix(" | None") for field in fields(RunSettings)}
    for name, value in values.items():
        if name not in types:
            near = difflib.get_close_matches(name, types, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; use one of {', '.join(sorted(types))}"
            raise UsageError(f"{where}: unknown setting {name!r}{hint}")
        words, kinds = KINDS[types[name]]
        if type(value) not in kinds:
            raise UsageError(f"{where}: {name} must be {words}, got {value!r}")
    return RunSettings.from_options(values)
