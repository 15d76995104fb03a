"""Objects with noise on them, which a detection transformer learns to put right (DN-DETR, Li et al. 2022). Knows no network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from keepsight.core import Target, processes
from keepsight.heads.detection import NoisedQueries
from keepsight.methods.draws import of_image

# However many objects an image has, the noised queries stay near this number: attention among queries grows with its square.
_MOST_QUERIES = 200


@dataclass(frozen=True, slots=True)
class Noised:
    """The extra queries [B, M], and what is true of each; where they are not `present` it means nothing."""

    queries: NoisedQueries
    classes: Tensor
    boxes: Tensor


def add_noise(targets: Sequence[Target], classes: int, groups: int, box_noise: float, class_noise: float) -> Noised:
    """Every object of a batch `groups` times (fewer where an image has many), each with its own noise (`Target.draw`).

    Every process has as many places as the fullest image of the global batch needs. A batch without objects gives one empty place a
    group, so that the same parameters take part in every step.

    Args:
        targets: Of each image.
        classes: K; a wrong class is drawn from all of them evenly.
        groups: At most.
        box_noise: Centres move by up to this share of half the box's side; sides change by up to this share of themselves.
        class_noise: Probability of a drawn class.
    """
    device = targets[0].boxes.device
    most = processes.largest(max([1, *(len(target.classes) for target in targets)]), device)
    groups = min(groups, max(1, _MOST_QUERIES // most))
    names_BN, boxes_BN4 = (
        pad_sequence([*rows, rows[0].new_zeros(most, *rows[0].shape[1:])], batch_first=True)[:-1]
        for rows in ([target.classes for target in targets], [target.boxes for target in targets])
    )
    counts_B = torch.tensor([len(target.classes) for target in targets], device=names_BN.device)
    present_BN = torch.arange(most, device=names_BN.device) < counts_B[:, None]
    names_BM, boxes_BM4, present_BM = (
        names_BN.repeat(1, groups),
        boxes_BN4.repeat(1, groups, 1),
        present_BN.repeat(1, groups),
    )
    u_BM6 = torch.stack([torch.rand(groups * most, 6, generator=of_image(target)) for target in targets]).to(device)
    drawn_BM = (u_BM6[..., 0] * classes).long().clamp(max=classes - 1)
    wrong_BM = u_BM6[..., 1] < class_noise
    noise_BM4 = box_noise * (2 * u_BM6[..., 2:] - 1)
    centres_BM2, sizes_BM2 = boxes_BM4[..., :2], boxes_BM4[..., 2:]
    moved_BM4 = torch.cat(
        [centres_BM2 + noise_BM4[..., :2] * sizes_BM2 / 2, sizes_BM2 * (1 + noise_BM4[..., 2:])], dim=2
    )
    queries = NoisedQueries(
        moved_BM4.clamp(1e-3, 1 - 1e-3), torch.where(wrong_BM, drawn_BM, names_BM), present_BM, groups
    )
    return Noised(queries, names_BM, boxes_BM4)
