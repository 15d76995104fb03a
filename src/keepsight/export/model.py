"""A tuned model: saved as safetensors and one JSON, loaded without executing code, used on paths, images and arrays."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from keepsight.adapters.kept import KeptAdapters, kept_adapters
from keepsight.backbones.load import build_backbone
from keepsight.core import Backbone, Config, Head, ImageList, Readout, UserError
from keepsight.core.files import atomic_directory
from keepsight.core.progress import Track
from keepsight.data.arrays import ArrayImages, PillowImages
from keepsight.data.files import EXTENSIONS, FileImages
from keepsight.data.load import load_dataset
from keepsight.data.options import DataConfig
from keepsight.data.pixels import AS_STORED, PixelConfig
from keepsight.export.adapter import FusedAdapter, read_adapter
from keepsight.features.device import this_device
from keepsight.features.stream import stream_batches
from keepsight.heads.load import build_head, head_kind

FORMAT = 1

Picture: TypeAlias = "str | Path | Image.Image | NDArray[np.uint8]"
Images: TypeAlias = "Picture | Sequence[str | Path] | Sequence[Image.Image] | Sequence[NDArray[np.uint8]]"
"""What `predict` takes: data by path or name, an image, an array [H, W], [H, W, 3] or [N, H, W, 3] (uint8), or several."""


class ModelCard(Config):
    """model.json: everything of a tuned model that is not a tensor."""

    format: int = FORMAT
    keepsight: str
    method: str
    backbone: dict[str, str | int | bool]
    readout: Readout
    head: str
    head_shape: dict[str, int]
    classes: tuple[str, ...]
    pixels: PixelConfig = AS_STORED
    adapters: KeptAdapters | None = None
    multilabel: bool = False


@dataclass(frozen=True, slots=True)
class Predictions:
    """What a model says about N images.

    Attributes:
        names: N names (paths, or numbers).
        labels: N predicted classes; of a multi-label model all those with a probability of one half or more, joined by |.
        probabilities: [N, K] float32, rows sum to one (not those of a multi-label model).
        classes: K classes.
    """

    names: tuple[str, ...]
    labels: tuple[str, ...]
    probabilities: NDArray[np.float32]
    classes: tuple[str, ...]


def as_image_list(images: Images, pixels: PixelConfig = AS_STORED) -> ImageList:
    """Any of the accepted inputs as an `ImageList`; stored values become RGB as `pixels` says."""
    if isinstance(images, str | Path):
        path = Path(images)
        if path.suffix.lower() in EXTENSIONS or (path.is_file() and not path.suffix):
            return FileImages(path.parent, [path.name], pixels)
        return load_dataset(images, DataConfig(pixels=pixels), check=False).images
    if isinstance(images, Image.Image):
        return PillowImages([images], pixels)
    if isinstance(images, np.ndarray):
        single = images.ndim == 2 or (images.ndim == 3 and (images.shape[-1] == 3 or pixels.channels is not None))
        return ArrayImages(images[None] if single else images, pixels)
    if not len(images):
        raise UserError("There is nothing to predict: the list of images is empty.")
    first = images[0]
    if isinstance(first, str | Path):
        return FileImages(Path(), [str(path) for path in images], pixels)
    if isinstance(first, Image.Image):
        return PillowImages(list(images), pixels)  # type: ignore[arg-type]
    return PillowImages([ArrayImages(np.asarray(array)[None], pixels).load(0) for array in images])


@dataclass(frozen=True, slots=True)
class TunedModel:
    """A backbone, a readout and a head that together predict classes.

    Attributes:
        method: How it was fitted.
        backbone: With its final weights (an adapter is merged into them; AdaptFormer and prompts stay beside them).
        readout: What the head sees.
        head: Features to logits.
        classes: K names, in the order of the logits.
        adapter: What fine-tuning by LoRA added to the weights, for `keepsight export --to peft`.
        pixels: How stored values became RGB in training, and do when predicting.
        multilabel: Whether an image may have several classes: a probability is then a sigmoid of its class's logit alone.

    Example (after `keepsight tune`)::

        model = TunedModel.load("runs/demo/model")
        model.predict("leaf.png").labels
    """

    method: str
    backbone: Backbone
    readout: Readout
    head: Head
    classes: tuple[str, ...]
    adapter: FusedAdapter | None = None
    pixels: PixelConfig = AS_STORED
    multilabel: bool = False

    def chances(self, logits_BK: Tensor) -> Tensor:
        """Probabilities [B, K] of logits: a softmax, or a sigmoid each."""
        return torch.sigmoid(logits_BK) if self.multilabel else torch.softmax(logits_BK, dim=1)

    def answer(self, probabilities_K: NDArray[np.float32]) -> str:
        """The predicted class, or the classes of a multi-label model as one text, which is empty for none."""
        if self.multilabel:
            return "|".join(self.classes[k] for k in np.flatnonzero(probabilities_K >= 0.5))
        return self.classes[int(probabilities_K.argmax())]

    def stream(
        self, images: ImageList, indices: NDArray[np.int64], batch_size: int = 64, skip_bad: bool = False
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """(indices [B], probabilities [B, K]) batch by batch, in order; memory does not grow with the number of images.

        With `skip_bad`, images that cannot be read are logged and left out.

        Raises:
            UserError: An image cannot be read, without `skip_bad`.
        """
        self.backbone.eval()
        device = next(self.backbone.parameters()).device
        head = self.head.to(device).eval()
        readout = self.readout.resolved(self.backbone.depth)
        for chosen, batch in stream_batches(images, indices, self.backbone.preprocessing, batch_size, skip_bad):
            with torch.inference_mode():
                logits = head(readout.read(self.backbone(batch.to(device), readout.blocks)))
                yield chosen, self.chances(logits.float()).cpu().numpy()

    def probabilities(
        self, images: ImageList, indices: NDArray[np.int64], batch_size: int = 64, what: str = "predicting"
    ) -> NDArray[np.float32]:
        """Class probabilities [N, K] of the images at `indices`."""
        rows = [np.empty((0, len(self.classes)), np.float32)]
        with Track(what, len(indices), "images") as track:
            for chosen, probabilities in self.stream(images, indices, batch_size):
                rows.append(probabilities)
                track.advance(len(chosen))
        return np.concatenate(rows)

    def predict(self, images: Images, batch_size: int = 64) -> Predictions:
        """Predict on a file, a folder, a PIL image, an array, or several of one kind.

        Raises:
            UserError: An image cannot be read.
        """
        source = as_image_list(images, self.pixels)
        indices = np.arange(len(source))
        probabilities = self.probabilities(source, indices, batch_size)
        return Predictions(
            names=tuple(source.name(i) for i in range(len(source))),
            labels=tuple(self.answer(row) for row in probabilities),
            probabilities=probabilities,
            classes=self.classes,
        )

    def save(self, path: Path, version: str) -> None:
        """Write `path` (model.json, backbone.safetensors, head.safetensors, adapter/ after LoRA) atomically; self-contained."""
        card = ModelCard(
            keepsight=version,
            method=self.method,
            backbone=self.backbone.spec(),
            readout=self.readout,
            head=head_kind(self.head),
            head_shape=self.head.shape(),
            classes=self.classes,
            pixels=self.pixels,
            multilabel=self.multilabel,
            adapters=kept_adapters(self.backbone),
        )
        with atomic_directory(path) as temporary:
            (temporary / "model.json").write_text(card.model_dump_json(indent=2), encoding="utf-8")
            for name, module in (("backbone", self.backbone.network), ("head", self.head)):
                tensors = {k: v.detach().cpu().contiguous().clone() for k, v in module.state_dict().items()}
                save_file(tensors, temporary / f"{name}.safetensors")
            if self.adapter is not None:
                self.adapter.save(temporary / "adapter")

    @staticmethod
    def load(path: str | Path) -> TunedModel:
        """Read what `save` wrote (a `model` folder, or the run folder that holds it).

        Raises:
            UserError: There is no model, or it is damaged or of another format.
        """
        folder = Path(path)
        if not (folder / "model.json").is_file() and (folder / "model" / "model.json").is_file():
            folder = folder / "model"
        if not (folder / "model.json").is_file():
            raise UserError(f"There is no tuned model in {path}: expected model.json in it or in its folder 'model'.")
        try:
            found = json.loads((folder / "model.json").read_text(encoding="utf-8"))
            if isinstance(found, dict) and found.get("format") != FORMAT:
                raise UserError(
                    f"The model in {folder} has format {found.get('format')}, this keepsight reads format {FORMAT}: "
                    "load it with the keepsight that wrote it."
                )
            card = ModelCard.model_validate(found)
            backbone = build_backbone(card.backbone)
            if card.adapters is not None:
                card.adapters.add(backbone)
            head = build_head(card.head, card.head_shape)
            backbone.network.load_state_dict(load_file(folder / "backbone.safetensors"))
            head.load_state_dict(load_file(folder / "head.safetensors"))
            adapter = read_adapter(folder / "adapter") if (folder / "adapter").is_dir() else None
        except (ValueError, ValidationError, SafetensorError, OSError, RuntimeError, KeyError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"The model in {folder} is damaged or incomplete ({reason}): save it again.") from error
        return TunedModel(
            card.method,
            backbone.to(this_device()).eval(),
            card.readout,
            head.eval(),
            card.classes,
            adapter,
            card.pixels,
            card.multilabel,
        )
