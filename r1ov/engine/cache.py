"""The keys and values of every token so far: written once, read by every later token. Allocated once, at the size the answers may reach."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import attention, decode_attention, decode_bias
from r1ov.errors import UserError
from r1ov.model.config import TextConfig
from r1ov.model.language import Attend

# How many columns beyond the longest row a step reads, at first: what depends on their number is made anew only when they are used up.
_GROWTH = 64


@dataclass
class _Window:
    """The part of the cache that a step reads, and where it writes: all that its layers share."""

    columns: int
    layers: list[tuple[Tensor, ...]]  # keys and values to read, (B, K, columns, D), and to write, (rows*K*S, D)
    places: Tensor  # (B*K,) where the new keys go among the latter
    bias: Tensor  # (B*K, 1, columns): 0 where a row is filled, the new token included, -inf behind it
    newest: Tensor  # (B*K,) the new token's places in the bias, flattened

    @classmethod
    def cut(cls, keys: list[Tensor], values: list[Tensor], lengths: Tensor, columns: int) -> "_Window":
        """Args: keys, values: (at least B, K, S, D) a layer. lengths: (B,) before the new token."""
        rows, key_heads, capacity = len(lengths), *keys[0].shape[1:3]
        read = [[cached[:rows, :, :columns] for cached in layers] for layers in (keys, values)]
        write = [[cached.flatten(0, 2) for cached in layers] for layers in (keys, values)]
        starts = torch.arange(rows * key_heads, device=lengths.device)
        ends = lengths.repeat_interleave(key_heads)
        bias = decode_bias(lengths + 1, read[0][0])
        return cls(columns, list(zip(*read, *write, strict=True)), starts * capacity + ends, bias, starts * columns + ends)

    def advance(self) -> None:
        """One token further in every row."""
        self.places += 1
        self.newest += 1
        self.bias.view(-1).index_fill_(0, self.newest, 0.0)


class KVCache:
    """Per layer keys and values (B, K, S, D). Row b holds `lengths[b]` tokens from its start; what lies behind is zeros or unread.

    A prompt is prefilled once and written into each of its rows (`admit`). Rows whose answer is finished leave (`keep`), so that a step
    costs what its live rows cost, and others can be admitted in their places.
    """

    def __init__(self, config: TextConfig, max_rows: int, capacity: int, dtype: torch.dtype, device: torch.device):
        """Args: max_rows: B is never larger. capacity: S, the most tokens a row may come to hold, prompt included."""
        shape = (max_rows, config.num_key_value_heads, capacity, config.head_dim)
        self.lengths = torch.zeros(0, dtype=torch.int64, device=device)  # (B,) of the live rows, which are the first
        self._host_lengths: list[int] = []  # the same on the host, where reading `lengths` would wait for the device
        # Zeros and not `empty`: a masked position has weight 0, and 0 * NaN is NaN.
        try:
            self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.num_hidden_layers)]
            self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.num_hidden_layers)]
        except RuntimeError as error:  # a GPU raises OutOfMemoryError, which is one; the CPU's allocator the plain one
            if not isinstance(error, torch.OutOfMemoryError) and "allocate" not in str(error):
                raise
            gigabytes = 2 * config.num_hidden_layers * math.prod(shape) * dtype.itemsize / 1e9
            raise UserError(
                f"the cache for {max_rows} rows of {capacity:,} tokens takes {gigabytes:.1f} GB, more than is free on {device}; "
                "lower max_new_tokens or num_samples"
            ) from None
        self._window: _Window | None = None

    def admit(self, prompt_lengths: list[int], num_samples: int) -> Attend:
        """Adds `num_samples` rows for each of N prompts behind the live ones.

        Returns: the attention of a prefill over these prompts packed, which also writes each one's keys and values into its rows.
        """
        device, live = self.lengths.device, len(self._host_lengths)
        lengths = torch.tensor(prompt_lengths)
        cu_seqlens = F.pad(lengths.cumsum(0), (1, 0)).int().to(device)
        prompt = torch.repeat_interleave(lengths)  # (T,) which prompt each token belongs to
        columns = torch.cat([torch.arange(length) for length in prompt_lengths]).to(device)
        rows = (live + prompt * num_samples + torch.arange(num_samples)[:, None]).to(device)  # (num_samples, T)
        self.lengths = torch.cat((self.lengths, lengths.repeat_interleave(num_samples).to(device)))
        self._host_lengths = self._host_lengths + [length for length in prompt_lengths for _ in range(num_samples)]
        self._window = None

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            self.keys[layer][rows, :, columns] = k  # k (T, K, D), once for each sample
            self.values[layer][rows, :, columns] = v
            return attention(q, k, v, cu_seqlens, causal=True)

        return attend

    def decode(self) -> Attend:
        """Opens the next step: the attention of one new token a row, which appends the token's key and value and then reads them all."""
        longest = max(self._host_lengths)
        if self._window is None or longest == self._window.columns:
            self._window = _Window.cut(self.keys, self.values, self.lengths, min(longest + _GROWTH, self.keys[0].shape[2]))
        else:
            self._window.advance()
        self._host_lengths = [length + 1 for length in self._host_lengths]
        self.lengths = lengths = self.lengths + 1
        window, dim = self._window, self.keys[0].shape[-1]

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys, values, all_keys, all_values = window.layers[layer]
            all_keys.index_copy_(0, window.places, k.reshape(-1, dim))
            all_values.index_copy_(0, window.places, v.reshape(-1, dim))
            return decode_attention(q, keys, values, lengths, window.bias)

        return attend

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
            for cached in (*self.keys, *self.values):
                cached[holes] = cached[movers]
        self.lengths = self.lengths[former]
        self._host_lengths = [self._host_lengths[row] for row in former]
        self._window = None
        return former
