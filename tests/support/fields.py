"""Vocabularies of several fields for tests: the one that ships, and what is made of its file. Asserts nothing."""

import re

from pamusic.resources import tokenizers_folder
from pamusic.tokens.tokenizer import Tokenizer, load_tokenizer
from pamusic.tokens.vocabulary import load_vocabulary

NOTES_TEXT = (tokenizers_folder() / "notes.toml").read_text(encoding="utf-8")
NOTES = load_tokenizer("notes")


def block(kind, text=NOTES_TEXT):
    """The lines of a kind's events in a TOML file."""
    return re.search(
        rf'\[\[fields.events\]\]\nkind = "{kind}".*?last = \d+[^\n]*\n(exact[^\n]*\ngrowth[^\n]*\n)?', text, re.S
    )[0]


def folded_text():
    """Notes as long as their strings sound, without pedals."""
    text = re.sub(r'sustain = "played".*?\n(?=\n)', 'sustain = "folded"\n', NOTES_TEXT, flags=re.S)
    for kind in ("sustain", "sostenuto", "soft"):
        text = text.replace(block(kind), "")
    return text.replace('"notes"', '"notes-folded"')


def compound_text(text=NOTES_TEXT):
    """A position for each key or pedal that goes down or up, instead of lengths."""
    text = text[: text.index('[[fields]]\nname = "length"')]
    presses = block("note_on", text)
    text = text.replace(presses, presses + "\n" + presses.replace("note_on", "note_off"))
    for kind in ("sustain", "sostenuto", "soft"):
        if f'"{kind}"' in text:
            text = text.replace(block(kind, text), block(kind, text).replace("first = 1", "first = 0"))
    return text.replace('"notes', '"compound')


def tokenizer_of(folder, text):
    (folder / "mine.toml").write_text(text, encoding="utf-8")
    return Tokenizer(load_vocabulary(folder / "mine.toml"))
