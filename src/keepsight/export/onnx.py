"""A tuned model as an ONNX graph: preprocessed images in, logits and probabilities out. Knows no training.

The graph has one input, `images` [batch, 3, S, S] float32 (batch is free), and two outputs [batch, K]: `logits` and
`probabilities`. What a user needs to feed it is in its metadata as JSON under `keepsight`: classes, readout and preprocessing.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from keepsight.core import ImageList, UserError
from keepsight.core.files import atomic_file
from keepsight.data.load import load_dataset
from keepsight.data.transforms import load_batch
from keepsight.export.model import TunedModel
from keepsight.heads.neighbours import NeighbourHead

OPSET = 18
"""Version of ONNX's operators: what torch's exporter writes itself, and onnxruntime 1.18 and later reads."""

TOLERANCE = 1e-4
"""Largest difference between ONNX and PyTorch, as a share of the largest logit."""

CHECKED = 32
"""Images of the parity check."""


@dataclass(frozen=True, slots=True)
class OnnxReport:
    """What the parity check found.

    Attributes:
        path: The file.
        images: Images compared.
        difference: Largest absolute difference of a logit.
        scale: Largest absolute logit.
        size: Of the file, bytes.
    """

    path: Path
    images: int
    difference: float
    scale: float
    size: int

    def __str__(self) -> str:
        return (
            f"{self.path}: {self.size / 2**20:.1f} MiB, opset {OPSET}; the largest difference of a logit from PyTorch on "
            f"{self.images} images is {self.difference:.1e} (largest logit {self.scale:.3g})"
        )


class _Graph(nn.Module):
    """Images [B, 3, S, S] -> logits [B, K], probabilities [B, K]."""

    def __init__(self, model: TunedModel) -> None:
        super().__init__()
        self.backbone, self.head = model.backbone, model.head
        self.multilabel = model.multilabel
        self.readout = model.readout.resolved(model.backbone.depth)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x_BF = self.readout.read(self.backbone(images, self.readout.blocks))
        # The neighbour head takes its rows in chunks, which a graph with a free batch cannot: all at once is the same.
        logits_BK = self.head.logits_at_once(x_BF) if isinstance(self.head, NeighbourHead) else self.head(x_BF)
        return logits_BK, torch.sigmoid(logits_BK) if self.multilabel else torch.softmax(logits_BK, dim=1)


def export_onnx(model: TunedModel, path: Path, images: str | ImageList | None = None) -> OnnxReport:
    """Write the graph and compare it with PyTorch; a file that differs does not appear.

    Args:
        model: What is exported.
        path: The .onnx file.
        images: Data or images of the comparison (the first 32 are used); scikit-learn's digits by default.

    Raises:
        UserError: The packages are missing, or ONNX gives other logits (by more than `TOLERANCE` of the largest).
    """
    source = (
        load_dataset(images or "digits", check=False).images if images is None or isinstance(images, str) else images
    )
    graph = _Graph(model).to("cpu").eval()
    shown = load_batch(source, np.arange(min(len(source), CHECKED)), model.backbone.preprocessing)
    with torch.inference_mode():
        expected_NK = graph(shown)[0].numpy()
    with atomic_file(path) as temporary:
        _write(graph, temporary, model)
        found_NK = _run(temporary, shown.numpy())
        scale = float(np.abs(expected_NK).max())
        difference = float(np.abs(found_NK - expected_NK).max())
        if not difference <= TOLERANCE * scale:
            raise UserError(
                f"The ONNX graph gives other logits than PyTorch (largest difference {difference:.2g}, largest logit {scale:.3g}), "
                f"so that {path} was not written: export with --to timm instead."
            )
        size = temporary.stat().st_size
    return OnnxReport(path, len(shown), difference, scale, size)


def _write(graph: _Graph, path: Path, model: TunedModel) -> None:
    try:
        import onnxscript  # noqa: F401  # torch's exporter imports it and would say so in many lines
    except ImportError as error:
        raise _missing("onnxscript") from error
    size = model.backbone.preprocessing.size
    example = torch.zeros(2, 3, size, size)
    with _silence():
        program = torch.onnx.export(
            graph,
            (example,),
            input_names=["images"],
            output_names=["logits", "probabilities"],
            dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1)}},
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
        if program is None:
            raise RuntimeError("torch.onnx.export returned nothing")
        program.save(str(path), external_data=False)
    described = {
        "classes": list(model.classes),
        "multilabel": model.multilabel,
        "method": model.method,
        "readout": str(model.readout),
        "preprocessing": model.backbone.preprocessing.model_dump(mode="json"),
    }
    proto = onnx.load(str(path))
    entry = proto.metadata_props.add()
    entry.key, entry.value = "keepsight", json.dumps(described)
    onnx.save(proto, str(path))


def _run(path: Path, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits of the graph: one image alone and the others together, so that a fixed batch does not pass."""
    try:
        import onnxruntime
    except ImportError as error:
        raise _missing("onnxruntime") from error
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    parts = [part for part in (images[:1], images[1:]) if len(part)]
    return np.concatenate([session.run(["logits"], {"images": part})[0] for part in parts])


def _missing(package: str) -> UserError:
    return UserError(f"Exporting to ONNX needs the package {package}: install it with pip install 'keepsight[onnx]'.")


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """torch's exporter prints its progress, and warns about operators of packages that are not used here."""
    level = logging.getLogger("torch.onnx").level
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.getLogger("torch.onnx").setLevel(level)
