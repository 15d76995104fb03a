"""The recommendation: fewest cross-validated errors, the cheaper of equals, doubt said, a rule where nothing can be measured."""

from __future__ import annotations

import numpy as np

from keepsight.recipes.recommend import recommend


def wrong(*positions: int, n: int = 60) -> np.ndarray:
    found = np.zeros(n, dtype=bool)
    found[list(positions)] = True
    return found


def test_fewest_errors_win() -> None:
    found = recommend(["knn", "probe"], {"knn": wrong(*range(30)), "probe": wrong(0, 1)}, 5, True)
    assert (found.method, found.criterion) == ("probe", "cross-validation")
    assert "3.3 %" in found.why
    assert "knn 50.0 %" in found.why
    assert "Every other method is worse" in found.why


def test_of_equals_the_cheaper_one() -> None:
    found = recommend(["knn", "probe"], {"knn": wrong(1, 2), "probe": wrong(3, 4)}, 5, True)
    assert found.method == "knn"


def test_what_the_labels_cannot_tell_apart_is_named() -> None:
    errors = {"knn": wrong(*range(40)), "probe": wrong(0, 1, 2, 3), "finetune-lora": wrong(0, 1, 2)}
    found = recommend(["knn", "probe", "finetune-lora"], errors, 5, True)
    assert found.method == "finetune-lora"
    assert "not distinguishable from probe (" in found.why


def test_without_cross_validation_a_rule_decides_and_says_so() -> None:
    methods = ["knn", "probe", "label-propagation", "finetune-full"]
    with_more = recommend(methods, {}, 0, True)
    without = recommend(methods, {}, 0, False)
    assert (with_more.method, without.method) == ("label-propagation", "probe")
    assert with_more.criterion == without.criterion == "rule"
    assert "not by measurement" in with_more.why
