"""What both loops share: the model laid out and loaded, the update, and what is written after it.

A loop asks for the gradients of a step and nothing else; `Run` does the rest. Its methods are called by all
processes at the same steps.
"""

import json
import math
import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from r1ov.cli import marked
from r1ov.common.device import choose_kernels
from r1ov.common.files import check_same_options, write_json
from r1ov.common.processes import World, joined
from r1ov.common.stopping import stopping
from r1ov.data.processor import Processor
from r1ov.errors import UserError
from r1ov.folder import pretrained
from r1ov.folder.pretrained import resolve
from r1ov.folder.settings import read_processor
from r1ov.folder.weights import init_weights, is_sharded, load_weights
from r1ov.model.model import Qwen2_5_VL
from r1ov.train.optim import build_optimizers, learning_rate_factor
from r1ov.train.run.checkpoint import Checkpoints
from r1ov.train.run.config import TrainConfig
from r1ov.train.run.distributed import clip_grad_norm
from r1ov.train.run.log import Log, duration, say
from r1ov.train.run.sharding import checkpoint_activations, freeze, make_mesh, refresh, replica, shard

PEAK_FLOPS = {
    "H100": 989e12,
    "H200": 989e12,
    "H800": 989e12,
    "A100": 312e12,
    "A800": 312e12,
    "B200": 2250e12,
}  # dense bfloat16, by name


@dataclass(kw_only=True)
class Run:
    """A run in the midst of its steps. `step` is how many are done."""

    config: TrainConfig
    world: World
    device: torch.device
    out: Path
    model: Qwen2_5_VL
    processor: Processor
    kernels: str
    max_steps: int
    train_batch_size: int  # rows of a step, over all processes and micro-batches
    optimizers: list[torch.optim.Optimizer]
    checkpoints: Checkpoints
    stop: threading.Event
    log: Log | None  # the main process's
    step: int = 0
    extra: dict[str, Any] = field(
        default_factory=dict
    )  # what else a checkpoint keeps: num_tokens, skipped_steps, ...

    def __post_init__(self):
        self.peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in self.optimizers]
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.begun = self.since = time.perf_counter()
        self.first_step, self.skipped_in_a_row, self.is_save_due = self.step, 0, False
        self._replica: Qwen2_5_VL | None = None

    def introduce(self, rows_per_epoch: int | None) -> None:
        """What is about to be done, in a few lines."""
        if not self.world.is_main:
            return
        config, world = self.config, self.world
        total = sum(parameter.numel() for parameter in self.model.parameters())
        trained = sum(parameter.numel() for parameter in self.parameters)
        share = f"{total / 1e6:,.2f} M parameters" + (
            "" if trained == total else f", {trained / 1e6:,.2f} M of them learn"
        )
        rows = "" if rows_per_epoch is None else f", {rows_per_epoch:,} rows"
        per_process = (
            (16 * trained + 4 * (total - trained)) * config.replicate / world.size
        )  # weights, gradients, AdamW's two moments
        sharding = (
            "whole in each process" if world.size == 1 else f"sharded over {world.size // config.replicate}"
        )
        sharding += f", {config.replicate} times" if config.replicate > 1 else ""
        threads = f"{world.size} process(es) of {torch.get_num_threads()} thread(s)"
        dtype = str(self.compute_dtype).removeprefix("torch.")
        say(
            f"{config.stage:<8}{config.model or f'from scratch, as {config.config_name}'}, {share}, on {config.data}{rows} -> {self.out}/"
        )
        say(
            f"run     {self.device}, {dtype}, {self.kernels} kernels, {threads}, model {sharding}, seed {config.seed}"
        )
        say(
            f"memory  {per_process / 1e9:.2f} GB a process for weights, gradients and optimizer; activations come on top"
        )
        say(
            f"step    {self.train_batch_size} conversations in packs of up to {config.max_length:,} tokens, {config.optim}, "
            f"peak learning rate {config.peak_learning_rate:g}, {self.max_steps:,} steps"
        )
        if self.step:
            say(f"resume  after step {self.step}, from {self.out}/checkpoints")

    def learning_rate(self) -> float:
        """Of this step, as a share of the peak."""
        config = self.config
        warmup_steps = round(config.warmup_ratio * self.max_steps)
        return learning_rate_factor(
            self.step, self.max_steps, warmup_steps, config.lr_scheduler_type, config.min_lr_rate
        )

    def update(self) -> dict[str, float]:
        """One step of the optimizers with the gradients that have been summed up; they are gone then.

        A gradient that is not finite anywhere skips the step everywhere. Raises: UserError after too many of
        these in a row.
        """
        grad_norm = clip_grad_norm(self.parameters, self.config.max_grad_norm)
        factor = self.learning_rate()
        is_finite = math.isfinite(grad_norm)  # the same number on all ranks
        self.skipped_in_a_row = 0 if is_finite else self.skipped_in_a_row + 1
        for optimizer, peaks in zip(self.optimizers, self.peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
            if is_finite:
                optimizer.step()
            optimizer.zero_grad()
        if not is_finite:
            self.extra["skipped_steps"] = self.extra.get("skipped_steps", 0) + 1
            if self.world.is_main:
                say(f"note    step {self.step + 1} is skipped: the gradient's length is {grad_norm}")
            if self.skipped_in_a_row >= self.config.max_skipped_steps:
                raise UserError(
                    f"step {self.step + 1}: the gradient's length is {grad_norm}, {self.skipped_in_a_row} times in a row; lower the "
                    "learning rate, or warm up longer"
                )
        self.step += 1
        return {"grad_norm": grad_norm, "learning_rate": self.config.peak_learning_rate * factor}

    @property
    def is_logged(self) -> bool:
        """Whether the step under way gets a line."""
        return (self.step + 1) % self.config.logging_steps == 0 or self.step + 1 == self.max_steps

    def end_step(
        self, metrics: dict[str, float], is_logged: bool, cost: float = 0.0, may_stop: bool = True
    ) -> bool:
        """Writes the line and the checkpoint that are due after a step; whether the run goes on.

        Args:
            cost: floating-point operations of the step, all ranks together.
            may_stop: False in the midst of what a checkpoint cannot hold; what is due then waits.
        """
        seconds, self.since = time.perf_counter() - self.since, time.perf_counter()
        is_stopped = self.world.sum(self.stop.is_set())[0] > 0
        if self.log and is_logged:
            times = {"step_ms": 1000 * seconds}
            for name in ("tokens", "samples"):
                if (count := metrics.pop(f"step_{name}", None)) is not None:
                    times[f"{name}_per_second"] = count / seconds
            if self.device.type == "cuda":
                times["memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
                if cost and (peak := peak_flops(self.device)) and self.compute_dtype == torch.bfloat16:
                    times["mfu"] = cost / seconds / (peak * self.world.size)
            left = (self.max_steps - self.step) * (self.since - self.begun) / (self.step - self.first_step)
            self.log.step({"step": self.step, **metrics, **times}, left)
        self.is_save_due |= bool(self.config.save_steps) and self.step % self.config.save_steps == 0
        if not may_stop:
            return True
        if self.is_save_due or (is_stopped and self.step < self.max_steps):
            self.checkpoints.save(self.step, self.model, self.optimizers, self.extra)
            self.is_save_due = False
        if is_stopped and self.step < self.max_steps and self.world.is_main:
            say(f"stop    after step {self.step}, saved; the same command goes on")
        return not is_stopped or self.step == self.max_steps

    @property
    def compute_dtype(self) -> torch.dtype:
        return compute_dtype(self.config, self.device)

    def answering_model(self) -> Qwen2_5_VL:
        """The model as it is now, whole in every process, for decoding: itself, or of a sharded one a copy.
        All call this together.
        """
        if not is_sharded(self.model):
            return self.model
        if self._replica is None:
            self._replica = replica(self.model, self.compute_dtype)
        else:
            refresh(self._replica, self.model)
        return self._replica

    def finish(self) -> None:
        """Leaves the trained model in `out`/final."""
        pretrained.save(self.model, self.processor, self.out / "final", dtype=torch.float32)
        if self.log:
            # For whoever asks the model later: its training put each question as the data had it.
            images = self.processor.image_processor
            limits = {"min_pixels": images.min_pixels, "max_pixels": images.max_pixels}
            write_json(
                self.out / "final" / "r1ov.json", {"stage": self.config.stage, "prompt": "none", **limits}
            )
            self.log.draw()
            say(
                f"done    {duration(time.perf_counter() - self.begun)}; model in {self.out}/final, curves in {self.out}/curves.png"
            )
            say(f"try it  python generate.py --model {self.out}/final --image PICTURE")


def compute_dtype(config: TrainConfig, device: torch.device) -> torch.dtype:
    on_gpu = device.type == "cuda"
    return torch.bfloat16 if (on_gpu if config.bf16 is None else config.bf16) else torch.float32


def peak_flops(device: torch.device) -> float | None:
    """Of one GPU whose peak is known, in bfloat16, operations a second."""
    name = torch.cuda.get_device_name(device)
    return next((peak for known, peak in PEAK_FLOPS.items() if known in name), None)


def build(config: TrainConfig, world: World, device: torch.device) -> tuple[Qwen2_5_VL, Processor]:
    """The model to train, its weights in float32, with its processor: loaded, or drawn afresh in the shape of
    `config_name`.

    Sharded wherever there is more than one process, or a GPU; no process then ever holds the whole of it.
    """
    is_to_be_sharded = world.size > 1 or device.type == "cuda"
    dtype = compute_dtype(config, device)
    if dtype == torch.bfloat16 and not is_to_be_sharded:
        raise UserError(
            "--bf16 needs a GPU or several processes: one process on a CPU computes in float32, which is faster there"
        )

    folder = resolve(config.model or config.config_name)
    processor = read_processor(folder)
    model = pretrained.build(processor.config)
    freeze(model, config.frozen_parts)
    checkpoint_activations(model, config.activation_checkpointing)
    if is_to_be_sharded:
        # CPUs have memory to spare, and gathering twice takes their time.
        mesh = make_mesh(world, device, config.replicate)
        shard(model, mesh, dtype, reshard_after_forward=device.type != "cpu")
    if config.model:
        load_weights(model, folder, device, torch.float32)
    else:
        model.to_empty(device=device)
        init_weights(model, torch.Generator().manual_seed(config.seed))
    return model, processor.with_pixel_limits(config.min_pixels, config.max_pixels)


def set_threads(config: TrainConfig) -> None:
    """Several processes on one machine share its cores: torchrun gives each a single thread, unless
    OMP_NUM_THREADS says otherwise.
    """
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    elif local > 1 and os.environ.get("OMP_NUM_THREADS") == "1":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // local))
    torch.set_flush_denormal(
        True
    )  # gradients of a peaked softmax are full of denormals: ten times slower without


def resolved(config: TrainConfig, **settled: Any) -> dict[str, Any]:
    """All options as config.json keeps them, what was left open settled."""
    return {**asdict(config), "learning_rate": config.peak_learning_rate, **settled}


def earlier_run(out: Path) -> dict[str, Any] | None:
    """The options of an unfinished run in this folder. Raises: UserError if there is a finished one, or none
    can be made there.
    """
    if (out / "final" / "config.json").exists():
        raise UserError(f"{out} already holds a finished run; choose another --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
        return json.loads((out / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"--out {out}: cannot be used ({error.strerror}); choose another folder") from error
    except ValueError as error:
        raise UserError(
            f"{out / 'config.json'} is damaged ({error}); choose another --out, or remove the folder"
        ) from error


@contextmanager
def open_run(config: TrainConfig, rows_per_epoch: int | None) -> Iterator[Run]:
    """The run that these options describe, at its beginning or where its last checkpoint left it.

    Args: rows_per_epoch: how many rows the data has; None if they have no end.
    """
    set_threads(config)
    out = Path(config.out)
    with ExitStack() as stack:
        world, device = stack.enter_context(joined(config.device))
        before = earlier_run(out)
        kernels = choose_kernels(config.kernels, device)
        model, processor = build(config, world, device)
        betas = (config.adam_beta1, config.adam_beta2)
        optimizers = build_optimizers(
            model,
            config.optim,
            config.peak_learning_rate,
            config.muon_learning_rate,
            betas,
            config.weight_decay,
        )
        checkpoints = stack.enter_context(Checkpoints(out / "checkpoints", world, config.save_total_limit))
        batch_size = (
            config.train_batch_size
            or config.per_device_train_batch_size * config.gradient_accumulation_steps * world.size
        )
        if before and checkpoints.steps():  # the rows of a step stay the same on any number of processes
            batch_size = config.train_batch_size or before["train_batch_size"]
        max_steps = config.max_steps or (config.endless_steps if rows_per_epoch is None else 0)
        max_steps = max_steps or math.ceil(config.num_train_epochs * rows_per_epoch / batch_size)
        options = resolved(
            config,
            max_steps=max_steps,
            train_batch_size=batch_size,
            device=str(device),
            world_size=world.size,
        )
        step, extra = 0, {}
        if before and checkpoints.steps():
            check_same_options(before, options, {*marked(config, "resumable"), "world_size"}, "this run")
            step, extra = checkpoints.load_latest(model, optimizers) or (0, {})
        elif before and world.is_main:
            say(f"note    {out}/ holds a run without a checkpoint; it begins anew")
        log = None
        if world.is_main:
            write_json(out / "config.json", options)
            log = Log(out, max_steps, step, config.report_to)
            stack.callback(log.close)
        yield Run(
            config=config,
            world=world,
            device=device,
            out=out,
            model=model,
            processor=processor,
            kernels=kernels,
            max_steps=max_steps,
            train_batch_size=batch_size,
            optimizers=optimizers,
            checkpoints=checkpoints,
            stop=stack.enter_context(
                stopping("stopping after this step, with a checkpoint" if world.is_main else "")
            ),
            log=log,
            step=step,
            extra=extra,
        )
