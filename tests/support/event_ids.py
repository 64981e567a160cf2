"""Ids of events by their names."""

from pamusic.tokens.tokenizer import load_tokenizer

TOKENIZER, PIANO = load_tokenizer("performance"), load_tokenizer("piano")


def ids(*events, tokenizer=TOKENIZER):
    """Ids of events such as "on 60", "off 60", "wait 50" (steps of 10 ms), "velocity 20", "sustain 2"."""
    kinds = {"on": "note_on", "off": "note_off", "wait": "time_shift"}
    pairs = [event.split() for event in events]
    return [tokenizer.vocabulary.id(kinds.get(kind, kind), int(value)) for kind, value in pairs]


def piano_ids(*events):
    return ids(*events, tokenizer=PIANO)
