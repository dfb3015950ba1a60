"""Prompts to completions: admit, sample, retire, step.

Each prompt is prefilled once, then all rows are decoded together, one token a step. The batch is refilled as
it runs: a finished row leaves at once, and waiting prompts take the places of those that left.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from r1ov.common.text import split_reply
from r1ov.data.processor import Encoded, Processor
from r1ov.engine.cache import FlatStep, KVCache, make_step, prefill
from r1ov.engine.sampling import SamplingParams, row_uniforms, sample
from r1ov.errors import UserError
from r1ov.model.model import Qwen2_5_VL


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is settled before the first token. `prepare` makes it and finds every mistake of the user's."""

    prompts: Sequence[Encoded]  # N
    params: SamplingParams
    num_samples: int  # rows of each prompt, one after another
    limits: list[int]  # of new tokens, one a row
    seeds: list[int] | None  # one a row; None when greedy
    max_num_seqs: int  # rows decoded at once, at most; the others wait
    stop_ids: frozenset[int]
    banned: Tensor  # (b,) ids that are never sampled


@dataclass(frozen=True, kw_only=True)
class Completion:
    """One answer. `token_ids` ends with the stop id if there is one: a policy must learn to stop."""

    text: str  # without special tokens; begins with the `<think>` that the prompt opened, if it did
    token_ids: list[int]
    logprobs: list[float]  # of each token, in nats; which distribution: `r1ov.engine.sampling.sample`
    finish_reason: str  # "stop": a stop id; "length": max_new_tokens, or the model's last position
    prompt_tokens: int

    @property
    def completion_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def thinking(self) -> str | None:
        """The text in <think>, None if there is none."""
        return split_reply(self.text)[0]

    @property
    def answer(self) -> str | None:
        """The text in <answer>, None if there is none."""
        return split_reply(self.text)[1]


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Where the time of one `decode` went. The prompts' first tokens belong to the prefill."""

    prefill_tokens: int
    prefill_seconds: float
    decode_tokens: int
    decode_seconds: float


class TextStream:
    """Passes on the text of a growing row piece by piece, and never half a character."""

    def __init__(self, processor: Processor, emit: Callable[[str], None]):
        self.processor, self.emit, self.passed = processor, emit, 0

    def update(self, token_ids: list[int], is_finished: bool) -> None:
        """Args: token_ids: all of the row so far, without its stop id."""
        piece = self.processor.decode(token_ids[self.passed :])
        if piece and (is_finished or not piece.endswith("\N{REPLACEMENT CHARACTER}")):
            self.emit(piece)
            self.passed = len(token_ids)


@dataclass
class Row:
    """A completion while it is being decoded."""

    number: int  # among all rows
    prompt: Encoded
    limit: int  # of new tokens
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    text_ids: list[int] = field(default_factory=list)  # the tokens without the stop id
    finish_reason: str = ""

    def append(self, token_id: int, logprob: float, stop_ids: frozenset[int]) -> None:
        self.token_ids.append(token_id)
        self.logprobs.append(logprob)
        if token_id in stop_ids:
            self.finish_reason = "stop"
            return
        self.text_ids.append(token_id)
        if len(self.token_ids) == self.limit:
            self.finish_reason = "length"

    def completion(self, processor: Processor) -> Completion:
        return Completion(
            text=self.prompt.opened + processor.decode(self.text_ids),
            token_ids=self.token_ids,
            logprobs=self.logprobs,
            finish_reason=self.finish_reason,
            prompt_tokens=len(self.prompt),
        )


@dataclass
class Live:
    """The rows that are being decoded, B of them, in the cache's order."""

    rows: list[Row]
    positions: Tensor  # (B,) of each row's next token
    logits: Tensor  # (B, V) of the next token
    seen: Tensor | None  # (B, V) bool, the ids in prompt and answer so far; None without a repetition penalty

    def admit(self, rows: list[Row], logits: Tensor) -> None:
        """Rows join behind the live ones, with the logits of their first tokens."""
        self.rows = self.rows + rows
        first = torch.tensor([int(row.prompt.position_ids.max()) + 1 for row in rows])
        self.positions = torch.cat((self.positions, first.to(logits.device)))
        self.logits = torch.cat((self.logits, logits))
        if self.seen is not None:
            seen = torch.zeros(logits.shape, dtype=torch.bool)
            for ids, row in zip(seen, rows, strict=True):
                ids[row.prompt.input_ids] = True
            self.seen = torch.cat((self.seen, seen.to(logits.device)))

    def keep(self, former: list[int]) -> None:
        """Row i becomes what row former[i] was; all others leave."""
        self.rows = [self.rows[place] for place in former]
        self.positions = self.positions[former]
        self.seen = None if self.seen is None else self.seen[former]


def admitted(waiting: Sequence[Row], live: int, plan: Plan) -> int:
    """How many of the waiting rows join now: those of whole prompts, if enough to be worth a prefill."""
    count = min(plan.max_num_seqs - live, len(waiting)) // plan.num_samples * plan.num_samples
    is_worth_while = not live or count >= plan.max_num_seqs // 4 or count == len(waiting)
    return count if is_worth_while else 0


@torch.inference_mode()
def decode(
    model: Qwen2_5_VL,
    processor: Processor,
    plan: Plan,
    stream: Callable[[str], None] | None = None,
    on_done: Callable[[int, Completion], None] | None = None,
) -> tuple[list[Completion], Timing]:
    """The completions of all rows, the samples of a prompt one after another, and where the time went.

    Args: on_done: called with a row's number and its completion when it is finished, while others go on.
    """
    if stream and len(plan.limits) > 1:
        raise UserError("stream follows one conversation and one sample; leave it out for more")
    started, prefill_seconds = time.perf_counter(), 0.0
    params, samples = plan.params, plan.num_samples
    device, dtype = model.head_weight.device, model.head_weight.dtype
    banned = plan.banned.to(device)
    uniforms = None if plan.seeds is None else row_uniforms(plan.seeds, max(plan.limits)).to(device)
    text = TextStream(processor, stream) if stream else None
    if stream and plan.prompts[0].opened:
        stream(plan.prompts[0].opened)
    waiting = [
        Row(number, plan.prompts[number // samples], limit) for number, limit in enumerate(plan.limits)
    ]
    done: dict[int, Completion] = {}

    capacity = max(len(row.prompt) + row.limit for row in waiting)
    cache = KVCache(model.config.text, min(plan.max_num_seqs, len(waiting)), capacity, dtype, device)
    step = make_step(model, cache)
    logits = torch.zeros(0, model.config.text.vocab_size, dtype=dtype, device=device)
    live = Live(
        rows=[],
        positions=torch.zeros(0, dtype=torch.int64, device=device),
        logits=logits,
        seen=None if params.repetition_penalty == 1.0 else logits.bool(),
    )
    all_threads = torch.get_num_threads()
    try:
        while live.rows or waiting:
            if count := admitted(waiting, len(live.rows), plan):
                since = time.perf_counter()
                rows, waiting = waiting[:count], waiting[count:]
                batch = processor.pack([row.prompt for row in rows[::samples]]).to(device)
                torch.set_num_threads(all_threads)
                live.admit(rows, prefill(model, batch, cache, samples))
                prefill_seconds += time.perf_counter() - since

            random = None
            if uniforms is not None:
                random = uniforms[
                    [row.number for row in live.rows], [len(row.token_ids) for row in live.rows]
                ]
            tokens, logprobs = sample(live.logits, params, banned, live.seen, random)
            if live.seen is not None:
                live.seen.scatter_(1, tokens[:, None], True)
            # The one place in a step where the host waits for the device.
            for row, token, logprob in zip(live.rows, tokens.tolist(), logprobs.tolist(), strict=True):
                row.append(token, logprob, plan.stop_ids)
                if text:
                    text.update(row.text_ids, is_finished=bool(row.finish_reason))
                if row.finish_reason:
                    done[row.number] = row.completion(processor)
                    if on_done:
                        on_done(row.number, done[row.number])

            going = [place for place, row in enumerate(live.rows) if not row.finish_reason]
            if len(going) < len(live.rows):
                former = cache.keep(going)
                live.keep(former)
                tokens = tokens[former]
            # In a small step of few rows, several threads wait for each other longer than they work.
            is_short = isinstance(step, FlatStep) and len(going) < 8
            torch.set_num_threads(1 if is_short else all_threads)
            live.logits = step(tokens, live.positions) if going else logits
            live.positions = live.positions + 1
    finally:
        torch.set_num_threads(all_threads)

    made = sum(completion.completion_tokens for completion in done.values())
    return [done[number] for number in range(len(done))], Timing(
        prefill_tokens=sum(map(len, plan.prompts)),
        prefill_seconds=prefill_seconds,
        decode_tokens=made - len(done),
        decode_seconds=time.perf_counter() - started - prefill_seconds,
    )
