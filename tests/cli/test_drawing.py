"""The bar of `pamusic sample` shows how much music there is: what a guard takes back is taken off again."""

import pytest

import pamusic.cli.drawing
from pamusic.checkpoint import load_checkpoint
from pamusic.cli.drawing import Hearing, collected
from pamusic.compose.token_stream import compose_many
from pamusic.sampling.config import SamplingConfig
from pamusic.sampling.guard import Guard


class Bar:
    """In place of a progress bar: adds up."""

    def __init__(self, total, **look):
        self.total, self.n, self.fell = total, 0.0, False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def update(self, by):
        self.n += by
        self.fell = self.fell or by < 0


@pytest.mark.parametrize("guard", [None, Guard(silence=3.0, held=4.0)], ids=["plain", "guarded"])
@pytest.mark.parametrize(("length", "seconds"), [(300, None), (None, 12.0), (300, 40.0)])
def test_it_counts_tokens_or_seconds_of_all_pieces(checkpoint, monkeypatch, guard, length, seconds):
    bars = []
    monkeypatch.setattr(pamusic.cli.drawing, "progress", lambda **look: bars.append(Bar(**look)) or bars[-1])
    who, hearing = load_checkpoint(checkpoint), Hearing(1)
    seconds_of_id = who.tokenizer.vocabulary.seconds_of_id.tolist()
    drawn = compose_many(
        who, seed=1, num=2, length=length, seconds=seconds, guard=guard, keeping=hearing.keeping,
        sampling=SamplingConfig(temperature=0.7, let_go=0),
    )  # fmt: skip

    got = collected(drawn, 2, hearing, length=length, seconds=seconds, seconds_of_id=seconds_of_id)

    (bar,) = bars
    assert bar.total == 2 * (seconds if length is None else length)
    ids = [id for piece in got.pieces for id in piece]
    assert bar.n == pytest.approx(sum(seconds_of_id[id] for id in ids) if length is None else len(ids))
    if guard is not None and length is None:
        assert sum(got.num_alarms) > 0
