"""On a processor without bf16 units no command starts a large product in bfloat16, which would take minutes there."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from builders import performance

from pamusic.music.midi import midi_bytes

SELF_CHECK = 10_000  # operations: products with known results that tell whether this torch has a kernel
OLDER = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    """What commands did under the settings that imitate an older processor."""
    folder = tmp_path_factory.mktemp("older")
    (folder / "music").mkdir()
    for piece in range(4):
        notes = [(0.1 * n, 0.1 * n + 0.3, 40 + (7 * n + piece) % 40, 30 + n % 60) for n in range(200)]
        (folder / "music" / f"{piece}.mid").write_bytes(midi_bytes(performance(*notes)))
    words = [sys.executable, str(Path(__file__).parent / "support" / "counted_products.py"), str(folder)]
    done = subprocess.run(words, env={**os.environ, **OLDER}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="imitates an x86 CPU"),
]


def test_the_settings_are_honoured(counted):
    assert counted["units"] == ""


@pytest.mark.parametrize(
    "command", ["train", "resume", "evaluate", "sample", "sample without a compiler"]
)  # fmt: skip
def test_no_command_multiplies_in_bfloat16_by_itself(counted, command):
    assert counted[command]["num"] > 10
    assert counted[command]["largest"] == 0


def test_weights_in_bytes_are_multiplied_as_float32_where_rows_are_many(counted):
    assert counted["sample int8 without a compiler"]["largest"] < SELF_CHECK


def test_doctor_measures_bfloat16_with_small_products_alone(counted):
    assert 0 < counted["doctor"]["largest"] <= 2 * 512**3
    assert "no bf16 units" in counted["doctor"]["words"]


def test_bf16_that_was_asked_for_is_taken_with_a_line_on_what_it_costs(counted):
    assert counted["sample bf16"]["largest"] > 0
    assert "this CPU has no bf16 units" in counted["sample bf16"]["words"]
    assert "no bf16 units" not in counted["sample"]["words"]
