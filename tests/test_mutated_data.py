"""Damaged data as a training run meets it: pictures are decoded late, in `Steps`, and each row is trained or
counted as bad.
"""

import base64
import json
import random
from collections import Counter

from r1ov.data.formats.reader import open_data
from r1ov.data.formats.records import Record, Tally
from r1ov.data.formats.rows import open_rows
from r1ov.data.steps import Steps
from r1ov.folder.pretrained import read_processor, resolve
from tests.make_data import BLUE, RED, png
from tests.test_formats import FILES
from tests.test_reader import as_json, mutated
from tests.test_records import DATA

PICTURES = {"red.png", "blue.png", *(base64.b64encode(picture).decode() for picture in (RED, BLUE))}


def with_damaged_pictures(rng: random.Random, value: object) -> object:
    """The value with each of its pictures cut off in its midst, one of its bytes changed, or too thin for any
    model.

    Some are found bad when the row is read, some when it is encoded, some only when the picture is decoded,
    and some are still good.
    """
    if isinstance(value, dict):
        return {key: with_damaged_pictures(rng, each) for key, each in value.items()}
    if isinstance(value, list):
        return [with_damaged_pictures(rng, each) for each in value]
    if not isinstance(value, str) or value.removeprefix("data:image/png;base64,") not in PICTURES:
        return value
    data = bytearray(rng.choice((RED, BLUE)))
    place = rng.randrange(40, len(data))
    damage = rng.randrange(4)
    if damage == 0:
        data = png("red", (1, 300))
    elif damage == 1:
        data[place] ^= 1 << rng.randrange(8)
    else:
        del data[place:]
    return base64.b64encode(data).decode()


def test_each_row_of_200_damaged_files_is_trained_or_counted_as_bad(tmp_path):
    processor = read_processor(resolve("r1ov-tiny"))
    seen: Counter[str] = Counter()
    for seed in range(200):
        rng = random.Random(seed)
        source = open_rows(DATA / FILES[seed % len(FILES)])
        rows = [as_json(source[number]) for number in range(len(source))]
        damage = mutated if seed % 2 else with_damaged_pictures
        path = tmp_path / f"{seed}.json"
        path.write_text(json.dumps([damage(rng, row) for row in rows]))
        data = open_data(str(path), need="reply", image_folder=DATA).reader
        step = Steps(data, processor, len(rows), 200)[0]

        tally = Tally(max_bad_share=1.0)
        for item in (*step.items, *step.undecoded):
            tally.add(item)
        trained = sum(len(batch["cu_seqlens"]) - 1 for batch in step.batches)
        assert len(step.items) == len(data) == len(rows)
        assert trained == tally.formats.total() - len(step.undecoded)
        assert trained + tally.bad.total() + tally.dropped.total() == len(rows)
        for item in (*step.items, *step.undecoded):
            assert f"{path}, row " in (item.where if isinstance(item, Record) else item.detail)
        refused = sum("the processor refuses it" in reason for reason in tally.bad.elements())
        seen += Counter(
            trained=trained, refused=refused, undecoded=len(step.undecoded), bad=tally.bad.total()
        )
    assert (
        min(
            seen["trained"],
            seen["refused"],
            seen["undecoded"],
            seen["bad"] - seen["refused"] - seen["undecoded"],
        )
        > 15
    ), seen
