"""The vision encoder: an image's patches in, one embedding per 2x2 block of patches out.

Mirrors transformers' `Qwen2_5_VisionTransformerPretrainedModel`. Most blocks attend within windows of
`window_size` pixels, a few over the whole image. Patches are put in window order once, so both kinds are
plain packed sequences with their own `cu_seqlens`.

Shape letters: P patches, M = P / spatial_merge_size^2 merged tokens, C hidden size, H heads, D head dim,
N images.
"""

from collections.abc import Callable
from functools import lru_cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels import attention, starts
from kernels.pointwise import add_rms_norm, linear, rms_norm, rotate, silu_mul
from r1ov.model.config import TextConfig, VisionConfig
from r1ov.model.rope import vision_angles

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # q, k and v (P, H, D) -> (P, H, D)


class RMSNorm(nn.RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class Linear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class PatchEmbed(nn.Module):
    """A convolution whose stride is its kernel, so a linear map of each flattened patch."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        kernel = (config.temporal_patch_size, config.patch_size, config.patch_size)
        self.proj = nn.Conv3d(config.in_channels, config.hidden_size, kernel, stride=kernel, bias=False)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return F.linear(pixel_values.to(self.proj.weight.dtype), self.proj.weight.flatten(1))  # (P, C)


class VisionAttention(nn.Module):
    def __init__(self, config: VisionConfig):
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(1)  # (P, H, D) each
        # turned in float32
        return self.proj(attend(rotate(q, cos, sin), rotate(k, cos, sin), v).flatten(1))


class MLP(nn.Module):
    """Gated: of the vision encoder, with bias, and of the language model, without."""

    def __init__(self, config: VisionConfig | TextConfig, bias: bool):
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size, bias)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, bias)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(silu_mul(self.gate_proj(x), self.up_proj(x)))


class VisionBlock(nn.Module):
    def __init__(self, config: VisionConfig):
        super().__init__()
        self.norm1 = RMSNorm(config.hidden_size, eps=1e-6)  # not the text model's eps: fixed in the original
        self.norm2 = RMSNorm(config.hidden_size, eps=1e-6)
        self.attn = VisionAttention(config)
        self.mlp = MLP(config, bias=True)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        mixed = self.attn(self.norm1(x), cos, sin, attend)
        x, normed = add_rms_norm(x, mixed, self.norm2.weight, self.norm2.eps)
        return x + self.mlp(normed)


class PatchMerger(nn.Module):
    """Joins a block of patches (top left, top right, bottom left, bottom right) into one text embedding."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.merged_size = config.hidden_size * config.spatial_merge_size**2
        self.ln_q = RMSNorm(config.hidden_size, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Linear(self.merged_size, self.merged_size),
            nn.GELU(),
            nn.Linear(self.merged_size, config.out_hidden_size),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(self.ln_q(x).view(-1, self.merged_size))  # (M, out_hidden_size)


class VisionEncoder(nn.Module):
    def __init__(self, config: VisionConfig):
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config)
        self.blocks = nn.ModuleList(VisionBlock(config) for _ in range(config.depth))
        self.merger = PatchMerger(config)

    def forward(self, pixel_values: Tensor, image_grid_thw: Tensor) -> Tensor:
        """(M, out_hidden_size) embeddings of all images' blocks, in reading order.

        Args:
            pixel_values: (P, patch_dim) patches in 2x2-block order (see r1ov/data/image.py), any float dtype.
            image_grid_thw: (N, 3) int64, each image's patches in time, height and width.
        """
        config = self.config
        grids = tuple(map(tuple, image_grid_thw.tolist()))
        needed = (sum(t * h * w for t, h, w in grids), config.patch_dim)
        if pixel_values.shape != needed:
            raise ValueError(
                f"pixel_values is {tuple(pixel_values.shape)}, but the grids {grids} need {needed}"
            )
        positions, order, cu_window, cu_full = (
            x.to(pixel_values.device, non_blocking=True) for x in layout(grids, config)
        )
        unit = config.spatial_merge_size**2

        x = self.patch_embed(pixel_values)  # (P, C)
        x = x.unflatten(0, (-1, unit))[order].flatten(0, 1)  # into window order, whole blocks at a time
        cos, sin = vision_angles(positions.unflatten(0, (-1, unit))[order].flatten(0, 1), config.head_dim)
        whole = partial(attention, cu_seqlens=cu_full, causal=False)
        side = config.window_size // config.patch_size
        window = partial(attention, cu_seqlens=cu_window, causal=False, max_seqlen=side**2)
        for index, block in enumerate(self.blocks):
            x = block(x, cos, sin, whole if index in config.fullatt_block_indexes else window)
        return self.merger(x)[order.argsort()]


# Cached, so never inference tensors: training may ask for a layout that decoding asked for first.
@lru_cache(maxsize=64)
@torch.inference_mode(False)
def layout(
    grids: tuple[tuple[int, int, int], ...], config: VisionConfig
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The place of every patch, and the pieces of attention, for images of these (time, height, width) grids.

    Returns:
        positions: (P, 2) row and column of each patch, in the order of `pixel_values`.
        order: (M,) the merged blocks in window order.
        cu_window, cu_full: int32 starts of the windows, and of the whole frames, in patches, in window order.
    """
    m = config.spatial_merge_size
    side = config.window_size // m // config.patch_size  # of a window, in blocks
    frames = [(h, w) for t, h, w in grids for _ in range(t)]
    positions, windows = [], []
    for number, (h, w) in enumerate(frames):
        places = torch.cartesian_prod(torch.arange(h), torch.arange(w)).view(h // m, m, w // m, m, 2)
        places = places.transpose(1, 2).reshape(h * w, 2)
        positions.append(places)
        rows, columns = (places[:: m * m] // m // side).unbind(1)  # of each block's window, (h * w / m^2,)
        windows.append((number << 32) + (rows << 16) + columns)
    _, window, sizes = torch.cat(windows).unique(return_inverse=True, return_counts=True)
    cu_full = starts(torch.tensor([h * w for h, w in frames]))
    return torch.cat(positions), window.argsort(stable=True), starts(sizes * m * m), cu_full
