"""The documents: links lead somewhere, commands exist, settings and formats are complete, and the prose is plain."""

import ast
import io
import json
import re
import shlex
import tokenize
from collections import Counter
from dataclasses import MISSING, fields
from importlib.util import module_from_spec, spec_from_file_location
from inspect import signature
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from typer import Context
from typer.models import OptionInfo

from pamusic.cli.app import app
from pamusic.compose.provenance import Provenance
from pamusic.compose.request import RECORD_NAMES
from pamusic.corpus.corpus import FILES, Piece
from pamusic.model.config import PRESETS, ModelConfig
from pamusic.training.config import TrainingConfig
from pamusic.training.metrics import COLUMNS
from pamusic.training.settings import RunSettings

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
README = ROOT / "README.md"
GUIDES = sorted((DOCS / "guides").glob("*.md"))
LINKED = [README, *sorted(DOCS.rglob("*.md"))]
WITH_COMMANDS = [README, DOCS / "tutorial.md", *GUIDES]
PLAIN = sorted(
    {
        *LINKED,
        *(page for folder in (".", "checkpoints/*", "tokenizers", "examples") for page in ROOT.glob(f"{folder}/*.md")),
    }
)

MAX_MEAN_WORDS = 18
BANNED = (
    "is told", "heard of", "of which", "that of", "as of", "the likelier", "by so many", "who composes", "lets go",
    "goes on",
)  # fmt: skip
"""From our rules of style."""

FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
UNIVERSAL = {"--help", "-h"}


def name(path):
    return str(path.relative_to(ROOT))


def text_of(path):
    return path.read_text(encoding="utf-8")


def broken_links(text, folder):
    """The relative links of a page that lead to no file, or to no heading."""
    broken = []
    for target in LINK.findall(FENCE.sub("", text)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = folder / path if path else None
        is_there = file is None or file.exists()
        if not is_there or (anchor and anchor not in anchors(text if file is None else text_of(file))):
            broken.append(target)
    return broken


def anchors(text):
    """The anchors that GitHub gives the headings of a page."""
    found, times = set(), Counter()
    for heading in HEADING.findall(FENCE.sub("", text)):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading.strip()).lower()
        slug = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        found.add(f"{slug}-{times[slug]}" if times[slug] else slug)
        times[slug] += 1
    return found


def command_lines(text):
    """The words of each `pamusic` command in the fenced blocks of a page, without the name of the program."""
    found = []
    for block in FENCE.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            for part in line.removeprefix("$ ").split(" | "):
                begins = re.match(r"(?:pamusic|torchrun .*-m pamusic) (?=[a-z-])", part.strip())
                if begins:
                    found.append(shlex.split(part.strip()[begins.end() :], comments=True))
    return found


def prose_of_module(text):
    """The strings and comments of a Python module."""
    kinds = {tokenize.STRING, tokenize.COMMENT, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return "\n\n".join(token.string.lstrip("# ") for token in tokens if token.type in kinds)


def messages_explained(text):
    """The messages in the first column of tables of what can go wrong; "…" stands for anything."""
    rows = [
        row for table in re.findall(r"^\| what you see .*\n((?:\|.*\n?)+)", text, re.M) for row in table.splitlines()
    ]
    return [told[1] for row in rows if (told := re.match(r"\| `([^`]+)` \|", row)) and " " in told[1]]


def strings_of_module(text):
    """All strings of a Python module, one after the other; values that are put into them are left out."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.JoinedStr):
            parts = (each.value if isinstance(each, ast.Constant) else "\0" for each in node.values)
            found.append("".join(parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
    return "\1".join(found)


def is_told(message, module):
    """Whether one string of a module, without white space, has all parts of a message in order."""
    parts = ["".join(part.split()) for part in message.split("…")]
    return re.search("[^\1]*".join(map(re.escape, parts)), module) is not None


def options_of_commands():
    """The options of each command, each with whether it takes a value; read as the reference page reads them."""
    spec = spec_from_file_location("cli_page", DOCS / "cli_page.py")
    page = module_from_spec(spec)
    spec.loader.exec_module(page)
    commands = {}
    for each in app.registered_commands:
        hints = get_type_hints(each.callback, include_extras=True)
        options = {}
        for parameter in signature(each.callback).parameters:
            if hints[parameter] is Context:
                continue
            kind, info = get_args(hints[parameter])
            if isinstance(info, OptionInfo):
                flags, _, takes = page._flags(parameter, kind, info).rpartition(" ")
                words = re.split(r", |/", flags if flags and not takes.startswith("-") else f"{flags} {takes}")
                options |= {word.strip(): not takes.startswith("-") for word in words}
        commands[each.callback.__name__] = options
    return commands


def wrong_words(words, commands):
    """The words of a command line that its command does not know."""
    command, *rest = words
    if command == "--version":
        return rest
    if command not in commands:
        return [command]
    options, wrong = commands[command], []
    is_value = False
    for word in rest:
        if is_value:
            is_value = False
        elif word.startswith("-") and word != "-":
            flag, is_joined, _ = word.partition("=")
            if flag not in options and flag not in UNIVERSAL:
                wrong.append(flag)
            is_value = options.get(flag, False) and not is_joined
    return [*wrong, *([rest[-1]] if is_value else [])]


def sentences(text):
    """The sentences of the running text of a page: no code, no tables, no headings; a list's item ends one."""
    text = HEADING.sub("\n", FENCE.sub("\n", text))
    lines = ["" if line.lstrip().startswith("|") else line for line in text.splitlines()]
    lines = [re.sub(r"^\s*(?:[-*]|\d+\.) ", "\n", line) for line in lines]
    words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", "\n".join(lines))
    words = re.sub(r"`[^`]*`", "code", words)  # a name with dots or a command counts as one word
    paragraphs = [" ".join(each.split()) for each in re.split(r"\n\s*\n", words)]
    found = [part for each in paragraphs for part in re.split(r"(?<=[.!?])\**\s+", each)]
    return [each for each in found if len(each.split()) > 1]


def mean_words(text):
    counts = [len(each.split()) for each in sentences(text)]
    return sum(counts) / len(counts)


def banned_phrases(text):
    running = " ".join(sentences(text)).lower()
    return [phrase for phrase in BANNED if re.search(rf"\b{phrase}\b", running)]


def rows_of_settings(text):
    """The default of each setting, by name, from the tables that have a column of options."""
    return dict(re.findall(r"^\| `(\w+)` \| (?:`--[\w-]+`|–) \| (\S+) \|", text, re.MULTILINE))


@pytest.mark.parametrize("page", LINKED, ids=name)
def test_every_relative_link_leads_to_a_file_and_a_heading(page):
    assert broken_links(text_of(page), page.parent) == []


def test_a_link_to_nowhere_is_found():
    text = (
        "# One `two`\n[a](README.md) [b](nothing.md) [c](#one-two) [d](#three) [e](README.md#four) [f](https://x.y/z)"
    )

    assert broken_links(text, ROOT) == ["nothing.md", "#three", "README.md#four"]


@pytest.mark.parametrize("page", [page for page in WITH_COMMANDS if "| what you see |" in text_of(page)], ids=name)
def test_every_message_that_a_page_explains_is_one_of_the_program(page):
    messages = messages_explained(text_of(page))
    modules = ["".join(strings_of_module(text_of(each)).split()) for each in (ROOT / "pamusic").rglob("*.py")]

    assert [message for message in messages if not any(is_told(message, module) for module in modules)] == []


def test_a_message_that_nobody_prints_is_found():
    rows = ["what you see | do this", "---|---", "`lost … of it` | A.", "no sound | B.", "`--a b` | C."]
    text = "".join(f"| {row} |\n" for row in rows) + "\n| `d e` | |\n"
    module = "".join(strings_of_module('raise ValueError(f"we lost "\n    f"{num} of it")').split())

    assert messages_explained(text) == ["lost … of it", "--a b"]
    assert is_told("lost … of it", module)
    assert not is_told("lost … of them", module)


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=name)
def test_every_command_exists_and_has_its_options(page):
    commands = options_of_commands()
    lines = command_lines(text_of(page))

    assert lines
    assert {" ".join(words): wrong_words(words, commands) for words in lines if wrong_words(words, commands)} == {}


def test_commands_and_options_that_are_none_are_found():
    commands = options_of_commands()
    text = """
```
$ pamusic sample --prime a.mid --lenght 3 -o - | pamusic rendr -
pamusic: error: no command
torchrun --nproc-per-node 2 -m pamusic train --shard --seed=2
pamusic sample --num 4 \\
    --no-guard --seconds
```
pamusic nothing, outside of code
"""
    found = [wrong_words(words, commands) for words in command_lines(text)]

    assert found == [["--lenght"], ["rendr"], ["--shard"], ["--num", "--seconds"]]
    assert commands["sample"]["-o"]
    assert not commands["sample"]["--no-guard"]


@pytest.mark.parametrize("page", PLAIN, ids=name)
def test_prose_is_short_and_plain(page):
    assert mean_words(text_of(page)) < MAX_MEAN_WORDS
    assert banned_phrases(text_of(page)) == []


@pytest.mark.parametrize("module", sorted((ROOT / "pamusic").rglob("*.py")), ids=name)
def test_docstrings_messages_and_comments_are_plain(module):
    assert banned_phrases(prose_of_module(text_of(module))) == []


def test_banned_phrases_in_a_module_are_found():
    text = 'def f():\n    """It goes\n    on."""\n    raise ValueError(f"is told {x}")  # by so many\n'

    assert banned_phrases(prose_of_module(text)) == ["is told", "by so many", "goes on"]


def test_long_sentences_and_banned_phrases_are_found():
    long = " ".join(["word"] * 40) + "."

    assert mean_words(f"# Heading\n\n{long} Two words.\n\n| {long} |\n\n```\n{long}\n```\n") == 21
    assert banned_phrases("It goes on.\n\n```\nby so many\n```\nHe of\nwhich we") == ["of which", "goes on"]
    assert [len(each.split()) for each in sentences("One two. Three four five:\n- six seven\n- `a b c` d")] == [
        2,
        3,
        2,
        2,
    ]


def test_the_page_of_training_settings_has_all_of_them_with_their_defaults():
    rows = rows_of_settings(text_of(DOCS / "reference" / "training-settings.md"))
    assert set(rows) == {each.name for each in fields(RunSettings)}

    defaults = {each.name: each.default for kind in (TrainingConfig, ModelConfig) for each in fields(kind)}
    for setting, shown in rows.items():
        default = defaults.get(setting)
        assert shown == ("–" if default in (None, MISSING) else json.dumps(default)), setting
    for size, shape in PRESETS.items():
        assert f"| {size} | {shape['context_length']:,} | {shape['num_latents']:,} | {shape['d_model']:,} |" in text_of(
            DOCS / "reference" / "training-settings.md"
        )


def test_a_setting_with_another_default_is_found():
    assert rows_of_settings("| `steps` | `--steps` | 5 | Text. |\n| `lr` | – | 0.1 | Text. |") == {
        "steps": "5",
        "lr": "0.1",
    }


def test_the_page_of_file_formats_has_every_key():
    text = text_of(DOCS / "reference" / "file-formats.md")
    keys = {
        *FILES,
        *COLUMNS,
        *RECORD_NAMES.values(),
        *(each.name for kind in (Piece, Provenance) for each in fields(kind)),
    }

    assert {key for key in keys if f"`{key}`" not in text} == set()
