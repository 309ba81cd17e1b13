"""The losses of preference alignment as functions of log-probabilities of items: S-DPO, GRPO and ECPO.

B prompts, K items per prompt. Items that are missing, because a catalogue may have fewer, are marked in `there`. All
tensors are float32 and bool.
"""

import torch
from torch.nn import functional as F

STABLE = 1e-4
"""Added to the standard deviation of the rewards of a group, as in trl and MiniOneRec."""
DELTA = 0.1
"""Delta of ECPO, as in OneRec (arXiv 2506.13695)."""


def s_dpo(policy: torch.Tensor, reference: torch.Tensor, there: torch.Tensor, beta: float) -> torch.Tensor:
    """S-DPO (Chen et al. 2024, arXiv 2406.09215): -log sigmoid(-log sum_l exp(beta * (Delta_l - Delta_w))).

    Delta is log(policy / reference) of an item, w the preferred item, and l runs over the rejected ones. With one
    rejected item it is DPO.

    Args:
        policy: [B, 1 + K], log-probabilities; the preferred item is the first.
        reference: [B, 1 + K], the same by the model before the alignment.
        there: bool [B, 1 + K].
        beta: scale of the differences.

    Returns:
        [B]; 0 for a prompt without a rejected item.
    """
    delta = policy - reference
    differences = beta * (delta[:, 1:] - delta[:, :1])
    return F.softplus(differences.masked_fill(~there[:, 1:], -1e30).logsumexp(dim=1))


def advantages(rewards: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
    """(reward - mean) / (standard deviation + 1e-4) within each group, [B, K] (GRPO, arXiv 2402.03300).

    The deviation has one degree of freedom less than items, as in trl. A group of one item, or of equal rewards, has
    advantages 0, and so have missing items.

    Args:
        rewards: [B, K].
        there: bool [B, K].
    """
    count = there.sum(dim=1, keepdim=True)
    mean = torch.where(there, rewards, 0).sum(dim=1, keepdim=True) / count.clamp(min=1)
    centred = torch.where(there, rewards - mean, 0)
    deviation = (centred.square().sum(dim=1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
    return centred / (deviation + STABLE)


def k3(policy: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """reference / policy - log(reference / policy) - 1: an estimate of KL(policy || reference) at items that the policy
    drew, never negative (Schulman 2020); the shape of the arguments, which are log-probabilities."""
    ratio = reference - policy
    return ratio.exp() - ratio - 1


def grpo(
    policy: torch.Tensor,
    old: torch.Tensor,
    reference: torch.Tensor,
    advantage: torch.Tensor,
    kl: float,
    clip: float = 0.0,
) -> torch.Tensor:
    """GRPO as in MiniOneRec (arXiv 2510.24431): -(policy / old) * advantage + kl * k3, for each item.

    With `clip` it is ECPO (OneRec, arXiv 2506.13695): PPO's clip of the ratio to 1 - clip ... 1 + clip, and for
    negative advantages the old probability is at least policy / (1 + clip + DELTA), without gradient, so that the
    gradient of a bad item can't explode.

    Args:
        policy: [B, K], log-probabilities.
        old: [B, K], the same when the items were drawn.
        reference: [B, K], the same by the model before the alignment.
        advantage: [B, K].
        kl: weight of the k3 term.
        clip: PPO's epsilon; 0: no clip.

    Returns:
        [B, K].
    """
    if clip:
        least = policy.detach() - torch.tensor(1 + clip + DELTA).log()
        old = torch.where(advantage < 0, torch.maximum(old, least), old)
    ratio = (policy - old).exp()
    gain = ratio * advantage
    if clip:
        gain = torch.minimum(gain, ratio.clamp(1 - clip, 1 + clip) * advantage)
    return kl * k3(policy, reference) - gain
