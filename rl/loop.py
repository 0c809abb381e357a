"""The training loop: generate → score → compare → filter and update → sync → log."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from dina.errors import DinaError
from dina.eval.benchmark import BenchmarkSettings, run_benchmark
from dina.eval.judge import RewardJudge
from dina.eval.report import write_report
from dina.model.processor import DinaProcessor
from dina.policies.advantages import Advantages, group_advantages
from dina.rewards.guards import batch_guards
from dina.rl.batches import Batches
from dina.rl.checkpoints import Checkpoints, find_checkpoint
from dina.rl.data import PromptOrder, check_prompt_lengths, load_prompts
from dina.rl.environment import write_environment
from dina.rl.local_roles import open_local_roles
from dina.rl.metrics import MetricsLogger
from dina.rl.recipe.config import TrainConfig
from dina.rl.recipe.load import dump_recipe
from dina.rl.refill import Refill
from dina.rl.resume import refuse_other_settings, run_folder
from dina.rl.roles import Roles, rollout_sampling
from dina.rl.run_state import load_run_state, save_run_state
from dina.rl.runtime import settle
from dina.rl.step_log import StepLog, StepTimes, completion_metrics
from dina.rl.stop_signal import StopSignal
from dina.rl.task_metrics import task_metrics
from dina.rl.weight_probe import WeightProbe
from dina.rollout.protocol import Prompt, Sample


class Trainer:
    """One run. ``step`` is the algorithm, the rest is what it needs."""

    def __init__(self, config: TrainConfig, folder: Path) -> None:
        self.config, self.folder = config, folder
        self.sampling = rollout_sampling(config.rollout)
        data = config.data
        self.prompts = load_prompts(data.train, renderer=data.renderer, tags=data.tags, grid=data.grid)
        self.order = PromptOrder(self.prompts, config.run.seed, data.sampling, data.difficulty)
        self.log = StepLog(config, folder)
        self.judge: RewardJudge | None = None
        self.finished = 0
        self.skipped_in_a_row = 0
        self.roles = open_roles(config, folder)
        try:
            self._check_prompts(self.prompts)
            self.batches = Batches(config, self.roles.rollout, self.roles.scorer, self.order, self.sampling)
            self.refill = Refill(config, self.roles.rollout, self.roles.scorer, self.prompts, self.sampling)
            self.probe = WeightProbe(self.roles.rollout, self.roles.learner, self.sampling, config.run.dtype)
        except BaseException:
            self.close()
            raise

    def step(self, number: int) -> dict[str, float]:
        """One step of multi-level GRPO; returns its metrics."""
        times, learner = StepTimes(), self.roles.learner
        start = time.perf_counter()
        with times.phase("generate"):
            samples = self._generate(number)  # complete groups are scored while others are still drawn
        with times.phase("score"):
            scored = self.roles.scorer.collect(number)
            samples, scored, refilled = self.refill(number, samples, scored)
            staleness = self.batches.staleness(samples)
            probe = self.probe.check(max(sample.weight_version for sample in samples))
        with times.phase("learn"):
            rewards = torch.tensor([math.nan if r is None else r for r in scored.total], dtype=torch.float64)
            advantages = self._advantages(samples, rewards)
            update = learner.learn(samples, rewards, advantages.values.float(), advantages.valid, number)
            times.seconds |= update.seconds
        with times.phase("sync"):
            probe |= self._sync(number, samples[0])
        self.skipped_in_a_row = 0 if update.steps else self.skipped_in_a_row + update.skipped
        self.log.save(number, samples, scored, update)
        return {
            **advantages.stats.compute(),
            **scored.metrics(),
            **update.stats.compute(),
            **update.metrics,
            **completion_metrics(samples),
            **task_metrics(samples, scored.total, update),
            **refilled,
            **(batch_guards(samples, scored) if self.config.guards else {}),
            **staleness,
            **probe,
            **self.roles.rollout.faults(),
            **self.roles.scorer.faults(),
            **times.metrics(),
            "step_time": time.perf_counter() - start,
        }

    def evaluate(self) -> dict[str, float]:
        """Scores the weights as they are on ``data.eval``: ``eval/overall``, ``eval/<tag>`` and more, in 0..1."""
        data = self.config.data
        assert data.eval is not None
        if self.judge is None:
            own = data.eval_reward.spec() if data.eval_reward else None
            self.judge = RewardJudge(data.detector, data.detector, reward=own)
        prompts = load_prompts(data.eval, renderer=data.renderer, grid=data.grid)
        settings = BenchmarkSettings(pictures=self.sampling)
        return run_benchmark(self.roles.rollout, prompts, self.judge, settings).metrics()

    def _check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Refuses prompts that cannot fit before anything is computed."""
        if limit := self.config.data.max_prompt_length:
            encode = DinaProcessor.from_pretrained(self.config.model.path).encode_text
            check_prompt_lengths(prompts, lambda p: len(encode(p.text)), limit)
        self.roles.rollout.check_lengths(prompts, self.sampling)

    def _generate(self, number: int) -> list[Sample]:
        """``prompts_per_step`` groups of ``num_generations`` samples, in the order of their requests."""
        self.batches.admit()
        samples = self.batches.take(number)
        if self.probe.version is None:  # the run's first step, or the first since it was resumed
            self.probe.start(samples[0].stream, self.batches.version)
        return samples

    def _advantages(self, samples: Sequence[Sample], rewards: Tensor) -> Advantages:
        groups = torch.tensor([s.request.group for s in samples])
        return group_advantages(rewards, groups, self.config.algorithm.scale_rewards)

    def _sync(self, version: int, sample: Sample) -> dict[str, float]:
        """Sends the new weights to the rollout workers, and asks them about a sample that they know."""
        self.roles.rollout.update_weights(self.roles.learner.weights(), version)
        self.batches.version = version
        self.probe.start(sample.stream, version)
        # Ahead of learning, the workers are busy: waiting for their answer would stop the overlap.
        return {} if self.batches.lag else self.probe.check(version)

    def stop_if_nothing_is_learnt(self) -> None:
        """Raises: DinaError: too many minibatches in a row took no optimizer step."""
        limit = self.config.run.max_skipped_updates
        if self.skipped_in_a_row >= limit:
            raise DinaError(
                f"{self.skipped_in_a_row} minibatches in a row had no sequence to learn from (limit "
                f"run.max_skipped_updates={limit}); loosen filters.entropy_k and filters.mismatch_tau, or look "
                f"for failing rewards; the reasons are in {self.folder / 'samples'}"
            )

    def save(self, folder: Path) -> None:
        """Writes the whole state: a checkpoint that can be evaluated, and what resuming needs beside it."""
        self.roles.learner.save(folder)
        self.batches.save(folder)
        self.probe.check(self.batches.version)  # what was drawn ahead must be of the learner's weights
        save_run_state(
            folder,
            {
                "finished": self.finished,
                "skipped_in_a_row": self.skipped_in_a_row,
                "order": self.order.state_dict(),
                "refill": self.refill.state_dict(),
                "weight_version": self.batches.version,
            },
        )

    def restore(self, folder: Path) -> None:
        """Continues from a folder that ``save`` wrote."""
        self.roles.learner.restore(folder)
        state = load_run_state(folder)
        self.order.load_state_dict(state["order"])
        self.refill.load_state_dict(state.get("refill", {}))
        self.finished = state["finished"]
        self.skipped_in_a_row = state["skipped_in_a_row"]
        self.roles.rollout.update_weights(self.roles.learner.weights(), state["weight_version"])
        self.batches.restore(folder, self.finished, state["weight_version"])

    def close(self) -> None:
        if self.judge is not None:
            self.judge.close()
        self.roles.close()


def open_roles(config: TrainConfig, folder: Path) -> Roles:
    """The roles as the recipe's ``rl.runner`` wants them: in this process, or as Ray actors.

    Raises:
        DinaError: the runner's packages are missing, or what the recipe asks for is not to be had.
    """
    settle(config)
    if config.rl.runner == "local":
        return open_local_roles(config)
    if find_spec("ray") is None:
        raise DinaError("rl.runner=ray needs Ray: pip install 'dina-rl[ray]', or set rl.runner=local")
    from dina.rl.cluster.roles import open_ray_roles

    return open_ray_roles(config, folder)


def train(config: TrainConfig, resume: Path | None = None) -> Path:
    """Runs a recipe to its end and returns the run's folder.

    Ctrl-C finishes the step, saves a checkpoint and stops; a second one stops at once, and the run goes on from
    its last checkpoint.

    Args:
        resume: a run's folder or one of its checkpoints; the run continues with identical numbers.

    Raises:
        DinaError: anything the user can mend, before or during the run. Earlier checkpoints stay intact.
        KeyboardInterrupt: stopped by Ctrl-C, after saving.
    """
    Console(stderr=True).print(settle(config), highlight=False, soft_wrap=True)
    folder = Path(config.run.output_dir) if resume is None else run_folder(resume)
    config.run.output_dir = str(folder)
    checkpoints = Checkpoints(folder / "checkpoints", keep=config.run.save_total_limit)
    if resume is None and checkpoints.steps():
        raise DinaError(f"{folder} holds a run; resume it with --resume {folder}, or set run.output_dir")
    if resume is not None:
        refuse_other_settings(config, folder / "config.yaml")
    checkpoint = find_checkpoint(resume) if resume is not None and checkpoints.steps() else None
    trainer = Trainer(config, folder)
    stop = StopSignal()
    try:
        if checkpoint is not None:
            trainer.restore(checkpoint)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(dump_recipe(config), encoding="utf-8")
        write_environment(folder)
        with MetricsLogger(folder, config, trainer.finished) as metrics, stop:
            _run(trainer, checkpoints, metrics, stop)
    finally:
        trainer.close()
        if (folder / "config.yaml").is_file():
            write_report(folder, run=folder)
    if trainer.finished < config.run.max_steps:
        raise KeyboardInterrupt(f"stopped after step {trainer.finished}; go on with --resume {folder}")
    return folder


def _run(trainer: Trainer, checkpoints: Checkpoints, metrics: MetricsLogger, stop: StopSignal) -> None:
    run, data = trainer.config.run, trainer.config.data
    while trainer.finished < run.max_steps and not stop.requested:
        number = trainer.finished + 1
        values = trainer.step(number)
        trainer.finished = number
        score = None
        if data.eval_steps and (number % data.eval_steps == 0 or number == run.max_steps):
            values |= trainer.evaluate()
            score = values.get("eval/overall")
        metrics.log(number, values)
        trainer.stop_if_nothing_is_learnt()
        due = run.save_steps and number % run.save_steps == 0
        if due or number == run.max_steps or stop.requested:
            checkpoints.save(number, trainer.save, score)
        metrics.stop_on_alert()
