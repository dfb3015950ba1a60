"""r1ov.data.pack: random lengths, the best packing by trying all, and the cost as torch counts it."""

import itertools
import random
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from r1ov.data.pack import pack, sequence_cost
from r1ov.data.playground import messages, sample
from r1ov.folder.pretrained import read_config, read_processor, resolve
from r1ov.folder.weights import init_weights
from r1ov.model.model import Qwen2_5_VL
from r1ov.train.loss import sft_loss

CONFIG = read_config(resolve("r1ov-tiny") / "config.json")


def case(seed: int) -> tuple[list[int], list[int], int, int]:
    """Lengths, costs, budget and number of ranks, of many kinds: long tails, equal lengths, few or no
    sequences, costs that grow faster.
    """
    rng = random.Random(seed)
    max_length = rng.choice((1, 7, 100, 1000, 8192))
    kind = rng.choice(("uniform", "long tail", "equal", "short"))
    number = rng.choice((0, 1, 2, 5, 30, 128, 300))
    lengths = []
    for _ in range(number):
        value = {
            "uniform": rng.uniform(1, max_length),
            "long tail": max_length * 0.05 * rng.lognormvariate(0, 1),
            "equal": max_length / 3,
            "short": rng.uniform(1, 0.1 * max_length),
        }[kind]
        lengths.append(min(max_length, max(1, int(value))))
    costs = [length * (3000 + length) if seed % 3 else rng.randrange(1000) for length in lengths]
    return lengths, costs, max_length, rng.choice((1, 2, 3, 4, 8, 64))


def fewest(lengths: list[int], max_length: int, ranks: int) -> int:
    """No packing has a smaller k: the tokens must fit, and two sequences above half the budget cannot share a
    pack.
    """
    halves = sum(2 * length > max_length for length in lengths)
    return max(-(-sum(lengths) // (max_length * ranks)), -(-halves // ranks))


@pytest.mark.parametrize("block", range(10))
def test_every_sequence_is_in_one_pack_and_none_is_over_the_budget(block):
    for seed in range(40 * block, 40 * block + 40):
        lengths, costs, max_length, ranks = case(seed)
        before = (list(lengths), list(costs))
        packs = pack(lengths, costs, max_length, ranks)
        assert sorted(itertools.chain(*packs)) == list(range(len(lengths)))
        assert all(sum(lengths[index] for index in members) <= max_length for members in packs)
        assert all(members == sorted(members) for members in packs)
        totals = [sum(costs[index] for index in members) for members in packs]
        assert totals == sorted(totals, reverse=True)
        assert len(packs) % ranks == 0
        assert bool(packs) == bool(lengths)
        assert packs == pack(tuple(lengths), costs, max_length, ranks)
        assert (lengths, costs) == before
        if set(lengths) != {max_length // 3}:  # thirds that leave a rest fit less well than the bound knows
            assert (
                len(packs) // ranks <= 1.03 * fewest(lengths, max_length, ranks) + 1
            )  # the bound itself is not always reached


def test_packs_are_as_few_as_trying_all_of_them_gives_or_one_more():
    for seed in range(60):
        rng = random.Random(seed)
        lengths = [rng.randint(1, 10) for _ in range(7)]
        best = next(
            bins
            for bins in itertools.count(1)
            if any(
                fits(chosen, lengths, 10, bins)
                for chosen in itertools.product(range(bins), repeat=len(lengths))
            )
        )
        found = len(pack(lengths, lengths, 10))
        assert best <= found <= best + 1
        # Equal costs and lengths: best fit decreasing, within 11/9 of the best and one more.
        assert found <= 11 / 9 * best + 1


def fits(chosen: tuple[int, ...], lengths: list[int], max_length: int, bins: int) -> bool:
    return max(loads(chosen, lengths, bins)) <= max_length


def loads(chosen: tuple[int, ...], costs: list[int], bins: int) -> list[int]:
    totals = [0] * bins
    for pack_number, cost in zip(chosen, costs, strict=True):
        totals[pack_number] += cost
    return totals


@pytest.mark.parametrize("ranks", [2, 3])
def test_without_a_tight_budget_the_costliest_pack_is_within_grahams_bound_of_the_best(ranks):
    worst = 0.0
    for seed in range(25):
        rng = random.Random(seed)
        costs = [rng.randint(1, 30) for _ in range(8)]
        packs = pack([1] * 8, costs, 100, ranks)
        best = min(max(loads(chosen, costs, ranks)) for chosen in itertools.product(range(ranks), repeat=8))
        worst = max(worst, sum(costs[index] for index in packs[0]) / best)
    assert 1 < worst <= 4 / 3 - 1 / (3 * ranks)


@pytest.mark.parametrize("ranks", [2, 8, 64])
def test_many_sequences_are_balanced_within_a_few_percent(ranks):
    rng = random.Random(ranks)
    lengths = [
        min(8192, int(rng.lognormvariate(6.5, 0.6))) for _ in range(16 * ranks)
    ]  # median 665 tokens, as long thoughts have
    costs = [length * (100_000 + length) for length in lengths]
    packs = pack(lengths, costs, 8192, ranks)
    assert len(packs) == ranks * fewest(lengths, 8192, ranks)
    for begin in range(0, len(packs), ranks):  # those trained side by side
        totals = [sum(costs[index] for index in members) for members in packs[begin : begin + ranks]]
        assert max(totals) <= 1.05 * sum(totals) / ranks


def test_a_small_case_is_dealt_as_by_hand():
    # 5 to the first pack, 4 to the second; then 3 to the second (7), 3 to the first (8), 3 to the second
    # (10).
    assert pack([1] * 5, [5, 4, 3, 3, 3], 100, 2) == [[1, 2, 4], [0, 3]]
    # By cost the short ones come first and are spread over both packs, and the long one finds no room: so the
    # second way.
    assert pack([2, 2, 2, 2, 8], [5, 5, 5, 5, 1], 8, 2) == [[0, 1, 2, 3], [4]]
    assert pack([3, 3, 3], [1, 1, 1], 8, 1) == [[0, 2], [1]]
    assert pack([3], [1], 8, 4) == [[0], [], [], []]
    assert pack([], [], 8, 4) == []
    with pytest.raises(ValueError, match="sequence 1 has 9 tokens, but a pack holds 8"):
        pack([3, 9], [1, 1], 8, 4)


def test_the_cost_of_the_linear_layers_is_what_torch_counts():
    processor = read_processor(resolve("r1ov-tiny"))
    batch = processor(messages(sample("train", 1)), return_labels=True)
    labels, grids = batch.pop("labels"), batch["image_grid_thw"].tolist()
    trained, tokens, patches = int((labels != -100).sum()), len(labels), len(batch["pixel_values"])
    model = Qwen2_5_VL(CONFIG)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        sft_loss(model.hidden_states(**batch), model.head_weight, labels, 1)
    counted = counter.get_flop_counts()["Global"]
    linear = sum(flops for operation, flops in counted.items() if str(operation) in ("aten.mm", "aten.addmm"))
    # Attention by hand: two products of (T, D) and (D, T) a head, half of them hidden; 112 x 112 pixels are 8
    # x 8 patches, windows 4 x 4.
    text, vision = CONFIG.text, CONFIG.vision
    num_full = len(vision.fullatt_block_indexes)
    assert (patches, vision.window_size // vision.patch_size) == (64, 4)
    attention = 4 * tokens * tokens // 2 * text.head_dim * text.num_attention_heads * text.num_hidden_layers
    attention += 4 * 64 * (64 * num_full + 16 * (vision.depth - num_full)) * vision.hidden_size
    assert sequence_cost(CONFIG, tokens, trained, grids) == 3 * (linear + attention)


def test_a_batch_with_labels_gives_the_loss_as_hugging_faces_models_do():
    processor = read_processor(resolve("r1ov-tiny"))
    batch = processor([messages(sample("train", number)) for number in (1, 2)], return_labels=True)
    model = Qwen2_5_VL(CONFIG)
    init_weights(model, torch.Generator().manual_seed(0))
    loss = model(**batch)
    loss.backward()
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    with torch.no_grad():
        expected = F.cross_entropy(model(**inputs)[:-1], batch["labels"][1:], ignore_index=-100)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_cost_of_attention_grows_with_the_square_of_text_and_of_pictures_but_in_windows_not():
    text, vision = CONFIG.text, CONFIG.vision
    heads = text.num_attention_heads * text.head_dim
    double = sequence_cost(CONFIG, 2000, 0) - 2 * sequence_cost(CONFIG, 1000, 0)
    assert double == 3 * 2 * (2000**2 - 2 * 1000**2) * heads * text.num_hidden_layers
    small, large = (
        sequence_cost(CONFIG, 1, 0, [(1, side, side)]) - sequence_cost(CONFIG, 1, 0) for side in (16, 32)
    )
    num_full = len(vision.fullatt_block_indexes)
    assert 0 < num_full < vision.depth
    assert large - 4 * small == 3 * 4 * vision.hidden_size * num_full * (1024**2 - 4 * 256**2)
    windows_only = replace(CONFIG, vision=replace(vision, fullatt_block_indexes=()))
    small, large = (sequence_cost(windows_only, 0, 0, [(1, side, side)]) for side in (16, 32))
    assert large == 4 * small
    pair = [(1, 16, 16), (1, 4, 8)]
    assert sequence_cost(CONFIG, 0, 0, pair) == sum(sequence_cost(CONFIG, 0, 0, [grid]) for grid in pair)
