"""Write the reference page of the command line from its commands: `python docs/cli_page.py > docs/reference/cli.md`."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from typing import Any, Union, get_args, get_origin, get_type_hints

from typer import Context
from typer.models import ArgumentInfo

from pamusic.cli.app import app

HEAD = """# Command line

Generated from the commands by `python docs/cli_page.py`; `pamusic COMMAND --help` says the same.
"""
TYPE_NAMES = {int: "INTEGER", float: "NUMBER", str: "TEXT", "Path": "PATH"}


def page() -> str:
    """Return the whole page, in Markdown."""
    return "\n\n".join([HEAD.strip(), *(_section(each.callback) for each in app.registered_commands)]) + "\n"


def _section(command: Callable[..., None] | None) -> str:
    assert command is not None
    hints = get_type_hints(command, include_extras=True)
    arguments, options = [], []
    for name, parameter in inspect.signature(command).parameters.items():
        if hints[name] is Context:
            continue
        kind, info = get_args(hints[name])
        if isinstance(info, ArgumentInfo):
            word = name.upper() + ("..." if get_origin(kind) is list else "")
            word = word if parameter.default is inspect.Parameter.empty else f"[{word}]"
            arguments.append((word, _help(info, parameter.default)))
        else:
            options.append((_flags(name, kind, info), _help(info, parameter.default)))
    title = " ".join([f"pamusic {command.__name__}", *(word for word, _ in arguments)])
    rows = [f"- `{words}`: {text}" for words, text in [*arguments, *options]]
    return f"## `{title}`\n\n{' '.join((inspect.getdoc(command) or '').split())}\n\n" + "\n".join(rows)


def _flags(name: str, kind: Any, info: Any) -> str:
    """Return the names of an option and what it takes."""
    # Within Annotated the first name that is given stands where a default would.
    first = [info.default] if isinstance(info.default, str) else []
    names = ", ".join([*first, *(info.param_decls or [])] or [f"--{name.replace('_', '-')}"])
    kinds = [each for each in get_args(kind) if each is not type(None)] if _is_union(kind) else [kind]
    inner = get_args(kinds[0])[0] if get_origin(kinds[0]) is list else kinds[0]
    if inner is bool:
        return names if "/" in names or not _is_union(kind) else f"{names}/--no-{name.replace('_', '-')}"
    members = getattr(inner, "__members__", None)
    takes = (
        "|".join(each.value for each in members.values())
        if members
        else TYPE_NAMES.get(inner, TYPE_NAMES.get(inner.__name__, "TEXT"))
    )
    return f"{names} {info.metavar or takes}"


def _help(info: Any, default: object) -> str:
    """Return what the help says of a parameter, with its default where the help has none in words."""
    words = " ".join((info.help or "").split())
    if isinstance(info.show_default, str):
        return f"{words} (default: {info.show_default})"
    is_empty = default in (None, inspect.Parameter.empty) or isinstance(default, bool)
    if "default" in words.lower() or is_empty or not info.show_default:
        return words
    return f"{words} (default: {getattr(default, 'value', default)})"


def _is_union(kind: Any) -> bool:
    return get_origin(kind) in (Union, types.UnionType)


if __name__ == "__main__":
    print(page(), end="")
