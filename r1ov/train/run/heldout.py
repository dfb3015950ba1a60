"""How good the model is while it learns: held-out loss, and answers to the playground's questions."""

import time
from functools import partial

import torch

from r1ov.data.formats.mixture import open_data
from r1ov.data.pack import num_trained
from r1ov.data.playground import FAMILIES, messages, sample
from r1ov.data.playground.source import Playground
from r1ov.data.steps import StepData, Steps
from r1ov.engine.generate import generate
from r1ov.reward import accuracy_reward, format_reward
from r1ov.train.loss import sft_loss_and_correct
from r1ov.train.run.config import PLAYGROUND
from r1ov.train.run.log import duration, say
from r1ov.train.run.open import Run
from r1ov.train.run.samples import write_samples

EVAL_SEED = 1_000_003  # of questions from the split that GRPO trains on; no run has it by chance


@torch.no_grad()
def evaluate(run: Run) -> None:
    """Logs the held-out loss (SFT's), and on the playground the share of right answers. Collective."""
    config, world, started = run.config, run.world, time.perf_counter()
    result: dict[str, float] = {}
    if config.stage == "sft" and (config.eval_data or config.data == PLAYGROUND):
        source = Playground("test")
        if config.eval_data:
            source = open_data(config.eval_data, split="test", need="reply", lazy=True, **config.reading)
        steps = Steps(source, run.processor, config.eval_samples, config.max_length, world.rank, world.size)
        result |= held_out_loss(run, steps[0])
        if world.is_main:
            loss, accuracy = result.values()
            say(f"eval    loss {loss:.4f}, acc {accuracy:.3f}, on held-out rows")
    if config.data == PLAYGROUND:
        result |= answer_questions(run)
    took = time.perf_counter() - started
    run.since, run.begun = run.since + took, run.begun + took  # no time of a step's
    if run.log and result:
        run.log.event({"step": run.step, **result})


def held_out_loss(run: Run, data: StepData) -> dict[str, float]:
    loss = correct = num_items = 0.0
    for batch in data.batches:
        batch = batch.to(run.device)
        then = partial(sft_loss_and_correct, labels=batch["labels"], num_items_in_batch=1)
        own_loss, own_correct = run.model(**batch.inputs, then=then)
        loss, correct = loss + own_loss.item(), correct + own_correct.item()
        num_items += num_trained(batch["labels"])
    loss, correct, num_items = run.world.sum(loss, correct, num_items)
    return {"eval_loss": loss / max(num_items, 1), "eval_mean_token_accuracy": correct / max(num_items, 1)}


def answer_questions(run: Run) -> dict[str, float]:
    """Greedy answers to held-out questions: the shares that are right and well-formed. All go to samples/."""
    started, world, count, split = (
        time.perf_counter(),
        run.world,
        run.config.eval_samples,
        run.config.eval_split,
    )
    samples = [sample(split, index, EVAL_SEED if split == "rl" else 0) for index in range(count)]
    prompts = [messages(one)[:1] for one in samples[world.rank :: world.size]]
    options = {"max_new_tokens": 160, "temperature": 0.0, "repetition_penalty": 1.0}
    model = run.answering_model()
    done = generate(model, run.processor, prompts, **options) if prompts else []
    shares = world.gather([completion.text for completion in done])
    texts = [shares[index % world.size][index // world.size] for index in range(count)]
    right = [accuracy_reward(text, one.answer, one.kind) for text, one in zip(texts, samples, strict=True)]
    formed = [format_reward(text) for text in texts]
    if world.is_main:
        shown = [
            {
                "question": f"{one.family}: {one.question}",
                "gold": one.answer,
                "images": [one.image],
                "completions": [{"text": text, "scores": {"accuracy": score, "format": form}}],
            }
            for one, text, score, form in zip(samples, texts, right, formed, strict=True)
        ]
        title = f"step {run.step}: {sum(right):.0f} of {count} right of {split}"
        write_samples(run.out / "samples", run.step, title, shown)
        took = duration(time.perf_counter() - started)
        say(f"{split:<7} {sum(right):.0f} of {count} right, {sum(formed):.0f} well-formed ({took})")
        for index in range(0, min(len(FAMILIES), count), 3):
            one, text = samples[index], " ".join(texts[index].split())
            text = text if len(text) <= 160 else text[:157] + "..."
            say(
                f"        {one.family:<8} {one.question}\n          gold   {one.answer}\n          model  "
                f"{text}"
            )
    return {"eval_accuracy": sum(right) / count, "eval_format": sum(formed) / count}
