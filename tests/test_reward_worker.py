"""Functions in processes of their own: killed when overdue, with all that they started; and what is built on
them.
"""

import os
import time
from contextlib import closing

import pytest

from r1ov.errors import UserError
from r1ov.reward import score_answer
from r1ov.reward.rules.workers import MAX_TIMEOUTS, MathVerify, UserReward, Worker, WorkerError, WorkerTimeout

SOURCE = """
import os, subprocess, sys, time

def double(x): print("noise"); return 2 * x
def pid(): return os.getpid()
def hang():
    while True: pass
def hang_with_child():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    open(os.path.join(os.path.dirname(__file__), "child"), "w").write(str(child.pid))
    time.sleep(600)
def fail(): raise KeyError("colour")
def die(): os._exit(3)
def call(name, *arguments): return globals()[name](*arguments)
def nan(): return float("nan")

def judge(gold, answer):
    if "9^9" in answer: hang()
    if answer == "\\\\boom": fail()
    return gold == "\\\\sin^2 x" and answer == "1 - \\\\cos^2 x"

def mine(prompt, completion, row, info):
    if completion == "hang": hang()
    if completion == "fail": fail()
    if completion == "text": return "good"
    if completion == "parts": return {"length": len(prompt), "none": None}
    return {"gold": row["answer"], "none": None, "one": 1}.get(completion, info["step"])
"""


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(SOURCE)
    return path


class Counted(MathVerify):
    """Keeps what its calls came to."""

    outcomes = ()

    def __call__(self, gold, answer):
        self.outcomes += (super().__call__(gold, answer),)
        return self.outcomes[-1]


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] != "Z"


def gone(pid: int) -> bool:
    """Within a few seconds: the system takes a moment to end a killed process."""
    for _ in range(100):
        if not is_running(pid):
            return True
        time.sleep(0.05)
    return False


def test_results_come_back_and_overdue_or_dead_processes_are_replaced(source):
    with closing(Worker(f"{source}:call", timeout=60)) as worker:
        assert worker("double", 21) == 42
        assert worker("double", "ab" * 100_000) == "ab" * 200_000  # more than a pipe holds, both ways
        first = worker("pid")
        assert worker("pid") == first != os.getpid()
        with pytest.raises(WorkerError, match=r"KeyError: 'colour' \(mine.py, line \d+\)"):
            worker("fail")
        with pytest.raises(WorkerError, match="not JSON compliant"):
            worker("nan")
        assert worker("pid") == first  # a mistake of the function's does not cost the process
        worker.timeout = 1
        with pytest.raises(WorkerTimeout):
            worker("hang")
        assert gone(first)
        worker.timeout = 60
        second = worker("pid")
        assert second != first
        with pytest.raises(WorkerError, match="its process ended"):
            worker("die")
        third = worker("pid")
    assert gone(third)


def test_what_the_function_started_is_killed_with_it(source):
    with closing(Worker(f"{source}:hang_with_child", timeout=60)) as worker:
        worker.start()
        worker.timeout = 5
        with pytest.raises(WorkerTimeout):
            worker()
    assert gone(int((source.parent / "child").read_text()))


def test_symbolic_equality_is_asked_only_where_the_rules_leave_it_open_and_never_pays_for_a_failure(source):
    verify = Counted(f"{source}:judge", timeout=60)
    assert score_answer("3", "4", "math", verify=verify) == 0.0
    assert score_answer(r"2\sqrt{3}", r"\sqrt{12}", "math", verify=verify) == 1.0
    assert verify.outcomes == ()
    assert score_answer(r"1 - \cos^2 x", r"\sin^2 x", "math", verify=verify) == 1.0
    assert score_answer(r"1 - \cos x", r"\sin^2 x", "math", verify=verify) == 0.0
    assert score_answer(r"\int x", r"\oint x", "math", verify=verify) == 0.0
    assert score_answer(r"\boom", r"\oint x", "math", verify=verify) == 0.0
    assert verify.outcomes == (True, False, False, None)  # the last one raised
    for hedge in (r"1 or \sin^2 x", r"\cos x, 1 - \cos^2 x", "5 7", r"\oint x? \int x", r"a = \oint x"):
        assert score_answer(hedge, r"\oint x", "math", verify=verify) == 0.0
    assert len(verify.outcomes) == 4  # a judge that picks one formula out of several is not asked
    verify.timeout = 1
    assert score_answer("9^9^9", r"\sqrt{2}", "math", verify=verify) == 0.0
    assert (len(verify.outcomes), verify.outcomes[-1]) == (5, None)
    verify.close()


@pytest.fixture(scope="module")
def math_verify():
    pytest.importorskip("math_verify")
    verify = Counted(timeout=60)
    yield verify
    verify.close()


@pytest.mark.parametrize(
    ("gold", "right", "wrong"),
    [
        (r"(-\infty, 2) \cup (3, \infty)", r"(3,\infty) \cup (-\infty,2)", r"(3,\infty) \cup (-\infty,2]"),
        ("x > 3", "3 < x", "3 > x"),
        (r"x \in [2, 3)", r"x\in\left[2,3\right)", r"x \in (2, 3)"),
        (
            r"\begin{pmatrix}1&2\\3&4\end{pmatrix}",
            r"\begin{bmatrix}1 & 2 \\ 3 & 4\end{bmatrix}",
            r"\begin{bmatrix}1&2\\4&3\end{bmatrix}",
        ),
        (r"\int_0^1 x\,dx", r"\frac{1}{2}", r"\frac{1}{3}"),
        (r"\sin^2 x + \cos^2 x", "1", "2"),
        (r"\sqrt{3+2\sqrt{2}}", r"1+\sqrt{2}", r"2+\sqrt{1}"),
        (r"\frac{1}{2004!}", r"\frac{1}{2004 \cdot 2003!}", r"\frac{1}{2006!}"),
        (r"x = \frac{1}{2004!}", r"x = \dfrac{1}{2004!}", r"x = \frac{1}{2006!}"),
        (
            r"\frac{2^{2005}+1}{3 \cdot 2^{2006}}",
            r"\frac{2^{2005}+1}{2^{2006} \cdot 3}",
            r"\frac{1}{3 \cdot 2^{2006}}",
        ),
    ],
)
def test_math_verify_has_the_last_word_and_is_not_taken_in_by_tiny_numbers(math_verify, gold, right, wrong):
    """The last three are answers that math-verify alone calls equal, whatever their sizes."""
    assert score_answer(gold, gold, verify=math_verify) == 1.0
    assert score_answer(right, gold, verify=math_verify) == 1.0
    assert score_answer(wrong, gold, verify=math_verify) == 0.0


def test_math_verify_is_not_asked_about_words_and_rows_that_go_on(math_verify):
    before = len(math_verify.outcomes)
    for gold, wrong in (
        ("3 cats and 2 dogs", "2 dogs"),
        (r"1, 2, \ldots, n", r"1, 3, \ldots, n"),
        ("blue", "red"),
        ("12:00", "1:00"),
    ):
        assert score_answer(wrong, gold, verify=math_verify) == 0.0
    assert len(math_verify.outcomes) == before


def test_a_users_reward_gives_scores_by_name(source):
    mine = UserReward(f"{source}:mine")
    assert mine("abc", "gold", {"answer": 0.5}, {"step": 3}) == {"mine": 0.5}
    assert mine("abc", "none", {"answer": 0}, {"step": 3}) == {"mine": None}
    assert mine("abc", "other", {"answer": 0}, {"step": 3}) == {"mine": 3.0}
    assert mine("abc", "parts", {"answer": 0}, {"step": 3}) == {"mine/length": 3.0, "mine/none": None}
    with pytest.raises(UserError, match="mine is 'good'; expected a number"):
        mine("abc", "text", {"answer": 0}, {"step": 3})
    with pytest.raises(UserError, match=r"--reward: .*KeyError: 'colour'"):
        mine("abc", "fail", {"answer": 0}, {"step": 3})
    mine.close()


def test_a_users_reward_that_is_always_overdue_stops_the_run(source, monkeypatch):
    mine = UserReward(f"{source}:mine")

    def overdue(*_):
        raise WorkerTimeout("no result in time")

    monkeypatch.setattr(Worker, "__call__", overdue)
    for _ in range(MAX_TIMEOUTS - 1):
        assert mine("abc", "hang", {}, {}) == {"mine": None}
    with pytest.raises(UserError, match=f"{MAX_TIMEOUTS} calls in a row"):
        mine("abc", "hang", {}, {})
    assert mine.timeouts == MAX_TIMEOUTS


def test_a_users_reward_that_cannot_be_loaded_stops_the_run_at_once(source, tmp_path):
    for target in ("nowhere.py:mine", str(source), f"{source}:", "json:dumps"):
        with pytest.raises(UserError, match=r"expected FILE\.py:function"):
            UserReward(target)
    with pytest.raises(UserError, match="has no function 'yours'"):
        UserReward(f"{source}:yours")
    broken = tmp_path / "broken.py"
    broken.write_text("import nothing_of_this_name\ndef mine(*_): return 1")
    with pytest.raises(UserError, match="ModuleNotFoundError"):
        UserReward(f"{broken}:mine")
