"""Command lines from frozen dataclasses: one field, one flag, one line of help."""

import argparse
import dataclasses
import difflib
import errno
import math
import operator
import os
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin

from r1ov.common.files import one_line, say
from r1ov.errors import UserError

C = TypeVar("C")
BOUNDS = {  # of a number: how it is said, and when it holds
    "least": ("at least", operator.ge),
    "above": ("above", operator.gt),
    "most": ("at most", operator.le),
    "below": ("below", operator.lt),
}


def option(default: Any = dataclasses.MISSING, help: str = "", **more: Any) -> Any:
    """A dataclass field that declares a flag with all its properties; without a default the flag is required.

    Args:
        more: `least`, `above`, `most`, `below`: bounds of a number, for `check_bounds`; `idle`: with which
            other option this one has no effect: "optim adamw", by its value, or "max_steps", whenever it is
            given; anything else, `resumable=True` say, is a mark that `marked` looks for.
    """
    if default and default is not dataclasses.MISSING:
        help += f" (default: {default})"
    return dataclasses.field(default=default, metadata=more | {"help": help})


@dataclasses.dataclass(frozen=True, kw_only=True)
class AskingOptions:
    """Of the commands that ask a model."""

    model: str = option(
        "r1ov-tiny",
        "a folder, a Hugging Face name such as Fancy-MLLM/R1-Onevision-7B, or r1ov-tiny, which is shipped",
    )
    adapter: str | None = option(None, "a LoRA adapter on the model; one given as --model finds its base")
    system: str | None = option(None, "the system prompt (default: the chat template's own)")
    seed: int = option(0, "the same seed gives the same samples", least=0)
    min_pixels: int | None = option(
        None,
        "smaller images are enlarged to this many pixels (default: the checkpoint's; 200704 where "
        "r1ov.evaluate asks a published benchmark)",
        least=1,
    )
    max_pixels: int | None = option(
        None,
        "larger images are shrunk to this many pixels (default: the checkpoint's; 1003520 where "
        "r1ov.evaluate asks a published benchmark)",
        least=1,
    )
    device: str | None = option(None, "cpu, cuda or cuda:N (default: cuda where there is one)")
    dtype: Literal["float32", "bfloat16", "float16"] | None = option(
        None, "default: the checkpoint's; on a CPU float32 if small or without bfloat16 instructions"
    )
    quantize: Literal["int4", "int8"] | None = option(
        None, "keep the weights of linear layers in 4 or 8 bits"
    )
    tensor_parallel: int = option(
        1, "processes that hold the model together: those of torchrun --nproc-per-node N", least=1
    )
    kernels: Literal["torch", "triton"] | None = option(
        None, "attention and log-probs (default: triton on a GPU, torch elsewhere)"
    )


def check_bounds(options: Any) -> None:
    """Raises UserError for the first number that is outside the bounds of its declaration."""
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        for name, (words, holds) in BOUNDS.items():
            bound = field.metadata.get(name)
            if None not in (value, bound) and not holds(value, bound):
                raise UserError(f"{flag(field.name)} is {value}; it must be {words} {bound}")


def marked(options: Any, mark: str) -> dict:
    """The options whose declaration has this mark, with their values."""
    fields = dataclasses.fields(options)
    return {field.name: getattr(options, field.name) for field in fields if mark in field.metadata}


def flag(name: str) -> str:
    """Example: "max_steps" -> "--max-steps"."""
    return "--" + name.replace("_", "-")


def placed(words: list[str], *names: str) -> list[str]:
    """The words, with their flags before the first ones where these have none.

    Example: (["A", "B", "--x"], "first", "second") -> ["--first", "A", "--second", "B", "--x"]
    """
    for place, name in enumerate(names):
        rest = words[2 * place :]
        if not rest or rest[0].startswith("-"):
            break
        words = [*words[: 2 * place], flag(name), *rest]
    return words


def parse_cli(
    cls: type[C],
    argv: list[str] | None = None,
    *,
    presets: Mapping = {},
    elsewhere: Mapping = {},
    **about: str,
) -> C:
    """The instance of the keyword-only dataclass `cls` that the command line describes.

    Field `max_new_tokens: int` becomes `--max-new-tokens N`, a bool `--x/--no-x`, a Literal its choices,
    `tuple[str, ...]` a flag that may be repeated, and `T | None` a `T` that may be left out.

    Args:
        argv: the words after the program's name; None means `sys.argv[1:]`.
        presets: what the field `preset` may name: values of other fields, which flags on the command line
            override.
        elsewhere: dataclasses whose flags belong to another command, by what that is called.
        about: `prog` and `description`, of the program.
    Raises:
        SystemExit: status 2 and one line on stderr for a flag that is unknown, abbreviated, missing,
            malformed, or without effect (`idle`); 0 after `--help`.
        UserError: whatever `cls.__post_init__` finds wrong.
    """
    parser = _Parser(**about, allow_abbrev=False)
    for field in dataclasses.fields(cls):
        parser.add_argument(
            flag(field.name),
            default=argparse.SUPPRESS,
            required=field.default is dataclasses.MISSING,
            help=field.metadata["help"].replace("%", "%%"),
            **_argument(field.type),
        )
    known, unknown = parser.parse_known_args(argv)
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{_hint(unknown[0], cls, elsewhere)}")
    given = vars(known)
    for name, value in given.items():
        if isinstance(value, list):
            given[name] = tuple(value)
    options = {**presets.get(given.get("preset"), {}), **given}
    config = cls(**options)
    check_bounds(config)
    facts = {*options, *(f"{name} {value}" for name, value in vars(config).items())}
    for field in dataclasses.fields(cls):
        idle = field.metadata.get("idle")
        if idle in facts and field.name in given:
            name, _, value = idle.partition(" ")
            how = f"with {flag(idle)} (given, the preset's, or the default)"
            if value in ("None", "False"):
                how = f"without {flag(name)}"
            parser.error(f"{flag(field.name)} has no effect {how}; leave it out, or change that")
    return config


def run(main: Callable[[], None]) -> int:
    """The exit status of a program: 0 when done, 2 for a mistake of the user's (one line on stderr), 130
    after Ctrl-C.

    141, as a program that died of SIGPIPE, when whoever reads stdout has gone away. Anything else is a crash
    and propagates.
    """
    for name in ("stdout", "stderr"):
        # None: closed by the shell (`>&-`)
        stream = getattr(sys, name) or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        # A pipe or console that is not UTF-8 shows what it cannot write as \\uXXXX; Python would stop in
        # mid-answer.
        stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, stream)
    try:
        main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        say("")
        return 130
    except UserError as error:
        say(f"error: {one_line(str(error))}")
        return 2
    except OSError as error:
        return _broken_output(error)
    return 0


def _broken_output(error: OSError) -> int:
    """The exit status where nobody reads on, or a disk is full; raises any other error."""
    if error.errno not in (errno.EPIPE, errno.ENOSPC, errno.EDQUOT):
        raise error
    # Python flushes stdout once more at exit, into the same broken pipe or full disk.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if error.errno == errno.EPIPE:
        return 141
    where = error.filename or "the output"
    say(f"error: {one_line(f'{error.strerror}, writing {where}')}")
    return 2


def _hint(word: str, cls: type, elsewhere: Mapping[str, type]) -> str:
    """What a flag that is not known may have meant."""
    name = word.partition("=")[0]
    if not name.startswith("-"):
        return "; a value stands behind its flag"
    for place, options in elsewhere.items():
        if name in {flag(field.name) for field in dataclasses.fields(options)}:
            return f"; {name} belongs to {place}"
    flags = [flag(field.name).strip("-") for field in dataclasses.fields(cls)]
    near = difflib.get_close_matches(name.strip("-"), flags, n=1)
    return f"; did you mean --{near[0]}?" if near else ""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Exits with status 2 and one line; argparse would print the whole usage."""
        self.exit(2, f"error: {one_line(message)} (see {self.prog} --help)\n")


def _number(kind: type, name: str, text: str) -> float:
    """The number, or an error that argparse reports: `nan` and `inf` are no setting of anything here."""
    try:
        if math.isfinite(float(text)):
            return kind(text)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a {name}")


ARGUMENTS = {  # what `add_argument` needs to read a value of this type
    str: {},
    bool: {"action": argparse.BooleanOptionalAction},
    int: {"type": partial(_number, int, "whole number"), "metavar": "N"},
    float: {"type": partial(_number, float, "number"), "metavar": "X"},
}


def _argument(kind: Any) -> dict:
    """The same for any annotation: one of ARGUMENTS, a Literal, `tuple[T, ...]`, or one of these `| None`."""
    members = get_args(kind)
    if get_origin(kind) is Literal:
        return {"choices": members}
    if get_origin(kind) is tuple:
        return _argument(members[0]) | {"action": "append"}
    return _argument(members[0]) if members else ARGUMENTS[kind]
