"""Training, evaluation and sampling start all work of a step without a look at a number, and mix no devices.

Run under `FakeTensorMode`: tensors have shapes, types and devices but no content, so code that reads a number between
steps fails, and so does an operation on tensors of two devices. In a CPU build of PyTorch the tensors say that they are
on the CPU; in a CUDA build (`make check-cuda`) that they are on a card, which need not be there.
"""

import pytest
import torch
from flat_sampling import of_vocabulary, token_sampler
from models import tiny_config
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._pytree import tree_leaves

from pamusic.device import Machine
from pamusic.evaluation.likelihood import costs
from pamusic.inference.cuda_graph import CudaGraphStep
from pamusic.inference.session import InferenceSession
from pamusic.inference.token_step import ROTARY_BLOCK
from pamusic.model.config import ClockConfig, KeyRecallConfig, LedgerConfig, OffsetsConfig, RecallConfig
from pamusic.model.perceiver_ar import PerceiverAR
from pamusic.sampling.ending import EndingConfig
from pamusic.tokens.grammar import ledger_ranges, recall_ranges
from pamusic.tokens.tokenizer import load_tokenizer
from pamusic.training.config import TrainingConfig
from pamusic.training.data import Batch
from pamusic.training.learner import Learner

pytestmark = pytest.mark.slow

DEVICE = torch.device("cuda" if torch.version.cuda else "cpu")
PRECISIONS = ["fp32", "bf16"] if DEVICE.type == "cpu" else ["fp32"]  # autocast wants the card itself
VOCABULARY = load_tokenizer("performance").vocabulary
PARTS = {
    "ledger": LedgerConfig(**ledger_ranges(VOCABULARY)),
    "recall": RecallConfig(**recall_ranges(VOCABULARY), far=16),
}
SHAPE = tiny_config(vocab_size=len(VOCABULARY), pad_id=VOCABULARY.id("pad"), num_layers=2, **PARTS)
EDGES = tuple(range(6))
NOTES = tiny_config(
    vocab_size=23,
    pad_id=22,
    num_layers=2,
    field_sizes=(5, 3, 2, 8, 5),
    conv_width=3,
    offsets=OffsetsConfig(shift_edges=EDGES, length_edges=EDGES, num_positions=4, reach=2),
    clock=ClockConfig(shift_edges=EDGES),
    recall=KeyRecallConfig(first_key=5, num_keys=3, shift_edges=EDGES),
)
SHAPES = pytest.mark.parametrize("shape", [SHAPE, NOTES], ids=["events", "notes"])


@pytest.fixture
def fake(monkeypatch):
    """The device; all tensors that a test makes are without content, small constants too."""
    tensor = torch.tensor

    def without_content(data, **how):
        known = tensor(data, **how)
        return torch.zeros(known.shape, dtype=known.dtype, device=known.device)

    monkeypatch.setattr("torch.tensor", without_content)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device=None: (9, 0))
    with FakeTensorMode():
        yield DEVICE


@pytest.fixture
def backward(monkeypatch):
    """Without a driver PyTorch cannot run a backward pass on a card: there, gradients have but shapes and devices."""
    if DEVICE.type == "cpu":
        return
    made = []
    monkeypatch.setattr(Built, "__init__", lambda self, config: (made.append(self), _build(self, config))[1])

    def zero_gradients(loss):
        assert loss.shape == ()
        assert loss.device.type == DEVICE.type
        for parameter in made[-1].parameters():
            parameter.grad = torch.zeros_like(parameter)

    monkeypatch.setattr(torch.Tensor, "backward", zero_gradients)


class Built(PerceiverAR):
    """A model that is made on its device at once: modules of fake tensors cannot be moved."""

    def __init__(self, config):
        with DEVICE:
            super().__init__(config)

    def to(self, device):
        assert device == DEVICE
        return self


_build = Built.__init__


def devices_of(tree):
    return {leaf.device.type for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)}


def no_ids(shape, *lengths):
    """Ids without content for a model of this shape."""
    return torch.zeros(*lengths, *((len(shape.field_sizes),) if shape.field_sizes else ()), dtype=torch.int64)


@SHAPES
@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_update_reads_no_number(fake, backward, monkeypatch, precision, kept, shape):
    adamw = torch.optim.AdamW
    monkeypatch.setattr("torch.optim.AdamW", lambda *args, **how: adamw(*args, **{**how, "fused": True}))  # as on CUDA
    monkeypatch.setattr("pamusic.training.learner.build_model", Built)
    training = TrainingConfig(steps=9, batch_size=4, micro_batch=2)
    learner = Learner(shape, training, Machine(fake, precision, False, "for tests"))
    positions = torch.zeros(4, 20, dtype=torch.int64) if kept else None
    tokens, targets = (no_ids(shape, 4, n) for n in (64, 16))
    for _ in range(3):
        nats = learner.update(Batch(tokens, targets, positions))

    assert nats.shape == ()
    assert learner.step == 3
    assert devices_of([nats, learner.grad_norm, learner.state_dict()["model"]]) == {fake.type}
    moments = [state for optimizer in learner.optimizers for state in optimizer.state.values()]
    assert devices_of(moments) <= {fake.type, "cpu"}  # AdamW counts its steps on either
    assert len(moments) == sum(1 for _ in learner.model.parameters())


@SHAPES
def test_a_piece_is_scored_without_a_look_at_a_number(fake, shape):
    nats, correct = costs(Built(shape).eval(), no_ids(shape, 200).to(fake))

    assert nats.shape == no_ids(shape, 199).shape
    assert correct.shape == (199,)
    assert devices_of([nats, correct]) == {fake.type}


@pytest.mark.parametrize("num_rows", [1, 3] if DEVICE.type == "cuda" else [3])  # one row has a plain twin on a CPU
def test_a_recorded_step_and_a_draw_read_no_number(fake, monkeypatch, num_rows):
    """What a CUDA graph records: past a refill, beyond the context and into the next table of rotations."""
    # A copied fake tensor has another mode.
    monkeypatch.setattr("pamusic.inference.token_step.deepcopy", lambda part: part)

    def unrecorded(work, device, changed):
        return work

    network = Built(SHAPE).eval()
    reader = InferenceSession(network)
    reader._stepper = CudaGraphStep(network, record=unrecorded)
    reader._begin()
    how = {**of_vocabulary(VOCABULARY), "num_rows": num_rows, "seed": 3, "ending": EndingConfig(), "seconds": 100.0}
    sampler = token_sampler([VOCABULARY.id("start")], vocab_size=len(VOCABULARY), device=fake, record=unrecorded, **how)
    logits = reader.prefill([VOCABULARY.id("start")] * (ROTARY_BLOCK - 5))
    if num_rows > 1:
        reader.select([0] * num_rows)
        logits = logits.expand(num_rows, -1)
    for _ in range(SHAPE.num_latents):
        ids = sampler.sample(logits)
        logits = reader.step(ids.clamp(min=0))

    assert ids.shape == (num_rows,)
    assert logits.shape == (num_rows, len(VOCABULARY))
    assert devices_of([ids, logits, reader.caches.cross.memory]) == {fake.type}


def test_a_number_that_is_read_is_found(fake):
    """The check can fail: it is what the tests above rest on."""
    with pytest.raises(DataDependentOutputException):
        torch.zeros(3, device=fake).sum().item()


@pytest.mark.skipif(DEVICE.type == "cpu", reason="takes a CUDA build of PyTorch: make check-cuda")
def test_tensors_of_two_devices_are_found(fake):
    with pytest.raises(RuntimeError, match="at least two devices"):
        torch.zeros(3, device=fake) + torch.zeros(3)


TYPES = {"embedding": torch.float32, "to_latents": torch.bfloat16, "cross": torch.bfloat16, "head": torch.bfloat16}


@pytest.mark.skipif(DEVICE.type == "cuda", reason="autocast wants the card itself")
def test_under_autocast_products_and_the_stream_are_bfloat16_and_logits_float32(fake):
    network, found = Built(SHAPE).train(), {}
    for name, part in network.named_modules():
        part.register_forward_hook(lambda part, args, out, name=name: found.update({name: out.dtype}))
    with torch.autocast(fake.type, torch.bfloat16):
        logits = network(torch.zeros(2, 64, dtype=torch.int64, device=fake))

    assert {name: found[name] for name in TYPES} == TYPES
    for part in ("query", "key", "value", "output"):
        assert found[f"layers.0.attention.{part}"] == torch.bfloat16
    assert logits.dtype == torch.float32  # recall mixes in float32
    assert network.recall(torch.zeros(1, 64, dtype=torch.int64, device=fake), 4).dtype == torch.float32
