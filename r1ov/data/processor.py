"""Conversations in, packed batches out: what AutoProcessor does for Qwen2.5-VL, on `tokenizers`, Pillow and
jinja2 alone.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Self

import torch
from tokenizers import Tokenizer
from torch import Tensor

from kernels import starts
from r1ov.data.image import ImageProcessor, LazyImage
from r1ov.data.messages import Messages, Render, compile_template, split_images
from r1ov.errors import UserError
from r1ov.model.config import Config
from r1ov.model.rope import mrope_positions

IGNORED = -100  # the label of a token that is not trained


INPUTS = ("input_ids", "position_ids", "cu_seqlens", "pixel_values", "image_grid_thw", "prefixes")
HOSTED = ("cu_seqlens", "image_grid_thw", "prefixes", "labels")


class Batch(dict):
    """B sequences end to end.

    input_ids (T,), position_ids (3, T), cu_seqlens (B+1,) int32; with images also pixel_values (P, 1176) and
    image_grid_thw (N, 3); with labels also labels (T,), -100 where not trained. prefixes (B,): see
    `Qwen2_5_VL.forward`.
    """

    def to(self, device: str | torch.device) -> "Batch":
        """What is large is moved; what says how much of it there is stays, lest the host wait to read it."""
        return Batch(
            {name: x if name in HOSTED else x.to(device, non_blocking=True) for name, x in self.items()}
        )

    @property
    def inputs(self) -> dict[str, Tensor]:
        """Those that `Qwen2_5_VL.forward` takes: what else a pack holds is for its loss."""
        return {name: self[name] for name in INPUTS if name in self}


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """One conversation as numbers. Its images are measured; `Processor.with_pixels` decodes them."""

    input_ids: Tensor  # (T,) int64
    labels: Tensor | None = None  # (T,) int64
    position_ids: Tensor  # (3, T) int64
    image_grid_thw: Tensor | None = None  # (N, 3) int64
    pictures: tuple[LazyImage, ...] = ()  # N
    pixel_values: tuple[Tensor, ...] | None = None  # N times (t * h * w, 1176), once decoded
    opened: str = ""  # the `<think>` that the prompt's template has already written of the reply

    def __len__(self) -> int:
        """T."""
        return len(self.input_ids)


@dataclass(frozen=True, kw_only=True)
class Processor:
    tokenizer: Tokenizer
    image_processor: ImageProcessor
    chat_template: str
    generation_config: dict
    config: Config  # for the token ids that frame an image and end a reply
    special_tokens: dict[str, str]  # what the template may use by name: eos_token, ...
    files: dict[str, bytes]  # the checkpoint's own, that this was read from, to be written back

    def with_pixel_limits(self, min_pixels: int | None = None, max_pixels: int | None = None) -> Self:
        """The same processor with other limits on an image's size, in its files too; None: as it is."""
        given = {"min_pixels": min_pixels, "max_pixels": max_pixels}
        limits = {name: value for name, value in given.items() if value is not None}
        return self._limited(replace(self.image_processor, **limits)) if limits else self

    def _limited(self, images: ImageProcessor) -> Self:
        """With these limits also in the files that hold an image processor's settings."""
        files = dict(self.files)
        for name in {"preprocessor_config.json", "processor_config.json"} & files.keys():
            raw = json.loads(files[name])
            if settings := raw.get("image_processor") if name == "processor_config.json" else raw:
                settings |= {"min_pixels": images.min_pixels, "max_pixels": images.max_pixels}
                if settings.get("size"):
                    edges = {"shortest_edge": images.min_pixels, "longest_edge": images.max_pixels}
                    settings["size"] = edges
                files[name] = json.dumps(raw, indent=2).encode()
        return replace(self, image_processor=images, files=files)

    def __getstate__(self) -> dict:
        """Without what is cached: a compiled template cannot be sent to another process."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @cached_property
    def _render(self) -> Render:
        return compile_template(self.chat_template, self.special_tokens)

    @cached_property
    def _stop_texts(self) -> list[str]:
        """The tokens that end a reply, as text."""
        stop_ids = []
        for ids in (self.config.eos_token_id, self.generation_config.get("eos_token_id")):
            stop_ids += ids if isinstance(ids, list | tuple) else [ids] if ids is not None else []
        return [text for i in stop_ids if (text := self.tokenizer.id_to_token(i)) is not None]

    def decode(self, ids: Sequence[int] | Tensor, skip_special_tokens: bool = True) -> str:
        return self.tokenizer.decode([int(id) for id in ids], skip_special_tokens=skip_special_tokens)

    def __call__(
        self,
        messages: Messages | Sequence[Messages],
        return_labels: bool = False,
        add_generation_prompt: bool | None = None,
    ) -> Batch:
        """One conversation, or several packed end to end in the order given.

        Args:
            messages: Hugging Face's form: {"role", "content"}, content a text or a list of {"type": "text",
                "text"} and {"type": "image", "image": path, URL, data: URL, bytes or PIL image}, or as OpenAI
                and Qwen write them: see `messages.read_part`.
            return_labels: the assistant's replies, each with the token that ends it, are trained, all else is
                -100, and so is a reply with OpenAI's `"weight": 0`. A reply is tokenised apart from the text
                before it, as in generation, where the prompt's tokens come first.
            add_generation_prompt: None: where the last message is not the assistant's.
        Raises: UserError, one line, that names the image or the conversation.
        """
        if not isinstance(messages, list | tuple) or not messages:
            raise UserError("no messages were given; expected a list of {'role': ..., 'content': ...}")
        conversations = [messages] if isinstance(messages[0], Mapping) else messages
        encoded = []
        for number, conversation in enumerate(conversations, 1):
            name = f"conversation {number}" if len(conversations) > 1 else ""
            encoded.append(self.encode(conversation, return_labels, add_generation_prompt, name))
        return self.pack(encoded)

    def encode(
        self,
        messages: Messages,
        return_labels: bool = False,
        add_generation_prompt: bool | None = None,
        name: str = "",
    ) -> Encoded:
        """One conversation, ready to be packed. Only the headers of its images are read, for their sizes.

        Args:    as `__call__`'s. name: what errors call the conversation.
        Raises:  UserError, as `__call__`; for an image that cannot be decoded only `pack` does.
        """
        plain, images = split_images(messages, f"{name}, " if name else "")
        measure, max_tokens = self.image_processor.grid, self.config.text.max_position_embeddings
        grids = [measure(image.size, image.name, max_tokens, **limits) for image, limits in images]
        image_grid_thw = torch.tensor(grids, dtype=torch.int64).view(-1, 3)  # (N, 3)
        try:
            if add_generation_prompt is None:
                add_generation_prompt = plain[-1]["role"] != "assistant"
            text = self._render(plain, add_generation_prompt)
            segments = self._segments(plain, text) if return_labels else [(text, False)]
            ids, labels = self._tokenise(segments, image_grid_thw)
            image, merge_size = self.config.image_token_id, self.image_processor.merge_size
            position_ids = mrope_positions(ids, image_grid_thw, image, merge_size)
        except UserError as error:
            raise UserError(f"{name}: {error}" if name else str(error)) from error
        opened = re.search(r"(<think>\s*(</think>\s*)?)?\Z", text)[0] if add_generation_prompt else ""
        return Encoded(
            input_ids=ids,
            opened=opened,
            labels=labels if return_labels else None,
            position_ids=position_ids,
            image_grid_thw=image_grid_thw if grids else None,
            pictures=tuple(image for image, _ in images),
        )

    def with_pixels(self, encoded: Encoded) -> Encoded:
        """Decodes a conversation's images and cuts them into patches. Raises UserError that names one."""
        if encoded.image_grid_thw is None or encoded.pixel_values is not None:
            return encoded
        pixel_values = tuple(
            torch.from_numpy(self.image_processor.patches(image.load(), grid))
            for image, grid in zip(encoded.pictures, encoded.image_grid_thw.tolist(), strict=True)
        )
        return replace(encoded, pixel_values=pixel_values)

    def pack(self, encoded: Sequence[Encoded]) -> Batch:
        """One conversation or more end to end, in the order given; with labels if they were encoded with
        labels. Raises UserError that names an image.
        """
        rows = [self.with_pixels(row) for row in encoded]
        batch = Batch(
            input_ids=torch.cat([row.input_ids for row in rows]),
            position_ids=torch.cat([row.position_ids for row in rows], dim=1),
            cu_seqlens=starts(torch.tensor([len(row) for row in rows])),
        )
        if pictured := [row for row in rows if row.pixel_values is not None]:
            batch["pixel_values"] = torch.cat([patches for row in pictured for patches in row.pixel_values])
            batch["image_grid_thw"] = torch.cat([row.image_grid_thw for row in pictured])
        if rows[0].labels is not None:
            batch["labels"] = torch.cat([row.labels for row in rows])
        return batch

    def _segments(self, messages: Messages, text: str) -> list[tuple[str, bool]]:
        """The rendered conversation cut into (text, is it trained?)."""
        segments, done = [], 0
        for turn, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt = self._render(messages[:turn], True)
            upto = text if turn == len(messages) - 1 else self._render(messages[: turn + 1], False)
            end = max(
                (upto.rfind(stop) + len(stop) for stop in self._stop_texts if stop in upto[len(prompt) :]),
                default=0,
            )
            if not (upto.startswith(prompt) and text.startswith(upto[:end]) and len(prompt) < end):
                raise UserError(
                    f"the chat template does not write message {turn + 1} as prompt, reply, stop token: "
                    "no labels can be made"
                )
            is_trained = message.get("weight", 1) != 0
            segments += [(text[done : len(prompt)], False), (text[len(prompt) : end], is_trained)]
            done = end
        if not any(is_trained for _, is_trained in segments):
            raise UserError("there is no assistant message to learn from")
        return [*segments, (text[done:], False)]

    def _tokenise(self, segments: list[tuple[str, bool]], image_grid_thw: Tensor) -> tuple[Tensor, Tensor]:
        """(T,) ids and (T,) labels of one conversation, each image as many placeholders as merged tokens."""
        pieces, labels = [], []
        for text, is_trained in segments:
            try:
                piece = self.tokenizer.encode(text, add_special_tokens=False).ids
            except (TypeError, UnicodeEncodeError) as error:
                raise _not_unicode(text) from error
            pieces += piece
            labels += piece if is_trained else [IGNORED] * len(piece)
        image = self.config.image_token_id
        if self.config.video_token_id in pieces or pieces.count(image) != len(image_grid_thw):
            raise self._misplaced(pieces, len(image_grid_thw))
        ids = torch.tensor(pieces, dtype=torch.int64)
        repeats = torch.ones_like(ids)
        repeats[ids == image] = image_grid_thw.prod(1) // self.image_processor.merge_size**2
        return ids.repeat_interleave(repeats), torch.tensor(labels).repeat_interleave(repeats)

    def _misplaced(self, ids: list[int], num_pictures: int) -> UserError:
        """Why placeholders and pictures do not go together."""
        if self.config.video_token_id in ids:
            name = self.tokenizer.id_to_token(self.config.video_token_id)
            return UserError(f"the text holds {name}, but videos are not supported")
        name = self.tokenizer.id_to_token(self.config.image_token_id)
        return UserError(
            f"there are {ids.count(self.config.image_token_id)} {name} placeholders for {num_pictures} "
            f"pictures; leave {name} out of the text and give each picture as a part of its own"
        )


def _not_unicode(text: str) -> UserError:
    """Of a text with a lone surrogate, from a wrongly decoded file."""
    bad = next(place for place, letter in enumerate(text) if "\ud800" <= letter <= "\udfff")
    return UserError(f"the text is not valid Unicode at {text[max(bad - 20, 0) : bad + 20]!r}")
