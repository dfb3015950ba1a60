"""Qwen2.5-VL whole: image embeddings take the place of their placeholders, and the language model reads on.

Mirrors transformers' `Qwen2_5_VLForConditionalGeneration`. It differs in layout only: batches are packed
(tokens (T,) and `cu_seqlens` instead of (B, T) and a mask), and positions are always given. Attribute names
are those of the published checkpoint files.
"""

from collections.abc import Callable
from itertools import pairwise
from types import EllipsisType
from typing import TypeVar

import torch
from torch import Tensor, nn

from kernels import attention, starts, token_logprobs
from kernels.pointwise import linear
from r1ov.model.config import Config
from r1ov.model.language import ALL, Attend, LanguageModel
from r1ov.model.vision import Linear, VisionEncoder

T = TypeVar("T")


class Qwen2_5_VL(nn.Module):
    # What may be put on it from outside: an adapter (lora.py's `Lora`), how several processes hold it
    # together (parallel.py's `Split`), and the names of the weights that are still pages of their file.
    lora = split = None
    mapped = ()

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.visual = VisionEncoder(config.vision)
        self.model = LanguageModel(config.text)
        if not config.tie_word_embeddings:
            self.lm_head = Linear(config.text.hidden_size, config.text.vocab_size, bias=False)

    @property
    def head_weight(self) -> Tensor:
        """(V, C), the embedding itself if the two are tied."""
        return self.model.embed_tokens.weight if self.config.tie_word_embeddings else self.lm_head.weight

    def hidden_states(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        cu_seqlens: Tensor,
        pixel_values: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        prefixes: Tensor | None = None,
        attend: Attend | None = None,
        only: Tensor | EllipsisType = ALL,
    ) -> Tensor:
        """(T, C) states after the final norm, or (n, C) for the tokens `only` (n,); see `forward`.

        Args: attend: another attention for the decoder layers (the engine's cache); default causal within
            each sequence.
        """
        x = self.model.embed_tokens(input_ids)
        if pixel_values is not None:
            is_place = input_ids == self.config.image_token_id
            pictures = self.visual(pixel_values, image_grid_thw).to(x.dtype)  # (M, C)
            found = is_place.sum() == len(pictures)
            if found.is_cpu and not found:
                raise ValueError(
                    f"{int(is_place.sum())} image placeholders, but the pictures give {len(pictures)} tokens"
                )
            torch._assert_async(found)  # of a GPU, for which the host does not wait
            x = x.index_copy(0, is_place.nonzero_static(size=len(pictures)).squeeze(1), pictures)
        keys, cu_seqlens_k = (
            (ALL, None) if prefixes is None else keys_with_prefixes(cu_seqlens, prefixes, x.device)
        )
        cu_seqlens = cu_seqlens.to(x.device, non_blocking=True)

        def packed(_layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return attention(q, k[keys], v[keys], cu_seqlens, cu_seqlens_k=cu_seqlens_k)

        return self.model(x, position_ids, attend or packed, only)

    def logits(self, hidden: Tensor) -> Tensor:
        """(T, C) -> (T, V)."""
        made = self.lm_head(hidden) if hasattr(self, "lm_head") else linear(hidden, self.head_weight)
        return made.contiguous()

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        cu_seqlens: Tensor,
        pixel_values: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        prefixes: Tensor | None = None,
        then: Callable[[Tensor, Tensor], T] | None = None,
        labels: Tensor | None = None,
    ) -> Tensor | T:
        """(T, V) logits of each next token, or the value of `then` on the states that would give them, or the
        loss where labels are given.

        Args:
            input_ids: (T,) int64, B sequences end to end. position_ids: (3, T) int64. cu_seqlens: (B+1,)
                int32 starts.
            pixel_values: (P, patch_dim) patches of all images in order. image_grid_thw: (N, 3) int64.
            prefixes: (B,) int64, for each sequence the one that it continues, or -1: it sees that one's
                tokens as if they came before its own. So a prompt that several share is computed once.
                Positions are those of the whole.
            then: called as then(hidden (T, C), head_weight (V, C)), for instance a loss. A sharded model's
                parameters are whole within its forward only, so a loss that needs the head must be computed
                here; it returns a tensor, or tensors in a tuple, list or dict.
            labels: (T,) int64, -100 where nothing is trained: the mean cross-entropy of the rest, as in
                Hugging Face's models.
        """
        hidden = self.hidden_states(
            input_ids, position_ids, cu_seqlens, pixel_values, image_grid_thw, prefixes
        )
        if labels is not None:
            return -token_logprobs(hidden[:-1], self.head_weight, labels[1:]).sum() / (labels[1:] >= 0).sum()
        return self.logits(hidden) if then is None else then(hidden, self.head_weight)


def keys_with_prefixes(cu_seqlens: Tensor, prefixes: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """The tokens whose keys each sequence sees: those of its prefix, then its own.

    Example: sequences of lengths (3, 2, 2) with prefixes (-1, 0, 0) see the keys
    0 1 2 | 0 1 2 3 4 | 0 1 2 5 6, which start at 0 3 8 13.

    Args:    as in `forward`; a prefix of -1 means none.
    Returns: (S,) int64 indices of packed tokens, and (B+1,) int32 starts.
    """
    spans = [torch.arange(*span) for span in pairwise(cu_seqlens.tolist())]
    pairs = zip(prefixes.tolist(), spans, strict=True)
    seen = [own if prefix < 0 else torch.cat((spans[prefix], own)) for prefix, own in pairs]
    keys, cu_seqlens_k = torch.cat(seen), starts(torch.tensor([*map(len, seen)]))
    return keys.to(device, non_blocking=True), cu_seqlens_k.to(device, non_blocking=True)
