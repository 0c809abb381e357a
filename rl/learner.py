"""The trainer's side of a step: the actor's likelihoods, and the optimizer updates."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dina.errors import DinaError
from dina.model.modeling import DinaForConditionalGeneration
from dina.model.sampling import SamplingParams
from dina.model.stream import TokenStream, pad_rows
from dina.policies.corrections import importance_weights
from dina.policies.filters import Drop, combine_filters, entropy_filter, mismatch_filter
from dina.policies.losses import Denominators, LossConfig, policy_loss, resolve_channel_weights
from dina.policies.stats import StatSums
from dina.rl.config import TrainConfig
from dina.rollout.protocol import Sample, derive_seed
from dina.rollout.torch_engine import autocast


@dataclass
class Batch:
    """The samples of a step as tensors. ``B`` sequences, ``T`` positions, ``C`` channels.

    Attributes:
        stream: right-padded.
        sampler_logp: ``[B, T, C]`` as the rollout engine reported it.
        rewards: ``[B]``, NaN where a sample has none.
        advantages: ``[B]``.
        valid: ``[B]`` bool, False where a sample has no advantage.
        actor_logp, actor_entropy: ``[B, T, C]`` under the trainer's weights before the update.
        reference_logp: ``[B, T, C]`` under the reference policy, if there is one.
    """

    stream: TokenStream
    sampler_logp: Tensor
    rewards: Tensor
    advantages: Tensor
    valid: Tensor
    actor_logp: Tensor
    actor_entropy: Tensor
    reference_logp: Tensor | None = None

    def select(self, rows: Tensor) -> Batch:
        ref = None if self.reference_logp is None else self.reference_logp[rows]
        return Batch(
            self.stream.select(rows),
            self.sampler_logp[rows],
            self.rewards[rows],
            self.advantages[rows],
            self.valid[rows],
            self.actor_logp[rows],
            self.actor_entropy[rows],
            ref,
        )


@dataclass
class Dropped:
    """A sequence that a filter left out of the update: its row in the step's batch, and why."""

    row: int
    drop: Drop


@dataclass
class UpdateResult:
    """What the updates of one step did.

    Attributes:
        stats: merged over all micro-batches, minibatches and iterations.
        metrics: plain numbers that are not means over actions (gradient norm, learning rate, counts).
        dropped: sequences the filters left out in the first iteration.
        steps: optimizer steps taken.
        skipped: minibatches without anything to learn from.
    """

    stats: StatSums
    metrics: dict[str, float]
    dropped: list[Dropped]
    steps: int
    skipped: int


class Learner:
    """Owns the optimizer and updates the policy in place.

    Args:
        model: the policy.
        config: the run's recipe.
        sampling: the distribution that the rollouts are drawn from.
        reference: a frozen copy of the starting policy; needed for ``algorithm.beta > 0``.
    """

    def __init__(
        self,
        model: DinaForConditionalGeneration,
        config: TrainConfig,
        sampling: SamplingParams,
        reference: DinaForConditionalGeneration | None = None,
    ) -> None:
        self.model, self.config, self.sampling, self.reference = model, config, sampling, reference
        # Dropout stays off: it would change the probabilities that the ratio compares.
        model.eval()
        algorithm, optim = config.algorithm, config.optim
        self.weights = resolve_channel_weights(
            algorithm.level_weights, algorithm.text_weight, model.config.levels
        )
        self.loss = LossConfig(
            epsilon=algorithm.epsilon,
            epsilon_high=algorithm.epsilon_high,
            loss_type=algorithm.loss_type,
            importance_sampling_level=algorithm.importance_sampling_level,
            max_length=config.rollout.max_completion_length,
            beta=algorithm.beta,
            entropy_coef=algorithm.entropy_coef,
        )
        decayed, plain = _by_weight_decay(model)
        groups: list[dict[str, Any]] = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(
            groups,
            lr=optim.learning_rate,
            betas=(optim.adam_beta1, optim.adam_beta2),
            eps=optim.adam_epsilon,
            weight_decay=optim.weight_decay,
        )
        updates = config.run.max_steps * algorithm.num_iterations * algorithm.minibatches
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda n: _schedule(n, updates, optim.warmup_steps, optim.lr_scheduler_type)
        )

    def compare(self, samples: Sequence[Sample], rewards: Tensor, advantages: Tensor, valid: Tensor) -> Batch:
        """Recomputes every action's probability under the actor, beside the one the sampler reported."""
        pad = self.model.config.pad_token_id or 0
        stream = TokenStream.collate([s.stream for s in samples], pad).to(self.model.device)
        logp, entropy = self._likelihood(self.model, stream)
        reference = self._likelihood(self.reference, stream)[0] if self.reference is not None else None
        sampler = pad_rows([s.logps for s in samples], 0.0)
        device = self.model.device
        return Batch(
            stream,
            sampler.to(device),
            rewards.to(device),
            advantages.to(device),
            valid.to(device),
            logp,
            entropy,
            reference,
        )

    def update(self, batch: Batch, step: int) -> UpdateResult:
        """Runs ``num_iterations × minibatches`` updates; the minibatches of a step depend on its number alone."""
        algorithm = self.config.algorithm
        result = UpdateResult(StatSums(), {}, [], 0, 0)
        norms: list[float] = []
        order = torch.Generator().manual_seed(derive_seed(self.config.run.seed, "minibatches", step))
        for iteration in range(algorithm.num_iterations):
            rows = torch.randperm(batch.stream.batch_size, generator=order)
            for part in rows.chunk(algorithm.minibatches):
                norm = self._update_minibatch(batch.select(part), part, result, log_filters=iteration == 0)
                norms += [norm] if norm is not None else []
        result.metrics |= {
            "learning_rate": float(self.scheduler.get_last_lr()[0]),
            "updates/taken": float(result.steps),
            "updates/skipped": float(result.skipped),
        }
        if norms:
            result.metrics["grad_norm"] = sum(norms) / len(norms)
        return result

    def _update_minibatch(
        self, batch: Batch, rows: Tensor, result: UpdateResult, log_filters: bool
    ) -> float | None:
        """One optimizer step; ``None`` and no step if nothing was kept."""
        keep = self._filter(batch, rows, result, log_filters) & batch.valid
        denominators = Denominators.of(batch.stream.actions, keep)
        if denominators.empty:
            result.skipped += 1
            return None
        correction = self.config.correction
        importance = importance_weights(
            batch.sampler_logp,
            batch.actor_logp,
            batch.stream.actions,
            correction.mode,
            correction.clip_max,
            correction.clip_min,
        )
        result.stats.merge(importance.stats)
        self.optimizer.zero_grad(set_to_none=True)
        for micro in _micro_batches(batch.stream.batch_size, self.config.optim.micro_batch_size):
            piece = batch.select(micro)
            with self._precision():
                logp, entropy = self.model.log_probs_and_entropy(piece.stream, self.sampling)
            output = policy_loss(
                logp,
                piece.actor_logp,
                piece.advantages,
                piece.stream.actions,
                weights=self.weights,
                keep=keep[micro],
                config=self.loss,
                denominators=denominators,
                is_weights=importance.values[micro],
                ref_logp=piece.reference_logp,
                entropy=entropy,
            )
            output.loss.backward()
            result.stats.merge(output.stats)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optim.max_grad_norm)
        if not torch.isfinite(norm):
            raise DinaError(
                f"the gradient norm is {norm.item()}; lower optim.learning_rate or look at the step's samples"
            )
        self.optimizer.step()
        self.scheduler.step()
        result.steps += 1
        return norm.item()

    def _filter(self, batch: Batch, rows: Tensor, result: UpdateResult, log: bool) -> Tensor:
        """``keep`` ``[B]`` of the two sequence filters (paper §6.1), whose statistics are logged even when off."""
        filters, actions = self.config.filters, batch.stream.actions
        draws = actions[..., 1:].flatten(1).any(1)
        results = [
            entropy_filter(batch.actor_entropy, actions, filters.entropy_k, strata=draws.long()),
            mismatch_filter(
                batch.sampler_logp,
                batch.actor_logp,
                actions,
                filters.mismatch_tau,
                filters.mismatch_thresholds,
            ),
        ]
        combined = combine_filters(results, batch.rewards)
        if log:
            result.stats.merge(combined.stats)
            result.dropped += [Dropped(int(rows[drop.sequence]), drop) for drop in combined.drops]
        return combined.keep

    def _precision(self) -> torch.autocast:
        return autocast(self.model.device, self.config.run.dtype)

    @torch.no_grad()
    def _likelihood(self, model: DinaForConditionalGeneration, stream: TokenStream) -> tuple[Tensor, Tensor]:
        with self._precision():
            pieces = [
                model.log_probs_and_entropy(stream.select(rows), self.sampling)
                for rows in _micro_batches(stream.batch_size, self.config.optim.micro_batch_size)
            ]
        logp, entropy = zip(*pieces, strict=True)
        return torch.cat(logp), torch.cat(entropy)


def _micro_batches(count: int, size: int) -> Iterator[Tensor]:
    yield from torch.arange(count).split(size)


def _by_weight_decay(model: DinaForConditionalGeneration) -> tuple[list[Tensor], list[Tensor]]:
    """Matrices, and everything else (norm weights and biases are not decayed)."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim <= 1]


def _schedule(update: int, total: int, warmup: int, kind: str) -> float:
    """Factor of the learning rate at an update: linear warm-up, then ``kind``."""
    if update < warmup:
        return (update + 1) / warmup
    share = min(1.0, (update - warmup) / max(1, total - warmup))
    if kind == "linear":
        return 1 - share
    return 0.5 * (1 + math.cos(math.pi * share)) if kind == "cosine" else 1.0
