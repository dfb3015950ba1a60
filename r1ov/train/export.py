"""Makes a model of a checkpoint: `python -m r1ov.train.export runs/sft/checkpoints/step-31 FOLDER`, or
`python -m r1ov.train.export runs/sft FOLDER` of the newest one of a run. `... ADAPTER FOLDER --merge` puts a
LoRA adapter into its base.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

from r1ov.cli import option, parse_cli, placed, run
from r1ov.common.files import read_json, say
from r1ov.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    checkpoint: str = option(help="a checkpoint, or a run; may come first, without its flag")
    out: str = option(help="folder of the model; may come second, without its flag")
    merge: bool = option(
        False, "write a model, not the LoRA adapter on it; --checkpoint may be an adapter's folder"
    )


def export(checkpoint: Path, out: Path, merged: bool = False) -> Path:
    """Writes the weights of a checkpoint, or of a run's newest, as a model that every command reads. Returns
    which.

    Args: merged: a LoRA adapter, of a checkpoint or a folder of its own, becomes part of its base.
    Raises: UserError if there is none, or it is damaged.
    """
    import torch  # takes seconds: not before the command line is known to be right

    from r1ov.common.processes import World
    from r1ov.folder import pretrained
    from r1ov.folder.adapter import SETTINGS, merge
    from r1ov.train.run.sharding import build_adapted
    from r1ov.train.run.state import restore
    from r1ov.train.run.storage import RECORD, open_tensors, read_record, verify

    if merged and any((folder / SETTINGS).is_file() for folder in (checkpoint, checkpoint / "final")):
        model, processor = pretrained.load(checkpoint)
        pretrained.save(merge(model), processor, out, torch.float32)
        return checkpoint
    steps = sorted(checkpoint.glob("checkpoints/step-*"), key=lambda path: int(path.name.partition("-")[2]))
    checkpoint = steps[-1] if steps else checkpoint
    if not (checkpoint / RECORD).exists():
        raise UserError(
            f"{checkpoint}: neither a checkpoint nor a run with one; of a finished run final/ is the model"
        )
    options = read_json(checkpoint.parent.parent / "config.json")
    try:
        files = read_record(checkpoint)["files"]
        verify(checkpoint, files)
        stored = open_tensors(checkpoint, sorted(files))
    except OSError as error:
        raise UserError(f"{checkpoint}: not a checkpoint that can be used ({error})") from error
    folders = pretrained.find(options["model"] or options["config_name"], options.get("adapter"))
    processor = pretrained.read_processor(folders.settings)
    processor = processor.with_pixel_limits(options["min_pixels"], options["max_pixels"])
    if options.get("lora_r") or folders.adapter:
        config, alone = SimpleNamespace(**options | {"quantize": None}), (World(), torch.device("cpu"))
        model = build_adapted(config, folders, processor.config, *alone, torch.float32)
    else:
        model = pretrained.build(processor.config).to_empty(device="cpu")
    restore(model, [], {name: tensor for name, tensor in stored.items() if name.startswith("model.")})
    pretrained.save(merge(model) if merged else model, processor, out, torch.float32)
    pretrained.write_asked(out, options["stage"], processor)
    return checkpoint


def main() -> None:
    words = placed(sys.argv[1:], "checkpoint", "out")
    config = parse_cli(ExportConfig, words, prog="python -m r1ov.train.export", description=__doc__)
    written = export(Path(config.checkpoint), Path(config.out), config.merge)
    say(f"{written} -> {config.out}")


if __name__ == "__main__":
    sys.exit(run(main))
