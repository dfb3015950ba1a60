"""How good the model is while it learns: the loss on rows it never trains on, and on the playground its
answers to held-out questions.
"""

import time
from functools import partial

import torch
from torch import Tensor

from r1ov.data.formats.mixture import open_data
from r1ov.data.playground import FAMILIES, messages, sample
from r1ov.data.playground.source import Playground
from r1ov.data.steps import StepData, Steps
from r1ov.engine.generate import generate
from r1ov.reward import accuracy_reward, format_reward
from r1ov.train.loss import sft_loss
from r1ov.train.run.config import PLAYGROUND
from r1ov.train.run.log import duration, say
from r1ov.train.run.open import Run
from r1ov.train.run.samples import Shown, Written, write_samples

EVAL_SEED = 1_000_003  # of the playground's held-out questions where training draws from the same split; no run has it by chance
CHUNK = 2048  # tokens whose logits are looked at together


def objective(
    hidden: Tensor, weight: Tensor, labels: Tensor, num_items: float, count_correct: bool
) -> dict[str, Tensor]:
    """This micro-batch's share of the loss, and how many trained tokens the model would have chosen itself (0
    where not counted).
    """
    correct = torch.zeros((), device=hidden.device)
    if count_correct:
        with torch.no_grad():
            trained = labels[1:] != -100
            for states, targets in zip(
                hidden[:-1][trained].split(CHUNK), labels[1:][trained].split(CHUNK), strict=True
            ):
                correct = correct + ((states @ weight.mT).argmax(-1) == targets).sum()
    return {"loss": sft_loss(hidden, weight, labels, max(num_items, 1)), "correct": correct}


@torch.no_grad()
def evaluate(run: Run, with_loss: bool = True) -> None:
    """The held-out loss, and on the playground the share of questions answered right. All processes call this
    together.
    """
    config = run.config
    if not config.eval_steps:
        return
    started = time.perf_counter()
    result: dict[str, float] = {}
    source = Playground("test") if config.data == PLAYGROUND and with_loss else None
    if config.eval_data and with_loss:
        source = open_data(config.eval_data, split="test", seed=0, need="reply", lazy=True, **config.reading)
    if source is not None:
        steps = Steps(
            source, run.processor, config.eval_samples, config.max_length, run.world.rank, run.world.size
        )
        result |= held_out_loss(run, steps[0])
    if config.data == PLAYGROUND:
        result |= answer_questions(run)
    run.since += time.perf_counter() - started  # no time of the next step
    if run.log and result:
        run.log.event({"step": run.step, **result})


def held_out_loss(run: Run, data: StepData) -> dict[str, float]:
    sums = [0.0, 0.0, 0.0]
    for batch in data.batches:
        batch = batch.to(run.device)
        labels = batch.pop("labels")
        parts = run.model(**batch, then=partial(objective, labels=labels, num_items=1, count_correct=True))
        sums = [
            total + float(part)
            for total, part in zip(sums, (*parts.values(), (labels != -100).sum()), strict=True)
        ]
    loss, correct, num_items = run.world.sum(*sums)
    return {"eval_loss": loss / max(num_items, 1), "eval_mean_token_accuracy": correct / max(num_items, 1)}


def answer_questions(run: Run) -> dict[str, float]:
    """Greedy answers to the first held-out questions: the shares that are right, and in the right form. All
    are kept in samples/.
    """
    started = time.perf_counter()
    world, count, split = run.world, run.config.eval_samples, run.config.eval_split
    samples = [sample(split, index, EVAL_SEED if split == "rl" else 0) for index in range(count)]
    mine = samples[world.rank :: world.size]
    model = run.answering_model()
    texts: list[str] = []
    if mine:
        prompts = [messages(one)[:1] for one in mine]
        done = generate(
            model, run.processor, prompts, max_new_tokens=160, temperature=0.0, repetition_penalty=1.0
        )
        texts = [completion.text for completion in done]
    shares = world.gather(texts)
    texts = [shares[index % world.size][index // world.size] for index in range(count)]
    right = [accuracy_reward(text, one.answer, one.kind) for text, one in zip(texts, samples, strict=True)]
    formed = [format_reward(text) for text in texts]
    if world.is_main:
        shown = [
            Shown(
                question=f"{one.family}: {one.question}",
                gold=one.answer,
                images=[one.image],
                completions=[Written(text=text, scores={"accuracy": score, "format": form})],
            )
            for one, text, score, form in zip(samples, texts, right, formed, strict=True)
        ]
        write_samples(
            run.out / "samples",
            run.step,
            f"step {run.step}: {sum(right):.0f} of {count} right of {split}",
            shown,
        )
        say(
            f"{split:<7} {sum(right):.0f} of {count} right, {sum(formed):.0f} well-formed ({duration(time.perf_counter() - started)})"
        )
        for index in range(0, min(len(FAMILIES), count), 3):
            one, text = samples[index], " ".join(texts[index].split())
            say(
                f"        {one.family:<8} {one.question}\n          gold   {one.answer}\n          model  {shortened(text)}"
            )
    return {"eval_accuracy": sum(right) / count, "eval_format": sum(formed) / count}


def shortened(text: str, length: int = 160) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."
