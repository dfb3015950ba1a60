"""How good the model is while it learns: held-out loss, and answers to held-out questions."""

import time
from collections import defaultdict
from functools import partial
from statistics import fmean
from typing import Literal

import torch

from r1ov.common.shares import wilson
from r1ov.data.formats.reader import open_data
from r1ov.data.formats.records import BadRow, Record
from r1ov.data.pack import num_trained
from r1ov.data.playground.source import Playground
from r1ov.data.steps import Source, StepData, Steps, frame_of, recognise_boxes
from r1ov.engine.generate import generate
from r1ov.reward import Rules, format_reward, grade
from r1ov.train.loss import sft_loss_and_correct
from r1ov.train.rollout import encode_prompt
from r1ov.train.run.config import PLAYGROUND
from r1ov.train.run.log import WIDTH, duration, say, tell
from r1ov.train.run.open import Run
from r1ov.train.run.samples import question_of, write_samples

EVAL_SEED = 1_000_003  # of questions from the split that GRPO trains on; no run has it by chance
FALL = 0.1  # of a part's score, that is worth a line
RULES = Rules(answer_from="auto")  # as `python -m r1ov.evaluate` reads an answer


@torch.no_grad()
def evaluate(run: Run) -> None:
    """Logs the held-out loss, where there are replies, and the share of right answers, unless the log has
    them for this step. Collective.
    """
    config, started = run.config, time.perf_counter()
    rows = run.log.rows if run.log else []
    if run.world.first(any(row["step"] == run.step and "step_ms" not in row for row in rows)):
        return  # a run that was stopped after it
    result = {}  # metric -> its value
    if config.eval_data or (config.stage == "sft" and config.data == PLAYGROUND):
        source, count = held_out(run, "reply")
        trainers = run.trainers
        steps = Steps(source, run.processor, count, config.max_length, trainers.rank, trainers.size)
        result |= held_out_loss(run, steps[0])
    if config.asks:
        result |= answer_questions(run, *held_out(run, "solution"))
    if run.log and result:
        run.log.event({"step": run.step, **result})
        run.log.draw()
        answered = [row for row in run.log.rows if "eval_accuracy" in row]
        if run.step == config.max_steps and len(answered) > 1:
            tell_parts(answered[0], answered[-1])
    took = time.perf_counter() - started
    run.since, run.begun = run.since + took, run.begun + took  # no time of a step's


def tell_parts(first: dict[str, float], last: dict[str, float]) -> None:
    """Says how right each part of the answers was and is: a whole that rises may hide one that breaks."""
    said = [
        f"{name.partition('/')[2]} {one:.0%} -> {last[name]:.0%}" + " (fell)" * (last[name] < one - FALL)
        for name, one in first.items()
        if "y/" in name
    ]
    tell(f"parts   {', '.join(said)}")


def held_out(run: Run, need: Literal["reply", "solution"]) -> tuple[Source, int]:
    """The held-out data, and how many of its first rows are used."""
    config = run.config
    if config.eval_data:
        data = open_data(config.eval_data, split="test", need=need, **config.reading)
        recognise_boxes(data.reader, run.processor)
        return data, min(config.eval_samples, len(data))
    split = "test" if need == "reply" else config.eval_split
    return Playground(split, EVAL_SEED if split == "rl" else 0), config.eval_samples


def held_out_loss(run: Run, data: StepData) -> dict[str, float]:
    """The mean over the trained tokens of all rows; nothing if there are none."""
    loss = correct = num_items = 0.0
    for batch in data.batches:
        batch = batch.to(run.device)
        then = partial(sft_loss_and_correct, labels=batch["labels"], num_items_in_batch=1)
        own_loss, own_correct = run.model(**batch.inputs, then=then)
        loss, correct = loss + own_loss.item(), correct + own_correct.item()
        num_items += num_trained(batch["labels"])
    (loss, correct), (num_items,) = run.world.sum(loss, correct), run.trainers.sum(num_items)
    if not num_items:
        return {}
    loss, accuracy = loss / num_items, correct / num_items
    if run.world.is_main:
        say(f"eval    loss {loss:.4f}, acc {accuracy:.3f}, on {data.rows} held-out rows")
    return {"eval_loss": loss, "eval_mean_token_accuracy": accuracy}


def answer_questions(run: Run, source: Source, count: int) -> dict[str, float]:
    """Greedy answers to the first `count` questions: the shares that are right and well-formed, of those with
    a gold that can be scored, and that are right of each format (of the playground: family) and kind; nothing
    if there are none. All go to samples/.
    """
    config, world, started = run.config, run.askers, time.perf_counter()
    longest = run.processor.config.text.max_position_embeddings - config.eval_max_new_tokens
    asked, lost = [], []  # (number, Record, Encoded); why not
    for number in range(world.rank, count, world.size):
        if isinstance(record := source[number], Record):
            try:
                asked.append((number, record, encode_prompt(run.processor, record, longest)))
            except BadRow as error:
                lost.append(str(error))
    lost = [fault for part in world.gather(lost) for fault in part]
    if lost and world.is_main:
        tell(f"note    held-out questions that are not asked: {len(lost)}; {lost[0]}")
    model, done = run.answering_model(), []
    if asked:
        done = generate(
            model,
            run.processor,
            [prompt for *_, prompt in asked],
            max_new_tokens=config.eval_max_new_tokens,
            temperature=0.0,
            repetition_penalty=1.0,
        )
    own = []
    for (number, record, prompt), completion in zip(asked, done, strict=True):
        frame = frame_of(run.processor, prompt, record.box_unit)
        is_whole = completion.finish_reason == "stop"
        right = grade(completion.text, record.solution, record.kind, RULES, None, is_whole, frame).score
        if right is not None:
            own.append((number, completion.text, right, format_reward(completion.text)))
    answers = sorted(answer for part in world.gather(own) for answer in part)
    if not answers:
        return {}
    count = len(answers)
    right, formed = (sum(answer[at] for answer in answers) for at in (2, 3))
    if run.world.is_main:
        show(run, source, answers, right, formed, time.perf_counter() - started)
    by_part = defaultdict(list)
    for number, _, own, _ in answers:
        for part in filter(None, (source[number].format, source[number].kind)):
            by_part[f"eval_accuracy/{part}"].append(own)
    return {
        "eval_accuracy": right / count,
        "eval_format": formed / count,
        "eval_samples": count,
        **{part: fmean(scores) for part, scores in by_part.items()},
    }


def show(
    run: Run,
    source: Source,
    answers: list[tuple[int, str, float, float]],
    right: float,
    formed: float,
    seconds: float,
) -> None:
    """Writes all answers to samples/, and says the score and one of the sound answers, each time another.

    Args: answers: number of the row, text, and the scores of the answer and of the form. right, formed: their
        sums.
    """
    config = run.config
    where = config.eval_data or config.eval_split
    low, high = wilson(right, len(answers))
    score = f"{right:.0f} of {len(answers)} right"
    samples, lines = [], []
    for number, text, own_right, own_form in answers:
        record = source[number]
        answer = {"text": text, "scores": {"accuracy": own_right, "format": own_form}}
        samples.append((record, {"completions": [answer]}))
        if 1 in (own_right, own_form):  # an untrained model's noise is nothing to look at
            lines.append((question_of(record.prompt), f"gold {record.solution}, model {text}"))
    write_samples(run.out / "samples", "eval", run.step, f"step {run.step}: {score} of {where}", samples)
    say(
        f"eval    {score} ({low:.0%} to {high:.0%}), {formed:.0f} well-formed, of {where} "
        f"({duration(seconds)}; all in samples/)"
    )
    if lines:
        for line in lines[-(-run.step // max(1, config.eval_steps)) % len(lines)]:  # rounded up
            line = " ".join(line.split())
            say(f"        {line if len(line) <= WIDTH - 8 else line[: WIDTH - 11] + '...'}")
