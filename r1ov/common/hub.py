"""Folders of models: on this machine, or downloaded from the Hugging Face hub, with one line for each way in
which that fails.
"""

import os
import re
from pathlib import Path

from r1ov.errors import UserError

HUB_NAME = r"(?a)(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?"


def folder_of(name: str | Path) -> Path:
    """The folder of a name: its own, that of the model in a finished run's, or from the hub."""
    if not isinstance(name, str | Path):
        raise UserError(f"the model's name is {name!r:.100}, expected a text or a path")
    path = os.path.expanduser(str(name))
    if os.path.isdir(path):
        folder = Path(path)
        if (folder / "final" / "config.json").is_file():
            return folder / "final"
        if any(folder.glob("checkpoints/step-*")):
            made = f"`python -m r1ov.train.export {folder} FOLDER` makes a model of its newest checkpoint"
            raise UserError(f"{folder}: a run that has not finished; {made}")
        return folder
    return from_hub(name)


def from_hub(name: str | Path) -> Path:
    """Downloads a model into huggingface_hub's cache and returns its folder there.

    Args: name: `owner/name` or `owner/name@revision`.
    Raises: UserError that says what to do: not a name, no such model, no access, no network.
    """
    text = str(name)
    shown = (text if text.isprintable() else repr(text))[:200]
    if os.path.isfile(os.path.expanduser(text)):
        raise UserError(
            f"{shown}: a file; expected the folder of a model, with config.json, weights and tokenizer"
        )
    match = re.fullmatch(HUB_NAME, text)
    is_path = isinstance(name, Path) or text.startswith(("/", ".", "~"))
    if is_path or not match:
        fault = "no such folder, and not a model" if is_path else "not a model, and no such folder"
        raise UserError(
            f"{shown or repr(shown)}: {fault}; expected r1ov-tiny, a folder, or a hub name such as "
            "Fancy-MLLM/R1-Onevision-7B"
        )
    # Only the top level: some repositories keep a second copy of the weights in a subfolder.
    files = {"allow_patterns": ["*.json", "*.safetensors", "*.jinja", "*.txt"], "ignore_patterns": ["*/*"]}
    return download(text, match["repo"], match["revision"], "model", **files)


def download(name: str, repo: str, revision: str | None, repo_type: str, **patterns: list[str]) -> Path:
    """The folder, in huggingface_hub's cache, that holds a repository's files.

    Args: name: as the user wrote it. repo_type: "model" or "dataset". patterns: of files,
        snapshot_download's.
    Raises: UserError that says what to do.
    """
    # Imported here because it takes a second, and r1ov-tiny and folders do without.
    from huggingface_hub import constants, errors, snapshot_download

    here, what, page = "no such file or folder here", "model", f"{constants.ENDPOINT}/{repo}"
    if repo_type == "dataset":
        what, page = "data set", f"{constants.ENDPOINT}/datasets/{repo}"
    try:
        return Path(snapshot_download(repo, revision=revision, repo_type=repo_type, **patterns))
    except errors.GatedRepoError:
        message = f"gated; ask for access at {page}, then log in with `hf auth login`"
    except errors.RepositoryNotFoundError:
        message = f"{here}, and no such {what} on the hub; check its name, or `hf auth login` if private"
    except errors.RevisionNotFoundError:
        message = f"the {what} has no revision {revision}; see {page}/tree/main"
    except errors.HFValidationError:
        message = f"{here}, and not a name that the hub allows (owner/name)"
    except errors.LocalEntryNotFoundError:
        why = f"{constants.ENDPOINT} is out of reach; check the network (HF_ENDPOINT names a mirror)"
        if constants.HF_HUB_OFFLINE:
            why = "HF_HUB_OFFLINE is set, or TRANSFORMERS_OFFLINE; unset it"
        message = f"{here} and not in the hub's cache, and {why}, or give a folder"
    except (errors.HTTPError, OSError, RuntimeError) as error:
        # Broken off, disk full, refused; the transfer library's own are RuntimeError.
        short = " ".join(str(error).split())[:200]
        message = f"the download failed ({short}); the same command goes on where it stopped"
    raise UserError(f"{name}: {message}")
