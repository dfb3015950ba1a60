"""What a training run can be told. Names are TRL's and Hugging Face Trainer's; every field is a flag of train.py."""

from dataclasses import dataclass
from typing import Literal

from r1ov.cli import option
from r1ov.errors import UserError


@dataclass(frozen=True, kw_only=True)
class SFTConfig:
    stage: Literal["sft"] = option("sft", "which loop: sft, supervised fine-tuning")
    model: str | None = option(None, "model folder, hub name or r1ov-tiny to start from; default: train from scratch")
    config_name: str = option("r1ov-tiny", "from scratch: the model whose architecture and processor are taken, its weights not")
    data: str = option("playground", "what to learn from: playground, the built-in pictures")
    out: str = option("runs/sft", "folder of the run: config.json, log.jsonl, curves.png, samples/, final/")
    seed: int = option(0, "decides the weights drawn, and which samples are seen in which order")
    device: str | None = option(None, "default: cuda if there is one, else cpu")
    kernels: Literal["torch", "triton"] | None = option(None, "attention and log-probs; default: triton on a GPU, torch elsewhere")
    num_threads: int | None = option(None, "CPU threads; default: torch's own choice")

    max_steps: int = option(200, "optimiser steps")
    per_device_train_batch_size: int = option(64, "conversations in one packed micro-batch")
    gradient_accumulation_steps: int = option(1, "micro-batches in one optimiser step")
    dataloader_num_workers: int = option(1, "processes that draw and encode ahead of the training step; 0: none")

    optim: Literal["adamw", "muon"] = option("adamw", "adamw, or muon for the inner matrices and adamw for the rest")
    learning_rate: float | None = option(None, "peak, of adamw; default: 2e-3 from scratch, 1e-5 from a model")
    muon_learning_rate: float = option(0.008, "peak, of muon; at 0.02 a small model's attention hardens within a thousand steps")
    lr_scheduler_type: Literal["cosine", "linear", "constant"] = option("cosine", "what follows the warm-up")
    min_lr_rate: float = option(0.0, "where cosine and linear end, as a share of the peak")
    warmup_ratio: float = option(0.05, "share of the steps in which the learning rate climbs")
    weight_decay: float = option(0.0, "of matrices and embeddings")
    adam_beta1: float = option(0.9, "first moment")
    adam_beta2: float = option(0.98, "second moment")
    max_grad_norm: float = option(1.0, "longer gradients are scaled down to this length")

    logging_steps: int = option(1, "a line every so many steps")
    save_steps: int = option(0, "weights to checkpoints/step-N every so many steps; 0: only final/")
    eval_steps: int = option(50, "sample answers and accuracy on the test split every so many steps; 0: never")
    eval_samples: int = option(35, "held-out questions answered each time")

    def __post_init__(self):
        for name in ("max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "logging_steps", "eval_samples"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be 1 or more")
        for name in ("dataloader_num_workers", "save_steps", "eval_steps", "weight_decay"):
            if getattr(self, name) < 0:
                raise UserError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must not be negative")
        for name in ("adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be from 0 to below 1")
        if self.num_threads is not None and self.num_threads < 1:
            raise UserError(f"--num-threads is {self.num_threads}; it must be 1 or more")
        for name in ("warmup_ratio", "min_lr_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be from 0 to 1")
        for name in ("learning_rate", "muon_learning_rate", "max_grad_norm"):
            if getattr(self, name) is not None and not 0 < getattr(self, name) < float("inf"):
                raise UserError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be above 0")
        if self.data != "playground":
            raise UserError(f"--data is {self.data!r}; so far only the built-in 'playground' can be read")

    @property
    def peak_learning_rate(self) -> float:
        return self.learning_rate or (1e-5 if self.model else 2e-3)

    @property
    def warmup_steps(self) -> int:
        return round(self.warmup_ratio * self.max_steps)
