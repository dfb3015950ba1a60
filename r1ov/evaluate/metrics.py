"""The benchmarks' own metrics, as tables. An item's score is the mean over its samples; one without a verdict
scores 0.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from statistics import fmean

from r1ov.evaluate.item import Item, Items, Verdicts
from r1ov.evaluate.tables import Table
from r1ov.evaluate.wemath import four_dimensions

MAX_VALUES = 40  # a tag with at most this many values gets a table of its own
VERSIONS = (  # Text Only is an ablation
    "Text Dominant",
    "Text Lite",
    "Vision Intensive",
    "Vision Dominant",
    "Vision Only",
)
Scores = Mapping[str, float]
Metric = Callable[[Items, Verdicts], list[Table]]


def tables_of(metrics: Iterable[str | Metric], items: Items, verdicts: Verdicts) -> list[Table]:
    """Returns the tables of each metric, a function or the name of a tag to group by."""
    scores, tables = item_scores(items, verdicts), []
    for metric in metrics:
        tables += by_tag(items, scores, metric) if isinstance(metric, str) else metric(items, verdicts)
    return tables


def item_scores(items: Items, verdicts: Verdicts) -> dict[str, float]:
    """Returns {id: mean score over the item's samples} for every item."""
    found = defaultdict(list)
    for verdict in verdicts:
        found[verdict.id].append(verdict.score)
    return {item.id: fmean(found.get(item.id, [0.0])) for item in items}


def by_value(items: Items, scores: Scores, tag: str) -> dict[str, list[float]]:
    """Returns {a value of the tag: its items' scores}. An item with several values counts for each."""
    found = defaultdict(list)
    for item in items:
        for value in values(item, tag):
            found[value].append(scores[item.id])
    return {value: found[value] for value in sorted(found, key=_numbers_first)}


def by_tag(items: Items, scores: Scores, tag: str) -> list[Table]:
    """Returns [accuracy by the tag's values], or [] if no item has it."""
    rows = [(value, len(found), fmean(found)) for value, found in by_value(items, scores, tag).items()]
    name = tag.replace("_", " ")
    return [Table(f"by {name}", (name, "items", "accuracy"), tuple(rows))] if rows else []


def mathvision(items: Items, verdicts: Verdicts) -> list[Table]:
    """Returns accuracy by subject and level."""
    scores = item_scores(items, verdicts)
    levels, rows = list(by_value(items, scores, "level")), []
    for subject in by_value(items, scores, "subject"):
        cells = by_value([item for item in items if subject in values(item, "subject")], scores, "level")
        rows.append((subject, *(fmean(cells[level]) if level in cells else None for level in levels)))
    columns = ("subject", *(f"level {level}" for level in levels))
    return [Table("accuracy by subject and level", columns, tuple(rows))] if rows else []


def mathverse(items: Items, verdicts: Verdicts) -> list[Table]:
    """Returns a row for each version, then the mean of the five in the overall score, Text Only apart; then
    tables of the five by subject.
    """
    scores = item_scores(items, verdicts)
    found = by_value(items, scores, "problem_version")
    rows = [(version, len(found[version]), fmean(found[version])) for version in VERSIONS if version in found]
    if rows:
        which = "the five" if len(rows) == len(VERSIONS) else f"these {len(rows)}"
        rows.append((f"mean of {which} versions", sum(row[1] for row in rows), fmean(row[2] for row in rows)))
    if apart := found.get("Text Only"):
        rows.append(("Text Only (apart)", len(apart), fmean(apart)))
    five = [item for item in items if item.tags.get("problem_version") in VERSIONS]
    tables = [Table("by version", ("version", "items", "accuracy"), tuple(rows))] if rows else []
    return tables + by_tag(five, scores, "subject") + by_tag(five, scores, "subfield")


def wemath(items: Items, verdicts: Verdicts) -> list[Table]:
    """Returns the four-dimensional score, then each domain's accuracy: the mean over its concepts of the
    accuracy on their one-step problems.
    """
    scores = item_scores(items, verdicts)
    steps = [item for item in items if not item.tags["key"].endswith("multi") and "domain" in item.tags]
    rows = []
    for domain, found in by_value(steps, scores, "domain").items():
        concepts = by_value([item for item in steps if item.tags["domain"] == domain], scores, "concept")
        rows.append((domain, len(concepts), len(found), fmean(map(fmean, concepts.values()))))
    tables = four_dimensions(items, verdicts)
    if rows:
        tables.append(Table("by domain", ("domain", "concepts", "items", "mean over concepts"), tuple(rows)))
    return tables


def by_every_tag(items: Items, verdicts: Verdicts) -> list[Table]:
    """Returns a table for each tag that divides the items into a few parts."""
    tables = tables_of(dict.fromkeys(name for item in items for name in item.tags), items, verdicts)
    return [table for table in tables if 1 < len(table.rows) <= min(MAX_VALUES, len(items) // 2)]


def guessing(items: Items) -> dict[str, float]:
    """Returns the score of a guesser who does not look: a random letter; always the most frequent gold
    answer.

    A question without options counts 0 for a random letter.
    """
    sizes = [len(item.choices or ()) or item.num_choices for item in items if item.kind == "mcq"]
    (_, frequent), *_ = Counter((item.kind == "mcq", item.answer.strip()) for item in items).most_common(1)
    return {
        "random option": sum(1 / size for size in sizes if size) / len(items),
        "most frequent answer": frequent / len(items),
    }


def values(item: Item, tag: str) -> tuple[str, ...]:
    found = item.tags.get(tag, ())
    return (found,) if isinstance(found, str) else tuple(found)


def _numbers_first(value: str) -> tuple[bool, int, str]:
    return not value.isdecimal(), int(value) if value.isdecimal() else 0, value
