"""The objective of a pretraining run: the student, new or from given weights, and how it is trained."""

from __future__ import annotations

from dataclasses import asdict, replace

import torch

from anysat.errors import InputError
from anysat.model.checkpoint import read_weights
from anysat.model.config import ModelConfig
from anysat.model.encoder import AnySat
from anysat.model.first_weights import init_isometric, isometric_std
from anysat.model.layers import init_transformer
from anysat.model.load import load
from anysat.normalise import Normaliser
from anysat.pretrain.objective import Pretraining
from anysat.train.checkpoints import Checkpoint
from anysat.workflows.pretrain import ModelOptions, PretrainConfig


def new_encoder(options: ModelOptions, seed: int) -> AnySat:
    """Return the untrained encoder that a run starts with, determined by the seed."""
    torch.manual_seed(seed)
    encoder = AnySat(options.config())
    if options.first_weights == "isometric":
        init_isometric(encoder)
    return encoder


def make_objective(config: PretrainConfig, normaliser: Normaliser, begun: Checkpoint | None = None) -> Pretraining:
    """Return the student, new or from given weights, in its objective, determined by the seed.

    A run that continues from a checkpoint does not read the weights it was started with again; they may be gone.

    Raises:
        InputError: The weights were trained with other options.
    """
    torch.manual_seed(config.seed)
    if config.weights is None or begun is not None:
        student = new_encoder(config.model, config.seed)
        student.normaliser = normaliser
    else:
        _check_made_alike(config.weights, config)
        student = load(config.weights, config=config.model.config(), statistics=normaliser)
    student.provenance = {
        "weights": f"pretrained by anysat, preset {config.preset}, goal {config.objective.goal}",
        "data": ", ".join(dict.fromkeys(part.dataset for part in config.data)),
        "seed": str(config.seed),
        "begun_from": config.weights or f"random weights, {config.model.first_weights}",
        **{name: student.provenance[name] for name in ("licence",) if name in student.provenance},
    }
    if begun is not None:
        student.provenance |= begun.encoder().provenance or {}
    objective = Pretraining(student, config.masking, config.objective, recompute=config.recompute)
    if config.model.first_weights == "isometric":
        init_transformer(objective.predictor, objective.predictor.blocks, isometric_std(config.model.dim))
    return objective


_HABITS = ("subpatch_order", "rpe_heads", "patch_position_unit_m")
"""Options that weights were trained with but that their shapes do not show. Files with published names lack them, too.

How fusion attends is not one of them, because the published weights may have been trained in either way.
"""


def _check_made_alike(weights: str, config: PretrainConfig) -> None:
    """Check that weights were trained with the options of the run."""
    asked = config.model.config()
    published = replace(asked, **{name: getattr(ModelConfig(), name) for name in _HABITS})
    kept = read_weights(weights).config or published
    differing = [name for name in asdict(kept) if getattr(kept, name) != getattr(asked, name)]
    if not differing:
        return
    told = [name for name in differing if name != "modalities"]
    options = [
        f"--model.{name.replace('_', '-')} {getattr(kept, name)}"
        for name in told
        if name in (*_HABITS, "fusion_attention")
    ]
    raise InputError(
        f"--weights {weights}", f"a model of the same {', '.join(differing)}",
        ", ".join(f"{name} {getattr(asked, name)}" for name in told) or "others",
        f"set the options of --model to those of the weights{': ' if options else ''}{' '.join(options)}",
    )  # fmt: skip
