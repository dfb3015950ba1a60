"""What a training run can be told. Names are TRL's and Hugging Face Trainer's; every field is a flag of
train.py.
"""

from dataclasses import dataclass
from typing import Any, Literal

from r1ov.cli import option
from r1ov.errors import UserError

PLAYGROUND = "playground"
LEAST = {  # of each number that has a bound
    "max_steps": 1, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 1, "train_batch_size": 1, "max_length": 8,
    "num_threads": 1, "logging_steps": 1, "eval_samples": 1, "replicate": 1, "save_total_limit": 1, "max_skipped_steps": 1,
    "min_pixels": 1, "max_pixels": 1, "max_completion_length": 1, "max_num_seqs": 1, "num_iterations": 1, "steps_per_generation": 1,
    "dataloader_num_workers": 0, "save_steps": 0, "eval_steps": 0, "sample_steps": 0, "weight_decay": 0, "max_resamplings": 0,
}  # fmt: skip
SHARES = ("warmup_ratio", "min_lr_rate", "max_bad_share")  # from 0 to 1
ABOVE_ZERO = ("learning_rate", "muon_learning_rate", "max_grad_norm", "num_train_epochs")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What both stages can be told."""

    preset: str | None = option(
        None, "a published recipe, whose settings the other flags override: r1-onevision"
    )
    model: str | None = option(
        None, "model folder, hub name or r1ov-tiny to start from; default: train from scratch"
    )
    config_name: str = option(
        "r1ov-tiny", "from scratch: the model whose architecture and processor are taken, its weights not"
    )
    freeze: str | None = option(None, "parts that do not learn: any of vision,merger,language")
    seed: int = option(0, "decides the weights drawn, and which samples are seen in which order")

    data: str = option(
        PLAYGROUND,
        "playground (the built-in pictures), a file, folder or hub data set, or a mixture: a.parquet:0.7,b.jsonl:0.3",
    )
    eval_data: str | None = option(
        None, "what the held-out loss is of; default with the playground: its test split, else nothing"
    )
    clean: bool = option(
        False, "bring replies to <think>, <answer>: for R1-Onevision's own data, whose rows mix four layouts"
    )
    image_folder: str | None = option(
        None, "where the pictures' paths begin and must lie; default: each data file's folder"
    )
    allow_outside: bool = option(False, "pictures may lie anywhere on this machine")
    max_bad_share: float = option(0.05, "share of rows that may be bad before the run stops")
    min_pixels: int | None = option(
        None, "smaller pictures are enlarged to this many pixels; default: the checkpoint's"
    )
    max_pixels: int | None = option(
        None, "larger pictures are shrunk to this many pixels; default: the checkpoint's"
    )
    max_length: int = option(8192, "tokens of the longest conversation, and of one packed micro-batch")
    overlong: Literal["drop", "error"] = option(
        "drop", "longer conversations are dropped and counted, or stop the run"
    )
    dataloader_num_workers: int = option(
        1, "processes that draw and encode ahead of the training step; 0: none"
    )

    max_steps: int | None = option(
        None, "optimiser steps; default: --num-train-epochs of the data; on the playground 200, with grpo 300"
    )
    num_train_epochs: float = option(1.0, "how often to see the data, where --max-steps is not given")
    per_device_train_batch_size: int = option(
        64, "conversations of one process; how many at once, --max-length decides"
    )
    gradient_accumulation_steps: int = option(1, "so many times as many conversations in one optimiser step")
    train_batch_size: int | None = option(
        None, "conversations of one step, whatever the number of processes; instead of those two"
    )

    optim: Literal["adamw", "muon"] = option(
        "adamw", "adamw, or muon for the inner matrices and adamw for the rest"
    )
    learning_rate: float | None = option(
        None, "peak, of adamw; default: 2e-3 from scratch, 1e-5 from a model"
    )
    muon_learning_rate: float = option(
        0.008, "peak, of muon; at 0.02 a small model's attention hardens within a thousand steps"
    )
    lr_scheduler_type: Literal["cosine", "linear", "constant"] = option("cosine", "what follows the warm-up")
    min_lr_rate: float = option(0.0, "where cosine and linear end, as a share of the peak")
    warmup_ratio: float = option(0.05, "share of the steps in which the learning rate climbs")
    weight_decay: float = option(0.0, "of matrices and embeddings")
    adam_beta1: float = option(0.9, "first moment")
    adam_beta2: float = option(0.98, "second moment")
    max_grad_norm: float = option(1.0, "longer gradients are scaled down to this length")
    max_skipped_steps: int = option(
        10, "steps in a row that may be skipped, their gradient not being finite, before the run stops"
    )

    device: str | None = option(None, "default: cuda if there is one, else cpu")
    kernels: Literal["torch", "triton"] | None = option(
        None, "attention and log-probs; default: triton on a GPU, torch elsewhere"
    )
    bf16: bool | None = option(
        None, "compute in bfloat16 (weights, gradients and their sums stay float32); default: on a GPU"
    )
    activation_checkpointing: Literal["off", "selective", "full"] = option(
        "off", "what is computed again instead of kept: saves memory"
    )
    replicate: int = option(
        1, "groups of processes that each hold the whole model: hybrid sharding, one group a node"
    )
    num_threads: int | None = option(
        None, "CPU threads of each process; default: torch's own choice, divided among the processes"
    )

    logging_steps: int = option(1, "a line every so many steps")
    save_steps: int = option(
        0, "a checkpoint every so many steps, from which the same command goes on; 0: none"
    )
    save_total_limit: int | None = option(2, "keep so many checkpoints, the newest")
    eval_steps: int = option(
        50, "held-out loss, and on the playground answers, every so many steps; 0: never"
    )
    eval_samples: int = option(35, "held-out samples each time")
    eval_split: Literal["test", "rl", "generalisation"] = option(
        "test", "of the playground, whose questions are answered"
    )
    report_to: Literal["none", "tensorboard", "wandb"] = option("none", "also log there, if it is installed")

    def __post_init__(self):
        for name, value in self.__dict__.items():
            flag = f"--{name.replace('_', '-')} is {value}; it must be"
            if value is None or isinstance(value, str | bool | tuple):
                continue
            if name in LEAST and value < LEAST[name]:
                raise UserError(f"{flag} {LEAST[name]} or more")
            if name in SHARES and not 0 <= value <= 1:
                raise UserError(f"{flag} from 0 to 1")
            if name in ("adam_beta1", "adam_beta2") and not 0 <= value < 1:
                raise UserError(f"{flag} from 0 to below 1")
            if name in ABOVE_ZERO and not value > 0:
                raise UserError(f"{flag} above 0")

    @property
    def peak_learning_rate(self) -> float:
        return self.learning_rate or (1e-5 if self.model else 2e-3)

    @property
    def endless_steps(self) -> int:
        """Optimiser steps on data without end, where `max_steps` does not say."""
        return 200

    @property
    def frozen_parts(self) -> tuple[str, ...]:
        return tuple(part.strip() for part in (self.freeze or "").split(",") if part.strip())

    @property
    def reading(self) -> dict[str, Any]:
        """How `open_data` shall read the data's files."""
        return {"clean": self.clean, "image_folder": self.image_folder, "allow_outside": self.allow_outside}


@dataclass(frozen=True, kw_only=True)
class SFTConfig(TrainConfig):
    stage: Literal["sft", "grpo"] = option(
        "sft", "sft: supervised fine-tuning; grpo: reinforcement learning with rewards by rule"
    )
    out: str = option(
        "runs/sft", "folder of the run: config.json, log.jsonl, curves.png, samples/, checkpoints/, final/"
    )


@dataclass(frozen=True, kw_only=True)
class GRPOConfig(TrainConfig):
    stage: Literal["sft", "grpo"] = option(
        "grpo", "sft: supervised fine-tuning; grpo: reinforcement learning with rewards by rule"
    )
    out: str = option(
        "runs/grpo", "folder of the run: config.json, log.jsonl, curves.png, samples/, checkpoints/, final/"
    )
    model: str = option("r1ov-tiny-sft", "model folder, hub name or r1ov-tiny-sft to start from")
    learning_rate: float | None = option(None, "peak; default: 2e-4 on the playground, else 1e-6")
    lr_scheduler_type: Literal["cosine", "linear", "constant"] = option("linear", "what follows the warm-up")
    warmup_ratio: float = option(0.0, "share of the steps in which the learning rate climbs")
    adam_beta2: float = option(0.999, "second moment")
    eval_steps: int = option(
        50, "answers to held-out questions of the playground every so many steps; 0: never"
    )
    eval_samples: int = option(210, "held-out questions each time")
    eval_split: Literal["test", "rl", "generalisation"] = option(
        "rl", "of the playground: those questions, with scenes of another seed"
    )
    per_device_train_batch_size: int = option(
        128, "completions of one process; how many at once, --max-length decides"
    )

    num_generations: int = option(8, "G: completions of each prompt")
    max_completion_length: int = option(256, "tokens of a completion, at most")
    temperature: float = option(1.0, "of the sampling, and of the log-probs that are learned from")
    top_p: float = option(1.0, "sample from the likeliest tokens that make up this probability; 1: from all")
    top_k: int = option(0, "sample from this many likeliest tokens; 0: from all")
    repetition_penalty: float = option(1.0, "of the sampling; 1: none")
    max_num_seqs: int | None = option(
        None, "completions decoded at once, at most; the others follow as rows finish; default: all"
    )
    num_iterations: int = option(1, "mu: how often the completions of a rollout are learned from")
    steps_per_generation: int = option(
        1, "optimiser steps that share a rollout, each on a part of it (TRL counts micro-batches)"
    )
    beta: float = option(
        0.0,
        "weight of the KL term; 0 loads no reference model, and completions of advantage 0 cost no update",
    )
    epsilon: float = option(0.2, "the ratio is clipped below 1 - epsilon")
    epsilon_high: float | None = option(
        None, "and above 1 + this; default: epsilon. With cispo: the cap of the ratio itself"
    )
    delta: float | None = option(None, "a second cap of the ratio, for negative advantages; default: none")
    loss_type: Literal["grpo", "dapo", "dr_grpo", "bnpo", "cispo"] = option(
        "dapo", "how tokens are weighed against each other"
    )
    scale_rewards: Literal["group", "batch", "none"] = option(
        "group", "which standard deviation divides the advantages"
    )
    importance_sampling_level: Literal["token", "sequence"] = option(
        "token", "a ratio a token, or one a completion (GSPO)"
    )
    kl_estimator: Literal["k1", "k2", "k3"] = option("k3", "of the KL term")
    use_bias_correction_kl: bool = option(True, "multiply the KL term by the ratio")
    mask_truncated_completions: bool = option(False, "completions cut off at the limit teach nothing")
    dynamic_sampling: bool = option(False, "replace groups whose rewards are all equal by new ones")
    max_resamplings: int = option(3, "so often at most, for one rollout")
    importance_sampling_correction: bool = option(
        False, "weigh tokens by trainer over sampler, where the two differ"
    )
    importance_sampling_cap: float = option(2.0, "of that weight")

    reward_funcs: tuple[str, ...] = option(
        ("accuracy", "format"), "what is rewarded: accuracy, format, soft_format; may be repeated"
    )
    reward_weights: tuple[float, ...] = option((), "a weight for each of these; default: 1")
    reward: str | None = option(None, "FILE.py:function, a reward of your own beside these")
    wrong_reward: float = option(0.0, "accuracy of a wrong answer")
    overlong_cache: int | None = option(
        None, "the last so many tokens before the limit cost up to 1 (DAPO); default: nothing"
    )
    answer_from: Literal["tag", "boxed"] = option("tag", "where an answer stands: <answer>, or \\boxed{}")
    iou_mode: Literal["threshold", "soft"] = option(
        "threshold", "boxes score 1 from an overlap of a half on, or the overlap itself"
    )
    sample_steps: int = option(
        10, "some completions, with rewards and advantages, go to samples/ every so many steps; 0: never"
    )

    def __post_init__(self):
        super().__post_init__()
        if self.num_generations < 2:
            raise UserError(
                f"--num-generations is {self.num_generations}; a group needs 2 or more completions to compare"
            )
        if unknown := set(self.reward_funcs) - {"accuracy", "format", "soft_format"}:
            raise UserError(
                f"--reward-funcs: there is no {sorted(unknown)[0]!r}; there are accuracy, format, soft_format (--reward: your own)"
            )
        if self.reward_weights and len(self.reward_weights) != len(self.reward_funcs) + bool(self.reward):
            raise UserError(
                f"--reward-weights: {len(self.reward_weights)} for {len(self.reward_funcs) + bool(self.reward)} rewards"
            )
        if not 0 < self.temperature < 1e6:
            raise UserError(
                f"--temperature is {self.temperature}; it must be above 0: greedy completions of a prompt are all the same"
            )
        if self.overlong_cache is not None and not 0 < self.overlong_cache <= self.max_completion_length:
            raise UserError(
                f"--overlong-cache is {self.overlong_cache}; it must be from 1 to --max-completion-length"
            )

    @property
    def peak_learning_rate(self) -> float:
        return self.learning_rate or (2e-4 if self.data == PLAYGROUND else 1e-6)

    @property
    def skips_idle_rows(self) -> bool:
        """Whether completions of advantage 0 give no gradient at all, and stay out of the update. Bnpo weighs
        packs, not tokens.
        """
        return self.beta == 0 and self.loss_type != "bnpo"

    @property
    def endless_steps(self) -> int:
        return 300

    @property
    def loss_options(self) -> dict[str, Any]:
        """Those of `grpo_loss`."""
        names = "loss_type epsilon epsilon_high delta beta kl_estimator use_bias_correction_kl importance_sampling_level max_completion_length"
        return {name: getattr(self, name) for name in names.split()}
