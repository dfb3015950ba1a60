"""One model held by two and four processes together against one that is whole: the same tokens, the same
log-probs, and in each process its share of the weights alone.

Each number of processes is started once (tests/parallel_worker.py), on gloo, and leaves its results for the
tests here.
"""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import generate
import r1ov
from r1ov.common.processes import World
from r1ov.errors import UserError
from r1ov.evaluate.evaluate import evaluate
from r1ov.evaluate.item import read_predictions
from r1ov.folder import pretrained
from r1ov.folder.pretrained import read_config, read_processor, resolve
from r1ov.folder.weights import init_weights
from r1ov.model.config import TextConfig
from r1ov.model.lora import Lora, attach, drawn, targets
from r1ov.model.model import Qwen2_5_VL
from r1ov.model.parallel import Context, Split, heads
from r1ov.train import sft
from tests import grpo_worker as grpo
from tests import parallel_worker as worker
from tests import warm

ROOT = Path(__file__).parent.parent
SHAPES = {  # query heads, key heads, columns of an MLP, tied
    "even": (8, 4, 64, True),
    "uneven": (6, 3, 50, False),
    "two heads": (2, 1, 50, True),
    "few": (8, 2, 50, False),
}
sizes = pytest.mark.parametrize("size", [2, 4])


def checkpoint(folder: Path, name: str) -> None:
    """Random weights, biases and norms too. Of heads, columns and words four is no divisor of all."""
    count, keys, columns, tied = SHAPES[name]
    config = json.loads((resolve("r1ov-tiny") / "config.json").read_text())
    config |= {"hidden_size": 8 * count, "intermediate_size": columns, "num_hidden_layers": 2}
    config |= {"num_attention_heads": count, "num_key_value_heads": keys, "tie_word_embeddings": tied}
    config |= {"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}, "max_position_embeddings": 512}
    config["vision_config"] |= {"hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "depth": 2}
    config["vision_config"] |= {"out_hidden_size": 8 * count, "fullatt_block_indexes": [1]}
    (folder / "config.json").write_text(json.dumps(config))
    model = Qwen2_5_VL(read_config(folder / "config.json"))
    generator = torch.Generator().manual_seed(count + keys)
    init_weights(model, generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    pretrained.save(model, read_processor(resolve("r1ov-tiny")), folder / name, torch.float32)
    if name == "few":  # a reference near it
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.01 * torch.randn(parameter.shape, generator=generator)
        pretrained.save(model, read_processor(resolve("r1ov-tiny")), folder / "few, moved", torch.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parallel")
    for name in SHAPES:
        checkpoint(folder, name)
    model, processor = r1ov.load(folder / "uneven")
    values = drawn(model, targets(model, "all-linear", with_vision=True), r=3)
    generator = torch.Generator().manual_seed(0)
    attach(
        model,
        {name: torch.randn(value.shape, generator=generator) / 20 for name, value in values.items()},
        Lora(str(folder / "uneven")),
    )
    r1ov.save(model, processor, folder / "adapted", torch.float32)
    return folder


@pytest.fixture(scope="module")
def results(folder):
    """size -> the results of each of so many processes."""
    sizes = [size for size, work in worker.WORK.items() for _ in work]
    words = [warm.python(), "-m", "tests.ranks", "parallel_worker", str(folder), *sizes]
    run = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-4000:]
    return {
        size: [
            torch.load(folder / f"check {rank} of {size}", weights_only=False)
            | torch.load(folder / f"train {rank} of {size}", weights_only=False)
            for rank in range(size)
        ]
        for size in (2, 4)
    }


@sizes
@pytest.mark.parametrize("name", ["even", "uneven", "adapted"])
def test_tokens_are_those_of_one_process_and_so_are_their_logprobs(results, folder, size, name):
    expected = worker.answers(*r1ov.load(folder / name))
    for result in results[size]:
        for case, completions in expected.items():
            mine = result[name]["answers"][case]
            assert [one.token_ids for one in mine] == [one.token_ids for one in completions], case
            for one, other in zip(mine, completions, strict=True):
                assert one.logprobs == pytest.approx(
                    other.logprobs, abs=1e-5
                )  # float32 sums in another order
    assert len({tuple(one.token_ids) for one in expected["sampled"]}) == 12
    processor, patches = read_processor(folder / name), [result[name]["patches"] for result in results[size]]
    grids = [processor(messages).get("image_grid_thw") for messages in worker.CONVERSATIONS]
    each = sum(int(grid.prod(1).sum()) for grid in grids if grid is not None)
    assert sum(patches) == len(worker.CASES) * each  # each image is encoded once


@sizes
def test_top_k_and_top_p_choose_as_one_process_and_no_process_has_all_rows_words(results, size):
    """To the bit, ties too: a row's words are put together in one process, which does what one alone does."""
    vocab_size = read_config(resolve("r1ov-tiny") / "config.json").text.vocab_size
    assert vocab_size % 4
    expected, _ = worker.chosen(vocab_size, None)
    for result in results[size]:
        made, most = result["chosen"]
        assert all(torch.equal(one, other) for one, other in zip(made, expected, strict=True))
        assert most <= 1


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_images_are_dealt_out_whole_and_evenly(size):
    """One, then more images than processes, of all sizes; one as large as all others together, and none."""
    visual, generator = r1ov.load("r1ov-tiny")[0].visual, torch.Generator().manual_seed(size)
    for sides in ([(4, 6)], [(2, 2), (8, 6), (4, 2), (6, 6), (2, 10)], [(2, 2), (2, 2), (10, 8)]):
        grids, loads = torch.tensor([(1, *side) for side in sides]), []
        pixels = torch.randn(int(grids.prod(1).sum()), visual.config.patch_dim, generator=generator)
        hook = visual.patch_embed.register_forward_pre_hook(lambda _, x, loads=loads: loads.append(len(x[0])))
        with torch.no_grad():
            worlds = [SimpleNamespace(world=World(rank, size), sum=lambda x: x) for rank in range(size)]
            parts = [Split.see(one, visual, pixels, grids) for one in worlds]
            hook.remove()
            assert torch.allclose(sum(parts), visual(pixels, grids), atol=1e-5)
        assert sum(loads) == len(pixels)
        assert max(loads) <= len(pixels) / size + int(grids.prod(1).max())


@sizes
@pytest.mark.parametrize("name", ["even", "uneven"])
def test_a_process_holds_its_share_and_reads_no_more_than_a_tensor_beside_it(results, folder, size, name):
    """Held: the bytes of a process's parameters. Its share is its part of what is split, and all of the norms
    and of the vision encoder, which is whole in each process, because images are what it shares out. Largest:
    the most memory that any one operation took while the model was loaded, no more than a tensor of the file.
    """
    model = r1ov.load(folder / name)[0]
    split = [one for name, one in model.model.named_parameters() if one.ndim == 2 or "bias" in name]
    split += [] if model.config.tie_word_embeddings else [model.lm_head.weight]
    whole = sum(one.nbytes for one in model.parameters())
    of_split, largest = sum(one.nbytes for one in split), max(one.nbytes for one in model.parameters())
    held = [result[name]["held"] for result in results[size]]
    # of three groups of heads one process of two has two, and one of four has one
    share = 1 / size if name == "even" else {2: 2 / 3, 4: 1 / 3}[size]
    row = 4 * model.config.text.hidden_size
    for own in held:
        assert own <= whole - of_split + of_split * share + row
    assert max(result[name]["largest"] for result in results[size]) <= largest
    assert sum(held) >= whole


@sizes
def test_what_cannot_be_split_is_refused_in_one_line(results, size):
    for result in results[size]:
        count, quantized, few = result["refused"]
        assert f"--tensor-parallel is {size + 1}; it must divide the number of processes" in count
        assert "it goes without --quantize" in quantized
        assert ("be at most the model's 2 heads" in few) == (size == 4)


def test_generate_answers_once_and_as_one_process_does(results, folder, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["generate.py", *worker.command(folder)])
    generate.main()
    alone = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    together = [json.loads(line) for line in (folder / "generate 0 of 2").read_text().splitlines()]
    for one, other in zip(together, alone, strict=True):
        assert one.pop("logprobs") == pytest.approx(other.pop("logprobs"), abs=1e-5)
        assert one == other
    assert (folder / "generate 1 of 2").read_text() == ""


def test_evaluate_gives_each_group_other_questions_and_writes_each_answer_once(results, folder, tmp_path):
    evaluate(worker.evaluation(folder, tmp_path / "alone", 1))
    alone, together = (
        read_predictions(path / "predictions.jsonl") for path in (tmp_path / "alone", folder / "evaluated")
    )
    assert together == alone
    assert len(alone) == 5


def test_a_rank_that_dies_ends_the_others_in_one_line(results, folder):
    assert (folder / "killed 1 of 2").read_text() == "status -9\n"
    line, status = (folder / "killed 0 of 2").read_text().splitlines()
    assert line.startswith("error: another process has ended: ")
    assert status == "status 1"


def assert_same(actual, expected):
    """Each gradient within 1e-5 of its largest number; sums in another order cost float32 a few 1e-7."""
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert (actual[name] - value).abs().max() <= 1e-5 * value.abs().max(), name


@pytest.mark.parametrize(("size", "share"), [(2, 2), (4, 2), (4, 4)])
def test_a_pack_shared_by_processes_has_the_loss_and_gradients_of_one(results, folder, size, share):
    """Pictures, several sequences, more heads than key heads times processes and fewer, tokens that four do
    not divide."""
    expected = worker.one_step(folder / "few", None)
    for result in results[size]:
        steps = [result["steps"][share], *(result["modes"] if size == 2 else [])]
        for step in steps:
            assert step["loss"] == pytest.approx(expected["loss"], rel=1e-5)
            assert_same(step["gradients"], expected["gradients"])
    if size == 2:
        assert "must divide the model's 7 heads" in results[2][0]["heads"]


def test_a_run_shared_by_processes_logs_what_one_process_does(results, folder, tmp_path):
    sft.train(worker.learning(folder, tmp_path / "learned"))
    alone, together = (
        [json.loads(line) for line in (path / "learned" / "log.jsonl").read_text().splitlines()]
        for path in (tmp_path, folder)
    )
    assert len(alone) == len(together) == 4  # two steps, and two evaluations
    for one, other in zip(alone, together, strict=True):
        assert one.keys() == other.keys()
        for name in one.keys() - {"step_ms", "tokens_per_second", "samples_per_second"}:
            assert other[name] == pytest.approx(one[name], rel=1e-4, abs=1e-5), name
    lines, nothing = ((folder / f"sft {rank} of 2").read_text() for rank in (0, 1))
    assert sum(line.startswith("sft ") for line in lines.splitlines()) == 1
    assert nothing == ""


def test_a_label_at_the_seam_is_of_the_process_whose_token_predicts_it():
    """Worked by hand: of seven tokens the first of two processes has 0 to 3, which predict 1 to 4."""
    labels = torch.arange(10, 17)
    first, last = (Context.own(SimpleNamespace(world=World(rank, 2)), labels).tolist() for rank in (0, 1))
    assert first == [-100, 11, 12, 13, 14, -100, -100]
    assert last == [-100, -100, -100, -100, -100, 15, 16]


@pytest.mark.parametrize("name", ["tensor_parallel", "context_parallel"])
def test_a_run_alone_is_told_of_the_processes_that_it_lacks(folder, tmp_path, name):
    with pytest.raises(UserError, match=r"is 2; it must divide the number of processes, 1$"):
        sft.train(replace(worker.learning(folder, tmp_path / "run"), **{name: 2}))


@pytest.fixture(scope="module")
def alone(folder):
    return worker.rollout_and_update(folder / "few", 1, 1, sharded=False)


@pytest.mark.parametrize(("size", "shape"), [(2, (2, 1)), (4, (2, 2)), (4, (4, 1)), (4, (1, 4))])
def test_a_rollout_and_its_update_are_those_of_one_process(results, alone, size, shape):
    """shape: processes that sample together, and that learn from a pack together."""
    done = [result["updates"][shape] for result in results[size]]
    answers = {number: ids for one in done for number, ids in one["answers"].items()}
    assert answers == alone["answers"]
    assert sum(len(one["answers"]) for one in done) == 5
    for one in done:
        for loss in grpo.LOSSES:
            assert_same(one[loss]["gradients"], alone[loss]["gradients"])
            metrics, expected = one[loss]["metrics"], alone[loss]["metrics"]
            assert metrics == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_weights_go_from_shards_to_parts_tensor_by_tensor(results, folder):
    model = r1ov.load(folder / "few")[0]
    whole, largest = (of(one.nbytes for one in model.parameters()) for of in (sum, max))
    vision = sum(one.nbytes for one in model.visual.parameters())
    for result in results[4]:
        held = result["updates"][4, 1]["held"]
        assert held <= vision + (whole - vision) * 0.27  # a copied key head, rounding, norms
        # of shards the last has padding, up to three rows
        assert result["updates"][4, 1]["largest"] <= largest + 3 * 4 * model.config.text.hidden_size


@pytest.mark.parametrize(
    ("count", "keys"), [(8, 4), (6, 3), (6, 2), (28, 4), (16, 2), (40, 8), (64, 8), (5, 5)]
)
def test_every_query_head_is_dealt_once_and_has_its_key_head(count, keys):
    config = TextConfig(num_attention_heads=count, num_key_value_heads=keys)
    for size in range(1, count + 1):
        dim = config.head_dim
        dealt = [heads(config, rank, size) for rank in range(size)]
        dealt = [[range(one.start // dim, one.stop // dim) for one in both] for both in dealt]
        assert [head for queries, _ in dealt for head in queries] == list(range(count))
        for queries, own in dealt:
            assert queries
            assert len(queries) % len(own) == 0
            mine = [own[place * len(own) // len(queries)] for place in range(len(queries))]
            assert mine == [head * keys // count for head in queries]
