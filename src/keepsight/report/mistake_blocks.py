"""Confusion, confident mistakes and probable label errors on the page of a run."""

from __future__ import annotations

from keepsight.report.classification_charts import confusion_chart
from keepsight.report.diagnosis_records import MethodDiagnosis
from keepsight.report.page import Block, Pictures, Table, Text
from keepsight.report.run_records import RunRecords
from keepsight.report.summary import percent

WIDTH = 128
"""Of a picture on the page, CSS px."""


def _shown(run: RunRecords) -> list[MethodDiagnosis]:
    """The recommended method and the baseline."""
    if run.diagnosis is None or run.diagnosis.multilabel:
        return []
    names = dict.fromkeys([run.method, run.baseline])
    return [found for name in names if name is not None and (found := run.diagnosis.of(name)) is not None]


def confusion_blocks(run: RunRecords) -> list[Block]:
    """A matrix of the recommended method, and one of the baseline."""
    assert run.diagnosis is not None or not _shown(run)
    made: list[Block] = []
    for found in _shown(run):
        classes = run.diagnosis.classes if run.diagnosis is not None else ()
        absent = [name for name, row in zip(classes, found.confusion, strict=True) if not sum(row)]
        missing = f" No test image: {_listed(absent)}." if absent else ""
        made.append(
            confusion_chart(
                f"What {found.method} takes for what",
                classes,
                found.confusion,
                caption=f"Counts of n = {found.images:,} test images, first seed; a row a true class, a column an answer.{missing}",
                description=f"Confusion matrix of {found.method} over {len(classes)} classes; {found.wrong} of {found.images} "
                "test images are off the diagonal.",
            )
        )
    return made


def mistake_blocks(run: RunRecords) -> list[Block]:
    """The wrong answers that were given with most confidence."""
    made: list[Block] = []
    for found in _shown(run):
        if not found.mistakes:
            made.append(Text(text=f"{found.method} answered all {found.images:,} test images rightly (first seed)."))
            continue
        title = f"Most confident mistakes of {found.method}"
        caption = f"{len(found.mistakes)} of {found.wrong:,} wrong answers on {found.images:,} test images, first seed."
        pictures = tuple(m.picture for m in found.mistakes if m.picture is not None)
        if pictures:
            made.append(Pictures(title=title, caption=caption, pictures=pictures, width=WIDTH))
        made.append(
            Table(
                title="The same as a table" if pictures else title,
                caption="" if pictures else caption,
                headings=("image", "answer", "truth", "confidence %"),
                rows=tuple((m.name, m.said, m.truth, percent(m.confidence)) for m in found.mistakes),
            )
        )
    return made


def label_blocks(run: RunRecords) -> list[Block]:
    """Labels that the recommended method doubts."""
    found = run.diagnosis.label_errors if run.diagnosis is not None else None
    if found is None:
        return []
    looked = (
        f"{found.method} predicted each of the {found.images:,} labelled images when it was held out. A label is doubted "
        "where another class is at least as probable as it is, on average, for the images labelled so (confident "
        "learning, Northcutt et al. 2021)."
    )
    if not found.listed:
        return [Text(text=f"No label is doubted. {looked}")]
    few = f"; the {len(found.listed)} least likely are shown" if found.found > len(found.listed) else ""
    made: list[Block] = [
        Text(
            text=f"{found.found:,} of {found.images:,} labels are doubted{few}. {looked} A doubt is no proof: look "
            "before you change a label."
        )
    ]
    pictures = tuple(e.picture for e in found.listed if e.picture is not None)
    if pictures:
        made.append(Pictures(pictures=pictures, width=WIDTH))
    made.append(
        Table(
            title="The same as a table" if pictures else "",
            headings=("image", "label", "looks like", "probability of the label %", "of the other %"),
            rows=tuple(
                (e.name, e.given, e.suggested, percent(e.given_probability), percent(e.suggested_probability))
                for e in found.listed
            ),
        )
    )
    return made


def _listed(names: list[str], most: int = 10) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
