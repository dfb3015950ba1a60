"""One model in several processes: its weights split between them for answering, tensor parallelism, or the
tokens of a pack for training, context parallelism.

Of a model that is split each process holds some heads of every attention, with their cache, some columns of
every MLP, and some words of the vocabulary. In each layer two sums over the processes make the whole. Like an
adapter, this hangs on the model's own layers, and parameters keep the names of their files. Norms and the
vision encoder are whole in each process; images are dealt out, and their embeddings exchanged.

In training each process has some of a pack's tokens, all its way but for attention: before it the tokens are
exchanged for heads, so that each has all tokens of its heads, and after it back.

Source: Shoeybi et al. 2019 (Megatron-LM, arXiv 1909.08053); Jacobs et al. 2023 (Ulysses, 2309.14509).
Shape letters: N processes, W words of the vocabulary that one of them holds.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.logprobs import IGNORED
from r1ov.common.processes import World
from r1ov.errors import UserError
from r1ov.model.config import TextConfig
from r1ov.model.language import Attend, LanguageModel
from r1ov.model.model import Qwen2_5_VL
from r1ov.model.vision import VisionEncoder


def share(count: int, rank: int, size: int) -> slice:
    """Which of so many things are this process's; what two hold differs by at most one."""
    return slice(count * rank // size, count * (rank + 1) // size)


def neighbours(size: int) -> World:
    """The processes whose ranks follow this one's, or that it follows, so many together. Collective."""
    group = dist.new_subgroups(size)[0]
    return World(dist.get_rank(group), size, group)


def heads(config: TextConfig, rank: int, size: int) -> tuple[slice, slice]:
    """A process's rows of the weights of queries and of keys: whole groups of heads, or where there are more
    processes than key heads a part of one group, with a copy of its key head.
    """
    keys, dim = config.num_key_value_heads, config.head_dim
    group = config.num_attention_heads // keys
    firsts = [other * keys // size for other in range(size)]  # key head of each process
    begin = firsts[rank]
    end = max(begin + 1, (rank + 1) * keys // size)
    own = share((end - begin) * group, rank - firsts.index(begin), firsts.count(begin))
    first = begin * group
    return slice(dim * (first + own.start), dim * (first + own.stop)), slice(dim * begin, dim * end)


class Split:
    """What is one process's of a model that N hold together, and what it exchanges with the others."""

    def __init__(self, model: Qwen2_5_VL, world: World):
        """Args: world: the N processes."""
        config, rank, size = model.config.text, world.rank, world.size
        self.world, self.vocab_size = world, config.vocab_size
        self.named_parameters = deepcopy(model).named_parameters  # of the whole
        queries, keys = heads(config, rank, size)
        self.words, columns = share(self.vocab_size, rank, size), share(config.intermediate_size, rank, size)
        self.config = replace(
            config,
            vocab_size=self.words.stop - self.words.start,
            num_key_value_heads=(keys.stop - keys.start) // config.head_dim,
        )
        self.parts = {  # of a layer's weight, along which of its dimensions
            "q_proj": (0, queries),
            "k_proj": (0, keys),
            "v_proj": (0, keys),
            "o_proj": (1, queries),
            "gate_proj": (0, columns),
            "up_proj": (0, columns),
            "down_proj": (1, columns),
            "embed_tokens": (0, self.words),
            "lm_head": (0, self.words),
        }

    def own(self, name: str) -> tuple[slice, ...]:
        """Which part of a parameter is this process's, an adapter's matrices included."""
        layer, leaf = name.split(".")[-2:]
        dim, part = self.parts.get(layer, (0, slice(None)))
        if name.startswith("visual.") or leaf == ("lora_A", "lora_B")[dim]:
            return (slice(None),)
        return (slice(None),) * dim + (part,)

    def sum(self, x: Tensor) -> Tensor:
        """Over the processes."""
        x = x.contiguous()
        dist.all_reduce(x, group=self.world.group)
        return x

    def inside(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Where ids (B,) are among this process's words, and which of them are."""
        is_own = (ids >= self.words.start) & (ids < self.words.stop)
        return (ids - self.words.start) * is_own, is_own

    def embed(self, embedding: nn.Embedding, ids: Tensor) -> Tensor:
        rows, is_own = self.inside(ids)
        return self.sum(F.embedding(rows, embedding.weight) * is_own[:, None])

    def see(self, visual: VisionEncoder, pixel_values: Tensor, image_grid_thw: Tensor) -> Tensor:
        """`VisionEncoder.forward`, each process for some of the images, of about as many patches as the
        others have.
        """
        patches, unit = image_grid_thw.prod(1), visual.config.spatial_merge_size**2
        # The middle of its patches lies in the share of one process.
        owners = (patches.cumsum(0) - patches / 2) * self.world.size // patches.sum()
        is_own = owners == self.world.rank
        own = is_own.repeat_interleave(patches)
        made = visual.merger.ln_q.weight.new_zeros(len(own) // unit, visual.config.out_hidden_size)
        if own.any():
            made[own[::unit]] = VisionEncoder.forward(visual, pixel_values[own], image_grid_thw[is_own])
        return self.sum(made)


def split(model: Qwen2_5_VL, size: int, quantize: str | None = None) -> None:
    """Makes of a model on the meta device this process's part, in place. Collective: all processes call this;
    those whose ranks follow each other hold one together.
    """
    count, most = dist.get_world_size() if dist.is_initialized() else 1, model.config.text.num_attention_heads
    if quantize or count % size or size > most:
        raise UserError(
            f"--tensor-parallel is {size}; it must divide the number of processes (torchrun's "
            f"--nproc-per-node), {count}, and be at most the model's {most} heads; it goes without --quantize"
        )
    own = model.split = Split(model, neighbours(size))
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data[own.own(name)]
    for layer in model.model.layers:
        for module in (layer.self_attn, layer.mlp):
            module.register_forward_hook(lambda _module, _inputs, y: own.sum(y))
    model.model.config = own.config
    model.model.embed_tokens.forward = partial(own.embed, model.model.embed_tokens)
    model.visual.forward = partial(own.see, model.visual)


# -- training


def teams(world: World, size: int, flag: str) -> World:
    """The teams of `size` consecutive ranks, each as if it were one: of each the rank in this one's place."""
    if world.size % size:
        raise UserError(f"{flag} is {size}; it must divide the number of processes, {world.size}")
    if size == 1:
        return world
    places = [list(range(place, world.size, size)) for place in range(size)]
    group = dist.new_subgroups_by_enumeration(places)[0]
    return World(world.rank // size, world.size // size, group)


def form_teams(run: Any) -> None:
    """Tells a run who samples together, and who learns from a pack together."""
    answering, training = run.config.tensor_parallel, run.config.context_parallel
    run.askers = teams(run.world, answering, "--tensor-parallel")
    run.trainers = teams(run.world, training, "--context-parallel")
    run.shared = slice(run.world.rank % answering, None, answering)
    run.context = Context(run.model, training) if training > 1 else None


class Context:
    """What a process has of each pack, whose tokens it shares with the others of its team."""

    def __init__(self, model: Qwen2_5_VL, size: int):
        config = model.config.text
        queries, keys = config.num_attention_heads, config.num_key_value_heads
        if queries % size or (keys % size and size % keys):
            raise UserError(
                f"--context-parallel is {size}; it must divide the model's {queries} heads, and divide its "
                f"{keys} key heads or be a multiple of them"
            )
        self.world, self.copies = neighbours(size), max(1, size // keys)
        self.share(model)

    def own(self, labels: Tensor) -> Tensor:
        """(T,) labels, those left that this process's tokens predict."""
        each = -(-len(labels) // self.world.size)
        predicting = torch.arange(-1, len(labels) - 1, device=labels.device)
        return labels.where(predicting // each == self.world.rank, IGNORED)

    def whole(self, values: Tensor, labels: Tensor) -> Tensor:
        """(n, T) values of all labels; they have gradients where they are this process's.

        Args: values: 0 where they are not its own. labels: `own`.
        """
        total = values.detach().clone()
        dist.all_reduce(total, group=self.world.group)
        return values.where((labels != IGNORED).to(values.device), total)

    def share(self, model: Qwen2_5_VL) -> Qwen2_5_VL:
        """The same model, of which from now on this process computes its own tokens alone."""
        model.forward, model.model.forward = partial(self.forward, model), partial(self.states, model.model)
        return model

    def join(self, part: Sequence) -> list:
        """The prompts, each with completions, of the whole team; of their images the pixels alone."""
        own = [(replace(prompt, pictures=()), completions) for prompt, completions in part]
        return list(chain(*self.world.gather(own)))

    def forward(self, model: Qwen2_5_VL, then: partial, **inputs: Tensor) -> tuple[Tensor, ...]:
        """What `then` gives of this process's labels, if that are sums, else (T,) values of all."""
        labels = self.own(then.keywords["labels"])
        values = Qwen2_5_VL.forward(model, then=partial(then, labels=labels), **inputs)
        return self.whole(torch.stack(values), labels).unbind() if values[0].ndim else values

    def states(
        self, language: LanguageModel, x: Tensor, position_ids: Tensor, attend: Attend, _only: Any
    ) -> Tensor:
        """(T, C), 0 where the tokens are not this process's. Args: as `LanguageModel.forward`'s."""
        from torch.distributed._functional_collectives import all_to_all_single_autograd as exchange

        count, size, group = len(x), self.world.size, self.world.group
        each = -(-count // size)
        begin, pad = each * self.world.rank, each * size - count

        def exchanged(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            copied = (one.repeat_interleave(self.copies, 1) for one in (k, v))
            parts = (one.unflatten(1, (size, -1)).transpose(0, 1) for one in (q, *copied))  # (N, t, h, D)
            q, k, v = (exchange(one, None, None, group).flatten(0, 1)[:count] for one in parts)  # (T, h, D)
            out = F.pad(attend(layer, q, k, v), (0, 0, 0, 0, 0, pad)).unflatten(0, (size, -1))
            return exchange(out, None, None, group).transpose(0, 1).flatten(1, 2)  # (t, H, D)

        x, position_ids = F.pad(x, (0, 0, 0, pad)), F.pad(position_ids, (0, pad))
        x, position_ids = x[begin : begin + each], position_ids[:, begin : begin + each]
        hidden = LanguageModel.forward(language, x, position_ids, exchanged)
        return F.pad(hidden, (0, 0, begin, count + pad - begin - each))[:count]
