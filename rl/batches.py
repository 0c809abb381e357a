"""Which batch is drawn when, and with which weights: the part of the loop between prompts and learner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dina.errors import DinaError
from dina.model.sampling import SamplingParams
from dina.rl.data import PromptOrder
from dina.rl.recipe.config import TrainConfig
from dina.rl.roles import Pending, Rollout, Scorer
from dina.rl.saved_rollouts import Replay, load_rollouts, save_rollouts
from dina.rollout.protocol import Request, Sample, derive_seed

IN_FLIGHT = "in_flight"


@dataclass
class _Batch:
    """A batch that is being drawn, or is drawn and not yet trained on."""

    requests: Sequence[Request]
    samples: list[Sample | None] = field(default_factory=list)
    pending: Pending | None = None

    @property
    def finished(self) -> int:
        return sum(sample is not None for sample in self.samples)

    def group(self, number: int) -> list[Sample] | None:
        """The samples of a group once all of them are there."""
        rows = [i for i, request in enumerate(self.requests) if request.group == number]
        found = [sample for row in rows if (sample := self.samples[row]) is not None]
        return found if len(found) == len(rows) else None


class Batches:
    """Admits batches of prompts to the rollout workers, and hands them out in their order.

    How far drawing may run ahead of learning is bounded by admission (AReaL's rule), so nothing is drawn that
    would have to be thrown away for its age::

        capacity = (allowed lag + weight version + 1) · batch - (accepted + running)

    Batch ``k`` is therefore drawn with weight version ``max(0, k - 1 - lag)``, whatever the timing.

    Args:
        rollout, scorer: a group goes to the scorer as soon as its last sample is there.
        order: where the prompts come from.

    Raises:
        DinaError: ``rollout.replay`` names a folder without saved batches.
    """

    def __init__(
        self,
        config: TrainConfig,
        rollout: Rollout,
        scorer: Scorer,
        order: PromptOrder,
        sampling: SamplingParams,
    ) -> None:
        self.config, self.rollout, self.scorer = config, rollout, scorer
        self.order, self.sampling = order, sampling
        self.lag = config.rl.lag
        replay = config.rollout.replay
        self.replay = Replay(Path(replay)) if replay else None
        self.version = 0
        self.taken = 0
        self._open: dict[int, _Batch] = {}

    def capacity(self) -> int:
        """Samples that may be asked for now."""
        size = self.config.algorithm.sequences
        running = sum(len(batch.requests) - batch.finished for batch in self._open.values())
        accepted = self.taken * size + sum(batch.finished for batch in self._open.values())
        return (self.lag + self.version + 1) * size - (accepted + running)

    def admit(self) -> None:
        """Starts every batch that may be drawn with the present weights, up to the run's last one."""
        size = self.config.algorithm.sequences
        while self.capacity() >= size and self.taken + len(self._open) < self.config.run.max_steps:
            self._start(self.taken + len(self._open) + 1)

    def take(self, number: int) -> list[Sample]:
        """The samples of batch ``number``, ordered by group and by index; waits for the missing ones."""
        batch = self._open[number]
        self._wait(batch)
        del self._open[number]
        self.taken = number
        return [sample for sample in batch.samples if sample is not None]

    def staleness(self, samples: Sequence[Sample]) -> dict[str, float]:
        """Updates between the weights that drew the samples and those they are trained with."""
        ages = [self.version - sample.weight_version for sample in samples]
        return {"staleness/mean": sum(ages) / len(ages), "staleness/max": float(max(ages))}

    def save(self, folder: Path) -> None:
        """Waits for everything that is being drawn and saves it, so that a resumed run trains on the same."""
        for number, batch in self._open.items():
            self._wait(batch)
            drawn = [sample for sample in batch.samples if sample is not None]
            save_rollouts(folder / IN_FLIGHT / str(number), drawn)

    def restore(self, folder: Path, taken: int, version: int) -> None:
        """Continues from what ``save`` wrote, after ``taken`` batches and with weights ``version``."""
        self.taken, self.version, self._open = taken, version, {}
        for number in sorted(int(path.name) for path in (folder / IN_FLIGHT).glob("*")):
            self._adopt(number, load_rollouts(folder / IN_FLIGHT / str(number)))

    def _adopt(self, number: int, samples: list[Sample]) -> None:
        """Makes samples that exist already the batch ``number``."""
        batch = self._open[number] = _Batch([s.request for s in samples], list(samples))
        for group in dict.fromkeys(request.group for request in batch.requests):
            self.scorer.submit(number, batch.group(group) or [])

    def _start(self, number: int) -> None:
        algorithm, seed = self.config.algorithm, self.config.run.seed
        requests = [
            Request(prompt, derive_seed(seed, number, group, index), group, index)
            for group, prompt in enumerate(self.order.take(algorithm.prompts_per_step))
            for index in range(algorithm.num_generations)
        ]
        if self.replay is not None:
            return self._adopt(number, self.replay.batch(number, len(requests)))
        batch = self._open[number] = _Batch(requests, [None] * len(requests))

        def deliver(position: int, sample: Sample) -> None:
            batch.samples[position] = sample
            group = requests[position].group
            if (complete := batch.group(group)) is not None:
                self.scorer.submit(number, complete)

        batch.pending = self.rollout.start(requests, self.sampling, deliver)

    def _wait(self, batch: _Batch) -> None:
        if batch.pending is not None:
            batch.pending.wait()
        if missing := len(batch.requests) - batch.finished:
            raise DinaError(f"the rollout engine returned no sample for {missing} of its requests")
