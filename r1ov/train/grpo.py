"""Group relative policy optimisation: answer each question several times, score the answers, and learn from
how they compare.
"""

import math
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from r1ov.data.formats.records import BadRow, Record
from r1ov.data.formats.tally import Tally
from r1ov.data.steps import Source
from r1ov.errors import UserError
from r1ov.reward.rules.check import check_golds
from r1ov.train.experience import Pack, Row, make_packs, objective, with_logprobs
from r1ov.train.loss import check_loss_options, combine_metrics, group_advantages, mean_and_std
from r1ov.train.rollout import (
    Group,
    Scorer,
    encode_prompt,
    reward_metrics,
    roll_out,
    sequence,
    texts_of,
)
from r1ov.train.run.config import GRPOConfig
from r1ov.train.run.heldout import evaluate
from r1ov.train.run.log import say
from r1ov.train.run.open import Run, build, open_run
from r1ov.train.run.rows import open_source
from r1ov.train.run.samples import Shown, Written, write_samples
from r1ov.train.run.sharding import sum_over_copies

GOLDS_CHECKED = 1_000  # of data without end
GROUPS_SHOWN = 4
FLAT, PATIENCE = (
    0.8,
    20,
)  # so many rollouts in a row in which a larger share of the groups teaches nothing are worth a line


def train(config: GRPOConfig) -> None:
    """Runs the whole of it, and leaves the trained model in `out`/final."""
    check_loss_options(**config.loss_options)
    source, num_prompts = open_source(config, need="solution")
    rows_per_epoch = num_prompts and num_prompts * config.num_generations * config.num_iterations
    with closing(Scorer(config)) as scorer, open_run(config, rows_per_epoch) as run:
        prompts_per_rollout = prompts_of(run)
        tally = Tally(config.max_bad_share, say if run.world.is_main else None)
        reference = build(config, run.world, run.device)[0].requires_grad_(False) if config.beta else None
        introduce(run, num_prompts, prompts_per_rollout)
        check_rewards(run, source, num_prompts, scorer)
        if run.step == 0:
            evaluate(run, with_loss=False)
        updates = config.steps_per_generation * config.num_iterations
        while run.step < run.max_steps:
            groups, generated = collect(run, source, tally, scorer, prompts_per_rollout)
            advantages, compared = compare(run, groups)
            note_flat(run, compared["frac_reward_zero_std"])
            show(run, groups, advantages)
            minibatches = [
                with_logprobs(
                    make_packs(rows, run.processor, config.max_length, run.world, config.skips_idle_rows),
                    run.model if updates > 1 else None,
                    reference,
                    config.temperature,
                    run.device,
                )
                for rows in deal(run, groups, advantages)
            ]
            for update, packs in enumerate(minibatches * config.num_iterations, 1):
                is_logged = run.is_logged
                metrics = {**compared, **learn(run, packs), **generated}
                is_last = update == updates or run.step == run.max_steps
                goes_on = run.end_step(metrics, is_logged, may_stop=is_last)
                if (
                    config.eval_steps
                    and goes_on
                    and (run.step % config.eval_steps == 0 or run.step == run.max_steps)
                ):
                    evaluate(run, with_loss=False)
                if is_last:
                    break
            if not goes_on:
                return
        sum_up(run)
        run.finish()


def prompts_of(run: Run) -> int:
    """How many prompts a rollout has, over all processes."""
    completions, each = run.train_batch_size * run.config.steps_per_generation, run.config.num_generations
    if completions % each:
        raise UserError(
            f"a rollout of {completions} completions is no multiple of --num-generations {each}; change the batch size or that"
        )
    return completions // each


def introduce(run: Run, num_prompts: int | None, prompts_per_rollout: int) -> None:
    run.introduce(num_prompts)
    if run.world.is_main:
        config = run.config
        rewards = ", ".join([*config.reward_funcs, *([config.reward] if config.reward else [])])
        kl = f"KL {config.beta:g}" if config.beta else "no KL term"
        say(
            f"rollout {prompts_per_rollout} prompts x {config.num_generations} completions of up to {config.max_completion_length} tokens"
        )
        say(f"grpo    {config.loss_type} loss, {kl}, temperature {config.temperature:g}, rewards {rewards}")


def check_rewards(run: Run, source: Source, num_prompts: int | None, scorer: Scorer) -> None:
    """Scores every gold answer against itself. Raises: UserError if too many cannot be scored."""
    if run.step:
        return
    records = (source[number] for number in range(num_prompts or GOLDS_CHECKED))
    failed = check_golds(
        (scorer.gold(record) for record in records if isinstance(record, Record)), scorer.verify
    )
    if failed and run.world.is_main:
        gold, why = failed[0]
        say(
            f"note    {len(failed)} gold answers do not score 1 against themselves and teach nothing, first {gold.name}: {why}"
        )


def collect(
    run: Run, source: Source, tally: Tally, scorer: Scorer, wanted: int
) -> tuple[list[Group], dict[str, float]]:
    """This process's groups of a rollout. Prompts that cannot be used, and under dynamic sampling groups
    without spread, are replaced.
    """
    config, world = run.config, run.world
    begun = time.perf_counter()
    model = run.answering_model()
    groups: list[Group] = []
    spare: list[Group] = []
    own_tokens = 0
    longest = (
        min(config.max_length, run.processor.config.text.max_position_embeddings)
        - config.max_completion_length
    )
    missing = wanted
    for _ in range(1 + config.max_resamplings):
        first = run.extra.get("next_prompt", 0)
        run.extra["next_prompt"] = first + missing
        items: list[Record | BadRow] = []
        prompts = []
        for number in range(first + world.rank, first + missing, world.size):
            item = source[number]
            if isinstance(item, Record):
                prompt = encode_prompt(run.processor, item, longest)
                if isinstance(prompt, BadRow):
                    item = prompt
                else:
                    prompts.append((number, item, prompt))
            items.append(replace(item, messages=[]) if isinstance(item, Record) else item)
        for share in world.gather(items):
            for item in share:
                tally.add(item)
        rolled = roll_out(model, run.processor, prompts, config, scorer, config.seed * 1_000_003 + first)
        for group in rolled:
            (spare if config.dynamic_sampling and not group.has_spread else groups).append(group)
        own_tokens += sum(
            completion.completion_tokens for group in rolled for completion in group.completions
        )
        have, tokens = world.sum(float(len(groups)), float(own_tokens))
        missing = wanted - int(have)
        if missing <= 0:
            break
    if missing == wanted:  # nothing to choose from: these teach nothing but the KL term, and the run goes on
        numbers = sorted(
            number for share in world.gather([group.number for group in spare]) for number in share
        )[:wanted]
        groups = [group for group in spare if group.number in numbers]
        if not numbers:
            raise UserError(f"none of the prompts of this rollout can be used; {tally.summary()}")
    seconds = time.perf_counter() - begun
    return groups, {"generation_seconds": seconds, "rollout_tokens_per_second": tokens / seconds}


def compare(run: Run, groups: Sequence[Group]) -> tuple[list[Tensor], dict[str, float]]:
    """The advantages of each group's completions, (G,) each, and what to log of rewards and lengths, over all
    processes.
    """
    config, each = run.config, run.config.num_generations
    everything = sorted((group.summary() for group in groups), key=lambda one: one["number"])
    everything = sorted(
        (one for share in run.world.gather(everything) for one in share), key=lambda one: one["number"]
    )
    rewards = torch.tensor([reward for one in everything for reward in one["rewards"]], dtype=torch.float64)
    advantages = group_advantages(rewards, each, config.scale_rewards).view(-1, each)
    place = {one["number"]: index for index, one in enumerate(everything)}
    metrics = reward_metrics(rewards.view(-1, each))
    for name in dict.fromkeys(name for one in everything for score in one["scores"] for name in score):
        values = torch.tensor(
            [
                float("nan") if (v := score.get(name)) is None else v
                for one in everything
                for score in one["scores"]
            ]
        )
        if not values.isnan().all():
            mean, std = mean_and_std(values.double())
            metrics |= {f"rewards/{name}/mean": mean.item(), f"rewards/{name}/std": std.item()}
    lengths = torch.tensor([length for one in everything for length in one["lengths"]], dtype=torch.float64)
    ended = torch.tensor([stopped for one in everything for stopped in one["finished"]])
    metrics |= {
        f"completions/{name}_length": getattr(lengths, name)().item() for name in ("mean", "min", "max")
    }
    metrics["completions/clipped_ratio"] = 1 - ended.double().mean().item()
    terminated = lengths[ended] if ended.any() else torch.zeros(1)
    metrics |= {
        f"completions/{name}_terminated_length": getattr(terminated, name)().item()
        for name in ("mean", "min", "max")
    }
    run.extra["num_tokens"] = (
        run.extra.get("num_tokens", 0) + int(lengths.sum()) + sum(one["prompt_tokens"] for one in everything)
    )
    metrics["num_tokens"] = run.extra["num_tokens"]
    return [advantages[place[group.number]].float() for group in groups], metrics


def note_flat(run: Run, share: float) -> None:
    """Says what to do where for long most groups have had equal rewards."""
    run.extra["flat_rollouts"] = count = run.extra.get("flat_rollouts", 0) + 1 if share > FLAT else 0
    if count and count % PATIENCE == 0 and run.world.is_main:
        say(
            f"note    in {count} rollouts in a row over {FLAT:.0%} of the groups had equal rewards and taught nothing: take questions that "
            "are sometimes answered right, raise --num-generations, or set --dynamic-sampling"
        )


def deal(run: Run, groups: Sequence[Group], advantages: Sequence[Tensor]) -> list[list[Row]]:
    """This process's rows of each minibatch; which rows those are does not depend on the number of processes."""
    config, parts = run.config, run.config.steps_per_generation
    minibatches: list[list[Row]] = [[] for _ in range(parts)]
    numbers = sorted(
        number for share in run.world.gather([group.number for group in groups]) for number in share
    )
    for group, own in zip(groups, advantages, strict=True):
        for index, (completion, advantage) in enumerate(zip(group.completions, own.tolist(), strict=True)):
            is_trained = completion.finish_reason == "stop" or not config.mask_truncated_completions
            whole = sequence(group.prompt, completion, is_trained)
            row = Row(sequence=whole, logprobs=completion.logprobs, advantage=advantage, group=group.number)
            minibatches[(numbers.index(group.number) * config.num_generations + index) % parts].append(row)
    return minibatches


def learn(run: Run, packs: Sequence[Pack]) -> dict[str, float]:
    """One optimiser step on these packs, the shares of all processes together; what to log of it."""
    begun = time.perf_counter()
    names = ("num_items", "num_read", "num_sequences")
    sums = run.world.sum(*(float(sum(getattr(pack, name) for pack in packs)) for name in names))
    numbers = dict(zip(names, sums, strict=True))
    total, shares = 0.0, []
    for number, pack in enumerate(packs, 1):
        sum_over_copies(run.model, is_last=number == len(packs))
        batch = pack.batch.to(run.device)
        del batch["labels"]
        loss, metrics = run.model(**batch, then=partial(objective, pack=pack, config=run.config, **numbers))
        loss.backward()
        total += loss.item()
        shares.append({name: value.item() for name, value in metrics.items()})
    updated = run.update()
    metrics = combine_metrics(
        [share for shares_of_rank in run.world.gather(shares) for share in shares_of_rank]
    )
    return {
        "loss": run.world.sum(total)[0],
        **metrics,
        **updated,
        "update_seconds": time.perf_counter() - begun,
    }


def show(run: Run, groups: Sequence[Group], advantages: Sequence[Tensor]) -> None:
    """A few groups as a table of pictures, completions, rewards and advantages."""
    if not run.world.is_main or not run.config.sample_steps or run.step % run.config.sample_steps:
        return
    shown = []
    for group, own in list(zip(groups, advantages, strict=True))[:GROUPS_SHOWN]:
        texts = [part for message in texts_of(group.record.prompt) for part in _texts(message["content"])]
        written = [
            Written(
                text=completion.text,
                scores=dict(scores),
                reward=None if math.isnan(reward) else reward,
                advantage=advantage,
            )
            for completion, scores, reward, advantage in zip(
                group.completions, group.scores, group.rewards, own.tolist(), strict=True
            )
        ]
        images = [image.load() for image in group.prompt.pictures]
        shown.append(
            Shown(question="\n".join(texts), gold=group.record.solution, images=images, completions=written)
        )
    write_samples(run.out / "samples", run.step, f"rollout after step {run.step}", shown)


def sum_up(run: Run) -> None:
    """The reward at the start and at the end of the run: a single step's says little."""
    rewards = [row["reward"] for row in run.log.rows if row.get("reward") is not None] if run.log else []
    if tenth := len(rewards) // 10:
        say(
            f"reward  {sum(rewards[:tenth]) / tenth:.3f} in the first tenth of the steps, {sum(rewards[-tenth:]) / tenth:.3f} in the last"
        )


def _texts(content: str | Sequence[dict]) -> list[str]:
    return (
        [content]
        if isinstance(content, str)
        else [part["text"] for part in content if part["type"] == "text"]
    )
