"""Make optimiser updates: a batch in, better weights out.

Knows a model, its optimisers and the arithmetic of a machine; knows no corpus, no run and no files. A callback gets
what the learner had to change on the way: fewer windows at once, or no compiler.
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
from pamusic.model.config import ModelConfig
from pamusic.model.fields import by_field
from pamusic.model.perceiver_ar import PerceiverAR
from pamusic.training.config import TrainingConfig
from pamusic.training.data import NOT_SCORED, Batch
from pamusic.training.distributed import SINGLE_PROCESS, ProcessGroup, join
from pamusic.training.fsdp import gather, load_whole, shard, spread_optimizer_state
from pamusic.training.optimizers import Average, freeze_all_but, make_optimizers
from pamusic.training.schedule import rate


class Learner:
    """A model in training.

    Attributes:
        model: its weights are float32.
        training, machine: how it learns and what it computes with; `update` may change them where it must.
        ranks: the processes that share the work of each update.
        rows: the rows of each batch that belong to this process.
        optimizers: Muon and AdamW, each for its part of the weights.
        scaler: scales the loss in fp16; elsewhere it does nothing.
        average: the moving average of the weights, or None.
        step: updates made.
        grad_norm: norm of the gradients of the last update, before clipping.
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
            model: its shape.
            training: how it learns.
            machine: what it computes with.
            weights: the weights it begins with, by name; random ones by default.
            ranks: the processes that share the work of each update.
            on_change: is called with a message when `training` or `machine` had to be changed.

        Raises:
            UsageError: a batch cannot be shared equally among the ranks.
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
        self.model = PerceiverAR(model).to(machine.device)
        self.model.recompute = training.recompute
        if weights is not None:
            own = self.model.state_dict().items()
            parts = {name: weight for name, weight in own if name.startswith(("ledger.", "recall."))}
            self.model.load_state_dict({**parts, **weights})  # a part that the weights lack changes no logit at first
        freeze_all_but(self.model, training.only)
        if training.shard and ranks.size > 1:
            join(ranks, machine.device)
            shard(self.model, ranks, machine.device)
        self.optimizers = make_optimizers(self.model, training)
        self.scaler = torch.amp.GradScaler(machine.device.type, enabled=machine.precision == "fp16")
        self.average = Average(self.model, training.ema_decay) if training.ema_decay else None
        self.step = 0
        self._shared: torch.nn.Module = self.model  # what computes: the model, or what shares its gradients
        self._compiled = torch.compile(self._eager_loss, dynamic=False) if machine.compile else None

    def share_gradients(self) -> None:
        """Let the joined ranks sum their gradients, with DistributedDataParallel; FSDP does so by itself."""
        if self.ranks.size > 1 and self._shared is self.model and not self.training.shard:
            self._shared = DistributedDataParallel(self.model, gradient_as_bucket_view=True)

    def update(self, batch: Batch) -> Tensor:
        """Make one update on this rank's rows of a batch; return the mean nats per scored token of the whole batch.

        Raises:
            PamusicError: with several ranks, the model cannot be compiled.
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
        """Return all that the next update depends on, whole; where weights are spread, all ranks must call it."""
        return {
            "model": gather(self.model.state_dict()),
            "optimizers": [gather(optimizer.state_dict()) for optimizer in self.optimizers],
            "scaler": self.scaler.state_dict(),
            "average": None if self.average is None else gather(self.average.state_dict()),
            "step": self.step,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state, at the rates of this learner's own configuration.

        Raises:
            KeyError, RuntimeError, ValueError: the state is another model's.
        """
        load_whole(self.model, state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            peaks = [group["peak_lr"] for group in optimizer.param_groups]
            optimizer.load_state_dict(saved)
            spread_optimizer_state(optimizer)
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["peak_lr"] = peak
        if state["scaler"]:  # empty where it was not needed
            self.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.load_state_dict(state.get("average") or state["model"])
        self.step = state["step"]

    def _gradients(self, batch: Batch) -> Tensor:
        """Leave the gradients of a batch in the weights; return its mean nats per scored token.

        If memory runs out or the compiler fails (for the backward pass it may fail late), the batch is computed again
        with fewer windows at once or without the compiler, from the same random state.
        """
        from torch._dynamo.exc import TorchDynamoException

        self.model.train()
        while True:
            # What a step draws depends on its number alone, so that a resumed run draws the same.
            torch.manual_seed(self._seed_of_step)
            try:
                return self._accumulated(batch)
            except TorchDynamoException as error:
                change = self._without_compiler(" ".join(str(error).split())[:200])
            except (RuntimeError, MemoryError) as error:
                if not is_about_memory(error) or self.training.windows_at_once == 1 or self.ranks.size > 1:
                    raise
                change = self._with_fewer_windows()
            # Behind the handler: its exception holds on to the memory of what failed.
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
        return f"memory ran out with {at_once} windows at once; going on with {fewer}, to the same batch"

    def _without_compiler(self, why: str) -> str:
        if self.ranks.size > 1:  # the others are waiting for gradients that were not computed
            raise PamusicError(f"the model cannot be compiled here ({why}); train it with --no-compile")
        self._compiled, self.machine = None, replace(self.machine, compile=False)
        return f"the model cannot be compiled here, so it trains more slowly without ({why})"

    def _accumulated(self, batch: Batch) -> Tensor:
        scored = self.ranks.sum(batch.num_scored.to(self.machine.device))
        nats = torch.zeros((), device=self.machine.device)
        parts = batch.micro(min(self.training.windows_at_once, len(batch.tokens)))
        for number, part in enumerate(parts, start=1):
            part = part.to(self.machine.device)
            with self._gradients_shared(number == len(parts)):
                recalled = self._recalled(part.tokens)
                with self.machine.autocast():
                    loss, part_nats = (self._compiled or self._eager_loss)(
                        part.tokens, part.targets, part.prefix_indices, recalled
                    )
                # DDP averages over ranks what is to be summed over them.
                self.scaler.scale(loss * self.ranks.size / scored).backward()
            nats += part_nats.detach()
        return self.ranks.sum(nats) / scored

    def _gradients_shared(self, now: bool) -> AbstractContextManager[object]:
        """Within the block sum gradients over the ranks if `now`; else each rank keeps its own until it does."""
        if isinstance(self.model, FSDPModule):
            self.model.set_requires_gradient_sync(now)
        if isinstance(self._shared, DistributedDataParallel) and not now:
            return self._shared.no_sync()
        return nullcontext()

    def _recalled(self, tokens: Tensor) -> Tensor | None:
        """Return what the model recalls of its tokens: it has no gradient, and its loops are not for the compiler."""
        recall = self.model.recall
        return None if recall is None else recall(tokens, min(self.model.config.num_latents, tokens.shape[1]))

    def _eager_loss(
        self, tokens: Tensor, targets: Tensor, prefix_indices: Tensor | None, recalled: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return two sums over scored tokens and their fields: the loss (with z-loss), and nats."""
        sizes = self.model.config.field_sizes
        following = targets.clamp(min=0) if sizes else None
        logits = self._shared(tokens, prefix_indices=prefix_indices, recalled=recalled, following=following).float()
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
