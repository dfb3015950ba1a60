"""Sharded training against one process on a plain model: 1, 2, 3 and 4 processes, and groups of them, on
gloo.

Each number of processes is started once (tests/sharding_worker.py), runs all checks, and leaves its results
for the tests here.
"""

import json
import math
import subprocess
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import CheckpointPolicy

from r1ov.common.processes import World
from r1ov.errors import UserError
from r1ov.folder import pretrained
from r1ov.folder.pretrained import read_config, read_processor, resolve
from r1ov.folder.weights import init_weights
from r1ov.model.model import Qwen2_5_VL
from r1ov.train.optim import clip_grad_norm
from r1ov.train.run.sharding import KEPT, _policy, checkpoint_activations, freeze, make_mesh, replica
from tests import sharding_worker as worker
from tests import warm

ROOT = Path(__file__).parent.parent
LAYOUTS = [(size, name) for size, layouts in worker.LAYOUTS.items() for name in layouts]
layouts = pytest.mark.parametrize(("size", "name"), LAYOUTS, ids=[f"{size} {name}" for size, name in LAYOUTS])
sizes = pytest.mark.parametrize("size", worker.LAYOUTS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint with sizes that two, three and four do not all divide (nine rows over four processes: 3,
    3, 3, none), random whole.
    """
    folder = tmp_path_factory.mktemp("sharding")
    config = json.loads((resolve("r1ov-tiny") / "config.json").read_text())
    config |= {
        "hidden_size": 48,
        "intermediate_size": 50,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
    }
    config |= {"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}, "tie_word_embeddings": False}
    config["vision_config"] |= {
        "hidden_size": 32,
        "intermediate_size": 9,
        "num_heads": 2,
        "out_hidden_size": 48,
        "depth": 3,
    }
    config["vision_config"] |= {"fullatt_block_indexes": [1]}
    (folder / "config.json").write_text(json.dumps(config))
    model = Qwen2_5_VL(read_config(folder / "config.json"))
    generator = torch.Generator().manual_seed(0)
    init_weights(model, generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    pretrained.save(
        model,
        read_processor(resolve("r1ov-tiny")),
        folder / "model",
        torch.float32,
        worker.SHARD_BYTES,
    )
    return folder


@pytest.fixture(scope="module")
def results(folder):
    """size -> the results of each of so many processes; they are started when first asked for. One is this
    one.
    """
    done = {}

    def of(size):
        if size not in done and size == 1:
            # a mesh needs a group; `joined` leaves one process alone
            dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
            done[1] = [worker.check(folder, World())]
            dist.destroy_process_group()
        elif size not in done:
            several = [str(size) for size in worker.LAYOUTS if size > 1]
            command = [warm.python(), "-m", "tests.ranks", "sharding_worker", str(folder), *several]
            run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
            assert run.returncode == 0, run.stderr[-4000:]
            for size_of in map(int, several):
                done[size_of] = torch.load(folder / f"results-{size_of}.pt", weights_only=False)
                assert len(done[size_of]) == size_of
        return done[size]

    return of


@pytest.fixture(scope="module")
def plain(folder):
    return partial(worker.built, folder, World(), None)


def assert_same(actual, expected, bound=1e-5):
    """Each tensor within `bound` of its largest number; sums in another order cost float32 a few 1e-7."""
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert (actual[name] - value).abs().max() <= bound * value.abs().max(), name


def assert_same_step(actual, expected):
    assert actual["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert_same(actual["gradients"], expected["gradients"])


@layouts
@pytest.mark.parametrize(("check", "step"), [("step", 0), ("packs", 0), ("empty", 1)])
def test_loss_and_every_gradient_of_a_step_equal_those_of_one_process(
    plain, results, size, name, check, step
):
    expected = worker.one_step(plain(), World(), step)
    for result in results(size):
        assert_same_step(result[name][check], expected)


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_computing_activations_again_changes_nothing(plain, results, mode):
    expected = worker.one_step(plain(), World())
    assert_same_step(results(2)[0]["modes"][mode], expected)
    again = worker.one_step(plain(mode=mode), World())
    assert again["loss"] == expected["loss"]
    assert all(
        torch.equal(again["gradients"][name], gradient) for name, gradient in expected["gradients"].items()
    )


@pytest.mark.parametrize("frozen", worker.FREEZES, ids=",".join)
def test_frozen_parts_have_no_gradient_and_the_others_the_same(plain, results, frozen):
    full = worker.one_step(plain(), World())
    starts = {"vision": "visual.", "merger": "visual.merger.", "language": ("model.", "lm_head.")}
    learning = {
        name: gradient
        for name, gradient in full["gradients"].items()
        if not any(
            name.startswith(starts[part]) and (part != "vision" or "merger" not in name) for part in frozen
        )
    }
    for result in (results(2)[0]["freeze"][frozen], worker.one_step(plain(frozen), World())):
        assert_same_step(result, {"loss": full["loss"], "gradients": learning})


def test_a_step_without_any_picture_needs_none(plain, results, folder):
    model = plain()
    rows = [one for one in worker.steps(model.config)[0] if not len(one["image_grid_thw"])]
    expected = {"loss": worker.backward(model, rows, World()), "gradients": worker.gradients(model)}
    for size in (1, 2):
        assert_same_step(results(size)[0]["text only"], expected)
        assert_same_step(results(size)[0]["after text only"], worker.one_step(plain(), World()))


@layouts
@pytest.mark.parametrize("optim", ["adamw", "muon"])
def test_three_steps_of_training_leave_the_weights_that_one_process_leaves(plain, results, size, name, optim):
    expected = worker.trained(plain(), World(), optim)
    assert all(norm > 0.5 for norm in expected["norms"])  # so that they were clipped
    for result in results(size):
        actual = result[name][optim]
        assert actual["norms"] == results(size)[0][name][optim]["norms"]  # to the last bit
        assert actual["norms"] == pytest.approx(expected["norms"], rel=1e-5)
        for key, value in expected["weights"].items():
            # As a whole, for AdamW divides by the gradient's own size: an element whose gradient is all but
            # nothing moves by its rounding, up to the learning rate of 1e-3. (Seen: 4e-6 to 1.4e-5. The
            # gradients themselves are held to 1e-5 above.)
            assert (actual["weights"][key] - value).norm() <= 1e-4 * value.norm(), key


@layouts
def test_what_is_not_finite_in_one_process_is_not_finite_in_all(results, size, name):
    assert [result[name]["not finite"] for result in results(size)] == [math.inf] * size


def test_clipping_is_torchs(plain):
    ours, theirs = plain(), plain()
    for max_norm in (0.5, 1e6):
        for model in (ours, theirs):
            model.zero_grad()
            worker.backward(model, worker.steps(model.config)[0], World())
        norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), max_norm)
        assert clip_grad_norm(ours.parameters(), max_norm) == pytest.approx(norm.item(), rel=1e-6)
        assert_same(worker.gradients(ours), worker.gradients(theirs))  # theirs adds 1e-6 to the length
    assert clip_grad_norm([], 1.0) == 0.0


@layouts
def test_each_process_reads_its_own_rows_and_all_of_them_are_the_files(results, folder, size, name):
    stored = {}
    for path in (folder / "model").glob("*.safetensors"):
        stored |= load_file(path)
    group = size // worker.LAYOUTS[size][name]
    held = sum(-(-tensor.shape[0] // group) * tensor[0].nbytes for tensor in stored.values())
    largest = max(-(-tensor.shape[0] // group) * tensor[0].nbytes for tensor in stored.values())
    for result in results(size):
        loading = result[name]["loading"]
        assert loading["weights"].keys() == stored.keys()
        assert all(torch.equal(loading["weights"][key], tensor) for key, tensor in stored.items())
        assert loading["held"] == held  # of an uneven share the last rows are padding
        assert loading["largest"] <= largest


@sizes
def test_weights_from_scratch_do_not_depend_on_the_number_of_processes(results, folder, size):
    config = read_config(folder / "config.json")
    model = Qwen2_5_VL(config)
    generator = torch.Generator().manual_seed(3)
    init_weights(model, generator)
    for result in results(size):
        assert all(
            torch.equal(result["drawn"][name], parameter) for name, parameter in model.named_parameters()
        )


@layouts
def test_a_sharded_model_is_saved_byte_for_byte_as_a_plain_one(plain, results, folder, size, name):
    errors = [result[name]["save"] for result in results(size)]
    worker.saved(plain(), folder / "saved-plain")
    for kind in ("float32", "bfloat16"):
        ours, theirs = folder / f"saved-{size}-{name}" / kind, folder / "saved-plain" / kind
        files = sorted(path.name for path in theirs.iterdir())
        assert files == sorted(path.name for path in ours.iterdir())
        assert ("model-00002-of-00009.safetensors" in files or "model.safetensors.index.json" in files) == (
            kind == "float32"
        )
        assert all((ours / file).read_bytes() == (theirs / file).read_bytes() for file in files)
    assert all("the model cannot be saved there" in error and "\n" not in error for error in errors)


@layouts
def test_a_replica_answers_as_the_plain_model_does(plain, results, size, name):
    model = plain()
    answers = [worker.greedy(model)]
    worker.trained(model, World(), "adamw")
    answers.append(worker.greedy(model))
    assert answers[0] != answers[1]
    for result in results(size):
        assert result[name]["adamw"]["answers"] == answers
        assert result[name]["adamw"]["is plain and equal"]


def test_a_replica_of_a_plain_model_is_a_copy_in_the_dtype_asked_for(plain):
    model = plain()
    copy = replica(model, torch.bfloat16)
    assert {parameter.dtype for parameter in copy.parameters()} == {torch.bfloat16}
    assert not any(parameter.requires_grad for parameter in copy.parameters())
    copy.model.norm.weight.zero_()
    assert model.model.norm.weight.abs().max() > 0


def test_bfloat16_is_computed_in_but_neither_kept_nor_summed_in(plain, results):
    expected, result = worker.one_step(plain(), World()), results(2)[0]["bfloat16"]
    assert result["master"] == result["reduced"] == {torch.float32}
    assert result["loss"] == pytest.approx(expected["loss"], rel=2e-2)  # 8 bits
    assert result["loss"] != pytest.approx(expected["loss"], rel=1e-6)


def test_selective_checkpointing_knows_the_operations_of_both_attentions():
    """Their names, as torch gives them: one that is renamed would be computed again without a word."""
    import kernels.triton.attention  # noqa: F401  registers its operation

    for name in KEPT:
        room, operation = name.split("::")
        overload = getattr(getattr(torch.ops, room), operation).default
        assert _policy(None, overload, again=()) == CheckpointPolicy.MUST_SAVE
    assert _policy(None, torch.ops.aten.mul.Tensor, again=()) == CheckpointPolicy.PREFER_RECOMPUTE


class Products(TorchDispatchMode):
    """Counts the matrix products that are really computed."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function.name() in ("aten::mm", "aten::addmm")
        return function(*args, **(kwargs or {}))


def test_the_modes_differ_in_what_they_keep_and_in_what_they_compute_again(plain):
    """Bytes kept from forward to backward, and matrix products in the backward pass."""
    kept, products = {}, {}
    for mode in ("off", "selective", "full"):
        model = plain(mode=mode)
        names = [name for name, _ in model.named_parameters()]
        rows = worker.steps(model.config)[0]
        batch = worker.pack(rows)
        batch.pop("labels")
        own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        storages = {}

        def pack_hook(tensor, storages=storages, own=own):
            if tensor.untyped_storage().data_ptr() not in own:
                storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack_hook, lambda tensor: tensor):
            loss = model(**batch, then=lambda hidden, weight: hidden.square().sum())
        with Products() as counter:
            loss.backward()
        kept[mode], products[mode] = sum(storages.values()), counter.count
        assert names == [name for name, _ in model.named_parameters()]
    assert kept["full"] < kept["off"]
    again = 2 * len(model.visual.blocks)  # gate and up of the encoder's MLPs
    assert products["off"] + again == products["selective"] < products["full"]


def test_wrong_parts_and_groups_are_refused_in_one_line(plain):
    with pytest.raises(
        UserError, match="--freeze: there is no part 'head'; the parts are vision, merger, language"
    ):
        freeze(plain(), ["vision", "head"])
    with pytest.raises(UserError, match="leaves nothing to train"):
        freeze(plain(), ["vision", "merger", "language"])
    for replicate in (0, 3):
        with pytest.raises(
            UserError, match=f"--replicate is {replicate}; it must divide the number of processes, 4"
        ):
            make_mesh(World(0, 4), torch.device("cpu"), replicate)
    with pytest.raises(ValueError, match="mode is 'some'"):
        checkpoint_activations(plain(), "some")
