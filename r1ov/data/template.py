"""A checkpoint's own chat template, rendered as Hugging Face renders it."""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from r1ov.common.files import one_line
from r1ov.errors import UserError

Render = Callable[[Sequence[Mapping[str, Any]], bool], str]  # (messages, add_generation_prompt) -> text


class _Generation(Extension):
    """{% generation %} marks replies in templates made for training; it prints what is inside."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 wants a plain set)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def compile_template(source: str, special_tokens: Mapping[str, str] | None = None) -> Render:
    """Compiles a template to a function (messages, add_generation_prompt) -> text.

    Args:    special_tokens: tokens that the template may use by name (bos_token, eos_token, ...).
    Raises:  UserError, then and whenever the template fails or calls raise_exception.
    Source:  transformers utils/chat_template_utils.py `_compile_jinja_template`, without tools, documents and
             masks.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = partial(json.dumps, ensure_ascii=False)
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda format: datetime.now().strftime(format)
    try:
        template = environment.from_string(source)
    except jinja2.TemplateError as error:
        raise UserError(f"the chat template is broken: {one_line(str(error))[:300]}") from error
    known = dict(special_tokens or {}) | {"tools": None, "documents": None}

    def render(messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool) -> str:
        try:
            return template.render(messages=messages, add_generation_prompt=add_generation_prompt, **known)
        except Exception as error:  # the template is a program from the checkpoint: it can fail in any way
            raise UserError(
                f"the chat template refuses these messages: {one_line(str(error))[:300]}"
            ) from error

    return render
