"""A look at style on images: what is chosen, what the page and the JSON hold, whatever the images are called."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import TinyBackbone
from keepsight.core import UNLABELLED, Dataset, ImageList, Readout, UserError
from keepsight.data.arrays import ArrayImages
from keepsight.data.transforms import load_batch
from keepsight.evaluate.style import decompose
from keepsight.export.model import TunedModel
from keepsight.heads.content_style import ContentStyleHead
from keepsight.heads.linear import LinearHead
from keepsight.heads.reduction import Reduction
from keepsight.heads.token import make_token
from keepsight.recipes.style import StyleLook, choose_images, look_at_style

HOSTILE = '"><script>alert(1)</script>&\n\udcff.png'


class Named(ImageList):
    """Images with names of choice."""

    def __init__(self, images: ImageList, names: dict[int, str], bad: frozenset[int] = frozenset()) -> None:
        self._images, self._names, self._bad = images, names, bad

    def __len__(self) -> int:
        return len(self._images)

    def load(self, index: int) -> Image.Image:
        if index in self._bad:
            raise UserError(f"The image {self.name(index)} cannot be read.")
        return self._images.load(index)

    def name(self, index: int) -> str:
        return self._names.get(index, f"image-{index}")

    def content_hash(self, index: int) -> bytes:
        return self._images.content_hash(index)


def dataset(names: dict[int, str] | None = None, bad: frozenset[int] = frozenset()) -> Dataset:
    """60 images of three classes: stripes, whose brightness is no part of the class."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 30, (60, 16, 16, 3), dtype=np.uint8)
    labels = np.arange(60) % 3
    for i, k in enumerate(labels):
        bright = 60 + 3 * i
        pixels[i, 5 * k : 5 * k + 4] += np.uint8(bright // 2)
        pixels[i, :, 5 * k : 5 * k + 4] += np.uint8(bright // 3)
    images = Named(ArrayImages(pixels), names or {}, bad)
    return Dataset("stripes", images, labels.astype(np.int64), ("a", "b<", "c"), ("",) * 60)


@pytest.fixture(scope="module")
def model() -> TunedModel:
    """A few hundred steps of cross-entropy and reconstruction on the tokens."""
    backbone, data, readout = TinyBackbone(), dataset(), Readout.parse("2:grid2")
    with torch.no_grad():
        x_NF = readout.read(backbone(load_batch(data.images, np.arange(60), backbone.preprocessing), (2,)))
    torch.manual_seed(0)
    reduction = Reduction.of(make_token(x_NF, (), 12))
    head = ContentStyleHead(features=32, reduced=12, classes=3, style=4)
    head.reduction.load_state_dict(reduction.state_dict())
    z_ND, y_N = head.token(x_NF), torch.from_numpy(data.labels)
    optimiser = torch.optim.Adam(head.parameters(), 3e-3)
    for _ in range(200):
        decoded_ND = head.decode(head.content(z_ND), head.style(z_ND))
        loss = torch.nn.functional.cross_entropy(head.content_logits(z_ND), y_N) + (decoded_ND - z_ND).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return TunedModel("content-style", backbone, readout, head.eval(), data.classes)


@pytest.fixture(scope="module")
def look(model: TunedModel) -> StyleLook:
    return look_at_style(model, dataset(dict.fromkeys(range(60), HOSTILE)), images=6, seed=1)


def test_what_is_chosen_and_counted(look: StyleLook) -> None:
    found = look.findings
    assert [c % 3 for c in found.chosen] == [0, 0, 1, 1, 2, 2]
    assert len(set(found.chosen)) == 6
    assert np.array(found.swaps.nearest).shape == np.array(found.swaps.cosines).shape == (6, 6)
    for row, i in enumerate(found.chosen):
        for column, j in enumerate(found.chosen):
            assert found.swaps.nearest[row][column] not in (i, j)
    assert (found.n, found.labelled, found.skipped, found.style_axes) == (60, 60, 0, 4)
    assert found.swaps.swapped_true == 24  # 30 pairs, 6 of them of one class
    assert [p.of for p in found.prototypes] == ["a", "b<", "c"]
    assert all(len(p.nearest) == 5 for p in found.prototypes)
    assert all(len(i.nearest) == 5 for i in found.interpolations)
    assert found.probes[0].of == "class"
    assert found.probes[0].content > 0.9
    assert found.reconstruction.own < found.reconstruction.content_permuted


def test_the_same_seed_gives_the_same_look(model: TunedModel, look: StyleLook) -> None:
    data = dataset(dict.fromkeys(range(60), HOSTILE))
    assert look_at_style(model, data, images=6, seed=1).findings == look.findings
    head = model.head
    assert isinstance(head, ContentStyleHead)
    of = decompose(head, torch.randn(60, 12), data.labels)
    assert choose_images(of, 6, 1).tolist() == list(look.findings.chosen)
    assert choose_images(of, 6, 2).tolist() != list(look.findings.chosen)


def test_page_and_json_hold_hostile_names_safely(look: StyleLook, tmp_path: Path) -> None:
    look.write(tmp_path / "out")
    page = (tmp_path / "out" / "style.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "b&lt;" in page
    assert not re.search(r"(src|href)=|url\((?!data:image/png;base64,)", page)
    saved = json.loads((tmp_path / "out" / "style.json").read_text(encoding="utf-8"))
    assert saved["swaps"]["kept"] == look.findings.swaps.kept
    assert {str(i) for row in saved["swaps"]["nearest"] for i in row} <= set(saved["images"])
    assert all("script" in image["name"] for image in saved["images"].values())
    assert f"Content kept in {saved['swaps']['kept']} of {saved['swaps']['swapped']} swaps" in page
    assert set(re.findall(r'class="picture (p\d+)"', page)) == {f"p{i}" for i in saved["images"]}


def test_without_labels_predicted_classes_are_used(model: TunedModel) -> None:
    whole = dataset()
    bare = Dataset("bare", whole.images, np.full(60, UNLABELLED), ("a",), whole.parts)
    found = look_at_style(model, bare, images=3).findings
    assert (found.labelled, found.swaps.swapped_true, found.probes[0].of) == (0, 0, "predicted class")
    assert len({found.images[i].predicted for i in found.chosen}) == 3
    assert all(image.label is None for image in found.images.values())


def test_classes_that_the_model_does_not_know_count_as_unlabelled(model: TunedModel) -> None:
    whole = dataset()
    other = Dataset("other", whole.images, whole.labels, ("c", "new", "a"), whole.parts)
    found = look_at_style(model, other, images=4).findings
    assert found.labelled == 40
    assert {found.images[i].label for i in found.chosen} == {"a", "c"}


def test_unreadable_images(model: TunedModel) -> None:
    broken = dataset(bad=frozenset({3, 7}))
    with pytest.raises(UserError, match="image-3 cannot be read"):
        look_at_style(model, broken, images=3)
    found = look_at_style(model, broken, images=3, skip_bad=True).findings
    assert (found.n, found.skipped) == (58, 2)
    assert not {"image-3", "image-7"} & {image.name for image in found.images.values()}


def test_nuisances_from_python_and_from_a_table(model: TunedModel, tmp_path: Path) -> None:
    brightness = np.arange(60.0)
    found = look_at_style(model, dataset(), images=3, nuisances={"brightness": brightness}).findings
    table = tmp_path / "known.csv"
    table.write_text("name,brightness,side\n" + "".join(f"image-{i},{i},{'lr'[i % 2]}\n" for i in range(60)))
    read = look_at_style(model, dataset(), images=3, nuisances=table).findings
    assert [p.of for p in read.probes] == ["class", "brightness", "side"]
    assert read.probes[1] == found.probes[1]
    assert (found.probes[1].measure, read.probes[2].measure) == ("r2", "accuracy")
    assert found.probes[1].token > 0.5


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("name\nimage-1\n", "need a header and rows of the same length"),
        ("name,a\nimage-1\n", "need a header and rows of the same length"),
        ("name,a\nelsewhere,1\n", "None of the names .* which are called like 'image-0'"),
    ],
)
def test_tables_of_nuisances_that_do_not_fit(model: TunedModel, tmp_path: Path, content: str, says: str) -> None:
    table = tmp_path / "known.csv"
    table.write_text(content)
    with pytest.raises(UserError, match=says):
        look_at_style(model, dataset(), nuisances=table)


def test_what_cannot_be_looked_at(model: TunedModel) -> None:
    data = dataset()
    linear = TunedModel("probe", model.backbone, model.readout, LinearHead(32, 3), data.classes)
    with pytest.raises(UserError, match="was fitted by probe: tune with methods="):
        look_at_style(linear, data)
    without = ContentStyleHead(features=32, reduced=12, classes=3, style=0)
    with pytest.raises(UserError, match="fitted by content-style without one"):
        look_at_style(TunedModel("content-style", model.backbone, model.readout, without, data.classes), data)
    with pytest.raises(UserError, match="At least 2 images"):
        look_at_style(model, data, images=1)
    with pytest.raises(UserError, match="one value for each of the 60 images"):
        look_at_style(model, data, nuisances={"x": [1.0, 2.0]})


def test_more_images_than_classes_are_chosen_evenly(model: TunedModel) -> None:
    head = model.head
    assert isinstance(head, ContentStyleHead)
    of = decompose(head, torch.randn(10, 12), np.array([0] * 8 + [1, 2]))
    assert of.labels_N[choose_images(of, 5, 0)].tolist() == [0, 0, 0, 1, 2]
    assert len(choose_images(of, 40, 0)) == 10
