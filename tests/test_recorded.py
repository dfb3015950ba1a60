"""Steps that are recorded and replayed, as a GPU runs them. A CUDA graph is stood in for by a tape: the same
operations on the same memory again, without a line of Python; whatever a step takes from the host, or from
tensors that do not stay where they were, comes out wrong.
"""

from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from r1ov.engine import cache, decode, generate, graph, prepare
from r1ov.engine.chat import Chat
from r1ov.folder.pretrained import load
from r1ov.model.lora import Lora
from tests.checkpoint import write_checkpoint
from tests.test_engine import CONVERSATIONS
from tests.test_kernels_model import small_model

WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "lift_fresh", "is_nonzero", "equal")


class Outside:
    """A tensor that a step did not make itself: a graph knows where it lies, and does not keep it alive."""

    def __init__(self, tensor):
        self.storage = StorageWeakRef(tensor.untyped_storage())
        self.shape = tensor.storage_offset(), tensor.shape, tensor.stride()
        self.dtype = tensor.dtype

    def tensor(self):
        assert not self.storage.expired(), "a step's tensor was freed, or made anew elsewhere"
        storage = torch.UntypedStorage._new_with_weak_ptr(self.storage.cdata)
        return torch.empty(0, dtype=self.dtype).set_(storage, *self.shape)


class Tape(TorchDispatchMode):
    """The operations of what runs within it. Tensors that they make are known by their numbers."""

    def __init__(self):
        super().__init__()
        self.played, self.numbers, self.alive = [], {}, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().partition("::")[2].partition(".")[0]
        assert name not in WAITS, f"{name}: the host waits for the device, or sends it something"
        known = tree_map(self.known, (args, kwargs or {}))
        made = function(*args, **(kwargs or {}))
        outputs = []
        for tensor in tree_leaves(made):
            self.alive.append(tensor)
            self.numbers[id(tensor)] = len(self.alive)
            outputs.append(len(self.alive))
        self.played.append((function, *known, outputs))
        return made

    def known(self, x):
        if not isinstance(x, torch.Tensor):
            return x
        self.alive.append(x)
        number = self.numbers.get(id(x))
        return Outside(x) if number is None else Made(number)

    def replay(self, results):
        now = {}

        def current(x):
            return x.tensor() if isinstance(x, Outside) else now[x.number] if isinstance(x, Made) else x

        for function, args, kwargs, outputs in self.played:
            made = function(*tree_map(current, args), **tree_map(current, kwargs))
            now |= dict(zip(outputs, tree_leaves(made), strict=True))
        return tuple(map(current, results))


@dataclass(frozen=True)
class Made:
    number: int


class Recorder:
    """In the place of `graph.record`; what is recorded is also done, so that it counts as played once."""

    def __init__(self):
        self.recorded = self.replayed = 0

    def __call__(self, work, pool):
        self.recorded += 1
        with Tape() as tape:
            first = [work()]
        results = list(map(tape.known, first[0]))
        tape.alive.clear()

        def replay():
            if first:
                return first.pop()
            self.replayed += 1
            return tape.replay(results)

        return replay, pool


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("random")
    write_checkpoint(folder)
    return load(folder)


@pytest.fixture
def recorder(monkeypatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(graph, "record", recorder)
    return recorder


def recorded(monkeypatch, model, processor, plan, **options):
    with monkeypatch.context() as patch:
        patch.setattr(graph, "RECORDED", "cpu")
        patch.setattr(graph, "AHEAD", 3)
        patch.setattr(cache, "SLACK", 10**6)  # a GPU reads all columns, and so steps stay the same for long
        return decode(model, processor, plan, **options)[0]


@pytest.mark.parametrize("kind", ["flat", "modules"])
@pytest.mark.parametrize(
    ("max_num_seqs", "options"),
    [
        (7, {"temperature": 0.0, "repetition_penalty": 1.2}),
        (12, {"temperature": 1.0, "num_samples": 3, "seed": 5}),
    ],
    ids=["greedy", "sampled"],
)
def test_answers_are_those_of_steps_one_by_one(pair, recorder, monkeypatch, kind, max_num_seqs, options):
    model, processor = pair
    if kind == "modules":
        monkeypatch.setattr(cache, "MOST_COPIED", 0)
    plan = prepare(processor, CONVERSATIONS[:8], max_new_tokens=48, max_num_seqs=max_num_seqs, **options)
    plan = replace(plan, limits=[48 - 7 * row % 31 for row in range(len(plan.limits))])
    expected, _ = decode(model, processor, plan)
    stops = frozenset(row.token_ids[9] for row in expected[::3])  # some rows stop between two looks
    plan = replace(plan, stop_ids=stops)
    expected, _ = decode(model, processor, plan)
    assert len({row.completion_tokens for row in expected}) > 4
    told = []
    actual = recorded(monkeypatch, model, processor, plan, on_done=lambda number, _: told.append(number))
    assert sorted(told) == list(range(len(expected)))
    for mine, theirs in zip(actual, expected, strict=True):
        assert (mine.token_ids, mine.text, mine.finish_reason) == (
            theirs.token_ids,
            theirs.text,
            theirs.finish_reason,
        )
        # float32 sums in another order, for steps are wider than the rows
        assert mine.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)
    assert recorder.recorded > 2
    assert recorder.replayed > 2 * recorder.recorded


def test_with_the_kernels_of_a_gpu_too(pair, recorder, monkeypatch):
    """Interpreted, in the steps alone: the prompt is read by torch."""
    pytest.importorskip("triton")
    monkeypatch.setattr(cache, "check_impl", lambda impl, device: "triton")
    monkeypatch.setattr(cache, "decode_attention", partial(cache.decode_attention, impl="triton"))
    model, talk = small_model(), [{"role": "user", "content": "How many?"}]
    plan = prepare(pair[1], [talk], max_new_tokens=9, temperature=1.0)
    (expected,), _ = decode(model, pair[1], plan)
    (actual,) = recorded(monkeypatch, model, pair[1], plan)
    assert actual == expected
    assert recorder.replayed > 2


def test_text_is_streamed_and_a_chat_goes_on(pair, recorder, monkeypatch):
    model, processor = pair
    monkeypatch.setattr(graph, "RECORDED", "cpu")
    options = {"max_new_tokens": 40, "temperature": 1.2, "seed": 2}
    chat = Chat(model, processor, **options)
    for question in ("How many?", "And red ones?", "Why?"):
        pieces = []
        completion, _ = chat.ask(question, pieces.append)
        assert "".join(pieces) == completion.text
        with monkeypatch.context() as patch:
            patch.setattr(graph, "RECORDED", "nothing")
            whole = generate(model, processor, chat.messages[:-1], **options)
        assert completion.token_ids == whole.token_ids
    assert recorder.recorded > 2


def test_widths_hold_their_rows_and_no_step_is_much_wider():
    widths = [graph.width(rows) for rows in range(1, 200)]
    assert sorted(set(widths)) == [1, 2, 4, 8, 16, 32, 64, 96, 128, 160, 192, 224]
    assert all(rows <= wide < max(2 * rows, rows + 32) for rows, wide in enumerate(widths, 1))


def test_what_looks_inside_a_model_is_not_recorded_but_an_adapter_is(pair):
    model, _ = pair
    assert graph.can_record(model)
    linear = model.model.layers[0].self_attn.q_proj
    for register in (linear.register_forward_hook, linear.register_forward_pre_hook):
        handle = register(lambda *_: None)
        assert not graph.can_record(model)
        handle.remove()
    handle = linear.register_forward_hook(Lora(base="its base"))
    assert graph.can_record(model)
    handle.remove()


def test_what_is_behind_the_rows_stays_within_bounds(pair, recorder, monkeypatch):
    """A row with a long prompt leaves soon; the step stays as wide for the others, which go on for long."""
    model, processor = pair
    texts = ["One?", "Two?", "Three?", "red circle " * 30]
    plan = prepare(processor, [[{"role": "user", "content": text}] for text in texts], max_new_tokens=60)
    plan = replace(plan, limits=[60, 60, 60, 3], stop_ids=frozenset())
    assert len(plan.prompts[3]) + 40 > max(map(len, plan.prompts[:3])) + 60
    expected, _ = decode(model, processor, plan)
    actual = recorded(monkeypatch, model, processor, plan)
    assert [row.token_ids for row in actual] == [row.token_ids for row in expected]
