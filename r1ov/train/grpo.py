"""Group relative policy optimisation: answer each question several times, learn from how the answers compare.

How the defaults differ from the GRPO of the paper (DeepSeekMath):
1. An advantage is (reward - mean) / (std + 1e-4) in its group of G answers, almost as there; where all have
   one reward it is 0. There is no value network.
2. There is no trust region: no KL term, and so no reference model, unless --beta is above 0.
3. It is on policy, one update a rollout: the ratio is 1 and its clip never binds, unless --num-iterations or
   --steps-per-generation is above 1.
4. The loss is a mean over all trained tokens of the step, on all ranks, as in DAPO, not over answers:
   --loss-type grpo is the paper's.

So without flags the gradient of a step is -1/N sum_it A_i grad log p(o_it), over its N trained tokens. The
sampler's own log-probs are only compared with the trainer's, unless --importance-sampling-correction.

In a rollout, each prompt has G completions. They are dealt to --steps-per-generation parts, each for one
optimiser step (and again in each of --num-iterations passes). A part is packed, prompts and completions end
to end, and each pack is one forward and backward pass. What a run is, its checkpoints and ranks, is in
run/open.py; the loop is `train`, at the end.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import token_logprobs
from r1ov.common.memory import of_step
from r1ov.data.pack import Continuation, Part, make_packs, num_trained
from r1ov.data.processor import IGNORED, Batch
from r1ov.errors import UserError
from r1ov.model.lora import disable_adapter
from r1ov.model.model import Qwen2_5_VL
from r1ov.train.loss import clamped, group_advantages, grpo_loss
from r1ov.train.optim import each_pack, update
from r1ov.train.rollout import Group, Outcome, Scorer, encode_prompt, gather_outcomes, sample, until_enough
from r1ov.train.run.config import GRPOConfig
from r1ov.train.run.heldout import evaluate
from r1ov.train.run.observe import check_rewards, combine_metrics, observe, sampling_metrics, sum_up
from r1ov.train.run.open import Run, open_run, open_source
from r1ov.train.run.sharding import towards_start

COUNTS = ("num_items_in_batch", "num_sequences_in_batch", "num_read_in_batch")


def deal(run: Run, groups: Sequence[Group], outcomes: Sequence[Outcome], advantages: Tensor) -> list[Part]:
    """This rank's completions in as many parts as a pass over the rollout has optimiser steps.

    Each group is spread over the parts, so that every step sees every prompt (if there are no more parts than
    completions). The part of a completion depends on its place in the rollout, not on the number of ranks.

    Args: outcomes: of all ranks' groups. advantages: (prompts, G), in their order.
    """
    config, parts = run.config, run.config.steps_per_generation
    places = {one.number: place for place, one in enumerate(outcomes)}
    dealt = [[] for _ in range(parts)]
    for group in groups:
        place, own = places[group.number], []
        for completion, advantage in zip(group.completions, advantages[place], strict=True):
            ids = torch.tensor(completion.token_ids)
            is_trained = completion.finish_reason == "stop" or not config.mask_truncated_completions
            labels = ids if is_trained else torch.full_like(ids, IGNORED)
            logprobs = torch.tensor(completion.logprobs)
            own.append(Continuation(input_ids=ids, labels=labels, logprobs=logprobs, advantage=advantage))
        first = place * config.num_generations  # of its completions, among the rollout's
        for number, part in enumerate(dealt):
            part.append((group.prompt, own[(number - first) % parts :: parts]))
    return dealt


def make_minibatch(run: Run, part: Part) -> tuple[list[Batch], dict[str, float]]:
    """This rank's packs of a step, and the whole step's counts, which `grpo_loss` takes. Collective: all
    ranks call this.

    Without a KL term, completions of advantage 0 give no gradient and stay out; they still count in what the
    loss is a mean over. If every completion on every rank has advantage 0, all are kept, to be measured.
    """
    if run.context:
        part = run.context.join(part)
    config, world, everything = run.config, run.trainers, [one for _, own in part for one in own]
    num_items = sum(num_trained(one.labels) for one in everything)
    if not config.beta and any(world.gather(any(one.teaches for one in everything))):
        part = [(prompt, [one for one in own if one.teaches]) for prompt, own in part]
    packs = make_packs(part, run.processor, config.max_length, world)
    num_read = sum(num_trained(batch["labels"]) for batch in packs)
    counts = world.sum(num_items, len(everything), num_read)
    return packs, dict(zip(COUNTS, counts, strict=True))


def completion_logprobs(
    hidden: Tensor, weight: Tensor, labels: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Log-prob and entropy, (T,) each, of every token with a label, at the token's own place; 0 elsewhere.

    What precedes a token in the pack predicts it: each completion begins with the prompt's last token.
    """
    found = token_logprobs(hidden[:-1], weight, labels[1:], temperature, return_entropy=True)
    return tuple(F.pad(one, (1, 0)) for one in found)


@torch.no_grad()
def add_logprobs(run: Run, packs: Sequence[Batch], name: str, model: Qwen2_5_VL) -> None:
    """Stores the current model's log-probs (T,) of each pack's completions under `name`."""
    for pack in packs:
        batch = pack.to(run.device)
        then = partial(completion_logprobs, labels=batch["labels"], temperature=run.config.temperature)
        pack[name] = model(**batch.inputs, then=then)[0]


def policy_loss(
    logprobs: Tensor, entropies: Tensor, pack: Batch, counts: Mapping[str, float], config: GRPOConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """One pack's share of the step's loss and metrics. Args: logprobs, entropies: `completion_logprobs`."""
    old, sampler = pack.get("old_logprobs", logprobs.detach()), pack["sampler_logprobs"]
    mask, correction = pack["labels"] != IGNORED, None
    if config.importance_sampling_correction:
        correction = clamped(old - sampler).exp().clamp(max=config.importance_sampling_cap)
    loss, metrics = grpo_loss(
        logprobs,
        pack["advantages"],
        pack["cu_seqlens"],
        mask,
        **counts,
        old_logprobs=old,
        ref_logprobs=pack.get("ref_logprobs"),
        entropies=entropies.detach(),
        importance_sampling_ratio=correction,
        **config.loss_options,
    )
    return loss, metrics | sampling_metrics(old - sampler, correction, mask, counts["num_read_in_batch"])


def accumulate_gradients(run: Run, packs: Sequence[Batch], counts: Mapping[str, float]) -> dict[str, float]:
    """Adds up the gradients of the step's packs; its loss and metrics. Collective: all ranks call this."""
    shares = [{"loss": 0.0}]
    for pack in each_pack(packs, run.model, run.device):
        then = partial(completion_logprobs, labels=pack["labels"], temperature=run.config.temperature)
        scored = run.model(**pack.inputs, then=then)
        loss, metrics = policy_loss(*scored, pack, counts, run.config)
        if loss.requires_grad:  # not without an image, where only its reading is trained
            loss.backward()
        shares.append({"loss": loss.detach(), **metrics})
    return combine_metrics(run.trainers.gather(combine_metrics(shares)))


def train(config: GRPOConfig) -> None:
    """Trains until `max_steps`, and leaves the model in `out`/final."""
    source, num_prompts = open_source(config, need="solution")
    num_rows = num_prompts and num_prompts * config.num_generations * config.num_iterations
    with closing(Scorer(config, source)) as score, open_run(config, source, num_rows) as run:
        config, each, world = run.config, config.num_generations, run.world
        count, rest = divmod(config.train_batch_size * config.steps_per_generation, each)
        if rest:
            raise UserError(
                f"a rollout of {count * each + rest} completions is no multiple of --num-generations {each}; "
                "change the batch size or that"
            )
        reference = run.reference() if config.beta else None
        limit = min(config.max_length, run.processor.config.text.max_position_embeddings)
        encode = partial(encode_prompt, run.processor, longest=limit - config.max_completion_length)
        run.check_data(encode)
        if num_prompts and not run.step:  # the playground's golds cannot be wrong
            check_rewards(run, num_prompts, score)
        run.begin()
        if run.is_due(config.eval_steps):
            evaluate(run)

        while run.step < config.max_steps:
            # 1. sample G completions of each prompt, and 2. score them
            begun, policy, num_sampled = time.perf_counter(), run.answering_model(), 0
            groups = []
            for prompts, seed in until_enough(groups, run, encode, count):
                sampled = sample(policy, run.processor, prompts, config, seed, run.expect)[run.shared]
                num_sampled += sum(one.completion_tokens for group in sampled for one in group.completions)
                groups += [score(group) for group in sampled]
            rate = world.sum(num_sampled)[0] / (seconds := time.perf_counter() - begun)
            # 3. compare each with its group
            outcomes = gather_outcomes(world, groups)  # of all ranks, by prompt
            rewards = torch.stack([one.rewards for one in outcomes])  # (prompts, G)
            advantages = group_advantages(rewards.flatten(), each, config.scale_rewards).view_as(rewards)
            observed = observe(run, groups, outcomes, advantages)
            observed |= {"generation_seconds": seconds, "rollout_tokens_per_second": rate}

            # 4. pack what each of the rollout's steps learns from
            parts = deal(run, groups, outcomes, advantages.float())
            minibatches = [make_minibatch(run, part) for part in parts]
            for packs, _ in minibatches:
                if len(parts) * config.num_iterations > 1:
                    add_logprobs(run, packs, "old_logprobs", run.model)
                if reference:
                    with disable_adapter(reference):
                        add_logprobs(run, packs, "ref_logprobs", reference)
            # 5. loss and 6. update
            steps = (minibatches * config.num_iterations)[: config.max_steps - run.step]
            for left, (packs, counts) in zip(reversed(range(len(steps))), steps, strict=True):
                run.expect(of_step(run, packs))
                begun = time.perf_counter()
                learned = {
                    **accumulate_gradients(run, packs, counts),
                    **update(run.optimizers, run.parameters, config, run.step),
                }
                learned["update_seconds"] = time.perf_counter() - begun
                if not run.end_step({**observed, **learned}, may_stop=not left):
                    return
                if run.step < config.max_steps and run.is_due(config.eval_steps):
                    evaluate(run)
        if config.start_share:
            towards_start(run.masters, run.model, run.build(), config.start_share)
        if run.is_due(config.eval_steps):
            evaluate(run)
        sum_up(run)
        run.finish()
