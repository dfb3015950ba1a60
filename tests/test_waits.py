"""The host never waits for the GPU between a step's first pack and its last: it launches, and reads nothing.

The meta device stands for the GPU. It has no numbers, so that whatever asks for one fails: .item(),
.tolist(), the truth of a tensor, and every operation whose result is as large as the numbers say. A copy to
it must be one that the host need not wait for, and no operation may take tensors of both, which would be
another copy.
"""

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

pytest.importorskip("triton")  # there is none for macOS and Windows

import kernels
from kernels.triton import logprobs as triton_logprobs
from r1ov.common.processes import World
from r1ov.data.pack import Continuation, make_packs
from r1ov.data.playground import messages, sample
from r1ov.folder.pretrained import find, read_processor
from r1ov.model.model import Qwen2_5_VL
from r1ov.train import grpo
from r1ov.train.loss import sft_loss_and_correct
from r1ov.train.optim import each_pack
from r1ov.train.run.config import GRPOConfig
from r1ov.train.run.sharding import checkpoint_activations


class Distant(TorchDispatchMode):
    """Between the CPU and the meta device numbers go one way, and nobody waits for them."""

    def __init__(self) -> None:
        super().__init__()
        self.copies = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor)]
        # A number without dimensions is handed over with the launch.
        places = {x.device.type for x in tensors if x.is_meta or x.ndim}
        if function.name() in ("aten::_to_copy", "aten::copy_"):
            self.copies += len(places) > 1
            assert len(places) == 1 or (kwargs or {}).get("non_blocking"), "a copy that is waited for"
        elif not function.name().startswith("r1ov::"):
            assert len(places) <= 1, f"{function.name()} of tensors on {places}"
        return out


@pytest.fixture(scope="module")
def processor():
    return read_processor(find("r1ov-tiny").settings)


@pytest.fixture
def run(processor, monkeypatch):
    """As much of a run as the packs of a step need, on the meta device."""
    with torch.device("meta"):
        model = Qwen2_5_VL(processor.config).bfloat16()
    checkpoint_activations(model, "selective")
    kernels.use("triton")
    yield type("Run", (), {"model": model, "device": torch.device("meta"), "trainers": World()})()
    kernels.use(None)


def is_learned(run):
    return all(one.grad is not None for one in run.model.parameters())


def test_the_packs_of_an_sft_step(run, processor):
    packs = [
        processor([messages(sample("train", at)) for at in own], return_labels=True) for own in ((0, 3), (5,))
    ]
    with Distant() as distant:
        for pack in each_pack(packs, run.model, run.device):
            loss, correct = run.model(
                **pack.inputs, then=lambda *given, pack=pack: sft_loss_and_correct(*given, pack["labels"], 50)
            )
            loss.backward()
    assert loss.is_meta
    assert correct.is_meta
    assert distant.copies > 0
    assert is_learned(run)


@pytest.mark.parametrize("options", [{}, {"importance_sampling_level": "sequence", "loss_type": "grpo"}])
def test_the_packs_of_a_grpo_step(run, processor, monkeypatch, options):
    run.config = GRPOConfig(beta=0.04, importance_sampling_correction=True, **options)
    part = []
    for at in (0, 3):
        prompt = processor.with_pixels(
            processor.encode(messages(sample("rl", at)), add_generation_prompt=True)
        )
        ids = torch.arange(30, 37)
        one = Continuation(input_ids=ids, labels=ids, logprobs=torch.zeros(7), advantage=torch.tensor(1.0))
        part.append((prompt, [one, one]))
    packs = make_packs(part, processor, 4096, World())
    assert all("prefixes" in pack for pack in packs)
    monkeypatch.setattr(grpo, "combine_metrics", lambda shares: {})  # reads them, after the last pack
    counts = {"num_items_in_batch": 28, "num_sequences_in_batch": 4, "num_read_in_batch": 28}
    with Distant() as distant:
        for name in ("old_logprobs", "ref_logprobs"):
            grpo.add_logprobs(run, packs, name, run.model)
        grpo.accumulate_gradients(run, packs, counts)
    assert distant.copies > 0
    assert is_learned(run)


def test_what_launches_the_kernels_of_log_probs(monkeypatch):
    """Within the operators, which the meta device does not look into."""
    monkeypatch.setattr(triton_logprobs, "_over_rows", lambda *_: None)
    hidden, weight = torch.empty(2, 9, 8, device="meta").unbind()
    targets = torch.tensor([3, -100, 1, 8, 0, -100, -100, 2, 5])
    with Distant():
        results, kept = triton_logprobs.forward(hidden, weight, targets, 0.7, 4)
        state = torch.cat([results, results[:1]])
        grads = triton_logprobs.backward(hidden, weight, targets, state, kept, 0.7, True, True)
    assert kept.shape == (4, 9)
    assert [x.shape for x in grads] == [hidden.shape, weight.shape]


def test_the_guard_sees_who_waits():
    x = torch.ones(4, device="meta")
    waits = [
        lambda: x.sum().item(),
        lambda: bool(x.any()),
        lambda: x.nonzero(),
        lambda: x[x > 0],
        lambda: torch.ones(4).to("meta"),
        lambda: x[torch.tensor([0, 1])],
    ]
    with Distant():
        for wait in waits:
            with pytest.raises((RuntimeError, NotImplementedError, AssertionError)):
                wait()
