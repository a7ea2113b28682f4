"""The influence of each date of a series on the embeddings."""

from __future__ import annotations

from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from anysat.batch import Batch, Tile
from anysat.errors import UnknownNameError
from anysat.model.chunks import each, rows_of_each, slices
from anysat.model.encoder import CHUNK_ROWS, MAX_PAIRS, AnySat
from anysat.model.growth import Features, grow, seen_again
from anysat.model.projectors import SeriesProjector
from anysat.model.ready import made_ready, num_workers_of
from anysat.model.steps import SeenPatches
from anysat.model.validity import any_of, mark_unseen


@torch.inference_mode()
def date_influence(
    model: AnySat, tile: Tile, patch_size_m: float, modality: str
) -> Float[Tensor, "time patch_row patch_col"]:
    """Measure how far the embedding of each patch turns when a date of a series is left out.

    The features of each date are computed only once; the rest of the forward pass is repeated for each date.

    Args:
        model: The encoder, in eval mode.
        tile: The tile.
        patch_size_m: Side of a patch in metres.
        modality: Key of the series whose dates are left out. It cannot be a context modality (MODIS).

    Returns:
        One minus the cosine between the embeddings with and without the date, (time patch_row patch_col). A date also
        counts through what it shows of the other patches, with which a patch is fused. NaN where a patch is not
        observed at all, or not without this date.

    Raises:
        UnknownNameError: The tile has no such series.
        AnySatError: As `AnySat.encode`.

    Examples:
        >>> import numpy as np, anysat
        >>> values = np.random.default_rng(0).normal(-12, 2, (3, 2, 4, 4)).astype("float32")
        >>> days = np.array(["2020-01-05", "2020-04-01", "2020-07-01"], "datetime64[D]")
        >>> s1, units = anysat.MODALITIES["s1"], ["dB", "dB"]
        >>> radar = anysat.Observation.of(s1, values, bands=["VV", "VH"], units=units, dates=days)
        >>> tile, model = anysat.Tile(observations={"s1": radar}), anysat.load("nano")
        >>> model.normaliser = anysat.Normaliser.from_batch(anysat.Batch.of([tile]))
        >>> date_influence(model, tile, 20, "s1").shape
        torch.Size([3, 2, 2])
    """
    series = {key for key in tile.observations if (m := model.config.modality(key)).is_temporal and not m.covers_tile}
    if modality not in series:
        raise UnknownNameError("series of the tile", modality, series, "Its dates are left out one by one")
    dates = tile.observations[modality].dates
    assert dates is not None, modality
    inputs, tiles = model.prepare(Batch.of([tile]), patch_size_m)
    grid = tiles.num_rows, tiles.num_cols
    seen = model.see({k: p for k, p in inputs.items() if k != modality}, patch_size_m, chunk_rows=CHUNK_ROWS)
    if modality not in inputs:  # it has no valid value, so that no date changes anything
        whole = _fused(model, seen, grid, patch_size_m)
        return torch.where(whole.isnan().any(-1), whole.new_tensor(float("nan")), 0.0).repeat(len(dates), 1, 1)
    projector, kind = model.projectors[modality], Features()
    assert isinstance(projector, SeriesProjector), modality
    own = projector, model.spatial, model.config, model.config.modality(modality)
    all_dates, kept = grow(*own, None, inputs[modality], patch_size_m, kind=kind, chunk_rows=CHUNK_ROWS)
    code, found = projector.date_code(kept.days[None])[0], []
    with torch.autocast(code.device.type, enabled=False), made_ready(*own[:2]) as made:
        whole, workers = _fused(model, {**seen, modality: all_dates}, grid, patch_size_m), num_workers_of(own[:2], made)
        rows = rows_of_each(CHUNK_ROWS, workers)
        parts = slices(slice(0, len(kept.parts["present"])), rows, len(dates), workers)

        def tokens_of(present: Tensor, some: slice) -> Tensor:
            few = {"features": kept.parts["features"][some], "present": present[some]}
            return kind.tokens(made[0], few, code)[0][0]

        for date in range(len(dates)):
            present = kept.parts["present"].clone()
            present[:, date] = False
            tokens = torch.cat(each(partial(tokens_of, present), parts, workers))
            without = seen_again(
                made[1], *own[2:], grid, tokens, present.any(1), patch_size_m, chunk_rows=rows, workers=workers
            )
            turned = _fused(model, {**seen, modality: without}, grid, patch_size_m)
            found.append(1 - functional.cosine_similarity(whole, turned, dim=-1))
    return torch.stack(found)


def _fused(
    model: AnySat, seen: dict[str, SeenPatches], grid: tuple[int, int], patch_size_m: float
) -> Float[Tensor, "patch_row patch_col dim"]:
    """Return the patch embeddings of one tile, NaN where nothing was observed."""
    _, fused = model.fuse(seen, grid, patch_size_m, max_pairs=MAX_PAIRS)
    patch = fused.view(*grid, -1)
    flags = [tokens.patch_valid for key, tokens in seen.items() if not model.config.modality(key).covers_tile]
    valid = any_of(flags)
    return mark_unseen(patch, None if valid is None else valid[0])
