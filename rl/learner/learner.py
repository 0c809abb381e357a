"""The trainer's side of a step: the actor's likelihoods, and the optimizer updates."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from dina.errors import DinaError
from dina.model.checkpoint import Checkpoint
from dina.model.modeling import DinaForConditionalGeneration
from dina.model.sampling import SamplingParams
from dina.model.stream import TokenStream, pad_rows
from dina.policies.corrections import importance_weights
from dina.policies.filters import combine_filters, entropy_filter, mismatch_filter
from dina.policies.losses import Denominators, LossConfig, policy_loss, resolve_channel_weights
from dina.policies.stats import StatSums
from dina.rl.learner.adapters import add_adapters
from dina.rl.learner.backbone import decoder_layers, recomputed
from dina.rl.learner.batch import Batch, Dropped, Measured, UpdateResult
from dina.rl.learner.ranks import Ranks
from dina.rl.learner.state import LearnerState
from dina.rl.learner.updaters import Likelihood, PlainUpdater, Updater, adamw, scheduler
from dina.rl.recipe.config import TrainConfig
from dina.rollout.protocol import Sample, derive_seed
from dina.rollout.torch_engine import autocast


class Learner:
    """Owns the optimizer and updates the policy in place, alone or as one rank of a group (``init_rank``).

    Every rank is given the same samples and makes the same calls. It computes its share of the rows; likelihoods
    are exchanged, so that all ranks filter alike and divide by the whole minibatch, and gradients are added up.

    Args:
        checkpoint_or_model: the policy. ``save`` writes a whole checkpoint folder if it is given one.
        config: the run's recipe.
        sampling: the distribution that the rollouts are drawn from.
        reference: a frozen copy of the starting policy; needed for ``algorithm.beta > 0``.

    Raises:
        DinaError: the recipe asks for another number of ranks, for a package that is not installed, or for what
            this backbone cannot do.
    """

    def __init__(
        self,
        checkpoint_or_model: Checkpoint | DinaForConditionalGeneration,
        config: TrainConfig,
        sampling: SamplingParams,
        reference: DinaForConditionalGeneration | None = None,
    ) -> None:
        self.checkpoint: Checkpoint | None = None
        model = checkpoint_or_model
        if isinstance(model, Checkpoint):
            self.checkpoint, model = model, model.model
        self.model, self.config, self.sampling, self.reference = model, config, sampling, reference
        self.device, self.ranks = model.device, Ranks.current()
        # Dropout stays off: it would change the probabilities that the ratio compares.
        model.eval()
        sampling.check_levels(model.config.levels)
        algorithm, optim = config.algorithm, config.optim
        self.weights_of_channels = resolve_channel_weights(
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
        self._recomputed = self._prepare_layers()
        self.updater = self._updater()
        updates = config.run.max_steps * algorithm.num_iterations * algorithm.minibatches
        self.scheduler = scheduler(self.updater.optimizer, optim, updates)
        self.state = LearnerState(
            model, self.updater, self.scheduler, self.ranks, config.learner, self.checkpoint
        )

    def learn(
        self, samples: Sequence[Sample], rewards: Tensor, advantages: Tensor, valid: Tensor, step: int
    ) -> UpdateResult:
        """``compare``, then ``update``; the result says how long each took.

        Args:
            samples: all of the step, the same on every rank.
            rewards, advantages, valid: ``[B]``, see :class:`Batch`.
            step: number of the step, from which the minibatches follow.
        """
        start = time.perf_counter()
        batch = self.compare(samples, rewards, advantages, valid)
        compared = time.perf_counter()
        result = self.update(batch, step)
        result.seconds = {"compare": compared - start, "update": time.perf_counter() - compared}
        return result

    def compare(self, samples: Sequence[Sample], rewards: Tensor, advantages: Tensor, valid: Tensor) -> Batch:
        """Recomputes every action's probability under the actor, beside the one the sampler reported."""
        pad, device = self.model.config.pad_token_id or 0, self.device
        stream = TokenStream.collate([s.stream for s in samples], pad).to(device)
        logp, entropy = self._all_rows(self.updater.likelihood, stream)
        reference = None
        if self.reference is not None:
            reference = self._all_rows(self._likelihood_under(self.reference), stream)[0]
        sampler = pad_rows([s.logps for s in samples], 0.0)
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
        result, own = UpdateResult(StatSums(), {}, [], 0, 0), StatSums()
        norms: list[float] = []
        order = torch.Generator().manual_seed(derive_seed(self.config.run.seed, "minibatches", step))
        for iteration in range(algorithm.num_iterations):
            rows = torch.randperm(batch.stream.batch_size, generator=order)
            for part in rows.chunk(algorithm.minibatches):
                log_filters = iteration == 0
                norm = self._update_minibatch(batch.select(part), part, result, own, log_filters)
                norms += [norm] if norm is not None else []
        # What the filters saw is the same on all ranks, what the losses saw is each rank's own.
        result.stats = result.stats.merge(self.ranks.merge(own, self.device)).cpu()
        result.metrics |= {
            "learning_rate": float(self.scheduler.get_last_lr()[0]),
            "updates/taken": float(result.steps),
            "updates/skipped": float(result.skipped),
        }
        if norms:
            result.metrics["grad_norm"] = sum(norms) / len(norms)
        return result

    def log_probs(self, stream: TokenStream) -> Tensor:
        """``[B, T, C]`` log-probabilities of the stream's actions under the weights as they are, on all ranks."""
        return self._all_rows(self.updater.likelihood, stream.to(self.device))[0]

    def weights(self, everywhere: bool = False) -> Iterator[tuple[str, Tensor]]:
        """The policy's weights one by one, under a checkpoint's names, whole and with adapters merged in.

        All ranks must iterate to the end; rank 0 alone is given tensors, or all are. They may share the model's
        memory, so take what you need before the next update.
        """
        return self.state.weights(everywhere)

    def save(self, folder: Path) -> None:
        """Writes a checkpoint folder, and below it ``learner/``: what ``restore`` needs to go on alike.

        All ranks call it, with the same folder on a file system that they share.
        """
        self.state.save(folder)

    def restore(self, folder: Path) -> None:
        """Continues from what ``save`` wrote. All ranks call it.

        Raises:
            DinaError: the folder is damaged, or was written by another number of ranks or with other adapters.
        """
        self.state.restore(folder)

    def _update_minibatch(
        self, batch: Batch, rows: Tensor, result: UpdateResult, own: StatSums, log_filters: bool
    ) -> float | None:
        """One optimizer step; ``None`` and no step if nothing was kept."""
        keep = self._filter(batch, rows, result, log_filters) & batch.valid
        # A rounding error must not make one rank skip what another waits for.
        keep = self.ranks.take_first_(keep)
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
        self.updater.begin()
        for micro, real in self._micro_batches(batch.stream):
            piece = batch.select(micro)
            with recomputed(self._recomputed):
                logp, entropy = self.updater.likelihood(piece.stream)
            output = policy_loss(
                logp,
                piece.actor_logp,
                piece.advantages,
                piece.stream.actions,
                weights=self.weights_of_channels,
                keep=keep[micro] & real.to(keep.device),
                config=self.loss,
                denominators=denominators,
                is_weights=importance.values[micro],
                ref_logp=piece.reference_logp,
                entropy=entropy,
            )
            self.updater.backward(output.loss)
            own.merge(output.stats)
        norm = self.updater.step()
        self.scheduler.step()
        result.steps += 1
        return norm

    def _filter(self, batch: Batch, rows: Tensor, result: UpdateResult, log: bool) -> Tensor:
        """``keep`` ``[B]`` of the two sequence filters (paper §6.1), whose statistics are logged even when off."""
        filters, actions = self.config.filters, batch.stream.actions
        draws = actions[..., 1:].flatten(1).any(1)
        by_entropy = entropy_filter(batch.actor_entropy, actions, filters.entropy_k, strata=draws.long())
        by_mismatch = mismatch_filter(
            batch.sampler_logp, batch.actor_logp, actions, filters.mismatch_tau, filters.mismatch_thresholds
        )
        combined = combine_filters([by_entropy, by_mismatch], batch.rewards)
        if log:
            result.stats.merge(combined.stats)
            result.dropped += [Dropped(int(rows[drop.sequence]), drop) for drop in combined.drops]
            measured = map(Measured, by_entropy.values.tolist(), by_mismatch.worst)
            result.measured |= dict(zip(rows.tolist(), measured, strict=True))
        return combined.keep

    def _micro_batches(self, stream: TokenStream) -> Iterator[tuple[Tensor, Tensor]]:
        """This rank's rows of a minibatch, and which of them count."""
        uses = _uses(stream).cpu()
        for rows, real in self.ranks.micro_batches(stream.batch_size, self.config.optim.micro_batch_size):
            if self.config.learner.zero_stage:
                # ZeRO exchanges gradients in the order in which they arise, so all ranks must use the same parts.
                missing = uses.any(0) & ~uses[rows].any(0)
                extra = uses.int().argmax(0)[missing].unique()
                rows, real = torch.cat([rows, extra]), torch.cat([real, torch.zeros_like(extra).bool()])
            yield rows, real

    @torch.no_grad()
    def _all_rows(self, likelihood: Likelihood, stream: TokenStream) -> tuple[Tensor, Tensor]:
        """Each rank computes its rows, and all get all of them."""
        count, size = stream.batch_size, self.config.optim.micro_batch_size
        pieces = [likelihood(stream.select(rows)) for rows, _ in self.ranks.micro_batches(count, size)]
        logp, entropy = (torch.cat(part) for part in zip(*pieces, strict=True))
        return self.ranks.gather_rows(logp, count), self.ranks.gather_rows(entropy, count)

    def _likelihood_under(self, model: DinaForConditionalGeneration) -> Likelihood:
        def likelihood(stream: TokenStream) -> tuple[Tensor, Tensor]:
            with autocast(self.device, self.config.run.dtype):
                return model.log_probs_and_entropy(stream, self.sampling)

        return likelihood

    def _prepare_layers(self) -> list[torch.nn.Module]:
        """Puts adapters in; returns the layers that are to be recomputed."""
        learner = self.config.learner
        if learner.ranks != self.ranks.size:
            raise DinaError(
                f"learner.ranks is {learner.ranks}, but this process is one of {self.ranks.size}; let `dina train` "
                "start the ranks, or call init_rank in each"
            )
        layers = decoder_layers(self.model) if learner.gradient_checkpointing else []
        if learner.gradient_checkpointing and not layers:
            raise DinaError(
                "this backbone cannot recompute its layers; set learner.gradient_checkpointing to false"
            )
        if learner.lora is not None:
            add_adapters(self.model, learner.lora, derive_seed(self.config.run.seed, "adapters"))
        return layers

    def _updater(self) -> Updater:
        optim, stage = self.config.optim, self.config.learner.zero_stage
        optimizer = adamw(self.model, optim)
        likelihood, limit = self._likelihood_under(self.model), optim.max_grad_norm
        if not stage:
            return PlainUpdater(self.model, likelihood, optimizer, limit, self.ranks)
        from dina.rl.learner.zero import ZeroUpdater

        return ZeroUpdater(
            self.model, likelihood, optimizer, limit, self.ranks, stage, optim.micro_batch_size
        )


def _uses(stream: TokenStream) -> Tensor:
    """``[B, 3]``: which parts of the model a row uses: text head, depth head, pre-buffer."""
    acts = stream.actions.any(1)
    return torch.stack([acts[:, 0], acts[:, 1:].any(1), (stream.codes >= 0).flatten(1).any(1)], 1)
