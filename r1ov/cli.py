"""Command lines from frozen dataclasses: one field, one flag, one line of help."""

import argparse
import dataclasses
import errno
import math
import os
import sys
from collections.abc import Callable, Mapping
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from r1ov.common.text import one_line
from r1ov.errors import UserError

C = TypeVar("C")


def option(default: Any = dataclasses.MISSING, help: str = "", **more: Any) -> Any:
    """A dataclass field that carries its flag's help; without a default the flag is required.

    Args:
        more: further keyword arguments for argparse's `add_argument`, `metavar` say.
    """
    return dataclasses.field(default=default, metadata={"help": help, **more})


def parse_cli(
    cls: type[C],
    argv: list[str] | None = None,
    *,
    prog: str,
    description: str,
    presets: Mapping[str, Mapping[str, Any]] | None = None,
) -> C:
    """The instance of the keyword-only dataclass `cls` that the command line describes.

    Field `max_new_tokens: int` becomes `--max-new-tokens N`, a bool `--x/--no-x`, a Literal its choices,
    `tuple[str, ...]` a flag that may be repeated, and `T | None` a `T` that may be left out.

    Args:
        argv: the words after the program's name; None means `sys.argv[1:]`.
        presets: what the field `preset` may name: values of other fields, which flags on the command line
            override.
    Raises:
        SystemExit: status 2 and one line on stderr for an unknown, abbreviated, missing, or malformed flag; 0
            after `--help`.
        UserError: whatever `cls.__post_init__` finds wrong.
    """
    parser = _Parser(prog=prog, description=description, allow_abbrev=False)
    types = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        more = dict(field.metadata)
        text = more.pop("help", "").replace("%", "%%")
        more |= _argument(types[field.name])
        if field.default is dataclasses.MISSING:
            more["required"] = True
        elif field.default not in (None, (), False):
            text = f"{text} (default: {str(field.default).replace('%', '%%')})"
        parser.add_argument(
            "--" + field.name.replace("_", "-"), dest=field.name, default=argparse.SUPPRESS, help=text, **more
        )
    given = vars(parser.parse_args(argv))
    if (preset := given.get("preset")) is not None:
        if preset not in (presets or {}):
            parser.error(f"--preset is {preset!r}; there are {', '.join(presets or {}) or 'none'}")
        given = {**presets[preset], **given}
    return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})


def run(main: Callable[[], None]) -> int:
    """The exit status of a program: 0 when done, 2 for a mistake of the user's (one line on stderr), 130
    after Ctrl-C.

    141, as a program that died of SIGPIPE, when whoever reads stdout has gone away. Anything else is a crash
    and propagates.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the shell (`>&-`)
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        # A pipe or console that is not UTF-8 shows what it cannot write as \\uXXXX; Python would stop in
        # mid-answer.
        getattr(sys, name).reconfigure(errors="backslashreplace")
    try:
        main()
        sys.stdout.flush()
    except UserError as error:
        print("error:", one_line(str(error)), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Python flushes stdout once more at exit, into the same broken pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print(
            "error:", one_line(f"{error.strerror}, writing {error.filename or 'the output'}"), file=sys.stderr
        )
        return 2
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Exits with status 2 and one line; argparse would print the whole usage."""
        self.exit(2, f"error: {one_line(message)} (see {self.prog} --help)\n")


def _argument(kind: Any) -> dict[str, Any]:
    """What `add_argument` needs to read a value of this type."""
    if get_origin(kind) in (Union, UnionType):
        (kind,) = [member for member in get_args(kind) if member is not NoneType]
    if get_origin(kind) is Literal:
        return {"choices": get_args(kind), "type": type(get_args(kind)[0])}
    if get_origin(kind) is tuple:
        return {"action": "append", "type": get_args(kind)[0]}
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    if kind is float:
        return {"type": _finite_float, "metavar": "X"}
    if kind is int:
        return {"type": _whole_number, "metavar": "N"}
    assert kind is str, f"parse_cli does not know fields of type {kind}"
    return {"type": str}


def _finite_float(text: str) -> float:
    """The number, or an error that argparse reports: `nan` and `inf` are no setting of anything here."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a number")
    return value


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a whole number") from None
