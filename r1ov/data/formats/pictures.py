"""The images of data files: in the row or in files beside it, never from the network, never from outside the
data's folder.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from r1ov.common.files import shown
from r1ov.data.formats.open_image import lazy_image
from r1ov.data.formats.records import BadRow
from r1ov.data.image import LazyImage
from r1ov.errors import UserError


def lazy_picture(source: Any, folder: Path, inside: Path | None, name: str = "the picture") -> LazyImage:
    """As `lazy_image`; its `load` raises BadRow too.

    Args:
        folder: where relative paths begin. inside: where a path must lead, symbolic links followed; None:
            anywhere.
    Raises:  BadRow.
    """

    def locate(place: str) -> Path:
        if "://" in place:
            url = f"{shown(place)}; download it and give its path"
            raise BadRow("a picture is given by its URL, and nothing is fetched", url)
        try:
            path = (folder / place).resolve()
            is_outside = inside is not None and not path.is_relative_to(inside.resolve())
            is_missing = not is_outside and not path.exists()
        except (OSError, ValueError, RuntimeError) as error:  # a name too long, a NUL in it, links in a ring
            reason = getattr(error, "strerror", None) or error
            raise BadRow("a picture's path cannot be read", f"{shown(place)} ({reason})") from error
        if is_outside:
            beyond = f"{shown(place)} leads out of {inside}; --image-folder says another"
            raise BadRow("a picture lies outside the data's folder", beyond)
        if is_missing:
            raise BadRow(
                "a picture's file is missing", f"{shown(place)} in {folder}; --image-folder says another"
            )
        return path

    def opened(open_it: Callable[[], Any]) -> Any:
        try:
            return open_it()
        except BadRow:
            raise
        except UserError as error:
            raise BadRow("a picture cannot be opened", str(error)) from error

    image = opened(lambda: lazy_image(source, name, locate))
    return LazyImage(image.size, partial(opened, image.load), image.name)
