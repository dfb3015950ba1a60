"""The two tokenizers that tests.make_tokenizer writes, against transformers' Qwen2Tokenizer over thousands of
strings.
"""

import json
import random
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer
from transformers.models.qwen2.tokenization_qwen2 import Qwen2Tokenizer

import r1ov.model
from r1ov.errors import UserError
from tests.make_tokenizer import (
    PLAIN_ADDED_TOKENS,
    SPECIAL_TOKENS,
    TINY_VOCAB_SIZE,
    from_ranks,
    playground_texts,
    qwen,
    to_json,
    train,
    write,
)

TINY = Path(r1ov.model.__file__).parent / "r1ov-tiny"
PIECES = [
    *SPECIAL_TOKENS, *PLAIN_ADDED_TOKENS, "<think>", "</think>", "<answer>", "</answer>",
    "<|IM_END|>", "<|im_end", "|>", "< |im_end|>",
    "hello", " world", "Don't", "I'LL", "1234567", " 3.14", "图中有几个圆形？", "，。", "ひらがな", "한국어",
    "العربية", "हिन्दी", "русский",
    "👩‍👩‍👧", "🎉", "é", "e\u0301", "ﬁ", "\u200b", "\ufeff", "\xa0", "\u3000", " ", "  ", "\n",
    "\r\n", "\n\n", "\t", "    ", "\0", "\x7f",
    "def f(x):\n    return x**2  # ok\n", '{"a": [1, 2]}', "\\frac{1}{2}", "$x^2$", "a_b-c", "==>",
    "...", "!!!",
    "http://x.y/z?q=1", "ǅ", "𝔘", "\U0010ffff",
]  # fmt: skip


def strings(count: int) -> list[str]:
    """Every piece alone, then pieces in random order, then random characters of the whole of Unicode."""
    rng = random.Random(0)
    mixed = ["".join(rng.choices(PIECES, k=rng.randint(1, 12))) for _ in range(count)]
    letters = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    wild = ["".join(rng.choices(letters, k=rng.randint(1, 30))) for _ in range(count // 4)]
    return [*PIECES, *mixed, *wild]


@pytest.fixture(scope="session")
def qwen_ranks(request: pytest.FixtureRequest) -> bytes:
    """qwen.tiktoken, out of the wheel of the PyPI package `dashscope`, kept in pytest's cache."""
    kept = Path(request.config.cache.mkdir("qwen_ranks")) / "qwen.tiktoken"
    if not kept.exists():
        pip = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--retries",
            "1",
            "--dest",
            str(kept.parent),
        ]
        done = subprocess.run([*pip, "dashscope==1.24.6"], capture_output=True, text=True, timeout=300)
        if done.returncode != 0:
            unreachable = (
                "connection",
                "timed out",
                "timeout",
                "resolve",
                "proxy",
                "no matching distribution",
                "network",
            )
            reason = done.stderr.strip()
            assert any(word in reason.lower() for word in unreachable), reason
            pytest.skip(
                f"PyPI, which has Qwen's real vocabulary, cannot be reached: {reason.splitlines()[-1]}"
            )
        (wheel,) = kept.parent.glob("dashscope-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            kept.write_bytes(archive.read("dashscope/resources/qwen.tiktoken"))
        wheel.unlink()
    return kept.read_bytes()


@pytest.fixture(scope="session")
def qwen_folder(qwen_ranks: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qwen")
    write(qwen(qwen_ranks), folder, model_max_length=131072)
    return folder


def assert_equal_to_transformers(folder: Path) -> None:
    ours = Tokenizer.from_file(str(folder / "tokenizer.json"))
    judge = Qwen2Tokenizer.from_pretrained(folder)
    texts = strings(2000)
    assert len(texts) > 1000
    for text in texts:
        ids = ours.encode(text, add_special_tokens=False).ids
        assert ids == judge(text)["input_ids"], repr(text)
        assert ours.decode(ids) == judge.decode(ids, skip_special_tokens=True), repr(text)
        assert ours.decode(ids, skip_special_tokens=False) == judge.decode(ids), repr(text)


def test_r1ov_tinys_ids_equal_transformers_over_2500_strings() -> None:
    assert_equal_to_transformers(TINY)
    assert type(AutoTokenizer.from_pretrained(TINY)) is Qwen2Tokenizer


def test_the_real_qwen_vocabularys_ids_equal_transformers_over_2500_strings(qwen_folder: Path) -> None:
    assert_equal_to_transformers(qwen_folder)


def test_the_real_qwen_vocabulary_has_the_published_ids(qwen_folder: Path) -> None:
    # The rebuilt vocabulary and merges have the sha256 of the published files: `qwen` has checked it. These
    # are known ids.
    tokenizer = Tokenizer.from_file(str(qwen_folder / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == 151665
    text = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|>"
    )
    ids = [151644, 8948, 198, 2610, 525, 264, 10950, 17847, 13, 151645, 198, 151644, 872, 198, 151652, 151655]
    assert tokenizer.encode(text).ids == ids
    assert tokenizer.encode("</think>").ids == [522, 26865, 29]
    assert tokenizer.encode("<answer>").ids == [27, 9217, 29]


def test_text_comes_back_from_its_ids_but_for_unicode_normalisation() -> None:
    tokenizer = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    for text in strings(300):
        ids = tokenizer.encode(text).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == tokenizer.normalizer.normalize_str(text)


def test_r1ov_tiny_has_a_token_for_each_byte_single_digits_and_qwens_added_tokens_last() -> None:
    tokenizer = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    assert tokenizer.get_vocab_size(with_added_tokens=False) == TINY_VOCAB_SIZE
    assert tokenizer.encode("120").ids == [tokenizer.token_to_id(digit) for digit in "120"]
    added = [*SPECIAL_TOKENS, *PLAIN_ADDED_TOKENS]
    assert [tokenizer.token_to_id(token) for token in added] == list(
        range(TINY_VOCAB_SIZE, TINY_VOCAB_SIZE + 22)
    )
    # The tags of a reply are ordinary text, as in Qwen; two or three tokens each.
    for tag in ("<think>", "</think>", "<answer>", "</answer>"):
        assert all(token < TINY_VOCAB_SIZE for token in tokenizer.encode(tag).ids)


def test_training_the_tokenizer_again_gives_the_same_tokens() -> None:
    texts = list(playground_texts(1000))
    first, second = (json.dumps(to_json(train(texts, 400))) for _ in range(2))
    assert first == second


def test_too_few_texts_for_a_vocabulary_are_refused() -> None:
    with pytest.raises(UserError, match="use more texts"):
        train(["abc abc"], 1024)


def test_a_bpe_is_rebuilt_from_its_ranks_worked_by_hand() -> None:
    # a b c ab abc: the merges are (a, b) and (ab, c).
    ranks = b"YQ== 0\nYg== 1\nYw== 2\nYWI= 3\nYWJj 4\n"
    tokenizer = from_ranks(ranks)
    assert tokenizer.encode("abcab").ids == [4, 3]
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    assert [tuple(merge.split()) if isinstance(merge, str) else tuple(merge) for merge in merges] == [
        ("a", "b"),
        ("ab", "c"),
    ]


@pytest.mark.parametrize("data", [b"hello", b"YQ== x\n", b"YQ== 0\nYWJj 1\n", b"?? 0\n"])
def test_a_broken_ranks_file_is_refused(data: bytes) -> None:
    with pytest.raises(UserError):
        from_ranks(data)


def test_a_ranks_file_that_is_not_qwens_is_refused() -> None:
    with pytest.raises(UserError, match="sha256"):
        qwen(b"YQ== 0\n")


def test_the_command_says_what_is_missing_in_one_line(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "tests.make_tokenizer",
        "--out",
        str(tmp_path),
        "--qwen-ranks",
        "no.tiktoken",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "no.tiktoken" in done.stderr
