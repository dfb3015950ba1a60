"""Where rows come from: whatever r1ov.data reads, and the playground with its truths."""

from collections.abc import Iterator

from r1ov.formalize.row import Row


def read_rows(data: str, limit: int | None = None) -> Iterator[Row]:
    """The rows of `playground[:split]`, a file, a folder or a hub data set, in order, ids unique; bad ones with outcome "failed".

    Raises:  UserError, at the first row, for data that cannot be opened or an endless playground without a limit.
    """
    raise NotImplementedError


def count_rows(data: str, limit: int | None = None) -> int:
    """How many rows `read_rows` gives, for a progress bar."""
    raise NotImplementedError
