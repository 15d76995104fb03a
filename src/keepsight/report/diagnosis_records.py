"""What a run of `tune` or `compare` keeps for its page besides figures (diagnosis.json). Knows no way to make it, and no page."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from keepsight.core import Config, Result, UserError
from keepsight.core.files import write_text
from keepsight.report.page import Picture

DIAGNOSIS = "diagnosis.json"


class Estimate(Config):
    """A figure and its 95 % interval, as fractions."""

    value: float
    low: float
    high: float


class BinRecord(Config):
    """A bin of a reliability diagram: mean confidence, share right with Wilson's 95 % interval, how many."""

    confidence: float
    accuracy: float
    low: float
    high: float
    n: int


class Calibration(Config):
    """Of one method on the test images, before and after temperature scaling.

    Attributes:
        bins: Before.
        ece: Expected calibration error before; the interval is a bootstrap over images.
        temperature: Fitted on the labelled images when they were held out; None without a cross-validation, as is the rest.
        fitted_on: So many images.
        bins_after, ece_after: With the temperature.
        change: After - before, on the same resamples.
    """

    bins: tuple[BinRecord, ...]
    ece: Estimate
    temperature: float | None = None
    fitted_on: int = 0
    bins_after: tuple[BinRecord, ...] = ()
    ece_after: Estimate | None = None
    change: Estimate | None = None


class Mistake(Config):
    """A wrong prediction on a test image; `picture` is None where the image could not be read again."""

    name: str
    truth: str
    said: str
    confidence: float
    picture: Picture | None = None


class MethodDiagnosis(Config):
    """One method, as it was fitted on the first seed's labels, on the test images.

    Attributes:
        method: Its name.
        seed: The first.
        images: n.
        calibration: None in multi-label data.
        confusion: Counts, a row a true class; empty in multi-label data.
        mistakes: The most confident first.
        wrong: How many there are.
    """

    method: str
    seed: int
    images: int
    calibration: Calibration | None = None
    confusion: tuple[tuple[int, ...], ...] = ()
    mistakes: tuple[Mistake, ...] = ()
    wrong: int = 0


class LabelError(Config):
    """A label that is probably wrong, with the probabilities of the given and of the suggested class."""

    name: str
    given: str
    suggested: str
    given_probability: float
    suggested_probability: float
    picture: Picture | None = None


class LabelErrors(Config):
    """Confident disagreement with labels, by one method's cross-validated predictions.

    Attributes:
        method: Which.
        images: Labelled images that were looked at.
        found: How many labels are doubted.
        listed: The least likely labels first.
    """

    method: str
    images: int
    found: int
    listed: tuple[LabelError, ...]


class ClassFacts(Config):
    """Images of one class in the parts of the first seed."""

    name: str
    labelled: int
    validation: int
    test: int


class Twins(Config):
    """Two images that are the same, or nearly, in different parts: names, parts, and whether they are exactly the same."""

    names: tuple[str, str]
    parts: tuple[str, str]
    same: bool


class DataFacts(Config):
    """What a run saw.

    Attributes:
        name: Of the data set.
        images: That can be read.
        labelled, validation, unlabelled, test: Of the first seed.
        classes: In the order of their indices.
        split_seed: Of the test part; None where the data brings its own.
        skipped: Images that cannot be read.
        skipped_reasons: Some of them, in a sentence each.
        same_across: Images that occur, exactly the same, in the test part and in another one.
        same_within: Further images that are the same as another one of their part.
        near_across: Pairs that are nearly the same, in different parts; None where it was not looked for.
        twins: Some of the pairs across parts.
        note: What was not looked for, and why.
    """

    name: str
    images: int
    labelled: int
    validation: int
    unlabelled: int
    test: int
    classes: tuple[ClassFacts, ...]
    split_seed: int | None
    skipped: int = 0
    skipped_reasons: tuple[str, ...] = ()
    same_across: int = 0
    same_within: int = 0
    near_across: int | None = None
    twins: tuple[Twins, ...] = ()
    note: str = ""


class Diagnosis(Config):
    """diagnosis.json.

    Attributes:
        version: Of the record.
        baseline: The strongest cheap method (the backbone stays frozen), chosen on labelled images alone; None where there is none.
        chosen_by: "cross-validation" or "rule".
        frozen: The methods that leave the backbone as it is.
        multilabel: Whether an image may have several classes.
        classes: Their names.
        methods: One each, if there are test images.
        differences: Of every method to the baseline on the test images, paired: `error_change`, or `mean_average_precision_change`.
        label_errors: None without a cross-validation, and in multi-label data.
        data: What the run saw.
    """

    version: int = 1
    baseline: str | None
    chosen_by: str
    frozen: tuple[str, ...]
    multilabel: bool
    classes: tuple[str, ...]
    methods: tuple[MethodDiagnosis, ...] = ()
    differences: tuple[Result, ...] = ()
    label_errors: LabelErrors | None = None
    data: DataFacts

    def difference(self, method: str) -> Result | None:
        """The difference of a method to the baseline."""
        return next((r for r in self.differences if r.method == method), None)

    def of(self, method: str) -> MethodDiagnosis | None:
        """What is known of a method on the test images."""
        return next((m for m in self.methods if m.method == method), None)


def write_diagnosis(path: Path, record: Diagnosis) -> None:
    """Write diagnosis.json into a run's folder."""
    write_text(path / DIAGNOSIS, record.model_dump_json() + "\n")


def read_diagnosis(path: Path) -> Diagnosis | None:
    """diagnosis.json of a run; None where the run is of a version that wrote none.

    Raises:
        UserError: It is damaged.
    """
    file = path / DIAGNOSIS
    if not file.is_file():
        return None
    try:
        return Diagnosis.model_validate_json(file.read_text(encoding="utf-8"))
    except (OSError, ValidationError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is damaged: start the run again, which repairs it.") from error
