"""A checkpoint comes back as it was, and one that does not hold together is refused in one line."""

import json
import os
from pathlib import Path

import pytest
import torch
from corpora import small_corpus
from models import tiny_model

from pamusic.checkpoint import (
    check_corpus,
    find_checkpoint,
    load_checkpoint,
    save_checkpoint,
    shipped_checkpoints,
)
from pamusic.errors import PamusicError
from pamusic.resources import DEFAULT_CHECKPOINT, DEFAULT_TOKENIZER
from pamusic.tokens.tokenizer import load_tokenizer


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "mine"
    save_checkpoint(path, tiny_model(), load_tokenizer("performance"), metadata={"step": 7}, card="# Mine\n")
    return path


def refused(path):
    with pytest.raises(PamusicError) as error:
        load_checkpoint(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    return str(error.value)


def test_a_checkpoint_comes_back_as_it_was(saved):
    loaded, model = load_checkpoint(saved), tiny_model()
    assert loaded.model.config == model.config
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], weight)
    assert loaded.tokenizer.fingerprint == load_tokenizer("performance").fingerprint
    assert loaded.metadata["step"] == 7
    assert loaded.title == str(saved)
    assert (saved / "README.md").read_text() == "# Mine\n"
    assert not loaded.model.training


def test_in_bfloat16_it_is_half_as_large_and_almost_the_same(tmp_path, saved):
    save_checkpoint(tmp_path / "half", tiny_model(), load_tokenizer("performance"), metadata={}, dtype=torch.bfloat16)
    sizes = [(path / "model.safetensors").stat().st_size for path in (saved, tmp_path / "half")]
    assert sizes[1] < 0.55 * sizes[0]
    weight = load_checkpoint(tmp_path / "half").model.head.weight
    assert weight.dtype == torch.float32
    torch.testing.assert_close(weight, tiny_model().head.weight, rtol=1e-2, atol=1e-2)


def test_replacing_a_checkpoint_leaves_nothing_beside_it(saved):
    save_checkpoint(saved, tiny_model(seed=1), load_tokenizer("performance"), metadata={"step": 8})
    assert load_checkpoint(saved).metadata["step"] == 8
    assert [path.name for path in saved.parent.iterdir()] == ["mine"]


def test_a_checkpoint_that_is_half_a_file_is_refused(saved):
    file = saved / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert "broken or incomplete" in refused(saved)


def test_parts_that_do_not_belong_together_are_refused(saved):
    toml = saved / "tokenizer.toml"
    toml.write_text(toml.read_text().replace("step_ms = 10", "step_ms = 20"))
    assert "not the one that its model was trained with" in refused(saved)


@pytest.mark.parametrize("part", ["model.safetensors", "config.json", "tokenizer.toml"])
def test_a_missing_part_is_named(saved, part):
    (saved / part).unlink()
    with pytest.raises(PamusicError, match=part.split(".")[0]):
        load_checkpoint(saved)


def test_a_configuration_of_nonsense_is_refused(saved):
    config = json.loads((saved / "config.json").read_text())
    for nonsense in ("{", "[]", json.dumps({**config, "format": 99}), json.dumps({**config, "model": {"d_model": 3}})):
        (saved / "config.json").write_text(nonsense)
        refused(saved)


def test_a_model_that_another_version_knew_is_refused_by_what_it_has(saved):
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**config, "model": {**config["model"], "first_of_kinds": [1, 2]}}))
    words = refused(saved)
    assert "first_of_kinds" in words
    assert "the version that wrote it" in words


def test_weights_of_another_model_are_refused(saved, tmp_path):
    save_checkpoint(tmp_path / "wide", tiny_model(d_model=64), load_tokenizer("performance"), metadata={})
    (saved / "model.safetensors").write_bytes((tmp_path / "wide" / "model.safetensors").read_bytes())
    assert "broken or incomplete" in refused(saved)


def test_a_wrong_name_is_answered_with_the_right_ones(tmp_path):
    run = tmp_path / "runs" / "first"
    save_checkpoint(run / "last", tiny_model(), load_tokenizer("performance"), metadata={})
    with pytest.raises(PamusicError, match=r"no checkpoint is called 'nothing'.*runs/first"):
        find_checkpoint("nothing", runs=tmp_path / "runs")
    assert find_checkpoint(str(run)) == run / "last"


def test_what_ships_is_meant_by_its_name_and_what_is_mine_by_its_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (shipped, *_) = shipped_checkpoints()
    for mine in (Path("runs") / shipped.name / "best", Path(shipped.name)):
        save_checkpoint(mine, tiny_model(), load_tokenizer("performance"), metadata={})
    assert find_checkpoint(shipped.name) == shipped
    assert load_checkpoint(shipped).title == f"{shipped.name}, which ships with pamusic"
    assert find_checkpoint(f"runs/{shipped.name}") == Path("runs") / shipped.name / "best"
    assert find_checkpoint(f"./{shipped.name}") == Path(shipped.name)


def test_without_a_name_it_is_the_default_that_ships_and_latest_is_the_newest_run_that_stopped_in_order(tmp_path):
    with pytest.raises(PamusicError, match=r"'latest' is the newest run in .* there is none; train one"):
        find_checkpoint("latest", runs=tmp_path)
    for age, name in enumerate(("old", "new", "unfinished")):
        run = tmp_path / name
        save_checkpoint(run / "best", tiny_model(), load_tokenizer("performance"), metadata={})
        if name != "unfinished":
            (run / "finished").write_text("")
            os.utime(run / "finished", (age, age))
    assert find_checkpoint("latest", runs=tmp_path) == tmp_path / "new" / "best"
    assert find_checkpoint(runs=tmp_path).name == DEFAULT_CHECKPOINT
    assert find_checkpoint(runs=tmp_path) in shipped_checkpoints()


def test_a_corpus_of_the_default_tokenizer_fits_the_default_checkpoint():
    checkpoint = load_checkpoint(find_checkpoint(DEFAULT_CHECKPOINT))
    assert checkpoint.tokenizer.fingerprint == load_tokenizer(DEFAULT_TOKENIZER).fingerprint


def test_a_corpus_of_another_tokenizer_is_refused_by_name(saved, tmp_path):
    corpus = small_corpus(tmp_path / "c")
    check_corpus(load_checkpoint(saved), corpus)
    about = (corpus.path / "corpus.json").read_text()
    toml = (
        (corpus.path / "tokenizer.toml")
        .read_text()
        .replace('"performance"', '"coarse"')
        .replace("step_ms = 10", "step_ms = 20")
    )
    (corpus.path / "tokenizer.toml").write_text(toml)
    from pamusic.corpus.corpus import open_corpus
    from pamusic.tokens.vocabulary import load_vocabulary

    fingerprint = load_vocabulary(corpus.path / "tokenizer.toml").fingerprint
    (corpus.path / "corpus.json").write_text(about.replace(corpus.tokenizer.fingerprint, fingerprint))
    with pytest.raises(PamusicError, match=r"coarse.*performance"):
        check_corpus(load_checkpoint(saved), open_corpus(corpus.path))
