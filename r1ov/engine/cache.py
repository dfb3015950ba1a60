"""The keys and values of every token so far: written once, read by every later token. Allocated once, at the size the answers may reach."""

import torch
from torch import Tensor

from kernels import attention, decode_attention
from r1ov.model.config import TextConfig
from r1ov.model.language import Attend

# Decoding reads the cache up to its longest row, rounded up to this, so that the views of it change only now and then.
_ROUND_UP = 64


class KVCache:
    """Per layer keys and values (B, K, S, D). Row b holds `lengths[b]` tokens from its start; what lies behind is zeros or unread.

    A prompt is prefilled once and written into each of its `num_samples` rows. Rows whose answer is finished leave by `keep`, so that
    a step costs what its live rows cost.
    """

    def __init__(
        self, config: TextConfig, prompt_lengths: list[int], num_samples: int, capacity: int, dtype: torch.dtype, device: torch.device
    ):
        """Args: capacity: S, the most tokens a row may come to hold, prompt included."""
        lengths = [length for length in prompt_lengths for _ in range(num_samples)]
        shape = (len(lengths), config.num_key_value_heads, capacity, config.head_dim)
        self.num_samples = num_samples
        self.prompt_lengths = prompt_lengths
        self.lengths = torch.tensor(lengths, device=device)  # (B,)
        self.longest = max(lengths)  # as known on the host, where reading `lengths` would wait for the device
        # Zeros and not `empty`: a masked position has weight 0, and 0 * NaN is NaN.
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.num_hidden_layers)]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.num_hidden_layers)]
        self._views: tuple[tuple[int, int], list[tuple[Tensor, Tensor]]] | None = None

    def prefill(self, cu_seqlens: Tensor) -> Attend:
        """The attention of a prefill over packed prompts, which also writes each prompt's keys and values into its rows.

        Args: cu_seqlens: (N+1,) int32 starts of the N prompts.
        """
        device = self.lengths.device
        lengths = torch.tensor(self.prompt_lengths)
        prompt = torch.repeat_interleave(lengths)  # (T,) which prompt each token belongs to
        columns = torch.cat([torch.arange(length) for length in self.prompt_lengths]).to(device)
        rows = (prompt * self.num_samples + torch.arange(self.num_samples)[:, None]).to(device)  # (num_samples, T)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            self.keys[layer][rows, :, columns] = k  # k (T, K, D), once for each sample
            self.values[layer][rows, :, columns] = v
            return attention(q, k, v, cu_seqlens, causal=True)

        return attend

    def decode(self) -> Attend:
        """Opens the next step: the attention of one new token a row, which appends the token's key and value and then reads them all."""
        heads, capacity, dim = self.keys[0].shape[1:]
        rows = len(self.lengths)
        self.longest = min(self.longest + 1, capacity)
        first = torch.arange(rows * heads, device=self.lengths.device).view(rows, heads) * capacity
        index = (first + self.lengths[:, None]).flatten()  # (B*K,) where the new token goes in the cache as (B*K*S, D)
        self.lengths = lengths = self.lengths + 1
        views = self._live_views(rows, min(-(-self.longest // _ROUND_UP) * _ROUND_UP, capacity))

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            self.keys[layer].view(-1, dim).index_copy_(0, index, k.reshape(-1, dim))
            self.values[layer].view(-1, dim).index_copy_(0, index, v.reshape(-1, dim))
            return decode_attention(q, *views[layer], lengths)

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
        return former

    def _live_views(self, rows: int, columns: int) -> list[tuple[Tensor, Tensor]]:
        """Each layer's keys and values, (rows, K, columns, D) each, cut anew only when the size changes."""
        if self._views is None or self._views[0] != (rows, columns):
            cut = [(k[:rows, :, :columns], v[:rows, :, :columns]) for k, v in zip(self.keys, self.values, strict=True)]
            self._views = ((rows, columns), cut)
        return self._views[1]
