"""Features of frozen encoders and of untrained networks for the pretraining probes, the same for every dataset.

An encoder keeps the statistics that it was trained with. If it has none for the data, those of the training tiles are
used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from pretraining_scores import FeatureSets
from torch import Tensor

from anysat.batch import Batch
from anysat.model.config import ModelConfig
from anysat.model.encoder import CHUNK_ROWS, AnySat
from anysat.model.first_weights import init_isometric
from anysat.normalise import Normaliser


def untrained(config: ModelConfig, seed: int, *, isometric: bool = False) -> AnySat:
    """Return an untrained network, frozen and without statistics."""
    torch.manual_seed(seed)
    encoder = AnySat(config)
    if isometric:
        init_isometric(encoder)
    return encoder.eval().requires_grad_(False)


def digest(model: AnySat) -> str:
    """Return a short digest of the weights."""
    return hashlib.sha256(b"".join(t.numpy().tobytes() for t in model.state_dict().values())).hexdigest()[:16]


def with_statistics(model: AnySat, batch: Batch) -> str:
    """Give a model statistics of a batch of training tiles if it has none for their dataset; return which are used."""
    name = batch.dataset or "data"
    own = model.normaliser
    if own is not None and name in own.statistics:
        return f"the model's own for {name!r}"
    of_data = Normaliser.from_batch(batch)
    model.normaliser = of_data if own is None else Normaliser.joined([own, of_data])
    return f"{of_data.source} of the training part of {name!r}: the model has none for it"


def remembered(path: Path | None, make: Callable[[], dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """Return arrays from a file, which is created if it does not exist."""
    if path is not None and path.is_file():
        with np.load(path) as file:
            return {name: file[name] for name in file.files}
    made = make()
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part.npz")
        np.savez(part, **made)
        part.replace(path)
    return made


def twin_file(cache: Path | None, twin: AnySat, *facts: object) -> Path | None:
    """Return the file for the features of an untrained network, by its configuration, statistics and other facts."""
    if cache is None:
        return None
    statistics = None if twin.normaliser is None else twin.normaliser.to_dict()
    text = json.dumps([twin.config.to_dict(), statistics, *map(str, facts)], sort_keys=True)
    return cache / f"untrained-{hashlib.sha256(text.encode()).hexdigest()[:16]}.npz"


@torch.inference_mode()
def pixel_features(model: AnySat, batch: Batch, patch_size_m: float) -> NDArray[Any]:
    """Return (tile feature row col): fused token of the patch, then each modality's token of the pixel, NaN if unseen.

    For modalities whose sub-patch is a pixel, all of one size. The result is that of `encode(…, dense=key)` for each
    key, in one pass.
    """
    inputs, grid = model.prepare(batch, patch_size_m)
    seen = model.see(inputs, patch_size_m, tuple(inputs), chunk_rows=CHUNK_ROWS)
    _, fused = model.fuse(seen, (grid.num_rows, grid.num_cols), patch_size_m)
    patch = rearrange(fused, "tile (pr pc) dim -> tile dim pr pc", pr=grid.num_rows)
    subs = {key: one.sub if one.sub_valid is None else one.sub.masked_fill(~one.sub_valid[..., None], torch.nan)
            for key, one in seen.items() if one.sub is not None}  # fmt: skip
    side = round(next(iter(subs.values())).shape[3] ** 0.5)
    pixels = [rearrange(one, "tile pr pc (sr sc) dim -> tile dim (pr sr) (pc sc)", sr=side) for one in subs.values()]
    whole = patch.repeat_interleave(side, dim=2).repeat_interleave(side, dim=3)
    missing = [torch.full_like(whole, torch.nan) for key in batch.observations if key not in subs]
    assert not missing or list(batch.observations)[: len(subs)] == list(subs), list(batch.observations)
    return torch.cat([whole, *pixels, *missing], dim=1).numpy()


def feature_sets(features: NDArray[Any], kinds: Sequence[str]) -> FeatureSets:
    """Return the sets `own`, `dense` and `all` of equally wide blocks of columns; `kinds` says what each block is."""
    blocks = dict(enumerate(np.split(features, len(kinds), axis=1)))
    chosen = {
        "own": [n for n, kind in enumerate(kinds) if kind != "fused"],
        "dense": [n for n, kind in enumerate(kinds) if kind != "s1"],
        "all": list(blocks),
    }
    return {name: np.concatenate([blocks[n] for n in numbers], axis=1) for name, numbers in chosen.items()}


@torch.inference_mode()
def patch_tokens(model: AnySat, batch: Batch, patch_size_m: float) -> dict[str, Tensor]:
    """Return (patch feature): fused tokens as `fused`, and the patch tokens of each modality before fusion."""
    inputs, _ = model.prepare(batch, patch_size_m)
    seen = model.see(inputs, patch_size_m, chunk_rows=CHUNK_ROWS)
    fused = model.encode(batch, patch_size_m).patch
    return {"fused": fused.flatten(0, 2), **{key: one.patch.flatten(0, 2) for key, one in seen.items()}}
