from __future__ import annotations

import numpy as np

from keepsight.data.easy_vqa import read_easy_vqa


def test_the_real_package() -> None:
    found = read_easy_vqa(train_images=60, test_images=20, seed=0)
    assert len(found.images) == 80
    assert found.images.load(79).size == (64, 64)
    assert found.test_Q.sum() == (found.image_Q >= 60).sum() > 100
    assert len(found.answers) == 13
    assert set(found.kinds) == {"shape", "colour", "yes/no"}
    assert (found.scores_QK.sum(axis=1) == 1).all()
    assert [found.answers[k] for k in found.scores_QK.argmax(axis=1)] == list(found.truths)

    # Questions belong to their images: what is called red has the reddest pixel that is far from grey.
    seen = {}
    for i, text in enumerate(found.texts):
        if text == "what is the color of the shape?" and found.truths[i] in ("red", "blue"):
            pixels = np.asarray(found.images.load(int(found.image_Q[i])), dtype=int).reshape(-1, 3)
            shape = pixels[np.ptp(pixels, axis=1).argmax()]
            seen.setdefault(found.truths[i], []).append(int(shape.argmax()))
    assert seen["red"] == [0] * len(seen["red"])
    assert seen["blue"] == [2] * len(seen["blue"])


def test_another_seed_draws_other_images_of_the_same_parts() -> None:
    first, other = (read_easy_vqa(train_images=50, test_images=20, seed=seed) for seed in (0, 1))
    hashes = [{found.images.content_hash(i) for i in range(50)} for found in (first, other)]
    assert hashes[0] != hashes[1]
    assert first.images.name(0).startswith("train/")
    assert first.images.name(50).startswith("test/")
