"""What the documents beside the code say agrees with the files that they describe."""

import json
import re
from pathlib import Path

import pytest

from pamusic import __version__
from pamusic.checkpoint import shipped_checkpoints
from pamusic.cli.renamed import RENAMED
from pamusic.training.run_list import list_runs

ROOT = Path(__file__).parent.parent
PARTS = ["Intended use", "Data", "Training", "Evaluation", "Limitations", "Licence"]


@pytest.mark.parametrize("folder", shipped_checkpoints(), ids=lambda folder: folder.name)
def test_a_card_is_short_and_has_the_usual_parts(folder):
    card = (folder / "README.md").read_text(encoding="utf-8")

    assert re.findall(r"^## (.*)$", card, re.MULTILINE) == PARTS
    assert len(card.splitlines()) <= 60


@pytest.mark.parametrize("folder", shipped_checkpoints(), ids=lambda folder: folder.name)
def test_the_training_record_ends_with_the_validation_of_the_weights(folder):
    about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    record = (folder / "TRAINING.md").read_text(encoding="utf-8")
    legs = record.split("## Legs")[1].split("\n\n- **")[0]

    assert f"{about['validation_windows_nats']:.4f}" in legs.splitlines()[-1]


def test_the_training_record_agrees_with_the_runs_that_are_kept():
    record = (ROOT / "checkpoints" / "small" / "TRAINING.md").read_text(encoding="utf-8")
    legs = {row.split(" | ")[0].strip("| "): row for row in record.splitlines() if row.startswith("| ")}
    runs = list_runs(ROOT / "docs" / "runs")

    assert len(runs) == 11
    for run in runs:
        training = json.loads((run.path / "run.json").read_text(encoding="utf-8"))["training"]
        wanted = [
            f"{training['steps']:,}",
            f"{training['lr']}",
            f"{training['cooldown_steps']:,}",
            f"{training['seed']}",
        ]
        assert legs[str(training["seed"])].split(" | ")[2:7] == [*wanted, f"{run.best_nats:.4f}"], run.path


def test_the_changelog_has_this_version_and_all_renamed_options():
    log = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")

    assert f"## [{__version__}]" in log
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    for command, names in RENAMED.items():
        rows = "".join(row for row in log.splitlines() if row.startswith("|") and f"`{command}`" in row)
        for name in {*names, *names.values()}:
            assert f"`{name}`" in rows or name.startswith("--no-"), (command, name)
