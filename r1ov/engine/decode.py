"""Prompts to completions: each prompt is prefilled once, then all rows are decoded together, one token a
step.

The batch is refilled as it runs: a finished row leaves at once, and waiting prompts take the places of those
    that left.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from r1ov.common.text import split_reply
from r1ov.data.processor import Batch, Encoded, Processor
from r1ov.engine.cache import KVCache
from r1ov.engine.plan import Plan, banned_ids, stop_ids_of
from r1ov.engine.sampling import row_uniforms, sample
from r1ov.engine.step import make_step
from r1ov.errors import UserError
from r1ov.model.model import Qwen2_5_VL


@dataclass(frozen=True, kw_only=True)
class Completion:
    """One answer. `token_ids` ends with the stop id where there is one (a policy must learn to stop); `text`
    shows no special token.
    """

    text: str
    token_ids: list[int]
    logprobs: list[float]  # of each token, in nats; which distribution: `r1ov.engine.sampling.sample`
    finish_reason: str  # "stop": a stop id; "length": max_new_tokens, or the model's last position
    prompt_tokens: int
    completion_tokens: int
    thinking: str | None  # what stands in <think>, None if there is none
    answer: str | None  # what stands in <answer>, None if there is none


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Where the time of one `decode` went. The prompts' first tokens belong to the prefill."""

    prefill_tokens: int
    prefill_seconds: float
    decode_tokens: int
    decode_seconds: float


def prefill(model: Qwen2_5_VL, batch: Batch, cache: KVCache, num_samples: int) -> Tensor:
    """(N * num_samples, V) logits of the first new token of each row of N packed prompts, which join the
    cache's rows.

    Only the last token of a prompt goes through the last layer and the head: a 152-thousand-word row for
    every prompt token would be the largest tensor here.
    """
    attend = cache.admit(batch["cu_seqlens"].diff().tolist(), num_samples)
    logits = model.logits(
        model.hidden_states(**batch, attend=attend, only=batch["cu_seqlens"][1:].long() - 1)
    )
    if not logits.isfinite().all():
        raise UserError(
            "the model's logits are not finite: its weights are damaged, or its dtype is too narrow"
        )
    return logits.repeat_interleave(num_samples, dim=0)


class TextStream:
    """Passes on the text of a growing row piece by piece, holding back while it ends in the middle of a
    character.
    """

    def __init__(self, processor: Processor, emit: Callable[[str], None]):
        self.processor, self.emit, self.passed = processor, emit, 0

    def update(self, token_ids: list[int], is_finished: bool) -> None:
        """token_ids: all of the row so far, without its stop id."""
        piece = self.processor.decode(token_ids[self.passed :])
        if piece and (is_finished or not piece.endswith("\N{REPLACEMENT CHARACTER}")):
            self.emit(piece)
            self.passed = len(token_ids)


@dataclass
class _Row:
    """What is known of one completion while it is being decoded."""

    prompt_tokens: int
    limit: int
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: str = ""

    def append(self, token_id: int, logprob: float, stop_ids: frozenset[int]) -> bool:
        """Adds a token; whether the row goes on."""
        self.token_ids.append(token_id)
        self.logprobs.append(logprob)
        if token_id in stop_ids:
            self.finish_reason = "stop"
        elif len(self.token_ids) == self.limit:
            self.finish_reason = "length"
        return not self.finish_reason

    @property
    def text_ids(self) -> list[int]:
        """Without the stop id."""
        return self.token_ids[:-1] if self.finish_reason == "stop" else self.token_ids

    def completion(self, processor: Processor) -> Completion:
        text = processor.decode(self.text_ids)
        thinking, answer = split_reply(text)
        return Completion(
            text=text,
            token_ids=self.token_ids,
            logprobs=self.logprobs,
            finish_reason=self.finish_reason,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=len(self.token_ids),
            thinking=thinking,
            answer=answer,
        )


class _Waiting:
    """The prompts that are not yet prefilled, in order."""

    def __init__(self, plan: Plan):
        self.plan, self.first = plan, 0  # the number of the next one

    def __bool__(self) -> bool:
        return self.first < len(self.plan.prompts)

    def take(self, live: int) -> tuple[Sequence[Encoded], list[int]] | None:
        """The next prompts, and the numbers of their rows, if there is room for enough of them to make a
        prefill worth while.
        """
        samples = self.plan.num_samples
        count = min((self.plan.max_num_seqs - live) // samples, len(self.plan.prompts) - self.first)
        is_worth_while = (
            not live
            or count * samples >= self.plan.max_num_seqs // 4
            or self.first + count == len(self.plan.prompts)
        )
        if not count or not is_worth_while:
            return None
        begin, self.first = self.first, self.first + count
        return self.plan.prompts[begin : self.first], list(range(begin * samples, self.first * samples))


@torch.inference_mode()
def decode(
    model: Qwen2_5_VL,
    processor: Processor,
    plan: Plan,
    stream: Callable[[str], None] | None = None,
    on_done: Callable[[int, Completion], None] | None = None,
) -> tuple[list[Completion], Timing]:
    """The completions of all rows, the samples of a prompt one after another, and where the time went.

    Args: on_done: called with a row's number and its completion as soon as it is finished, while others go
        on.
    """
    if stream and len(plan.limits) > 1:
        raise UserError("stream follows one conversation and one sample; leave it out for more")
    device, dtype = model.head_weight.device, model.head_weight.dtype
    params, num_samples = plan.params, plan.num_samples
    waiting = _Waiting(plan)
    lengths = [len(prompt) for prompt in plan.prompts for _ in range(num_samples)]
    rows = [
        _Row(prompt_tokens=length, limit=limit) for length, limit in zip(lengths, plan.limits, strict=True)
    ]
    stop_ids, banned = stop_ids_of(processor), banned_ids(processor).to(device)
    uniforms = (
        None if plan.seeds is None else row_uniforms(plan.seeds, max(plan.limits)).to(device)
    )  # (all rows, most new tokens)
    text = TextStream(processor, stream) if stream else None

    started = time.perf_counter()
    prefill_seconds = 0.0
    capacity = max(length + limit for length, limit in zip(lengths, plan.limits, strict=True))
    step = make_step(model, capacity)
    cache = KVCache(
        model.config.text, min(plan.max_num_seqs, len(rows)), capacity, dtype, device, step.key_order
    )
    # Of the live rows, B of them: which of `rows` each is, the position of its next token, its logits there,
    # and the ids it has seen.
    live: list[int] = []
    positions = torch.zeros(0, dtype=torch.int64, device=device)
    logits = torch.zeros(0, model.config.text.vocab_size, dtype=dtype, device=device)
    seen = (
        torch.zeros(logits.shape, dtype=torch.bool, device=device)
        if params.repetition_penalty != 1.0
        else None
    )
    all_threads = torch.get_num_threads()
    try:
        while live or waiting:
            since = time.perf_counter()
            taken = waiting.take(len(live))
            if taken:
                prompts, numbers = taken
                first = torch.stack([prompt.position_ids.max() + 1 for prompt in prompts])
                positions = torch.cat((positions, first.repeat_interleave(num_samples).to(device)))
                batch = processor.pack(prompts).to(device)
                torch.set_num_threads(all_threads)
                logits = torch.cat((logits, prefill(model, batch, cache, num_samples)))
                if seen is not None:
                    seen = torch.cat(
                        (seen, _seen(batch, seen.shape[1]).repeat_interleave(num_samples, dim=0))
                    )
                live = live + numbers

            random = None
            if uniforms is not None:
                random = uniforms[live, [len(rows[row].token_ids) for row in live]]
            tokens, logprobs = sample(logits, params, banned, seen, random)
            new = zip(
                live, tokens.tolist(), logprobs.tolist(), strict=True
            )  # the one place in a step where the host waits for the device
            going = [
                place
                for place, (row, token, logprob) in enumerate(new)
                if rows[row].append(token, logprob, stop_ids)
            ]
            if taken:
                prefill_seconds += time.perf_counter() - since
            if text:
                text.update(rows[0].text_ids, is_finished=bool(rows[0].finish_reason))
            if len(going) < len(live):
                for row in live if on_done else ():
                    if rows[row].finish_reason:
                        on_done(row, rows[row].completion(processor))
                former = cache.keep(going)
                live = [live[place] for place in former]
                tokens, positions = tokens[former], positions[former]
                seen = None if seen is None else seen[former]
            if seen is not None:
                seen.scatter_(1, tokens[:, None], True)
            if live:
                torch.set_num_threads(step.num_threads(len(live), all_threads))
            logits = step(tokens, positions, cache) if live else logits[:0]
            positions = positions + 1
    finally:
        torch.set_num_threads(all_threads)

    return [row.completion(processor) for row in rows], Timing(
        prefill_tokens=sum(map(len, plan.prompts)),
        prefill_seconds=prefill_seconds,
        decode_tokens=sum(len(row.token_ids) for row in rows) - len(rows),
        decode_seconds=time.perf_counter() - started - prefill_seconds,
    )


def _seen(batch: Batch, vocab_size: int) -> Tensor:
    """(N, V) bool: the ids in each of N packed prompts."""
    lengths = batch["cu_seqlens"].diff()
    prompt = torch.repeat_interleave(lengths)  # (T,)
    seen = torch.zeros(len(lengths), vocab_size, dtype=torch.bool, device=prompt.device)
    seen[prompt, batch["input_ids"]] = True
    return seen
