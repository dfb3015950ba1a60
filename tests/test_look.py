"""Looking inside: traces and edits against transformers with eager attention, and against invariances."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from transformers.vision_utils import get_vision_window_index

import r1ov
from r1ov.data.processor import Encoded
from r1ov.engine import generate
from r1ov.errors import UserError
from r1ov.look import add, blank, load_trace, take, trace_encoded, zero
from r1ov.model.rope import mrope_positions
from tests.reference import IMAGE, SHAPES, prompt, reference_model
from tests.test_model import ours

BOUND = 1e-4  # float32 sums in another order, after 4 + 3 layers; the issue's own
GRIDS = [(1, 10, 12), (1, 4, 6)]  # do not divide into windows
IMAGE_FILE = "r1ov/data/playground/examples/counting.png"


def conversation(image=IMAGE_FILE, text="How many yellow triangles are there?"):
    parts = [{"type": "image", "image": image}, {"type": "text", "text": text}]
    return [{"role": "user", "content": parts}]


@pytest.fixture(scope="module")
def tiny():
    return r1ov.load("r1ov-tiny")


@pytest.fixture(scope="module")
def traced(tiny):
    return r1ov.trace(*tiny, conversation())


@pytest.fixture(params=SHAPES)
def both(request, tiny):
    """A random checkpoint, run by transformers with eager attention, and traced by us."""
    reference = reference_model(request.param)
    generator = torch.Generator().manual_seed(1)
    ids, pixels, grid = prompt(generator, GRIDS, [3, 2, 7])
    reference.set_attn_implementation("eager")
    softmaxes, plain = [], F.softmax

    def softmax(*args, **kwargs):
        softmaxes.append(plain(*args, **kwargs))
        return softmaxes[-1]

    F.softmax = softmax
    try:
        with torch.no_grad():
            out = reference(
                input_ids=ids[None],
                pixel_values=pixels,
                image_grid_thw=grid,
                mm_token_type_ids=(ids == IMAGE).long()[None],
                output_hidden_states=True,
            )
    finally:
        F.softmax = plain
    model = ours(reference, request.param)
    encoded = Encoded(
        input_ids=ids,
        position_ids=mrope_positions(ids, grid, IMAGE, 2),
        image_grid_thw=grid,
        pixel_values=tuple(pixels.split([t * h * w for t, h, w in GRIDS])),
    )
    processor = replace(tiny[1], config=model.config)
    return reference, out, softmaxes, trace_encoded(model, processor, encoded, prompt_length=20)


def test_patterns_residuals_and_scores_equal_transformers(both):
    reference, out, softmaxes, trace = both
    text = softmaxes[-3:]
    for layer in range(3):
        weights = trace[f"model.layers.{layer}.self_attn.pattern"]
        torch.testing.assert_close(weights, text[layer][0], atol=BOUND, rtol=0)
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:2]), atol=1e-5, rtol=0)
        residual = trace[f"model.layers.{layer}.residual"]
        scale = residual.abs().max()
        torch.testing.assert_close(residual / scale, out.hidden_states[layer][0] / scale, atol=BOUND, rtol=0)
    logprobs = out.logits[0, :-1].log_softmax(-1)
    expected = logprobs.gather(1, trace.token_ids[1:, None]).squeeze(1)
    torch.testing.assert_close(trace.logprobs[1:], expected, atol=BOUND, rtol=BOUND)
    entropy = -(logprobs.exp() * logprobs).sum(-1)
    torch.testing.assert_close(trace.entropy[1:], entropy, atol=BOUND, rtol=BOUND)
    assert trace.logprobs[0].isnan()
    torch.testing.assert_close(trace.lens(3)[:-1], logprobs, atol=BOUND, rtol=BOUND)
    torch.testing.assert_close(trace.lens(3), trace["logits"].log_softmax(-1), atol=1e-5, rtol=0)
    states = reference.model.language_model.norm(out.hidden_states[1])
    torch.testing.assert_close(
        trace.lens(1), reference.lm_head(states)[0].log_softmax(-1).detach(), atol=BOUND, rtol=BOUND
    )


def test_vision_patterns_equal_transformers_in_reading_order(both):
    reference, _, softmaxes, trace = both
    visual = reference.model.visual
    index, _ = get_vision_window_index(trace.image_grid_thw, 2, visual.config.window_size, 14)
    patches = sum(h * w for _, h, w in GRIDS)
    # where each patch of the window order lies in its image, by hand: cells of 2x2 patches, row after row
    places, before = [], 0
    for _, h, w in GRIDS:
        cells = [(row, column) for row in range(0, h, 2) for column in range(0, w, 2)]
        places += [
            [before + (row + i) * w + column + j for i in (0, 1) for j in (0, 1)] for row, column in cells
        ]
        before += h * w
    reading = torch.tensor([place for cell in index.tolist() for place in places[cell]])
    left = softmaxes[:-3]
    for block in range(4):
        expected, begin = torch.zeros(2, patches, patches), 0
        while begin < patches:
            part = left.pop(0)[0]
            end = begin + part.shape[-1]
            expected[:, begin:end, begin:end] = part
            begin = end
        weights = trace[f"visual.blocks.{block}.attn.pattern"]
        read = weights[:, reading][:, :, reading]
        torch.testing.assert_close(read, expected, atol=BOUND, rtol=0)
        assert (read[expected == 0] == 0).all()  # nothing is seen across windows
    assert not left


def test_a_trace_has_the_engines_log_probs_and_knows_the_cells(tiny, traced):
    model, processor = tiny
    answer = generate(model, processor, conversation(), temperature=0.0)
    assert traced.token_ids[traced.prompt_length :].tolist() == answer.token_ids
    torch.testing.assert_close(
        traced.logprobs[traced.prompt_length :], torch.tensor(answer.logprobs), atol=BOUND, rtol=0
    )
    assert "".join(traced.tokens[traced.prompt_length : -1]) == answer.text
    (cells,) = traced.cells
    assert cells.shape == (4, 4)
    assert (traced.token_ids[cells] == processor.config.image_token_id).all()
    rows, columns = (
        traced.positions[axis][cells] - traced.positions[axis].flatten()[cells[0, 0]] for axis in (1, 2)
    )
    assert rows.tolist() == [[row] * 4 for row in range(4)]
    assert columns.tolist() == [[0, 1, 2, 3]] * 4
    maps, share = traced.attention_to_picture(-2)
    assert maps.shape == (4, 6, 4, 4)
    torch.testing.assert_close(sum(share), torch.ones(4, 6), atol=1e-5, rtol=0)
    torch.testing.assert_close(maps.sum((2, 3)), share.image, atol=1e-5, rtol=0)
    ids, values, ranks = traced.rivals(5)
    greedy = slice(traced.prompt_length, None)
    assert (ranks[greedy] == 0).all()
    assert torch.equal(ids[greedy, 0], traced.token_ids[greedy])
    torch.testing.assert_close(values[greedy, 0], traced.logprobs[greedy], atol=1e-6, rtol=0)


def test_a_saved_trace_comes_back(tiny, traced, tmp_path):
    traced.save(tmp_path / "x.safetensors")
    loaded = load_trace(tmp_path / "x.safetensors")
    assert loaded.tokens == traced.tokens
    assert loaded.prompt_length == traced.prompt_length
    name = "model.layers.2.self_attn.pattern"
    assert torch.equal(loaded[name], traced[name])
    assert torch.equal(loaded["visual.merger.out"], traced["visual.merger.out"])
    with pytest.raises(UserError, match="needs the model"):
        loaded.lens(1)
    assert torch.equal(load_trace(tmp_path / "x.safetensors", tiny[0]).lens(1), traced.lens(1))


def test_a_point_that_is_not_there_names_the_nearest(tiny, traced):
    with pytest.raises(
        UserError, match=r"no point 'model.layers.2.attn.pattern'.*model.layers.2.self_attn.pattern"
    ):
        traced["model.layers.2.attn.pattern"]
    with pytest.raises(UserError, match="no point"), r1ov.edit(tiny[0], {"model.layer.0.residual": zero()}):
        pass
    slim = r1ov.trace(*tiny, conversation(), completion="<think>", keep=("residual",))
    with pytest.raises(UserError, match="was not kept"):
        slim["model.layers.0.mlp.out"]


def again(tiny, traced, image=IMAGE_FILE):
    return r1ov.trace(*tiny, conversation(image), completion=traced.token_ids[traced.prompt_length :])


def test_an_edit_that_changes_nothing_changes_no_bit(tiny, traced):
    names = (
        "model.layers.2.self_attn.heads",
        "visual.blocks.1.mlp.out",
        "model.norm.out",
        "visual.merger.out",
        "logits",
    )
    with r1ov.edit(tiny[0], dict.fromkeys(names, lambda value, where: None)):
        assert torch.equal(again(tiny, traced)["logits"], traced["logits"])
    with r1ov.edit(tiny[0], dict.fromkeys(names, lambda value, where: value.clone())):
        assert torch.equal(again(tiny, traced)["logits"], traced["logits"])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in tiny[0].modules())


@pytest.mark.parametrize("path", ["model.layers.1.self_attn", "visual.blocks.1.attn", "visual.blocks.0.attn"])
def test_a_pattern_that_is_put_back_gives_the_same_answer(tiny, traced, path):
    seen = []
    with r1ov.edit(tiny[0], {f"{path}.pattern": lambda value, where: seen.append(value) or value}):
        edited = again(tiny, traced)
    torch.testing.assert_close(edited["logits"], traced["logits"], atol=BOUND, rtol=0)
    assert torch.equal(seen[0], traced[f"{path}.pattern"])  # the edit sees what the trace shows


def test_a_pattern_is_of_the_sequence_in_a_pack_and_not_there_in_decoding(tiny, traced):
    """In a training pack each sequence attends to itself alone, and so does an edited pattern."""
    model, processor = tiny
    path, seen = "model.layers.1.self_attn.pattern", []
    batch = processor([conversation(), conversation(text="What is at b1?")])
    cut = int(batch["cu_seqlens"][1])
    with torch.no_grad():
        plain = model(**batch)
        with r1ov.edit(model, {path: lambda value, where: seen.append(value) or value}):
            torch.testing.assert_close(model(**batch), plain, atol=BOUND, rtol=0)
            torch.testing.assert_close(model(*batch.values()), plain, atol=BOUND, rtol=0)
            with pytest.raises(UserError, match="not in decoding"):
                generate(model, processor, conversation(), max_new_tokens=2)
    assert not seen[0][:, cut:, :cut].any()
    assert not seen[0].triu(1).any()


def test_all_heads_at_nothing_are_an_attention_at_nothing(tiny, traced):
    changed = []
    for point in ("heads", "out", "pattern"):
        with r1ov.edit(tiny[0], {f"model.layers.1.self_attn.{point}": zero()}):
            changed.append(again(tiny, traced)["logits"])
    torch.testing.assert_close(changed[0], changed[1], atol=1e-6, rtol=0)
    torch.testing.assert_close(changed[0], changed[2], atol=1e-6, rtol=0)
    assert (changed[0] - traced["logits"]).abs().max() > 0.1
    with r1ov.edit(tiny[0], {"model.layers.1.self_attn.heads": zero(heads=range(6))}):
        assert torch.equal(again(tiny, traced)["logits"], changed[0])


def test_another_images_residuals_give_its_answer(tiny, traced):
    other = again(tiny, traced, "r1ov/data/playground/examples/spatial.png")
    with r1ov.edit(tiny[0], {f"model.layers.{layer}.residual": take(other) for layer in range(4)}):
        patched = again(tiny, traced)
    torch.testing.assert_close(patched["logits"], other["logits"], atol=BOUND, rtol=0)
    with r1ov.edit(tiny[0], {"visual.merger.out": take(other)}):
        patched = again(tiny, traced)
    torch.testing.assert_close(patched["logits"], other["logits"], atol=BOUND, rtol=0)


def test_edits_act_in_generate_and_in_training(tiny, traced):
    model, processor = tiny
    plain = generate(model, processor, conversation(), max_new_tokens=8, temperature=0.0)
    banned = plain.token_ids[0]

    def forbid(logits, where):
        logits = logits.clone()
        logits[..., banned] = -1e30
        return logits

    with r1ov.edit(model, {"logits": forbid}):
        assert (
            banned
            not in generate(model, processor, conversation(), max_new_tokens=8, temperature=0.0).token_ids
        )
    with r1ov.edit(model, {"visual.merger.out": blank(range(16), with_="zero")}):
        blind = generate(model, processor, conversation(), temperature=0.0)
    assert blind.token_ids != traced.token_ids[traced.prompt_length :].tolist()
    # every step of decoding goes through the edit: what it wrote is what the edited model would write
    steer = torch.randn(192, generator=torch.Generator().manual_seed(0))
    with r1ov.edit(model, {"model.layers.2.residual": add(steer, 3.0)}):
        steered = generate(model, processor, conversation(), max_new_tokens=12, temperature=0.0)
        forced = r1ov.trace(model, processor, conversation(), completion=steered.token_ids)
    torch.testing.assert_close(
        forced.logprobs[forced.prompt_length :], torch.tensor(steered.logprobs), atol=BOUND, rtol=0
    )
    batch = processor(conversation())
    with r1ov.edit(model, {"model.layers.2.self_attn.heads": zero()}):
        model.zero_grad()
        model(**batch).sum().backward()
    assert not model.model.layers[2].self_attn.o_proj.weight.grad.any()
    assert model.model.layers[1].self_attn.o_proj.weight.grad.any()
    model.zero_grad()


def test_a_model_compared_with_itself_does_not_part(tiny, traced):
    same = r1ov.compare(traced, traced)
    assert same.divergence.max() < 1e-12
    assert same.partings() == []
    before = r1ov.load("r1ov-tiny-sft")
    other = r1ov.trace(*before, conversation(), completion=traced.token_ids[traced.prompt_length :])
    found = r1ov.compare(traced, other)
    p, q = (trace["logits"][:-1].double().log_softmax(-1).exp() for trace in (traced, other))
    middle = (p + q) / 2
    expected = ((p * (p / middle).log()).nansum(-1) + (q * (q / middle).log()).nansum(-1)) / 2
    torch.testing.assert_close(found.divergence[1:].double(), expected, atol=1e-6, rtol=0)
    with pytest.raises(UserError, match="other tokens"):
        r1ov.compare(traced, r1ov.trace(*before, conversation(), completion="no"))
