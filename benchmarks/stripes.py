"""Ten digits, one of each class: plain, under white stripes and under yellow ones. Draws the picture in docs/data.md.

python benchmarks/stripes.py --file docs/images/stripes.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from keepsight.core.files import atomic_file
from keepsight.data.load import load_dataset

ROWS = ("mnist-5k", "mnist-5k-white-stripes", "mnist-5k-yellow-stripes")
GAP = 2
SCALE = 2


def sheet() -> Image.Image:
    """One row a data set, one column a class: its first image."""
    side = 28 + GAP
    picture = Image.new("RGB", (10 * side + GAP, len(ROWS) * side + GAP), (128, 128, 128))
    for row, name in enumerate(ROWS):
        data = load_dataset(name)
        for column in range(10):
            first = int(np.flatnonzero(data.labels == column)[0])
            picture.paste(data.images.load(first), (GAP + column * side, GAP + row * side))
    return picture.resize((picture.width * SCALE, picture.height * SCALE), Image.Resampling.NEAREST)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, default=Path("docs/images/stripes.png"))
    file = parser.parse_args().file
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(file) as path:
        sheet().save(path, format="PNG", optimize=True)
    print(f"{file}: {file.stat().st_size} bytes")


if __name__ == "__main__":
    main()
