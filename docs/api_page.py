"""Write the reference page of the Python API from its docstrings: `python docs/api_page.py > docs/reference/api.md`."""

from __future__ import annotations

import inspect
import re

import pamusic
from pamusic import api

HEAD = """# Python API

Generated from the docstrings by `python docs/api_page.py`; the tests run its examples. `import pamusic` imports no
PyTorch: each name is loaded when it is first used. Every error that a caller can put right is a `pamusic.PamusicError`.
"""
FUNCTIONS = ("load", "read_midi", "write_midi", "synthesize", "tokenize", "evaluate", "open_corpus", "load_tokenizer")
CLASSES = (
    "Model", "Piece", "MidiFile", "Performance", "Event", "EventType", "SampleRequest", "Likelihood", "Tokenizer",
    "Corpus", "PamusicError", "UsageError",
)  # fmt: skip
SECTION = re.compile(r"^(Args|Returns|Raises|Attributes|Yields):$")


def page() -> str:
    """Return the whole page, in Markdown."""
    parts = [HEAD, _body(inspect.getdoc(api) or "")]
    parts += ["## Functions", *(_entry(f"pamusic.{name}", getattr(pamusic, name), 3) for name in FUNCTIONS)]
    for name in CLASSES:
        kind = getattr(pamusic, name)
        parts.append(f"## `pamusic.{name}`")
        parts.append(_body(inspect.getdoc(kind) or ""))
        if properties := _properties(kind):
            parts.append(f"**Properties**\n\n{properties}")
        parts += [_entry(f"{name}.{method.__name__}", method, 3) for method in _methods(kind)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _methods(kind: type) -> list[object]:
    """Return the public methods that a class has of its own, in the order of its source."""
    own = [each for name, each in vars(kind).items() if not name.startswith("_")]
    functions = [each.__func__ if isinstance(each, classmethod | staticmethod) else each for each in own]
    return [each for each in functions if inspect.isfunction(each)]


def _properties(kind: type) -> str:
    """Return the properties of a class as a list."""
    own = {name: each for name, each in vars(kind).items() if isinstance(each, property) and not name.startswith("_")}
    return "\n".join(f"- `{name}`: {inspect.getdoc(each)}" for name, each in own.items())


class _Shown:
    """Stands in a signature as its text, without quotes."""

    def __init__(self, text: object) -> None:
        self._text = str(text)

    def __repr__(self) -> str:
        return self._text


def _entry(title: str, of: object, level: int) -> str:
    found = inspect.signature(of)  # type: ignore[arg-type]
    parameters = [
        each.replace(
            annotation=_Shown(each.annotation),
            default=_Shown("…") if inspect.isfunction(each.default) else each.default,
        )
        for each in found.parameters.values()
        if each.name not in ("self", "cls")
    ]
    signature = found.replace(parameters=parameters, return_annotation=_Shown(found.return_annotation))
    return f"{'#' * level} `{title}`\n\n```python\n{title}{signature}\n```\n\n{_body(inspect.getdoc(of) or '')}"


def _body(text: str) -> str:
    """Return a docstring as Markdown: sections become lists, examples become code."""
    lines: list[str] = []
    is_section = is_example = False
    for line in text.splitlines():
        example = line.strip().startswith((">>>", "...")) or (is_example and bool(line.strip()))
        if example != is_example:
            lines += ["```python" if example else "```", *([""] if not example else [])]
            is_example = example
        if example:
            lines.append(line.strip() if not is_section else line)
            continue
        if found := SECTION.match(line):
            is_section = True
            lines += [f"**{found[1]}**", ""]
        elif is_section and line.startswith("    ") and not line.startswith("     "):
            name, colon, rest = line.strip().partition(": ")
            lines.append(f"- `{name}`: {rest}" if colon and " " not in name.replace(", ", "") else f"- {line.strip()}")
        elif is_section and line.startswith("     "):
            lines.append(f"  {line.strip()}")
        else:
            is_section = is_section and not line.strip()
            lines.append(line)
    return "\n".join([*lines, *(["```"] if is_example else [])])


if __name__ == "__main__":
    print(page(), end="")
