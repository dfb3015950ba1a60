"""From conversations to completions: `prepare` settles everything before the first token, `decode` makes the
tokens, and `r1ov.generate` does both in one call.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from r1ov.data.messages import Messages
from r1ov.data.processor import Encoded, Processor
from r1ov.engine.decode import Completion, Plan, decode
from r1ov.engine.sampling import SamplingParams, row_seeds
from r1ov.errors import UserError
from r1ov.model.config import Config, TextConfig
from r1ov.model.model import Qwen2_5_VL

DEFAULT_MAX_NEW_TOKENS = 2048


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
    """Reads the images, tokenises, and settles what was left open.

    Args: as `generate`'s, and
        conversations: as messages, or already encoded, each ready for a reply.
        names: tell the prompts apart for their random numbers; None: their ids and images do.
        max_num_seqs: at most this many rows are decoded at once, which bounds the cache; the others follow as
            rows finish. vLLM's name.
    """
    params = SamplingParams.resolve(processor.generation_config, **sampling)
    if max_new_tokens is None:
        max_new_tokens = processor.generation_config.get("max_new_tokens") or DEFAULT_MAX_NEW_TOKENS
    if max_num_seqs is None:
        max_num_seqs = max(len(conversations) * num_samples, 1)
    counts = {"max_new_tokens": max_new_tokens, "num_samples": num_samples, "max_num_seqs": max_num_seqs}
    for name, value in counts.items():
        if type(value) is not int or value < 1:
            raise UserError(f"{name} is {value!r}; it must be an integer, 1 or above")
    if max_num_seqs < num_samples:
        raise UserError(
            f"max_num_seqs is {max_num_seqs}; the {num_samples} samples of a prompt are decoded together, "
            "so it must be as many"
        )
    if not conversations:
        raise UserError("no messages were given; expected a list of {'role': ..., 'content': ...}")
    prompts = []
    for number, conversation in enumerate(conversations, 1):
        if not isinstance(conversation, Encoded):
            name = f"conversation {number}" if len(conversations) > 1 else ""
            conversation = processor.encode(conversation, add_generation_prompt=True, name=name)
        prompts.append(processor.with_pixels(conversation))
    longest, max_positions = max(map(len, prompts)), processor.config.text.max_position_embeddings
    if longest >= max_positions:
        has_images = any(prompt.pictures for prompt in prompts)
        raise UserError(
            f"a prompt has {longest} tokens, which leaves no room for an answer in the model's "
            f"{max_positions} positions; shorten the text{' or lower max_pixels' if has_images else ''}"
        )
    names = names or (_digest(prompt) for prompt in prompts)  # made if they are asked for
    return Plan(
        prompts=prompts,
        params=params,
        num_samples=num_samples,
        limits=[min(max_new_tokens, max_positions - len(p)) for p in prompts for _ in range(num_samples)],
        seeds=row_seeds(names, num_samples, seed) if params.temperature else None,
        max_num_seqs=max_num_seqs,
        stop_ids=stop_ids_of(processor),
        banned=banned_ids(processor),
    )


def needs(
    config: Config, rows: int, columns: int, tokens: int, patches: int, text: TextConfig, itemsize: int
) -> dict[str, float]:
    """Bytes of memory beside the weights, by what they are for.

    Args: rows and columns of the cache, if every answer is as long as it may be. tokens, patches: of the
        prompts that are prefilled together. text: the sizes of what this process holds. itemsize: bytes of a
        number.
    """
    vision = config.vision
    cached = 2 * rows * columns * text.num_key_value_heads * text.head_dim * text.num_hidden_layers
    read = tokens * (3 * text.intermediate_size + 4 * text.hidden_size)
    seen = patches * (3 * vision.intermediate_size + 6 * vision.hidden_size + 2 * vision.patch_dim)
    # Scores, log-probs, and the distribution that is drawn from: some in float32, some in float64.
    chosen = rows * text.vocab_size * 40
    return {"cache": cached * itemsize, "activations": max(read * itemsize, seen * itemsize, chosen)}


def _digest(prompt: Encoded) -> bytes:
    """Tells a prompt from any other: a digest of its ids and its images' patches."""
    digest = hashlib.blake2b(prompt.input_ids.numpy().tobytes(), digest_size=16)
    for patches in prompt.pixel_values or ():
        digest.update(patches.numpy())
    return digest.digest()


def stop_ids_of(processor: Processor) -> frozenset[int]:
    """The ids that end an answer: generation_config.json's, or config.json's, in Hugging Face's order."""
    ids = processor.generation_config.get("eos_token_id")
    ids = processor.config.eos_token_id if ids is None else ids
    ids = () if ids is None else ids if isinstance(ids, list | tuple) else (ids,)
    if not all(type(id) is int for id in ids):
        raise UserError(f"generation_config.json: eos_token_id is {ids!r}, expected integers")
    return frozenset(ids)


def banned_ids(processor: Processor) -> Tensor:
    """(b,) ids that must not be sampled: placeholders and frames of images and videos, ids of no token."""
    tokenizer, config = processor.tokenizer, processor.config
    ids = {config.image_token_id, config.video_token_id, config.vision_token_id}
    ids |= {config.vision_start_token_id, config.vision_end_token_id}
    above = range(tokenizer.get_vocab_size(), config.text.vocab_size)
    ids |= {id for id in above if tokenizer.id_to_token(id) is None}
    return torch.tensor([id for id in sorted(ids) if id < config.text.vocab_size])


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

    One conversation gives a Completion, a list of conversations a list with one entry each; where num_samples
    is above 1, each entry is itself a list of that many completions. Settings left at None come from the
    checkpoint's generation_config.json (how: `SamplingParams.resolve`). A sample's random numbers depend on
    the seed and its prompt alone, not on what else is in the batch.

    Args:
        max_new_tokens: None and no such setting in the file: 2048. A row also ends at the model's last
            position.
        temperature: 0 is greedy.
        num_samples: for each conversation; its images are encoded and its prompt prefilled once.
        stream: called with each new piece of the text, for one conversation and one sample; the pieces add up
            to `text`.
    Raises:
        UserError: a setting out of its range, a prompt longer than the model's positions, or an error of the
            processor's.
    """
    is_single = messages and isinstance(messages[0], Mapping)
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
    if num_samples > 1:
        rows = [rows[i : i + num_samples] for i in range(0, len(rows), num_samples)]
    return rows[0] if is_single else rows
