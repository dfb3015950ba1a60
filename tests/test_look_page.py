"""The page: its numbers beside the trace's, and driven in a real browser where there is one."""

import base64
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import generate
import r1ov
from r1ov.cli import run
from r1ov.errors import UserError
from r1ov.folder.pretrained import config_from_dict
from r1ov.look import blank
from r1ov.look.__main__ import main
from r1ov.look.cost import cache_bytes, parts
from r1ov.look.page import from_patches, write_page
from r1ov.model.model import Qwen2_5_VL
from tests import warm
from tests.reference import SHAPES, config_dict, prompt
from tests.test_look import conversation
from tests.test_model import pack

ROOT = Path(__file__).parent.parent
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def tiny():
    return r1ov.load("r1ov-tiny")


@pytest.fixture(scope="module")
def written(tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("look") / "look.html"
    return path, write_page(path, *tiny, conversation(), "r1ov-tiny", versus="r1ov-tiny-sft")


@pytest.fixture(scope="module")
def data(written):
    text = written[0].read_text(encoding="utf-8")
    return json.loads(
        re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1]
    )


def unpacked(packed):
    raw = torch.frombuffer(bytearray(base64.b64decode(packed["bytes"])), dtype=torch.uint8)
    return raw.view(packed["shape"]) / 255 * packed["max"]


def test_the_page_holds_the_traces_numbers(tiny, written, data):
    traced = written[1]
    begin, cells = traced.prompt_length, traced.cells[0].flatten()
    for word in (0, 20, 61):
        rows = torch.stack([rows[:, 0] for rows in traced.rows(begin + word - 1)])[
            :, :, cells
        ]  # (layers, H, cells)
        bound = 1 / 255 / 2 * data["maps"]["max"] + 1e-6  # a byte a number
        torch.testing.assert_close(unpacked(data["maps"])[word], rows.mean(1), atol=bound, rtol=0)
        full = data["full"][str(begin + word)]
        torch.testing.assert_close(unpacked(full), rows, atol=full["max"] / 255 / 2 + 1e-6, rtol=0)
    assert data["logprobs"][0] is None
    torch.testing.assert_close(torch.tensor(data["logprobs"][1:]), traced.logprobs[1:], atol=1e-4, rtol=0)
    for word, said in enumerate(data["lens"]["words"]):
        assert (
            abs(said[-1][2] - float(traced.logprobs[begin + word].exp())) < 1e-3
        )  # the last layer is the model
    assert all(abs(sum(shares) - 1) < 1e-3 for shares in data["shares"])
    # a blanked cell, the long way: by an edit of the merger's output
    with r1ov.edit(tiny[0], {"visual.merger.out": blank([15])}):
        hidden = r1ov.trace(*tiny, conversation(), completion=traced.token_ids[begin:])
    falls = torch.tensor([own[15] for own in data["causal"]["falls"]])
    torch.testing.assert_close(falls, (traced.logprobs - hidden.logprobs)[begin:], atol=1e-3, rtol=0)
    assert len(data["ablation"]) == 24
    assert written[0].stat().st_size < 1_000_000


def test_the_image_is_the_one_the_model_gets(tiny, written):
    image = from_patches(written[1].encoded.pixel_values[0], (1, 8, 8), tiny[1].image_processor)
    original = Image.open(ROOT / "r1ov/data/playground/examples/counting.png").convert("RGB")
    assert image.tobytes() == original.tobytes()


@pytest.mark.parametrize("name", SHAPES)
def test_operations_equal_torchs_counter(name):
    config = config_from_dict(config_dict(name))
    grids = [(1, 10, 12), (1, 4, 6)]
    batch = pack([prompt(torch.Generator().manual_seed(0), grids, [3, 2, 7])])
    tokens = len(batch["input_ids"])
    with sdpa_kernel(SDPBackend.MATH), torch.no_grad(), FlopCounterMode(display=False) as counter:
        Qwen2_5_VL(config)(**batch)
    assert (
        sum(part.flops for part in parts(config, tokens, tokens, tokens, grids)) == counter.get_total_flops()
    )


def test_the_caches_bytes_are_those_of_its_tensors(tiny):
    from r1ov.engine.cache import KVCache

    config = tiny[1].config
    cache = KVCache(tiny[0].model, 1, 106)
    cache.admit([106], 1)
    assert cache_bytes(config, 106, 4) == sum(layer.nbytes for layer in cache.layers)


def test_every_stop_of_the_walk_names_a_line_that_is_there(data):
    assert len(data["walk"]) == 12
    for stop in data["walk"]:
        file, line = stop["source"].split(":")
        assert re.match(
            r"\s*(@|def |class )", (ROOT / file).read_text(encoding="utf-8").splitlines()[int(line) - 1]
        )


DRIVE = """<script>
const out={};
const spans=()=>[...document.querySelectorAll("#words span")];
const set=(id,value)=>{const e=document.querySelector(id);e.value=value;e.dispatchEvent(new Event("change"))};
setTimeout(()=>{
  spans()[12].click();
  out.title=document.querySelector("#word-title").textContent;
  set("#layer","3");
  set("#head","2");
  const c=document.querySelector("#image"),b=c.getBoundingClientRect();
  const place={clientX:b.left+b.width*.4,clientY:b.top+b.height*.1,bubbles:true};
  c.dispatchEvent(new PointerEvent("pointermove",place));
  out.hover=document.querySelector("#hover").textContent;
  out.words=spans().length;
  for(const mode of ["causal","grid","lens","map"])set("#layer-of-image",mode);
  dispatchEvent(new KeyboardEvent("keydown",{key:"ArrowRight"}));
  out.on=spans().findIndex(e=>e.className.includes("on"));
  out.wide=document.documentElement.scrollWidth;
  out.inner=innerWidth;
  out.requests=performance.getEntriesByType("resource").map(e=>e.name).filter(n=>!n.startsWith("data:"));
  const p=document.createElement("pre");
  p.id="result";
  p.textContent=JSON.stringify(out);
  document.body.append(p)},300);
</script></html>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine to drive the page with")
@pytest.mark.parametrize("width", [390, 1440])
def test_the_page_in_a_browser(written, tmp_path, width):
    """A word is clicked, a head chosen, a cell hovered; no request leaves the file, nothing overflows."""
    page = tmp_path / "page.html"
    page.write_text(written[0].read_text(encoding="utf-8").replace("</html>", DRIVE), encoding="utf-8")
    # A headless window is at least 500 wide; a frame may be narrower.
    frame = tmp_path / "frame.html"
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += [
        "--allow-file-access-from-files",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--virtual-time-budget=4000",
    ]
    frame.write_text(
        f'<iframe id="f" src="page.html" width="{width}" height="900"></iframe><script>'
        'setTimeout(()=>{document.body.append(document.getElementById("f").contentDocument.getElementById("result"))},2000)'
        "</script>"
    )
    done = subprocess.run(
        [*command, "--dump-dom", f"file://{frame}"], capture_output=True, text=True, timeout=120, check=True
    )
    result = json.loads(
        re.search(r'<pre id="result">(.*?)</pre>', done.stdout, re.DOTALL)[1].replace("&amp;", "&")
    )
    assert result["words"] == 62
    assert "rank 1" in result["title"]
    assert result["hover"].startswith("patch row 0, column 3 · patch")
    assert "cell 1" in result["hover"]
    assert result["on"] == 13
    assert result["requests"] == []
    assert result["wide"] <= result["inner"]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine to drive the page with")
def test_a_long_answer_does_not_freeze_the_page(tiny, tmp_path, monkeypatch):
    """2,000 tokens: the page stays small, opens within 3 s, and a click takes less than 0.1 s."""
    monkeypatch.setattr("r1ov.look.page.PASSES", 1)  # the answer's length is what counts here
    ids = torch.randint(10, 1000, (2000,), generator=torch.Generator().manual_seed(0))
    path = tmp_path / "look.html"
    write_page(path, *tiny, conversation(), "r1ov-tiny", completion=ids)
    assert path.stat().st_size < 10_000_000
    clicks = """<script>
const opened=performance.now(),spans=[...document.querySelectorAll("#words span")];
for(let i=0;i<2000;i+=100)spans[i].click();
const p=document.createElement("pre");p.id="result";
p.textContent=JSON.stringify([spans.length,opened,(performance.now()-opened)/20]);
document.body.append(p)</script></html>"""
    path.write_text(path.read_text(encoding="utf-8").replace("</html>", clicks), encoding="utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", f"file://{path}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    words, opened, click = json.loads(re.search(r'<pre id="result">(.*?)</pre>', done.stdout)[1])
    assert words == 2000
    assert opened < 3000
    assert click < 100


def test_the_command_writes_a_page_and_prints_the_answer(tmp_path):
    command = [warm.python(), "-m", "r1ov.look", "--image", "r1ov/data/playground/examples/counting.png"]
    command += ["--prompt", "How many yellow triangles are there?", "--out", str(tmp_path / "look.html")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "That makes 3." in done.stdout
    text = (tmp_path / "look.html").read_text(encoding="utf-8")
    assert "That makes 3." in text.split("<script")[0]  # without JavaScript too
    assert not re.search(r"(src|href)=.?https?:", text)
    given = [*command, "--completion", "<think>A given reply.</think>"]
    done = subprocess.run(given, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "<think>A given reply.</think>"
    wrong = subprocess.run([*command[:3], "--image", "no.png"], cwd=ROOT, capture_output=True, text=True)
    assert wrong.returncode == 2
    assert len(wrong.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "words", ["--prompt x --out {}", "--prompt x --out {}/none/look.html", "", "score --samples 0"]
)
def test_what_cannot_be_looked_at_or_written_is_said_before_a_model_is_loaded(
    words, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("r1ov.folder.pretrained.load", lambda *_: pytest.fail("loaded"))
    monkeypatch.setattr(sys, "argv", ["look", *words.format(tmp_path).split()])
    assert run(main) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    with pytest.raises(UserError, match="not a file that can be written"):
        generate.Options(prompt="x", look=str(tmp_path / "none/look.html"))
