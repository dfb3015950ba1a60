"""The keys and values of every token so far: written once, read by every later token. The room for them grows
with the answers.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import attention, decode_attention, decode_bias
from r1ov.errors import UserError
from r1ov.model.config import TextConfig
from r1ov.model.language import Attend

# How many columns beyond the longest row a step reads, at first: what depends on their number is made anew
# only when they are used up.
_GROWTH = 16
_ROOM = 64  # for new tokens, at first


# What a layer of the flat step calls: (layer, queries, key and value of each group (B*K, G + 2, D)) -> (B*K,
# G, D).
AttendGrouped = Callable[[int, Tensor], Tensor]


@dataclass
class _Window:
    """The part of the cache that a step reads, and where it writes: all that its layers share."""

    columns: int
    keys: list[Tensor]  # (B, K, columns, D) a layer
    values: list[Tensor]
    flat: list[
        tuple[Tensor, Tensor, Tensor]
    ]  # of a layer: the same as (B*K, D, columns) and (B*K, columns, D), and all of it (.., D)
    places: Tensor  # (B*K*2,) where the new keys and values go among all of it
    bias: Tensor  # (B*K, 1, columns): 0 where a row is filled, the new token included, -inf behind it
    newest: Tensor  # (B*K,) the new token's places in the bias, flattened

    @classmethod
    def cut(cls, layers: list[Tensor], lengths: Tensor, columns: int) -> "_Window":
        """Args: layers: (at least B, K, 2, S, D) each. lengths: (B,) before the new token."""
        rows, (key_heads, _, capacity, _) = len(lengths), layers[0].shape[1:]
        keys, values = ([layer[:rows, :, which, :columns] for layer in layers] for which in (0, 1))
        flat = [
            (keys[index].flatten(0, 1).mT, values[index].flatten(0, 1), layer.flatten(0, 3))
            for index, layer in enumerate(layers)
        ]
        ends = lengths.repeat_interleave(key_heads)
        places = torch.arange(2 * len(ends), device=lengths.device) * capacity + ends.repeat_interleave(2)
        newest = torch.arange(len(ends), device=lengths.device) * columns + ends
        return cls(columns, keys, values, flat, places, decode_bias(lengths + 1, keys[0]), newest)

    def advance(self) -> None:
        """One token further in every row."""
        self.places += 1
        self.newest += 1
        self.bias.view(-1).index_fill_(0, self.newest, 0.0)


class KVCache:
    """Per layer keys and values (B, K, 2, S, D). Row b holds `lengths[b]` tokens from its start; what lies
    behind is zeros or unread.

    A prompt is prefilled once and written into each of its rows (`admit`). Rows whose answer is finished
    leave (`keep`), so that a step costs what its live rows cost, and others can be admitted in their places.
    """

    def __init__(
        self,
        config: TextConfig,
        max_rows: int,
        capacity: int,
        dtype: torch.dtype,
        device: torch.device,
        key_order: Tensor | None = None,
    ):
        """
        Args:
            max_rows: B is never larger. capacity: S, the most tokens a row may come to hold, prompt included.
            key_order: (D,) how the numbers of a key are reordered before they are kept; None: not at all.
        """
        self.key_order, self.capacity = key_order, capacity
        self.lengths = torch.zeros(
            0, dtype=torch.int64, device=device
        )  # (B,) of the live rows, which are the first
        self._host_lengths: list[
            int
        ] = []  # the same on the host, where reading `lengths` would wait for the device
        self._window: _Window | None = None
        self.layers = [
            torch.zeros(
                max_rows, config.num_key_value_heads, 2, 0, config.head_dim, dtype=dtype, device=device
            )
            for _ in range(config.num_hidden_layers)
        ]

    def _reserve(self, columns: int) -> None:
        """Makes room for so many tokens a row, and for half as many again: most answers are far shorter than
        they may be.
        """
        if columns <= self.layers[0].shape[3]:
            return
        columns = min(columns + columns // 2, self.capacity)
        try:
            for index, old in enumerate(
                self.layers
            ):  # one after another, so that only one layer is there twice
                # Zeros and not `empty`: a masked position has weight 0, and 0 * NaN is NaN.
                self.layers[index] = old.new_zeros(*old.shape[:3], columns, old.shape[4])
                self.layers[index][:, :, :, : old.shape[3]] = old
        except (
            RuntimeError
        ) as error:  # a GPU raises OutOfMemoryError, which is one; the CPU's allocator the plain one
            if not isinstance(error, torch.OutOfMemoryError) and "allocate" not in str(error):
                raise
            gigabytes = (
                len(self.layers)
                * math.prod(old.shape[:3])
                * columns
                * old.shape[4]
                * old.dtype.itemsize
                / 1e9
            )
            raise UserError(
                f"the cache for {old.shape[0]} rows of {columns:,} tokens takes {gigabytes:.1f} GB, more than is free on {old.device}; "
                "lower max_new_tokens or num_samples"
            ) from None
        self._window = None

    def admit(self, prompt_lengths: list[int], num_samples: int) -> Attend:
        """Adds `num_samples` rows for each of N prompts behind the live ones.

        Returns: the attention of a prefill over these prompts packed, which also writes each one's keys and
            values into its rows.
        """
        device, live = self.lengths.device, len(self._host_lengths)
        self._reserve(min(max(prompt_lengths) + _ROOM, self.capacity))
        lengths = torch.tensor(prompt_lengths)
        cu_seqlens = F.pad(lengths.cumsum(0), (1, 0)).int().to(device)
        prompt = torch.repeat_interleave(lengths)  # (T,) which prompt each token belongs to
        columns = torch.cat([torch.arange(length) for length in prompt_lengths]).to(device)
        rows = (live + prompt * num_samples + torch.arange(num_samples)[:, None]).to(
            device
        )  # (num_samples, T)
        self.lengths = torch.cat((self.lengths, lengths.repeat_interleave(num_samples).to(device)))
        self._host_lengths = self._host_lengths + [
            length for length in prompt_lengths for _ in range(num_samples)
        ]
        self._window = None

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            kept = k if self.key_order is None else k[..., self.key_order]
            self.layers[layer][rows, :, :, columns] = torch.stack(
                (kept, v), dim=2
            )  # (T, K, 2, D), once for each sample
            if len(q) == len(
                prompt_lengths
            ):  # the last layer, of which the last tokens' states are needed alone
                return attention(
                    q, k, v, torch.arange(len(q) + 1, dtype=torch.int32, device=device), True, cu_seqlens
                )
            return attention(q, k, v, cu_seqlens, causal=True)

        return attend

    def decode(self) -> Attend:
        """Opens the next step: the attention of one new token a row, which appends the token's key and value
        and then reads them all.
        """
        window, lengths = self._next(), self.lengths

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            window.flat[layer][2].index_copy_(0, window.places, torch.stack((k, v), dim=2).flatten(0, 2))
            return decode_attention(q, window.keys[layer], window.values[layer], lengths, window.bias)

        return attend

    def decode_grouped(self) -> AttendGrouped:
        """The same for the flat step, whose heads stand in groups, with torch's operations alone."""
        window = self._next()
        dim = self.layers[0].shape[-1]

        def attend(layer: int, qkv: Tensor) -> Tensor:
            keys, values, everything = window.flat[layer]
            everything.index_copy_(0, window.places, qkv[:, -2:].reshape(-1, dim))
            scores = torch.baddbmm(window.bias, qkv[:, :-2], keys, alpha=dim**-0.5)
            return torch.bmm(scores.softmax(-1), values)

        return attend

    def _next(self) -> _Window:
        """The window of the next step, every row one token longer."""
        longest = max(self._host_lengths)
        self._reserve(longest + 1)
        if self._window is None or longest == self._window.columns:
            self._window = _Window.cut(
                self.layers, self.lengths, min(longest + _GROWTH, self.layers[0].shape[3])
            )
        else:
            self._window.advance()
        self._host_lengths = [length + 1 for length in self._host_lengths]
        self.lengths = self.lengths + 1
        return self._window

    def keep(self, rows: list[int]) -> list[int]:
        """Drops all rows but these. Rows from the end fill the holes, so that only they are copied.

        Returns: for each row of now, which row it was before; whatever else is kept by row has to follow it.
        """
        kept = set(rows)
        holes = [row for row in range(len(rows)) if row not in kept]
        movers = [row for row in rows if row >= len(rows)]
        former = list(range(len(rows)))
        for hole, mover in zip(holes, movers, strict=True):
            former[hole] = mover
        if holes:
            filled = max(self._host_lengths)
            for cached in self.layers:
                cached[holes, :, :, :filled] = cached[movers, :, :, :filled]
        self.lengths = self.lengths[former]
        self._host_lengths = [self._host_lengths[row] for row in former]
        self._window = None
        return former
