"""The page of items: whole in one file, and safe whatever a model or a benchmark writes."""

import json
from html.parser import HTMLParser

import pytest
from PIL import Image

from r1ov.common import page
from r1ov.data.formats.open_image import lazy_image
from r1ov.data.image import LazyImage
from r1ov.errors import UserError
from r1ov.evaluate.item import Item, Prediction, Verdict
from r1ov.evaluate.prompts import AFTER
from r1ov.evaluate.report import write_page

HOSTILE = "</script><img src=x onerror=alert(1)><!--<script>\u2028&amp;\"'`${1}<!--data--><!--title-->"


def answered(
    number: int, text: str = "<think>a</think>\n<answer>1</answer>", images=(), score: float = 1.0, **item
) -> Verdict:
    id = item.pop("id", f"q{number}")
    return Verdict(
        item=Item(
            bench="b", split="s", id=id, question=item.pop("question", "q"), answer="1", images=images, **item
        ),
        prediction=Prediction(id=id, text=text),
        score=score,
        answer="1",
        method="tag",
        well_formed=1.0,
    )


class Page(HTMLParser):
    """The elements of the page, and the JSON in it."""

    def __init__(self, text: str):
        super().__init__()
        self.elements, self.text, self.last = [], {}, ""
        self.feed(text)
        self.data = json.loads(self.text["script"])

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, attributes))
        self.last = tag

    def handle_data(self, data):
        self.text.setdefault(self.last, data)  # the first script is the JSON


def read(path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def test_hostile_text_is_text(tmp_path):
    rows = [
        answered(0, text=HOSTILE, question=HOSTILE, id=HOSTILE, tags={HOSTILE: HOSTILE, "level": "1"}),
        answered(1, tags={"level": "2"}),
    ]
    write_page(tmp_path / "a.html", HOSTILE, rows)
    write_page(tmp_path / "b.html", "plain", [answered(0), answered(1)])
    hostile, plain = read(tmp_path / "a.html"), read(tmp_path / "b.html")
    assert hostile.elements == plain.elements
    assert hostile.text["title"] == hostile.text["h1"] == HOSTILE.replace("<!--data-->", "<!--data-->")
    item = hostile.data["items"][0]
    assert (item["id"], item["question"], item["samples"][0]["reply"], item["tags"][HOSTILE]) == (
        HOSTILE,
        HOSTILE,
        HOSTILE,
        [HOSTILE],
    )
    assert (tmp_path / "a.html").read_text(encoding="utf-8").count("</script>") == 2


def test_the_question_is_shown_as_it_was_put(tmp_path):
    write_page(tmp_path / "a.html", "t", [answered(0, question="How many?")], "direct")
    (item,) = read(tmp_path / "a.html").data["items"]
    assert item["question"] == f"How many?\n{AFTER['direct']}"


def test_it_needs_no_other_file_and_no_network(tmp_path):
    write_page(
        tmp_path / "a.html", "t", [answered(0, images=[lazy_image(Image.new("RGB", (400, 300), "red"))])]
    )
    found = read(tmp_path / "a.html")
    assert not [
        value for _, attributes in found.elements for name, value in attributes if name in ("src", "href")
    ]
    assert "http" not in (tmp_path / "a.html").read_text(encoding="utf-8")
    (picture,) = found.data["pictures"]
    assert lazy_image(picture["url"]).size == (360, 270)


def test_thoughts_are_parted_from_replies(tmp_path):
    texts = ["<think>why</think>\n<answer>1</answer>", "no tags", "<think>cut", "so </think> Answer: B"]
    write_page(tmp_path / "a.html", "t", [answered(number, text=text) for number, text in enumerate(texts)])
    samples = [item["samples"][0] for item in read(tmp_path / "a.html").data["items"]]
    assert [(sample["thinking"], sample["reply"]) for sample in samples] == [
        ("why", "<answer>1</answer>"),
        (None, "no tags"),
        ("cut", ""),
        ("so", "Answer: B"),  # a thought that the prompt opened
    ]


def test_where_pictures_are_too_many_wrong_answers_keep_theirs_and_equal_ones_are_there_once(
    tmp_path, monkeypatch
):
    colours = [lazy_image(Image.effect_noise((150, 150), 90 + number).convert("RGB")) for number in range(4)]
    rows = [answered(number, images=[colours[number]], score=float(number < 3)) for number in range(4)]
    monkeypatch.setattr(page, "ROOM", 1)  # the first is always there
    write_page(tmp_path / "a.html", "t", rows)
    data = read(tmp_path / "a.html").data
    assert [(len(item["pictures"]), item["left"]) for item in data["items"]] == [
        (0, 1),
        (0, 1),
        (0, 1),
        (1, 0),
    ]
    monkeypatch.setattr(page, "ROOM", 1 << 20)
    write_page(tmp_path / "a.html", "t", [answered(number, images=[colours[0]]) for number in range(3)])
    data = read(tmp_path / "a.html").data
    assert len(data["pictures"]) == 1
    assert [item["pictures"] for item in data["items"]] == [[0]] * 3


def test_a_picture_that_cannot_be_decoded_leaves_the_page_whole(tmp_path):
    def broken():
        raise UserError("x")

    write_page(tmp_path / "a.html", "t", [answered(0, images=[LazyImage((5, 5), broken)])])
    assert read(tmp_path / "a.html").data["items"][0]["left"] == 1


@pytest.mark.parametrize("tags", [{"few": ["a", "b", "b", "a"]}, {}])
def test_filters_are_for_tags_of_several_values(tmp_path, tags):
    rows = [
        answered(number, tags={name: values[number] for name, values in tags.items()} | {"same": "x"})
        for number in range(4)
    ]
    write_page(tmp_path / "a.html", "t", rows)
    assert read(tmp_path / "a.html").data["tags"] == list(tags)
