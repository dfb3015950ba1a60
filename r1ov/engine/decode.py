"""Prompts to completions: admit, step, retire.

Each prompt is prefilled once, then all rows are decoded together, one token a step. The batch is refilled as
it runs: a finished row leaves at once, and waiting prompts take the places of those that left.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor

from r1ov.common.files import split_reply
from r1ov.data.processor import Encoded, Processor
from r1ov.engine import graph
from r1ov.engine.cache import FlatStep, KVCache, Step, make_step, prefill
from r1ov.engine.parallel import sample_together
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
    max_num_batched_tokens: int = 8192  # of the prompts that are prefilled together, if they are several

    def sizes(self) -> tuple[int, int, int, int]:
        """Rows, their most tokens, and the tokens and patches of the prompts that are prefilled first."""
        rows = min(self.max_num_seqs, len(self.limits))
        first = self.prompts[: rows // self.num_samples]
        patches = sum(len(patches) for prompt in first for patches in prompt.pixel_values or ())
        return rows, max(map(len, self.prompts)) + max(self.limits), sum(map(len, first)), patches


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


@dataclass
class TextStream:
    """Passes on the text of a growing row piece by piece, and never half a character."""

    processor: Processor
    emit: Callable[[str], None]
    passed: int = 0  # tokens

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


@dataclass
class Slots:
    """What a step reads and writes, the cache apart: tensors that are made once and stay in their places."""

    step: Step
    params: SamplingParams
    banned: Tensor  # (b,)
    uniforms: Tensor | None  # (n,) float64, the random numbers of one row after another's; None when greedy
    # (B,) int64 each: the newest tokens, their positions, the places of the next random numbers; and with a
    # repetition penalty (B, V) bool: the ids in each row's prompt and answer.
    by_row: list[Tensor]
    choose: Callable  # `sample`, or several processes' form of it

    def advance(self, rows: slice, logits: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One token more in each of these rows, on the device alone; (B,) tokens and (B,) log-probs.

        Args: logits: (B, V) of the tokens to come; None: a step makes them, of the first rows.
        """
        tokens, positions, places, *seen = (each[rows] for each in self.by_row)
        if logits is None:
            logits = self.step(tokens, positions)
        random = None if self.uniforms is None else self.uniforms[places]
        chosen, logprobs = self.choose(logits, self.params, self.banned, seen[0] if seen else None, random)
        for ids in seen:
            ids.scatter_(1, chosen[:, None], True)
        tokens.copy_(chosen)
        positions += 1
        places += 1
        return chosen, logprobs

    def remember(self, places: slice, rows: list[Row], vocab_size: int) -> None:
        """Notes the ids of these rows' prompts."""
        if not self.by_row[3:]:
            self.by_row.append(self.banned.new_zeros(len(self.by_row[0]), vocab_size, dtype=torch.bool))
        for ids, row in zip(self.by_row[3][places].zero_(), rows, strict=True):
            ids[row.prompt.input_ids.to(ids.device)] = True


@torch.inference_mode()
def decode(
    model: Qwen2_5_VL,
    processor: Processor,
    plan: Plan,
    stream: Callable[[str], None] | None = None,
    on_done: Callable[[int, Completion], None] | None = None,
    begun: tuple[KVCache, Encoded] | None = None,
) -> tuple[list[Completion], Timing]:
    """The completions of all rows, the samples of a prompt one after another, and where the time went.

    Args:
        on_done: called with a row's number and its completion when it is finished, while others go on.
        begun: for a single row: a cache that holds the beginning of its prompt, and the rest of it.
    """
    if stream and len(plan.limits) > 1:
        raise UserError("stream follows one conversation and one sample; leave it out for more")
    started, prefill_seconds, prefill_tokens = time.perf_counter(), 0.0, 0
    samples = plan.num_samples
    device = model.model.embed_tokens.weight.device
    text = TextStream(processor, stream) if stream else None
    if stream and plan.prompts[0].opened:
        stream(plan.prompts[0].opened)
    waiting = [
        Row(number, plan.prompts[number // samples], limit) for number, limit in enumerate(plan.limits)
    ]
    done = [None] * len(waiting)  # completions

    most, max_rows = max(plan.limits), min(plan.max_num_seqs, len(waiting))
    capacity = max(map(len, plan.prompts)) + most
    cache = begun[0] if begun else KVCache(model.model, max_rows, capacity)
    by_row = [*torch.zeros(3, max_rows, dtype=torch.int64, device=device)]
    uniforms = None if plan.seeds is None else row_uniforms(plan.seeds, most).flatten().to(device)
    choose = partial(sample_together, model.split) if model.split else sample
    slots = Slots(make_step(model, cache), plan.params, plan.banned.to(device), uniforms, by_row, choose)
    recorded = None
    if device.type == graph.RECORDED and graph.can_record(model):
        recorded = graph.Recorded(slots.advance, by_row, cache)
    rows = []  # that are being decoded, in the cache's order
    all_threads = torch.get_num_threads()
    try:
        while True:
            # Whole prompts join, if they are enough to be worth a prefill.
            count = min(plan.max_num_seqs - len(rows), len(waiting)) // samples * samples
            places = slice(len(rows))
            if count and (not rows or count >= plan.max_num_seqs // 4 or count == len(waiting)):
                since = time.perf_counter()
                totals = accumulate(len(row.prompt) for row in waiting[:count:samples])
                count = samples * max(1, sum(total <= plan.max_num_batched_tokens for total in totals))
                new, waiting = waiting[:count], waiting[count:]
                places, rows = slice(len(rows), len(rows) + count), rows + new
                batch = processor.pack([begun[1]] if begun else [row.prompt for row in new[::samples]])
                torch.set_num_threads(all_threads)
                logits = prefill(model, batch.to(device), cache, samples)
                by_row[1][places] = torch.tensor([int(row.prompt.position_ids.max()) for row in new])
                by_row[2][places] = torch.tensor([most * row.number for row in new])
                if plan.params.repetition_penalty != 1.0:
                    slots.remember(places, new, model.config.text.vocab_size)
                made = [slots.advance(places, logits)]
                prefill_tokens += len(batch["input_ids"])
                prefill_seconds += time.perf_counter() - since
            elif recorded:
                made = recorded(len(rows), min(row.limit - len(row.token_ids) for row in rows))
            else:
                # In a small step of few rows, several threads wait for each other longer than they work.
                torch.set_num_threads(
                    1 if isinstance(slots.step, FlatStep) and len(rows) < 8 else all_threads
                )
                made = [slots.advance(places)]

            for tokens, logprobs in made:
                # The one place where the host waits for the device.
                for row, token, logprob in zip(
                    rows[places], tokens.tolist(), logprobs.tolist(), strict=False
                ):
                    if done[row.number]:
                        continue
                    row.token_ids.append(token)
                    row.logprobs.append(logprob)
                    is_stop = token in plan.stop_ids
                    is_finished = is_stop or len(row.token_ids) == row.limit
                    text_ids = row.token_ids[:-1] if is_stop else row.token_ids
                    if text:
                        text.update(text_ids, is_finished)
                    if is_finished:
                        done[row.number] = Completion(
                            text=row.prompt.opened + processor.decode(text_ids),
                            token_ids=row.token_ids,
                            logprobs=row.logprobs,
                            finish_reason="stop" if is_stop else "length",
                            prompt_tokens=len(row.prompt),
                        )
                        if on_done:
                            on_done(row.number, done[row.number])

            if all(done):
                break
            going = [place for place, row in enumerate(rows) if not done[row.number]]
            if len(going) < len(rows):
                former = cache.keep(going)
                rows = [rows[place] for place in former]
                for kept in by_row:
                    kept[: len(rows)] = kept[former]
    finally:
        torch.set_num_threads(all_threads)

    return done, Timing(
        prefill_tokens=prefill_tokens,
        prefill_seconds=prefill_seconds,
        decode_tokens=sum(len(one.token_ids) - 1 for one in done),
        decode_seconds=time.perf_counter() - started - prefill_seconds,
    )
