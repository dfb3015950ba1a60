"""What a run did, for people: counts by stage and kind, reasons, and rows to look at."""

import html
from collections import Counter
from collections.abc import Iterable, Mapping

from r1ov.common.page import markdown_table, page, picture
from r1ov.formalize.row import Row
from r1ov.formalize.stages import STAGES

OUTCOMES = ("done", "rejected", "failed")
SHOWN_OF_EACH = 4  # rows on the page with the same kind, outcome and reason
SHOWN = 60  # rows on the page

_STYLE = """
body{max-width:75em}h2{font-size:1.15em;margin-top:2em}
table{border-collapse:collapse;margin:.6em 0;font-size:14px}
th,td{padding:.25em .8em;border-bottom:1px solid #e4e6ea;text-align:right;font-variant-numeric:tabular-nums}
th:first-child,td:first-child,.facts td{text-align:left}th{color:#667;font-weight:600}
.tables{display:flex;flex-wrap:wrap;gap:0 3em}section>div{flex:1;min-width:0}section p{margin:.2em 0}
h3{font-size:1em;margin:0 0 .4em}.badge{font-size:12px;font-weight:600;border-radius:3px;padding:.1em .5em}
.badge{margin-left:.6em;color:#fff}
.done{background:#2a9d4e}.rejected{background:#c8453b}.failed{background:#9a6b00}
.two{display:flex;gap:1em}.two>*{flex:1;min-width:0}summary{color:#667;font-size:13px}
summary{cursor:pointer}pre{overflow-wrap:anywhere;font-size:13.5px}@media(max-width:50em){section,.two{display:block}}
"""


class Report:
    """Takes rows one at a time and keeps counts, and the few rows that are shown."""

    def __init__(self, facts: Mapping[str, str]):
        self.facts = facts
        self.counts: Counter[tuple[str, str, str]] = Counter()  # (kind, outcome, stage and fault)
        self.notes: Counter[str] = Counter()
        self.shown: list[tuple[bool, str]] = []

    def add(self, row: Row) -> None:
        why = ": ".join((row.reason or "").split(": ")[:2])[:80]  # "filter: wrong answer"
        alike = row.kind or "not known", row.outcome or "not reached", why
        if row.outcome and self.counts[alike] < SHOWN_OF_EACH and len(self.shown) < SHOWN:
            self.shown.append((row.outcome == "done", _section(row)))  # what was rejected comes first
        self.counts[alike] += 1
        self.notes.update({note.split(":")[0] for note in row.notes})

    def count(self, *outcomes: str, kind: str | None = None, stage: str | None = None) -> int:
        return sum(
            count
            for (its_kind, outcome, why), count in self.counts.items()
            if outcome in (outcomes or (outcome,))
            and kind in (None, its_kind)
            and stage in (None, why.split(":")[0])
        )

    def tables(self) -> dict[str, list[list[str]]]:
        """Returns title -> rows of cells, the head first."""
        stages, entered = [["stage", "in", "out", *OUTCOMES[1:]]], self.count(*OUTCOMES)
        for stage in ("read", *STAGES):
            lost = [self.count(outcome, stage=stage) for outcome in OUTCOMES[1:]]
            stages.append([stage, *_numbers(entered, entered - sum(lost), *lost)])
            entered -= sum(lost)
        kinds = [["kind", "in", *OUTCOMES]]
        for kind in sorted({kind for kind, _, _ in self.counts}):
            by_outcome = [self.count(outcome, kind=kind) for outcome in OUTCOMES]
            kinds.append([kind, *_numbers(self.count(kind=kind), *by_outcome)])
        reasons: Counter[tuple[str, str]] = Counter()
        for (_, outcome, why), count in self.counts.items():
            if outcome in OUTCOMES[1:]:
                reasons[why, outcome] += count
        tables = {
            "Stages": stages,
            "Kinds": kinds,
            "Reasons": [
                ["why", "outcome", "rows"],
                *([*key, *_numbers(n)] for key, n in reasons.most_common()),
            ],
            "Notes": [["note", "rows"], *([note, *_numbers(n)] for note, n in self.notes.most_common(12))],
        }
        return {title: table for title, table in tables.items() if len(table) > 1}

    def facts_and_total(self) -> dict[str, str]:
        total, done, missed = self.count(), self.count("done"), self.count("not reached")
        counts = {"rows in": f"{total:,}", "rows out": f"{done:,} ({done / max(total, 1):.1%})"}
        return counts | ({"not reached": f"{missed:,}"} if missed else {}) | dict(self.facts)

    def markdown(self) -> str:
        facts = [
            f"- {name}: {html.escape(' '.join(text.split()), quote=False)}".replace("|", "\\|")
            for name, text in self.facts_and_total().items()
        ]
        tables = [f"## {title}\n\n{markdown_table(rows)}" for title, rows in self.tables().items()]
        return "\n\n".join(["# Formalization", "\n".join(facts), *tables]) + "\n"

    def html(self) -> str:
        facts = "".join(f"<tr>{_cells(fact, 'td')}" for fact in self.facts_and_total().items())
        tables = "".join(
            f"<div><h2>{title}</h2><table><tr>{_cells(head, 'th')}"
            + "".join(f"<tr>{_cells(row, 'td')}" for row in rows)
            + "</table></div>"
            for title, (head, *rows) in self.tables().items()
        )
        sections = "\n".join(section for _, section in sorted(self.shown, key=lambda one: one[0]))
        body = f'<table class="facts">{facts}</table><div class="tables">{tables}</div>'
        return page("Formalization", f"{body}<h2>Rows</h2>{sections}", _STYLE)


def _numbers(*counts: int) -> list[str]:
    return [f"{count:,}" for count in counts]


def _cells(texts: Iterable[str], tag: str) -> str:
    return "".join(f"<{tag}>{html.escape(text)}" for text in texts)


def _section(row: Row) -> str:
    image = picture(row.image.load()) if row.image and row.outcome != "failed" else ""
    name, kind, question, gold = (
        html.escape(text) for text in (row.id, row.kind or "kind not known", row.question, row.gold or "none")
    )
    is_kept = row.draft == row.thought
    thoughts = _block("thought" if is_kept else "thought before role-play", row.draft)
    if row.draft and not is_kept:
        thoughts += _block("thought after role-play", row.thought or "(not reached)")
    words = {True: "yes", False: "no"}
    verdict = " · ".join(f"{key}: {words.get(value, value)}" for key, value in row.verdict.items())
    lines = [f"verdict {verdict}"] * bool(verdict) + list(row.notes)
    return (
        f"<section>{image}<div><h3>{name} &middot; {kind}"
        f'<span class="badge {row.outcome}">{row.outcome}</span></h3><p>{question}</p>'
        f'<p class="numbers">gold answer: {gold}</p>'
        + _block("reason", row.reason, "wrong")
        + _block(f"description, {row.description_format}", row.description, is_open=False)
        + f'<div class="two">{thoughts}</div>'
        + _block("answer", row.answer, "right" if row.outcome == "done" else "")
        + "".join(f'<p class="numbers">{html.escape(line)}</p>' for line in lines)
        + "</div></section>"
    )


def _block(label: str, text: str | None, style: str = "", is_open: bool = True) -> str:
    """Long texts are folded unless `is_open`."""
    if not text:
        return ""
    state = "open" if is_open or len(text) < 600 else ""
    return (
        f"<details {state}><summary>{html.escape(label)}</summary>"
        f'<pre class="{style}">{html.escape(text)}</pre></details>'
    )
