"""What stands in files keeps its names: records, checkpoints, runs, and the options that people have in scripts."""

import json
from dataclasses import fields, replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from safetensors import safe_open

from pamusic.checkpoint import find_checkpoint
from pamusic.compose.provenance import SIGN
from pamusic.compose.request import SampleRequest
from pamusic.model.config import ClockConfig, LedgerConfig, ModelConfig, OffsetsConfig, RecallConfig
from pamusic.model.perceiver_ar import PerceiverAR
from pamusic.music.splicing import texts
from pamusic.training.config import TrainingConfig

ROOT = Path(__file__).parent.parent

RECORD = [
    "format", "options", "weights_sha256", "tokenizer", "tokenizer_fingerprint", "prime_sha256", "made_on", "row",
    "alarms", "stopped_after",
]  # fmt: skip
OPTIONS = [
    "prime", "seed", "num", "best_of", "keep", "length", "seconds", "minutes", "end", "may_end", "tracks", "prime_from",
    "prime_to", "one_track", "continuation_only", "temperature", "top_p", "top_k", "min_p", "typical_p",
    "temperature_time", "temperature_pitch", "temperature_velocity", "let_go", "returns", "guard", "checkpoint",
    "context_length", "num_latents", "refill", "precision", "compile", "device",
]  # fmt: skip
"""Of `pamusic sample`, in the order of a record."""
SETTINGS = {
    ModelConfig: "vocab_size pad_id context_length num_latents d_model num_layers num_heads cross_num_heads"
    " rotary_fraction mlp_ratio dropout ledger recall field_sizes offsets clock conv_width architecture",
    LedgerConfig: "num_slots first_opening first_closing first_tick num_ticks",
    RecallConfig: "num_slots first_opening first_closing numbers decay like sharp far reach spread",
    OffsetsConfig: "shift_edges length_edges num_positions reach",
    ClockConfig: "shift_edges rotary_fraction",
    TrainingConfig: "steps batch_size micro_batch lr adamw_lr_ratio weight_decay warmup_steps cooldown_steps"
    " cooldown_from max_grad_norm z_loss ema_decay patience recompute shard min_latents prefix_dropout transpose_down"
    " transpose_up stretch only seed precision validate_every validation_windows save_every_minutes",
}
"""Of `config.json` and `run.json`."""
BLOCK = (
    "attention.key attention.key_norm attention.output attention.query attention.query_norm attention.value"
    " attention_norm mlp.down mlp.up mlp_norm"
)
WEIGHTS = {f"{where}.{name}.weight" for where in ("cross", "layers.0") for name in BLOCK.split()} | {
    "context_norm.weight", "embedding.weight", "head.weight", "ledger.weight", "norm.weight", "recall.gate.bias",
    "recall.gate.weight", "to_latents.weight",
}  # fmt: skip


def test_the_command_line_has_the_options_that_its_page_lists():
    spec = spec_from_file_location("cli_page", ROOT / "docs" / "cli_page.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)

    page = (ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
    assert page == module.page(), "run: python docs/cli_page.py > docs/reference/cli.md"


def test_a_record_has_its_keys_in_its_order(sample):
    assert list(SampleRequest().to_record()) == OPTIONS
    assert sample("--seed", 1, "--length", 20, "-o", "out.mid").exit_code == 0

    (text,) = [each for each in texts(Path("out.mid").read_bytes()) if each.startswith(SIGN)]
    record = json.loads(text.removeprefix(SIGN))
    assert list(record) == RECORD
    of_events = [name for name in OPTIONS if name != "returns"]  # it belongs to models of notes
    assert list(record["options"]) == of_events


@pytest.mark.parametrize("config", SETTINGS, ids=lambda config: config.__name__)
def test_settings_keep_their_names(config):
    assert [each.name for each in fields(config)] == SETTINGS[config].split()


def test_weights_keep_their_names():
    """Of a new model, and of the one that ships."""
    path = find_checkpoint("small")
    config = ModelConfig.from_json(json.loads((path / "config.json").read_text())["model"])
    with safe_open(path / "model.safetensors", "pt") as shipped:
        for names in (shipped.keys(), PerceiverAR(replace(config, num_layers=1)).state_dict()):
            assert {name for name in names if not name.startswith("layers.") or "layers.0." in name} == WEIGHTS
