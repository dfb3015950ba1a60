"""Weights of 4 and 8 bits: against the integers they hold, torch's kernels against dequantised products,
gradients, whole models, and AWQ's folders packed here from known integers.
"""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

import r1ov
from r1ov.common.files import write_json
from r1ov.errors import UserError
from r1ov.folder import quantized as rooms
from r1ov.folder import weights
from r1ov.folder.pretrained import read_config
from r1ov.folder.quantized import QuantizedLinear, quantized
from tests.checkpoint import write_checkpoint

SIZES = [(64, 32), (256, 96), (100, 64), (1046, 192)]  # rows that fill no block too


def drawn(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


def made(weight, *rest):
    return quantized(weight.shape, weight.__getitem__, *rest)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("size", SIZES)
def test_a_quantised_weight_is_within_half_a_step_of_the_weight(size, bits):
    weight = drawn(*size)
    step = weight.abs().amax(1, keepdim=True) / 127
    if bits == 4:
        groups = weight.unflatten(1, (-1, 32))
        step = ((groups.amax(-1) - groups.amin(-1)) / 15).repeat_interleave(32, 1)
    error = (made(weight, None, bits, "").weight - weight).abs() / step
    # the ends of a group give way to scale and zero in bfloat16; of 8 bits 127 steps of a rounded scale
    assert error.max() < 0.8
    assert error.mean() < 0.27  # 0.25 is that of even rounding


def test_what_integers_can_say_exactly_stays_exact():
    q = torch.randint(0, 16, (128, 64), generator=torch.Generator().manual_seed(0))
    q.view(128, 2, 32)[..., :2] = torch.tensor([0, 15])  # each group goes from end to end
    weight = (q - 8) * 0.25 + 1.5
    assert torch.equal(made(weight, None, 4, "").weight, weight)
    q[:, 0] = 135
    assert torch.equal(made((q - 8) * 0.25, None, 8, "").weight, (q - 8) * 0.25)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("rows", [1, 7, rooms.FEW, rooms.FEW + 1, 100])
@pytest.mark.parametrize("size", SIZES)
def test_product_and_gradient_are_those_of_the_dequantised_weight(size, rows, bits, monkeypatch):
    monkeypatch.setattr(rooms, "TILE", 2**13)  # several tiles
    bias = torch.nn.Parameter(drawn(size[0]))
    layer = made(drawn(*size), bias, bits, "")
    x = drawn(rows, size[1]).bfloat16().float().requires_grad_()  # the packed kernels take bfloat16
    y, expected = layer(x), F.linear(x, layer.weight, bias)
    # they also round what they return, and the scales of int8
    tolerance = 1e-5 if rows > rooms.FEW or not layer._has_kernel() else 1e-2
    assert (y - expected).abs().max() < tolerance * expected.abs().max()
    upstream = drawn(rows, size[0])
    (grad,) = torch.autograd.grad(y, x, upstream)
    torch.testing.assert_close(grad, upstream @ layer.weight, atol=1e-4, rtol=1e-4)


def test_without_the_packed_kernel_the_same_integers_give_the_same_product(monkeypatch):
    layer, x = made(drawn(128, 64), None, 4, ""), drawn(5, 64).bfloat16()
    with_kernel = layer(x)
    monkeypatch.setattr(rooms, "_reads_our_order", lambda: False)
    torch.testing.assert_close(layer(x), with_kernel, atol=0.1, rtol=0.01)


def test_groups_must_divide_the_inputs():
    with pytest.raises(
        UserError, match=r"q_proj\.weight has 48 inputs, which groups of 32 do not divide; try int8"
    ):
        made(drawn(64, 48), None, 4, "q_proj.weight")


@pytest.mark.parametrize("quantize", ["int4", "int8"])
def test_a_model_is_quantised_while_it_loads_and_answers_alike(quantize):
    messages = [{"role": "user", "content": "How many objects are there?"}]
    whole, processor = r1ov.load("r1ov-tiny")
    model, _ = r1ov.load("r1ov-tiny", quantize=quantize)
    layers = {name for name, module in model.named_modules() if isinstance(module, QuantizedLinear)}
    assert len(layers) == 7 * model.config.text.num_hidden_layers + 1
    assert all(name == "lm_head" or name.startswith("model.layers.") for name in layers)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, whole.get_parameter(name))
    batch = processor([*messages, {"role": "assistant", "content": "<think>"}])
    expected, actual = (m(**batch).log_softmax(-1) for m in (whole, model))
    divergence = (expected.exp() * (expected - actual)).sum(-1).mean()
    assert divergence < (0.1 if quantize == "int4" else 0.003)
    first = r1ov.generate(model, processor, messages, max_new_tokens=12)
    again = r1ov.generate(model, processor, [messages, messages], max_new_tokens=12)
    assert [row.token_ids for row in again] == [first.token_ids] * 2


def test_a_tied_head_of_4_bits_gives_the_likeliest_words_their_own_logits(monkeypatch):
    model, _ = r1ov.load("r1ov-tiny", quantize="int4")
    hidden = drawn(3, model.config.text.hidden_size)
    whole, mixed = hidden @ model.head_weight.T, model.logits(hidden)
    monkeypatch.setattr(model.lm_head, "exact", ())
    coarse = model.logits(hidden)
    likeliest = torch.zeros_like(whole, dtype=torch.bool).scatter(1, coarse.topk(64).indices, True)
    torch.testing.assert_close(mixed[likeliest], whole[likeliest], atol=1e-5, rtol=1e-5)
    assert torch.equal(mixed[~likeliest], coarse[~likeliest])
    assert (coarse - whole).std() < 0.25 * whole.std()
    assert (coarse[likeliest] - whole[likeliest]).abs().max() > 0.01


@pytest.mark.parametrize("quantize", ["int4", "int8"])
@pytest.mark.parametrize("tied", [False, True])
def test_no_step_of_decoding_unpacks_a_whole_weight(quantize, tied, tmp_path, monkeypatch):
    write_checkpoint(tmp_path, tie_word_embeddings=tied)
    model, processor = r1ov.load(tmp_path, dtype="bfloat16", quantize=quantize)
    assert isinstance(model.lm_head, QuantizedLinear)
    assert model.config.tie_word_embeddings == tied
    monkeypatch.setattr(
        QuantizedLinear, "weight", property(lambda linear: pytest.fail(f"{linear.packed.shape} unpacked"))
    )
    question = [{"role": "user", "content": "w1"}]
    assert r1ov.generate(model, processor, question, max_new_tokens=3).completion_tokens == 3


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="what is mapped is read from Linux's /proc")
@pytest.mark.parametrize("quantize", [None, "int8"])
def test_beside_quantised_weights_an_embedding_is_its_file_alone(quantize, awq):
    folder = awq[quantize is not None]
    model, _ = r1ov.load(folder, dtype="float32", quantize=quantize)
    weight = model.model.embed_tokens.weight
    assert torch.equal(weight, load_file(awq[0] / "model.safetensors")["model.embed_tokens.weight"])
    lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(folder) in line]
    [(begin, end)] = (map(partial(int, base=16), line.split()[0].split("-")) for line in lines)
    assert begin < weight.data_ptr() < end
    others = (one for one in model.parameters() if one is not weight)
    assert not any(begin <= one.data_ptr() < end for one in others)


@pytest.mark.parametrize("quantize", ["int4", "int8"])
def test_of_a_large_weight_only_some_rows_are_read_at_a_time_and_the_file_is_opened_anew(
    quantize, monkeypatch
):
    def spied(self, tensor, part=None):
        value = read(self, tensor, part)
        pieces.setdefault(tensor.name, []).append(value)
        return value

    read, opened, pieces = weights._Reader.__call__, [], {}
    monkeypatch.setattr(weights._Reader, "__call__", spied)
    monkeypatch.setattr(
        weights, "_opened", lambda file, real=weights._opened: opened.append(file) or real(file)
    )
    whole, _ = r1ov.load("r1ov-tiny", quantize=quantize)
    assert len(opened) == 3  # for the header, for the weights, and the embedding's own
    pieces.clear()
    monkeypatch.setattr(rooms, "TILE", 2**14)
    monkeypatch.setattr(weights, "MOST_OPEN", 2**16)  # bytes
    model, _ = r1ov.load("r1ov-tiny", quantize=quantize)
    for name, module in model.named_modules():
        if isinstance(module, QuantizedLinear) and name != "lm_head":
            parts = pieces[f"{name}.weight"]
            assert max(part.numel() for part in parts) <= max(2**14, 64 * module.packed.shape[1])
            twice = 64  # rows, to see what is to be made
            assert sum(map(len, parts)) == module.out_features + twice
            assert torch.equal(module.packed, whole.get_submodule(name).packed)
    assert len(opened) > 40


def test_a_quantised_model_is_not_saved_and_other_names_are_refused(tmp_path):
    model, processor = r1ov.load(quantize="int8")
    with pytest.raises(UserError, match="a quantised model is not saved"):
        r1ov.save(model, processor, tmp_path / "out")
    with pytest.raises(UserError, match="quantize is 'int2'; there are int4, int8"):
        r1ov.load(quantize="int2")


# AWQ

AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}


def packed(columns):
    """(..., N) integers -> (..., N/8) int32, in AWQ's order."""
    words = torch.zeros(*columns.shape[:-1], columns.shape[-1] // 8, dtype=torch.int64)
    for place, column in enumerate([0, 2, 4, 6, 1, 3, 5, 7]):
        words |= columns[..., column::8].long() << 4 * place
    return words.to(torch.int32)


@pytest.fixture
def awq(tmp_path):
    """A folder of AWQ's, and one of the same model as plain numbers."""
    whole, folder = tmp_path / "whole", tmp_path / "awq"
    for path in (whole, folder):
        path.mkdir()
        write_checkpoint(path)
    tensors = load_file(folder / "model.safetensors")
    random = torch.Generator().manual_seed(0)
    plain = dict(tensors)
    for name in [name for name in tensors if ".layers." in name and name.endswith("_proj.weight")]:
        outputs, inputs = tensors.pop(name).shape
        q = torch.randint(0, 16, (inputs, outputs), generator=random)
        z = torch.randint(0, 16, (inputs // 32, outputs), generator=random)
        scales = (torch.rand(inputs // 32, outputs, generator=random) / 30).half()
        wide = (x.repeat_interleave(32, 0) for x in (z, scales.float()))
        plain[name] = ((q - next(wide)) * next(wide)).t().contiguous()
        stem = name.removesuffix("weight")
        tensors |= {f"{stem}qweight": packed(q), f"{stem}qzeros": packed(z), f"{stem}scales": scales}
    save_file(plain, whole / "model.safetensors")
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", config | {"quantization_config": AWQ})
    return folder, whole


def test_a_folder_of_awq_is_the_model_of_its_formula(awq):
    (model, processor), (whole, _) = (r1ov.load(path, dtype="float32") for path in awq)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, QuantizedLinear)}
    assert len(layers) == 7 * model.config.text.num_hidden_layers
    for name, layer in layers.items():
        assert torch.equal(layer.weight, whole.get_parameter(f"{name}.weight"))
    batch = processor([{"role": "user", "content": "w1 " * 50}])
    torch.testing.assert_close(model(**batch), whole(**batch), atol=1e-4, rtol=1e-4)
    for layer in layers.values():  # few rows, as in a step of decoding: torch's packed kernel
        x = drawn(2, layer.packed.shape[1]).bfloat16().float()
        expected = F.linear(x, layer.weight, layer.bias)
        assert (layer(x) - expected).abs().max() < 1e-2 * expected.abs().max()  # it rounds to bfloat16
    answer = r1ov.generate(model, processor, [{"role": "user", "content": "w1"}], max_new_tokens=3)
    assert answer.completion_tokens == 3


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"quant_method": "gptq"}, "gptq"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"bits": 8}, "'bits': 8"),
        ({"version": "gemv"}, "gemv"),
    ],
)
def test_other_methods_are_refused_by_name(settings, found, awq):
    config = json.loads((awq[0] / "config.json").read_text())
    write_json(awq[0] / "config.json", config | {"quantization_config": AWQ | settings})
    with pytest.raises(
        UserError, match=f"quantization_config is .*{found}.*r1ov loads AWQ's of 4 bits"
    ) as caught:
        read_config(awq[0] / "config.json")
    assert "\n" not in str(caught.value)


def test_a_folder_of_awq_that_lacks_zeros_is_refused(awq):
    tensors = load_file(awq[0] / "model.safetensors")
    tensors.pop(next(name for name in tensors if name.endswith("qzeros")))
    save_file(tensors, awq[0] / "model.safetensors")
    with pytest.raises(UserError, match=r"1 missing \(model\.layers\.0\..*qzeros\)"):
        r1ov.load(awq[0])
