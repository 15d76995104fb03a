"""Beam search over any network that says the next word, word by word. Knows neither the network nor the vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

State = tuple[Tensor, ...]
"""What a network remembers of the W hypotheses of B images: tensors [B, W, ...]."""

Step = Callable[[Tensor, State], tuple[Tensor, State]]
"""(last words [B, W], state) -> (logits of the next word [B, W, V], state)."""


@torch.no_grad()
def beam_search(
    step: Step,
    state: State,
    *,
    begin: int,
    end: int,
    banned: Sequence[int] = (),
    max_length: int = 30,
    length_penalty: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The caption with the best score that the beam met, for each image.

    score = log p(words, end) / (number of words + 1) ** length_penalty, over captions of at most `max_length` words; after so many
    only the end may follow. Each image has W places. A hypothesis that ends keeps its place and stays out of the search, so that
    width 1 is greedy decoding, and a width of at least the number of all captions is exhaustive search. Nothing is drawn, and no
    image sees another.

    Args:
        step: The network.
        state: At the beginning, [B, W, ...]; W is the width. The W copies of an image must be equal.
        begin: Index of the word before the first.
        end: Index of the word after the last.
        banned: Indices that are never said; the others' probabilities are of these alone.
        max_length: Words of a caption without begin and end.
        length_penalty: >= 0; 0 prefers short captions, 1 compares the mean over words.

    Returns:
        Words [B, max_length] int64 without begin and end, filled up with 0, and scores [B].
    """
    images, width = state[0].shape[:2]
    device = state[0].device
    row_B1 = torch.arange(images, device=device)[:, None]
    words_BWL = torch.full((images, width, 1), begin, device=device)
    # At first all hypotheses of an image are the same: only one of them counts.
    total_BW = torch.full((images, width), -torch.inf, device=device)
    total_BW[:, 0] = 0.0
    places_B = torch.full((images,), width, device=device)
    best_B = torch.full((images,), -torch.inf, device=device)
    best_words_BL = torch.zeros(images, max_length, dtype=torch.int64, device=device)
    for length in range(1, max_length + 2):
        logits_BWV, state = step(words_BWL[..., -1], state)
        log_p_BWV = _log_p(logits_BWV, banned, end if length > max_length else None)
        candidates_BK = (total_BW[..., None] + log_p_BWV).flatten(1)
        total_BW, place_BW = candidates_BK.topk(width, dim=1)
        total_BW = total_BW.masked_fill(torch.arange(width, device=device) >= places_B[:, None], -torch.inf)
        from_BW, word_BW = place_BW // logits_BWV.shape[2], place_BW % logits_BWV.shape[2]
        words_BWL = torch.cat([words_BWL[row_B1, from_BW], word_BW[..., None]], dim=2)
        state = tuple(each[row_B1, from_BW] for each in state)
        ended_BW = (word_BW == end) & total_BW.isfinite()
        score_B, which_B = (total_BW / length**length_penalty).masked_fill(~ended_BW, -torch.inf).max(dim=1)
        better_B = score_B > best_B
        best_B = torch.where(better_B, score_B, best_B)
        said_BL = words_BWL[row_B1[:, 0], which_B, 1:-1]
        best_words_BL[:, : length - 1] = torch.where(better_B[:, None], said_BL, best_words_BL[:, : length - 1])
        places_B = places_B - ended_BW.sum(dim=1)
        total_BW = total_BW.masked_fill(ended_BW, -torch.inf)
        # Log probabilities only fall, so that no running hypothesis can end better than this.
        if bool((total_BW.amax(dim=1) / (max_length + 1) ** length_penalty <= best_B).all()):
            break
    return best_words_BL, best_B


def _log_p(logits_BWV: Tensor, banned: Sequence[int], only: int | None) -> Tensor:
    """Log probabilities of the allowed words; where `only` is given, of it alone, and -inf of the others."""
    log_p_BWV = logits_BWV.float().index_fill(
        2, torch.tensor(banned, dtype=torch.int64, device=logits_BWV.device), -torch.inf
    )
    log_p_BWV = log_p_BWV.log_softmax(dim=2)
    if only is None:
        return log_p_BWV
    return torch.full_like(log_p_BWV, -torch.inf).index_copy(
        2, torch.tensor([only], device=log_p_BWV.device), log_p_BWV[..., only : only + 1]
    )
