"""Run everything that is to be measured on a GPU: `python benchmarks/gpu.py`.

First it compares the GPU with the CPU, in float32 without TF32: logits of a whole pass and of a pass with prefix
dropout, gradients, and logits from caches (from recorded steps on CUDA) of two rows, token by token, over refills and
beyond the context. Then it measures speed and memory of training (`training.py`) and sampling (`sampling.py`) for each
size. Prints the device. If the two differ by more than rounding, it exits with 1 and measures no speed. `--device cpu`
compares the CPU with itself.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
from pathlib import Path

import torch

from pamusic.device import choose_machine, describe
from pamusic.inference.session import InferenceConfig, InferenceSession
from pamusic.model.config import RecallConfig, preset
from pamusic.model.perceiver_ar import PerceiverAR
from pamusic.training.config import TrainingConfig
from pamusic.training.machine_report import PERFORMANCE

HERE = Path(__file__).parent
RECALL = RecallConfig(
    num_slots=128,
    first_opening=0,
    first_closing=128,
    numbers=((256, 100), (356, 32)),
)
MOST = 2e-3  # of logits with a spread of 1: float32 sums in another order


def random_model(device: torch.device) -> PerceiverAR:
    torch.manual_seed(0)
    model = PerceiverAR(preset("small", **PERFORMANCE, recall=RECALL, context_length=2048, num_latents=256)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.06)
    return model.to(device)


def computed(device: torch.device) -> dict[str, torch.Tensor]:
    """Return the compared values by name, on the CPU."""
    model = random_model(device)
    randomness = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 388, (2, 2048), generator=randomness).to(device)
    tokens[:, 1000:2000] = tokens[:, :1000]  # something to recall
    kept = torch.rand(2, 1792, generator=randomness).topk(500).indices.sort().values.to(device)
    tokens[1, :700] = 390  # a short window: padding before its prefix
    found = {}
    with torch.inference_mode():
        found["a whole pass"] = model(tokens)
        found["a part of the prefix"] = model(tokens, prefix_indices=kept)
        reader = InferenceSession(model, InferenceConfig(num_latents=64, context_length=512))
        steps = [reader.prefill(tokens[0, :300].tolist())]
        reader.select([0, 0])
        for column in tokens[:, 1000:1400].T.tolist():
            steps.append(reader.step(column).clone())  # the next step overwrites it
        found["out of caches"] = torch.cat(steps)
    model.train()
    model(tokens, prefix_indices=kept).float().log_softmax(-1)[..., :10].sum().backward()
    gradients = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    found["gradients"] = gradients / gradients.abs().max()
    return {name: value.float().cpu() for name, value in found.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--sizes", default="small,medium,base")
    parser.add_argument("--batch", default="32", help="windows a step")
    words = parser.parse_args()
    machine = choose_machine(words.device, "fp32", compile=False)
    print(
        f"{describe(machine)}, Python {platform.python_version()}, torch {torch.__version__}, CUDA {torch.version.cuda}"
    )
    torch.backends.cuda.matmul.allow_tf32 = False
    print("\n| against the CPU, float32 | largest difference |\n|---|---|")
    worst, here, there = 0.0, computed(torch.device("cpu")), computed(machine.device)
    for name, value in here.items():
        difference = (value - there[name]).abs().max().item()
        worst = max(worst, difference)
        print(f"| {name} | {difference:.1e} |")
    if not worst <= MOST:
        print(f"\nmore than rounding ({MOST:g}): no speeds are measured")
        return 1
    if machine.device.type == "cpu":
        return 0
    for size in words.sizes.split(","):
        print(flush=True)
        arguments = ["--size", size, "--device", words.device, "--batch", words.batch, "--steps", "20"]
        subprocess.run([sys.executable, str(HERE / "training.py"), *arguments], check=False)
        subprocess.run(
            [sys.executable, str(HERE / "sampling.py"), "--size", size, "--device", words.device], check=False
        )
    print(f"\nPrefix dropout in training: {TrainingConfig.prefix_dropout}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
