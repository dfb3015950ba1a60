"""The engine against transformers' generate and logits processors, and against itself: alone or in a batch,
cached or not.
"""

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch
from PIL import Image
from transformers.generation import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from kernels import pointwise
from r1ov.engine import decode, generate, prepare
from r1ov.engine.cache import FlatStep, KVCache, prefill, step
from r1ov.engine.decode import TextStream
from r1ov.engine.generate import banned_ids
from r1ov.engine.sampling import (
    SamplingParams,
    draw,
    keep_top_k,
    keep_top_p,
    penalise_repetition,
    row_seeds,
    row_uniforms,
    sample,
)
from r1ov.errors import UserError
from r1ov.folder.pretrained import load
from tests.checkpoint import write_checkpoint


@pytest.fixture(scope="module")
def trio(tmp_path_factory):
    """(transformers' model, our model, our processor) with the same random weights."""
    folder = tmp_path_factory.mktemp("random")
    reference = write_checkpoint(folder)
    return reference, *load(folder)


def picture(seed: int, size: tuple[int, int]) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    return Image.fromarray(
        torch.randint(0, 256, (size[1], size[0], 3), generator=generator, dtype=torch.uint8).numpy()
    )


def conversation(number: int) -> list[dict]:
    """The number-th of many: no, one or two pictures of odd sizes, texts of odd lengths."""
    sizes = [(60 + 13 * number % 70, 50 + 29 * number % 90)] * (number % 3)
    content = [{"type": "image", "image": picture(number + 100 * i, size)} for i, size in enumerate(sizes)]
    return [
        {
            "role": "user",
            "content": [
                *content,
                {"type": "text", "text": f"How many {'red ' * (number % 5)}circles? {number}"},
            ],
        }
    ]


CONVERSATIONS = [conversation(number) for number in range(21)]


@pytest.fixture(scope="module")
def greedy(trio):
    """The 21 conversations decoded as one batch."""
    _, model, processor = trio
    return generate(model, processor, CONVERSATIONS, max_new_tokens=64, temperature=0.0)


def theirs(trio, messages, max_new_tokens=64, **options) -> list[int]:
    """The ids that transformers generates for one conversation, greedily."""
    reference, model, processor = trio
    batch = processor(messages)
    ids = batch["input_ids"][None]
    pictures = {name: batch[name] for name in ("pixel_values", "image_grid_thw") if name in batch}
    kinds = (
        ids == model.config.image_token_id
    ).long()  # transformers 5 gives pictures their 3-D positions only where told so
    options = {
        "suppress_tokens": banned_ids(processor).tolist(),
        "max_new_tokens": max_new_tokens,
        "do_sample": False,
    } | options
    options |= {
        "eos_token_id": processor.generation_config["eos_token_id"],
        "attention_mask": torch.ones_like(ids),
    }
    with torch.no_grad():
        return reference.generate(input_ids=ids, mm_token_type_ids=kinds, **pictures, **options)[
            0, ids.shape[1] :
        ].tolist()


def scored(model, batch, completion, temperature: float) -> torch.Tensor:
    """The log-probs of a completion by one forward over prompt and completion, without a cache."""
    ids = torch.tensor(completion.token_ids)
    start = int(batch["position_ids"].max()) + 1
    positions = torch.arange(start, start + len(ids)).expand(3, -1)
    whole = dict(batch) | {
        "input_ids": torch.cat([batch["input_ids"], ids]),
        "position_ids": torch.cat([batch["position_ids"], positions], dim=1),
        "cu_seqlens": torch.tensor([0, len(batch["input_ids"]) + len(ids)], dtype=torch.int32),
    }
    with torch.no_grad():
        logits = model(**whole)[-len(ids) - 1 : -1] / temperature
    return logits.log_softmax(-1).gather(1, ids[:, None])[:, 0]


def test_64_greedy_tokens_equal_transformers_on_21_prompts_of_unequal_length(trio, greedy):
    for messages, completion in zip(CONVERSATIONS, greedy, strict=True):
        assert completion.token_ids == theirs(trio, messages)
    assert len({completion.prompt_tokens for completion in greedy}) > 8
    assert len({tuple(completion.token_ids) for completion in greedy}) > 15


def test_greedy_with_a_repetition_penalty_equals_transformers(trio):
    _, model, processor = trio
    ours = generate(
        model, processor, CONVERSATIONS[:6], max_new_tokens=48, temperature=0.0, repetition_penalty=1.3
    )
    for messages, completion in zip(CONVERSATIONS, ours, strict=False):
        assert completion.token_ids == theirs(trio, messages, 48, repetition_penalty=1.3)


def test_a_row_alone_equals_the_row_in_a_batch(trio, greedy):
    _, model, processor = trio
    for number in (0, 4, 11):
        alone = generate(model, processor, CONVERSATIONS[number], max_new_tokens=64, temperature=0.0)
        assert alone.token_ids == greedy[number].token_ids
        # float32 sums in another order for another batch size: a few times 1e-6 of logits around 3.
        assert alone.logprobs == pytest.approx(greedy[number].logprobs, abs=1e-4)


def test_logprobs_equal_a_forward_over_the_whole_text_without_a_cache(trio):
    _, model, processor = trio
    for number, temperature in ((1, 0.0), (2, 0.7), (3, 1.3)):
        options = {"top_k": 5, "top_p": 0.9, "repetition_penalty": 1.2}  # none of which the log-probs know
        completion = generate(
            model, processor, CONVERSATIONS[number], max_new_tokens=40, temperature=temperature, **options
        )
        expected = scored(model, processor(CONVERSATIONS[number]), completion, temperature or 1.0)
        assert completion.logprobs == pytest.approx(expected.tolist(), abs=1e-4)


@pytest.mark.parametrize("amx", [False, True])
@pytest.mark.parametrize("count", [1, 3])
def test_rows_in_bfloat16_are_right(trio, monkeypatch, amx, count):
    """With AMX the weights are the left factor: the same numbers within bfloat16."""
    _, model, processor = trio
    monkeypatch.setattr(pointwise, "has_amx", lambda device: amx)
    model = copy.deepcopy(model).bfloat16()
    rows = generate(model, processor, CONVERSATIONS[:count], max_new_tokens=24, temperature=0.0)
    for messages, completion in zip(CONVERSATIONS, rows, strict=False):
        expected = scored(model, processor(messages), completion, 1.0)
        # Half a unit in the eighth bit of logits up to 4, a few times over.
        assert completion.logprobs == pytest.approx(expected.tolist(), abs=0.05)


@pytest.mark.parametrize("max_num_seqs", [3, 4, 7, 12])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_batch_refilled_as_rows_finish_gives_what_all_at_once_gives(trio, max_num_seqs, temperature):
    _, model, processor = trio
    options = {"temperature": temperature, "num_samples": 3, "seed": 5, "repetition_penalty": 1.1}
    plans = [
        prepare(processor, CONVERSATIONS[:6], max_new_tokens=24, max_num_seqs=most, **options)
        for most in (None, max_num_seqs)
    ]
    limits = [1 + 5 * row % 24 for row in range(18)]  # rows that leave one after another
    (together, timing), (refilled, same) = (
        decode(model, processor, replace(plan, limits=limits)) for plan in plans
    )
    assert [row.token_ids for row in refilled] == [row.token_ids for row in together]
    for one, other in zip(refilled, together, strict=True):
        assert one.logprobs == pytest.approx(
            other.logprobs, abs=1e-4
        )  # float32 sums in another order for another batch size
    assert (same.prefill_tokens, same.decode_tokens) == (timing.prefill_tokens, timing.decode_tokens)


@pytest.mark.parametrize("most", [1, 150, 400])
def test_prompts_are_read_a_few_at_a_time_to_the_same_answers(trio, monkeypatch, most):
    _, model, processor = trio
    plan = prepare(processor, CONVERSATIONS[:9], max_new_tokens=16, num_samples=2, temperature=1.0)
    (together, whole), read = decode(model, processor, plan), []

    pack = type(processor).pack

    def counted(self, prompts):
        read.append(list(map(len, prompts)))
        return pack(self, prompts)

    monkeypatch.setattr(type(processor), "pack", counted)
    few, timing = decode(model, processor, replace(plan, max_num_batched_tokens=most))
    assert [row.token_ids for row in few] == [row.token_ids for row in together]
    assert all(sum(lengths) <= most or len(lengths) == 1 for lengths in read)
    assert [length for lengths in read for length in lengths] == list(map(len, plan.prompts))
    assert len(read) < 9 or most == 1
    assert timing.prefill_tokens == whole.prefill_tokens


def test_conversations_encoded_already_give_the_same_answers(trio, greedy):
    _, model, processor = trio
    encoded = [processor.encode(messages, add_generation_prompt=True) for messages in CONVERSATIONS[:4]]
    done, _ = decode(model, processor, prepare(processor, encoded, max_new_tokens=64, temperature=0.0))
    assert [row.token_ids for row in done] == [row.token_ids for row in greedy[:4]]


def test_no_conversation_is_refused(trio):
    with pytest.raises(UserError, match="no messages were given"):
        generate(trio[1], trio[2], [])


def test_fewer_rows_than_samples_are_refused(trio):
    with pytest.raises(UserError, match="max_num_seqs is 2"):
        prepare(trio[2], CONVERSATIONS, num_samples=3, max_num_seqs=2)


@pytest.mark.parametrize("kind", ["flat", "modules"])
@torch.inference_mode()
def test_logits_with_the_cache_equal_logits_without_for_rows_that_leave_early(trio, kind):
    _, model, processor = trio
    batch = processor(CONVERSATIONS[:4])
    lengths = batch["cu_seqlens"].diff().tolist()
    cache = KVCache(model.model, 8, max(lengths) + 9)
    one_token = FlatStep(model, cache) if kind == "flat" else partial(step, model, cache)
    first = prefill(model, batch, cache, 2)[::2]
    torch.testing.assert_close(
        first, model(**batch)[batch["cu_seqlens"][1:].long() - 1], atol=1e-4, rtol=1e-4
    )

    places = list(range(8))  # two rows a prompt
    texts: list[list[int]] = [[] for _ in places]
    starts = [int(ids.max()) + 1 for ids in batch["position_ids"].split(lengths, dim=1) for _ in range(2)]
    for number, going in enumerate(([0, 1, 2, 3, 4, 5, 6, 7], [0, 2, 3, 5, 7], [1, 2, 4], [2], [0])):
        former = cache.keep(going)
        places = [places[i] for i in former]
        tokens = [7 * number + 5 * place for place in places]
        for place, token in zip(places, tokens, strict=True):
            texts[place].append(token)
        positions = torch.tensor([starts[place] + number for place in places])
        logits = one_token(torch.tensor(tokens), positions)
        for place, row in zip(places, logits, strict=True):
            alone = processor(CONVERSATIONS[place // 2])
            extra = torch.arange(starts[place], starts[place] + number + 1).expand(3, -1)
            alone["input_ids"] = torch.cat([alone["input_ids"], torch.tensor(texts[place])])
            alone["position_ids"] = torch.cat([alone["position_ids"], extra], dim=1)
            alone["cu_seqlens"] = torch.tensor([0, len(alone["input_ids"])], dtype=torch.int32)
            torch.testing.assert_close(row, model(**alone)[-1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "settings",
    [(0.7, 0, 1.0, 1.0), (1.0, 5, 1.0, 1.0), (1.0, 0, 0.8, 1.0), (0.5, 20, 0.9, 1.3), (1e-6, 0, 1.0, 1.05)],
)
def test_the_warped_scores_equal_transformers_processors_in_their_order(settings):
    temperature, top_k, top_p, penalty = settings
    logits = torch.randn(6, 300, generator=torch.Generator().manual_seed(0)) * 4
    logits[0, :40] = logits[0].max()  # ties across the boundaries of top-k and top-p
    prompt = torch.randint(0, 300, (6, 50), generator=torch.Generator().manual_seed(1))
    processors = LogitsProcessorList(
        [SuppressTokensLogitsProcessor([3, 4], device="cpu"), RepetitionPenaltyLogitsProcessor(penalty)]
    )
    processors += [TemperatureLogitsWarper(temperature)]
    processors += [TopKLogitsWarper(top_k)] if top_k else []
    processors += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    expected = processors(prompt, logits.clone())

    seen = torch.zeros(6, 300, dtype=torch.bool).scatter_(1, prompt, True)
    scores = logits.index_fill(1, torch.tensor([3, 4]), -torch.inf)
    scores = penalise_repetition(scores, seen, penalty) / temperature
    scores = keep_top_k(scores, top_k) if top_k else scores
    scores = keep_top_p(scores, top_p) if top_p < 1 else scores
    assert torch.equal(scores, expected)

    # `sample` draws from just this distribution: at 1,000 evenly spread numbers, tokens come as often as they
    # are probable.
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, repetition_penalty=penalty)
    uniforms = (torch.arange(1000).double() + 0.5) / 1000
    for row in range(6):
        many = (x[row].expand(1000, -1) for x in (logits, seen))
        tokens, _ = sample(next(many), params, torch.tensor([3, 4]), next(many), uniforms)
        shares = tokens.bincount(minlength=300) / 1000
        # The share of evenly spread points in an interval is off by less than one point at each end.
        assert (shares - expected[row].softmax(-1)).abs().max() < 0.002


def test_a_token_of_probability_zero_is_never_drawn():
    scores = torch.full((3, 5), -torch.inf)
    scores[:, 2] = 0.0
    assert draw(scores, torch.tensor([0.0, 0.5, 1 - 2**-24]).double()).tolist() == [2, 2, 2]


def test_tokens_are_drawn_as_often_as_they_are_probable():
    scores = torch.tensor([0.1, 0.2, 0.3, 0.4]).log()
    shares = draw(scores.expand(20_000, 4), row_uniforms([5], 20_000)[0]).bincount(minlength=4) / 20_000
    # Four standard deviations of a share of 0.4 among 20,000; the seed is fixed, so this passes always or
    # never.
    assert (shares - scores.exp()).abs().max() < 0.014


def test_samples_do_not_depend_on_the_rest_of_the_batch_and_differ_among_themselves(trio):
    _, model, processor = trio
    options = {"max_new_tokens": 24, "temperature": 1.0, "seed": 3}
    batch = generate(model, processor, CONVERSATIONS[:5], num_samples=3, **options)
    assert [len(samples) for samples in batch] == [3] * 5
    assert len({tuple(completion.token_ids) for samples in batch for completion in samples}) == 15
    for number in (1, 4):
        alone = generate(model, processor, CONVERSATIONS[number], num_samples=3, **options)
        assert [c.token_ids for c in alone] == [c.token_ids for c in batch[number]]
    twice = generate(model, processor, [CONVERSATIONS[1], CONVERSATIONS[2], CONVERSATIONS[1]], **options)
    assert [twice[0].token_ids, twice[2].token_ids] == [c.token_ids for c in batch[1][:2]]
    other = generate(model, processor, CONVERSATIONS[1], **(options | {"seed": 4}))
    assert other.token_ids != batch[1][0].token_ids


def test_the_same_words_about_another_picture_are_another_prompt(trio):
    _, model, processor = trio
    first, second = (
        [{"role": "user", "content": [{"type": "image", "image": picture(seed, (56, 56))}]}]
        for seed in (1, 2)
    )
    options = {"max_new_tokens": 8, "temperature": 1.0}
    pair = generate(model, processor, [first, second], **options)
    assert pair[1].token_ids == generate(model, processor, second, **options).token_ids


def test_random_numbers_of_a_row_do_not_depend_on_how_many_are_asked_for():
    seeds = row_seeds([b"a", b"b"], 1, 0)
    assert torch.equal(row_uniforms(seeds, 1000)[:, :17], row_uniforms(seeds, 17))
    assert row_seeds([b"b"], 1, 0) == seeds[1:]


def test_one_conversation_gives_a_completion_and_a_list_gives_a_list(trio):
    _, model, processor = trio
    messages = CONVERSATIONS[0]
    assert generate(model, processor, messages, max_new_tokens=2).completion_tokens == 2
    assert [c.completion_tokens for c in generate(model, processor, [messages], max_new_tokens=2)] == [2]
    assert len(generate(model, processor, messages, max_new_tokens=2, num_samples=2)) == 2
    assert [
        len(samples) for samples in generate(model, processor, [messages], max_new_tokens=2, num_samples=2)
    ] == [2]


def test_a_stop_id_ends_the_row_stays_in_its_ids_and_not_in_its_text(trio, greedy):
    _, model, processor = trio
    stops = [greedy[0].token_ids[5], greedy[1].token_ids[9]]
    stopping = replace(processor, generation_config=processor.generation_config | {"eos_token_id": stops})
    for before, after in zip(
        greedy, generate(model, stopping, CONVERSATIONS, max_new_tokens=64, temperature=0.0), strict=True
    ):
        places = [place for place, token in enumerate(before.token_ids) if token in stops]
        kept = before.token_ids[: places[0] + 1] if places else before.token_ids
        assert after.token_ids == kept
        assert after.finish_reason == ("stop" if places else "length")
        assert after.text == processor.decode(kept[:-1] if places else kept)
        assert after.completion_tokens == len(after.token_ids) == len(after.logprobs)


def test_without_a_stop_id_in_generation_config_the_models_own_counts(trio, greedy):
    _, model, processor = trio
    stop = greedy[0].token_ids[3]
    bare = replace(processor, generation_config={}, config=replace(processor.config, eos_token_id=stop))
    completion = generate(model, bare, CONVERSATIONS[0], max_new_tokens=64)
    assert completion.token_ids == greedy[0].token_ids[: greedy[0].token_ids.index(stop) + 1]


def test_placeholders_and_ids_beyond_the_tokenizer_are_never_sampled(trio):
    _, model, processor = trio
    config = model.config
    banned = banned_ids(processor).tolist()
    frame = {config.vision_start_token_id, config.vision_end_token_id, config.vision_token_id}
    assert {config.image_token_id, config.video_token_id, *frame} <= set(banned)
    size = processor.tokenizer.get_vocab_size()
    assert set(range(size, config.text.vocab_size)) <= set(banned)
    logits = torch.zeros(2, config.text.vocab_size)
    logits[:, banned] = 50.0
    uniforms = torch.tensor([0.0, 1 - 2**-24]).double()
    for temperature in (0.0, 1.0):
        tokens, _ = sample(
            logits, SamplingParams(temperature=temperature), torch.tensor(banned), None, uniforms
        )
        assert not set(tokens.tolist()) & set(banned)


def test_each_row_is_told_of_once_as_soon_as_it_is_finished(trio):
    _, model, processor = trio
    plan = prepare(
        processor, CONVERSATIONS[:4], max_new_tokens=8, temperature=1.0, num_samples=2, max_num_seqs=4
    )
    limits = [1 + 5 * number % 8 for number in range(8)]  # a random model seldom stops by itself
    told = []
    done, _ = decode(
        model,
        processor,
        replace(plan, limits=limits),
        on_done=lambda number, completion: told.append((number, completion)),
    )
    assert sorted(number for number, _ in told) == list(range(8))
    assert all(completion == done[number] for number, completion in told)
    first = [number for number, _ in told if number < 4]  # those that began together
    assert [limits[number] for number in first] == sorted(limits[number] for number in first)


def test_streamed_pieces_add_up_to_the_text_and_never_split_a_character(trio):
    _, model, processor = trio
    streamed = 0
    for number in range(4):
        pieces: list[str] = []
        options = {"max_new_tokens": 60, "temperature": 1.5, "seed": number}
        plan = prepare(processor, [CONVERSATIONS[number]], **options)
        (completion,), timing = decode(model, processor, plan, stream=pieces.append)
        assert completion == generate(model, processor, CONVERSATIONS[number], **options)
        assert "".join(pieces) == completion.text
        streamed += len(pieces)
        assert timing.decode_tokens == completion.completion_tokens - 1
        assert timing.prefill_tokens == completion.prompt_tokens
    assert streamed > 40  # a random model may stop early once, not four times


def test_a_character_of_several_tokens_arrives_whole(trio):
    processor = trio[2]
    text = "a€😀b"
    ids = processor.tokenizer.encode(text).ids
    pieces: list[str] = []
    stream = TextStream(processor, pieces.append)
    for end in range(1, len(ids) + 1):
        stream.update(ids[:end], is_finished=False)
    assert "".join(pieces) == text
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


def test_a_row_ends_at_the_models_last_position(trio):
    _, model, processor = trio
    completion = generate(model, processor, CONVERSATIONS[0], temperature=0.0)
    assert completion.finish_reason in ("stop", "length")
    assert (
        completion.prompt_tokens + completion.completion_tokens <= model.config.text.max_position_embeddings
    )
    long = [{"role": "user", "content": "red circle " * 400}]
    with pytest.raises(UserError, match="512 positions"):
        generate(model, processor, long)


@pytest.mark.parametrize(
    ("file", "given", "expected"),
    [
        ({}, {}, (0.0, 0, 1.0, 1.0)),
        ({"temperature": 0.3}, {}, (0.0, 0, 1.0, 1.0)),
        ({"do_sample": True}, {}, (1.0, 0, 1.0, 1.0)),
        ({"do_sample": True, "temperature": 1e-6, "repetition_penalty": 1.05}, {}, (1e-6, 0, 1.0, 1.05)),
        (
            {"do_sample": True, "temperature": 0.1, "top_k": 1, "top_p": 0.001},
            {"temperature": 1.0, "top_k": 0},
            (1.0, 0, 0.001, 1.0),
        ),
        ({"do_sample": True, "temperature": None, "top_p": None}, {"temperature": 0.0}, (0.0, 0, 1.0, 1.0)),
        ({}, {"temperature": 0.7, "top_p": 0.9}, (0.7, 0, 0.9, 1.0)),
    ],
)
def test_settings_come_from_the_caller_then_from_generation_config(file, given, expected):
    params = SamplingParams.resolve(file, **given)
    assert (params.temperature, params.top_k, params.top_p, params.repetition_penalty) == expected


@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": 0},
        {"num_samples": 0},
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"top_k": -1},
        {"repetition_penalty": 0.0},
        {"stream": print, "num_samples": 2},
    ],
)
def test_a_setting_out_of_its_range_is_refused_in_one_line(trio, options):
    _, model, processor = trio
    with pytest.raises(UserError) as error:
        generate(model, processor, CONVERSATIONS[0], **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": "hot", "do_sample": True},
        {"top_k": [1]},
        {"eos_token_id": "end"},
        {"max_new_tokens": "9"},
    ],
)
def test_a_generation_config_of_the_wrong_type_is_refused_by_name(trio, settings):
    _, model, processor = trio
    with pytest.raises(UserError, match=next(iter(settings))):
        generate(model, replace(processor, generation_config=settings), CONVERSATIONS[0])
