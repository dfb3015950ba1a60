"""What is logged, noted and shown of GRPO's rollouts; nothing here changes what is learned."""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import chain
from statistics import fmean, variance

import torch
from torch import Tensor

from r1ov.data.formats.open_image import lazy_image
from r1ov.data.formats.records import Record
from r1ov.errors import UserError
from r1ov.reward import Frame
from r1ov.reward.rules.boxes import is_marked
from r1ov.reward.rules.check import Gold, check_golds
from r1ov.train.loss import MIN_STD, largest, mean_and_std
from r1ov.train.rollout import Group, Outcome, Scorer, texts_of
from r1ov.train.run.log import tell
from r1ov.train.run.open import Run
from r1ov.train.run.samples import write_samples

GROUPS_SHOWN = 4
FLAT, PATIENCE = 0.8, 20  # share of groups that teach nothing; rollouts in a row until a line says so


def frame_of(record: Record) -> Frame | None:
    """Where a record's boxes are measured; enough to see whether they lie in their image."""
    if record.kind not in ("bbox", "boxes") and not is_marked(record.solution or ""):
        return None
    with suppress(UserError, IndexError):  # an image that cannot be read is another fault, none is no frame
        images = [*map(lazy_image, record.images)]
        return Frame.beside(images, images[0].size, record.box_unit)
    return None


def check_rewards(run: Run, num_prompts: int, score: Scorer) -> None:
    """Scores every gold answer against itself. Raises: UserError if too many do not score 1."""
    records = (run.source[number] for number in range(num_prompts))
    golds = [
        Gold(record.where, record.solution or "", record.kind, score.rules, frame_of(record))
        for record in records
        if isinstance(record, Record)
    ]
    failed = check_golds(golds, score.verify)
    if failed and run.world.is_main:
        gold, why = failed[0]
        tell(
            f"note    {len(failed)} gold answers do not score 1 against themselves and teach nothing, "
            f"first {gold.name}: {why}"
        )


def observe(
    run: Run, groups: Sequence[Group], outcomes: Sequence[Outcome], advantages: Tensor
) -> dict[str, float]:
    """What to log of a rollout, under TRL's names; the same on every rank. Counts tokens and flat rollouts in
    `run.extra`, and writes the samples that are due.
    """
    rewards = torch.stack([one.rewards for one in outcomes])
    metrics = reward_metrics(rewards)
    scores = [score for one in outcomes for score in one.scores]
    for name in dict.fromkeys(chain(*scores)):
        values = torch.tensor([math.nan if score.get(name) is None else score[name] for score in scores])
        if not values.isnan().all():
            mean, std = mean_and_std(values.double())
            metrics |= {f"rewards/{name}/mean": mean.item(), f"rewards/{name}/std": std.item()}
    lengths = torch.tensor([one.lengths for one in outcomes], dtype=torch.float64)  # (prompts, G)
    finished = torch.tensor([one.finished for one in outcomes])
    ended = lengths[finished] if finished.any() else torch.zeros(1)
    for what, of in (("mean", torch.mean), ("min", torch.min), ("max", torch.max)):
        metrics[f"completions/{what}_length"] = of(lengths).item()
        metrics[f"completions/{what}_terminated_length"] = of(ended).item()
    metrics["completions/clipped_ratio"] = 1 - finished.double().mean().item()
    read = int(lengths.sum()) + sum(one.prompt_tokens for one in outcomes)
    metrics["num_tokens"] = run.extra["num_tokens"] = run.extra.get("num_tokens", 0) + read
    note_flat(run, metrics["frac_reward_zero_std"])
    if run.world.is_main and run.config.sample_steps and run.step % run.config.sample_steps == 0:
        lengths *= finished | (not run.config.mask_truncated_completions)  # those that are trained
        show(run, groups, [one.number for one in outcomes], advantages, lengths)
    return metrics


@torch.no_grad()
def sampling_metrics(
    difference: Tensor, correction: Tensor | None, mask: Tensor, num_read: float
) -> dict[str, Tensor]:
    """How far sampler and trainer are apart, (T,) in nats, and the weights that correct for it."""
    gap, weight = "sampling/sampling_logp_difference", "sampling/importance_sampling_ratio"
    index = mask.nonzero().squeeze(1).to(difference.device, non_blocking=True)
    apart = difference.abs()[index]
    metrics = {f"{gap}/mean": apart.sum() / max(num_read, 1), f"{gap}/max": largest(apart)}
    if correction is not None:
        used = correction[index]
        metrics |= {f"{weight}/min": -largest(-used), f"{weight}/max": largest(used)}
        metrics[f"{weight}/mean"] = used.sum() / max(num_read, 1)
    return metrics


def combine_metrics(parts: Sequence[Mapping[str, Tensor | float]]) -> dict[str, float]:
    """The step's metrics from those of packs or ranks: sums, or the min or max where a name ends in it.

    A minimum or maximum over no token at all is left out.
    """
    combined = {}
    for name in dict.fromkeys(name for part in parts for name in part):
        values = [float(part[name]) for part in parts if name in part]
        if not name.endswith(("min", "max")):
            combined[name] = sum(values)
        elif values := [value for value in values if not math.isnan(value)]:
            combined[name] = (min if name.endswith("min") else max)(values)
    return combined


def reward_metrics(rewards: Tensor) -> dict[str, float]:
    """Mean, std, mean std of a group, share of groups without spread, of rewards (prompts, G), NaN left out.

    With p the chance of a right answer, p^G + (1 - p)^G of the groups have no spread, and teach nothing.
    Source: TRL's names; `group_std_mean` is what its older versions called reward_std.
    """
    stds = mean_and_std(rewards)[1]
    mean, std = mean_and_std(rewards.flatten())
    return {
        "reward": mean.item(),
        "reward_std": std.item(),
        "group_std_mean": stds.mean().item(),
        "frac_reward_zero_std": (stds < MIN_STD).double().mean().item(),
    }


def note_flat(run: Run, share: float) -> None:
    """Says what to do when most groups have had equal rewards for long."""
    run.extra["flat_rollouts"] = count = run.extra.get("flat_rollouts", 0) + 1 if share > FLAT else 0
    if count and count % PATIENCE == 0 and run.world.is_main:
        tell(
            f"note    in {count} rollouts in a row over {FLAT:.0%} of the groups had equal rewards and "
            "taught nothing: take questions that are sometimes answered right, raise --num-generations, "
            "or set --dynamic-sampling"
        )


def show(
    run: Run, groups: Sequence[Group], numbers: Sequence[int], advantages: Tensor, trained: Tensor
) -> None:
    """Writes the first groups to samples/, with all that `python -m r1ov.look` needs. Main process only.

    Args: numbers: of all prompts of the rollout, in the order of advantages and trained tokens, (prompts, G).
    """
    samples, folder, images = [], run.out / "samples", run.processor.image_processor
    folder.mkdir(parents=True, exist_ok=True)
    # A completion's step is the `part` that `deal` puts it in; its loss is a mean over all of that step.
    part = torch.arange(trained.numel()) % run.config.steps_per_generation
    counts = torch.stack((part.bincount(trained.flatten()), part.bincount()), -1)  # of each part
    counts = counts[part].view(*trained.shape, 2)
    for group in groups[:GROUPS_SHOWN]:
        own, of_step = (one[numbers.index(group.number)].tolist() for one in (advantages, counts))
        told = zip(group.completions, group.scores, group.rewards.tolist(), own, of_step, strict=True)
        completions = [
            {"text": completion.text, "scores": scores, "advantage": advantage}
            | ({} if math.isnan(reward) else {"reward": reward})
            | {"finish_reason": completion.finish_reason, "num_items": items, "num_sequences": sequences}
            | {"token_ids": completion.token_ids, "logprobs": [round(one, 6) for one in completion.logprobs]}
            for completion, scores, reward, advantage, (items, sequences) in told
        ]
        files = []  # of the images, as large as the model gets them
        for place, image in enumerate(group.prompt.pictures):
            _, rows, columns = group.prompt.image_grid_thw[place].tolist()
            files.append(f"prompt-{group.number}-{place}.png")
            image.load().resize((columns * images.patch_size, rows * images.patch_size)).save(
                folder / files[-1]
            )
        prompt = {"number": group.number, "prompt": texts_of(group.record.prompt), "image_files": files}
        samples.append((group.record, prompt | {"completions": completions}))
    write_samples(folder, "step", run.step, f"rollout after step {run.step}", samples)


def sum_up(run: Run) -> None:
    """Says the reward at the start and at the end of the run: a single step's means little."""
    rewards = [row["reward"] for row in run.log.rows if row.get("reward") is not None] if run.log else []
    if (tenth := len(rewards) // 10) > 1:
        ends = rewards[:tenth], rewards[-tenth:]
        first, last = map(fmean, ends)
        error = 1.96 * math.sqrt(sum(map(variance, ends)) / tenth)
        tell(
            f"reward  {first:.3f} in the first tenth of the steps, {last:.3f} in the last: "
            f"{last - first:+.3f} (95% interval {last - first - error:+.3f} to {last - first + error:+.3f})"
        )
