"""Help on narrow terminals: text fits, and every option has its whole name, on a line of its own."""

import pytest
from typer import Context
from typer.main import get_command
from typer.testing import CliRunner

from pamusic.cli.app import app

COMMANDS = sorted(get_command(app).commands)


def help_of(command, columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    outcome = CliRunner().invoke(app, [command, "--help"])
    assert outcome.exit_code == 0, outcome.output
    return outcome.stdout


def option_names(command):
    found = get_command(app).commands[command]
    return {
        name for each in found.get_params(Context(found)) if not each.hidden for name in each.opts if name[0] == "-"
    }


@pytest.mark.parametrize("command", COMMANDS)
def test_at_40_columns_text_fits_and_names_are_whole(command, monkeypatch):
    told = help_of(command, 40, monkeypatch)

    assert [line for line in told.splitlines() if len(line) > 40 and not line.startswith("  --")] == []
    words = set(told.replace(",", " ").split())
    assert option_names(command) - words == set()


def test_a_wide_terminal_shows_groups_of_options(monkeypatch):
    assert "─ Length ─" in help_of("sample", 100, monkeypatch)
    assert "─ Length ─" not in help_of("sample", 40, monkeypatch)


@pytest.mark.parametrize("columns", [40, 100])
def test_without_a_command_the_help_lists_all_commands(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    outcome = CliRunner().invoke(app, [])

    assert outcome.exit_code == 0
    assert set(COMMANDS) - set(outcome.stdout.split()) == set()
