"""What is settled before the first token: the prompts as tensors, how tokens are chosen, and where
each answer must end.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from r1ov.data.messages import Messages
from r1ov.data.processor import Encoded, Processor
from r1ov.engine.sampling import SamplingParams, row_seeds
from r1ov.errors import UserError

DEFAULT_MAX_NEW_TOKENS = 2048


@dataclass(frozen=True, kw_only=True)
class Plan:
    """`prepare` makes it and finds every mistake of the user's, `decode` carries it out."""

    prompts: Sequence[Encoded]  # N
    params: SamplingParams
    num_samples: int
    limits: list[int]  # of new tokens, one a row; the samples of a prompt stand together
    seeds: list[int] | None  # one a row; None when greedy
    max_num_seqs: int  # rows decoded at once, at most; the others wait


def prepare(
    processor: Processor,
    conversations: Sequence[Messages] | Sequence[Encoded],
    *,
    max_new_tokens: int | None = None,
    seed: int = 0,
    num_samples: int = 1,
    max_num_seqs: int | None = None,
    names: Sequence[bytes] | None = None,
    **sampling: float | None,
) -> Plan:
    """Reads the pictures, tokenises, and settles what was left open; other arguments, and errors, as in
    `generate`.

    Args:
        conversations: as messages, or already encoded, each ready for a reply.
        names: tell the prompts apart for their random numbers, where not their ids and pictures shall.
        max_num_seqs: at most so many rows are decoded at once, which bounds the cache; the others follow as
            rows finish. vLLM's name.
    """
    params = SamplingParams.resolve(processor.generation_config, **sampling)
    if max_new_tokens is None:
        max_new_tokens = processor.generation_config.get("max_new_tokens") or DEFAULT_MAX_NEW_TOKENS
    max_num_seqs = max(len(conversations) * num_samples, 1) if max_num_seqs is None else max_num_seqs
    for name, value in {
        "max_new_tokens": max_new_tokens,
        "num_samples": num_samples,
        "max_num_seqs": max_num_seqs,
    }.items():
        if type(value) is not int or value < 1:
            raise UserError(f"{name} is {value!r}; it must be an integer, 1 or above")
    if max_num_seqs < num_samples:
        raise UserError(
            f"max_num_seqs is {max_num_seqs}; the {num_samples} samples of a prompt are decoded together, so it must be as many"
        )
    stop_ids_of(processor)  # a mistake in the file shows now, not after the prefill
    prompts = [processor.with_pixels(prompt) for prompt in _encoded(processor, conversations)]
    prompt_lengths = [len(prompt) for prompt in prompts]
    max_positions = processor.config.text.max_position_embeddings
    if max(prompt_lengths) >= max_positions:
        raise UserError(
            f"a prompt has {max(prompt_lengths)} tokens, which leaves no room for an answer in the model's {max_positions} positions; "
            f"shorten the text{' or lower max_pixels' if any(prompt.pictures for prompt in prompts) else ''}"
        )
    limits = [
        min(max_new_tokens, max_positions - length) for length in prompt_lengths for _ in range(num_samples)
    ]
    seeds = None
    if params.temperature:
        seeds = row_seeds(names or [_digest(prompt) for prompt in prompts], num_samples, seed)
    return Plan(
        prompts=prompts,
        params=params,
        num_samples=num_samples,
        limits=limits,
        seeds=seeds,
        max_num_seqs=max_num_seqs,
    )


def _encoded(
    processor: Processor, conversations: Sequence[Messages] | Sequence[Encoded]
) -> Sequence[Encoded]:
    if not conversations or isinstance(conversations[0], Encoded):
        return conversations
    names = [f"conversation {number}" for number in range(1, len(conversations) + 1)]
    return [
        processor.encode(messages, add_generation_prompt=True, name=name if len(names) > 1 else "")
        for messages, name in zip(conversations, names, strict=True)
    ]


def _digest(prompt: Encoded) -> bytes:
    """What tells a prompt from any other: a digest of its ids and its images' patches."""
    digest = hashlib.blake2b(prompt.input_ids.numpy().tobytes(), digest_size=16)
    for patches in prompt.pixel_values or ():
        digest.update(patches.numpy())
    return digest.digest()


def stop_ids_of(processor: Processor) -> frozenset[int]:
    """The ids that end an answer: generation_config.json's, or config.json's where that names none, as in
    Hugging Face.
    """
    ids = processor.generation_config.get("eos_token_id")
    ids = processor.config.eos_token_id if ids is None else ids
    ids = () if ids is None else ids if isinstance(ids, list | tuple) else (ids,)
    if not all(type(id) is int for id in ids):
        raise UserError(f"generation_config.json: eos_token_id is {ids!r}, expected integers")
    return frozenset(ids)


def banned_ids(processor: Processor) -> Tensor:
    """(b,) ids that must not be sampled: what frames or stands for a picture or video, and rows of the head
    that stand for no token.
    """
    tokenizer, config, vocab_size = processor.tokenizer, processor.config, processor.config.text.vocab_size
    unused = [id for id in range(tokenizer.get_vocab_size(), vocab_size) if tokenizer.id_to_token(id) is None]
    names = (
        "vision_start_token_id",
        "vision_end_token_id",
        "vision_token_id",
        "image_token_id",
        "video_token_id",
    )
    placeholders = {id for name in names if (id := getattr(config, name)) < vocab_size}
    return torch.tensor(sorted({*placeholders, *unused}), dtype=torch.int64)
