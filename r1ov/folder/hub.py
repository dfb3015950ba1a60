"""A model's name to the folder that holds it: shipped, on this disk, or downloaded by huggingface_hub into
its own cache.
"""

import os
import re
from pathlib import Path

from r1ov.errors import UserError

SHIPPED = ("r1ov-tiny", "r1ov-tiny-sft")  # with reinforcement learning, and as it was before
_HUB_NAME = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?", re.ASCII)


def resolve(name: str | Path) -> Path:
    """The folder of a model.

    Args:
        name: one of SHIPPED, which come with r1ov; else a folder; else a hub name `owner/name` or
            `owner/name@revision`.
    Raises: UserError that says what to do: no such folder, no such model, no access, no network.
    """
    if not isinstance(name, str | Path):
        raise UserError(f"the model's name is {name!r:.100}, expected a text or a path")
    text = str(name)
    if text in SHIPPED:
        return Path(__file__).parents[1] / "model" / text
    path, shown = os.path.expanduser(text), (text if text.isprintable() else repr(text))[:200]
    if text and os.path.isdir(path):
        return Path(path)
    if os.path.isfile(path):
        raise UserError(
            f"{shown}: a file; expected the folder of a model, with config.json, weights and tokenizer"
        )
    is_path = (
        isinstance(name, Path)
        or text.startswith(("/", ".", "~"))
        or text.endswith("/")
        or text.split("@")[0].count("/") > 1
    )
    if is_path or "\\" in text:
        raise UserError(f"{shown}: no such folder")
    match = _HUB_NAME.fullmatch(text)
    if not match:
        example = "a hub name such as Fancy-MLLM/R1-Onevision-7B"
        raise UserError(f"{shown or repr(shown)}: not a model; expected {SHIPPED[0]}, a folder, or {example}")
    return _download(text, match["repo"], match["revision"])


def _download(name: str, repo: str, revision: str | None) -> Path:
    # Imported here because it takes a second, and r1ov-tiny and folders do without.
    from huggingface_hub import constants, errors, snapshot_download

    try:
        files = ["*.json", "*.safetensors", "*.jinja", "*.txt"]
        # Only the top level: some repositories keep a second copy of the weights in a subfolder.
        return Path(snapshot_download(repo, revision=revision, allow_patterns=files, ignore_patterns=["*/*"]))
    except errors.GatedRepoError:
        message = f"gated; ask for access at {constants.ENDPOINT}/{repo}, then log in with `hf auth login`"
    except errors.RepositoryNotFoundError:
        message = "no such folder here, and no such model on the hub; check the name, or `hf auth login` if it is private"
    except errors.RevisionNotFoundError:
        message = f"the model has no revision {revision}; see {constants.ENDPOINT}/{repo}/tree/main"
    except errors.HFValidationError:
        message = "no such folder here, and not a name that the hub allows (owner/name)"
    except errors.LocalEntryNotFoundError:
        if constants.HF_HUB_OFFLINE:
            message = "no such folder here and not in the hub's cache, and HF_HUB_OFFLINE is set; unset it, or give a folder"
        else:
            message = (
                f"no such folder here and not in the hub's cache, and {constants.ENDPOINT} is out of reach; "
                "check the network (HF_ENDPOINT names a mirror), or give a folder"
            )
    except (
        errors.HTTPError,
        OSError,
        RuntimeError,
    ) as error:  # broken off, disk full, refused; the transfer library's own are RuntimeError
        message = f"the download failed ({' '.join(str(error).split())[:200]}); the same command goes on where it stopped"
    raise UserError(f"{name}: {message}")
