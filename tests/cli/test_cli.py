"""The command line as a whole: what it costs to ask for help, and what becomes of an error."""

import errno
import subprocess
import sys
import time
import typing
from pathlib import Path

import pytest
import typer
from builders import performance
from cli_asserts import one_line_error
from corpora import small_corpus
from typer.models import OptionInfo
from typer.testing import CliRunner

import pamusic
from pamusic.cli.app import PamusicGroup, app
from pamusic.cli.terminal import log_if_slow, one_line
from pamusic.errors import PamusicError
from pamusic.music.midi import midi_bytes

COMPILER = ("torch._dynamo", "torch._inductor", "torch.distributed.fsdp", "sympy")
HEAVY = ("torch", "note_seq", "matplotlib", "symusic", "pretty_midi", "mido", "numpy")


def failing_with(error: BaseException) -> typer.Typer:
    """An application of our kind, whose one command fails."""
    failing = typer.Typer(cls=PamusicGroup, pretty_exceptions_enable=False)

    @failing.callback()
    def group() -> None:
        pass

    @failing.command()
    def fail() -> None:
        raise error

    return failing


def run(error: BaseException):
    return CliRunner().invoke(failing_with(error), ["fail"])


def test_help_loads_nothing_heavy():
    code = (
        "import sys\n"
        "sys.argv = ['pamusic', '--help']\n"
        "from pamusic.cli import main\n"
        "try: main()\n"
        f"finally: print('loaded:', [name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.splitlines()[-1] == "loaded: []"
    assert "render" in done.stdout


@pytest.mark.parametrize("command", sorted(command.callback.__name__ for command in app.registered_commands))
def test_every_command_has_help(command):
    done = CliRunner().invoke(app, [command, "--help"])

    assert done.exit_code == 0
    assert f"Usage: pamusic {command}" in done.output


def test_the_version_is_told():
    assert CliRunner().invoke(app, ["--version"]).stdout == f"pamusic {pamusic.__version__}\n"


def test_python_m_is_the_same():
    done = subprocess.run([sys.executable, "-m", "pamusic", "--version"], capture_output=True, text=True, check=True)

    assert done.stdout == f"pamusic {pamusic.__version__}\n"


def test_our_own_error_is_one_line_and_exit_1():
    done = run(PamusicError("no piece\nis called \x1b[31mx"))

    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == "pamusic: error: no piece is called \\x1b[31mx\n"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "out.mid"), "out.mid: the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied", "out.mid"), "out.mid: permission denied"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "aa"), "aa: the name is too long"),
        (MemoryError(), "there is not enough memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "there is not enough memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 TiB"), "there is not enough memory"),
        (OSError(errno.ENOSPC, "No space left on device"), "standard output: the disk is full"),
    ],
)
def test_a_full_or_forbidden_disk_is_one_line_and_exit_1(error, line):
    done = run(error)

    assert done.exit_code == 1
    assert done.stderr.startswith(f"pamusic: error: {line}")
    assert done.stderr.count("\n") == 1


def test_an_interruption_is_one_line_and_exit_130():
    done = run(KeyboardInterrupt())

    assert (done.exit_code, done.stderr) == (130, "pamusic: interrupted\n")


def test_an_interruption_while_it_loads_is_no_different():
    code = (
        "import sys\n"
        "class Interrupting:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'typer': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupting())\n"
        "from pamusic.cli import main\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert (done.returncode, done.stdout, done.stderr) == (130, "", "pamusic: interrupted\n")


def test_a_reader_that_went_away_is_no_matter():
    done = run(BrokenPipeError())

    assert (done.exit_code, done.output) == (141, "")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["sample", "--length", "0"], ("--length", "0", "pamusic sample --help")),
        (["sample", "--num-samples", "many"], ("--num-samples", "many")),
        (["sample", "--seconds"], ("--seconds", "requires an argument")),
        (["doctor", "--nope"], ("--nope", "pamusic doctor --help")),
        (["evaluate"], ("checkpoint", "pamusic evaluate --help")),
        (["evaluate", "small", "--split", "rest"], ("--split", "rest", "validation")),
        (["sampel"], ("sampel", "see pamusic --help")),
        (["--nope"], ("--nope", "see pamusic --help")),
    ],
)
def test_words_that_a_command_does_not_know_are_answered_in_one_line(words, told):
    line = one_line_error(CliRunner().invoke(app, words), code=2)
    assert all(each in line for each in told), line


def test_wrong_usage_is_exit_2():
    assert CliRunner().invoke(app, ["rendr"]).exit_code == 2
    assert CliRunner().invoke(app, ["render"]).exit_code == 2
    assert CliRunner().invoke(app, ["render", "x.mid", "--engine", "gramophone"]).exit_code == 2


def test_an_error_of_ours_keeps_its_traceback():
    error = ZeroDivisionError("our bug")

    assert run(error).exception is error
    assert isinstance(run(FileNotFoundError(errno.ENOENT, "", "x")).exception, FileNotFoundError)


def test_a_line_holds_nothing_a_terminal_should_not_get():
    assert one_line("Étude – Op. 10\r\n\x07\udcff") == "Étude – Op. 10 \\x07\\udcff"


def test_every_command_is_a_thin_page():
    for command in app.registered_commands:
        path = Path(pamusic.__file__).parent / "cli" / "commands" / f"{command.callback.__name__}.py"
        assert len(path.read_text(encoding="utf-8").splitlines()) < 100, path.name


def test_a_dozen_options_at_most_stand_before_the_fold():
    for command in app.registered_commands:
        options = typing.get_type_hints(command.callback, include_extras=True).values()
        told = [each.__metadata__[0] for each in options if hasattr(each, "__metadata__")]
        before = [each for each in told if isinstance(each, OptionInfo) and each.rich_help_panel is None]
        assert len(before) <= 12, command.callback.__name__


def test_what_takes_long_is_announced_and_what_does_not_is_not(capsys):
    with log_if_slow("loading PyTorch", seconds=0.05):
        time.sleep(0.3)
    with log_if_slow("counting", seconds=5):
        pass

    assert capsys.readouterr().err == "loading PyTorch\n"


@pytest.mark.slow
def test_commands_that_do_not_train_import_no_compiler(checkpoint, tmp_path):
    """`torch._dynamo` and what it brings take seconds to import."""
    small_corpus(tmp_path / "corpus")
    for number in range(5):
        strokes = [(0.2 * i, 0.2 * i + 0.3, 50 + (i * (number + 3)) % 30, 64) for i in range(300)]
        (tmp_path / f"{number}.mid").write_bytes(midi_bytes(performance(*strokes)))
    code = f"""
import sys
from typer.testing import CliRunner
from pamusic.cli.app import app
for words in (
    ["sample", "--checkpoint", {str(checkpoint)!r}, "--length", "40", "-o", "out/new.mid"],
    ["evaluate", {str(checkpoint)!r}, "corpus", "--split", "train"],
    ["compare", ".", "."],
):
    done = CliRunner().invoke(app, words)
    found = [name for name in {COMPILER} if name in sys.modules]
    print(words[0], done.exit_code, found, done.stderr if done.exit_code else "")
"""
    (tmp_path / "out").mkdir()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)

    assert done.stdout == "sample 0 [] \nevaluate 0 [] \ncompare 0 [] \n", done.stderr
