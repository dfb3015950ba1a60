"""A family that the playground does not ask about, as files that r1ov reads: what stands in a named cell?
What LoRA learns of it beside all weights, in r1ov/train/README.md, was made of these.

    python -m tests.new_family FOLDER
"""

import json
import sys
from pathlib import Path
from random import Random

from r1ov.data.playground import paint, split_of
from r1ov.data.playground.grid import scatter, scene
from r1ov.data.playground.scene import PAPER, Scene, pairs

ROWS = {"train": 10_000, "test": 2_000}
WORDINGS = ("What is in cell {cell}?", "Which object is at {cell}?", "Name the object in {cell}.")


def make(rng: Random) -> Scene:
    things = scatter(rng, rng.choices(pairs("normal"), k=rng.randint(2, 6)))
    thing = rng.choice(things)
    question = rng.choice(WORDINGS).format(cell=thing.cell)
    return scene(rng.choice(PAPER), things, (question, "text"), "", thing.name)


def main(folder: Path) -> None:
    """FOLDER/train.jsonl and test.jsonl, with their pictures; scenes of one are not in the other."""
    for split, number in ROWS.items():
        (folder / split).mkdir(parents=True, exist_ok=True)
        rng, rows = Random(split), []
        while len(rows) < number:
            made = make(rng)
            if split_of("counting", made) == split:
                name = f"{split}/{len(rows)}.png"
                paint(made).save(folder / name)
                turns = {"human": f"<image>{made.question}", "gpt": f"<answer>{made.answer}</answer>"}
                talk = [{"from": who, "value": value} for who, value in turns.items()]
                rows.append(json.dumps({"image": name, "conversations": talk}) + "\n")
        (folder / f"{split}.jsonl").write_text("".join(rows))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
