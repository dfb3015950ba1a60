"""Options of training, named as in TRL and Hugging Face's Trainer; every field is a flag of train.py.

`overridable`: what a run that is resumed may change with --override. `resumable`: what it may change anyhow.
`of_loss`: what `grpo_loss` takes.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

from r1ov.cli import check_bounds, marked, option
from r1ov.data.formats.reader import ReadingOptions
from r1ov.errors import UserError
from r1ov.train.run.lora import LoraOptions

resumable = partial(option, resumable=True)
overridable = partial(option, overridable=True)
evaluating = partial(resumable, idle="eval_steps 0")

PLAYGROUND = "playground"
LossType = Literal["grpo", "dapo", "dr_grpo", "cispo"]
ScaleRewards = Literal["group", "batch", "none"]
ImportanceSamplingLevel = Literal["token", "sequence"]
STAGES = "sft: supervised fine-tuning; grpo: reinforcement learning with rewards by rule"


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Options of both stages."""

    endless_steps = 200  # on endless data, unless --max-steps is given
    stage: Literal["sft", "grpo"] = option("sft", STAGES)
    preset: str | None = option(None, "recipe under other flags: r1-onevision, lora-24gb, 72b-4-nodes")
    model: str | None = option(None, "model folder, hub name or r1ov-tiny to begin with; default: none")
    config_name: str = option(
        "r1ov-tiny",
        "from scratch: the model whose architecture and processor, but not weights, are used",
        idle="model",
    )
    freeze: str | None = option(None, "parts that are not trained: any of vision,merger,language")
    seed: int = option(0, "of initial weights, of the order of samples, and of sampling")

    data: str = option(
        PLAYGROUND,
        "playground (built in), a file, folder or hub data set, or several: a.parquet,b.jsonl",
    )
    out: str | None = resumable(
        None,
        "folder of the run; default: runs/sft or runs/grpo, or where that is in use runs/sft-2 and so on",
    )
    override: bool = resumable(
        False,
        "resume with another --learning-rate, --max-steps or the like than the run was begun with",
    )
    eval_data: str | None = evaluating(
        None,
        "data whose replies are scored and whose questions are answered; default: on the playground its own",
    )
    allow_changed_data: bool = resumable(False, "resume although the data files are not as they were")
    min_pixels: int | None = option(
        None, "enlarge smaller images to this many pixels; default: the checkpoint's", least=1
    )
    max_pixels: int | None = option(
        None, "shrink larger images to this many pixels; default: the checkpoint's", least=1
    )
    max_length: int = option(8192, "most tokens of a conversation, and of a pack", least=8)
    overlong: Literal["drop", "error"] = option(
        "drop", "longer conversations: drop and count them, or stop the run", idle="stage grpo"
    )
    dataloader_num_workers: int = resumable(
        1, "processes that prepare the next steps' data; 0: none", least=0
    )

    max_steps: int | None = overridable(
        None,
        "optimiser steps; default: --num-train-epochs; on the playground 200, with grpo 300",
        least=1,
    )
    num_train_epochs: float = overridable(
        1.0, "passes over the data, unless --max-steps is given", above=0, idle="max_steps"
    )
    per_device_train_batch_size: int = resumable(
        64,
        "conversations per process and step; --max-length decides how many run at once",
        least=1,
        idle="train_batch_size",
    )
    gradient_accumulation_steps: int = resumable(
        1, "multiplies the batch of an optimiser step", least=1, idle="train_batch_size"
    )
    train_batch_size: int | None = option(None, "global batch size; replaces the two flags above", least=1)

    optim: Literal["adamw", "muon"] = option(
        "adamw", "adamw, or muon for inner matrices and adamw for the rest"
    )
    learning_rate: float | None = overridable(
        None,
        "peak of adamw; default: from a model 1e-5, in grpo 1e-6, at 7B and more the smaller it is (as 1 "
        "over the root of its size), for LoRA ten times that; from scratch 2e-3; grpo on the playground 1e-4",
        above=0,
    )
    muon_learning_rate: float = overridable(
        0.008, "peak of muon; at 0.02 a small model's attention saturates", above=0, idle="optim adamw"
    )
    lr_scheduler_type: Literal["cosine", "linear", "constant"] = option("cosine", "after the warm-up")
    min_lr_rate: float = option(
        0.0,
        "end of cosine and linear, as a share of the peak",
        least=0,
        most=1,
        idle="lr_scheduler_type constant",
    )
    warmup_ratio: float = option(0.05, "share of the steps with a rising learning rate", least=0, most=1)
    weight_decay: float = option(0.0, "of matrices and embeddings", least=0)
    adam_beta1: float = option(0.9, "first moment", least=0, below=1)
    adam_beta2: float = option(0.98, "second moment", least=0, below=1)
    max_grad_norm: float = option(1.0, "scale longer gradients down to this norm", above=0)

    nproc_per_node: int = resumable(
        1, "processes on this machine; asked to stop, they save and exit 0", least=1
    )
    device: str | None = resumable(None, "default: cuda if there is one, else cpu")
    kernels: Literal["torch", "triton"] | None = resumable(
        None, "attention and log-probs; default: triton on a GPU, torch elsewhere"
    )
    bf16: bool | None = overridable(
        None, "compute in bfloat16, learn in float32; default: on a GPU, and with LoRA on CPUs made for it"
    )
    activation_checkpointing: Literal["off", "selective", "full"] | None = resumable(
        None, "recompute activations, to save memory; default: selective on a GPU, else off"
    )
    replicate: int = resumable(
        1, "groups that each hold the whole model (hybrid sharding): one a node", least=1
    )
    tensor_parallel: int = resumable(1, "processes that answer with one model together", least=1)
    context_parallel: int = resumable(1, "processes that share the tokens of a pack", least=1)
    num_threads: int | None = resumable(
        None, "CPU threads of a process; default: torch's own choice divided", least=1
    )

    logging_steps: int = resumable(1, "a line every N steps", least=1)
    save_steps: int = resumable(
        0, "a checkpoint every N steps, from which the same command resumes; 0: none", least=0
    )
    save_total_limit: int | None = resumable(2, "keep this many checkpoints, the newest", least=1)
    eval_steps: int = resumable(50, "held-out loss and answers every N steps; 0: never", least=0)
    eval_samples: int = evaluating(35, "held-out samples per evaluation", least=1)
    eval_max_new_tokens: int = evaluating(256, "most tokens of a held-out answer", least=1)
    eval_split: Literal["test", "rl", "generalisation"] = evaluating(
        "test", "split of the playground whose questions are answered"
    )
    report_to: Literal["none", "tensorboard", "wandb"] = resumable(
        "none", "also log there; must be installed"
    )

    __post_init__ = check_bounds

    @property
    def steps_per_row(self) -> int:
        """In how many optimiser steps a row is learned from before the next rows are."""
        return 1

    @property
    def frozen_parts(self) -> tuple[str, ...]:
        return tuple(part.strip() for part in (self.freeze or "").split(",") if part.strip())

    @property
    def asks(self) -> bool:
        """Whether there are held-out questions."""
        return bool(self.eval_data or self.data == PLAYGROUND)


@dataclass(frozen=True, kw_only=True)
class SFTConfig(LoraOptions, ReadingOptions, TrainConfig):  # --help lists those of the last first
    """Options of supervised fine-tuning."""


@dataclass(frozen=True, kw_only=True)
class GRPOConfig(LoraOptions, ReadingOptions, TrainConfig):
    """Options of reinforcement learning."""

    endless_steps = 300

    stage: Literal["sft", "grpo"] = option("grpo", STAGES)
    model: str = option("r1ov-tiny-sft", "model folder, hub name or r1ov-tiny-sft to start from")
    lr_scheduler_type: Literal["cosine", "linear", "constant"] = option("linear", "after the warm-up")
    warmup_ratio: float = option(0.0, "share of the steps with a rising learning rate", least=0, most=1)
    adam_beta2: float = option(0.999, "second moment", least=0, below=1)
    eval_samples: int = evaluating(210, "held-out questions per evaluation", least=1)
    eval_split: Literal["test", "rl", "generalisation"] = evaluating(
        "rl", "split of the playground whose questions are answered, with other scenes"
    )
    per_device_train_batch_size: int = resumable(
        128,
        "completions per process and step; --max-length decides how many run at once",
        least=1,
        idle="train_batch_size",
    )

    num_generations: int = option(8, "G, completions per prompt")
    max_completion_length: int = option(256, "most tokens of a completion", least=1, of_loss=True)
    temperature: float = option(
        1.0, "of sampling and of the loss; at 0 the completions of a prompt would all be the same", above=0
    )
    max_num_seqs: int | None = resumable(
        None,
        "most completions decoded at once, the others as rows finish; default: all",
        least=1,
    )
    num_iterations: int = option(1, "mu, passes over the completions of a rollout", least=1)
    steps_per_generation: int = option(
        1, "optimiser steps per rollout, each on its own slice (TRL counts micro-batches)", least=1
    )
    beta: float = option(
        0.0,
        "weight of the KL term; 0: no reference model, and completions of advantage 0 are not trained on",
        least=0,
        of_loss=True,
    )
    epsilon: float = option(0.2, "clip the ratio below 1 - epsilon", least=0, of_loss=True)
    epsilon_high: float | None = option(
        None,
        "and above 1 + this; default: epsilon. With cispo: the cap of the ratio itself",
        least=0,
        of_loss=True,
    )
    delta: float | None = option(
        None, "a second cap of the ratio, for negative advantages; default: none", of_loss=True
    )
    loss_type: LossType = option("dapo", "how tokens are weighted", of_loss=True)
    scale_rewards: ScaleRewards = option("group", "standard deviation that divides the advantages")
    importance_sampling_level: ImportanceSamplingLevel = option(
        "token", "one ratio per token, or per completion (GSPO)", of_loss=True
    )
    use_bias_correction_kl: bool = option(
        True, "multiply the KL term by the ratio", of_loss=True, idle="beta 0.0"
    )
    mask_truncated_completions: bool = option(False, "do not train on completions cut off at the limit")
    dynamic_sampling: bool = option(False, "replace groups whose rewards are all equal")
    max_resamplings: int = option(3, "most rounds of replacement per rollout, of bad prompts too", least=0)
    importance_sampling_correction: bool = option(False, "weight tokens by trainer / sampler probability")
    importance_sampling_cap: float = option(
        2.0, "of that weight", idle="importance_sampling_correction False"
    )
    start_share: float = option(
        0.0, "share of the weights that training began from in the final ones", least=0, below=1
    )

    reward_funcs: tuple[str, ...] = option(
        ("accuracy", "format"), "accuracy, format or soft_format; may be repeated"
    )
    reward_weights: tuple[float, ...] = option((), "a weight per reward, in this order; default: 1")
    reward: str | None = option(
        None,
        "FILE.py:function, your own reward beside these: function(prompt, completion, row, info) -> score, "
        "None or {name: score}; or TRL's function(prompts, completions, **columns) -> [score]",
    )
    wrong_reward: float = option(0.0, "accuracy reward of a wrong answer")
    overlong_cache: int | None = option(
        None, "penalty of up to 1 in this many tokens before the limit (DAPO); default: none"
    )
    answer_from: Literal["tag", "boxed"] = option("tag", "where the answer is: <answer> or \\boxed{}")
    iou_mode: Literal["threshold", "soft"] = option(
        "threshold", "reward of a box: 1 from an IoU of 0.5, or the IoU itself"
    )
    sample_steps: int = resumable(
        10, "write some completions and rewards to samples/ every N steps; 0: never", least=0
    )

    def __post_init__(self):
        super().__post_init__()
        check_loss_options(**self.loss_options)
        if self.num_generations < 2:
            raise UserError(
                f"--num-generations is {self.num_generations}; a group needs 2 or more completions to compare"
            )
        if unknown := set(self.reward_funcs) - {"accuracy", "format", "soft_format"}:
            raise UserError(
                f"--reward-funcs: there is no {sorted(unknown)[0]!r}; there are accuracy, format, "
                "soft_format (--reward: your own)"
            )
        if self.start_share and self.is_lora:
            raise UserError("--start-share is of all weights; for less of an adapter lower --lora-alpha")
        rewards, weights = len(self.reward_funcs) + bool(self.reward), len(self.reward_weights)
        if weights not in (0, rewards):
            raise UserError(f"--reward-weights: {weights} for {rewards} rewards")
        if self.overlong_cache is not None and not 0 < self.overlong_cache <= self.max_completion_length:
            raise UserError(
                f"--overlong-cache is {self.overlong_cache}; it must be from 1 to --max-completion-length"
            )

    @property
    def steps_per_row(self) -> int:
        return self.num_iterations * self.steps_per_generation

    @property
    def loss_options(self) -> dict:
        """Those of `grpo_loss`."""
        return marked(self, "of_loss")


def check_loss_options(
    loss_type: str = "dapo",
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
    delta: float | None = None,
    beta: float = 0.0,
    importance_sampling_level: str = "token",
    **_others: object,
) -> None:
    """Raises UserError for what `grpo_loss` cannot mean; a run asks before it loads anything."""
    for name, value, choices in (
        ("loss_type", loss_type, LossType),
        ("importance_sampling_level", importance_sampling_level, ImportanceSamplingLevel),
    ):
        if value not in get_args(choices):
            raise UserError(f"{name} is {value!r}; it must be one of {', '.join(get_args(choices))}")
    for name, number in (("epsilon", epsilon), ("epsilon_high", epsilon_high), ("beta", beta)):
        if number is not None and not 0 <= number < math.inf:
            raise UserError(f"{name} is {number}; it must be 0 or more")
    if loss_type == "cispo" and (epsilon_high or 0) < 1:
        raise UserError(
            f"epsilon_high is {epsilon_high}; with loss_type cispo it caps the ratio itself and must be 1 or "
            "more (ScaleRL: 5.0)"
        )
    if delta is None:
        return
    if loss_type == "cispo":
        raise UserError(f"delta is {delta}; loss_type cispo has no second clip, leave delta out")
    high = epsilon if epsilon_high is None else epsilon_high
    if not 1 + high < delta < math.inf:
        raise UserError(
            f"delta is {delta}; it caps the ratio where the clip at {1 + high:g} does not: it must be above"
        )
