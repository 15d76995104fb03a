"""The model card: README.md beside a tuned model's weights, made from records and a few facts. All names are escaped.

Knows no run: whoever has one gives `CardFacts`. What was not measured is said as such.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

import yaml

from keepsight.core import Config, Result
from keepsight.core.files import write_text
from keepsight.report.summary import main_metric, percent

CLASSES_SHOWN = 50


class CardFacts(Config):
    """What a card says beside the figures.

    Attributes:
        version: keepsight's.
        dataset: Name of the data.
        images, labelled, validation, unlabelled, test: Counts, those of the first seed's draw.
        classes: Class names.
        method: How the model was fitted.
        why: Why this method.
        backbone: Name.
        licence: Of the pretrained weights; None if unknown.
        readout: As text.
        preprocessing: How an image becomes the input, in words.
        parameters: Of the backbone.
        multilabel: Whether an image may have several classes.
    """

    version: str
    dataset: str
    images: int
    labelled: int
    validation: int
    unlabelled: int
    test: int
    classes: tuple[str, ...]
    method: str
    why: str
    backbone: str
    licence: str | None
    readout: str
    preprocessing: str
    parameters: int
    multilabel: bool = False


def write_card(path: Path, facts: CardFacts, results: Sequence[Result]) -> None:
    """Write the card; `results` are the records of the run, of which those of `facts.method` are used."""
    own = [r for r in results if r.method == facts.method]
    summary = [r for r in own if r.split == "test" and r.seed is None]
    cv = next((r for r in own if r.split == "cross-validation" and r.metric == main_metric(results)), None)
    parts = (
        _front_matter(facts, summary),
        f"# {_text(facts.dataset)}: {_text(facts.method)} on {_text(facts.backbone)}\n",
        f"An image classifier of {len(facts.classes)} classes, tuned with keepsight {_text(facts.version)}.\n",
        *(["It is multi-label: an image may have several classes, or none.\n"] if facts.multilabel else []),
        _figures(facts, summary, cv),
        _model(facts),
        _data(facts),
        _use(),
        _limits(facts, summary, cv),
    )
    write_text(path, "\n".join(parts))


def _front_matter(facts: CardFacts, summary: Sequence[Result]) -> str:
    """What model hubs read."""
    content: dict[str, object] = {
        "library_name": "keepsight",
        "pipeline_tag": "image-classification",
        "tags": ["keepsight", "image-classification", facts.method],
    }
    if summary:
        metrics = [{"type": r.metric, "value": round(r.value, 6)} for r in summary]
        dataset = {"name": facts.dataset, "type": "custom", "split": "test"}
        result = {"task": {"type": "image-classification"}, "dataset": dataset, "metrics": metrics}
        content["model-index"] = [{"name": f"{facts.dataset} {facts.method}", "results": [result]}]
    return f"---\n{yaml.safe_dump(content, sort_keys=False, allow_unicode=True)}---\n"


def _figures(facts: CardFacts, summary: Sequence[Result], cv: Result | None) -> str:
    lines, name = ["## Figures\n"], "mAP" if facts.multilabel else "error"
    if summary:
        r = summary[0]
        seeds = (
            f"{r.seeds} seeds; intervals cover seeds and images" if r.seeds > 1 else "1 seed; intervals cover images"
        )
        lines += [
            f"On {r.n:,} test images that no choice was made on ({seeds}):\n",
            "| metric | % | 95 % interval |",
            "|---|---:|---:|",
            *(
                f"| {_text(r.metric.replace('_', ' '))} | {percent(r.value)} | {percent(r.ci_low)} to {percent(r.ci_high)} |"
                for r in summary
            ),
            "",
            "The saved weights are those of the first seed." if r.seeds > 1 else "",
        ]
    else:
        lines.append(f"The test {name} was **not measured**: the data has no test images.\n")
    if cv is not None:
        interval = f"{percent(cv.ci_low)} to {percent(cv.ci_high)}"
        lines.append(f"Cross-validated {name} on {cv.n:,} labelled images: {percent(cv.value)} % ({interval}).\n")
    else:
        lines.append(f"There is no cross-validated {name}.\n")
    lines.append(f"{_text(facts.why)}\n")
    return "\n".join(lines)


def _model(facts: CardFacts) -> str:
    licence = f"licence {_text(facts.licence)}" if facts.licence else "of a licence that keepsight does not know"
    return (
        "## Model\n\n"
        f"- Backbone: {_text(facts.backbone)}, {facts.parameters / 1e6:.1f} M parameters; pretrained weights {licence}. "
        "It applies to this model, too.\n"
        f"- Readout: {_text(facts.readout)} (blocks and pools).\n"
        f"- Method: {_text(facts.method)}.\n"
        f"- Input: {_text(facts.preprocessing)}.\n"
    )


def _data(facts: CardFacts) -> str:
    shown = ", ".join(_text(name) for name in facts.classes[:CLASSES_SHOWN])
    more = (
        f", and {len(facts.classes) - CLASSES_SHOWN:,} more (in model.json)"
        if len(facts.classes) > CLASSES_SHOWN
        else ""
    )
    return (
        "## Data\n\n"
        f"{_text(facts.dataset)}: {facts.images:,} images. The first seed learnt from {facts.labelled:,} labelled images, "
        f"validated on {facts.validation:,}, had {facts.unlabelled:,} unlabelled ones, and {facts.test:,} were held out for the "
        f"test.\n\nClasses: {shown}{more}.\n"
    )


def _use() -> str:
    return (
        "## Use\n\n```python\nimport keepsight\n\n"
        'model = keepsight.TunedModel.load("FOLDER OF THIS FILE")\n'
        'print(model.predict("image.png").labels)\n```\n\n'
        "Or in a shell: `keepsight predict FOLDER image.png`.\n"
    )


def _limits(facts: CardFacts, summary: Sequence[Result], cv: Result | None) -> str:
    name = "mAP" if facts.multilabel else "error"
    missing = [] if summary else [f"the {name} on test images"]
    missing += [] if cv is not None else [f"the cross-validated {name}"]
    missing += [
        "images from another source than these data (another camera, place or time)",
        "images of other kinds: each gets a probability of every class"
        if facts.multilabel
        else "images of none of the classes: each is given to one of them",
        "differences between groups of people or places",
        "resistance to images made to deceive",
        "what the backbone forgot of its earlier abilities",
    ]
    few = f"\n- It learnt from {facts.labelled:,} labels, {facts.labelled / max(len(facts.classes), 1):.1f} a class on average."
    listed = "".join(f"\n- Not measured: {what}." for what in missing)
    return f"## Limits\n{few}{listed}\n"


def _text(text: str) -> str:
    """A user's text inside Markdown: one line, and nothing in it is markup."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    escaped = "".join(f"\\{c}" if c in "\\`*_{}[]#|~$" else c for c in line)
    return escape(escaped, quote=False)
