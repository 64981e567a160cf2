"""What is drawn is collected, counted while it is drawn, and kept where the work is interrupted."""

import pytest
from flat_sampling import stream_many

from pamusic.checkpoint import load_checkpoint
from pamusic.compose.job import Collector
from pamusic.sampling.config import SamplingConfig
from pamusic.sampling.guard import GuardConfig


@pytest.mark.parametrize("guard", [None, GuardConfig(silence=1.0, held=4.0)], ids=["plain", "guarded"])
@pytest.mark.parametrize(("length", "seconds"), [(300, None), (None, 12.0), (300, 40.0)])
def test_progress_is_what_there_is_and_falls_by_what_a_guard_takes_back(checkpoint, guard, length, seconds):
    composer = load_checkpoint(checkpoint)
    seconds_of_id = composer.tokenizer.vocabulary.seconds_of_id.tolist()
    steps = []
    collector = Collector(2, on_progress=steps.append)
    if length is None:
        collector.size_of = seconds_of_id.__getitem__
    drawn = stream_many(
        composer, seed=1, num_pieces=2, length=length, seconds=seconds, guard=guard, monitor=collector,
        sampling=SamplingConfig(temperature=0.7, release_bias=0),
    )  # fmt: skip

    result = collector.collect(drawn)

    ids = [id for piece in result.pieces for id in piece]
    assert sum(steps) == pytest.approx(sum(seconds_of_id[id] for id in ids) if length is None else len(ids))
    if guard is not None and length is None:
        assert sum(result.num_alarms) > 0
        assert min(steps) < 0
