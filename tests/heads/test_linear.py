"""The linear head is its formula, and the standardisation its definition."""

import torch

from keepsight.heads.linear import LinearHead, standardisation


def test_standardisation_leaves_constants_alone() -> None:
    x = torch.tensor([[1.0, 1000.1], [3.0, 1000.1], [5.0, 1000.1]])
    mean, scale = standardisation(x)
    torch.testing.assert_close(mean, torch.tensor([3.0, 1000.1]))
    torch.testing.assert_close(scale, torch.tensor([(8 / 3) ** 0.5, 1.0]))


def test_head_is_the_written_formula_and_trains() -> None:
    head = LinearHead(features=4, classes=3)
    state = {
        "mean_F": torch.arange(4.0),
        "scale_F": torch.tensor([1.0, 2.0, 3.0, 4.0]),
        "weight_KF": torch.randn(3, 4),
        "bias_K": torch.randn(3),
    }
    head.load_state_dict(state)
    x = torch.randn(5, 4)
    expected = ((x - state["mean_F"]) / state["scale_F"]) @ state["weight_KF"].T + state["bias_K"]
    torch.testing.assert_close(head(x), expected)
    assert {name for name, _ in head.named_parameters()} == {"weight_KF", "bias_K"}
