"""The whole model with the Triton kernels on, on a GPU where there is one, else under the interpreter, beside
the plain-torch definitions: one switch, the same numbers.
"""

from collections.abc import Iterator

import pytest
import torch

import kernels
from r1ov.data.playground import messages, sample
from r1ov.data.processor import Processor
from r1ov.engine.generate import generate
from r1ov.folder.pretrained import config_from_dict, config_to_dict, read_config, read_processor, resolve
from r1ov.folder.weights import init_weights
from r1ov.model.model import Qwen2_5_VL
from r1ov.train.loss import sft_loss

pytest.importorskip("triton")
FOLDER = resolve("r1ov-tiny")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def default_again() -> Iterator[None]:
    yield
    kernels.use(None)


@pytest.fixture(scope="module")
def processor() -> Processor:
    return read_processor(FOLDER)


def small_model() -> Qwen2_5_VL:
    """Two layers of each half, head size 32, one windowed vision block and one that sees everything."""
    fields = config_to_dict(read_config(FOLDER / "config.json"))
    fields |= {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    vision = {
        "depth": 2,
        "hidden_size": 64,
        "num_heads": 2,
        "intermediate_size": 96,
        "out_hidden_size": 64,
        "fullatt_block_indexes": [1],
    }
    fields["vision_config"] = fields["vision_config"] | vision
    model = Qwen2_5_VL(config_from_dict(fields))
    init_weights(model, torch.Generator().manual_seed(0))
    return model.to(DEVICE)


def run(processor: Processor, impl: str, steps: int) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The losses of so many steps of AdamW, and the gradients of the last."""
    kernels.use(impl)
    model = small_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for step in range(steps):
        batch = processor([messages(sample("train", 7 * step))], return_labels=True).to(DEVICE)
        labels = batch.pop("labels")
        optimizer.zero_grad()
        loss = sft_loss(model.hidden_states(**batch), model.head_weight, labels, int((labels != -100).sum()))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, {name: parameter.grad for name, parameter in model.named_parameters()}


def test_logits_and_gradients_of_a_packed_batch_are_the_same(processor):
    batch = processor([messages(sample("train", index)) for index in (0, 3)], return_labels=True).to(DEVICE)
    labels = batch.pop("labels")
    found = {}
    for impl in kernels.IMPLEMENTATIONS:
        kernels.use(impl)
        model = small_model()
        hidden = model.hidden_states(**batch)
        sft_loss(hidden, model.head_weight, labels, 100).backward()
        found[impl] = {"logits": model.logits(hidden).detach()} | {
            name: p.grad for name, p in model.named_parameters()
        }
    for name, expected in found["torch"].items():
        error = (found["triton"][name] - expected).abs().max() / expected.abs().max().clamp(min=1e-6)
        assert error < 1e-4, (name, error)  # float32 sums in another order, through four blocks


def test_sequences_that_go_on_from_another_are_the_same(processor):
    talk = [
        [{"role": "user", "content": text}, {"role": "assistant", "content": text}]
        for text in ("Nine?", "One.", "A")
    ]
    batch = processor(talk, return_labels=True).to(DEVICE)
    labels = batch.pop("labels")
    found = {}
    for impl in kernels.IMPLEMENTATIONS:
        kernels.use(impl)
        model = small_model()
        hidden = model.hidden_states(**batch, prefixes=torch.tensor([-1, 0, 0]))
        sft_loss(hidden, model.head_weight, labels, 100).backward()
        found[impl] = [hidden.detach()] + [p.grad for p in model.model.parameters()]
    assert not torch.allclose(found["torch"][0], model.hidden_states(**batch))
    for ours, expected in zip(found["triton"], found["torch"], strict=True):
        assert (ours - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_five_steps_of_training_run_the_same_course(processor):
    losses, gradients = run(processor, "torch", 5)
    with_kernels, their_gradients = run(processor, "triton", 5)
    assert losses[-1] < losses[0]
    # rounding differs, and Adam turns a difference in a tiny gradient into one of a whole step: a thousandth,
    # not a millionth
    assert with_kernels == pytest.approx(losses, rel=1e-3)
    for name, expected in gradients.items():
        assert (
            torch.nn.functional.cosine_similarity(their_gradients[name].flatten(), expected.flatten(), dim=0)
            > 0.99
        ), name


def test_greedy_answers_are_the_same(processor):
    prompts = [messages(sample("test", index))[:1] for index in (0, 3)]
    answers = []
    for impl in kernels.IMPLEMENTATIONS:
        kernels.use(impl)
        done = generate(small_model(), processor, prompts, max_new_tokens=6, temperature=0.0)
        answers.append([row.token_ids for row in done])
    assert answers[0] == answers[1]


def test_the_switch_is_checked_and_can_be_taken_back():
    with pytest.raises(ValueError, match="must be one of torch, triton"):
        kernels.use("cuda")
    kernels.use("triton")
    assert kernels.check_impl(None, "cpu") == "triton"
    kernels.use(None)
    assert tuple(kernels.check_impl(None, device) for device in ("cpu", "cuda")) == ("torch", "triton")
