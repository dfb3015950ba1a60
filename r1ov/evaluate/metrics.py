"""The benchmarks' own metrics, as tables. An item's score is the mean over its samples; one without a verdict
scores 0.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean

from r1ov.evaluate.item import Item, Verdict
from r1ov.evaluate.tables import Table
from r1ov.evaluate.wemath import four_dimensions

MAX_VALUES = 40  # of a tag that gets a table of its own
VERSIONS = (
    "Text Dominant",
    "Text Lite",
    "Vision Intensive",
    "Vision Dominant",
    "Vision Only",
)  # Text Only is an ablation
Scores = Mapping[str, float]


def item_scores(items: Sequence[Item], verdicts: Sequence[Verdict]) -> dict[str, float]:
    """{id: mean score over the item's samples}, for every item."""
    found = defaultdict(list)
    for verdict in verdicts:
        found[verdict.id].append(verdict.score)
    return {item.id: fmean(found[item.id]) if found[item.id] else 0.0 for item in items}


def by_tag(items: Sequence[Item], scores: Scores, tag: str) -> list[Table]:
    """[accuracy by the tag's values], or [] if no item has it. An item with several values counts for each."""
    members = defaultdict(list)
    for item in items:
        for value in values(item, tag):
            members[value].append(scores[item.id])
    rows = tuple(
        (value, len(members[value]), fmean(members[value])) for value in sorted(members, key=_numbers_first)
    )
    return (
        [Table(f"by {tag.replace('_', ' ')}", (tag.replace("_", " "), "items", "accuracy"), rows)]
        if rows
        else []
    )


def mathvista(items: Sequence[Item], verdicts: Sequence[Verdict]) -> list[Table]:
    scores = item_scores(items, verdicts)
    return [table for tag in ("task", "skills", "source") for table in by_tag(items, scores, tag)]


def mathvision(items: Sequence[Item], verdicts: Sequence[Verdict]) -> list[Table]:
    scores = item_scores(items, verdicts)
    tables = by_tag(items, scores, "level") + by_tag(items, scores, "subject")
    levels, subjects = (
        sorted({value for item in items for value in values(item, tag)}) for tag in ("level", "subject")
    )
    cells = defaultdict(list)
    for item in items:
        cells[item.tags.get("subject"), item.tags.get("level")].append(scores[item.id])
    rows = tuple(
        (subject, *(fmean(cells[subject, level]) if cells[subject, level] else None for level in levels))
        for subject in subjects
    )
    return (
        [
            *tables,
            Table(
                "accuracy by subject and level", ("subject", *(f"level {level}" for level in levels)), rows
            ),
        ]
        if rows
        else tables
    )


def mathverse(items: Sequence[Item], verdicts: Sequence[Verdict]) -> list[Table]:
    """A row for each version, then the mean of the five that the overall score is made of; Text Only stays
    apart.
    """
    scores = item_scores(items, verdicts)
    members = defaultdict(list)
    for item in items:
        members[item.tags.get("problem_version")].append(scores[item.id])
    rows = [
        (version, len(members[version]), fmean(members[version])) for version in VERSIONS if members[version]
    ]
    if rows:
        name = (
            "mean of the five versions"
            if len(rows) == len(VERSIONS)
            else f"mean of these {len(rows)} versions"
        )
        rows.append((name, sum(row[1] for row in rows), fmean(row[2] for row in rows)))
    if apart := members["Text Only"]:
        rows.append(("Text Only (apart)", len(apart), fmean(apart)))
    five = [item for item in items if item.tags.get("problem_version") in VERSIONS]
    tables = [Table("by version", ("version", "items", "accuracy"), tuple(rows))] if rows else []
    return tables + by_tag(five, scores, "subject") + by_tag(five, scores, "subfield")


def wemath(items: Sequence[Item], verdicts: Sequence[Verdict]) -> list[Table]:
    """The four-dimensional score, then each domain's accuracy: the mean over its concepts of their one-step
    problems' accuracy.
    """
    scores = item_scores(items, verdicts)
    domains = defaultdict(lambda: defaultdict(list))
    for item in items:
        if not item.tags["key"].endswith("multi") and "domain" in item.tags:
            domains[item.tags["domain"]][item.tags["concept"]].append(scores[item.id])
    rows = tuple(
        (domain, len(concepts), sum(map(len, concepts.values())), fmean(map(fmean, concepts.values())))
        for domain, concepts in sorted(domains.items())
    )
    tables = four_dimensions(items, verdicts)
    return (
        [*tables, Table("by domain", ("domain", "concepts", "items", "mean over concepts"), rows)]
        if rows
        else tables
    )


def onevision_bench(items: Sequence[Item], verdicts: Sequence[Verdict]) -> list[Table]:
    scores = item_scores(items, verdicts)
    return by_tag(items, scores, "level") + by_tag(items, scores, "category")


def playground(items: Sequence[Item], verdicts: Sequence[Verdict]) -> list[Table]:
    return by_tag(items, item_scores(items, verdicts), "family")


def by_every_tag(items: Sequence[Item], verdicts: Sequence[Verdict]) -> list[Table]:
    """A table for each tag that divides the items into a few parts."""
    scores = item_scores(items, verdicts)
    names = dict.fromkeys(name for item in items for name in item.tags)
    tables = [table for name in names for table in by_tag(items, scores, name)]
    return [table for table in tables if 1 < len(table.rows) <= min(MAX_VALUES, len(items) // 2)]


def guessing(items: Sequence[Item]) -> dict[str, float]:
    """What these items give to who does not look, as shares: a random letter; always the most frequent gold
    answer.

    A question without options counts 0 for a random letter.
    """
    sizes = [len(item.choices or ()) or item.num_choices for item in items if item.kind == "mcq"]
    frequent = Counter((item.kind == "mcq", item.answer.strip()) for item in items).most_common(1)
    return {
        "random option": sum(1 / size for size in sizes if size) / len(items),
        "most frequent answer": frequent[0][1] / len(items),
    }


def values(item: Item, tag: str) -> tuple[str, ...]:
    found = item.tags.get(tag, ())
    return (found,) if isinstance(found, str) else tuple(found)


def _numbers_first(value: str) -> tuple:
    return (0, int(value), "") if value.isdecimal() else (1, 0, value)
