"""Pages for the tests of the report's renderers: every kind of block, and names as hostile as users' names can be."""

from __future__ import annotations

import math
import random

from PIL import Image, ImageDraw

from keepsight.report.charts import Curve, CurvePoint, Spot, Tradeoff, curves_chart, interval_chart, tradeoff_chart
from keepsight.report.classification_charts import Bin, Cloud, confusion_chart, reliability_chart, scatter_chart
from keepsight.report.page import Chart, Listing, Page, Pictures, Section, Table, Text, picture

HOSTILE = (
    "<script>window.harmed = 1</script>",
    "</script><img src=x onerror='window.harmed = 1'>",
    "\"quoted\" & 'single' `tick`",
    "שלום עולם",
    "🦊 fox | **bold** [x](javascript:alert(1))",
    "datum.value || ${window.harmed = 1}",
    "a.b[0]\\c",
    "<!-- <script>",
    "__proto__",
    "a\u202eb\u2028c",
)
METHODS = (
    *("probe-logistic", "probe-linear", "knn", "lora", "lora+procrustes"),
    *("finetune-full", "finetune-full+procrustes", "content-style"),
)
SHAPES = ("circle", "cross", "ring", "square", "triangle")


def spots(names: tuple[str, ...], groups: tuple[str, ...] = ("",), seed: int = 0) -> list[Spot]:
    draw = random.Random(seed)
    made = []
    for number, name in enumerate(names):
        value = 62 + 30 * draw.random()
        made.append(
            Spot(
                name,
                value,
                value - 2 - draw.random(),
                value + 2 + draw.random(),
                groups[number % len(groups)],
                "3 seeds",
            )
        )
    return made


def tradeoffs(names: tuple[str, ...], seed: int = 1) -> list[Tradeoff]:
    draw = random.Random(seed)
    made = [
        Tradeoff(
            name,
            x := 12 * draw.random(),
            x - 1,
            x + 1,
            y := 65 + 2 * x,
            y - 1.5,
            y + 1.5,
            group=name.split("+")[0][:24],
        )
        for name in names
    ]
    alphas = []
    for quarters in range(5):
        x, y = 14 * (quarters / 4) ** 2, 70 + 20 * math.sqrt(quarters / 4)
        name, note = f"wise-ft alpha {quarters / 4}", f"alpha {quarters / 4}"
        alphas.append(Tradeoff(name, x, x - 0.6, x + 0.7, y, y - 1.2, y + 1.2, "wise-ft", note))
    return made + alphas


def curves(names: tuple[str, ...], points: int = 8, seed: int = 2) -> list[Curve]:
    draw = random.Random(seed)
    made = []
    for name in names:
        scale = 0.3 + 0.5 * draw.random()
        xs = [2.0**i for i in range(points)]
        ys = [scale / math.sqrt(x) for x in xs]
        made.append(Curve(name, tuple(CurvePoint(x, 100 * y, 85 * y, 118 * y) for x, y in zip(xs, ys, strict=True))))
    return made


def bins(shift: float) -> list[Bin]:
    middles = [0.15 + 0.1 * i for i in range(9)]
    rights = [max(0.02, middle - shift * middle) for middle in middles]
    return [
        Bin(middle, right, max(0.0, right - 0.06), min(1.0, right + 0.06), 10 + 40 * number)
        for number, (middle, right) in enumerate(zip(middles, rights, strict=True))
    ]


def counts(classes: int, per_class: int = 40, seed: int = 3, absent: int | None = None) -> list[list[int]]:
    """A confusion matrix whose errors go to near classes; the class `absent` has no image."""
    draw = random.Random(seed)
    made = [[0] * classes for _ in range(classes)]
    for truth in range(classes):
        for _ in range(0 if truth == absent else per_class):
            made[truth][truth if draw.random() < 0.75 else (truth + draw.randrange(-3, 4)) % classes] += 1
    return made


def cloud(title: str, classes: int, spread: float, seed: int = 4) -> Cloud:
    draw = random.Random(seed)
    numbers = tuple(i % classes for i in range(60 * classes))
    points = tuple(
        (math.cos(c * 6.28 / classes) + draw.gauss(0, spread), math.sin(c * 6.28 / classes) + draw.gauss(0, spread))
        for c in numbers
    )
    return Cloud(title, points, numbers)


def charts(names: tuple[str, ...] = METHODS, classes: tuple[str, ...] = SHAPES) -> list[Chart]:
    """One of each kind."""
    K = len(classes)
    return [
        interval_chart(
            "Accuracy of each method",
            spots(names, groups=("baseline", "adapted")),
            axis="Balanced accuracy, %",
            caption="Test set, n = 600 images; bars are 95% intervals. The line is the strongest cheap baseline.",
            description="Balanced accuracy of each method with its interval.",
            reference=74.0,
            marked=(names[1],),
        ),
        tradeoff_chart(
            "Gain against forgetting",
            tradeoffs(names),
            x_axis="Forgetting, percentage points",
            y_axis="Balanced accuracy, %",
            caption="Upper left is best. Bars are 95% intervals; the line joins the alphas of WiSE-FT.",
            description="Each method's accuracy against what it forgot.",
            connected=("wise-ft",),
        ),
        curves_chart(
            "Error against the number of labels",
            curves(names[:4]),
            x_axis="Labelled images per class",
            y_axis="Error, %",
            caption="Bands are 95% intervals over 3 seeds; the axis of labels is logarithmic.",
            description="Error of four methods falls as labels grow.",
            log_x=True,
        ),
        reliability_chart(
            "Reliability",
            {"before temperature scaling": bins(0.25), "after temperature scaling": bins(0.03)},
            caption="Cross-validated predictions, 10 bins; the size of a mark is the number of predictions.",
            description="Share of right answers against confidence before and after temperature scaling.",
        ),
        confusion_chart(
            "Confusion",
            classes,
            counts(K, absent=K - 1),
            caption="Test set; a row is a true class.",
            description="Shares of the answers of each class.",
        ),
        scatter_chart(
            "Features, PCA",
            [cloud("frozen", K, 0.5), cloud("adapted", K, 0.2)],
            classes,
            caption="First two components, fitted on the frozen features.",
            description="Classes lie further apart after adaptation.",
        ),
    ]


def thumbnails(names: tuple[str, ...], number: int = 12) -> Pictures:
    made = []
    for i in range(number):
        image = Image.new("RGB", (96, 96), (40 + 12 * i, 90, 160 - 8 * i))
        ImageDraw.Draw(image).ellipse((12 + i, 12, 80, 80 - i), outline="white", width=5)
        said = names[i % len(names)]
        made.append(picture(image, f"image {i}, answered {said}", f"{said}, 0.{99 - i}", longest=96, marked=i % 3 == 0))
    return Pictures(
        title="The most confident mistakes", caption="Marked: probably wrong labels.", pictures=tuple(made), width=112
    )


def demo_page(
    names: tuple[str, ...] = METHODS,
    classes: tuple[str, ...] = SHAPES,
    rows: int = 30,
) -> Page:
    """Every kind of block; the names stand wherever a name of a user's can stand."""
    interval, tradeoff, curve, reliability, confusion, scatter = charts(names, classes)
    table = Table(
        title="All methods",
        caption="Test set, n = 600 images; 95% intervals.",
        headings=("Method", "Accuracy, %", "Forgotten, points", "Time", "What it is"),
        rows=tuple(_row(names[i % len(names)], i) for i in range(rows)),
        marked=(1,),
        filtered=True,
    )
    wide = Table(
        title="Wide", headings=tuple(f"Reference set {i}" for i in range(14)), rows=(("agreement", *("91.2%",) * 13),)
    )
    settings = "\n".join(f"key_{i}: {name}" for i, name in enumerate(names)) + "\nlong: " + "x" * 200
    lead, said = Text(text="The probe is as good.", lead=True), Text(text=f"Said of {names[0]}: nothing.")
    command = Listing(title="Command", text="keepsight tune ./pictures --method probe --seeds 3", shown=True)
    made = (
        ("Gain and forgetting", (tradeoff, interval)),
        ("Methods", (lead, said, table)),
        ("Learning", (curve,)),
        ("Mistakes and calibration", (confusion, reliability, thumbnails(names))),
        ("Features", (scatter,)),
        ("What is needed to repeat it", (wide, command, Listing(title="Configuration", text=settings))),
    )
    return Page(
        version="0.1.0",
        kind="tune",
        title=f"What {names[0]} gained on the demo's pictures",
        answer="Ship the probe: lora gains +1.2 points (−0.4 to +2.9) over it and forgets 3.4 points (2.2 to 4.6).",
        lead=("600 test images of 5 classes, 3 seeds, backbone vit_small_patch14_dinov2.", "One CPU, 4 minutes."),
        sections=tuple(Section(title=title, blocks=blocks) for title, blocks in made),
    )


def _row(name: str, i: int) -> tuple[str, ...]:
    accuracy = f"{70 + i / 7:.1f} ({68 + i / 7:.1f} to {72 + i / 7:.1f})"
    return (f"{name} #{i}", accuracy, f"{i / 10:.2f}", f"{i} s", "a run of the ladder with its settings")
