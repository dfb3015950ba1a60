"""What is wrong with a folder's weights, in one line each: the errors of `weights`."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError

from r1ov.common.files import one_line, read_json
from r1ov.errors import UserError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
READABLE = ("F32", "BF16", "F16")
AGAIN = "; download it again"


@dataclass(frozen=True)
class Stored:
    """A tensor in a file, its data not yet read."""

    name: str  # in the file
    parameter: str  # the name in the published layout, which is the model's
    file: Path
    shape: tuple[int, ...]
    dtype: str

    @property
    def is_packed(self) -> bool:
        """By AWQ: several numbers in each integer."""
        return self.dtype == "I32" and self.name.endswith((".qweight", ".qzeros"))


def adapter_of(folder: Path) -> str | None:
    """Says what a folder is that holds a LoRA adapter and no model; None if it holds none."""
    settings = folder / "adapter_config.json"
    if not settings.is_file():
        return None
    base = read_json(settings).get("base_model_name_or_path")
    return f"{folder}: a LoRA adapter of {base}, not a model; --model BASE --adapter {folder} loads both"


def no_config(path: Path) -> UserError:
    if path.parent.is_dir():
        expected = "a model is a Hugging Face folder with config.json, weights and tokenizer"
        return UserError(adapter_of(path.parent) or f"{path}: no such file; {expected}")
    fault = "is not a folder" if path.parent.exists() else "no such folder"
    return UserError(f"{path.parent}: {fault}; expected a Hugging Face checkpoint")


def no_weights(folder: Path) -> UserError:
    pickles = [
        path.name for path in folder.glob("*") if path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl")
    ]
    if adapter := adapter_of(folder):
        return UserError(adapter)
    if not pickles:
        return UserError(f"{folder}: no {SINGLE} and no {INDEX}")
    never = "which can run any code and are never opened; convert them to safetensors"
    return UserError(f"{folder}: only pickled weights ({few(pickles)}), {never}")


def unreadable(file: Path, error: Exception) -> UserError:
    if isinstance(error, FileNotFoundError):
        return UserError(f"{file}: no such file, although {INDEX} names it{AGAIN}")
    hint = AGAIN
    if isinstance(error, SafetensorError):
        with file.open("rb") as raw:
            if raw.read(23) == b"version https://git-lfs":
                hint = "; it is a Git LFS pointer: run `git lfs pull`"
    return UserError(f"{file}: truncated or not a safetensors file ({one_line(str(error))[:200]}){hint}")


def misplaced(folder: Path, tensors: list[Stored], weight_map: Mapping[str, str]) -> UserError:
    """The first file whose tensors are not those that the index says are in it."""
    for file in dict.fromkeys(weight_map.values()):
        names = {tensor.name for tensor in tensors if tensor.file.name == file}
        listed = {name for name, home in weight_map.items() if home == file}
        if names != listed:
            break
    absent, extra = few(listed - names), few(names - listed)
    return UserError(
        f"{folder / file}: not what {INDEX} says: without {absent}, with unlisted {extra}{AGAIN}"
    )


def mismatch(
    folder: Path,
    tensors: list[Stored],
    stored: Mapping[str, Stored],
    shapes: Mapping[str, tuple[int, ...]],
) -> UserError:
    """A tensor that cannot be read or is there twice, or else how the tensors differ from the model's."""
    seen = {}  # parameter -> its tensor
    for tensor in tensors:
        name = few([tensor.name])
        if tensor.dtype not in READABLE and not tensor.is_packed:
            readable = "r1ov reads float32, bfloat16 and float16 weights"
            return UserError(f"{tensor.file}: {name} is {tensor.dtype}; {readable}")
        if (twin := seen.setdefault(tensor.parameter, tensor)) is not tensor:
            same = f"the same parameter as {few([twin.name])} in {twin.file.name}"
            return UserError(f"{tensor.file}: {name} is {same}")
    kinds = {
        "missing": [name for name in shapes if name not in stored],
        "unexpected": [tensor.name for name, tensor in stored.items() if name not in shapes],
        "of another shape": [
            f"{name} {list(stored[name].shape)} for {list(shape)}"
            for name, shape in shapes.items()
            if name in stored and stored[name].shape != shape
        ],
    }
    found = [f"{len(names)} {kind} ({few(names)})" for kind, names in kinds.items() if names]
    tie = "; if the head is the embedding, set tie_word_embeddings to true in config.json"
    hint = tie if kinds["missing"] == [HEAD] else ""
    return UserError(f"{folder}: its weights are not those of its config.json: {', '.join(found)}{hint}")


def few(names: Iterable[str]) -> str:
    """The first five, in one line whatever is in them."""
    names = list(names)
    shown = [repr(name[:200])[1:-1] for name in names[:5]] + ["..."] * (len(names) > 5)
    return ", ".join(shown) or "none"
