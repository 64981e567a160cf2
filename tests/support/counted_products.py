"""Runs commands of `pamusic` in this process and prints, as JSON, the largest bfloat16 product that each starts.

Started by tests as a program of its own: the settings that imitate another processor are read when torch is imported.
"""

import json
import sys

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from typer.testing import CliRunner

from pamusic.cli.app import app
from pamusic.device import cpu_bf16_units

PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "linear", "attention", "_weight_int8pack_mm", "convolution")


class Products(TorchDispatchMode):
    """Knows the operations of the largest product in bfloat16, and how many products there were of any kind."""

    def __init__(self):
        super().__init__()
        self.largest, self.num = 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if any(product in name for product in PRODUCTS):
            tensors = [arg for arg in args if isinstance(arg, torch.Tensor)]
            self.num += 1
            if any(tensor.dtype == torch.bfloat16 for tensor in tensors):
                numbers = sorted(tensor.numel() for tensor in tensors)
                self.largest = max(self.largest, 2 * numbers[-1] * tensors[0].shape[-1])
        return function(*args, **(kwargs or {}))


def run(*words):
    with Products() as products:
        done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exit_code == 0, f"{words}: {done.stderr} {done.exception!r}"
    return {"largest": products.largest, "num": products.num, "words": done.stderr}


folder = sys.argv[1]
corpus, tuned = f"{folder}/corpus", f"{folder}/run"
tiny = ("--size", "tiny", "--context-length", 128, "--num-latents", 32, "--batch-size", 2, "--validate-every", 2)
eager = ("sample", "--checkpoint", tuned, "--no-compile", "--length", 50, "-o", f"{folder}/b.mid")
ways = {
    "tokenize": ("tokenize", f"{folder}/music", "-o", corpus),
    "train": ("train", corpus, *tiny, "--steps", 4, "--recall", "--out", tuned, "--no-compile"),
    "resume": ("train", "--resume", tuned, "--steps", 6, "--no-compile"),
    "evaluate": ("evaluate", tuned, corpus, "--split", "train", "--max-pieces", 1),
    "sample": ("sample", "--checkpoint", "small", "--length", 300, "-o", f"{folder}/a.mid"),
    "sample without a compiler": (*eager, "--num-samples", 5),
    "sample int8 without a compiler": (*eager, "--num-samples", 5, "--precision", "int8"),
    "sample bf16": (*eager, "--precision", "bf16"),
    "doctor": ("doctor", "--size", "tiny"),
}
print(json.dumps({"units": cpu_bf16_units(), **{name: run(*words) for name, words in ways.items()}}))
