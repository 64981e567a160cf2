"""On a CUDA card everything is as on the CPU, only faster. Skipped where there is none."""

import pytest
import torch
from corpora import small_corpus
from flat_sampling import generate, generate_rows, of_vocabulary, token_sampler
from models import tiny_config, tiny_model
from trainers import make_trainer

from pamusic.device import choose_machine
from pamusic.evaluation.likelihood import evaluate
from pamusic.inference.session import REFILLS, InferenceConfig, InferenceSession
from pamusic.model.config import RecallConfig
from pamusic.model.recall import Recall, RecallCache
from pamusic.sampling import generate as sampler
from pamusic.sampling.ending import EndingConfig
from pamusic.tokens.grammar import recall_ranges
from pamusic.tokens.tokenizer import load_tokenizer
from pamusic.training.config import TrainingConfig
from pamusic.training.metrics import TRAIN, read_metrics

VOCABULARY = load_tokenizer("performance").vocabulary
RECALL = RecallConfig(**recall_ranges(VOCABULARY), far=16)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA card"),
]


def settings(**changes):
    return TrainingConfig(**{"steps": 20, "batch_size": 4, "cooldown_steps": 5, "validation_windows": 4, **changes})


def losses(run):
    return [row.nats_per_token for row in read_metrics(run / "metrics.csv") if row.split == TRAIN]


def test_logits_and_gradients_are_those_of_the_cpu():
    torch.backends.cuda.matmul.allow_tf32 = False
    tokens = torch.randint(0, 388, (2, 64), generator=torch.Generator().manual_seed(0))
    found = []
    for device in ("cpu", "cuda"):
        model = tiny_model(num_layers=3).to(device).train()
        logits = model(tokens.to(device))
        logits.float().logsumexp(-1).sum().backward()
        found.append((logits.detach().cpu(), torch.cat([p.grad.flatten().cpu() for p in model.parameters()])))
    torch.testing.assert_close(found[0][0], found[1][0], atol=2e-4, rtol=1e-3)
    torch.testing.assert_close(found[0][1], found[1][1], atol=2e-3, rtol=1e-2)


def test_the_score_is_that_of_the_cpu(tmp_path):
    corpus, model = small_corpus(tmp_path / "c"), tiny_model()
    on_cpu = evaluate(model, corpus, "validation")
    assert evaluate(model.cuda(), corpus, "validation").nats_per_token == pytest.approx(on_cpu.nats_per_token, abs=1e-3)


@pytest.mark.parametrize("policy", REFILLS)
def test_recorded_steps_say_what_the_cpu_says(policy):
    """Over refills, beyond the context, and after rows have ended."""
    ids = torch.randint(0, 388, (300, 3), generator=torch.Generator().manual_seed(1)).tolist()
    found = []
    for device in ("cpu", "cuda"):
        reader = InferenceSession(
            tiny_model(num_layers=3, num_latents=192, context_length=256).to(device), InferenceConfig(refill=policy)
        )
        logits = [reader.prefill([388, *ids[0]]).cpu()]
        reader.select([0, 0, 0])
        logits += [reader.step(three).cpu() for three in ids]
        reader.select([2])
        logits += [reader.step(three[2:]).cpu() for three in ids]
        found.append(torch.cat(logits))
    torch.testing.assert_close(*found, atol=2e-4, rtol=1e-3)


def test_what_is_recalled_is_what_the_cpu_recalls():
    ids = torch.randint(0, 388, (3, 300), generator=torch.Generator().manual_seed(1)).repeat(1, 3)
    shares, alone = [], []
    for device in ("cpu", "cuda"):
        recall, given = Recall(RECALL, 391, 8).to(device), ids.to(device)
        memory = RecallCache(recall, 3, 1024)
        memory.enter(given[:, :500])
        for place in range(500, 900):
            memory.step(given[:, place])
        shares.append(recall(given, 100).cpu())
        alone.append(memory.copy_probs().cpu())
    assert shares[0].sum(-1).max() > 0.9
    torch.testing.assert_close(*shares, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(*alone, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("num_rows", [1, 4])
def test_recorded_draws_are_those_of_the_cpu(num_rows):
    """Logits of halves are the same numbers there; only sums of them are rounded otherwise, which moves few draws."""
    randomness = torch.Generator().manual_seed(1)
    steps = [torch.randn(num_rows, len(VOCABULARY), generator=randomness).round(decimals=1) for _ in range(600)]
    how = {**of_vocabulary(VOCABULARY), "num_rows": num_rows, "seed": 3, "ending": EndingConfig(), "seconds": 100.0}
    how["vocab_size"] = len(VOCABULARY)
    here, there = (token_sampler([VOCABULARY.id("start")], device=device, **how) for device in ("cpu", "cuda"))
    same = 0
    for logits in steps:
        same += torch.equal(here.sample(logits), there.sample(logits.cuda()).cpu())
    assert same > 590


@pytest.mark.parametrize("num_rows", [1, 4])
def test_ahead_of_the_host_rows_are_what_they_are_in_step_with_it(monkeypatch, num_rows):
    model = tiny_model(vocab_size=len(VOCABULARY), pad_id=VOCABULARY.id("pad")).double().cuda()
    how = {**of_vocabulary(VOCABULARY), "num_rows": num_rows, "seed": 3, "seconds": 20.0}
    found = []
    for ahead in (16, 0):
        monkeypatch.setitem(sampler.AHEAD, "cuda", ahead)
        found.append(list(generate_rows(model, [VOCABULARY.id("start")], **how)))
    assert found[0] == found[1]


def test_nobody_waits_for_a_token_that_was_drawn():
    """Once all is recorded, a token of two rows looks at no number on the card."""
    shape = {"vocab_size": len(VOCABULARY), "pad_id": VOCABULARY.id("pad"), "context_length": 512, "num_latents": 256}
    model = tiny_model(**shape).cuda()
    rows = generate_rows(model, [VOCABULARY.id("start")], **of_vocabulary(VOCABULARY), num_rows=2, seed=0)
    for _ in range(100):
        next(rows)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(60):  # past the first 128 positions, up to which turns are known
            next(rows)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("recall", [None, RECALL])
def test_what_is_sampled_is_valid_and_the_same_each_time(recall):
    model = tiny_model(recall=recall, context_length=512).cuda()
    pieces = [list(generate(model, [388], seed=3, length=900)) for _ in range(2)]
    assert pieces[0] == pieces[1]
    assert all(0 <= id < 391 for id in pieces[0])


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("compile", [False, True])
def test_it_learns_in_every_precision(tmp_path, precision, compile):
    machine = choose_machine("cuda", precision, compile)
    trainer = make_trainer(tmp_path / "run", small_corpus(tmp_path / "c"), tiny_config(), settings(steps=60), machine)
    trainer.train()
    first, *_, last = losses(tmp_path / "run")
    assert last < first - 0.3


def test_a_run_that_was_stopped_goes_on_as_if_it_never_had_been(tmp_path):
    corpus, machine = small_corpus(tmp_path / "c"), choose_machine("cuda", "fp32", False)
    make_trainer(tmp_path / "whole", corpus, tiny_config(dropout=0.1), settings(), machine).train()
    make_trainer(tmp_path / "run", corpus, tiny_config(dropout=0.1), settings(), machine).train(max_minutes=0)
    resumed = tmp_path / "run"
    make_trainer(resumed, corpus, tiny_config(dropout=0.1), settings(), machine, resume_from=resumed).train()
    assert losses(tmp_path / "whole")[-1] == pytest.approx(losses(resumed)[-1], abs=1e-4)
