"""LETTER's codebook diversity (arXiv 2405.07314): codes of a group attract each other and repel all other groups.

Constrained k-means makes groups of (nearly) equal size, so no code lies alone in an empty part of the space and no
crowd of them shares one spot; the items, which take the nearest code, then spread over the codes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from llmrec.quantize.classical.kmeans import balanced_assignment, balanced_kmeans

ITERATIONS = 10
"""Of the constrained k-means, as in LETTER's code."""


def group_codes(codebook: Tensor, groups: int, seed: int) -> Tensor:
    """Group (int64 [C], 0 to groups - 1) of every code of `codebook` (floats [C, d]); group sizes differ by at most 1.

    Raises:
        ValueError: fewer than two codes per group.
    """
    if len(codebook) < 2 * groups:
        raise ValueError(f"{len(codebook)} codes do not fill {groups} groups of two")
    codes = codebook.detach().float().cpu().numpy()
    labels = balanced_assignment(codes, balanced_kmeans(codes, groups, ITERATIONS, seed))
    return torch.from_numpy(labels).long().to(codebook.device)


def diversity(codes: Tensor, codebook: Tensor, groups: Tensor, generator: torch.Generator) -> Tensor:
    """Cross entropy (scalar) of finding, by inner product, another code of the group of each item's code.

    Args:
        codes: the items' codes, int64 [B].
        codebook: floats [C, d]; the only receiver of gradient.
        groups: of `group_codes`, int64 [C]; infinite for a code alone in its group.
        generator: draws the other code. On the CPU whatever the device, so that all devices draw alike.
    """
    answers = _mates(codes, groups, torch.rand(len(codes), generator=generator).to(codes.device))
    scores = codebook[codes] @ codebook.T
    # a code is most like itself: unmasked, the term would only shorten the codes
    scores = scores.scatter(1, codes[:, None], float("-inf"))
    return F.cross_entropy(scores, answers)


def _mates(codes: Tensor, groups: Tensor, draws: Tensor) -> Tensor:
    """Another code (int64 [B]) of each code's group, uniform by `draws` (floats [B] in [0, 1))."""
    members = groups.argsort(stable=True)
    sizes = groups.bincount()
    starts = sizes.cumsum(0) - sizes
    places = torch.empty_like(members)
    places[members] = torch.arange(len(members), device=members.device) - starts[groups[members]]
    own = groups[codes]
    steps = 1 + (draws * (sizes[own] - 1)).long()  # 1 to size - 1, so never back to the code itself
    return members[starts[own] + (places[codes] + steps) % sizes[own]]
