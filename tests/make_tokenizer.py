"""Writes tokenizer.json and tokenizer_config.json: r1ov-tiny's small vocabulary, or Qwen2.5's own from its
published ranks.

    python -m tests.make_tokenizer --out FOLDER          # a BPE of 1,024 tokens, from playground text
    python -m tests.make_tokenizer --out FOLDER --qwen-ranks FILE # qwen.tiktoken, as shipped in the PyPI
    package dashscope

Both have Qwen2.5's pipeline (NFC, its regex with single digits, byte-level BPE) and its 22 added tokens, in
its order, behind the ordinary ones. `<think>`, `</think>`, `<answer>` and `</answer>` are ordinary text, as
they are for R1-Onevision.
"""

import base64
import hashlib
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from r1ov.cli import option, parse_cli, run
from r1ov.data.playground import messages, sample
from r1ov.errors import UserError

PATTERN = (  # Qwen2.5's
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>",
    "<|box_start|>", "<|box_end|>",
    "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>",
    "<|video_pad|>",
)  # fmt: skip
PLAIN_ADDED_TOKENS = (
    "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>",
    "<|repo_name|>", "<|file_sep|>",
)  # fmt: skip
# Of the ranks file, and of the vocab.json and merges.txt that Qwen published, which the rebuilt vocabulary
# must equal byte for byte.
RANKS_SHA256 = "b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186"
VOCAB_SHA256 = "ca10d7e9fb3ed18575dd1e277a2579c16d108e32f27439684afa0e10b1440910"
MERGES_SHA256 = "599bab54075088774b1733fde865d5bd747cbcc7a547c5bc12610e874e26f5e3"

TINY_VOCAB_SIZE = 1024  # without the added tokens
TINY_SAMPLES = 14_000  # two thousand of each family


def pipeline(model: models.BPE) -> Tokenizer:
    """Qwen2.5's pipeline around a byte-level BPE, without the added tokens."""
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.NFC()
    byte_level = {"add_prefix_space": False, "use_regex": False, "trim_offsets": False}
    split = pre_tokenizers.Split(Regex(PATTERN), behavior="isolated", invert=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(**byte_level)])
    tokenizer.decoder = decoders.ByteLevel(**byte_level)
    tokenizer.post_processor = processors.ByteLevel(**byte_level)
    return tokenizer


def to_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """The object of tokenizer.json, Qwen's 22 added tokens put behind the ordinary ones."""
    raw = json.loads(tokenizer.to_str())
    first = len(raw["model"]["vocab"])
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    raw["added_tokens"] = [
        {"id": first + number, "content": content, **flags, "special": content in SPECIAL_TOKENS}
        for number, content in enumerate(SPECIAL_TOKENS + PLAIN_ADDED_TOKENS)
    ]
    return raw


def tokenizer_config(tokenizer: dict[str, Any], model_max_length: int) -> dict[str, Any]:
    """The object of tokenizer_config.json that goes with a tokenizer.json's."""
    return {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(token["id"]): {key: value for key, value in token.items() if key != "id"}
            for token in tokenizer["added_tokens"]
        },
        "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": model_max_length,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }


def playground_texts(count: int) -> Iterator[str]:
    """Questions and replies of the split `train`, every eighth with its description, framed as the chat
    template frames them.
    """
    yield from ("system\nYou are a helpful assistant.", "user\n", "assistant\n") * (count // 10)
    for index in range(count):
        drawn = sample("train", index, seed=0)
        user, assistant = messages(drawn)
        yield from (part["text"] for part in user["content"] if part["type"] == "text")
        yield assistant["content"]
        if index % 8 == 0:
            yield drawn.description


def train(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE of `vocab_size` tokens, the 256 bytes among them; same texts, same tokens."""
    tokenizer = pipeline(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if (found := tokenizer.get_vocab_size()) != vocab_size:
        raise UserError(f"the texts give only {found} tokens, {vocab_size} were asked for; use more texts")
    return tokenizer


def _byte_alphabet() -> dict[int, str]:
    """GPT-2's letters for bytes: printable ones stand for themselves, the rest are moved up behind the first
    256 characters.
    """
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {
        byte: chr(256 + number) for number, byte in enumerate(others)
    }


def merge_of(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """The two parts whose merge made this token: BPE on its bytes with smaller ranks alone ends at them."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        candidates = [(ranks.get(parts[i] + parts[i + 1], len(ranks)), i) for i in range(len(parts) - 1)]
        rank, i = min(candidates)
        if rank >= ranks[token]:
            raise UserError(f"the ranks are no BPE: {token!r} is not made of two smaller tokens")
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts[0], parts[1]


def from_ranks(data: bytes) -> Tokenizer:
    """The tokenizer of a tiktoken ranks file: on each line base64 of a token's bytes, a space, its rank."""
    try:
        ranks = {
            base64.b64decode(token, validate=True): int(rank)
            for token, rank in (line.split() for line in data.splitlines())
        }
    except ValueError as error:
        raise UserError(
            f"not a file of ranks ({error}); expected base64, a space and a number on each line"
        ) from error
    letters = _byte_alphabet()
    spelled = {token: "".join(letters[byte] for byte in token) for token in ranks}
    merges = [merge_of(token, ranks) for token in ranks if len(token) > 1]
    return pipeline(
        models.BPE(
            {spelled[t]: rank for t, rank in ranks.items()}, [(spelled[a], spelled[b]) for a, b in merges]
        )
    )


def qwen(data: bytes) -> Tokenizer:
    """Qwen2.5's tokenizer from qwen.tiktoken, checked to be the published one."""
    _check(data, RANKS_SHA256, "the ranks file")
    tokenizer = from_ranks(data)
    model = json.loads(tokenizer.to_str())["model"]
    merges = (merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"])
    _check("".join(f"{merge}\n" for merge in merges).encode(), MERGES_SHA256, "the rebuilt merges.txt")
    vocab = dict(sorted(model["vocab"].items(), key=lambda item: item[1]))
    _check(
        json.dumps(vocab, ensure_ascii=False, separators=(",", ":")).encode(),
        VOCAB_SHA256,
        "the rebuilt vocab.json",
    )
    return tokenizer


def _check(data: bytes, sha256: str, what: str) -> None:
    if (found := hashlib.sha256(data).hexdigest()) != sha256:
        raise UserError(f"{what} has sha256 {found}, expected {sha256}: it is not Qwen2.5's")


def write(tokenizer: Tokenizer, folder: Path, model_max_length: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    raw = to_json(tokenizer)
    for name, value in (
        ("tokenizer.json", raw),
        ("tokenizer_config.json", tokenizer_config(raw, model_max_length)),
    ):
        (folder / name).write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


@dataclass(frozen=True, kw_only=True)
class Options:
    out: str = option(help="folder to write tokenizer.json and tokenizer_config.json to")
    qwen_ranks: str | None = option(
        None, help="rebuild Qwen2.5's tokenizer from this file, qwen.tiktoken, instead of training one"
    )


def main() -> None:
    options = parse_cli(Options, prog="python -m tests.make_tokenizer", description=__doc__.split("\n")[0])
    if options.qwen_ranks is None:
        write(
            train(playground_texts(TINY_SAMPLES), TINY_VOCAB_SIZE), Path(options.out), model_max_length=2048
        )
        return
    try:
        data = Path(options.qwen_ranks).read_bytes()
    except OSError as error:
        raise UserError(f"{options.qwen_ranks}: {error.strerror}; expected the file qwen.tiktoken") from error
    write(qwen(data), Path(options.out), model_max_length=131072)


if __name__ == "__main__":
    sys.exit(run(main))
