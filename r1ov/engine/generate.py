"""From conversations to completions: prefill every prompt once, then decode all rows together, one token a step."""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from r1ov.data.messages import Messages
from r1ov.data.processor import Batch, Processor
from r1ov.engine.cache import KVCache
from r1ov.engine.sampling import SamplingParams, row_seeds, row_uniforms, sample
from r1ov.engine.step import Step
from r1ov.errors import UserError
from r1ov.model.config import Config
from r1ov.model.model import Qwen2_5_VL
from r1ov.reward import split_reply

DEFAULT_MAX_NEW_TOKENS = 2048


@dataclass(frozen=True, kw_only=True)
class Completion:
    """One answer. `token_ids` ends with the stop id where there is one (a policy must learn to stop); `text` shows no special token."""

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


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that is settled before the first token: `prepare` makes it and finds every mistake of the user's, `decode` carries it out."""

    batch: Batch  # N prompts
    params: SamplingParams
    num_samples: int
    limits: list[int]  # of new tokens, one a row; the samples of a prompt stand together
    seeds: list[int] | None  # one a row; None when greedy


def generate(
    model: Qwen2_5_VL,
    processor: Processor,
    messages: Messages | Sequence[Messages],
    *,
    max_new_tokens: int | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    repetition_penalty: float | None = None,
    seed: int = 0,
    num_samples: int = 1,
    stream: Callable[[str], None] | None = None,
) -> Completion | list[Completion] | list[list[Completion]]:
    """The model's completion of a conversation; a list of conversations is decoded as one batch.

    One conversation gives a Completion, a list of conversations a list with one entry each; where num_samples is above 1, each entry is
    itself a list of that many completions. Settings left at None come from the checkpoint's generation_config.json (how:
    `SamplingParams.resolve`). A sample's random numbers depend on the seed and its prompt alone, not
    on what else is in the batch.

    Args:
        max_new_tokens: None and no such setting in the file: 2048. A row also ends at the model's last position.
        temperature: 0 is greedy.
        num_samples: for each conversation; its pictures are encoded and its prompt prefilled once.
        stream: called with each new piece of the text, for one conversation and one sample; the pieces add up to `text`.
    Raises:
        UserError: a setting out of its range, a prompt longer than the model's positions, or what the processor finds wrong.
    """
    is_single = bool(messages) and isinstance(messages[0], Mapping)
    plan = prepare(
        processor,
        [messages] if is_single else messages,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        repetition_penalty=repetition_penalty,
        seed=seed,
        num_samples=num_samples,
    )
    rows, _ = decode(model, processor, plan, stream)
    entries = rows if num_samples == 1 else [rows[i : i + num_samples] for i in range(0, len(rows), num_samples)]
    return entries[0] if is_single else entries


def prepare(
    processor: Processor,
    conversations: Sequence[Messages],
    *,
    max_new_tokens: int | None = None,
    seed: int = 0,
    num_samples: int = 1,
    **sampling: float | None,
) -> Plan:
    """Reads the pictures, tokenises, and settles what was left open; arguments and errors as in `generate`."""
    params = SamplingParams.resolve(processor.generation_config, **sampling)
    if max_new_tokens is None:
        max_new_tokens = processor.generation_config.get("max_new_tokens") or DEFAULT_MAX_NEW_TOKENS
    for name, value in {"max_new_tokens": max_new_tokens, "num_samples": num_samples}.items():
        if type(value) is not int or value < 1:
            raise UserError(f"{name} is {value!r}; it must be an integer, 1 or above")
    stop_ids_of(processor)  # a mistake in the file shows now, not after the prefill
    batch = processor(conversations, add_generation_prompt=True)
    prompt_lengths = batch["cu_seqlens"].diff().tolist()
    max_positions = processor.config.text.max_position_embeddings
    if max(prompt_lengths) >= max_positions:
        raise UserError(
            f"a prompt has {max(prompt_lengths)} tokens, which leaves no room for an answer in the model's {max_positions} positions; "
            f"shorten the text{' or lower max_pixels' if 'pixel_values' in batch else ''}"
        )
    limits = [min(max_new_tokens, max_positions - length) for length in prompt_lengths for _ in range(num_samples)]
    seeds = row_seeds(_digests(batch, processor.config), num_samples, seed) if params.temperature else None
    return Plan(batch=batch, params=params, num_samples=num_samples, limits=limits, seeds=seeds)


def prefill(model: Qwen2_5_VL, batch: Batch, cache: KVCache) -> Tensor:
    """(N, V) logits of the first new token of each packed prompt; fills the cache.

    Only the last token of a prompt goes through the head: a 152-thousand-word row for every prompt token would be the largest tensor here.
    """
    hidden = model.hidden_states(**batch, attend=cache.prefill(batch["cu_seqlens"]))
    return model.logits(hidden[batch["cu_seqlens"][1:].long() - 1])


def decode_one_token(step: Step, cache: KVCache, tokens: Tensor, positions: Tensor) -> Tensor:
    """(B, V) logits of the token after `tokens` (B,), which stand at `positions` (B,) on all three streams; the cache grows by them."""
    return step(tokens, positions, cache.decode())


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


@torch.inference_mode()
def decode(
    model: Qwen2_5_VL, processor: Processor, plan: Plan, stream: Callable[[str], None] | None = None
) -> tuple[list[Completion], Timing]:
    """The completions of all rows, the samples of a prompt one after another, and where the time went."""
    if stream and len(plan.limits) > 1:
        raise UserError("stream follows one conversation and one sample; leave it out for more")
    device, dtype = model.head_weight.device, model.head_weight.dtype
    batch, params, num_samples, limits = plan.batch, plan.params, plan.num_samples, plan.limits
    prompt_lengths = batch["cu_seqlens"].diff().tolist()
    lengths = [length for length in prompt_lengths for _ in range(num_samples)]
    rows = [_Row(prompt_tokens=length, limit=limit) for length, limit in zip(lengths, limits, strict=True)]
    stop_ids, banned = stop_ids_of(processor), banned_ids(processor).to(device)
    uniforms = None if plan.seeds is None else row_uniforms(plan.seeds, max(limits)).to(device)  # (B, most new tokens)
    text = TextStream(processor, stream) if stream else None

    started = time.perf_counter()
    capacity = max(length + limit for length, limit in zip(lengths, limits, strict=True))
    cache = KVCache(model.config.text, prompt_lengths, num_samples, capacity, dtype, device)
    prompts = list(zip(batch["input_ids"].split(prompt_lengths), batch["position_ids"].split(prompt_lengths, dim=1), strict=True))
    positions = torch.stack([position_ids.max() + 1 for _, position_ids in prompts]).repeat_interleave(num_samples).to(device)  # (B,)
    step = Step(model, capacity)
    logits = prefill(model, batch.to(device), cache).repeat_interleave(num_samples, dim=0)  # (B, V)
    if not logits.isfinite().all():
        raise UserError("the model's logits are not finite: its weights are damaged, or its dtype is too narrow")
    seen = None
    if params.repetition_penalty != 1.0:
        seen = torch.zeros(logits.shape, dtype=torch.bool, device=device)
        for row in range(len(rows)):
            seen[row, prompts[row // num_samples][0].to(device)] = True

    live = list(range(len(rows)))  # which of `rows` stands in each place of the tensors above
    prefilled = None
    for index in range(max(limits)):
        tokens, logprobs = sample(logits, params, banned, seen, None if uniforms is None else uniforms[:, index])
        new = zip(live, tokens.tolist(), logprobs.tolist(), strict=True)  # the one place in a step where the host waits for the device
        prefilled = prefilled or time.perf_counter()
        going = [place for place, (row, token, logprob) in enumerate(new) if rows[row].append(token, logprob, stop_ids)]
        if text:
            text.update(rows[0].text_ids, is_finished=bool(rows[0].finish_reason))
        if not going:
            break
        if len(going) < len(live):
            former = cache.keep(going)
            live = [live[place] for place in former]
            tokens, positions = tokens[former], positions[former]
            seen = None if seen is None else seen[former]
            uniforms = None if uniforms is None else uniforms[former]
        if seen is not None:
            seen.scatter_(1, tokens[:, None], True)
        logits = decode_one_token(step, cache, tokens, positions)
        positions = positions + 1

    return [row.completion(processor) for row in rows], Timing(
        prefill_tokens=sum(prompt_lengths),
        prefill_seconds=prefilled - started,
        decode_tokens=sum(len(row.token_ids) for row in rows) - len(rows),
        decode_seconds=time.perf_counter() - prefilled,
    )


class TextStream:
    """Passes on the text of a growing row piece by piece, holding back while it ends in the middle of a character."""

    def __init__(self, processor: Processor, emit: Callable[[str], None]):
        self.processor, self.emit, self.passed = processor, emit, 0

    def update(self, token_ids: list[int], is_finished: bool) -> None:
        """token_ids: all of the row so far, without its stop id."""
        piece = self.processor.decode(token_ids[self.passed :])
        if piece and (is_finished or not piece.endswith("\N{REPLACEMENT CHARACTER}")):
            self.emit(piece)
            self.passed = len(token_ids)


def stop_ids_of(processor: Processor) -> frozenset[int]:
    """The ids that end an answer: generation_config.json's, or config.json's where that names none, as in Hugging Face."""
    ids = processor.generation_config.get("eos_token_id")
    ids = processor.config.eos_token_id if ids is None else ids
    ids = () if ids is None else ids if isinstance(ids, list | tuple) else (ids,)
    if not all(type(id) is int for id in ids):
        raise UserError(f"generation_config.json: eos_token_id is {ids!r}, expected integers")
    return frozenset(ids)


def banned_ids(processor: Processor) -> Tensor:
    """(b,) ids that must not be sampled: what frames or stands for a picture or video, and rows of the head that stand for no token."""
    tokenizer, config, vocab_size = processor.tokenizer, processor.config, processor.config.text.vocab_size
    unused = [id for id in range(tokenizer.get_vocab_size(), vocab_size) if tokenizer.id_to_token(id) is None]
    names = ("vision_start_token_id", "vision_end_token_id", "vision_token_id", "image_token_id", "video_token_id")
    placeholders = {id for name in names if (id := getattr(config, name)) < vocab_size}
    return torch.tensor(sorted({*placeholders, *unused}), dtype=torch.int64)


def _digests(batch: Batch, config: Config) -> list[bytes]:
    """What tells each prompt of the batch from any other: a digest of its ids and its pictures' patches."""
    digests, patches = [], 0
    for ids in batch["input_ids"].split(batch["cu_seqlens"].diff().tolist()):
        digest = hashlib.blake2b(ids.numpy().tobytes(), digest_size=16)
        count = int((ids == config.image_token_id).sum()) * config.vision.spatial_merge_size**2
        if count:
            digest.update(batch["pixel_values"][patches : patches + count].numpy())
        patches += count
        digests.append(digest.digest())
    return digests
