"""What both loops share: a run's data, its model laid out and loaded, and what is written after each step."""

import math
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

import torch

from r1ov.cli import marked
from r1ov.common.device import choose_kernels, dtype_name
from r1ov.common.files import check_same_options, earlier_options, write_json
from r1ov.common.processes import World, joined
from r1ov.common.stopping import stopping
from r1ov.data.formats.mixture import Mixture, open_data
from r1ov.data.playground.source import Playground
from r1ov.data.processor import Processor
from r1ov.data.steps import Source
from r1ov.errors import UserError
from r1ov.folder import pretrained
from r1ov.folder.pretrained import resolve as find_folder
from r1ov.folder.settings import read_processor
from r1ov.folder.weights import init_weights, is_sharded, load_weights
from r1ov.model.model import Qwen2_5_VL
from r1ov.train.optim import build_optimizers
from r1ov.train.run.checkpoint import Checkpoints
from r1ov.train.run.config import PLAYGROUND, TrainConfig
from r1ov.train.run.log import Log, duration, say
from r1ov.train.run.sharding import checkpoint_activations, freeze, make_mesh, refresh, replica, shard

PEAK_FLOPS = {  # dense bfloat16 operations a second, by name
    "H100": 989e12,
    "H200": 989e12,
    "H800": 989e12,
    "A100": 312e12,
    "A800": 312e12,
    "B200": 2250e12,
}


@dataclass(kw_only=True)
class Run:
    """The state of a run; `step` counts finished steps. Collective: all ranks call its methods together."""

    config: TrainConfig  # with nothing left open
    world: World
    device: torch.device
    kernels: str
    model: Qwen2_5_VL
    processor: Processor
    optimizers: list[torch.optim.Optimizer]
    checkpoints: Checkpoints
    stop: threading.Event
    log: Log | None  # the main process's
    step: int = 0
    extra: dict[str, Any] = field(default_factory=dict)  # what else a checkpoint keeps: num_tokens, ...

    def __post_init__(self):
        self.out = Path(self.config.out)
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.first_step, self.skipped_in_a_row, self.is_save_due = self.step, 0, False
        self._replica: Qwen2_5_VL | None = None
        self.start_clock()

    def start_clock(self) -> None:
        """Call just before the first step: what came before it is not the step's time."""
        self.begun = self.since = time.perf_counter()

    def introduce(self, num_rows: int | None) -> None:
        """Says what is about to be done, in a few lines."""
        if not self.world.is_main:
            return
        config, size, copies = self.config, self.world.size, self.config.replicate
        total = sum(parameter.numel() for parameter in self.model.parameters())
        trained = sum(parameter.numel() for parameter in self.parameters)
        parameters = f"{total / 1e6:,.2f} M parameters"
        parameters += "" if trained == total else f", {trained / 1e6:,.2f} M of them learn"
        rows = "" if num_rows is None else f", {num_rows:,} rows"
        name = config.model or f"from scratch, as {config.config_name}"
        sharding = "whole in each process" if size == 1 else f"sharded over {size // copies}"
        sharding += f", {copies} times" if copies > 1 else ""
        # weights, gradients, AdamW's two moments; weights alone of what does not learn
        memory = (16 * trained + 4 * (total - trained)) * copies / size
        unit = "conversations" if config.stage == "sft" else "completions"
        say(f"{config.stage:<8}{name}, {parameters}, on {config.data}{rows} -> {self.out}/")
        say(
            f"run     {self.device}, {dtype_name(self.compute_dtype)}, {self.kernels} kernels, {size} process(es) "
            f"of {torch.get_num_threads()} thread(s), model {sharding}, seed {config.seed}"
        )
        say(
            f"memory  {memory / 1e9:.2f} GB a process for weights, gradients and optimizer; activations come "
            "on top"
        )
        say(
            f"step    {config.train_batch_size} {unit} in packs of up to {config.max_length:,} tokens, "
            f"{config.optim}, peak learning rate {config.learning_rate:g}, {config.max_steps:,} steps"
        )
        if self.step:
            say(f"resume  after step {self.step}, from {self.out}/checkpoints")

    @property
    def is_logged(self) -> bool:
        """Whether the step under way gets a line."""
        return (self.step + 1) % self.config.logging_steps == 0 or self.step + 1 == self.config.max_steps

    @property
    def is_eval_due(self) -> bool:
        """Whether the model is to be evaluated as it is after `step` steps."""
        every = self.config.eval_steps
        return every > 0 and (self.step % every == 0 or self.step == self.config.max_steps)

    @property
    def compute_dtype(self) -> torch.dtype:
        return compute_dtype(self.config, self.device)

    def answering_model(self) -> Qwen2_5_VL:
        """The model as it is now, whole on every rank, for decoding: itself, or a copy of a sharded one."""
        if not is_sharded(self.model):
            return self.model
        if self._replica is None:
            self._replica = replica(self.model, self.compute_dtype)
        else:
            refresh(self._replica, self.model)
        return self._replica

    def end_step(
        self, metrics: dict[str, float], counts: Mapping[str, float] | None = None, may_stop: bool = True
    ) -> bool:
        """Counts the step, writes the line and the checkpoint that are due; returns whether the run goes on.

        Args:
            counts: tokens, samples, flops of the step, over all ranks: their rates are logged.
            may_stop: False inside a rollout, where saving is postponed.
        """
        config, is_logged = self.config, self.is_logged
        self.step += 1
        seconds, self.since = time.perf_counter() - self.since, time.perf_counter()
        is_last, is_stopped = self.step == config.max_steps, self.world.sum(self.stop.is_set())[0] > 0
        if self.log and is_logged:
            rates = {f"{name}_per_second": count / seconds for name, count in (counts or {}).items()}
            if self.device.type == "cuda":
                rates |= self._gpu_metrics(rates)
            rates.pop("flops_per_second", None)
            left = (config.max_steps - self.step) * (self.since - self.begun) / (self.step - self.first_step)
            self.log.step({"step": self.step, **metrics, "step_ms": 1000 * seconds, **rates}, left)
        self.is_save_due |= config.save_steps > 0 and self.step % config.save_steps == 0
        if not may_stop:
            return True
        if self.is_save_due or (is_stopped and not is_last):
            self.checkpoints.save(self.step, self.model, self.optimizers, self.extra)
            self.is_save_due = False
        if is_stopped and not is_last and self.world.is_main:
            say(f"stop    after step {self.step}, saved; the same command goes on")
        return is_last or not is_stopped

    def _gpu_metrics(self, rates: Mapping[str, float]) -> dict[str, float]:
        """Peak memory, and the share of the GPUs' peak speed where that is known."""
        metrics = {"memory_gb": torch.cuda.max_memory_allocated() / 1e9}
        peak = peak_flops(self.device)
        if peak and "flops_per_second" in rates and self.compute_dtype == torch.bfloat16:
            metrics["mfu"] = rates["flops_per_second"] / (peak * self.world.size)
        return metrics

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
            took = duration(time.perf_counter() - self.begun)
            say(f"done    {took}; model in {self.out}/final, curves in {self.out}/curves.png")
            say(f"try it  python generate.py --model {self.out}/final --image PICTURE")


def compute_dtype(config: TrainConfig, device: torch.device) -> torch.dtype:
    on_gpu = device.type == "cuda"
    return torch.bfloat16 if (on_gpu if config.bf16 is None else config.bf16) else torch.float32


def peak_flops(device: torch.device) -> float | None:
    """The GPU's bfloat16 operations a second; None if not known."""
    name = torch.cuda.get_device_name(device)
    return next((peak for known, peak in PEAK_FLOPS.items() if known in name), None)


def open_source(config: TrainConfig, need: Literal["reply", "solution"]) -> tuple[Source, int | None]:
    """The training data, and its number of rows; None if it has no end.

    Args: need: what a row must have, a reply to imitate or a solution to be scored against.
    """
    if config.data == PLAYGROUND:
        return Playground("train" if need == "reply" else "rl", config.seed), None
    mixture = open_data(config.data, seed=config.seed, need=need, lazy=True, **config.reading)
    return mixture, len(mixture)


def build(config: TrainConfig, world: World, device: torch.device) -> tuple[Qwen2_5_VL, Processor]:
    """The model to train, in float32, and its processor: loaded, or drawn afresh in `config_name`'s shape.

    Sharded wherever there is more than one process, or a GPU; no process then ever holds the whole of it.
    """
    is_to_be_sharded = world.size > 1 or device.type == "cuda"
    dtype = compute_dtype(config, device)
    if dtype == torch.bfloat16 and not is_to_be_sharded:
        raise UserError(
            "--bf16 needs a GPU or several processes: one process on a CPU computes in float32, which is "
            "faster there"
        )
    folder = find_folder(config.model or config.config_name)
    processor = read_processor(folder)
    model = pretrained.build(processor.config)
    if config.frozen_parts:
        freeze(model, config.frozen_parts)
    if config.activation_checkpointing != "off":
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
    """Deals a machine's cores to its processes, where torchrun leaves each a single thread."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    elif local > 1 and os.environ.get("OMP_NUM_THREADS") == "1":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // local))
    # Gradients of a peaked softmax are full of denormals: ten times slower without.
    torch.set_flush_denormal(True)


def resolve(
    config: TrainConfig, num_rows: int | None, world: World, device: torch.device, before: Mapping[str, Any]
) -> TrainConfig:
    """The options with nothing left open.

    Args: num_rows: None if the data has no end. before: options of the run that is resumed: a step's rows
        stay the same on any number of ranks.
    """
    per_rank = config.per_device_train_batch_size * config.gradient_accumulation_steps
    batch_size = config.train_batch_size or before.get("train_batch_size") or per_rank * world.size
    max_steps = config.max_steps or (
        config.endless_steps
        if num_rows is None
        else math.ceil(config.num_train_epochs * num_rows / batch_size)
    )
    return replace(
        config,
        train_batch_size=batch_size,
        max_steps=max_steps,
        learning_rate=config.peak_learning_rate,
        device=str(device),
    )


def earlier_run(out: Path) -> tuple[dict[str, Any] | None, bool]:
    """The options of the run in this folder, None if there is none, and whether it is finished."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be used ({error.strerror}); choose another folder") from error
    before, is_finished = earlier_options(out / "config.json"), (out / "final" / "config.json").exists()
    if is_finished and not before:
        raise UserError(f"{out}/final already holds a model; choose another --out")
    return before, is_finished


def check_same_run(before: Mapping[str, Any], config: TrainConfig, data: Sequence[str], where: str) -> None:
    """Raises UserError if a run that was begun with the options `before` cannot go on with these options and
    this data, given by its fingerprint.
    """
    pairs = zip_longest(before.get("fingerprint") or data, data, fillvalue="no file")
    changed = [f"{old} is now {new}" for old, new in pairs if old != new]
    if changed and not config.allow_changed_data:
        raise UserError(
            f"the rows of --data {config.data} have changed since the run in {config.out} began: {changed[0]}"
            f"{', ...' * (len(changed) > 1)}; put them back, choose another --out, or go on with "
            "--allow-changed-data"
        )
    may_differ = {*marked(config, "resumable"), "world_size", "fingerprint"}
    check_same_options(before, asdict(config), may_differ, where)


@contextmanager
def open_run(config: TrainConfig, num_rows: int | None, source: Source) -> Iterator[Run]:
    """The run that these options describe, at its beginning or where its last checkpoint left it.

    Args: num_rows: conversations or completions that `source` has for an epoch; None if it has no end.
    Raises: SystemExit, status 0, if the run was finished earlier.
    """
    set_threads(config)
    out = Path(config.out)
    with ExitStack() as stack:
        world, device = stack.enter_context(joined(config.device))
        before, is_finished = earlier_run(out)
        checkpoints = stack.enter_context(Checkpoints(out / "checkpoints", world, config.save_total_limit))
        is_resumed = is_finished or bool(before and checkpoints.steps())
        config = resolve(config, num_rows, world, device, before if is_resumed else {})
        data = source.fingerprint if isinstance(source, Mixture) else ()
        if is_resumed:
            check_same_run(before, config, data, f"the finished run in {out}" if is_finished else "this run")
        if is_finished:
            if world.is_main:
                say(f"done    {out}/ holds this run, finished; model in {out}/final")
            raise SystemExit(0)
        if before and not is_resumed and world.is_main:
            say(f"note    {out}/ holds a run without a checkpoint; it begins anew")
        kernels = choose_kernels(config.kernels, device)
        model, processor = build(config, world, device)
        optimizers = build_optimizers(
            model,
            config.optim,
            config.learning_rate,
            config.muon_learning_rate,
            (config.adam_beta1, config.adam_beta2),
            config.weight_decay,
        )
        step, extra = (is_resumed and checkpoints.load_latest(model, optimizers)) or (0, {})
        log = None
        if world.is_main:
            options = {**asdict(config), "world_size": world.size, "fingerprint": data}
            write_json(out / "config.json", options)
            log = Log(out, config.max_steps, step, config.report_to)
            stack.callback(log.close)
            if isinstance(source, Mixture):
                say(f"data    {source.survey()}")
        announcement = "stopping after this step, with a checkpoint" if world.is_main else ""
        yield Run(
            config=config,
            world=world,
            device=device,
            kernels=kernels,
            model=model,
            processor=processor,
            optimizers=optimizers,
            checkpoints=checkpoints,
            stop=stack.enter_context(stopping(announcement)),
            log=log,
            step=step,
            extra=extra,
        )
