"""What pretraining hides and what it asks for; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from anysat.errors import RecordError

Pattern = Literal["blocks", "random"]
Goal = Literal["teacher", "projection"]
Distance = Literal["smooth_l1", "l2"]
ProjectionLoss = Literal["discriminate", "regress"]


def _refuse_unless(holds: bool, where: str, got: object, expected: str) -> None:
    if not holds:
        raise RecordError(where, got, expected)


@dataclass(frozen=True, kw_only=True)
class MaskingConfig:
    """What the student does not see (paper section 3.2, spec 3.3 and 3.4)."""

    pattern: Pattern = "blocks"
    """`blocks`: rectangles are predicted from what is left of one large rectangle. `random`: scattered patches are
    predicted from other scattered patches (ablation of the paper)."""
    num_blocks: int = 4
    """Rectangles to predict in each tile."""
    block_area_frac: tuple[float, float] = (0.2, 0.8)
    """Least and greatest share of the tile in one of them."""
    block_aspect: tuple[float, float] = (0.75, 1.5)
    """Least and greatest ratio of its height to its width, relative to the tile's."""
    context_area_frac: tuple[float, float] = (0.85, 1.0)
    """Least and greatest share of the tile in the context rectangle, from which what is to be predicted is cut."""
    random_context_frac: float = 0.2
    """Share of the patches that are context where the pattern is `random`."""
    hide_modalities_frac: float = 0.5
    """Share of the context's modality tokens that are hidden, besides one in each patch that never is."""
    keep_dates_frac: tuple[float, float] = (0.5, 0.5)
    """Least and greatest share of the dates of a series that the student sees, drawn for each batch and series; at
    least one date."""

    def __post_init__(self) -> None:
        def check(name: str, holds: bool, expected: str) -> None:
            _refuse_unless(holds, f"masking.{name}", getattr(self, name), expected)

        for name in ("block_area_frac", "block_aspect", "context_area_frac", "keep_dates_frac"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        check("pattern", self.pattern in get_args(Pattern), "'blocks' or 'random'")
        check("num_blocks", self.num_blocks >= 1, "one or more")
        for name in ("block_area_frac", "context_area_frac", "keep_dates_frac"):
            pair = getattr(self, name)
            check(name, len(pair) == 2 and 0 < pair[0] <= pair[1] <= 1, "two shares above 0, the smaller first")
        pair = self.block_aspect
        check("block_aspect", len(pair) == 2 and 0 < pair[0] <= pair[1], "two positive ratios, the smaller first")
        check("random_context_frac", 0 < self.random_context_frac < 1, "a share between 0 and 1")
        check("hide_modalities_frac", 0 <= self.hide_modalities_frac <= 1, "a share")


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """What is learnt from what is hidden (paper section 3.2, spec 3.1)."""

    goal: Goal = "teacher"
    """What the hidden patches are to be predicted as. `teacher`: their features by an averaged copy of the encoder that
    sees everything (JEPA, the paper). `projection`: frozen random projections of their pixels, to be told apart from
    those of other patches (patch discrimination); nothing moves, so nothing can collapse together."""
    predict_weight: float = 1.0
    """Weight of the prediction loss."""
    complete_weight: float = 1.0
    """Weight of the same loss for the patches of the context, of whose dates and modalities the student misses some,
    told from their own fused tokens. 0, as published: only patches that are hidden as a whole are predicted."""
    dense_weight: float = 1.0
    """Weight of telling from each sub-patch's token what its pixels hold over all dates, those that the student misses
    included. 0, as published: nothing asks the tokens of the last spatial block, which are half of the dense output."""
    harmonics: int = 2
    """Harmonics of the year that tell what the pixels of a series hold, for `dense_weight` and the goal `projection`,
    besides mean and deviation: 2 tell a season, 6 a month."""
    contrast_weight: float = 1.0
    """Weight of the contrast across modalities (paper equation 2)."""
    dates_weight: float = 0.0
    """Weight of the same contrast between two halves of a series' dates, every other one, in each modality by itself
    (after seasonal contrast: SeCo, 2021): what tells a patch whichever dates were seen. It asks of data of one sensor,
    too, in which nothing can be contrasted across modalities. 0, as published."""
    spread_weight: float = 1.0
    """Weight of what keeps the student's tokens, fused and of each modality, spread over all their features (variance
    and covariance terms of VICReg). 0, as published."""
    temperature: float = 0.1
    """Temperature of the contrast."""
    centred: bool = True
    """Take away what all patches of a batch have in common: from each modality's tokens before the contrast, and from
    the teacher's features, which are then scaled to unit spread. False, as published: while the common part is large, a
    small encoder comes to give every patch the same vector, and stays there."""
    gather_negatives: bool = False
    """True to contrast modalities with the tiles of all devices, not only with one's own."""
    distance: Distance = "smooth_l1"
    """How far a prediction is from the teacher's features: `smooth_l1` (the published code), or `l2`, squared (the
    paper)."""
    momentum: float = 0.996
    """Momentum of the teacher at the first step."""
    final_momentum: float = 1.0
    """Where a line from there leads to after the last step, which comes one step short of it; the paper keeps it
    constant."""
    projection_loss: ProjectionLoss = "discriminate"
    """`discriminate`: which of all patches a projection is of (patch discrimination). `regress`: what it is, each of
    its numbers scaled to unit spread."""
    projection_temperature: float = 0.1
    """Temperature at which projections are told apart."""
    same_target_cosine: float = 0.999
    """Projections more alike than this count as the same patch and are not told apart."""
    predictor_depth: int = 4
    """Blocks of the predictor."""
    predictor_heads: int = 16
    """Attention heads of the predictor."""

    def __post_init__(self) -> None:
        def check(name: str, holds: bool, expected: str) -> None:
            _refuse_unless(holds, f"objective.{name}", getattr(self, name), expected)

        check("goal", self.goal in get_args(Goal), "'teacher' or 'projection'")
        check("predict_weight", self.predict_weight >= 0, "0 or more")
        check("complete_weight", self.complete_weight >= 0, "0 or more")
        check("contrast_weight", self.contrast_weight >= 0, "0 or more")
        check("dense_weight", self.dense_weight >= 0, "0 or more")
        check("harmonics", self.harmonics >= 1, "one or more")
        check("dates_weight", self.dates_weight >= 0, "0 or more")
        check("spread_weight", self.spread_weight >= 0, "0 or more")
        total = (
            self.predict_weight + self.complete_weight + self.dense_weight + self.contrast_weight + self.dates_weight
        )
        expected = "one of the weights of prediction, completion, dense, contrast and dates above 0"
        check("predict_weight", total > 0, expected)
        check("temperature", self.temperature > 0, "a positive number")
        check("distance", self.distance in get_args(Distance), "'smooth_l1' or 'l2'")
        check("momentum", 0 <= self.momentum <= 1, "between 0 and 1")
        check("final_momentum", 0 <= self.final_momentum <= 1, "between 0 and 1")
        check("projection_loss", self.projection_loss in get_args(ProjectionLoss), "'discriminate' or 'regress'")
        check("projection_temperature", self.projection_temperature > 0, "a positive number")
        check("same_target_cosine", 0 < self.same_target_cosine <= 1, "a cosine above 0")
        check("predictor_depth", self.predictor_depth >= 1, "one or more")
        check("predictor_heads", self.predictor_heads >= 1, "one or more, a divisor of the width")
