"""Linear layers whose weights are integers of 4 or 8 bits, made while a model is loaded, or as AWQ published
them. The embedding, the norms, the biases and the vision encoder stay as they are.

Of 4 bits: w = (q - 8) * scale + zero, for each row and group of inputs, 32 of them (in AWQ's folders 128).
Of 8 bits: w = q * scale, for each row. What is quantised is frozen, but gradients pass through to the input.

Shape letters: T tokens, N outputs, K inputs, g inputs in a group.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from r1ov.common.memory import roomy
from r1ov.common.processes import computes_bfloat16
from r1ov.errors import UserError
from r1ov.folder.faults import EMBEDDING, HEAD, Stored
from r1ov.model.model import Qwen2_5_VL

BITS = {"int4": 4, "int8": 8}
GROUP = 32
BLOCK = 64  # rows whose nibbles lie together, in the order of torch's kernel for AVX-512
FEW = 32  # rows of x up to which torch's packed kernels are faster than a product with dequantised tiles
TILE = 2**18  # weights that are dequantised at a time, which stay in a core's own memory
LIKELIEST = 64  # words whose logits a head of 4 bits has from the embedding, as they are
AWQ_ORDER = [0, 4, 1, 5, 2, 6, 3, 7]  # where in an int32 the columns 0 to 7 are


class QuantizedLinear(nn.Module):
    """In place of an `nn.Linear`."""

    exact = ()  # an embedding that has the weight (N, K) as it was

    def __init__(self, packed: Tensor, scales: Tensor, outputs: int, bias: nn.Parameter | None):
        """Args: packed: `pack`'s of 4 bits, or (N, K) int8. scales: (K/g, N, 2) scale and zero, or (1, N)."""
        super().__init__()
        self.register_buffer("packed", packed)
        self.register_buffer("scales", scales)
        self.out_features, self.bias = outputs, bias

    def forward(self, x: Tensor) -> Tensor:
        y = _Product.apply(x, self) if x.requires_grad else self.product(x)
        y = y[:, : self.out_features]
        if self.exact:
            words = y.topk(LIKELIEST).indices
            return y.scatter(1, words, (self.exact[0](words) @ x[:, :, None])[:, :, 0])
        return y if self.bias is None else y + self.bias

    @property
    def weight(self) -> Tensor:
        """(N, K) float32, dequantised anew each time it is asked for."""
        return torch.cat([tile for _, tile in self.tiles(torch.float32)], dim=1).t()[: self.out_features]

    def product(self, x: Tensor) -> Tensor:
        """(T, K) -> (T, N), without bias, and with the rows that fill up the last block."""
        if len(x) <= FEW and self._has_kernel():
            narrow, scales = x.bfloat16(), self.scales.bfloat16()
            if self.packed.ndim == 2:
                return torch.ops.aten._weight_int8pack_mm(narrow, self.packed, scales[0]).to(x.dtype)
            packed, group = self.packed.view(scales.shape[1], -1), x.shape[1] // len(scales)
            return torch.ops.aten._weight_int4pack_mm_for_cpu(narrow, packed, group, scales).to(x.dtype)
        dtype = x.dtype if computes_bfloat16(x.device) else torch.float32
        wide = x.to(dtype)
        return torch.cat([wide @ tile for _, tile in self.tiles(dtype)], dim=1).to(x.dtype)

    def tiles(self, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
        """Some of the outputs, and their weights (K, n) in float32, rounded to `dtype`."""
        has_8_bits, inputs = self.packed.ndim == 2, self.packed.shape[1]
        each = 1 if has_8_bits else BLOCK
        count = max(1, TILE // (each * inputs))
        for begin in range(0, len(self.packed), count):
            packed = self.packed[begin : begin + count].transpose(0, 1)
            columns = slice(each * begin, each * (begin + count))
            scale = self.scales[:, None, columns].float()
            if has_8_bits:
                yield columns, (packed * scale[0]).to(dtype)
                continue
            tile = torch.empty(inputs, packed.shape[1], 2, BLOCK // 2, device=packed.device)
            tile[:, :, 0], tile[:, :, 1] = packed & 15, packed >> 4
            scale, zero = (part.contiguous() for part in scale.unbind(-1))  # (K/g, 1, n)
            tile = tile.view(len(scale), -1, scale.shape[2])  # (K/g, g, n)
            yield columns, tile.sub_(8).mul_(scale).add_(zero).flatten(0, 1).to(dtype)

    def _has_kernel(self) -> bool:
        return self.packed.device.type == "cpu" and (self.packed.ndim == 2 or _reads_our_order())


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, linear: QuantizedLinear) -> Tensor:
        ctx.linear = linear
        return linear.product(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        tiles = ctx.linear.tiles(grad.dtype)
        return sum(grad[:, columns] @ tile.t() for columns, tile in tiles), None


@cache
def _reads_our_order() -> bool:
    q = torch.arange(BLOCK * GROUP, dtype=torch.int32).view(BLOCK, GROUP).square() // 3 % 16
    theirs = torch.ops.aten._convert_weight_to_int4pack_for_cpu(q, 1)
    return torch.equal(theirs.flatten(), pack(q).flatten())


def pack(q: Tensor) -> Tensor:
    """(N, K) integers from 0 to 15 -> (N/64, K, 32) bytes: of a block's rows n and n + 32 in one."""
    low, high = q.to(torch.uint8).view(-1, 2, BLOCK // 2, q.shape[1]).transpose(2, 3).unbind(1)
    return low | high << 4


def quantized(
    shape: torch.Size, rows: Callable[[slice], Tensor], bias: nn.Parameter | None, bits: int, name: str
) -> QuantizedLinear:
    """The layer nearest to a weight of this shape (N, K), of which it asks for some rows at a time."""
    outputs, inputs = shape
    if bits == 4 and inputs % GROUP:
        raise UserError(f"{name} has {inputs} inputs, which groups of {GROUP} do not divide; try int8")
    work, each = (_to_int4, BLOCK) if bits == 4 else (_to_int8, 1)
    step, blocks = max(BLOCK, TILE // inputs // BLOCK * BLOCK), -(-outputs // each)
    first, scale = work(rows(slice(BLOCK)).float())
    # Made whole and filled part by part: a list of parts would be there twice when it is joined.
    packed = roomy((blocks, *first.shape[1:]), first.dtype, first.device)
    scales = roomy((len(scale), blocks * each, *scale.shape[2:]), scale.dtype, scale.device)
    for begin in range(0, outputs, step):
        end = begin + step
        packed[begin // each : end // each], scales[:, begin:end] = work(rows(slice(begin, end)).float())
    return QuantizedLinear(packed, scales, outputs, bias)


def _to_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    scale = (weight.abs().amax(1) / 127).clamp(min=1e-30).bfloat16()
    return (weight / scale[:, None]).round_().clamp_(-127, 127).to(torch.int8), scale[None]


def _to_int4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """From the least to the largest of a group in 15 equal steps; rows of zeros fill up the last block."""
    if filling := -len(weight) % BLOCK:
        weight = F.pad(weight, (0, 0, 0, filling))
    weight = weight.unflatten(1, (-1, GROUP))
    least, largest = weight.amin(-1, keepdim=True), weight.amax(-1, keepdim=True)  # (N, K/g, 1)
    scale = ((largest - least) / 15).clamp(min=1e-30).bfloat16()
    zero = (least + 8 * scale.float()).bfloat16()
    q = (weight - zero).div_(scale).add_(8).round_().clamp_(0, 15)
    return pack(q.flatten(1)), torch.cat((scale, zero), dim=-1).transpose(0, 1).contiguous()


def from_awq(qweight: Tensor, qzeros: Tensor, scales: Tensor, bias: nn.Parameter | None) -> QuantizedLinear:
    """The layer that AWQ's tensors describe, w = (q - z) * scale, exactly.

    Args: qweight: (K, N/8) int32, eight outputs in each. qzeros: (K/g, N/8) int32. scales: (K/g, N).
    """
    shifts = 4 * torch.tensor(AWQ_ORDER, dtype=torch.int32, device=qweight.device)
    # (K | K/g, N), some rows at a time: unpacked they take eight times as much
    q, z = (
        torch.cat([(part[:, :, None] >> shifts & 15).byte().flatten(1) for part in x.split(BLOCK)])
        for x in (qweight, qzeros)
    )
    outputs, filling = q.shape[1], -q.shape[1] % BLOCK
    q, z, scale = (F.pad(x, (0, filling)) for x in (q, z, scales.float()))
    affine = torch.stack((scale, (8 - z.float()) * scale), dim=-1)
    packed = pack(q.t())
    packed = roomy(packed.shape, packed.dtype, packed.device).copy_(packed)
    return QuantizedLinear(packed, affine, outputs, bias)


def load_quantized(
    model: Qwen2_5_VL,
    stored: Mapping[str, Stored],
    read: Callable,
    alone: Any,
    device: torch.device,
    dtype: torch.dtype,
    quantize: str | None,
    quantizes_head: bool,
) -> dict[str, Stored]:
    """Loads what is quantised in a model's files, or is to be, and the embedding; returns what else there is.

    Args: stored: of each parameter. read: reads one, or some rows of it. alone: another such reader, entered
        here, for the embedding alone: on a CPU it stays in its file, and only the rows in use are read.
    """
    rest = {}
    for name, tensor in stored.items():
        owner, _, leaf = name.rpartition(".")
        if leaf == "qweight":
            bias = model.get_submodule(owner).bias
            parts = (read(stored[f"{owner}.{part}"]).to(device) for part in ("qweight", "qzeros", "scales"))
            model.set_submodule(owner, from_awq(*parts, bias))
        elif leaf not in ("qzeros", "scales") and not (
            quantize
            and place(
                model, name, lambda rows, of=tensor: read(of, rows).to(device), quantize, quantizes_head
            )
        ):
            rest[name] = tensor
    embedding = model.get_parameter(EMBEDDING)
    with alone:
        value = alone(rest.pop(EMBEDDING)).to(device, dtype)
    model.model.embed_tokens.weight = nn.Parameter(value, embedding.requires_grad)
    return rest


def place(model: Qwen2_5_VL, name: str, rows: Callable, quantize: str, quantizes_head: bool) -> bool:
    """Puts the layer of a weight that is to be quantised into the model. True if that was its only use.

    Args: rows: as of `quantized`.
    """
    is_head = quantizes_head and name == (EMBEDDING if model.config.tie_word_embeddings else HEAD)
    if not (is_head or is_quantizable(name)):
        return False
    owner = "lm_head" if is_head else name.removesuffix(".weight")
    bias = None if is_head else model.get_submodule(owner).bias
    shape = model.get_parameter(name).shape
    layer = quantized(shape, rows, bias, 8 if name == HEAD else BITS[quantize], name)
    if name == EMBEDDING and quantize == "int4":
        layer.exact = (model.model.embed_tokens,)
    model.set_submodule(owner, layer)
    return name != EMBEDDING


def is_quantizable(name: str) -> bool:
    """True for the weights of the language model's linear layers."""
    return name.startswith("model.layers.") and name.endswith("_proj.weight")


def awq_shapes(
    shapes: Mapping[str, tuple[int, ...]], stored: Mapping[str, Stored], is_split: bool
) -> dict[str, tuple[int, ...]]:
    """The shapes of a model's tensors as AWQ stores them: three in the place of a layer's weight (N, K)."""
    if is_split:
        raise UserError("AWQ's weights are not split between processes; leave --tensor-parallel out")
    found = {name: shape for name, shape in shapes.items() if not is_quantizable(name)}
    for name in shapes.keys() - found.keys():
        (outputs, inputs), stem = shapes[name], name.removesuffix("weight")
        groups = stored[f"{stem}scales"].shape[0] if f"{stem}scales" in stored else 1
        found[f"{stem}qweight"] = (inputs, outputs // 8)
        found[f"{stem}qzeros"] = (groups, outputs // 8)
        found[f"{stem}scales"] = (groups, outputs)
    return found


def weight_bytes(model: Qwen2_5_VL, itemsize: int, quantize: str | None, maps: bool = False) -> float:
    """What the weights of a model will take.

    Args: maps: whether the embedding beside quantised weights stays in its file; few of its rows are in use.
    """
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    whole = sum(sizes.values())
    if not quantize:
        return whole * itemsize
    each = 0.625 if quantize == "int4" else 1  # with scales and zeros
    linear = sum(size for name, size in sizes.items() if is_quantizable(name))
    head, embedding = sizes.get(HEAD, 0), sizes[EMBEDDING]
    held = linear * each + (head or embedding * each)
    return held + (whole - linear - head - embedding * maps) * itemsize
