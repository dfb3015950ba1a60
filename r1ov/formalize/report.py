"""What a run did, for people: counts in and out of each stage, of each kind, the reasons, and rows to look
at.
"""

import html
from collections import Counter
from collections.abc import Iterable, Mapping

from r1ov.common.page import page, picture
from r1ov.formalize.row import Row
from r1ov.formalize.stages import STAGES

NAMES = ("read", *STAGES)
OUTCOMES = ("done", "rejected", "failed")
SHOWN_OF_EACH = 4  # rows on the page with the same kind, outcome and reason
SHOWN = 60  # rows on the page

_STYLE = """
body{max-width:75em}h2{font-size:1.15em;margin-top:2em}table{border-collapse:collapse;margin:.6em 0;font-size:14px}
th,td{padding:.25em .8em;border-bottom:1px solid #e4e6ea;text-align:right;font-variant-numeric:tabular-nums}
th:first-child,td:first-child,.facts td{text-align:left}th{color:#667;font-weight:600}
.tables{display:flex;flex-wrap:wrap;gap:0 3em}section>div{flex:1;min-width:0}section p{margin:.2em 0}
h3{font-size:1em;margin:0 0 .4em}.badge{font-size:12px;font-weight:600;border-radius:3px;padding:.1em .5em;margin-left:.6em;color:#fff}
.done{background:#2a9d4e}.rejected{background:#c8453b}.failed{background:#9a6b00}.none{background:#889}
.two{display:flex;gap:1em}.two>div{flex:1;min-width:0}label,summary{color:#667;font-size:13px}summary{cursor:pointer}
pre{overflow-wrap:anywhere;font-size:13.5px}@media(max-width:50em){section,.two{display:block}}
"""


class Report:
    """Takes the rows one at a time, and keeps counts and the few that are shown."""

    def __init__(self, facts: Mapping[str, str]):
        self.facts = facts
        self.left: Counter[tuple[str, str]] = Counter()  # (the stage in which a row ended, its outcome)
        self.kinds: Counter[tuple[str, str]] = Counter()  # (kind, outcome)
        self.reasons: Counter[tuple[str, str]] = Counter()  # (outcome, stage and rule)
        self.notes: Counter[str] = Counter()
        self.shown: list[tuple[int, str]] = []
        self._seen: Counter[tuple[str, str, str]] = Counter()

    def add(self, row: Row) -> None:
        outcome, kind, why = row.outcome or "not reached", row.kind or "not known", reason_group(row)
        self.left[
            ("filter" if outcome == "done" else why.split(":")[0] if row.outcome else "not reached", outcome)
        ] += 1
        self.kinds[kind, outcome] += 1
        self.reasons[outcome, why] += outcome in ("rejected", "failed")
        self.notes.update({note.split(":")[0] for note in row.notes})
        if self._seen[kind, outcome, why] < SHOWN_OF_EACH and len(self.shown) < SHOWN and row.outcome:
            self._seen[kind, outcome, why] += 1
            self.shown.append(((*OUTCOMES, "").index(row.outcome), _section(row)))

    def tables(self) -> dict[str, list[list[str]]]:
        """Title -> lines, the first of them the head."""
        stages, entered = (
            [["stage", "in", "out", "rejected", "failed"]],
            sum(self.left.values()) - self.left["not reached", "not reached"],
        )
        for name in NAMES:
            rejected, failed = self.left[name, "rejected"], self.left[name, "failed"]
            stages.append([name, *map(_number, (entered, entered - rejected - failed, rejected, failed))])
            entered -= rejected + failed
        kinds = [["kind", "in", *OUTCOMES]]
        for kind in sorted({kind for kind, _ in self.kinds}):
            counts = [self.kinds[kind, outcome] for outcome in OUTCOMES]
            kinds.append([kind, *map(_number, (sum(counts) + self.kinds[kind, "not reached"], *counts))])
        tables = {"Stages": stages, "Kinds": kinds}
        if reasons := [
            [why, outcome, _number(count)] for (outcome, why), count in self.reasons.most_common() if count
        ]:
            tables["Reasons"] = [["why", "outcome", "rows"], *reasons]
        if self.notes:
            tables["Notes"] = [
                ["note", "rows"],
                *([note, _number(count)] for note, count in self.notes.most_common(12)),
            ]
        return tables

    def facts_and_total(self) -> dict[str, str]:
        total, done, missed = (
            sum(self.left.values()),
            self.left["filter", "done"],
            self.left["not reached", "not reached"],
        )
        counts = {"rows in": _number(total), "rows out": f"{_number(done)} ({done / max(total, 1):.1%})"}
        return counts | ({"not reached": _number(missed)} if missed else {}) | dict(self.facts)

    def markdown(self) -> str:
        parts = [
            "# Formalization",
            "\n".join(f"- {name}: {_cell(value)}" for name, value in self.facts_and_total().items()),
        ]
        for title, (head, *lines) in self.tables().items():
            rule = ["---", *["---:"] * (len(head) - 1)]
            rows = ["| " + " | ".join(map(_cell, line)) + " |" for line in (head, rule, *lines)]
            parts.append(f"## {title}\n\n" + "\n".join(rows))
        return "\n\n".join(parts) + "\n"

    def html(self) -> str:
        facts = "".join(
            f"<tr><td>{html.escape(name)}<td>{html.escape(value)}"
            for name, value in self.facts_and_total().items()
        )
        tables = "".join(
            f"<div><h2>{title}</h2>{_table(lines)}</div>" for title, lines in self.tables().items()
        )
        sections = "\n".join(section for _, section in sorted(self.shown, key=lambda one: one[0]))
        body = (
            f'<table class="facts">{facts}</table><div class="tables">{tables}</div><h2>Rows</h2>{sections}'
        )
        return page("Formalization", body, _STYLE)


def reason_group(row: Row) -> str:
    """What rows share of a reason, its stage and fault: "filter: wrong answer"."""
    return ": ".join((row.reason or "").split(": ")[:2])[:80]


def _section(row: Row) -> str:
    image = picture(row.image.load()) if row.image and row.outcome != "failed" else ""
    outcome = row.outcome or "none"
    title = f'<h3>{html.escape(row.id)} &middot; {html.escape(row.kind or "kind not known")}<span class="badge {outcome}">{outcome}</span></h3>'
    parts = [
        title,
        f"<p>{html.escape(row.question)}</p>",
        f'<p class="numbers">gold answer: {html.escape(row.gold or "none")}</p>',
    ]
    if row.reason:
        parts.append(f'<pre class="wrong">{html.escape(row.reason)}</pre>')
    if row.description:
        is_open = " open" if len(row.description) < 600 else ""
        name = html.escape(row.description_format or "")
        parts.append(
            f"<details{is_open}><summary>description, {name}</summary><pre>{html.escape(row.description)}</pre></details>"
        )
    if row.draft and row.draft == row.thought:
        parts.append(f"<label>thought</label><pre>{html.escape(row.draft)}</pre>")
    elif row.draft:
        texts = {
            "thought before role-play": row.draft,
            "thought after role-play": row.thought or "(not reached)",
        }
        columns = "".join(
            f"<div><label>{label}</label><pre>{html.escape(text)}</pre></div>"
            for label, text in texts.items()
        )
        parts.append(f'<div class="two">{columns}</div>')
    if row.answer:
        colour = "right" if row.outcome == "done" else ""
        parts.append(f'<label>answer</label><pre class="{colour}">{html.escape(row.answer)}</pre>')
    known = [
        f"{name}: {'yes' if value is True else 'no' if value is False else value}"
        for name, value in row.verdict.items()
    ]
    parts += [
        f'<p class="numbers">{html.escape(text)}</p>'
        for text in ("verdict " + " · ".join(known) if known else "", *row.notes)
        if text
    ]
    return f"<section>{image}<div>{''.join(parts)}</div></section>"


def _table(lines: Iterable[Iterable[str]]) -> str:
    head, *rest = ("".join(f"<{{}}>{html.escape(cell)}" for cell in line) for line in lines)
    return f"<table><tr>{head.replace('{}', 'th')}{''.join('<tr>' + line.replace('{}', 'td') for line in rest)}</table>"


def _cell(text: str) -> str:
    """On one line, and with nothing in it that Markdown would take for a table's or HTML's."""
    return html.escape(" ".join(text.split()), quote=False).replace("|", "\\|")


def _number(count: int) -> str:
    return f"{count:,}"
