"""How often does the near-duplicate search of `keepsight data check` find copies, and how often different images?

Real images: MNIST digits, Fashion-MNIST (28 px, little information) and the stamps of Debian's tuxpaint-stamps-default (7 to
2,348 px). "different" counts pairs among the images themselves, which are nearly all different; every copy is an image
re-encoded, resized, brightened or cropped, and its share found is given. Rules: the perceptual hash alone, and the hash with
the correlation of thumbnails at several thresholds; the default is `NEAR_DISTANCE` bits and `NEAR_CORRELATION`.

    python benchmarks/near_duplicates.py

JSON lines go to stdout, a table to stderr.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from keepsight.core import Dataset, UserError
from keepsight.data.duplicates import NEAR_CORRELATION, NEAR_DISTANCE, near_pairs, perceptual_hash, thumbnail
from keepsight.data.load import load_dataset

STAMPS = Path("/usr/share/tuxpaint/stamps")
RULES = ((6, -1.0), (8, -1.0), (10, -1.0), (8, 0.97), (8, 0.98), (8, 0.99), (10, 0.98), (8, 0.995))


def jpeg(quality: int) -> Callable[[Image.Image], Image.Image]:
    def copy(image: Image.Image) -> Image.Image:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        return Image.open(buffer).convert("RGB")

    return copy


def resized(factor: float) -> Callable[[Image.Image], Image.Image]:
    return lambda image: image.resize(
        (max(1, round(image.width * factor)), max(1, round(image.height * factor))), Image.Resampling.BICUBIC
    )


def cropped(share: float) -> Callable[[Image.Image], Image.Image]:
    def copy(image: Image.Image) -> Image.Image:
        x, y = round(image.width * share), round(image.height * share)
        return image.crop((x, y, image.width - x, image.height - y))

    return copy


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG quality 75": jpeg(75),
    "JPEG quality 40": jpeg(40),
    "half the size": resized(0.5),
    "twice the size": resized(2),
    "15 % brighter": lambda image: image.point(lambda value: min(255, round(value * 1.15))),
    "2 % cut off each side": cropped(0.02),
}


def fingerprints(images: list[Image.Image]) -> tuple[NDArray[np.uint64], NDArray[np.uint8]]:
    thumbs = [thumbnail(image) for image in images]
    return np.array([perceptual_hash(thumb) for thumb in thumbs], np.uint64), np.stack(thumbs).reshape(len(images), -1)


def measure(dataset: Dataset, count: int, copied: int) -> list[dict[str, object]]:
    chosen = np.random.default_rng(0).permutation(len(dataset.images))[:count]
    images = [dataset.images.load(int(i)) for i in chosen]
    hashes, thumbs = fingerprints(images)
    rows: list[dict[str, object]] = []
    pairs = len(images) * (len(images) - 1) // 2
    copies = {what: fingerprints([make(image) for image in images[:copied]]) for what, make in COPIES.items()}
    for distance, correlation in RULES:
        everything = np.arange(len(images))
        found, _, _ = near_pairs(hashes, thumbs, np.zeros_like(everything), everything, distance, correlation)
        row: dict[str, object] = {
            "name": "near duplicates",
            "data": dataset.name,
            "size": len(images),
            "distance": distance,
            "correlation": None if correlation < 0 else correlation,
            "default": (distance, correlation) == (NEAR_DISTANCE, NEAR_CORRELATION),
            "different_pairs": pairs,
            "different_found": len(found),
        }
        for what, (copy_hashes, copy_thumbs) in copies.items():
            n = len(copy_hashes)
            found, _, _ = near_pairs(
                np.concatenate([hashes[:n], copy_hashes]),
                np.concatenate([thumbs[:n], copy_thumbs]),
                np.repeat([0, 1], n),
                np.arange(2 * n),
                distance,
                correlation,
            )
            row[what] = round(float((found[:, 1] - found[:, 0] == n).sum() / n), 4)
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--images", type=int, default=3000, help="images of each set that are compared with one another"
    )
    parser.add_argument("--copies", type=int, default=300, help="images of each set that are copied")
    options = parser.parse_args()
    logging.getLogger("keepsight").setLevel(logging.ERROR)
    head = " ".join(f"{what[:16]:>16}" for what in COPIES)
    print(f"{'data':>14} {'bits':>4} {'corr.':>6} {'different found':>22} {head}", file=sys.stderr)
    for source in ("mnist-5k", "fashion-mnist", STAMPS):
        try:
            dataset = load_dataset(source)
        except UserError as error:
            print(error, file=sys.stderr)
            continue
        for row in measure(dataset, options.images, options.copies):
            print(json.dumps(row), flush=True)
            shares = " ".join(f"{row[what]:>16.1%}" for what in COPIES)
            different = f"{row['different_found']} of {row['different_pairs']}"
            star = "*" if row["default"] else " "
            print(
                f"{dataset.name:>14} {row['distance']:>4} {row['correlation'] or '-':>6} {different:>22} {shares} {star}",
                file=sys.stderr,
            )


if __name__ == "__main__":
    main()
