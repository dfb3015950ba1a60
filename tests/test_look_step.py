"""A GRPO step under the glass: the weights of tokens are those of the gradient, and a page of a short run."""

import json
import re
import subprocess
import sys

import pytest
import torch

import r1ov
from r1ov.data.pack import continued
from r1ov.data.processor import IGNORED
from r1ov.errors import UserError
from r1ov.look.__main__ import main
from r1ov.look.step import NUMBERS, gradient_weights, measured, prefix_tree, read_group, write_step
from r1ov.train import grpo
from r1ov.train.grpo import completion_logprobs
from r1ov.train.run.config import GRPOConfig
from tests import warm
from tests.grpo_batch import LOSS_TYPES
from tests.test_look import conversation
from tests.test_look_page import CHROMIUM, ROOT

LENGTHS = (3, 5, 4)
ADVANTAGES = (1.0, -0.5, 0.25)


def batch_of(processor):
    prompt = processor.with_pixels(processor.encode(conversation(), add_generation_prompt=True))
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(10, 300, (length,), generator=generator) for length in LENGTHS]
    batch = processor.pack([continued(prompt, one, labels=one) for one in ids])
    return batch, batch.pop("labels")


def logprobs_of(model, batch, labels):
    return model(**batch, then=lambda hidden, weight: completion_logprobs(hidden, weight, labels, 1.0)[0])


@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_weights_times_the_log_probs_gradients_are_the_steps_gradient(loss_type, beta):
    """The judge is autograd through `grpo_loss` and the model; off policy, so that tokens are clipped."""
    model, processor = r1ov.load("r1ov-tiny")
    batch, labels = batch_of(processor)
    mask = labels != IGNORED
    logprobs = logprobs_of(model, batch, labels)
    noise = torch.randn(2, len(logprobs), generator=torch.Generator().manual_seed(1)) * mask
    options = {
        "num_items_in_batch": 20.0,
        "num_sequences_in_batch": 4.0,
        "old_logprobs": logprobs.detach() + 0.3 * noise[0],
        "ref_logprobs": logprobs.detach() + 0.5 * noise[1],
        "loss_type": loss_type,
        "beta": beta,
        "max_completion_length": 6,
        "epsilon_high": 1.2 if loss_type == "cispo" else None,
    }
    given = (torch.tensor(ADVANTAGES), batch["cu_seqlens"], mask)
    parameters = [one for one in model.parameters() if one.requires_grad]
    loss, _ = grpo.grpo_loss(logprobs, *given, **options)
    expected = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    weights = gradient_weights(logprobs, *given, **options)
    assert not weights[~mask].any()
    found = [torch.zeros_like(one) for one in parameters]
    for token in mask.nonzero().flatten():  # one by one
        own = torch.autograd.grad(logprobs[token], parameters, retain_graph=True, allow_unused=True)
        for sum_of, gradient in zip(found, own, strict=True):
            if gradient is not None:
                sum_of += weights[token] * gradient
    for sum_of, gradient in zip(found, expected, strict=True):
        torch.testing.assert_close(
            sum_of, torch.zeros_like(sum_of) if gradient is None else gradient, atol=1e-5, rtol=0
        )


def test_on_policy_weights_are_the_papers():
    logprobs, cu_seqlens = torch.full((7,), -1.0), torch.tensor([0, 3, 7])
    mask, advantages = torch.ones(7, dtype=torch.bool), torch.tensor([2.0, -1.0])
    each = advantages.repeat_interleave(cu_seqlens.diff())
    counts = {"num_items_in_batch": 10.0, "num_sequences_in_batch": 5.0, "max_completion_length": 8}
    for loss_type, divided in {
        "grpo": torch.tensor([15.0] * 3 + [20.0] * 4),
        "dapo": 10.0,
        "dr_grpo": 40.0,
        "cispo": 10.0,
    }.items():
        high = {"epsilon_high": 5.0} if loss_type == "cispo" else {}
        found = gradient_weights(
            logprobs, advantages, cu_seqlens, mask, loss_type=loss_type, **counts, **high
        )
        torch.testing.assert_close(found, -each / divided)


def test_the_tree_parts_where_completions_do():
    ids = [[1, 2, 3], [1, 2, 4, 5], [1, 2], [1, 2, 4, 5], [7]]
    tree = prefix_tree(ids, range(5))
    assert (tree.begin, tree.end, tree.ended) == (0, 0, [])
    long, short = tree.branches
    assert (long.members, long.end, long.ended) == ([0, 1, 2, 3], 2, [2])
    assert [(one.members, one.begin, one.end, one.ended) for one in long.branches] == [
        ([0], 2, 3, [0]),
        ([1, 3], 2, 4, [1, 3]),
    ]
    assert (short.members, short.end) == ([4], 1)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "grpo"
    options = {"max_steps": 3, "train_batch_size": 16, "steps_per_generation": 2, "num_iterations": 1}
    grpo.train(
        GRPOConfig(
            out=str(folder),
            sample_steps=2,
            eval_steps=0,
            device="cpu",
            num_threads=1,
            temperature=1.2,
            **options,
        )
    )
    return folder


def test_what_is_kept_gives_the_samplers_log_probs_again(finished):
    """Image, prompt and tokens are all there: the start model says what the sampler said at step 0."""
    from PIL import Image

    config, group = read_group(finished, 0, 1)
    images = [Image.open(finished / "samples" / name) for name in group["image_files"]]
    found = measured(*r1ov.load(config.model), group, images, config.temperature)
    assert len(found) == 8
    for one, (logprobs, _) in zip(group["completions"], found, strict=True):
        torch.testing.assert_close(logprobs, torch.tensor(one["logprobs"]), atol=1e-4, rtol=0)
    kept = [json.loads(line) for line in (finished / "samples/step-000000.jsonl").read_text().splitlines()]
    every = [one for row in kept for one in row["completions"]]
    assert len(every) == 32  # the whole rollout: every second completion is in the same step
    for part in (every[::2], every[1::2]):
        assert {one["num_items"] for one in part} == {sum(len(one["token_ids"]) for one in part)}
        assert {one["num_sequences"] for one in part} == {16}


def test_the_page_shows_every_token_and_a_step_that_was_not_kept_names_its_nearest(finished, tmp_path):
    page = tmp_path / "step.html"
    flat = 0
    for number in range(1, 5):
        said = write_step(page, finished, 0, number)
        _, group = read_group(finished, 0, number)
        is_flat = len({one["reward"] for one in group["completions"]}) == 1
        assert ("no gradient" in said) == is_flat
        flat += is_flat
        text = page.read_text(encoding="utf-8")
        assert said in text
        assert not re.search(r"(src|href)=.?https?:|<!--", text)
        tokens = {
            tuple(one["token_ids"][: end + 1])
            for one in group["completions"]
            for end in range(len(one["token_ids"]))
        }
        styles = re.findall(r'<i style="(.*?)">', text)
        assert len(styles) == len(tokens)
        assert all(re.findall(r"--(\w+):", style) == list(NUMBERS) for style in styles)
    assert flat < 4
    assert "no gradient" not in write_step(page, finished, 0)  # of itself it shows a group that teaches
    with pytest.raises(UserError, match=r"step 1 .* was not kept; the nearest: \[0, 2\]"):
        read_group(finished, 1, 1)
    with pytest.raises(UserError, match="--group is 9"):
        read_group(finished, 0, 9)


def test_the_command(finished, tmp_path):
    command = [warm.python(), "-m", "r1ov.look", str(finished), "--step"]
    done = subprocess.run(
        [*command, "0", "--out", str(tmp_path / "a.html")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("8 completions, mean reward")
    wrong = subprocess.run([*command, "1"], cwd=ROOT, capture_output=True, text=True)
    assert (wrong.returncode, len(wrong.stderr.splitlines())) == (2, 1)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine to drive the page with")
@pytest.mark.parametrize("width", [390, 1440])
def test_the_page_in_a_browser(finished, tmp_path, width):
    page, frame = tmp_path / "page.html", tmp_path / "frame.html"
    write_step(page, finished, 0)
    drive = """<script>setTimeout(()=>{const t=document.querySelectorAll("i")[5];t.click();
const p=document.createElement("pre");p.id="result";p.textContent=JSON.stringify({
told:document.querySelector("#told").textContent,
wide:document.documentElement.scrollWidth,inner:innerWidth,
requests:performance.getEntriesByType("resource").filter(e=>!e.name.startsWith("data:")).length});
document.body.append(p)},300)</script></html>"""
    page.write_text(page.read_text(encoding="utf-8").replace("</html>", drive), encoding="utf-8")
    frame.write_text(
        f'<iframe id="f" src="page.html" width="{width}" height="900"></iframe><script>'
        'setTimeout(()=>{document.body.append(document.getElementById("f").contentDocument.getElementById("result"))},2000)'
        "</script>"
    )
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command += ["--allow-file-access-from-files", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--virtual-time-budget=4000", "--dump-dom", f"file://{frame}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    result = json.loads(re.search(r'<pre id="result">(.*?)</pre>', done.stdout, re.DOTALL)[1])
    assert all(name in result["told"] for name in NUMBERS)
    assert result["wide"] <= result["inner"]
    assert result["requests"] == 0


def test_a_command_that_is_not_known_is_named(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["look", "scor"])
    with pytest.raises(UserError, match="scor: no run's folder, and the only command is score"):
        main()
