"""What a run saw, for its page: parts, classes, images left out, images that are the same in two parts."""

from __future__ import annotations

from keepsight.report.diagnosis_records import DataFacts
from keepsight.report.page import Block, Listing, Table, Text
from keepsight.report.run_records import RunRecords

PARTS = {"train": "training", "val": "validation", "test": "test"}


def data_blocks(run: RunRecords) -> list[Block]:
    """Counts, images that cannot be read, duplicates."""
    if run.diagnosis is None:
        return []
    facts = run.diagnosis.data
    return [Text(text=_said(facts)), _parts(facts), _classes(facts), *_skipped(facts), *_twins(facts)]


def _said(facts: DataFacts) -> str:
    test = (
        "The test part is the data's own."
        if facts.split_seed is None
        else f"The test part was drawn with split seed {facts.split_seed}."
    )
    test = test if facts.test else "There is no test part."
    return (
        f"{facts.name}: {facts.images:,} images of {len(facts.classes):,} classes. {test} "
        "Each seed draws its own labelled images where fewer labels are kept than there are; counts are those of the first seed."
    )


def _parts(facts: DataFacts) -> Table:
    rows = (
        (
            "labelled",
            facts.labelled,
            "learnt from with their labels; method and temperature are chosen on them, held out in turn",
        ),
        ("validation", facts.validation, "choose among steps of a training"),
        ("unlabelled", facts.unlabelled, "used without labels"),
        ("test", facts.test, "only measured on"),
        ("left out", facts.skipped, "cannot be read"),
    )
    return Table(
        title="Parts",
        headings=("part", "images", "use"),
        rows=tuple((name, f"{count:,}", use) for name, count, use in rows),
    )


def _classes(facts: DataFacts) -> Table:
    return Table(
        title="Classes",
        headings=("class", "labelled", "validation", "test"),
        rows=tuple((c.name, f"{c.labelled:,}", f"{c.validation:,}", f"{c.test:,}") for c in facts.classes),
        filtered=len(facts.classes) > 12,
    )


def _skipped(facts: DataFacts) -> list[Block]:
    if not facts.skipped:
        return [Text(text="All images could be read.")]
    more = facts.skipped - len(facts.skipped_reasons)
    lines = [*facts.skipped_reasons, *([f"and {more:,} more (skipped.json has them all)"] if more else [])]
    return [Listing(title=f"Images left out, since they cannot be read: {facts.skipped:,}", text="\n".join(lines))]


def _twins(facts: DataFacts) -> list[Block]:
    near = "" if facts.near_across is None else f", and {facts.near_across:,} pairs that are nearly the same"
    made: list[Block] = [
        Text(
            text=f"Across parts there are {facts.same_across:,} images that are exactly the same as another one{near}; within a "
            f"part {facts.same_within:,}. {facts.note}".strip()
        )
    ]
    if facts.twins:
        rows = tuple(
            (
                twins.names[0],
                PARTS.get(twins.parts[0], twins.parts[0]),
                twins.names[1],
                PARTS.get(twins.parts[1], twins.parts[1]),
                "exactly" if twins.same else "nearly",
            )
            for twins in facts.twins
        )
        made.append(
            Table(
                title="The same image in two parts",
                headings=("image", "part", "other image", "its part", "the same"),
                rows=rows,
                filtered=len(rows) > 12,
            )
        )
    return made
