"""A token can always be made, also where no two images differ."""

import torch

from keepsight.heads.reduction import Reduction
from keepsight.heads.token import fit_token, view_mean


def test_with_and_without_views_it_is_the_reduction() -> None:
    x, views = torch.randn(30, 5), [torch.randn(30, 5)]
    torch.testing.assert_close(fit_token(x, [], 3, 0.1).axes_FD, Reduction.fit(x, 3).axes_FD)
    torch.testing.assert_close(fit_token(x, views, 3, 0.1).axes_FD, Reduction.fit_views(x, views, 3, 0.1).axes_FD)


def test_images_that_are_all_the_same_have_a_token_of_zeros() -> None:
    x = torch.full((6, 5), 3.0)
    for views in ([], [x]):
        assert fit_token(x, views, 3, 0.1)(x).tolist() == [[0.0]] * 6


def test_the_mean_of_views_counts_the_plain_image() -> None:
    reduction = fit_token(torch.randn(30, 5), [], 3, 0.1)
    x, view = torch.randn(4, 5), torch.randn(4, 5)
    torch.testing.assert_close(view_mean(reduction, x, [view]), reduction((x + view) / 2))
    torch.testing.assert_close(view_mean(reduction, x, []), reduction(x))
