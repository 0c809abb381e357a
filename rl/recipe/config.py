"""The typed recipe of ``dina train``. Names are TRL's wherever the meaning is the same."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from dina.errors import advice
from dina.eval.alerts import RULES
from dina.policies.advantages import ScaleRewards
from dina.policies.corrections import CorrectionMode
from dina.policies.losses import LossType
from dina.rl.recipe.alerts import AlertConfig
from dina.rl.recipe.cluster import LoopConfig, RayConfig
from dina.rl.recipe.rewards import RewardConfig
from dina.rl.recipe.section import Grid, ModuleAttr, Section

Difficulty = Literal["easy", "medium", "hard"]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]


class RunConfig(Section):
    output_dir: str = Field(
        "runs/train", min_length=1, description="folder of the run; all it writes lies there"
    )
    run_name: str | None = Field(None, description="what W&B calls the run; by default the folder's name")
    seed: int = Field(0, ge=0, description="all randomness of the run follows from it")
    max_steps: int = Field(100, ge=1, description="steps (generate, score, update) in all")
    save_steps: int = Field(
        50, ge=0, description="checkpoint every n steps and at the end; 0: only at the end"
    )
    save_total_limit: int = Field(
        2, ge=1, description="the latest checkpoints to keep; the best evaluated one stays besides"
    )
    logging_steps: int = Field(
        1, ge=1, description="line on the console every n steps; metrics.jsonl has every step"
    )
    sample_steps: int = Field(10, ge=0, description="pictures and answers saved every n steps; 0: never")
    save_rollouts: int = Field(
        0,
        ge=0,
        description="keep all samples of every n-th step in rollouts/, to look at or replay; 0: never",
    )
    report_to: list[Literal["none", "wandb"]] = Field(
        [], description="further places for metrics, next to the run's folder"
    )
    wandb_project: str = Field("dina", description="W&B project")
    threads: int | None = Field(None, ge=1, description="CPU threads of torch; null leaves torch's choice")
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, cuda or cuda:1")
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="bfloat16 computes under autocast; weights stay float32"
    )
    max_skipped_updates: int = Field(
        8, ge=1, description="minibatches in a row without a sequence to learn from, before the run stops"
    )


class ModelConfig(Section):
    path: str = Field(min_length=1, description="checkpoint folder to start from")


class DataConfig(Section):
    train: str | list[str] = Field(
        min_length=1, description="prompt file or files: JSONL, Parquet or picture folder"
    )
    tags: list[str] | None = Field(None, min_length=1, description="train on prompts with these tags only")
    sampling: Literal["shuffle", "balanced", "text_buckets"] | dict[str, Annotated[int, Field(ge=1)]] = Field(
        "shuffle",
        description="shuffle: every prompt once per epoch; balanced: the tags in turn; text_buckets: likewise, "
        "and within a tag the numbers and lengths of its texts in turn; {tag: n, …}: n prompts of each tag per round",
    )
    difficulty: dict[Difficulty, Annotated[int, Field(ge=0)]] | None = Field(
        None,
        description="{hard: n, medium: n, easy: n} prompts per round by the pass rate that `dina prepare` wrote; "
        "null: as they come",
    )
    renderer: ModuleAttr | None = Field(None, description="module:attr that draws the `scene` of a row")
    grid: Grid | None = Field(None, description="[rows, columns] in visual tokens of prompts that give none")
    eval: str | list[str] | None = Field(None, description="prompts to evaluate on during the run")
    eval_steps: int = Field(0, ge=0, description="evaluate every n steps; 0: never")
    detector: ModuleAttr = Field(
        "dina.recipes.scenes.detector:ShapeDetector",
        description="module:attr that sees objects in evaluated pictures",
    )
    eval_reward: RewardConfig | None = Field(
        None, description="a reward that judges the evaluated samples instead of the built-in rules"
    )
    max_prompt_length: int | None = Field(
        None, ge=1, description="longest prompt in tokens; longer is an error"
    )

    @model_validator(mode="after")
    def _weigh_what_is_left(self) -> DataConfig:
        """Weights of tags that ``tags`` leaves out go with them, so a recipe can take some of another's tags."""
        if self.tags is not None and isinstance(self.sampling, dict):
            self.sampling = {tag: weight for tag, weight in self.sampling.items() if tag in self.tags}
        return self


class FaultsConfig(Section):
    """What is wrong with the sampler; it then has weights of its own."""

    precision: Literal["float32", "bfloat16", "int8"] = Field(
        "float32", description="its weights are rounded: to bfloat16, or linear layers to int8 per row"
    )
    stale: int = Field(0, ge=0, description="its weights are so many updates old")
    flip_rate: float = Field(
        0.0, ge=0, lt=1, description="share of actions in which an improbable class becomes probable"
    )
    flip_probability: float = Field(
        0.9, gt=0, lt=1, description="which it then has, and is reported with, in the sampler"
    )


class RolloutConfig(Section):
    engine: Literal["auto", "vllm", "torch"] = Field(
        "auto", description="what draws the samples; auto: vllm where dina train can use it, else torch"
    )
    batch_size: int = Field(64, ge=1, description="samples that are drawn at once")
    temperature: float = Field(1.0, gt=0, description="of text tokens")
    code_temperature: Positive | list[Positive] | None = Field(
        None, description="of picture codes, one number or one per level; null: that of text"
    )
    top_k: int = Field(0, ge=0, description="draw from the k most probable classes only; 0: all")
    code_top_k: Count | list[Count] | None = Field(
        None, description="the same for picture codes, one number or one per level; null: that of text"
    )
    top_p: float = Field(
        1.0, gt=0, le=1, description="draw from the smallest set with this probability; 1: all"
    )
    allow_truncation: bool = Field(
        False, description="allow top_k and top_p in training, although classes outside get no gradient"
    )
    guidance_scale: float = Field(
        1.0, ge=0, description="classifier-free guidance, in rollout and update alike; 1: off"
    )
    max_completion_length: int = Field(64, ge=1, description="longest answer in text tokens")
    tensor_parallel: int = Field(
        1, ge=1, description="GPUs that share the weights of one vllm engine; give ray.rollout.gpus as many"
    )
    kv_cache_gib: float = Field(0.5, gt=0, description="memory for keys and values of vllm on a CPU")
    gpu_memory: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="share of the GPU that vllm takes; null: 0.4 if colocated, 0.85 if separate",
    )
    faults: FaultsConfig | None = Field(
        None, description="a sampler that is wrong on purpose, to study what follows (dina lab); null: none"
    )
    replay: str | None = Field(
        None,
        min_length=1,
        description="train on saved rollouts instead of new ones: a rollouts/ folder, or a step_<n>",
    )

    @model_validator(mode="after")
    def _samples_the_whole_distribution(self) -> RolloutConfig:
        codes = self.code_top_k if isinstance(self.code_top_k, list) else [self.code_top_k]
        if (self.top_k or any(codes) or self.top_p < 1) and not self.allow_truncation:
            raise ValueError(
                f"top_k={self.top_k}, code_top_k={self.code_top_k}, top_p={self.top_p} cut the distribution: a class "
                "that falls out of the cut between rollout and update has probability 0, and its ratio says nothing. "
                "Set top_k=0 and top_p=1.0 in training, or allow_truncation=true if you mean it"
            )
        return self


class AlgorithmConfig(Section):
    num_generations: int = Field(
        8, ge=2, description="samples per prompt (a group); advantages compare within it"
    )
    prompts_per_step: int = Field(8, ge=1, description="different prompts per step")
    refill_rounds: int = Field(
        0, ge=0, description="times that groups without signal are replaced by others (DAPO); 0: never"
    )
    num_iterations: int = Field(1, ge=1, description="passes over the samples of a step")
    minibatches: int = Field(1, ge=1, description="optimizer updates per pass")
    beta: float = Field(
        0.0, ge=0, description="weight of the KL to the starting policy; 0 does without that copy"
    )
    epsilon: float = Field(0.2, gt=0, lt=1, description="the ratio is clipped below at 1 - epsilon")
    epsilon_high: float | None = Field(None, gt=0, description="and above at 1 + epsilon_high; null: epsilon")
    loss_type: LossType = Field("grpo", description="what a sum over actions is divided by")
    importance_sampling_level: Literal["token", "sequence"] = Field(
        "token", description="one ratio per action, or one per sequence (GSPO)"
    )
    scale_rewards: ScaleRewards = Field(
        "group", description="divide advantages by the standard deviation of the group, the batch, or not"
    )
    level_weights: Literal["uniform"] | Positive | list[Annotated[float, Field(ge=0)]] = Field(
        "uniform", description="weights of the code levels: uniform, a decay factor, or one number per level"
    )
    text_weight: float = Field(1.0, ge=0, description="weight of the text channel")
    entropy_coef: float = Field(0.0, ge=0, description="weight of an entropy bonus")

    @model_validator(mode="after")
    def _minibatches_divide(self) -> AlgorithmConfig:
        sequences = self.prompts_per_step * self.num_generations
        if sequences % self.minibatches:
            fits = [n for n in range(1, sequences + 1) if sequences % n == 0]
            nearest = sorted(fits, key=lambda n: abs(n - self.minibatches))[:2]
            raise ValueError(
                f"prompts_per_step {self.prompts_per_step} × num_generations {self.num_generations} = {sequences} "
                f"sequences do not divide into minibatches {self.minibatches} "
                f"({sequences} / {self.minibatches} = {sequences / self.minibatches:.4g}); "
                f"nearest that fit: {', '.join(map(str, sorted(nearest)))}"
            )
        return self

    @property
    def sequences(self) -> int:
        """Samples of one step."""
        return self.prompts_per_step * self.num_generations

    @property
    def minibatch_size(self) -> int:
        """Sequences of one optimizer update."""
        return self.sequences // self.minibatches


class FiltersConfig(Section):
    entropy_k: float | None = Field(
        None, gt=0, description="drop sequences with mean entropy above minibatch mean + k·std; null: off"
    )
    mismatch_tau: float | None = Field(
        None, gt=0, le=1, description="drop sequences with any |p_sampler - p_actor| above; null: off"
    )
    mismatch_thresholds: list[Share] = Field(
        [0.01, 0.1, 0.5], description="log the share of sequences above each, whatever mismatch_tau is"
    )


class CorrectionConfig(Section):
    mode: CorrectionMode = Field("none", description="importance sampling between sampler and actor")
    clip_max: float = Field(3.0, gt=0, description="largest ratio")
    clip_min: float | None = Field(None, ge=0, description="smallest ratio; null: none")

    @model_validator(mode="after")
    def _ordered(self) -> CorrectionConfig:
        if self.clip_min is not None and self.clip_min >= self.clip_max:
            raise ValueError(f"clip_min {self.clip_min} must be below clip_max {self.clip_max}")
        return self


class OptimConfig(Section):
    learning_rate: float = Field(1e-5, gt=0, description="after warm-up")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="AdamW's first beta")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="AdamW's second beta")
    adam_epsilon: float = Field(1e-8, gt=0, description="AdamW's epsilon")
    weight_decay: float = Field(0.0, ge=0, description="of matrices; norms and biases are never decayed")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are scaled down to this norm")
    warmup_steps: int = Field(0, ge=0, description="optimizer updates until the full learning rate")
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="after warm-up"
    )
    micro_batch_size: int = Field(
        16, ge=1, description="sequences per forward and backward pass; bounds memory only"
    )


class LoraSection(Section):
    """The fields of ``peft.LoraConfig`` that training and merging support."""

    r: int = Field(16, ge=1, description="rank of the adapters")
    lora_alpha: int = Field(32, ge=1, description="adapters are scaled by lora_alpha / r")
    target_modules: str | list[str] = Field(
        "all-linear", min_length=1, description="names (or a pattern) of the modules that get an adapter"
    )
    exclude_modules: list[str] | None = Field(
        None, description="modules among them that get none, such as visual_head"
    )
    layers_to_transform: list[Annotated[int, Field(ge=0)]] | None = Field(
        None, min_length=1, description="decoder layers that get adapters; null: all"
    )
    rank_pattern: dict[str, int] = Field({}, description="another r for modules whose names match")
    alpha_pattern: dict[str, int] = Field({}, description="another lora_alpha for modules whose names match")
    use_rslora: bool = Field(False, description="scale by lora_alpha / sqrt(r)")


class LearnerConfig(Section):
    ranks: int = Field(1, ge=1, description="processes that train together, one per GPU")
    zero_stage: Literal[0, 2, 3] = Field(
        0,
        description="what DeepSpeed shards over ranks: 2 optimizer and gradients, 3 weights too; 0: nothing",
    )
    lora: LoraSection | None = Field(
        None, description="train low-rank adapters alone; null trains every weight"
    )
    gradient_checkpointing: bool = Field(
        False, description="recompute the decoder layers in the backward pass: less memory, more time"
    )
    timeout: float = Field(600.0, gt=0, description="seconds that a rank waits for another before it fails")


class TrainConfig(Section):
    """Everything a run is decided by."""

    run: RunConfig = Field(default_factory=RunConfig, description="length, output, machine")
    model: ModelConfig = Field(description="what to train")
    data: DataConfig = Field(description="prompts")
    rollout: RolloutConfig = Field(default_factory=RolloutConfig, description="how samples are drawn")
    algorithm: AlgorithmConfig = Field(default_factory=AlgorithmConfig, description="the policy update")
    filters: FiltersConfig = Field(
        default_factory=FiltersConfig, description="sequences left out of the update"
    )
    correction: CorrectionConfig = Field(
        default_factory=CorrectionConfig, description="sampler against actor"
    )
    optim: OptimConfig = Field(default_factory=OptimConfig, description="the optimizer")
    learner: LearnerConfig = Field(
        default_factory=LearnerConfig, description="how the update is spread over processes and memory"
    )
    rewards: list[RewardConfig] = Field(min_length=1, description="what is good")
    guards: bool = Field(True, description="log statistics against reward hacking")
    alerts: dict[str, AlertConfig] = Field(
        {}, description="rules that say when the run is sick, where they differ from their defaults"
    )
    rl: LoopConfig = Field(default_factory=LoopConfig, description="one process or many, in step or ahead")
    ray: RayConfig = Field(default_factory=RayConfig, description="processes and resources of rl.runner=ray")

    @field_validator("alerts")
    @classmethod
    def _known_rules(cls, alerts: dict[str, AlertConfig]) -> dict[str, AlertConfig]:
        known = [rule.name for rule in RULES]
        for name in alerts:
            if name not in known:
                raise ValueError(f"there is no rule {name!r}; {advice(name, known)}")
        return alerts

    @field_validator("rewards")
    @classmethod
    def _distinct_names(cls, rewards: list[RewardConfig]) -> list[RewardConfig]:
        labels = [reward.label for reward in rewards]
        for label in labels:
            if labels.count(label) > 1:
                raise ValueError(f"two rewards are called {label!r}; give each a `name` of its own")
        trained = [reward.label for reward in rewards if reward.trained]
        if not trained:
            raise ValueError("every weight is 0 or held out: nothing would be trained on")
        for reward in rewards:
            for name in reward.watches or []:
                if name not in trained:
                    raise ValueError(
                        f"{reward.label} watches {name!r}, no trained reward; {advice(name, trained)}"
                    )
        return rewards

    @model_validator(mode="after")
    def _fits_together(self) -> TrainConfig:
        size, k = self.algorithm.minibatch_size, self.filters.entropy_k
        if k is not None and k >= math.sqrt(size - 1):
            raise ValueError(
                f"filters.entropy_k {k} never drops anything: among the {size} sequences of a minibatch none can be "
                f"more than √({size} - 1) = {math.sqrt(size - 1):.4g} standard deviations above the mean; "
                f"lower entropy_k, or use fewer algorithm.minibatches (now {self.algorithm.minibatches})"
            )
        updates = self.run.max_steps * self.algorithm.num_iterations * self.algorithm.minibatches
        if self.optim.warmup_steps > updates:
            raise ValueError(
                f"optim.warmup_steps {self.optim.warmup_steps} is more than the run's {updates} updates (run.max_steps "
                f"{self.run.max_steps} × num_iterations {self.algorithm.num_iterations} × minibatches "
                f"{self.algorithm.minibatches})"
            )
        if self.algorithm.refill_rounds and self.rollout.replay:
            raise ValueError(
                "algorithm.refill_rounds draws new samples, and rollout.replay none; set one of them"
            )
        if self.data.eval_steps and not self.data.eval:
            raise ValueError(f"data.eval_steps is {self.data.eval_steps}, but data.eval names no prompts")
        return self

    @model_validator(mode="after")
    def _runner_can(self) -> TrainConfig:
        if self.rl.runner == "local" and self.rollout.engine == "vllm":
            raise ValueError("rollout.engine vllm draws in processes of its own; set rl.runner=ray")
        if self.rollout.faults and (self.rl.runner == "ray" or self.rollout.engine == "vllm"):
            raise ValueError(
                "rollout.faults are those of the torch engine in this process; set rl.runner=local"
            )
        if self.rollout.engine == "vllm" and self.rollout.guidance_scale != 1:
            raise ValueError(
                f"rollout.guidance_scale {self.rollout.guidance_scale}: vllm draws without guidance; set it to 1, or "
                "rollout.engine=torch"
            )
        return self

    @model_validator(mode="after")
    def _ranks_have_work(self) -> TrainConfig:
        ranks, stage, size = self.learner.ranks, self.learner.zero_stage, self.algorithm.minibatch_size
        if ranks > size:
            raise ValueError(
                f"learner.ranks {ranks} is more than the {size} sequences of a minibatch, so some ranks would have "
                f"nothing to do; lower learner.ranks, or algorithm.minibatches (now {self.algorithm.minibatches})"
            )
        if stage and ranks == 1:
            raise ValueError(
                f"learner.zero_stage {stage} shards over learner.ranks, which is 1; set learner.ranks to 2 or more, "
                "or learner.zero_stage to 0"
            )
        if ranks > 1 and ":" in self.run.device:
            raise ValueError(
                f"run.device {self.run.device} is one device for learner.ranks {ranks}; set run.device to auto or "
                f"{self.run.device.partition(':')[0]}, and each rank takes one"
            )
        return self


def arithmetic(config: TrainConfig) -> list[tuple[str, str]]:
    """What the numbers of a recipe come to, as (quantity, calculation) rows for ``--dry-run``."""
    algorithm, steps = config.algorithm, config.run.max_steps
    sequences, size, micro = algorithm.sequences, algorithm.minibatch_size, config.optim.micro_batch_size
    updates = algorithm.num_iterations * algorithm.minibatches
    passes = math.ceil(sequences / config.rollout.batch_size)
    ranks = config.learner.ranks
    share = math.ceil(size / ranks)
    return [
        (
            "sequences per step",
            f"{algorithm.prompts_per_step} prompts × {algorithm.num_generations} generations = {sequences}",
        ),
        ("rollout batches per step", f"{sequences} sequences / {config.rollout.batch_size} = {passes}"),
        ("minibatch", f"{sequences} sequences / {algorithm.minibatches} minibatches = {size} sequences"),
        (
            "updates per step",
            f"{algorithm.num_iterations} iterations × {algorithm.minibatches} minibatches = {updates}",
        ),
        ("sequences per rank and update", f"{size} sequences / {ranks} ranks = {share}"),
        (
            "micro-batches per update",
            f"{ranks} ranks × ({share} sequences / {micro}) = {ranks * math.ceil(share / micro)}",
        ),
        ("updates in all", f"{steps} steps × {updates} = {steps * updates}"),
        ("sequences in all", f"{steps} steps × {sequences} = {steps * sequences}"),
    ]
