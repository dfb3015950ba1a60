"""Supervised fine-tuning: learn to write the assistant's replies, thought and answer, given what stands before them."""

import json
import math
import time
from dataclasses import asdict
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset

from r1ov import pretrained
from r1ov.data.playground import FAMILIES, messages, sample
from r1ov.data.processor import Batch, Processor
from r1ov.engine.generate import generate
from r1ov.errors import UserError
from r1ov.model.config import Config
from r1ov.model.hub import resolve
from r1ov.model.model import Qwen2_5_VL, init_weights
from r1ov.pretrained import choose_kernels
from r1ov.reward import accuracy_reward, format_reward
from r1ov.train.config import SFTConfig
from r1ov.train.distributed import World, joined
from r1ov.train.log import Log, duration, say
from r1ov.train.loss import sft_loss
from r1ov.train.optim import build_optimizers, learning_rate_factor


class PlaygroundBatches(Dataset):
    """Micro-batch number i of the endless playground: a pure function of (seed, i), so a run can begin anywhere."""

    def __init__(self, processor: Processor, batch_size: int, seed: int):
        self.processor, self.batch_size, self.seed = processor, batch_size, seed

    def __getitem__(self, number: int) -> Batch:
        rows = range(number * self.batch_size, (number + 1) * self.batch_size)
        return self.processor([messages(sample("train", row, self.seed)) for row in rows], return_labels=True)


def build(config: SFTConfig, device: torch.device) -> tuple[Qwen2_5_VL, Processor]:
    """The model to train, in float32, with its processor: loaded, or drawn afresh in the shape of `config_name`."""
    if config.model:
        return pretrained.load(config.model, device=device, dtype=torch.float32)
    folder = resolve(config.config_name)
    model = Qwen2_5_VL(Config.from_file(folder / "config.json"))
    init_weights(model, torch.Generator().manual_seed(config.seed))
    return model.to(device), Processor.from_folder(folder)


def train(config: SFTConfig) -> None:
    """Runs the whole of it, and leaves the trained model in `out`/final."""
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    torch.set_flush_denormal(True)  # gradients of a peaked softmax are full of denormals: ten times slower without
    out = Path(config.out)
    if (out / "final" / "config.json").exists():
        raise UserError(f"{out} already holds a finished run; choose another --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be made ({error.strerror}); choose another folder") from error
    with joined(config.device) as (world, device):
        run(config, device, out, world)


def run(config: SFTConfig, device: torch.device, out: Path, world: World) -> None:
    """The loop, in each process alike; the main one also prints and writes."""
    kernels = choose_kernels(config.kernels, device)
    model, processor = build(config, device)
    optimizers = build_optimizers(
        model,
        config.optim,
        config.peak_learning_rate,
        config.muon_learning_rate,
        (config.adam_beta1, config.adam_beta2),
        config.weight_decay,
    )
    peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    accumulation, rows = config.gradient_accumulation_steps, config.per_device_train_batch_size
    loader = DataLoader(
        PlaygroundBatches(processor, rows, config.seed),
        sampler=range(world.rank, config.max_steps * accumulation * world.size, world.size),
        batch_size=None,
        num_workers=config.dataloader_num_workers,
        prefetch_factor=4 if config.dataloader_num_workers else None,
    )
    batches = iter(loader)
    if world.is_main:
        if (out / "log.jsonl").exists():
            say(f"note    {out}/ holds an unfinished run; it is written over")
        log = Log(out, config.max_steps)
        resolved = asdict(config) | {"learning_rate": config.peak_learning_rate, "device": str(device), "world_size": world.size}
        (out / "config.json").write_text(json.dumps(resolved, indent=2) + "\n", encoding="utf-8")
        count = sum(parameter.numel() for parameter in model.parameters())
        source = config.model or f"from scratch, as {config.config_name}"
        threads = f"{world.size} process(es) of {torch.get_num_threads()} thread(s)"
        say(f"sft     {source}, {count / 1e6:.2f} M parameters, on the {config.data} -> {out}/")
        say(f"run     {device}, float32, {kernels} kernels, {threads}, seed {config.seed}")
        say(f"step    {rows * accumulation * world.size} conversations, {config.optim}, peak learning rate {config.peak_learning_rate:g}")

    started = since = time.perf_counter()
    num_tokens = 0
    for step in range(config.max_steps):
        if world.is_main and config.eval_steps and step % config.eval_steps == 0:
            log.event({"step": step, **evaluate(model, processor, config, out / "samples" / f"step-{step:06d}.txt")})
            since = time.perf_counter()
        factor = learning_rate_factor(step, config.max_steps, config.warmup_steps, config.lr_scheduler_type, config.min_lr_rate)
        for optimizer, group_peaks in zip(optimizers, peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, group_peaks, strict=True):
                group["lr"] = peak * factor

        micro_batches = [next(batches) for _ in range(accumulation)]
        step_items, step_tokens = world.sum(
            sum(int((batch["labels"] != -100).sum()) for batch in micro_batches), sum(len(batch["labels"]) for batch in micro_batches)
        )
        is_logged = (step + 1) % config.logging_steps == 0 or step + 1 == config.max_steps
        loss, correct = torch.zeros((), device=device), torch.zeros((), device=device)  # read once, after the step
        for batch in micro_batches:
            batch = batch.to(device)
            labels = batch.pop("labels")
            hidden = model.hidden_states(**batch)
            micro_loss = sft_loss(hidden, model.head_weight, labels, step_items)
            micro_loss.backward()
            loss += micro_loss.detach()
            if is_logged:
                correct += correct_tokens(model, hidden.detach(), labels)
        world.sum_gradients(parameters)
        grad_norm = torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm).item()
        if not math.isfinite(grad_norm):  # the same on all ranks
            raise UserError(f"step {step + 1}: the gradient's length is {grad_norm}; lower the learning rate, or warm up longer")
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

        loss, correct = world.sum(loss.item(), correct.item())
        num_tokens += int(step_tokens)
        seconds, since = time.perf_counter() - since, time.perf_counter()
        if world.is_main and is_logged:
            metrics = {
                "step": step + 1,
                "loss": loss,
                "mean_token_accuracy": correct / step_items,
                "learning_rate": config.peak_learning_rate * factor,
                "grad_norm": grad_norm,
                "num_tokens": num_tokens,
                "step_ms": 1000 * seconds,
                "tokens_per_second": step_tokens / seconds,
                "samples_per_second": rows * accumulation * world.size / seconds,
            }
            log.step(metrics, (config.max_steps - step - 1) * (since - started) / (step + 1))
        if world.is_main and config.save_steps and (step + 1) % config.save_steps == 0 and step + 1 < config.max_steps:
            pretrained.save(model, processor, out / "checkpoints" / f"step-{step + 1}", dtype=torch.float32)

    if world.is_main:
        if config.eval_steps:
            log.event(
                {"step": config.max_steps, **evaluate(model, processor, config, out / "samples" / f"step-{config.max_steps:06d}.txt")}
            )
        pretrained.save(model, processor, out / "final", dtype=torch.float32)
        log.draw()
        log.close()
        say(f"done    {duration(time.perf_counter() - started)}; model in {out}/final, curves in {out}/curves.png")
        say(f"try it  python generate.py --model {out}/final --image PICTURE")


@torch.no_grad()
def correct_tokens(model: Qwen2_5_VL, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """How many trained tokens the model would have chosen itself."""
    trained = labels[1:] != -100
    return (model.logits(hidden[:-1][trained]).argmax(-1) == labels[1:][trained]).sum()


def evaluate(model: Qwen2_5_VL, processor: Processor, config: SFTConfig, path: Path) -> dict[str, float]:
    """The shares of held-out questions answered right, and in the right form, greedily; all are written to `path`, three are shown."""
    started = time.perf_counter()
    samples = [sample("test", index) for index in range(config.eval_samples)]
    prompts = [messages(one)[:1] for one in samples]
    completions = generate(model, processor, prompts, max_new_tokens=160, temperature=0.0, repetition_penalty=1.0)
    right = [accuracy_reward(done.text, one.answer, one.kind) for done, one in zip(completions, samples, strict=True)]
    formed = [format_reward(done.text) for done in completions]
    path.parent.mkdir(exist_ok=True)
    blocks = [
        f"[{index}] {one.family}: {one.question}\ngold:  {one.answer}   right: {bool(score)}\n{done.text}\n"
        for index, (one, done, score) in enumerate(zip(samples, completions, right, strict=True))
    ]
    path.write_text("\n".join(blocks), encoding="utf-8")
    result = {"eval_accuracy": sum(right) / len(right), "eval_format": sum(formed) / len(formed)}
    say(f"test    {sum(right):.0f} of {len(right)} right, {sum(formed):.0f} well-formed ({duration(time.perf_counter() - started)})")
    for index in range(0, min(len(FAMILIES), len(samples)), 3):
        one, text = samples[index], " ".join(completions[index].text.split())
        say(f"        {one.family:<8} {one.question}\n          gold   {one.answer}\n          model  {shortened(text)}")
    return result


def shortened(text: str, length: int = 160) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."
