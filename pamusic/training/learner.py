"""Update a model from batches.

Knows a model, its optimisers and the arithmetic of a machine; knows no corpus, no run and no files. If the learner must
use fewer windows at once, or no compiler, it reports this through a callback.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from pamusic.device import Machine, keep_freed_memory
from pamusic.errors import PamusicError, UsageError, is_about_memory
from pamusic.model.architectures import build_model
from pamusic.model.config import ModelConfig
from pamusic.model.fields import by_field
from pamusic.training.config import TrainingConfig
from pamusic.training.data import NOT_SCORED, Batch
from pamusic.training.distributed import SINGLE_PROCESS, ProcessGroup, join
from pamusic.training.fsdp import gather, load_whole, shard, spread_optimizer_state
from pamusic.training.optimizers import Average, freeze_all_but, make_optimizers
from pamusic.training.schedule import rate


class Learner:
    """A model in training.

    Attributes:
        model: Model with float32 weights.
        training, machine: Settings of training, and the machine; `update` may have to change them.
        ranks: Processes that share the work of each update.
        rows: Rows of each batch that belong to this process.
        optimizers: Muon and AdamW, each for its part of the weights.
        scaler: Scaler of the loss in fp16; inactive in other precisions.
        average: Moving average of the weights, or None.
        step: Number of updates made.
        grad_norm: Norm of the gradients of the last update, before clipping.
    """

    def __init__(
        self,
        model: ModelConfig,
        training: TrainingConfig,
        machine: Machine,
        *,
        weights: Mapping[str, Tensor] | None = None,
        ranks: ProcessGroup = SINGLE_PROCESS,
        on_change: Callable[[str], None] = lambda words: None,
    ) -> None:
        """Build the model.

        Args:
            model: Shape of the model.
            training: Settings of training.
            machine: Device and arithmetic.
            weights: Initial weights by name; random ones by default.
            ranks: Processes that share the work of each update.
            on_change: Called with a message when `training` or `machine` had to be changed.

        Raises:
            UsageError: A batch cannot be shared equally among the ranks.
        """
        keep_freed_memory()
        torch.manual_seed(training.seed)
        self.ranks, self.rows = ranks, ranks.rows(training.batch_size)
        if training.batch_size % ranks.size or len(self.rows) % min(training.windows_at_once, len(self.rows)):
            raise UsageError(
                f"a batch of {training.batch_size} windows, {training.windows_at_once} at once, cannot be shared"
                f" equally among {ranks.size} processes; choose another --batch-size or --micro-batch"
            )
        self.training, self.machine, self._on_change = training, machine, on_change
        self.model = build_model(model).to(machine.device)
        self.model.recompute = training.recompute
        if weights is not None:
            own = self.model.state_dict().items()
            parts = {name: weight for name, weight in own if name.startswith(("ledger.", "recall."))}
            self.model.load_state_dict({**parts, **weights})  # a new ledger or recall does not change logits at first
        freeze_all_but(self.model, training.only)
        if training.shard and ranks.size > 1:
            join(ranks, machine.device)
            shard(self.model, ranks, machine.device)
        self.optimizers = make_optimizers(self.model, training)
        self.scaler = torch.amp.GradScaler(machine.device.type, enabled=machine.precision == "fp16")
        self.average = Average(self.model, training.ema_decay) if training.ema_decay else None
        self.step = 0
        self._shared: torch.nn.Module = self.model  # the model, or its DistributedDataParallel wrapper
        self._compiled = torch.compile(self._eager_loss, dynamic=False) if machine.compile else None

    def share_gradients(self) -> None:
        """Let the joined ranks sum their gradients, with DistributedDataParallel; FSDP does so by itself."""
        if self.ranks.size > 1 and self._shared is self.model and not self.training.shard:
            self._shared = DistributedDataParallel(self.model, gradient_as_bucket_view=True)

    def update(self, batch: Batch) -> Tensor:
        """Make one update on this rank's rows of a batch; return the mean nats per scored token of the whole batch.

        Raises:
            PamusicError: The model cannot be compiled, and there are several ranks.
        """
        share = rate(self.step, self.training)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * share
        nats = self._gradients(batch)
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.training.max_grad_norm)
        self.grad_norm = gather(norm)
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)
            optimizer.zero_grad(set_to_none=True)
        self.scaler.update()
        self.step += 1
        if self.average is not None:
            self.average.update(self.step)
        return nats

    def state_dict(self) -> dict[str, Any]:
        """Return the unsharded state that the next update depends on. With sharding, all ranks must call this."""
        return {
            "model": gather(self.model.state_dict()),
            "optimizers": [gather(optimizer.state_dict()) for optimizer in self.optimizers],
            "scaler": self.scaler.state_dict(),
            "average": None if self.average is None else gather(self.average.state_dict()),
            "step": self.step,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a state, but keep the learning rates of this learner's own configuration.

        Raises:
            KeyError, RuntimeError, ValueError: The state belongs to another model.
        """
        load_whole(self.model, state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            peaks = [group["peak_lr"] for group in optimizer.param_groups]
            optimizer.load_state_dict(saved)
            spread_optimizer_state(optimizer)
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["peak_lr"] = peak
        if state["scaler"]:  # empty if the scaler is inactive
            self.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.load_state_dict(state.get("average") or state["model"])
        self.step = state["step"]

    def _gradients(self, batch: Batch) -> Tensor:
        """Compute the gradients of a batch; return its mean nats per scored token.

        If memory runs out or the compiler fails (which can happen as late as the backward pass), compute the batch
        again with fewer windows at once or without the compiler, from the same random state.
        """
        from torch._dynamo.exc import TorchDynamoException

        self.model.train()
        while True:
            # Random draws depend only on the number of the step, so a resumed run draws the same.
            torch.manual_seed(self._seed_of_step)
            try:
                return self._accumulated(batch)
            except TorchDynamoException as error:
                change = self._without_compiler(" ".join(str(error).split())[:200])
            except (RuntimeError, MemoryError) as error:
                if not is_about_memory(error) or self.training.windows_at_once == 1 or self.ranks.size > 1:
                    raise
                change = self._with_fewer_windows()
            # After the handler, because the exception keeps the memory of the failed attempt alive.
            for optimizer in self.optimizers:
                optimizer.zero_grad(set_to_none=True)
            if self.machine.device.type == "cuda":
                torch.cuda.empty_cache()
            self._on_change(change)

    @property
    def _seed_of_step(self) -> int:
        return int(np.random.SeedSequence([self.training.seed, self.step, self.ranks.rank]).generate_state(1)[0])

    def _with_fewer_windows(self) -> str:
        at_once = self.training.windows_at_once
        fewer = max(size for size in range(1, at_once // 2 + 1) if self.training.batch_size % size == 0)
        self.training = replace(self.training, micro_batch=fewer)
        return f"memory ran out with {at_once} windows at once; continuing with {fewer}, same batch size"

    def _without_compiler(self, why: str) -> str:
        if self.ranks.size > 1:  # other ranks wait for gradients that were not computed
            raise PamusicError(f"the model cannot be compiled here ({why}); use --no-compile")
        self._compiled, self.machine = None, replace(self.machine, compile=False)
        return f"the model cannot be compiled here ({why}); continuing without, slower"

    def _accumulated(self, batch: Batch) -> Tensor:
        scored = self.ranks.sum(batch.num_scored.to(self.machine.device))
        nats = torch.zeros((), device=self.machine.device)
        parts = batch.micro(min(self.training.windows_at_once, len(batch.tokens)))
        for number, part in enumerate(parts, start=1):
            part = part.to(self.machine.device)
            with self._gradients_shared(number == len(parts)):
                recalled = self._recalled(part.tokens, part.targets.shape[1])
                with self.machine.autocast():
                    loss, part_nats = (self._compiled or self._eager_loss)(
                        part.tokens, part.targets, part.prefix_indices, recalled
                    )
                # DDP averages gradients over ranks, but we need their sum.
                self.scaler.scale(loss * self.ranks.size / scored).backward()
            nats += part_nats.detach()
        return self.ranks.sum(nats) / scored

    def _gradients_shared(self, now: bool) -> AbstractContextManager[object]:
        """Sum gradients over the ranks within the block if `now`; otherwise each rank accumulates its own."""
        if isinstance(self.model, FSDPModule):
            self.model.set_requires_gradient_sync(now)
        if isinstance(self._shared, DistributedDataParallel) and not now:
            return self._shared.no_sync()
        return nullcontext()

    def _recalled(self, tokens: Tensor, num_latents: int) -> Tensor | None:
        """Return the result of recall outside the compiled loss: it has no gradient, and loops."""
        recall = self.model.recall
        return None if recall is None else recall(tokens, num_latents)

    def _eager_loss(
        self, tokens: Tensor, targets: Tensor, prefix_indices: Tensor | None, recalled: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the loss (with z-loss) and the nats, both summed over scored tokens and their fields."""
        sizes = self.model.config.field_sizes
        following = targets.clamp(min=0) if sizes else None
        logits = self._shared(
            tokens, targets.shape[1], prefix_indices=prefix_indices, recalled=recalled, following=following
        ).float()
        losses, costs = [], []
        for of_field, target in by_field(logits, targets, sizes):
            log_z = of_field.logsumexp(-1)
            scored = target != NOT_SCORED
            chosen = of_field.gather(-1, target.clamp(min=0)[..., None])[..., 0]
            nats = ((log_z - chosen) * scored).sum()
            losses.append(nats + self.training.z_loss * (log_z.square() * scored).sum())
            costs.append(nats)
        if len(costs) == 1:
            return losses[0], costs[0]
        return torch.stack(losses).sum(), torch.stack(costs).sum()
