"""The losses of pretraining: prediction, spread, contrast across modalities, and patch discrimination.

All are computed in float32, even under `torch.autocast`, and leave out invalid tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from anysat.model.precision import multiplying
from anysat.pretrain.config import Distance

_SPREAD_EPS = 1e-5
_VARIANCE_EPS = 1e-4
LEAST_SPREAD, COVARIANCE_SHARE = 1.0, 0.04
"""As in VICReg: the standard deviation that is enough, and the weight of the covariance term relative to it."""
ROWS = 4096
"""Number of tokens whose similarities to all others are held at once. More are computed in parts, and recomputed for
the gradient."""

_Given = ParamSpec("_Given")


def _in_float32(loss: Callable[_Given, Tensor]) -> Callable[_Given, Tensor]:
    """Compute a loss in float32, because autocast would multiply in a shorter type and keep the sums in it."""

    @wraps(loss)
    def run(*given: _Given.args, **options: _Given.kwargs) -> Tensor:
        first = given[0]
        assert isinstance(first, Tensor), type(first)
        with multiplying("float32", first.device):
            return loss(*given, **options)

    return run


@_in_float32
def prediction_loss(predicted: Tensor, target: Tensor, valid: Tensor, distance: Distance = "smooth_l1") -> Tensor:
    """Compute the smooth L1 (beta 1) or squared distance, the mean over the features of the valid tokens.

    Args:
        predicted: (*place dim).
        target: (*place dim), without a gradient.
        valid: (*place). If nothing is valid, the loss is 0.
        distance: `smooth_l1` as in the published code, or `l2`, squared, as in the paper.
    """
    measure = functional.smooth_l1_loss if distance == "smooth_l1" else functional.mse_loss
    each = measure(predicted.float(), target.float(), reduction="none").mean(-1)
    return torch.where(valid, each, 0.0).sum() / valid.sum().clamp_min(1)


def centred(tokens: Tensor, valid: Tensor | None, dims: tuple[int, ...]) -> Tensor:
    """Subtract from tokens the mean of the valid ones over some axes.

    Args:
        tokens: (*place dim).
        valid: (*place); None if all are valid.
        dims: Axes of the places to average over.
    """
    if valid is None:
        return tokens - tokens.mean(dims, keepdim=True)
    weight = valid[..., None].to(tokens.dtype)
    mean = (tokens.masked_fill(~valid[..., None], 0.0)).sum(dims, keepdim=True) / weight.sum(
        dims, keepdim=True
    ).clamp_min(1)
    return tokens - mean


@_in_float32
def spread_loss(tokens: Tensor) -> Tensor:
    """Penalise tokens (token dim) that do not spread: the variance and covariance terms of VICReg (2022, section 4.1).

    Each feature should have a standard deviation of at least `LEAST_SPREAD`, and features should not be correlated. The
    loss is 0 for fewer than two tokens.
    """
    if len(tokens) < 2:
        return tokens.float().sum() * 0.0
    apart = tokens.float() - tokens.float().mean(0)
    covariance = apart.T @ apart / len(apart)
    variance = covariance.diagonal()
    shared = (covariance.square().sum() - variance.square().sum()) / len(variance)
    return functional.relu(LEAST_SPREAD - (variance + _VARIANCE_EPS).sqrt()).mean() + COVARIANCE_SHARE * shared


@_in_float32
def known_loss(told: Tensor, wanted: Tensor, known: Tensor) -> Tensor:
    """Compute the squared distance to standardised numbers, the mean over the known ones.

    The wanted numbers are scaled to mean 0 and standard deviation 1, so the loss is 1 if the mean is always predicted.

    Args:
        told: (token number), the predictions.
        wanted: Same shape, without a gradient.
        known: Same shape, True where a wanted number is known.
    """
    wanted, known_once = wanted.float(), known.sum(0).clamp_min(1)
    apart = (wanted - (wanted * known).sum(0) / known_once) * known
    scaled = apart * torch.rsqrt(apart.square().sum(0) / known_once + _SPREAD_EPS)
    return ((told.float() - scaled) * known).square().sum() / known.sum().clamp_min(1)


def unit_spread(tokens: Tensor, valid: Tensor | None) -> Tensor:
    """Standardise each feature of tokens (*place dim) over the valid places (*place)."""
    places = tuple(range(tokens.ndim - 1))
    tokens = centred(tokens, valid, places)
    square = (tokens if valid is None else tokens.masked_fill(~valid[..., None], 0.0)).square().sum(places)
    count = tokens[..., 0].numel() if valid is None else valid.sum().clamp_min(1)
    return tokens * torch.rsqrt(square / count + _SPREAD_EPS)


@_in_float32
def contrast_loss(
    tokens: Tensor, valid: Tensor | None, temperature: float, others: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """Compute the MIL-NCE contrast between modalities (paper equation 2, as in the published training code).

    Each token (anchor) is pulled to the tokens of the same patch in other modalities, and away from all tokens except
    those of its own modality and tile. Invalid tokens are neither anchors nor candidates. An anchor without a valid
    partner has no positive term. The sum is divided by the number of all tokens.

    Args:
        tokens: (batch modality patch dim), before positions are added.
        valid: (batch modality patch); None if all are valid.
        temperature: Divides the cosine similarities.
        others: Tokens (other dim) and validity (other) of further tiles, used as negatives only.
    """
    _, num_modalities, patches, _ = tokens.shape
    features = functional.normalize(tokens.float(), dim=-1, eps=1e-8).flatten(0, 2)
    seen = features.new_ones(len(features), dtype=torch.bool) if valid is None else valid.flatten()
    number = torch.arange(len(features), device=features.device)
    block, place = number // patches, (number // (num_modalities * patches)) * patches + number % patches
    candidates, candidates_seen = features, seen
    if others is not None:  # -1 differs from the numbers of all own tokens
        candidates = torch.cat([features, functional.normalize(others[0].float(), dim=-1, eps=1e-8)])
        candidates_seen = torch.cat([seen, others[1]])
        block = functional.pad(block, (0, len(others[1])), value=-1)
        place = functional.pad(place, (0, len(others[1])), value=-1)

    def rows(part: slice) -> Tensor:
        """Return the sum of the terms of some anchors."""
        apart = block[: len(features)][part, None] != block
        similarity = features[part] @ candidates.T / temperature
        hidden = ~(apart & candidates_seen)
        everyone = similarity.masked_fill(hidden, float("-inf"))
        same = hidden | (place[: len(features)][part, None] != place)
        has_partner = seen[part] & ~same.all(1)
        has_other = seen[part] & ~hidden.all(1)
        term = torch.where(has_other, _logsumexp(everyone, has_other), 0.0)
        return (
            term - torch.where(has_partner, _logsumexp(similarity.masked_fill(same, float("-inf")), has_partner), 0.0)
        ).sum()

    return _in_parts(rows, len(features)) / max(1, len(features))


def _logsumexp(values: Tensor, any_finite: Tensor) -> Tensor:
    """Return the log-sum-exp of rows. Rows without a finite value get a finite one, so that no gradient is NaN."""
    return values.masked_fill(~any_finite[:, None], 0.0).logsumexp(1)


def _in_parts(rows: Callable[[slice], Tensor], count: int) -> Tensor:
    """Sum over the rows, in parts."""
    parts = [slice(start, min(start + ROWS, count)) for start in range(0, count, ROWS)]
    if len(parts) == 1:
        return rows(parts[0])
    return torch.stack([checkpoint(rows, part, use_reentrant=False) for part in parts]).sum()


@_in_float32
def discrimination_loss(
    predicted: Tensor, target: Tensor, valid: Tensor, temperature: float, same_cosine: float
) -> Tensor:
    """Compute the patch discrimination loss (InfoNCE): find the target of each prediction among all targets.

    Args:
        predicted: (token dim).
        target: (token dim), frozen.
        valid: (token). If none is valid, the loss is 0.
        temperature: Divides the cosine similarities.
        same_cosine: Targets with a higher cosine, such as those of one patch that lies in two blocks, are not told
            apart.
    """
    predicted, target = predicted[valid], target[valid].float()
    if not len(predicted):
        return predicted.float().sum()
    found = functional.normalize(predicted.float(), dim=-1, eps=1e-8)
    wanted = functional.normalize(target, dim=-1, eps=1e-8)

    def rows(part: slice) -> Tensor:
        """Return the sum of the terms of some predictions."""
        numbers = torch.arange(part.start, part.stop, device=found.device)
        logits = found[part] @ wanted.T / temperature
        with torch.no_grad():
            same = (wanted[part] @ wanted.T) > same_cosine
            same[numbers - part.start, numbers] = False
        return functional.cross_entropy(logits.masked_fill(same, float("-inf")), numbers, reduction="sum")

    return _in_parts(rows, len(found)) / len(found)
