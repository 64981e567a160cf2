"""Settings that are asked for have the names and types of the configurations that they become."""

import inspect
from dataclasses import fields
from typing import get_args, get_type_hints

import pytest

from pamusic.cli.commands.train import train
from pamusic.cli.option_values import read_values
from pamusic.model.config import ModelConfig
from pamusic.training.config import TrainingConfig
from pamusic.training.config_file import KINDS, settings_of
from pamusic.training.settings import RunSettings

OF_CORPUS = {"vocab_size", "pad_id", "field_sizes"}  # of the model's shape, what comes with the corpus
PARTS = {"ledger", "recall", "offsets", "clock"}  # whether there is one; the vocabulary decides how it looks
# Options of the command that are no settings; --transpose is two of them.
NO_SETTINGS = {
    "corpus", "out", "max_minutes", "resume", "init_from", "overwrite", "config", "set_", "transpose", "sample_every",
    "device", "compile",
}  # fmt: skip


def optional(hint):
    """The type of a setting, of which None leaves it open."""
    return hint if type(None) in get_args(hint) else hint | None


def test_every_field_of_a_configuration_can_be_asked_for_and_nothing_else():
    of_model = {name: hint for name, hint in get_type_hints(ModelConfig).items() if name not in OF_CORPUS}
    of_configs = {**get_type_hints(TrainingConfig), **of_model, **dict.fromkeys(PARTS, bool), "size": str}

    assert get_type_hints(RunSettings) == {name: optional(hint) for name, hint in of_configs.items()}
    assert {str(field.type).removesuffix(" | None") for field in fields(RunSettings)} <= KINDS.keys()


def test_every_option_of_the_command_is_a_setting_of_the_same_type_or_none_at_all():
    settings, options = get_type_hints(RunSettings), get_type_hints(train)
    del options["return"]

    assert {name: hint for name, hint in options.items() if name not in NO_SETTINGS} == {
        name: settings[name] for name in options if name not in NO_SETTINGS
    }
    assert not NO_SETTINGS & settings.keys()
    defaults = {name: option.default for name, option in inspect.signature(train).parameters.items()}
    assert all(defaults[name] is None for name in options if name not in NO_SETTINGS)


def test_settings_give_way_to_newer_ones_and_stay_where_these_are_open():
    older = RunSettings(steps=5, lr=0.01, recall=True)

    newer = RunSettings(lr=0.0, recall=False, seed=0)  # values, though Python takes them for false

    assert older.updated(newer) == RunSettings(steps=5, lr=0.0, recall=False, seed=0)
    assert RunSettings().updated(older) == older


def test_settings_change_a_configuration_and_leave_what_is_open():
    before = TrainingConfig(steps=5, batch_size=2, patience=3)

    assert RunSettings(steps=7, d_model=64).training_config(before) == TrainingConfig(steps=7, batch_size=2, patience=3)
    assert RunSettings().training_config() == TrainingConfig()
    with pytest.raises(ValueError, match="lr must be above 0"):
        RunSettings(lr=0.0).training_config(before)


def test_settings_are_taken_out_of_options_and_of_files_by_name(tmp_path):
    assert RunSettings.from_options({"steps": 3, "out": "here", "lr": None}) == RunSettings(steps=3)
    (tmp_path / "recipe.toml").write_text("size = 'tiny'\nlr = 1\nledger = false\ncooldown_from = 0.5\n")
    assert settings_of(read_values(tmp_path / "recipe.toml", []), "recipe.toml") == RunSettings(
        size="tiny", lr=1, ledger=False, cooldown_from=0.5
    )
