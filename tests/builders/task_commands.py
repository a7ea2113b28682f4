"""What tests of `anysat probe`, `finetune`, `evaluate` and `predict` share: their words, and what they leave."""

import hashlib
import json

import torch

from anysat import AnySat, ModelConfig
from anysat.data.open import find_dataset
from anysat.modalities import MODALITIES
from miniatures import miniature

WORLD = '{"tiles": 18, "seed": 7, "modalities": ["s2", "s1"], "extent_m": 60}'


def new_encoder(dim, depth, num_heads):
    """First weights of an encoder of every modality in the table."""
    torch.manual_seed(0)
    config = ModelConfig(dim=dim, depth=depth, num_heads=num_heads, subpatch_order="raster", pixel_dropout_prob=0.0)
    for modality in [m for m in MODALITIES.values() if m.key not in {one.key for one in config.modalities}]:
        config = config.with_modalities(modality)
    return AnySat(config)


def world_words(target="land_cover", patch=30):
    return ["--data.dataset=world", f"--data.world={WORLD}", f"--data.target={target}", "--data.modalities=[s2,s1]",
            f"--patch-sizes-m=[{patch}]", "--dense=s2"]  # fmt: skip


def of_miniature(name):
    record = find_dataset(name)
    return [f"--data.dataset={name}", f"--data.root={miniature(name)}", f"--data.target={record.targets[0].name}",
            f"--patch-sizes-m=[{record.patch_sizes_m[0]:g}]", f"--day-convention={record.day_convention}"]  # fmt: skip


def scores_of(folder):
    return json.loads((folder / "scores.json").read_text())


def digest(model):
    return hashlib.sha256(b"".join(t.numpy().tobytes() for t in model.state_dict().values())).hexdigest()
