"""What both loops share: a run's data, its model laid out and loaded, and what is written after each step."""

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from functools import cached_property
from itertools import chain, count
from pathlib import Path
from typing import Any, Literal

import torch

from r1ov.cli import flag, marked
from r1ov.common.files import earlier_options, is_finished, locked, say, write_json
from r1ov.common.memory import SMALL, held, plan, return_freed
from r1ov.common.processes import World, choose_kernels, computes_bfloat16, joined, share_cores
from r1ov.common.stopping import stopping
from r1ov.data.formats.reader import Endless, open_data
from r1ov.data.formats.records import Record, Tally, counted
from r1ov.data.playground.source import Playground
from r1ov.data.steps import Source, recognise_boxes
from r1ov.errors import UserError
from r1ov.folder import pretrained
from r1ov.folder.adapter import merge
from r1ov.folder.weights import init_weights, is_sharded, load_weights
from r1ov.model.model import Qwen2_5_VL
from r1ov.model.parallel import form_teams
from r1ov.train.optim import build_optimizers, peak_learning_rate
from r1ov.train.run import sharding
from r1ov.train.run.checkpoint import Checkpoints
from r1ov.train.run.config import PLAYGROUND, TrainConfig
from r1ov.train.run.log import Log, duration, gpu_metrics, introduction, tell
from r1ov.train.run.lora import LORA_DEFAULTS
from r1ov.train.run.state import check_same_run

SURVEYED, MAX_SKIPPED = 1000, 10  # rows of each file that are read before training; steps in a row


def open_source(config: TrainConfig, need: Literal["reply", "solution"]) -> tuple[Source, int | None]:
    """The training data, and its number of rows; None if it has no end. Args: need: what a row must have, a
    reply to imitate or a solution to be scored against.
    """
    if config.data == PLAYGROUND:
        return Playground("train" if need == "reply" else "rl", config.seed), None
    source = open_data(config.data, seed=config.seed, need=need, **config.reading)
    return source, len(source)


@contextmanager
def open_run(config: TrainConfig, source: Source, num_rows: int | None) -> Iterator["Run"]:
    """The run that these options describe, at its beginning or where its last checkpoint left it; SystemExit
    of status 0 if it was finished earlier. Args: num_rows: conversations or completions that `source` has
    for an epoch; None if it has no end.
    """
    torch.set_flush_denormal(True)  # gradients of a peaked softmax are full of them: ten times slower
    with ExitStack() as stack:
        world, device = stack.enter_context(joined(config.device))
        if config.num_threads:
            torch.set_num_threads(config.num_threads)
        elif world.size > 1:
            share_cores()
        yield Run(config, source, num_rows, world, device, stack)


class Run:
    """The state of a run. Collective: all ranks call its methods at the same steps.

    Attributes: masters: what learns, in float32. model: what computes, the same or a bfloat16 copy. config:
        with nothing left open. step: finished steps. extra: what else a checkpoint keeps. tally: of the
        data's rows. log: the main process's, else None. stop: set when asked to stop.
    """

    context, shared = None, slice(None)  # how ranks share a pack's tokens; own of groups sampled together

    def __init__(
        self,
        config: TrainConfig,
        source: Source,
        num_rows: int | None,
        world: World,
        device: torch.device,
        stack: ExitStack,
    ):
        self.world = self.askers = self.trainers = world  # all; to whom prompts, and to whom packs are dealt
        self.device, self.stack, self.source, self.num_rows = device, stack, source, num_rows
        held_out = open_data(config.eval_data, split="test").fingerprint if config.eval_data else ()
        files = (*source.fingerprint, *held_out)
        self.folders = pretrained.find(config.model or config.config_name, config.adapter)
        processor = pretrained.read_processor(self.folders.settings)
        self.processor = processor.with_pixel_limits(config.min_pixels, config.max_pixels)
        parameters = sum(map(torch.numel, pretrained.build(processor.config).parameters()))
        config = replace(config, adapter=self.folders.adapter and str(self.folders.adapter))
        config = replace(config, learning_rate=peak_learning_rate(config, parameters))
        if parameters > SMALL:
            return_freed()
        before, config = settle(config, num_rows, files, world, device)
        self.config, self.out, self.log = config, Path(config.out), None
        is_longer = is_finished(self.out)
        if is_longer and before["max_steps"] == config.max_steps:
            if world.is_main:
                say(f"done    {self.out}/ holds this run, finished; model in {self.out}/final")
            raise SystemExit(0)
        if world.is_main:
            stack.enter_context(locked(self.out))
            if not before and (self.out / "config.json").exists():
                say(f"note    {self.out}/ holds a run without a checkpoint; it begins anew")
        self.kernels = choose_kernels(config.kernels, device)
        is_lean = parameters > SMALL and config.is_lora and computes_bfloat16(device)  # no float32 is kept
        is_bf16 = config.bf16 if config.bf16 is not None else is_lean or device.type == "cuda"
        self.dtype = torch.bfloat16 if is_bf16 else torch.float32  # of the arithmetic
        self.masters = self.build()
        if isinstance(source, Endless):
            recognise_boxes(source.reader, self.processor)
        self.parameters = [parameter for parameter in self.masters.parameters() if parameter.requires_grad]
        self.optimizers = build_optimizers(self.masters, config)
        self.step, self.extra, self.changed = 0, {}, []
        if before:
            self._resume(before, is_longer)
        self.model = self.masters
        if is_bf16 and world.size == 1 and not self.model.lora:
            mode = config.activation_checkpointing
            self.model = sharding.computing_copy(self.model, self.dtype, mode, self.optimizers[-1])
        if config.tensor_parallel * config.context_parallel > 1:
            form_teams(self)
        self.first_step, self.is_save_due = self.step, False
        self.options = {**asdict(config), "world_size": world.size, "fingerprint": files}
        note = "stopping after this step, or rollout, with a checkpoint" * world.is_main
        self.stop = stack.enter_context(stopping(note))

    def build(self) -> Qwen2_5_VL:
        """The model to train, in float32 and sharded over all processes, loaded or drawn."""
        config, world, device, sizes = self.config, self.world, self.device, self.processor.config
        if vars(config) | LORA_DEFAULTS != vars(config):
            return sharding.build_adapted(config, self.folders, sizes, world, device, self.dtype)
        model = pretrained.build(sizes)
        if config.freeze:
            sharding.freeze(model, config.frozen_parts)
        if config.activation_checkpointing != "off":
            sharding.checkpoint_activations(model, config.activation_checkpointing)
        if world.size * config.replicate > 1:
            sharding.share_out(model, world, device, config.replicate, self.dtype)
        if config.model:
            load_weights(model, self.folders.weights, device, torch.float32)
        else:
            model.to_empty(device=device)
            init_weights(model, torch.Generator().manual_seed(config.seed))
        return model

    def _resume(self, before: Mapping, is_longer: bool) -> None:
        self.step, self.extra = self.checkpoints.load_latest(self.masters, self.optimizers) or (0, {})
        if (is_longer and not self.step) or self.step > self.config.max_steps:
            raise UserError(
                f"--max-steps is {self.config.max_steps}, but the run in {self.out} is "
                f"{f'at step {self.step} already' if self.step else 'finished and kept no checkpoint'}; "
                f"choose another --out, with --model {self.out} to train on from there"
            )
        self.changed = [
            f"{flag(name)} was {before[name]} and is {value}"
            for name, value in marked(self.config, "overridable").items()
            if before.get(name) != value
        ]

    @cached_property
    def checkpoints(self) -> Checkpoints:
        """Made when the first one is read or written."""
        folder, limit = self.out / "checkpoints", self.config.save_total_limit
        return self.stack.enter_context(Checkpoints(folder, self.world, limit))

    def check_data(self, encode: Callable[[Record], Any]) -> None:
        """Begins the account of the data's rows, in a new run with some that are read as training will.
        Raises: UserError where `python -m r1ov.data` refuses the data. Args: encode: raises it for a row.
        """
        config = self.config
        if config.eval_data:
            self._surveyed(open_data(config.eval_data, split="test", **config.reading), None, "eval")
        self.tally = Tally(config.max_bad_share, tell if self.world.is_main else None)
        if not self.step and isinstance(self.source, Endless):
            self.tally.first = self._surveyed(self.source, encode, "data").first  # told there

    def _surveyed(self, source: Endless, encode: Callable[[Record], Any] | None, name: str) -> Tally:
        tally, pictured = Tally(1.0), 0
        for item, _ in source.survey(encode, SURVEYED):
            tally.add(item)
            pictured += isinstance(item, Record) and bool(item.images)
        tally.max_bad_share = self.config.max_bad_share
        tally.finish()
        if encode and not (pictured or any(one.requires_grad for one in self.masters.model.parameters())):
            raise UserError(f"none of {tally.rows:,} rows has an image, and only its reading is trained")
        if self.world.is_main:
            for reason, row in tally.first.items():
                tell(f"{'dropped' if reason in tally.dropped else 'bad row'}  {row}")
            unread = f"; not read: {counted(tally.unread)}" if tally.unread else ""
            tell(f"{name}    of {tally.rows:,} rows {pictured:,} have images{unread}")
            if (unit := source.reader.box_unit) and not self.config.box_unit:
                tell(f"note    the boxes of {self.config.data} fill the frame {unit}: they are read so")
        return tally

    def begin(self) -> None:
        """Makes the folder this run's, says what is about to be done, and starts the clocks."""
        self.held, self.most = held(self), 0.0
        if self.world.is_main:
            rows = f", {len(self.source):,} rows" if isinstance(self.source, Endless) else ""
            lines = introduction(self, rows)
            title = f"{self.out}: {' '.join(lines[0].partition(' -> ')[0].split())}"
            self.log = Log(self.out, title, self.config.max_steps, self.step, self.config.report_to)
            self.stack.callback(self.log.close)
            for line in lines:
                tell(line)
            if is_finished(self.out):
                os.replace(self.out / "final", self.out / f"final-step-{self.step}")
            write_json(self.out / "config.json", self.options)
        self.started = self.begun = self.since = time.perf_counter()

    def expect(self, parts: Mapping[str, float]) -> None:
        """Says what is needed with a part of a step, if that is a twentieth more than was said before.
        Raises: UserError if it does not fit, at the first step alone. Args: parts: bytes beside `held`.
        """
        if (size := sum(parts.values())) > 1.05 * self.most:
            self.most, line = size, plan(self.held | parts, self.device, True, self.step == self.first_step)
            if self.log:
                tell(f"memory  {line}")

    def is_due(self, every: int) -> bool:
        """Whether what is done every so many steps, and at the end, is done now; 0: never."""
        return every > 0 and (self.step % every == 0 or self.step == self.config.max_steps)

    def reference(self) -> Qwen2_5_VL:
        """The policy as it began, for the KL term; with LoRA the model itself, its adapter to be disabled."""
        if self.config.adapter:
            raise UserError("--beta: the reference would be the model without its adapter; merge that first")
        model = self.model if self.model.lora else self.build().requires_grad_(False)
        model = model if is_sharded(model) or model.lora else model.to(self.dtype)
        return self.context.share(model) if self.context else model

    def answering_model(self) -> Qwen2_5_VL:
        """The model as it is now, for decoding: itself, or a copy of a sharded one, whole or split."""
        if not is_sharded(self.model):
            return self.model
        sharding.refresh(self._replica, self.model)
        return self._replica

    @cached_property
    def _replica(self) -> Qwen2_5_VL:
        return sharding.replica(self.model, self.dtype, self.config.tensor_parallel)

    def end_step(
        self,
        metrics: dict[str, float],
        counts: Mapping[str, float] = {},
        flops: float = 0,
        may_stop: bool = True,
    ) -> bool:
        """Counts the step, writes the line and checkpoint that are due; returns whether the run goes on.

        Args: counts: tokens, say, of the step, over all ranks: their rates are logged. flops: floating-point
            operations of the step, over all ranks. may_stop: False inside a rollout: saving is postponed.
        """
        config, now = self.config, time.perf_counter()
        self.step, seconds, self.since = self.step + 1, now - self.since, now
        if not math.isfinite(metrics["grad_norm"]):  # the same on all ranks
            self._note_skipped(metrics["grad_norm"])
        if self.log and self.is_due(config.logging_steps):
            metrics = {"step": self.step, **metrics, "step_ms": 1000 * seconds}
            metrics |= {f"{name}_per_second": count / seconds for name, count in counts.items()}
            if self.device.type == "cuda":
                metrics |= gpu_metrics(self.device, self.dtype, flops / seconds / self.world.size)
            pace = (now - self.begun) / (self.step - self.first_step)
            self.log.step(metrics, (config.max_steps - self.step) * pace)
        is_stopped = self.world.sum(self.stop.is_set())[0] > 0 and may_stop and self.step < config.max_steps
        self.is_save_due |= config.save_steps > 0 and self.step % config.save_steps == 0
        if is_stopped or (may_stop and self.is_save_due):
            self.checkpoints.save(self.step, self.masters, self.optimizers, self.extra)
            self.is_save_due = False
        if is_stopped and self.world.is_main:
            say(f"stop    after step {self.step}, saved; the same command goes on")
        return not is_stopped

    def _note_skipped(self, grad_norm: float) -> None:
        skipped = self.extra.setdefault("skipped", [])
        skipped.append(self.step)
        fault = f"step {self.step} is skipped: the gradient's length is {grad_norm}"
        if {*range(self.step - MAX_SKIPPED, self.step)} < {*skipped}:
            raise UserError(f"{fault}, as {MAX_SKIPPED} before; lower the learning rate, or warm up longer")
        if self.world.is_main:
            say(f"note    {fault}")

    def finish(self) -> None:
        """Leaves the trained model in `out`/final."""
        if self.config.merge:
            merge(self.masters)
        pretrained.save(self.masters, self.processor, self.out / "final", dtype=torch.float32)
        if self.log:
            pretrained.write_asked(self.out / "final", self.config.stage, self.processor)
            if self.tally.bad or self.tally.dropped:
                tell(f"data    left out: {self.tally.summary()}")
            curves = f", curves in {self.out}/curves.png" if self.log.rows[1:] else ""
            say(f"done    {duration(time.perf_counter() - self.started)}; model in {self.out}/final{curves}")
            say(f"try it  python generate.py --model {self.out} --image PICTURE")


def settle(
    config: TrainConfig, num_rows: int | None, files: Sequence[str], world: World, device: torch.device
) -> tuple[dict, TrainConfig]:
    """The options of the run to go on with, {} if there is none, and those of this one, all resolved. Without
    --out its folder is the first of runs/sft, runs/sft-2, ... that is free or holds this very run. Raises:
    UserError if the folder given holds another.
    """
    numbered = (Path("runs", f"{config.stage}-{number}") for number in count(2))
    for out in [Path(config.out)] if config.out else chain([Path("runs", config.stage)], numbered):
        before = earlier_options(out / "config.json") or {}
        resumed = before if is_finished(out) or any(out.glob("checkpoints/step-*")) else {}
        settled = resolve(replace(config, out=str(out)), num_rows, world, device, resumed)
        try:
            if "stage" not in before and (before or is_finished(out)):
                raise UserError(f"--out {out}: holds a model, and no run; choose another folder")
            if before and (resumed or not config.out):
                check_same_run(before, settled, files, is_finished(out))
        except UserError:
            if config.out:
                raise
            continue
        return resumed, settled


def resolve(
    config: TrainConfig, num_rows: int | None, world: World, device: torch.device, before: Mapping
) -> TrainConfig:
    """Every option resolved. Args: before: options of the run to be resumed."""
    of_batch = ("per_device_train_batch_size", "gradient_accumulation_steps")
    is_as_before = before and all(before.get(name) == getattr(config, name) for name in of_batch)
    fresh = config.per_device_train_batch_size * config.gradient_accumulation_steps * world.size
    batch_size = config.train_batch_size or (before["train_batch_size"] if is_as_before else fresh)
    if num_rows and (config.train_batch_size or not before):  # a resumed run keeps a step's rows
        batch_size = min(batch_size, max(1, num_rows // config.steps_per_row))
    max_steps = config.max_steps
    if max_steps is None:
        max_steps = config.endless_steps
        if num_rows is not None:
            max_steps = math.ceil(config.num_train_epochs * num_rows / batch_size)
    return replace(
        config,
        device=str(device),
        train_batch_size=batch_size,
        max_steps=max_steps,
        activation_checkpointing=config.activation_checkpointing
        or ("selective" if device.type == "cuda" else "off"),
    )
