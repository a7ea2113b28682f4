"""The two steps of the forward pass, on tensors: each modality by itself, then the fusion of all.

Inference fuses every patch. Pretraining fuses only some of the patches and hides some tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from anysat.modalities import Modality
from anysat.model.chunks import each, joined, rows_of_each, rows_recomputed, slices
from anysat.model.config import ModelConfig
from anysat.model.fusion import FusionTransformer, Hidden
from anysat.model.inputs import PixelInput
from anysat.model.positions import distance_buckets, raster_coordinates, sincos_code, subpatch_coordinates
from anysat.model.spatial import SpatialTransformer
from anysat.patches import cells_per_side, subpatches_per_side


class SeenPatches(NamedTuple):
    """The tokens of one modality: one per patch and, if requested, one per sub-patch."""

    patch: Tensor
    """(batch patch_row patch_col dim)"""
    patch_valid: Tensor | None
    """(batch patch_row patch_col); None if all are valid."""
    sub: Tensor | None
    """(batch patch_row patch_col sub dim); None if not requested."""
    sub_valid: Tensor | None
    """(batch patch_row patch_col sub); None if all are valid."""

    def tiles(self, part: slice) -> SeenPatches:
        """Return the tokens of some tiles."""
        return SeenPatches(self.patch[part], *(None if one is None else one[part] for one in self[1:]))


class ShownPatches(NamedTuple):
    """The patches of each tile that are fused, the same number for each; pretraining hides the others (section 3.2)."""

    indices: Tensor
    """(batch shown), numbers of patches, counted row by row."""
    valid: Tensor
    """(batch shown), False where a tile has fewer."""
    hidden: Hidden | None = None
    """Modality tokens (batch modality shown) that a vector replaces. Context modalities are never hidden."""


class CoreOutput(NamedTuple):
    """The output of the core, before invalid places are set to NaN."""

    tile: Tensor
    """(batch dim)"""
    patch: Tensor
    """(batch patch_row patch_col dim)"""
    patch_valid: Tensor | None
    """(batch patch_row patch_col)"""
    dense: Tensor | None
    """(batch row col 2*dim)"""
    dense_valid: Tensor | None
    """(batch row col)"""


class Plan(NamedTuple):
    """The work for one modality, in parts that can be done in any order."""

    works: list[Callable[[], Sequence[Tensor | None]]]
    """Parts of the work. Each returns the fields of `SeenPatches` for its patches (patch ...)."""
    grid: tuple[int, int, int]
    """Number of tiles, and of rows and columns of patches."""


def see(
    projectors: Mapping[str, Any],
    spatial: SpatialTransformer,
    config: ModelConfig,
    inputs: Mapping[str, PixelInput],
    patch_size_m: float,
    *,
    keep_sub: Collection[str] = (),
    leave_out: bool = True,
    chunk_rows: int | None = None,
    recompute: bool = False,
    workers: int = 1,
) -> dict[str, SeenPatches]:
    """Apply projector and spatial transformer to all patches of each modality, some patches at a time.

    Args:
        keep_sub: Modalities whose sub-patch tokens are returned, too.
        leave_out: Leave invalid values out of the attention.
        chunk_rows: Number of rows to compute at once; None for all.
        recompute: Keep no activations for the backward pass, which computes them again. Chunks are then smaller,
            because all activations of one are held at a time.
        workers: Number of threads that share the work. More than one needs a pass without gradients, dropout or hooks.

    Returns:
        The tokens of each modality, without patch positions.
    """
    recompute = recompute and torch.is_grad_enabled()
    chunk_rows = rows_recomputed(chunk_rows) if recompute else chunk_rows
    plans = {
        key: plan(
            projectors[key], spatial, config, config.modality(key), pixels, patch_size_m, keep_sub=key in keep_sub,
            leave_out=leave_out, chunk_rows=chunk_rows, recompute=recompute, workers=workers,
        )
        for key, pixels in inputs.items()
    }  # fmt: skip
    return carry_out(plans, workers)


def carry_out(plans: Mapping[str, Plan], workers: int) -> dict[str, SeenPatches]:
    """Do the work of all plans, in `workers` threads, and return the tokens of each modality; see `see`."""
    found = iter(each(lambda work: work(), [work for plan in plans.values() for work in plan.works], workers))
    seen = {}
    for key, plan in plans.items():
        patch, *others = (
            None if part is None else rearrange(part, "(b pr pc) ... -> b pr pc ...", pr=plan.grid[1], pc=plan.grid[2])
            for part in joined(list(islice(found, len(plan.works))), dim=0)
        )
        assert patch is not None, key
        seen[key] = SeenPatches(patch, *others)
    return seen


def plan(
    projector: Any,
    spatial: SpatialTransformer,
    config: ModelConfig,
    modality: Modality,
    pixels: PixelInput,
    patch_size_m: float,
    *,
    keep_sub: bool,
    leave_out: bool,
    chunk_rows: int | None,
    recompute: bool,
    workers: int,
) -> Plan:
    """Plan projector and spatial transformer over all patches of one modality, in parts for the workers; see `see`."""
    side = subpatches_per_side(patch_size_m, modality)
    rows, cols = (length // (side * modality.subpatch_px) for length in pixels.values.shape[-2:])
    values = projector.cut(pixels.values, side)
    valid = None if pixels.valid is None else projector.cut(pixels.valid, side)
    when = projector.date_code(pixels.days)
    when = None if when is None else when.repeat_interleave(rows * cols, dim=0)
    num_sub, dates = side * side, math.prod(values.shape[2:-1])
    chunk_rows = rows_of_each(chunk_rows, workers)

    def project_few(part: slice) -> Sequence[Tensor | None]:
        """Apply the projector to some patches, as many sub-patches at a time as fit in a chunk."""
        when_of = None if when is None else when[part]
        return joined(
            [
                projector(values[part, sub], when_of, None if valid is None else valid[part, sub], leave_out)
                for sub in slices(slice(0, num_sub), chunk_rows, dates)
            ],
            dim=1,
        )

    def project(part: slice) -> Sequence[Tensor | None]:
        return joined([project_few(few) for few in slices(part, chunk_rows, num_sub * dates)], dim=0)

    return plan_patches(
        spatial, config, modality, patch_size_m, (pixels.values.shape[0], rows, cols), project,
        keep_sub=keep_sub, chunk_rows=chunk_rows, recompute=recompute, workers=workers,
    )  # fmt: skip


def plan_patches(
    spatial: SpatialTransformer,
    config: ModelConfig,
    modality: Modality,
    patch_size_m: float,
    grid: tuple[int, int, int],
    project: Callable[[slice], Sequence[Tensor | None]],
    *,
    keep_sub: bool,
    chunk_rows: int | None,
    recompute: bool = False,
    workers: int = 1,
) -> Plan:
    """Plan the spatial transformer over sub-patch tokens, in parts for the workers.

    `grid` is the number of tiles and of rows and columns of patches. `project` returns the tokens (patch sub dim) of
    some patches, and which of them are valid.
    """
    side = subpatches_per_side(patch_size_m, modality)
    cell = cells_per_side(modality) if config.subpatch_order == "cell" else 1
    coordinates = subpatch_coordinates(side, cell, spatial.cls_token.device)
    code = sincos_code(coordinates, modality.subpatch_m, config.dim)
    bucket = distance_buckets(coordinates, num_skip=1)

    def see_some(part: slice) -> Sequence[Tensor | None]:
        """Apply projector and spatial transformer to some patches."""
        tokens, present = project(part)
        assert tokens is not None, modality.key
        patch, sub_tokens = spatial(tokens, present, code, bucket, keep_sub)
        return patch, None if present is None else present.any(-1), sub_tokens, present

    run: Callable[[slice], Sequence[Tensor | None]] = see_some
    if recompute:

        def run(part: slice) -> Sequence[Tensor | None]:
            return checkpoint(see_some, part, use_reentrant=False)

    parts = slices(slice(0, math.prod(grid)), chunk_rows, side * side, workers)
    return Plan([partial(run, part) for part in parts], grid)


def fuse(
    fusion: FusionTransformer,
    config: ModelConfig,
    seen: Mapping[str, SeenPatches],
    grid: tuple[int, int],
    patch_size_m: float,
    shown: ShownPatches | None = None,
    max_pairs: int | None = None,
    tile_alone: bool = False,
    workers: int = 1,
) -> tuple[Tensor, Tensor]:
    """Fuse the tokens of all modalities.

    Args:
        seen: The tokens of each modality from `see`.
        grid: Number of rows and columns of patches.
        shown: The patches to fuse; None for all.
        max_pairs: Number of pairs of place and token to attend to at once; None for all.
        tile_alone: Compute only the tile token.
        workers: Number of threads. Several share the tiles if all patches are fused.

    Returns:
        Tile token (batch dim) and fused patch tokens (batch patch dim), of which there are none with `tile_alone`.
    """
    several = []
    if workers > 1 and max_pairs is not None and shown is None:
        count, tokens_each = len(next(iter(seen.values())).patch), math.prod(grid) * len(seen)
        several = slices(slice(0, count), count * tokens_each, tokens_each, workers)
    if max_pairs is None or len(several) < 2:
        return _fuse(fusion, config, seen, grid, patch_size_m, shown, max_pairs, tile_alone)

    def fuse_some(part: slice) -> tuple[Tensor, Tensor]:
        some = {key: tokens.tiles(part) for key, tokens in seen.items()}
        return _fuse(fusion, config, some, grid, patch_size_m, None, max_pairs // workers, tile_alone)

    tiles, fused = zip(*each(fuse_some, several, workers), strict=True)
    return torch.cat(tiles), torch.cat(fused)


def _fuse(
    fusion: FusionTransformer,
    config: ModelConfig,
    seen: Mapping[str, SeenPatches],
    grid: tuple[int, int],
    patch_size_m: float,
    shown: ShownPatches | None,
    max_pairs: int | None,
    tile_alone: bool,
) -> tuple[Tensor, Tensor]:
    context = {key: tokens for key, tokens in seen.items() if config.modality(key).covers_tile}
    tiling = [tokens for key, tokens in seen.items() if key not in context]
    first = next(iter(seen.values())).patch
    batch, dim = first.shape[0], first.shape[-1]
    none = first.new_zeros(batch, 0, dim)
    placed = torch.cat([none, *(_place(config, key, tokens.patch) for key, tokens in context.items())], dim=1)
    count = grid[0] * grid[1]
    patches = torch.stack([tokens.patch.flatten(1, 2) for tokens in tiling], 1) if tiling else None
    patches = none[:, :, None].expand(-1, -1, count, -1) if patches is None else patches
    coordinates = raster_coordinates(*grid, first.device)

    flags = None  # (batch modality patch)
    everyone = [*context.values(), *tiling]
    if shown is not None or any(tokens.patch_valid is not None for tokens in everyone):
        written = [_flags(tokens).flatten(1) for tokens in tiling]
        flags = torch.stack(written, 1) if written else first.new_zeros(batch, 0, count, dtype=torch.bool)
    if shown is not None:
        assert flags is not None, "written out above"
        index = shown.indices[:, None, :].expand(-1, patches.shape[1], -1)
        patches = patches.gather(2, index[..., None].expand(-1, -1, -1, dim))
        flags = flags.gather(2, index) & shown.valid[:, None]
        coordinates = coordinates[shown.indices]
    valid = None
    if flags is not None:
        valid = torch.cat([*(_flags(tokens).flatten(1) for tokens in context.values()), flags.flatten(1)], dim=1)
    unit = patch_size_m / config.patch_position_unit_m
    hidden = None if shown is None else shown.hidden
    return fusion(patches, placed, coordinates, unit, valid, hidden, max_pairs, tile_alone)


def _flags(tokens: SeenPatches) -> Tensor:
    if tokens.patch_valid is not None:
        return tokens.patch_valid
    return tokens.patch.new_ones(tokens.patch.shape[:3], dtype=torch.bool)


def _place(config: ModelConfig, key: str, tokens: Tensor) -> Tensor:
    """Add position codes in metres to the context tokens of a modality; a single token gets none."""
    rows, cols = tokens.shape[1:3]
    flat = tokens.flatten(1, 2)
    if rows * cols == 1:
        return flat
    unit = config.modality(key).subpatch_m / config.patch_position_unit_m
    code = sincos_code(raster_coordinates(rows, cols, flat.device), unit, config.dim)
    return flat + code.to(flat.dtype)
