"""A conversation, turn by turn: the cache keeps what was read, and a turn reads only what is new."""

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from r1ov.common.files import write_lines
from r1ov.data.formats.open_image import lazy_image
from r1ov.data.processor import Encoded, Processor
from r1ov.engine.cache import KVCache
from r1ov.engine.decode import Completion, Timing, decode
from r1ov.engine.generate import prepare
from r1ov.errors import UserError
from r1ov.model.config import Config
from r1ov.model.model import Qwen2_5_VL

HELP = "/image FILE shows an image with the next question | /reset starts again | /save FILE | Ctrl-D ends"


class Chat:
    def __init__(
        self,
        model: Qwen2_5_VL,
        processor: Processor,
        system: str | None = None,
        images: Sequence[str] = (),
        **settings: Any,
    ):
        """Args: images: shown with the first question. settings: as `prepare`'s, for every turn."""
        self.model, self.processor, self.settings = model, processor, settings
        self.opening = ([] if system is None else [{"role": "system", "content": system}]), images
        self.reset()

    def reset(self) -> None:
        """Begins again, with the first system prompt and the first images."""
        self.messages = [*self.opening[0]]
        self.images = [*self.opening[1]]  # for the next question
        self.cache = None  # a KVCache
        self.held = []  # the marks of what the cache holds

    def ask(self, question: str, stream: Callable[[str], None]) -> tuple[Completion, Timing]:
        """The reply to the next question; both now belong to the conversation.

        After Ctrl-C what was streamed is the reply; if nothing was, the question was never asked.
        """
        images = [{"type": "image", "image": image} for image in self.images]
        content = [*images, {"type": "text", "text": question}]
        messages = [*self.messages, {"role": "user", "content": content}]
        prompt = self.processor.with_pixels(self.processor.encode(messages, add_generation_prompt=True))
        plan = prepare(self.processor, [prompt], **self.settings)
        rest, marks = unread(prompt, self.held, self.processor.config)
        most = self.model.config.text.max_position_embeddings
        cache = self.cache or KVCache(self.model.model, 1, most)
        cache.held, cache.live, cache.longest = len(prompt) - len(rest), 0, 0
        self.cache, self.held = None, []  # until the reply is whole: an interruption may leave anything there
        pieces = []

        def hear(piece: str) -> None:
            pieces.append(piece)
            stream(piece)

        try:
            (completion,), timing = decode(self.model, self.processor, plan, hear, begun=(cache, rest))
            self.cache, self.held = cache, marks + completion.token_ids[:-1]
            return completion, timing
        finally:
            if pieces or self.cache:
                self.messages = [*messages, {"role": "assistant", "content": "".join(pieces)}]
                self.images = []

    def save(self, path: str) -> None:
        """Writes the conversation as a row of training data is written. Raises UserError."""
        try:
            write_lines(Path(path), [{"messages": self.messages}])
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path!r}: the conversation cannot be written there ({getattr(error, 'strerror', error)})"
            ) from error


def unread(prompt: Encoded, held: list[int], config: Config) -> tuple[Encoded, list[int]]:
    """What of a prompt was not read before, at least its last token, and the marks of all its tokens.

    A mark is the token's id, or for an image's tokens a hash of the image: as long as two prompts have equal
    marks, they have equal keys and values. Usually a prompt agrees with what was held up to the end of the
    last reply; not so far where the template changes what came before, or where the reply's text is cut into
    other tokens than it was sampled in.

    Args: held: the marks of what was read before.
    """
    marks, last_places = prompt.input_ids.tolist(), []
    if prompt.image_grid_thw is not None:
        sizes = prompt.image_grid_thw.prod(1) // config.vision.spatial_merge_size**2
        places = (prompt.input_ids == config.image_token_id).nonzero().squeeze(1).split(sizes.tolist())
        for run, size, patches in zip(
            places, prompt.image_grid_thw.tolist(), prompt.pixel_values, strict=True
        ):
            mark = hash((*size, patches.numpy().tobytes()))
            for place in run.tolist():
                marks[place] = mark
            last_places.append(int(run[-1]))
    kept, most = 0, min(len(marks) - 1, len(held))
    while kept < most and marks[kept] == held[kept]:
        kept += 1
    images = sum(place < kept for place in last_places)
    left = {"image_grid_thw": None, "pixel_values": None}
    if images < len(last_places):
        left = {name: getattr(prompt, name)[images:] for name in left}
    ids, positions = prompt.input_ids[kept:], prompt.position_ids[:, kept:]
    return replace(prompt, input_ids=ids, position_ids=positions, **left), marks


def talk(chat: Chat, question: str | None, answer: Callable[[str], None], say: Callable[[str], None]) -> None:
    """Answers questions and obeys commands, a line each, until the input ends. Ctrl-C stops an answer.

    Args: question: the first, where there is one already. say: takes what is not part of an answer.
    """
    with suppress(ImportError):
        import readline  # noqa: F401 (edits a line, and brings back those before)
    mark = "> " if sys.stdin.isatty() and sys.stdout.isatty() else ""
    say(HELP)
    while True:
        try:
            line, question = question or input(mark).strip(), None
            command, _, word = line.partition(" ")
            if command == "/image":
                lazy_image(word.strip())  # raises UserError if it is none
                chat.images.append(word.strip())
            elif command == "/reset":
                chat.reset()
                say(f"a new conversation{''.join(f', with {image}' for image in chat.images)}")
            elif command == "/save":
                chat.save(word.strip())
                say(f"saved: {word.strip()}")
            elif command.startswith("/"):
                say(HELP)
            elif line:
                answer(line)
        except EOFError:
            return
        except KeyboardInterrupt:
            say("")
        except (UserError, UnicodeError) as error:
            say(f"error: {error}")
