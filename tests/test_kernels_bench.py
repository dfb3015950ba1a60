"""What of the bench needs no GPU: its counts of work, its proofs in float64, its verdicts, its table and its
command line.
"""

import json
import runpy
import sys
from dataclasses import replace

import pytest
import torch

from kernels import token_logprobs
from tests import bench_kernels as bench
from tests.bench_kernels_cases import attention_bytes, attention_case, attention_flops, decode_case
from tests.bench_kernels_logprobs import logprobs_case, logprobs_flops, small_cases


class FakeGpu:
    """Runs on the CPU; the n-th contender of a round takes n milliseconds."""

    device = "cpu"

    def __init__(self):
        self.turn = []

    def milliseconds(self, steps):
        if steps not in self.turn:
            self.turn.append(steps)
        return 1.0 + self.turn.index(steps)

    def replayed(self, steps):
        return steps, 2

    def peak_megabytes(self, step):
        before, run = step
        run(before())
        return 12.0

    def clean(self):
        pass


def attention(mode="forward", causal=True, unit="TFLOP/s"):
    return attention_case("G1", [5, 9, 3], 4, 2, 16, causal, mode, "a goal", unit)


CASES = {
    "attention": attention(),
    "attention backward": attention("backward", causal=False),
    "decode": decode_case("G5", 3, 12, "a goal"),
    "log-probs": logprobs_case("G7", 70, 16, 300, False, "a goal"),
    "loss": logprobs_case("G8", 70, 16, 300, True, "a goal"),
    **{case.name.split(",")[0]: case for case in small_cases(6, 32, 48, 2, 16)},
}


def test_attention_work_counts_the_pairs_that_see_each_other():
    lengths, heads, dim = [5, 9, 3], 4, 16
    seen = sum(int(torch.ones(n, n).tril().sum()) for n in lengths)
    assert (
        attention_flops(lengths, heads, dim, causal=True) == 2 * 2 * dim * heads * seen
    )  # two products, multiply and add
    assert attention_flops(lengths, heads, dim, causal=False) == 2 * 2 * dim * heads * (25 + 81 + 9)
    assert attention("backward").work == 2.5 * attention().work


def test_moved_bytes_are_those_of_the_tensors():
    inputs = attention("backward").make(0, "cpu")
    once = {
        name: inputs[name].nbytes for name in ("q", "k", "v", "grad")
    }  # the output is as large as its gradient
    assert attention_bytes(17, 4, 2, 16, backward=False) == once["q"] + once["k"] + once["v"] + once["grad"]
    assert attention_bytes(17, 4, 2, 16, backward=True) == 2 * sum(once.values())
    inputs = CASES["decode"].make(0, "cpu")
    assert CASES["decode"].work == 2 * inputs["q"].nbytes + inputs["k"].nbytes + inputs["v"].nbytes
    for case in small_cases(6, 32, 48, 2, 16):
        inputs = case.make(0, "cpu")
        before, run = bench.step(case, case.contenders["r1ov plain torch"](inputs), inputs)
        assert case.work == sum(x.nbytes for x in (*inputs.values(), *run(before()))), case.name


def test_log_prob_work_is_one_product_or_three():
    assert logprobs_flops(7, 11, 13, backward=False) == 2 * 7 * 11 * 13
    assert CASES["loss"].work == 3 * CASES["log-probs"].work


@pytest.mark.parametrize("name", CASES)
def test_a_proof_accepts_the_definition_and_nothing_else(name):
    case = CASES[name]
    inputs = case.make(0, "cpu")
    ours = "r1ov plain torch" if "r1ov plain torch" in case.contenders else "r1ov"
    before, run = bench.step(case, case.contenders[ours](inputs), inputs)
    outputs = run(before())
    assert case.proof(inputs, outputs) < bench.TOLERANCE
    for i in range(len(outputs)):
        wrong = [x.clone() for x in outputs]
        wrong[i][0] += 0.1 * outputs[i].abs().max()
        assert case.proof(inputs, tuple(wrong)) > bench.TOLERANCE
        wrong[i][0] = float("nan")
        assert not case.proof(inputs, tuple(wrong)) <= bench.TOLERANCE


def test_each_contender_is_proven_then_timed_and_none_is_hidden(monkeypatch):
    case = CASES["log-probs"]
    monkeypatch.setattr(bench, "is_installed", lambda package: package != "liger")

    def refuses(inputs):
        raise NotImplementedError("only on sm_100\nand so on")

    contenders = {
        "r1ov": case.contenders["r1ov"],
        "slower": lambda x: lambda: token_logprobs(x["hidden"], x["weight"], x["targets"]),
        "rounds too much": lambda x: lambda: token_logprobs(x["hidden"], x["weight"], x["targets"]) + 1,
        "gives NaN": lambda x: lambda: token_logprobs(x["hidden"], x["weight"], x["targets"]) * float("nan"),
        "refuses": refuses,
        "liger": case.contenders["liger"],
    }
    case = replace(case, contenders=contenders)
    rows = bench.run_case(case, FakeGpu(), rounds=(3, 0.0))
    bench.compare(rows, case, {"TFLOP/s": 1e-3})
    ours, slower, wrong, nan, refused, absent = rows
    assert (ours["milliseconds"], slower["milliseconds"]) == (1.0, 2.0)
    assert (slower["ratio"], slower["verdict"]) == (2.0, "ahead")
    assert ours["rate"] == pytest.approx(case.work / 1e-3 / 1e12)
    assert ours["share"] == pytest.approx(1000 * ours["rate"])
    assert [wrong["status"], nan["status"], absent["status"]] == ["WRONG", "WRONG", "absent"]
    assert refused["status"] == "refused: NotImplementedError: only on sm_100"
    assert not any("milliseconds" in row for row in (wrong, nan, refused, absent))
    shown = bench.table(case, rows).splitlines()
    assert len({len(line) for line in shown[3:-1]}) == 1, "columns are aligned"
    assert "slower (best peer)" in shown[6]
    assert "2.00x, ahead" in shown[6]
    assert "refused: NotImplementedError" in shown[9]
    json.dumps(rows)


def test_a_graph_of_several_calls_counts_as_one_of_each():
    case = replace(CASES["decode"], contenders={"r1ov": CASES["decode"].contenders["r1ov"]})
    (row,) = bench.run_case(case, FakeGpu(), rounds=(3, 0.0))
    assert row["milliseconds"] == 0.5


@pytest.mark.parametrize(("theirs", "verdict"), [(1.1, "ahead"), (0.9, "behind"), (1.02, "level")])
def test_ahead_means_by_more_than_either_spread(theirs, verdict):
    rows = [
        {"contender": "r1ov", "status": "ok", "milliseconds": 1.0, "spread": 0.01},
        {"contender": "peer", "status": "ok", "milliseconds": theirs, "spread": 0.05},
    ]
    bench.compare(rows, attention(), {"TFLOP/s": 1.0})
    assert rows[1]["verdict"] == verdict


def test_the_scorecard_rows_are_all_there():
    cases = bench.all_cases()
    assert {case.row for case in cases} == {f"G{i}" for i in range(1, 10)} - {"G6"}  # shared prompts
    assert {case.group for case in cases} == set(bench.GROUPS)
    assert all(next(iter(case.contenders)).startswith("r1ov") for case in cases)
    assert len({case.name for case in cases}) == len(cases)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "attention,decoding"], "--only has 'decoding'"),
        (["--out", "nowhere/x.json"], "there is no folder nowhere"),
        (["--quck"], "unrecognized arguments: --quck"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line_and_exit_2(arguments, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        bench.main(arguments)
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err.splitlines()[0]


@pytest.mark.parametrize("command", ["kernels.bench", "tests.bench_train_gpu", "tests.bench_grpo_gpu"])
def test_without_a_gpu_a_bench_says_so_on_one_line_and_exits_2(command, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", [command])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module(command, run_name="__main__")
    assert stopped.value.code == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "needs an NVIDIA GPU" in err
