"""Every module imports only from its own part of the package and from the layers below.

Read from the syntax trees alone; nothing is imported.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pytest

import pamusic

ROOT = Path(pamusic.__file__).parent

LAYER = {
    "errors": 0,
    "resources": 0,
    "files": 0,
    "device": 1,
    "music": 1,
    "tokens": 2,
    "page": 2,
    "model": 2,
    "corpus": 3,
    "inference": 3,
    "checkpoint": 4,
    "training": 5,
    "sampling": 5,
    "evaluation": 5,
    "compose": 6,
    "api": 7,
    "cli": 8,
}
BASE = {part for part, layer in LAYER.items() if layer == 0}
ENTRY_POINTS = {"__init__", "__main__"}  # of the package itself: they may import anything

# Further forbidden imports. The model knows tensors: no music, no files of ours. Sampling knows ids as numbers.
FORBIDDEN = {
    *(("model", other) for other in ("music", "files", "resources")),
    *(("inference", other) for other in ("music", "tokens", "page", "resources")),
    *(("sampling", other) for other in ("music", "tokens", "corpus")),
    *((other, "device") for other in ("tokens", "corpus", "page")),
}
NO_TORCH = {"errors", "resources", "files", "music", "tokens", "corpus", "page"}
LIGHT = {"pamusic.compose.request"}  # imports nothing heavy itself: options need it for their defaults
HEAVY = {"torch", "note_seq", "matplotlib", "symusic", "pretty_midi", "mido", "midirenderer", "numpy", "safetensors"}


def imports(tree: ast.AST, inside_function: bool = False) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """Every import of a tree, and whether it stands inside a function; what only a type checker sees is left out."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node, inside_function
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for other in node.orelse:
                yield from imports(ast.Module([other], []), inside_function)
        else:
            yield from imports(node, inside_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def names(node: ast.Import | ast.ImportFrom, package: str) -> list[str]:
    """The dotted names that an import asks for; `package` is where a relative one starts from."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    base = node.module or ""
    if node.level:
        above = package.split(".")[: len(package.split(".")) - node.level + 1]
        base = ".".join([*above, *([base] if base else [])])
    return [f"{base}.{alias.name}" for alias in node.names] if base == "pamusic" else [base]


def part_of(name: str) -> str | None:
    """The part of the package that a dotted name is in; None for other packages and for pamusic's own names."""
    parts = name.split(".")
    return parts[1] if parts[0] == "pamusic" and len(parts) > 1 and parts[1] in LAYER else None


def may_import(part: str, other: str) -> bool:
    below = LAYER[other] < LAYER[part] or {part, other} <= BASE
    return below and (part, other) not in FORBIDDEN


def broken_rules(root: Path) -> list[str]:
    """One line for each import that the layers forbid."""
    return [line for path in sorted(root.rglob("*.py")) for line in broken_rules_of(path, root)]


def broken_rules_of(path: Path, root: Path) -> Iterator[str]:
    place = path.relative_to(root).with_suffix("")
    part = place.parts[0]
    if part in ENTRY_POINTS:
        return
    if part not in LAYER:
        yield f"{place}: no part of the package is called {part}"
        return
    package = ".".join(["pamusic", *place.parts[:-1]])
    for node, inside_function in imports(ast.parse(path.read_text(encoding="utf-8"))):
        for name in names(node, package):
            where, other, library = f"{place}:{node.lineno}", part_of(name), name.split(".")[0]
            if other is None:
                if library == "torch" and part in NO_TORCH:
                    yield f"{where}: {part} must not import torch"
                if library in HEAVY and part == "cli" and not inside_function:
                    yield f"{where}: cli imports {library} inside functions only"
            elif other != part and not may_import(part, other):
                yield f"{where}: {part} must not import {other}"
            elif part == "cli" and other not in {"cli", *BASE} and not inside_function and name not in LIGHT:
                yield f"{where}: cli imports {other} inside functions only"


def test_every_module_imports_from_its_own_part_or_from_layers_below():
    assert broken_rules(ROOT) == []


def test_what_the_command_line_may_import_at_once_imports_nothing_heavy():
    loaded = f"import sys, {', '.join(LIGHT)}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True)

    assert not HEAVY & {*done.stdout.split()}


MAIN_PATH = ("api", "compose", "inference", "sampling", "cli/sampling_run.py")
MAX_LINES, MAX_PARAMETERS = 60, 8


def test_the_main_path_is_short_and_typed():
    """From a request to the logits: no long function, no wide signature, nothing that the type checker cannot see."""
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        place = path.relative_to(ROOT).as_posix()
        if not place.startswith(MAIN_PATH):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.FunctionDef):
                continue
            names = [each.arg for each in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            num_lines, num = node.end_lineno - node.lineno + 1, len([name for name in names if name not in OWN])
            if num_lines > MAX_LINES or num > MAX_PARAMETERS:
                found.append(f"{place}: {node.name} has {num_lines} lines and {num} parameters")
            arguments = [each for each in ast.walk(node.args) if isinstance(each, ast.arg) and each.annotation]
            for each in arguments if place != READS_OPTIONS else ():
                if re.search(r"\bAny\b", ast.unparse(each.annotation)):
                    found.append(f"{place}: {node.name} takes anything as {each.arg}")

    assert found == []


OWN = {"self", "cls"}
READS_OPTIONS = "compose/request.py"  # the border where options get their types


@pytest.mark.parametrize("words", ["SimpleNamespace", "inspect.signature"])
def test_nothing_reads_options_without_their_types(words):
    assert [str(path) for path in ROOT.rglob("*.py") if words in path.read_text(encoding="utf-8")] == []


def test_functions_are_short():
    lengths = [
        node.end_lineno - node.lineno + 1
        for path in ROOT.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    ]

    assert median(lengths) <= 7


def test_nothing_prints_below_the_command_line():
    printing = [
        str(path.relative_to(ROOT))
        for path in ROOT.rglob("*.py")
        if path.relative_to(ROOT).parts[0] != "cli"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "print"
    ]

    assert printing == []


def test_every_file_opens_by_saying_what_it_knows():
    silent = [
        str(path.relative_to(ROOT))
        for path in ROOT.rglob("*.py")
        if path.read_text(encoding="utf-8").strip()
        and not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]

    assert silent == []


@pytest.mark.parametrize(
    ("file", "text", "rule"),
    [
        ("music/a.py", "from pamusic.tokens.vocabulary import x", "music must not import tokens"),
        ("tokens/a.py", "import pamusic.model.config", "tokens must not import model"),
        ("model/a.py", "from pamusic import tokens", "model must not import tokens"),
        ("model/a.py", "from pamusic.music import performance", "model must not import music"),
        ("training/a.py", "from ..sampling import generate", "training must not import sampling"),
        ("evaluation/a.py", "from pamusic.training.trainer import x", "evaluation must not import training"),
        ("inference/a.py", "from pamusic.tokens import grammar", "inference must not import tokens"),
        ("model/a.py", "from pamusic.inference import session", "model must not import inference"),
        ("corpus/a.py", "import torch", "corpus must not import torch"),
        ("sampling/a.py", "from pamusic.music.midi import x", "sampling must not import music"),
        ("sampling/a.py", "def f():\n    from pamusic.tokens import grammar", "sampling must not import tokens"),
        ("checkpoint.py", "from .training import x", "checkpoint must not import training"),
        ("errors.py", "from pamusic.music import midi", "errors must not import music"),
        ("training/a.py", "def f():\n    from pamusic.cli.terminal import log", "training must not import cli"),
        ("music/a.py", "def f():\n    import torch", "music must not import torch"),
        ("tokens/a.py", "from torch.nn import functional", "tokens must not import torch"),
        ("cli/a.py", "from pamusic.music.midi import x", "cli imports music inside functions only"),
        (
            "cli/a.py",
            "try:\n    import torch\nexcept ImportError:\n    pass",
            "cli imports torch inside functions only",
        ),
        ("cellar/a.py", "", "no part of the package is called cellar"),
    ],
)
def test_a_package_that_breaks_a_rule_is_reported(tmp_path, file, text, rule):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(text)

    (line,) = broken_rules(tmp_path)

    assert re.fullmatch(rf"{re.escape(file.removesuffix('.py'))}(:\d+)?: {rule}", line.replace("\\", "/"))


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("cli/a.py", "from pamusic.cli.terminal import log\nfrom pamusic.errors import PamusicError"),
        ("cli/a.py", "def f():\n    from pamusic.music.midi import x\n    import torch"),
        ("cli/a.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch"),
        ("cli/a.py", "from pamusic.compose.request import SampleRequest"),
        ("files.py", "from pamusic.errors import PamusicError"),
        ("tokens/a.py", "from pamusic.music.pedal import x\nfrom .vocabulary import y"),
        ("training/a.py", "import torch\nfrom pamusic import __version__\nfrom pamusic.checkpoint import x"),
        ("__init__.py", "from pamusic.sampling.generate import x"),
    ],
)
def test_a_package_that_keeps_the_rules_has_no_report(tmp_path, file, text):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(text)

    assert broken_rules(tmp_path) == []
