"""`pamusic compare`: two sets of MIDI files, by the distances between their pieces."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from pamusic.cli.app import app
from pamusic.evaluation.comparison import GRID, overlap_and_divergence, pairwise
from pamusic.evaluation.statistics import STATISTICS
from pamusic.music.midi import midi_bytes
from pamusic.music.performance import PEDAL, SUSTAIN, Performance


def music(seed, *, velocity=60, pedal=True):
    """A minute of random notes in a random key."""
    rng = np.random.default_rng(seed)
    num_notes = int(rng.integers(200, 500))
    onset = np.sort(rng.uniform(0, 60, num_notes))
    key = [pitch for pitch in range(40, 90) if (pitch - seed) % 12 in (0, 2, 4, 5, 7, 9, 11)]
    touch = rng.normal(velocity + rng.normal(0, 5), 12, num_notes).clip(1, 127)
    moves = [(float(second), SUSTAIN, 127 * (second % 2)) for second in range(60)] if pedal else []
    return Performance.from_arrays(
        onset, onset + rng.uniform(0.1, 1), rng.choice(key, num_notes), touch, np.array(moves, PEDAL)
    )


def folder(path, seeds, **how):
    path.mkdir()
    for seed in seeds:
        (path / f"{seed}.mid").write_bytes(midi_bytes(music(seed, **how)))
    return path


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    here = tmp_path_factory.mktemp("sets")
    return {
        "real": folder(here / "real", range(12)),
        "alike": folder(here / "alike", range(100, 112)),
        "loud": folder(here / "loud", range(200, 208), velocity=110),
        "dry": folder(here / "dry", range(300, 304), pedal=False),
    }


def compare(*words):
    return CliRunner().invoke(app, ["compare", *map(str, words)])


def numbers(*words):
    done = compare(*words, "--json")
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


def of(told, name):
    return next(each for each in told["statistics"] if each["statistic"] == name)


def test_what_is_alike_overlaps_and_what_is_not_does_not(sets):
    near, far = numbers(sets["real"], sets["alike"]), numbers(sets["real"], sets["loud"])

    assert near["overlap"] > 0.85
    assert of(near, "velocity")["overlap"] > 0.7
    assert of(far, "velocity")["overlap"] < 0.1
    assert of(far, "velocity")["divergence"] > 5 > 1 > of(near, "velocity")["divergence"]
    assert of(far, "density")["overlap"] > 0.7, "it is as dense"
    assert far["overlap"] < near["overlap"]


def test_all_that_is_told_is_told_of_both_sets(sets):
    told = numbers(sets["real"], sets["loud"])

    assert (told["num_real"], told["num_generated"]) == (12, 8)
    assert [each["statistic"] for each in told["statistics"]] == list(STATISTICS)
    velocity = of(told, "velocity")
    assert velocity["real"]["mean"] == pytest.approx(60, abs=6)
    assert velocity["generated"]["mean"] == pytest.approx(109, abs=6)
    assert velocity["between"] == pytest.approx(velocity["generated"]["mean"] - velocity["real"]["mean"], rel=0.05)
    assert 0 < velocity["within_real"] < velocity["between"]
    assert of(told, "harmony")["real"] is None
    assert all(0.5 < each["reachable"] <= 1 for each in told["statistics"])


def test_the_table_fits_a_terminal_and_the_result_is_one_number(sets):
    done = compare(sets["real"], sets["alike"])

    assert done.exit_code == 0, done.stderr
    assert 0.8 < float(done.stdout) <= 1
    assert max(len(line) for line in done.stderr.splitlines() if line.startswith("│")) <= 80
    for name in STATISTICS:
        assert name.split("_")[0] in done.stderr


def test_where_one_set_has_no_pedal_nothing_is_said_of_it(sets):
    done = compare(sets["real"], sets["dry"])

    assert "the sustain pedal is not compared" in done.stderr
    with pytest.raises(StopIteration):
        of(numbers(sets["real"], sets["dry"]), "sustain")


def test_the_fewest_real_pieces_say_what_they_reach_with_each_other(sets, tmp_path):
    told = numbers(folder(tmp_path / "five", range(5)), sets["alike"])

    assert told["reachable"] > 0.4
    four = compare(folder(tmp_path / "four", range(4)), sets["alike"])
    assert (four.exit_code, "needs at least 5 real pieces, got 4" in four.stderr) == (1, True)


def test_a_single_piece_can_be_held_against_a_set(sets):
    told = numbers(sets["real"], sets["alike"] / "100.mid")

    assert told["num_generated"] == 1
    assert of(told, "density")["within_generated"] is None


def test_only_so_much_of_each_is_measured_and_what_is_shorter_is_told(sets, tmp_path):
    assert numbers(sets["real"], sets["alike"], "--seconds", 20)["num_shorter"] == [0, 0]
    done = compare(sets["real"], sets["loud"], "--seconds", 100)
    assert "12 of the real pieces are shorter, and used whole" in done.stderr
    (tmp_path / "late.mid").write_bytes(midi_bytes(music(0).shifted(20)))  # after 20 s of nothing, a minute of music
    assert numbers(sets["real"], tmp_path / "late.mid", "--seconds", 70)["num_shorter"] == [12, 1]


@pytest.mark.slow
def test_it_draws_a_picture(sets, tmp_path):
    assert compare(sets["real"], sets["alike"], "--plot", tmp_path / "out.png").exit_code == 0
    assert (tmp_path / "out.png").read_bytes()[:4] == b"\x89PNG"


def test_what_cannot_be_read_is_told_and_left_out(sets, tmp_path):
    mixed = folder(tmp_path / "mixed", range(3))
    (mixed / "text.mid").write_text("not music")

    done = compare(sets["real"], mixed)
    assert done.exit_code == 0
    assert "text.mid: is not a MIDI file" in done.stderr
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "text.mid").write_text("not music")
    assert compare(sets["real"], tmp_path / "none").stderr.startswith("pamusic: error: text.mid: is not a MIDI file")


@pytest.mark.parametrize(
    ("words", "reason", "code"),
    [
        (["missing", "real"], "no such file or folder", 1),
        (["dry/300.mid", "real"], "needs at least 5 real pieces, got 1", 1),
        (["real", "loud", "--split", "test"], "has no test files by MAESTRO's table", 1),
        (["real", "loud", "--seconds", "nan"], "--seconds", 2),
        (["real", "loud", "--seconds", "0"], "--seconds", 2),
        (["real", "loud", "--seconds", "inf"], "--seconds", 2),
    ],
)
def test_wrong_usage_is_told_in_a_line(sets, monkeypatch, words, reason, code):
    monkeypatch.chdir(sets["real"].parent)
    done = compare(*words)

    assert done.exit_code == code
    assert reason in " ".join(done.stderr.replace("│", " ").split())


def test_workers_change_nothing(sets):
    assert numbers(sets["real"], sets["alike"], "--workers", 2) == numbers(sets["real"], sets["alike"], "--workers", 1)


def plain_overlap_and_divergence(within, between, places):
    """The kernel densities as their definition has them, one kernel after the other."""

    def density(values):
        width = np.std(values) * len(values) ** -0.2
        total = np.zeros(len(places))
        for value in values:
            total += np.exp(-0.5 * ((places - value) / width) ** 2)
        return total / total.sum()

    first, second = density(within), density(between)
    return np.minimum(first, second).sum(), (first * np.log(first / second)).sum()


@pytest.mark.parametrize("shift", [0.0, 0.5, 2.0])
def test_densities_on_the_grid_are_those_of_the_definition(shift):
    rng = np.random.default_rng(0)
    within, between = rng.gamma(3, 1, 300), rng.gamma(3, 1, 400) + shift

    overlap, divergence, places, densities = overlap_and_divergence(within, between)

    assert densities.shape == (2, GRID)
    assert densities.sum(1) == pytest.approx([1, 1])
    expected = plain_overlap_and_divergence(within, between, places)
    assert (overlap, divergence) == (pytest.approx(expected[0], abs=0.003), pytest.approx(expected[1], rel=0.02))


def test_sets_of_one_and_the_same_value_overlap_wholly_and_of_two_not_at_all():
    same, other = np.zeros(10), np.ones(10)

    assert overlap_and_divergence(same, same)[:2] == (pytest.approx(1), pytest.approx(0))
    overlap, divergence, *_ = overlap_and_divergence(same, other)
    assert overlap == pytest.approx(0, abs=1e-3)
    assert 5 < divergence < 30


def test_distances_of_pairs_are_euclidean():
    one, other = np.array([[0.0, 0.0], [3.0, 0.0]]), np.array([[0.0, 4.0]])

    assert pairwise(one, other).tolist() == [[4.0], [5.0]]
