"""A small formalization that asks a server three things a row; as a program, one that is killed and started
again.

    python -m tests.formalize_runs FOLDER URL ROWS KILLS SEED

prints one JSON line for each kill: the texts of the answers on the disk by then. Start number N sends the key
    "start-N".
"""

import json
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from r1ov.common.journal import Journal
from r1ov.common.remote import AskFailed, Remote
from r1ov.data.formats.open_image import lazy_image
from r1ov.formalize.ask import Asker
from r1ov.formalize.models import endpoint
from r1ov.formalize.rows import Row
from r1ov.formalize.run import in_order, process

CONCURRENCY = 4


def make_rows(count: int) -> list[Row]:
    """Every fifth without a picture; questions all different."""
    image = lazy_image(Image.new("RGB", (8, 8), "red"))
    return [
        Row(id=f"row-{n}", question=f"question {n}?", image=image if n % 5 else None, gold=str(n))
        for n in range(count)
    ]


class Run:
    """One start of a run in a folder; `go` returns the rows in order, as they are then known."""

    def __init__(self, folder: Path, url: str, rows: Sequence[Row], **more):
        given = {name: more.pop(name) for name in ("timeout", "key", "max_tokens") if name in more}
        remote = Remote(url, "m", **({"timeout": 10.0} | given))
        self.rows, self.stop, self.outcomes = rows, threading.Event(), Counter()
        self.retry_failed, self.concurrency = (
            more.get("retry_failed", False),
            more.pop("concurrency", CONCURRENCY),
        )
        self.answers, self.finished = (
            Journal(folder / "answers.journal", "key"),
            Journal(folder / "rows.journal", "row"),
        )
        models = dict.fromkeys(("describer", "reasoner", "judge"), endpoint(remote, 2_000_000))
        more["max_tokens_spent"] = more.pop("tokens", None)
        self.asker = Asker(models, self.answers, stop=self.stop, **({"first_wait": 0.02} | more))

    def work(self, row: Row) -> Row:
        """Three questions, each of which holds the answer to the one before."""
        description = self.asker("describer", f"Describe: {row.question}", row.image)
        draft = self.asker("reasoner", f"Think: {description}", system="Think.")
        verdict = self.asker("judge", f"Judge: {draft}")
        row = replace(row, description=description, draft=draft, verdict={"told": verdict})
        return (
            replace(row, outcome="rejected", reason="filter: bad luck")
            if int(row.gold) % 7 == 3
            else replace(row, outcome="done")
        )

    def safely(self, row: Row) -> Row:
        try:
            return self.work(row)
        except AskFailed as error:
            return replace(row, outcome="failed", reason=f"stage: {error}")

    def go(self) -> list[Row]:
        try:
            process(
                iter(self.rows),
                self.safely,
                self.finished,
                concurrency=self.concurrency,
                stop=self.stop,
                retry_failed=self.retry_failed,
                tell=lambda row: self.outcomes.update([row.outcome]),
            )
            return list(in_order(self.rows, self.finished))
        finally:
            self.answers.close()
            self.finished.close()


def texts(folder: Path) -> list[str]:
    """Of the answers whose whole line is on the disk."""
    path = folder / "answers.journal"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [record["text"] for record in map(json.loads, lines)]


def child(folder: Path, url: str, rows: int, start: int) -> int:
    """The process id of a fork that runs, and exits with 0 when it is done."""
    process_id = os.fork()
    if process_id:
        return process_id
    status = 1
    try:
        Run(folder, url, make_rows(rows), attempts=12, key=f"start-{start}").go()
        status = 0
    finally:
        os._exit(status)


def main() -> None:
    folder, url, rows, kills, rng = (
        Path(sys.argv[1]),
        sys.argv[2],
        int(sys.argv[3]),
        int(sys.argv[4]),
        random.Random(int(sys.argv[5])),
    )
    for number in range(kills):
        kept, process_id = len(texts(folder)), child(folder, url, rows, number)
        while number and len(texts(folder)) == kept:  # on a busy machine too, each start gets somewhere
            time.sleep(0.005)
        time.sleep(rng.uniform(0.0, 0.12))
        if os.waitpid(process_id, os.WNOHANG)[0]:
            break
        os.kill(process_id, signal.SIGKILL)
        os.waitpid(process_id, 0)
        print(json.dumps(texts(folder)))
    assert os.waitpid(child(folder, url, rows, kills), 0)[1] == 0


if __name__ == "__main__":
    main()
