"""Whole runs against a server that misbehaves: every row ends once, nothing answered is asked again, limits
hold, no key is written.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from r1ov.common.journal import Journal
from r1ov.common.remote import NoUse
from r1ov.common.stopping import stopping
from r1ov.data.formats.open_image import lazy_image
from r1ov.errors import UserError
from r1ov.formalize.ask import Asker
from r1ov.formalize.rows import Row, row_to_dict
from tests.formalize_runs import CONCURRENCY, Run, make_rows
from tests.openai_server import BODIES, OpenAIServer, content_of, text_of

ROOT = Path(__file__).parent.parent
KEY = "sk-never-to-be-seen"
MISDEEDS = [
    "429 0.05",
    "500",
    "503 0.1",
    "drop",
    "drop-mid",
    "truncated",
    "refusal",
    "empty",
    "huge",
    "400",
    "length",
]
MISDEEDS += list(BODIES)


def chance(*parts: object) -> float:
    """In [0, 1), the same for the same parts."""
    return int(hashlib.sha256(repr(parts).encode()).hexdigest()[:8], 16) / 2**32


def misbehaving(share: float):
    """A schedule: which requests fail, and how, hangs on what they ask and how often it was asked."""

    def behave(body: dict, before: int) -> str:
        content = content_of(body)
        if chance(content, before) >= share:
            return "ok"
        return MISDEEDS[int(chance(content, before, "which") * len(MISDEEDS))]

    return behave


def values(rows: list[Row]) -> list[dict]:
    return [row_to_dict(row) for row in rows]


def test_every_row_ends_once_whatever_the_server_does(tmp_path):
    def behave(body: dict, before: int) -> str:
        luck = chance(content_of(body), "slow")
        return (
            ("hang 9" if luck < 0.02 else "drip")
            if luck < 0.04 and before == 0
            else misbehaving(0.5)(body, before)
        )

    with OpenAIServer(behave) as server:
        run = Run(tmp_path, server.url, make_rows(60), timeout=2.0, attempts=3, concurrency=16)
        rows = run.go()
    outcomes = Counter(row.outcome for row in rows)
    assert [row.id for row in rows] == [f"row-{n}" for n in range(60)]
    assert set(outcomes) == {"done", "rejected", "failed"}
    assert run.outcomes == outcomes
    assert all(row.reason for row in rows if row.outcome != "done")
    assert len((tmp_path / "rows.journal").read_text().splitlines()) == 60
    assert max(server.answered.values()) == 1
    reasons = " ".join(row.reason or "" for row in rows)
    for word in ("refused", "empty", "larger than", "cut off", "3 times in all", "answered 400"):
        assert word in reasons
    # A row that is not failed has the server's own answers.
    for row in rows:
        if row.outcome != "failed":
            assert all(
                answer.startswith("answer ") for answer in (row.description, row.draft, row.verdict["told"])
            )


def test_a_second_start_asks_nothing_and_gives_the_same(tmp_path):
    with OpenAIServer(misbehaving(0.3)) as server:
        first = Run(tmp_path, server.url, make_rows(20), attempts=3).go()
        asked = len(server.events)
        (tmp_path / "rows.journal").unlink()  # what failed for good is asked again, what was answered is not
        answered = server.answered
        again = Run(tmp_path, server.url, make_rows(20), attempts=3)
        second = again.go()
        assert max((server.answered - answered).values(), default=0) <= 1
        assert max(server.answered.values()) == 1
        assert values(Run(tmp_path, server.url, make_rows(20)).go()) == values(second)
    assert asked > 60
    for before, after in zip(first, second, strict=True):
        assert before.outcome == "failed" or values([after]) == values([before])
    assert again.asker.spent["reused"] >= sum(3 * (row.outcome != "failed") for row in first)


def test_killed_at_ten_random_instants_it_repeats_no_request_that_had_been_answered(tmp_path):
    def behave(body: dict, before: int) -> str:
        if (luck := chance(content_of(body), "always")) < 0.1:
            return "refusal" if luck < 0.05 else "length"
        kind = misbehaving(0.3)(body, before)
        return kind if kind in ("500", "drop", "drop-mid", "truncated", "429 0.05", "malformed") else "ok"

    with OpenAIServer(
        behave, latency=0.02, reply=lambda body: f"{text_of(body)[:9]} {content_of(body)}"
    ) as server:
        command = [
            sys.executable,
            "-m",
            "tests.formalize_runs",
            str(tmp_path / "killed"),
            server.url,
            "80",
            "10",
            "0",
        ]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stderr
        events, answered = list(server.events), server.answered
        whole = Run(tmp_path / "whole", server.url, make_rows(80), attempts=12, concurrency=16).go()
    kills = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(kills) == 10
    under_way: set[str] = set()
    kept_before = -1
    for number, texts in enumerate(kills):
        kept = {text.rpartition(" ")[2] for text in texts}
        assert len(kept) >= kept_before
        kept_before = len(kept)
        # What was on the disk when the process died was not asked for again by any later one,
        start = {key: int(key.removeprefix("start-")) for key in {event.key for event in events}}
        assert not [event for event in events if start[event.key] > number and event.content in kept]
        # and what it had been answered was on the disk, but for what was just then on its way, one answer a
        # thread at most.
        lost = {event.content for event in events if start[event.key] == number and event.answered} - kept
        assert len(lost) <= CONCURRENCY
        under_way |= lost
    assert 0 < kept_before < 3 * 80
    assert {content for content, count in answered.items() if count > 1} <= under_way
    # And nothing was lost, nothing came twice: the same as without a kill.
    killed = Run(tmp_path / "killed", "http://127.0.0.1:9/v1", make_rows(80)).go()
    assert values(killed) == values(whole)
    assert len((tmp_path / "killed" / "rows.journal").read_text().splitlines()) == 80


def test_what_a_kill_left_of_a_line_is_dropped_and_a_damaged_line_is_done_again(tmp_path):
    path = tmp_path / "x.journal"
    journal = Journal(path, "key")
    for number in range(3):
        journal.append({"key": number, "text": "ü\ud800\n"})
    journal.close()
    whole = path.read_bytes()
    for end in range(len(whole) - 1, len(whole) - 12, -1):
        path.write_bytes(whole[:end])
        journal = Journal(path, "key")
        assert (0 in journal, 1 in journal, 2 in journal) == (True, True, False)
        journal.append({"key": 2, "text": "new"})
        assert [journal.get(number)["text"] for number in range(3)] == ["ü\ud800\n", "ü\ud800\n", "new"]
        journal.append({"key": 0, "text": "newer"})
        assert [record["text"] for record in journal] == ["newer", "ü\ud800\n", "new"]
        journal.close()
    lines = whole.split(b"\n")
    path.write_bytes(b"\n".join([lines[0], b"\0" * 50, b'["no object"]', b"{}", lines[2], b""]))
    journal = Journal(path, "key")
    assert (0 in journal, 1 in journal, 2 in journal, journal.unreadable) == (True, False, True, 3)


def test_a_journal_on_a_full_disk_keeps_no_half_line(tmp_path, monkeypatch):
    journal = Journal(tmp_path / "x.journal", "key")
    journal.append({"key": 1})
    write = os.write

    def full(file: int, data: bytes) -> int:
        if len(data) > 4:
            return write(file, data[:4])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(
        os, "write", lambda file, data: full(file, data) if len(data) > 15 else full(file, b"1234")
    )
    with pytest.raises(OSError, match="No space"):
        journal.append({"key": 2, "text": "a" * 12})
    monkeypatch.undo()
    assert 2 not in journal
    journal.append({"key": 3})
    assert (tmp_path / "x.journal").read_text() == '{"key": 1}\n{"key": 3}\n'


def test_a_record_is_on_the_disk_when_append_returns(tmp_path, monkeypatch):
    synced, fsync = [], os.fsync
    journal = Journal(tmp_path / "x.journal", "key")
    monkeypatch.setattr(
        os, "fsync", lambda file: synced.append((tmp_path / "x.journal").read_text()) or fsync(file)
    )
    journal.append({"key": 1})
    assert synced == ['{"key": 1}\n']


def test_two_processes_do_not_work_in_one_folder(tmp_path):
    journal = Journal(tmp_path / "x.journal", "key")
    with pytest.raises(UserError, match="another process is at work"):
        Journal(tmp_path / "x.journal", "key")
    journal.close()


def test_the_budget_stops_the_run_as_soon_as_it_is_used_up_and_a_larger_one_goes_on(tmp_path):
    with OpenAIServer(latency=0.01, usage=(36, 50)) as server:
        run = Run(tmp_path, server.url, make_rows(40), tokens=3000)
        rows, spent = run.go(), run.asker.spent
        assert run.asker.is_over
        assert {row.outcome for row in rows} >= {None, "done"}
        assert 3000 <= spent["tokens"] < 3000 + 86 * CONCURRENCY  # those under way end
        assert len(server.events) == spent["requests"]
        again = Run(tmp_path, server.url, make_rows(40), tokens=3000)
        assert values(again.go()) == values(rows)  # the budget counts over all starts
        assert len(server.events) == spent["requests"]
        rest = Run(tmp_path, server.url, make_rows(40))
        assert None not in {row.outcome for row in rest.go()}
        assert set(server.answered.values()) == {1}
    assert len(server.events) == 120
    assert rest.asker.spent["tokens"] == 120 * 86


def test_no_more_requests_run_at_once_than_allowed(tmp_path):
    for concurrency, latency in ((1, 0.01), (5, 0.1)):
        with OpenAIServer(latency=latency) as server:
            Run(tmp_path / str(concurrency), server.url, make_rows(12), concurrency=concurrency).go()
        assert server.peak == concurrency


def test_a_server_that_names_a_time_is_asked_again_then(tmp_path):
    with OpenAIServer(lambda body, before: "429 0.5" if before == 0 else "ok") as server:
        rows = Run(tmp_path, server.url, make_rows(1)).go()
    begun = sorted(event.begun for event in server.events)
    assert all(later - earlier >= 0.5 for earlier, later in zip(begun[::2], begun[1::2], strict=True))
    assert {row.outcome for row in rows} == {"done"}


@pytest.mark.parametrize(
    ("behaviour", "told"), [("429 21600", "asks to wait for 360 minutes"), ("401", "answered 401")]
)
def test_a_server_that_will_answer_nothing_ends_the_run_at_once(tmp_path, behaviour, told):
    with OpenAIServer(lambda body, before: behaviour) as server:
        run = Run(tmp_path, server.url, make_rows(50), key=KEY)
        with pytest.raises(NoUse, match=told) as error:
            run.go()
    assert len(server.events) <= CONCURRENCY
    assert not run.outcomes
    assert KEY not in str(error.value)


def test_a_full_disk_ends_the_run_before_more_is_paid_for(tmp_path, monkeypatch):
    def full(self, record):
        raise OSError(28, "No space left on device")

    with OpenAIServer() as server:
        run = Run(tmp_path, server.url, make_rows(50))
        monkeypatch.setattr(run.answers, "append", full.__get__(run.answers))
        with pytest.raises(NoUse, match=r"answers\.journal: No space left"):
            run.go()
    assert len(server.events) <= CONCURRENCY
    assert not run.outcomes


def test_waits_between_attempts_grow(tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr(Asker, "_wait", lambda self, seconds: waits.append(seconds))
    with OpenAIServer(lambda body, before: "500") as server:
        rows = Run(tmp_path, server.url, make_rows(1), attempts=8, first_wait=1.0).go()
    assert "answered 500" in rows[0].reason
    assert len(server.events) == 8
    between = [wait for wait in waits if wait > 0]
    for number, wait in enumerate(between):
        assert min(60, 2**number) / 2 <= wait <= min(60, 2**number)
    assert len(between) == 7


def test_two_rows_that_ask_the_same_pay_once(tmp_path):
    rows = [replace(row, question="the same?", image=None) for row in make_rows(8)]
    with OpenAIServer(latency=0.02) as server:
        Run(tmp_path, server.url, rows).go()
    assert len(server.events) == 3


def test_answers_are_known_by_all_that_they_depend_on(tmp_path):
    red, blue = (lazy_image(Image.new("RGB", (8, 8), colour)) for colour in ("red", "blue"))
    turned = lazy_image(Image.new("RGB", (4, 16), "red"))
    with OpenAIServer() as server:
        run = Run(tmp_path, server.url, [])
        questions = [
            ("describer", "a", None, None),
            ("reasoner", "a", None, None),
            ("describer", "b", None, None),
            ("describer", "a", red, None),
            ("describer", "a", blue, None),
            ("describer", "a", turned, None),
            ("describer", "a", None, "b"),
        ]
        for question in questions * 2:
            run.asker(*question)
        assert len(server.events) == len(questions)
        run.answers.close()
        run.finished.close()


def test_rows_that_failed_are_tried_again_when_asked_for(tmp_path):
    kind = "refusal"
    with OpenAIServer(lambda body, before: kind if "question 2?" in text_of(body) else "ok") as server:
        first = Run(tmp_path, server.url, make_rows(4)).go()
        kind = "ok"
        asked = len(server.events)
        assert values(Run(tmp_path, server.url, make_rows(4)).go()) == values(first)
        assert len(server.events) == asked
        again = Run(tmp_path, server.url, make_rows(4), retry_failed=True)
        second = again.go()
        assert len(server.events) == asked + 3
        assert len((tmp_path / "rows.journal").read_text().splitlines()) == 5  # and only that row
        assert again.asker.spent["requests"] == asked + 3  # the refusal stays on the bill
        # And once more: the journal holds both, and the last counts.
        once_more = Run(tmp_path, server.url, make_rows(4))
        assert once_more.asker.spent["requests"] == asked + 3
        assert values(once_more.go()) == values(second)
    assert [row.outcome for row in first] == ["done", "done", "failed", "rejected"]
    assert [row.outcome for row in second] == ["done", "done", "done", "rejected"]


def test_a_row_that_breaks_our_code_or_cannot_be_opened_fails_alone(tmp_path, capfd):
    rows = make_rows(6)
    broken = lazy_image(Image.new("RGB", (8, 8)))
    object.__setattr__(
        broken, "load", lambda: exec("raise UserError('row 2: not a picture')", {"UserError": UserError})
    )
    rows[1] = replace(rows[1], image=broken)
    rows[4] = replace(rows[4], gold="no number")
    with OpenAIServer() as server:
        plain = Run(tmp_path / "plain", server.url, make_rows(6)).go()
        ended = Run(tmp_path / "odd", server.url, rows).go()
    assert [row.outcome for row in ended] == ["done", "failed", "done", "rejected", "failed", "done"]
    assert "not a picture" in ended[1].reason
    assert ended[4].reason.startswith("crashed: ValueError(")
    assert "Traceback" in capfd.readouterr().err
    assert values([ended[n] for n in (0, 2, 3, 5)]) == values([plain[n] for n in (0, 2, 3, 5)])


def test_a_folder_goes_on_with_its_own_rows_only(tmp_path):
    with OpenAIServer() as server:
        Run(tmp_path, server.url, make_rows(4)).go()
        longer = Run(tmp_path, server.url, make_rows(6))
        assert [row.outcome is None for row in longer.go()] == [False] * 6
        other = [replace(make_rows(1)[0], question="another?"), *make_rows(9)[1:]]
        asked = len(server.events)
        with pytest.raises(UserError, match="not the one that this folder began with"):
            Run(tmp_path, server.url, other, concurrency=1).go()
        assert len(server.events) == asked


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_what_is_under_way_finish_and_the_run_goes_on_later(tmp_path, number):
    with OpenAIServer(latency=0.05) as server:
        run = Run(tmp_path, server.url, make_rows(40))

        def interrupt() -> None:
            while len(server.events) < 20:
                time.sleep(0.01)
            os.kill(os.getpid(), number)

        threading.Thread(target=interrupt, daemon=True).start()
        with stopping() as run.stop:
            run.asker.stop = run.stop
            rows = run.go()
        assert len(server.events) < 60
        assert not run.asker.is_over
        assert {row.outcome for row in rows} >= {None, "done"}
        assert None not in {
            row.outcome for row in Run(tmp_path, server.url, make_rows(40), concurrency=16).go()
        }
    assert len(server.events) == 120
    assert set(server.answered.values()) == {1}


def test_a_run_writes_its_key_nowhere(tmp_path, capfd):
    # Which answers give the key away hangs on what was asked: requests come in any order.
    def reply(body: dict) -> str:
        return f"answer {KEY if chance(content_of(body), 'key') < 0.3 else ''}"

    with OpenAIServer(misbehaving(0.4), reply=reply) as server:
        rows = Run(tmp_path, server.url, make_rows(12), key=KEY, attempts=2).go()
    assert all(headers["authorization"] == f"Bearer {KEY}" for headers in server.headers)
    assert any("***" in (row.description or "") for row in rows)
    written = [file.read_text() for file in tmp_path.rglob("*") if file.is_file()]
    assert len(written) == 2
    assert not any(KEY in text for text in [*written, *capfd.readouterr(), str(rows)])
