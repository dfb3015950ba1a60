"""One GRPO step on one offline page: where completions part, what each earned, what each token weighs.

A run keeps a few groups of some rollouts in samples/. The completions of a group make a prefix tree. Where
they share a token they share its log-prob, so its weights in the gradient add up: what one completion earns
there another may lose. Weights are those of the rollout's first update, in which the learner still is the
sampler, and before the gradient is scaled down to --max-grad-norm.
"""

import html
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from r1ov.common.files import read_json, write_text
from r1ov.common.page import base64_image
from r1ov.data.pack import continued
from r1ov.data.processor import Processor
from r1ov.errors import UserError
from r1ov.folder.pretrained import load, read_processor, resolve
from r1ov.look.page import filled
from r1ov.model.model import Qwen2_5_VL
from r1ov.train.grpo import completion_logprobs
from r1ov.train.loss import grpo_loss
from r1ov.train.run.config import GRPOConfig

NUMBERS = (
    "sampler",
    "learner",
    "reference",
    "entropy",
    "weight",
)  # of each token, what the template calls them


def gradient_weights(logprobs: Tensor, *args: Tensor, **options: Any) -> Tensor:
    """(T,) d loss / d log-prob: the step's gradient is the sum of each token's weight x grad log-prob.

    Args: those of `grpo_loss`. Its packs add up, so one completion can be asked about alone.
    """
    with torch.enable_grad():
        leaf = logprobs.detach().requires_grad_()
        return torch.autograd.grad(grpo_loss(leaf, *args, **options)[0], leaf)[0]


@dataclass(frozen=True)
class Branch:
    """Tokens `begin` to `end` that some completions share after the same beginning."""

    members: list[int]
    begin: int
    end: int
    ended: list[int]  # the members that end here
    branches: list["Branch"]


def prefix_tree(ids: Sequence[Sequence[int]], members: Sequence[int], begin: int = 0) -> Branch:
    """The tree of the completions `members`, which agree before `begin`."""
    end = begin
    while all(len(ids[one]) > end for one in members) and len({ids[one][end] for one in members}) == 1:
        end += 1
    following = {}  # token -> the members that go on with it
    for one in members:
        if len(ids[one]) > end:
            following.setdefault(ids[one][end], []).append(one)
    ended = [one for one in members if len(ids[one]) == end]
    return Branch(
        list(members), begin, end, ended, [prefix_tree(ids, own, end) for own in following.values()]
    )


def read_group(folder: Path, step: int, number: int | None) -> tuple[GRPOConfig, dict]:
    """The run's options, and the group of a step as it was kept; of None the first that has a gradient.
    Raises: UserError.
    """
    options = read_json(folder / "config.json", "give the folder of a GRPO run")
    if options.pop("stage") != "grpo":
        raise UserError(f"{folder} is no run of GRPO; for a reply of SFT: --image, --prompt and --completion")
    names = options.keys() & GRPOConfig.__dataclass_fields__
    config = GRPOConfig(**{name: options[name] for name in names})
    kept = {}  # by step; answers to held-out questions lie there too
    for path in (folder / "samples").glob("step-*.jsonl"):
        lines = path.read_text(encoding="utf-8").splitlines()
        if '"token_ids"' in lines[0]:
            kept[int(path.stem[5:])] = lines
    if step not in kept:
        nearest = sorted(kept, key=lambda one: abs(one - step))[:2]
        raise UserError(f"step {step} of {folder} was not kept; the nearest: {sorted(nearest) or 'none'}")
    groups = [json.loads(line) for line in kept[step]]
    if number is None:
        return config, next(filter(has_gradient, groups), groups[0])
    if number > len(groups):
        raise UserError(f"--group is {number}; of step {step} {len(groups)} groups were kept")
    return config, groups[number - 1]


def has_gradient(group: dict) -> bool:
    return any(one["advantage"] for one in group["completions"])


@torch.no_grad()
def measured(
    model: Qwen2_5_VL, processor: Processor, group: dict, images: Sequence[Image.Image], temperature: float
) -> list[tuple[Tensor, Tensor]]:
    """Of each completion the log-probs and entropies (T,) of its tokens."""
    contents = [message["content"] for message in group["prompt"]]
    slots = [part for one in contents if isinstance(one, list) for part in one if "text" not in part]
    for part, image in zip(slots, images, strict=True):
        part |= {"image": image, "resized_height": image.height, "resized_width": image.width}
    prompt = processor.with_pixels(processor.encode(group["prompt"], add_generation_prompt=True))
    found = []
    for one in group["completions"]:
        ids = torch.tensor(one["token_ids"])
        batch = processor.pack([continued(prompt, ids, labels=ids)]).to(
            model.model.embed_tokens.weight.device
        )
        then = partial(completion_logprobs, labels=batch.pop("labels"), temperature=temperature)
        found.append(tuple(values[len(prompt) :].float().cpu() for values in model(**batch, then=then)))
    return found


def write_step(
    path: Path,
    folder: Path,
    step: int,
    number: int | None = None,
    learner: str | None = None,
    reference: str | None = None,
) -> str:
    """Writes the page of a kept group as of `read_group`. Returns a line about it. Raises: UserError.

    Args: learner, reference: models; by default the one that the run made, and the one that it started from.
    """
    config, group = read_group(folder, step, number)
    learner, reference = learner or str(folder / "final"), reference or config.model
    images = [Image.open(folder / "samples" / name) for name in group["image_files"]]
    scored = [measured(*load(name, None), group, images, config.temperature) for name in (learner, reference)]
    completions, numbers = group["completions"], []
    for one, (now, entropy), (start, _) in zip(completions, *scored, strict=True):
        sampler = torch.tensor(one["logprobs"])
        is_trained = one["finish_reason"] == "stop" or not config.mask_truncated_completions
        weights = gradient_weights(
            sampler,
            torch.tensor([one["advantage"]]),
            torch.tensor([0, len(sampler)]),
            torch.full_like(sampler, is_trained, dtype=torch.bool),
            num_items_in_batch=one["num_items"],
            num_sequences_in_batch=one["num_sequences"],
            ref_logprobs=start,
            **config.loss_options,
        )
        numbers.append(torch.stack((sampler, now, start, entropy, weights)))
    said = f"{len(completions)} completions, mean reward {mean_reward(completions):.3g}"
    if not has_gradient(group):
        said += ": no gradient, the rewards are equal" + ("; the KL term has one" if config.beta else "")
    tree = prefix_tree([one["token_ids"] for one in completions], range(len(completions)))
    processor = read_processor(resolve(learner))
    parts = {
        "question": group["question"],
        "gold": group["gold"] or "",
        "run": f"{folder}, rollout after step {step}, prompt {group['number']}",
        "loss": f"{config.loss_type}, beta {config.beta:g}",
        "learner": learner,
        "reference": reference,
        "said": said,
    }
    parts = {name: html.escape(text) for name, text in parts.items()}
    parts["images"] = "".join(
        f'<img alt="" src="data:image/png;base64,{base64_image(one)}">' for one in images
    )
    parts["full"] = str(2 * max(float(one[-1].abs().max()) for one in numbers) or 1)
    parts["tree"] = drawn(tree, processor, completions, numbers)
    write_text(path, filled("step.html", parts))
    return said


def mean_reward(completions: Sequence[dict]) -> float:
    rewards = [one["reward"] for one in completions if "reward" in one]
    return sum(rewards) / len(rewards) if rewards else math.nan


def drawn(branch: Branch, processor: Processor, completions: list[dict], numbers: list[Tensor]) -> str:
    """A branch and all that grows on it, as HTML; a token's numbers are variables of its style."""
    first, words, leaves = branch.members[0], "", ""
    for place in range(branch.begin, branch.end):
        values = numbers[first][:, place].clone()
        values[-1] = sum(numbers[one][-1, place] for one in branch.members)
        style = ";".join(map("--{}:{:.4g}".format, NUMBERS, values.tolist()))
        text = processor.decode([completions[first]["token_ids"][place]], skip_special_tokens=False)
        words += f'<i style="{style}">{html.escape(text)}</i>'
    for one in branch.ended:
        own = completions[one]
        told = own["scores"] | {name: own.get(name) for name in ("reward", "advantage")}
        told = {name: "none" if value is None else f"{value:.3g}" for name, value in told.items()}
        told |= {"tokens": str(len(own["token_ids"])), "ended by": own["finish_reason"]}
        told = "".join(f"<span>{html.escape(name)} <b>{value}</b></span>" for name, value in told.items())
        leaves += f'<p class="leaf" style="--a:{own["advantage"]}"><b>{one + 1}</b>{told}</p>'
    members = [completions[one] for one in branch.members]
    who = f"{len(members)} of {len(completions)}, mean reward {mean_reward(members):.3g}"
    below = "".join(drawn(one, processor, completions, numbers) for one in branch.branches)
    return f'<div class="branch"><p class="who">{who}</p><p class="words">{words}</p>{leaves}{below}</div>'
