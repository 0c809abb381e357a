"""The training loop: generate → score → compare → filter and update → sync → log."""

from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor
from transformers import set_seed

from dina.errors import DinaError
from dina.eval.benchmark import BenchmarkSettings, run_benchmark
from dina.eval.judge import RewardJudge
from dina.eval.report import write_report
from dina.eval.runs import save_samples
from dina.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from dina.model.sampling import SamplingParams
from dina.policies.advantages import Advantages, group_advantages
from dina.rewards.guards import batch_guards
from dina.rewards.protocol import RewardSpec, SuiteResult
from dina.rewards.suite import RewardSuite
from dina.rl.checkpoints import Checkpoints, find_checkpoint
from dina.rl.config import TrainConfig
from dina.rl.data import PromptOrder, check_prompt_lengths, load_prompts
from dina.rl.environment import pick_device, write_environment
from dina.rl.learner import Learner, UpdateResult
from dina.rl.metrics import MetricsLogger
from dina.rl.recipe import dump_recipe
from dina.rl.resume import refuse_other_settings, run_folder
from dina.rl.training_state import load_training_state, save_training_state
from dina.rollout.protocol import Prompt, Request, Sample, derive_seed
from dina.rollout.torch_engine import TorchEngine

log = logging.getLogger(__name__)


@dataclass
class StepTimes:
    """Seconds of each phase of a step."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def metrics(self) -> dict[str, float]:
        return {f"timing_s/{name}": value for name, value in self.seconds.items()}


class Trainer:
    """One run. ``step`` is the algorithm, the rest is what it needs."""

    def __init__(self, config: TrainConfig, folder: Path) -> None:
        self.config, self.folder = config, folder
        if config.run.threads:
            torch.set_num_threads(config.run.threads)
        set_seed(config.run.seed)
        rollout, algorithm = config.rollout, config.algorithm
        self.sampling = SamplingParams(
            temperature=rollout.temperature,
            code_temperature=rollout.code_temperature,
            top_k=rollout.top_k,
            top_p=rollout.top_p,
            code_top_k=rollout.top_k,
            code_top_p=rollout.top_p,
            guidance_scale=rollout.guidance_scale,
            max_new_tokens=rollout.max_completion_length,
        )
        self.device = pick_device(config.run.device)
        self.checkpoint = self._load(Path(config.model.path))
        reference = self._load(Path(config.model.path)).model if algorithm.beta > 0 else None
        self.engine = TorchEngine(self.checkpoint, rollout.batch_size, config.run.dtype)
        self.learner = Learner(self.checkpoint.model, config, self.sampling, reference)
        data = config.data
        self.prompts = load_prompts(data.train, renderer=data.renderer, tags=data.tags, grid=data.grid)
        self._check_prompts(self.prompts)
        self.order = PromptOrder(self.prompts, config.run.seed, data.sampling)
        self.suite = RewardSuite([RewardSpec(**spec.model_dump()) for spec in config.rewards])
        self.judge: RewardJudge | None = None
        self.finished = 0
        self.skipped_in_a_row = 0

    def step(self, number: int) -> dict[str, float]:
        """One step of multi-level GRPO; returns its metrics."""
        times = StepTimes()
        start = time.perf_counter()
        with times.phase("generate"):
            samples = self._generate(number)
        with times.phase("score"):
            scored = self.suite.score(samples, step=number)
        with times.phase("compare"):
            rewards = torch.tensor([math.nan if r is None else r for r in scored.total], dtype=torch.float64)
            advantages = self._advantages(samples, rewards)
            batch = self.learner.compare(samples, rewards, advantages.values.float(), advantages.valid)
        with times.phase("update"):
            update = self.learner.update(batch, number)
        with times.phase("sync"):
            self.engine.update_weights(self.checkpoint.model.named_parameters(), number)
        self.skipped_in_a_row = 0 if update.steps else self.skipped_in_a_row + update.skipped
        metrics = {
            **advantages.stats.compute(),
            **scored.metrics(),
            **update.stats.compute(),
            **update.metrics,
            **completion_metrics(samples),
            **(batch_guards(samples, scored) if self.config.guards else {}),
        }
        self._save_samples(number, samples, scored, update)
        return {**metrics, **times.metrics(), "step_time": time.perf_counter() - start}

    def evaluate(self) -> dict[str, float]:
        """Scores the weights as they are on ``data.eval``: ``eval/overall``, ``eval/<tag>`` and more, in 0..1."""
        data = self.config.data
        assert data.eval is not None
        if self.judge is None:
            self.judge = RewardJudge(data.detector, data.detector)
        prompts = load_prompts(data.eval, renderer=data.renderer, grid=data.grid)
        settings = BenchmarkSettings(pictures=self.sampling)
        return run_benchmark(self.engine, prompts, self.judge, settings).metrics()

    def _load(self, path: Path) -> Checkpoint:
        return load_checkpoint(path, device=self.device)

    def _check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Refuses prompts that cannot fit before anything is computed."""
        if limit := self.config.data.max_prompt_length:
            encode = self.checkpoint.processor.encode_text
            check_prompt_lengths(prompts, lambda p: len(encode(p.text)), limit)
        self.engine.check_lengths(prompts, self.sampling)

    def _generate(self, number: int) -> list[Sample]:
        """``prompts_per_step`` groups of ``num_generations`` samples, in the order of their requests."""
        algorithm, seed = self.config.algorithm, self.config.run.seed
        chosen = self.order.take(algorithm.prompts_per_step)
        requests = [
            Request(prompt, derive_seed(seed, number, group, index), group, index)
            for group, prompt in enumerate(chosen)
            for index in range(algorithm.num_generations)
        ]
        samples = self.engine.generate(requests, self.sampling)
        return sorted(samples, key=lambda s: (s.request.group, s.request.index))

    def _advantages(self, samples: Sequence[Sample], rewards: Tensor) -> Advantages:
        groups = torch.tensor([s.request.group for s in samples])
        return group_advantages(rewards, groups, self.config.algorithm.scale_rewards)

    def stop_if_nothing_is_learnt(self) -> None:
        """Raises: DinaError: too many minibatches in a row took no optimizer step."""
        limit = self.config.run.max_skipped_updates
        if self.skipped_in_a_row >= limit:
            raise DinaError(
                f"{self.skipped_in_a_row} minibatches in a row had no sequence to learn from (limit "
                f"run.max_skipped_updates={limit}); loosen filters.entropy_k and filters.mismatch_tau, or look "
                f"for failing rewards; the reasons are in {self.folder / 'samples'}"
            )

    def _save_samples(
        self, number: int, samples: Sequence[Sample], scored: SuiteResult, update: UpdateResult
    ) -> None:
        every = self.config.run.sample_steps
        due = every and number % every == 0
        if not due and update.steps:
            return
        reasons = [reward_reason(scored, i) for i in range(len(samples))]
        for dropped in update.dropped:
            reasons[dropped.row] += f" [left out: {dropped.drop}]"
        shown = [i for i, s in enumerate(samples) if s.request.index < 2][:24]
        save_samples(
            self.folder / "samples",
            number,
            [samples[i] for i in shown],
            [scored.total[i] for i in shown],
            [reasons[i] for i in shown],
        )

    def save(self, folder: Path) -> None:
        """Writes the whole state: a checkpoint that can be evaluated, and what resuming needs beside it."""
        save_checkpoint(self.checkpoint, folder)
        save_training_state(
            folder,
            optimizer=self.learner.optimizer,
            state={
                "finished": self.finished,
                "skipped_in_a_row": self.skipped_in_a_row,
                "scheduler": self.learner.scheduler.state_dict(),
                "order": self.order.state_dict(),
                "weight_version": self.engine.version,
            },
        )

    def restore(self, folder: Path) -> None:
        """Continues from a folder that ``save`` wrote."""
        restored = self._load(folder).model.state_dict()
        self.checkpoint.model.load_state_dict(restored)
        state = load_training_state(folder, optimizer=self.learner.optimizer)
        self.learner.scheduler.load_state_dict(state["scheduler"])
        self.order.load_state_dict(state["order"])
        self.engine.version = state["weight_version"]
        self.finished = state["finished"]
        self.skipped_in_a_row = state["skipped_in_a_row"]

    def close(self) -> None:
        if self.judge is not None:
            self.judge.close()
        self.suite.close()
        self.engine.close()


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
    folder = Path(config.run.output_dir) if resume is None else run_folder(resume)
    config.run.output_dir = str(folder)
    checkpoints = Checkpoints(folder / "checkpoints", keep=config.run.save_total_limit)
    if resume is None and checkpoints.steps():
        raise DinaError(f"{folder} holds a run; resume it with --resume {folder}, or set run.output_dir")
    if resume is not None:
        refuse_other_settings(config, folder / "config.yaml")
    trainer = Trainer(config, folder)
    if resume is not None and checkpoints.steps():
        trainer.restore(find_checkpoint(resume))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(dump_recipe(config), encoding="utf-8")
    write_environment(folder)
    stop = StopSignal()
    try:
        with MetricsLogger(folder, config, trainer.finished) as metrics, stop:
            _run(trainer, checkpoints, metrics, stop)
    finally:
        trainer.close()
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


class StopSignal:
    """Turns the first Ctrl-C (or SIGTERM) into a request that the loop honours after its step."""

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> StopSignal:
        self._before = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        log.warning("finishing this step, then saving; press Ctrl-C again to stop at once")


def completion_metrics(samples: Sequence[Sample]) -> dict[str, float]:
    """TRL's ``completions/*`` in positions, and the share that was cut."""
    lengths = [int(s.stream.actions[0].any(1).sum()) for s in samples]
    return {
        "num_tokens": float(sum(s.stream.length for s in samples)),
        "completions/mean_length": sum(lengths) / len(lengths),
        "completions/min_length": float(min(lengths)),
        "completions/max_length": float(max(lengths)),
        "completions/clipped_ratio": sum(s.finish_reason == "length" for s in samples) / len(samples),
    }


def reward_reason(scored: SuiteResult, row: int) -> str:
    """Every reward of a sample in words: its score and its own reason."""
    texts = []
    for name, scores in scored.per_reward.items():
        if scores[row] is not None:
            parts = scored.parts[name][row] or {}
            texts.append(
                f"{name} {scores[row]:.2f}" + (f": {parts['reason']}" if parts.get("reason") else "")
            )
    texts += [f"{f.reward} failed: {f.reason}" for f in scored.failures if f.sample_index == row]
    return "; ".join(texts)
