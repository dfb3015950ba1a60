"""Prompts to completions: admit, sample, retire, step.

Each prompt is prefilled once, then all rows are decoded together, one token a step. The batch is refilled as
it runs: a finished row leaves at once, and waiting prompts take the places of those that left.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from r1ov.common.files import split_reply
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

    def sizes(self) -> tuple[int, int, int, int]:
        """Rows, their most tokens, and the tokens and patches of the prompts that are prefilled first."""
        rows = min(self.max_num_seqs, len(self.limits))
        first = self.prompts[: max(1, rows // self.num_samples)]
        patches = sum(len(patches) for prompt in first for patches in prompt.pixel_values or ())
        columns = max(map(len, self.prompts)) + max(self.limits)
        return rows, columns, sum(map(len, first)), patches


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
    params, samples = plan.params, plan.num_samples
    weight = model.model.embed_tokens.weight
    device, dtype = weight.device, weight.dtype
    banned = plan.banned.to(device)
    uniforms = None if plan.seeds is None else row_uniforms(plan.seeds, max(plan.limits)).to(device)
    text = TextStream(processor, stream) if stream else None
    if stream and plan.prompts[0].opened:
        stream(plan.prompts[0].opened)
    waiting = [
        Row(number, plan.prompts[number // samples], limit) for number, limit in enumerate(plan.limits)
    ]
    done: dict[int, Completion] = {}

    if begun is None:
        capacity = max(len(row.prompt) + row.limit for row in waiting)
        num_rows = min(plan.max_num_seqs, len(waiting))
        cache = KVCache(model.config.text, num_rows, capacity, dtype, device)
    else:
        cache = begun[0]
    step = make_step(model, cache)
    # The rows that are being decoded, B of them, in the cache's order; of each its next token's position and
    # logits, and with a repetition penalty the ids in its prompt and answer so far.
    rows: list[Row] = []
    positions = torch.zeros(0, dtype=torch.int64, device=device)  # (B,)
    logits = no_logits = torch.zeros(0, model.config.text.vocab_size, dtype=dtype, device=device)  # (B, V)
    seen = None if params.repetition_penalty == 1.0 else logits.bool()  # (B, V)
    all_threads = torch.get_num_threads()
    try:
        while rows or waiting:
            # Whole prompts join, if they are enough to be worth a prefill.
            count = min(plan.max_num_seqs - len(rows), len(waiting)) // samples * samples
            if count and (not rows or count >= plan.max_num_seqs // 4 or count == len(waiting)):
                since = time.perf_counter()
                new, waiting = waiting[:count], waiting[count:]
                rows = rows + new
                batch = processor.pack([begun[1]] if begun else [row.prompt for row in new[::samples]])
                first = torch.tensor([int(row.prompt.position_ids.max()) + 1 for row in new])
                positions = torch.cat((positions, first.to(device)))
                torch.set_num_threads(all_threads)
                logits = torch.cat((logits, prefill(model, batch.to(device), cache, samples)))
                if seen is not None:
                    ids = torch.zeros(len(new), logits.shape[1], dtype=torch.bool)
                    for own, row in zip(ids, new, strict=True):
                        own[row.prompt.input_ids] = True
                    seen = torch.cat((seen, ids.to(device)))
                prefill_tokens += len(batch["input_ids"])
                prefill_seconds += time.perf_counter() - since

            random = None
            if uniforms is not None:
                random = uniforms[[row.number for row in rows], [len(row.token_ids) for row in rows]]
            tokens, logprobs = sample(logits, params, banned, seen, random)
            if seen is not None:
                seen.scatter_(1, tokens[:, None], True)
            going = []  # places of the rows that are not finished
            # The one place in a step where the host waits for the device.
            made = zip(rows, tokens.tolist(), logprobs.tolist(), strict=True)
            for place, (row, token, logprob) in enumerate(made):
                row.token_ids.append(token)
                row.logprobs.append(logprob)
                is_stop = token in plan.stop_ids
                is_finished = is_stop or len(row.token_ids) == row.limit
                text_ids = row.token_ids[:-1] if is_stop else row.token_ids
                if text:
                    text.update(text_ids, is_finished)
                if not is_finished:
                    going.append(place)
                    continue
                done[row.number] = Completion(
                    text=row.prompt.opened + processor.decode(text_ids),
                    token_ids=row.token_ids,
                    logprobs=row.logprobs,
                    finish_reason="stop" if is_stop else "length",
                    prompt_tokens=len(row.prompt),
                )
                if on_done:
                    on_done(row.number, done[row.number])

            if len(going) < len(rows):
                former = cache.keep(going)
                rows = [rows[place] for place in former]
                tokens, positions = tokens[former], positions[former]
                seen = None if seen is None else seen[former]
            # In a small step of few rows, several threads wait for each other longer than they work.
            is_short = isinstance(step, FlatStep) and len(going) < 8
            torch.set_num_threads(1 if is_short else all_threads)
            logits = step(tokens, positions) if going else no_logits
            positions = positions + 1
    finally:
        torch.set_num_threads(all_threads)

    return [done[number] for number in range(len(done))], Timing(
        prefill_tokens=prefill_tokens,
        prefill_seconds=prefill_seconds,
        decode_tokens=sum(len(one.token_ids) - 1 for one in done.values()),
        decode_seconds=time.perf_counter() - started - prefill_seconds,
    )
