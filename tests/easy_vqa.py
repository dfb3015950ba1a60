"""easy-vqa (MIT, a wheel of 3 MB: 48,000 questions about drawn shapes) as files that r1ov reads: what the
figures of LoRA in r1ov/train/README.md were made of.

    pip download --no-deps easy-vqa && unzip easy_vqa-*.whl
    python -m tests.easy_vqa easy_vqa FOLDER
"""

import json
import sys
from pathlib import Path


def main(package: Path, folder: Path) -> None:
    """FOLDER/train.jsonl and test.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        with (folder / f"{split}.jsonl").open("w") as file:
            for text, answer, number in json.loads((package / "data" / split / "questions.json").read_text()):
                turns = {"human": f"<image>{text}", "gpt": f"<answer>{answer}</answer>"}
                row = {
                    "image": str(package.resolve() / "data" / split / "images" / f"{number}.png"),
                    "conversations": [{"from": who, "value": value} for who, value in turns.items()],
                }
                print(json.dumps(row), file=file)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
