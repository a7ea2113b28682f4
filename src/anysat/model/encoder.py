"""AnySat: one forward pass from any set of modalities to tile, patch and dense embeddings.

`encode` takes a batch of source values; calling the model takes the published dict of standardised
tensors. Both check their input and end in `core`, which only takes tensors and can be exported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from einops import rearrange
from torch import Tensor, nn

from anysat.batch import Batch, Embeddings
from anysat.errors import InputError, UnknownNameError
from anysat.model.config import ModelConfig
from anysat.model.fusion import FusionTransformer
from anysat.model.inputs import PixelInput, read_published
from anysat.model.positions import cell_sequence
from anysat.model.precision import Precision, multiplying
from anysat.model.projectors import make_projector
from anysat.model.ready import is_special, made_ready, num_workers_of
from anysat.model.spatial import SpatialTransformer
from anysat.model.steps import CoreOutput, SeenPatches, ShownPatches, fuse, see
from anysat.model.validity import (
    Refuse,
    any_of,
    mark_invalid,
    mark_unseen,
    nothing_of,
    pool_valid,
    tiles_seen,
    valid_or_all,
)
from anysat.normalise import Normaliser, statistics_of
from anysat.observation import day_numbers
from anysat.patches import PatchGrid, cells_per_side, centimetres, subpatches_per_side

CHUNK_ROWS = 2560
"""Pixel-dates (sub-patches, for an image) taken at once through projector and spatial transformer: what is widest, four
times the base size in float32, is just small enough to be kept (`chunks.LARGEST_KEPT`)."""

MAX_PAIRS = 1 << 25
"""Pairs of place and token that are looked at at once where tokens are fused."""

RECOMPUTE_PATCHES = 1024
"""Patches of a tile beyond which training keeps no activations of projectors and spatial transformer but computes them
again: for a tile of 512 x 512 sub-patches they would take gigabytes at any width."""

Output = Literal["tile", "patch", "dense", "all"]


class AnySat(nn.Module):
    """The encoder (CVPR 2025, arXiv 2412.14123, section 3).

    Examples:
        >>> model = AnySat(ModelConfig(dim=64, depth=1, num_heads=2)).eval()
        >>> x = {"s2": torch.randn(1, 3, 10, 6, 6), "s2_dates": torch.tensor([[10, 120, 200]])}
        >>> model(x, patch_size=20, output="patch").shape
        torch.Size([1, 3, 3, 64])
    """

    def __init__(self, config: ModelConfig | None = None, *, normaliser: Normaliser | None = None) -> None:
        super().__init__()
        self.config = config or ModelConfig()
        self.normaliser = normaliser
        """Statistics applied by `encode`; None computes them from each batch, with a warning."""
        self.provenance: dict[str, str] = {"weights": "untrained"}
        """Where the weights come from, and their licence; kept in every file this model is saved to."""
        self.projectors = nn.ModuleDict({m.key: make_projector(m, self.config) for m in self.config.modalities})
        self.spatial = SpatialTransformer(self.config)
        self.fusion = FusionTransformer(self.config)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.fusion.tile_token.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self.fusion.tile_token.dtype

    def encode(
        self,
        batch: Batch,
        patch_size_m: float,
        *,
        dense: str | None = None,
        faithful: bool = False,
        refuse_empty: bool = True,
        precision: Precision | None = None,
    ) -> Embeddings:
        """Embed a batch of source values; of many in turn, outside training, under `keeping_ready()`.

        Args:
            batch: tiles of one size; their values are standardised here, once.
            patch_size_m: side of a patch; it must nest in the tile and hold whole sub-patches.
            dense: key of the modality whose sub-patches get an embedding each, or None.
            faithful: compute as the published code does where ours is right and its is not: invalid
                values are filled and stay in the attention, and aerial dense maps are scrambled.
            refuse_empty: False to give NaN for a tile without a valid value, its tile embedding included.
            precision: `float32` or `bf16`, in what matrices are multiplied; None as `torch.autocast` around has it.

        Raises:
            InputError: `bf16` is asked for of weights that are neither that nor float32.
            UnknownNameError: the model has no projector for a modality of the batch.
            PatchSizeError, ExtentError: the patches do not nest.
            StatisticsError: the normaliser does not fit the data.
            EmptyTileError: a tile has no valid value at all.
        """
        with multiplying(precision, self.device, self.dtype):
            return self._embed(self._standardise(batch), batch.ids, patch_size_m, dense, faithful, refuse_empty)

    def prepare(
        self, batch: Batch, patch_size_m: float, *, refuse_empty: bool = True
    ) -> tuple[dict[str, PixelInput], PatchGrid]:
        """What the core takes, from a batch of source values, and how its tiles are cut.

        Tiles without a valid value stay, wholly invalid. Raises as `encode`; if `refuse_empty`, EmptyTileError where
        all are so.
        """
        refuse: Refuse = "all" if refuse_empty else "none"
        inputs, grid, _ = self._check(self._standardise(batch), batch.ids, patch_size_m, refuse=refuse)
        return inputs, grid

    def grid(self, batch: Batch, patch_size_m: float) -> PatchGrid:
        """How the tiles of a batch are cut.

        Raises:
            PatchSizeError, ExtentError: the patches do not nest.
        """
        return self._grid_of({key: seen.values for key, seen in batch.observations.items()}, patch_size_m)

    def forward(
        self,
        x: Mapping[str, Tensor],
        patch_size: float,
        output: Output = "patch",
        output_modality: str | None = None,
        *,
        faithful: bool = False,
        precision: Precision | None = None,
    ) -> Tensor:
        """The published call: standardised tensors in, one tensor out, nothing applied.

        Args:
            x: images (batch band row col) and series (batch time band row col) by modality key, with
                `<key>_dates` (batch time) day numbers for series, and optional `<key>_mask`, 1 or True where
                data is real, (batch time) or broadcastable to the values.
            patch_size: side of a patch in metres.
            output: `tile` (batch dim), `patch` (batch row col dim), `all` (batch 1+patch dim) or
                `dense` (batch row col 2*dim); vectors nobody saw are NaN.
            output_modality: modality of a dense output; the first of `x` by default.
            faithful, precision: see `encode`.

        Raises:
            InputError, UnknownNameError, ExtentError, PatchSizeError, EmptyTileError: see the message.
        """
        if output not in get_args(Output):
            raise UnknownNameError("output", output, get_args(Output))
        if output_modality is not None and output != "dense":
            raise InputError("output_modality", "None unless output='dense'", repr(output_modality))
        inputs = read_published(x, self.config)
        dense = (output_modality or next(iter(inputs))) if output == "dense" else None
        batch_size = len(next(iter(inputs.values())).values)
        with multiplying(precision, self.device, self.dtype):
            if output == "tile":
                ready, grid, _ = self._check(inputs, range(batch_size), patch_size, keep_unseen=faithful)
                return self._computed(ready, grid, None, faithful, tile_alone=True).tile
            found = self._embed(inputs, range(batch_size), patch_size, dense, faithful)
        if output == "all":
            return torch.cat([found.tile[:, None], found.patch.flatten(1, 2)], dim=1)
        result = found.patch if output == "patch" else found.dense
        assert result is not None, output
        return result

    def load_published_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Put tensors with the published names into this model; strict.

        Raises:
            WeightsError: naming what is missing, extra or misshapen.
        """
        from anysat.model.checkpoint import load_published

        load_published(self, state_dict)

    def published_state_dict(self) -> dict[str, Tensor]:
        """This model's tensors under the published names; 418 of them for the base size."""
        from anysat.model.checkpoint import published

        return published(self)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> AnySat:
        """Load from a hub id, a folder or a file; the same as `anysat.load`."""
        from anysat.model.checkpoint import load

        return load(pretrained_model_name_or_path, **options)

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write a folder that `from_pretrained` takes: weights, shape, and a card that tells their licence."""
        from anysat.model.checkpoint import save_folder

        save_folder(self, Path(save_directory))

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload that folder to the hub; options are those of `anysat.model.checkpoint.push`. Returns its address."""
        from anysat.model.checkpoint import push

        return push(self, repo_id, **options)

    def core(
        self,
        inputs: Mapping[str, PixelInput],
        patch_size_m: float,
        dense: str | None = None,
        *,
        leave_out: bool = True,
        chunk_rows: int | None = None,
        tile_alone: bool = False,
        recompute: bool = False,
    ) -> CoreOutput:
        """The forward pass on checked tensors, on the device and in the type of the weights.

        It can be exported when `chunk_rows` is None. `leave_out=False` keeps invalid values in the
        attention and gives dense maps in the published layout. `tile_alone` leaves the patches out, `recompute` keeps
        no activations of the first step for the backward pass.
        """
        kept = () if dense is None else (dense,)
        seen = self.see(inputs, patch_size_m, kept, leave_out=leave_out, chunk_rows=chunk_rows, recompute=recompute)
        tiling = [tokens for key, tokens in seen.items() if not self.config.modality(key).covers_tile]
        rows, cols = self._count_patches(inputs, patch_size_m)
        max_pairs = None if chunk_rows is None else MAX_PAIRS
        tile, fused = self.fuse(seen, (rows, cols), patch_size_m, max_pairs=max_pairs, tile_alone=tile_alone)
        if tile_alone:
            return CoreOutput(tile, fused[:, None], None, None, None)
        patch = rearrange(fused, "batch (pr pc) dim -> batch pr pc dim", pr=rows)
        if tiling:
            patch_valid = any_of([tokens.patch_valid for tokens in tiling])
        else:
            patch_valid = any_of([pool_valid(tokens.patch_valid, rows, cols) for tokens in seen.values()])
        if dense is None:
            return CoreOutput(tile, patch, patch_valid, None, None)

        sub, sub_valid = seen[dense].sub, seen[dense].sub_valid
        assert sub is not None, dense
        modality = self.config.modality(dense)
        side = subpatches_per_side(patch_size_m, modality)
        if not leave_out and self.config.subpatch_order == "cell":
            sub = sub[..., cell_sequence(side, cells_per_side(modality), sub.device).argsort(), :]
        both = torch.cat([patch[:, :, :, None].expand(*sub.shape[:-1], -1), sub], dim=-1)
        unfold = "batch pr pc (sr sc) ... -> batch (pr sr) (pc sc) ..."
        dense_valid = None if sub_valid is None else rearrange(sub_valid, unfold, sr=side)
        return CoreOutput(tile, patch, patch_valid, rearrange(both, unfold, sr=side), dense_valid)

    def see(
        self,
        inputs: Mapping[str, PixelInput],
        patch_size_m: float,
        keep_sub: tuple[str, ...] = (),
        *,
        leave_out: bool = True,
        chunk_rows: int | None = None,
        recompute: bool = False,
    ) -> dict[str, SeenPatches]:
        """First step of the core: each modality by itself, its patches' tokens without their places; see `steps`.

        `keep_sub` names the modalities whose sub-patch tokens are wanted, too.
        """
        own = (self.spatial, *(self.projectors[key] for key in inputs))
        with made_ready(*own) as made:
            return see(
                dict(zip(inputs, made[1:], strict=True)), made[0], self.config, inputs, patch_size_m,
                keep_sub=keep_sub, leave_out=leave_out, chunk_rows=chunk_rows, recompute=recompute,
                workers=num_workers_of(own, made),
            )  # fmt: skip

    def fuse(
        self,
        seen: Mapping[str, SeenPatches],
        grid: tuple[int, int],
        patch_size_m: float,
        shown: ShownPatches | None = None,
        max_pairs: int | None = None,
        tile_alone: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Second step of the core: tile token and fused patch tokens of `grid` rows and columns; see `steps`."""
        with made_ready(self.fusion) as (fusion,):
            workers = num_workers_of([self.fusion], [fusion])
            return fuse(fusion, self.config, seen, grid, patch_size_m, shown, max_pairs, tile_alone, workers)

    def _grid_of(self, values: Mapping[str, Tensor], patch_size_m: float) -> PatchGrid:
        shapes = {self.config.modality(key): (one.shape[-2], one.shape[-1]) for key, one in values.items()}
        return PatchGrid.fit(shapes, patch_size_m, self.config.subpatch_order)

    def _count_patches(self, inputs: Mapping[str, PixelInput], patch_size_m: float) -> tuple[int, int]:
        key = min(inputs, key=lambda key: self.config.modality(key).covers_tile)
        gsd_cm = centimetres(self.config.modality(key).gsd_m, key)
        rows, cols = (length * gsd_cm // centimetres(patch_size_m, "patch") for length in inputs[key].values.shape[-2:])
        return rows, cols

    def _embed(
        self,
        inputs: Mapping[str, PixelInput],
        ids: Sequence[object],
        patch_size_m: float,
        dense: str | None,
        faithful: bool,
        refuse_empty: bool = True,
    ) -> Embeddings:
        """Checks, marks what is invalid, runs the core, and marks what nobody saw."""
        if dense is not None and (dense not in inputs or self.config.modality(dense).covers_tile):
            having = [key for key in inputs if not self.config.modality(key).covers_tile]
            raise UnknownNameError("dense modality", dense, having, "It must be there and lie in patches")
        ready, grid, absent = self._check(
            inputs, ids, patch_size_m, dense=dense, refuse="one" if refuse_empty else "none", keep_unseen=faithful
        )
        found = self._computed(ready, grid, dense, faithful)
        return Embeddings(
            tile=found.tile if refuse_empty else mark_unseen(found.tile, tiles_seen(ready)),
            patch=mark_unseen(found.patch, found.patch_valid),
            valid=valid_or_all(found.patch, found.patch_valid),
            grid=grid,
            dense=None if found.dense is None else mark_unseen(found.dense, found.dense_valid),
            dense_valid=None if found.dense is None else valid_or_all(found.dense, found.dense_valid),
            dense_modality=None if dense is None else self.config.modality(dense),
            absent=absent,
        )

    def _computed(
        self,
        ready: Mapping[str, PixelInput],
        grid: PatchGrid,
        dense: str | None,
        faithful: bool,
        *,
        tile_alone: bool = False,
    ) -> CoreOutput:
        """The core in chunks; what comes out must be finite."""
        every = (*self.parameters(), *(pixels.values for pixels in ready.values()))
        wanted = any(one.requires_grad for one in every)
        with torch.set_grad_enabled(torch.is_grad_enabled() and (wanted or is_special(self))):  # what hooks hold learns
            found = self.core(
                ready, grid.patch_size_m, dense, leave_out=not faithful, chunk_rows=CHUNK_ROWS, tile_alone=tile_alone,
                recompute=grid.num_patches > RECOMPUTE_PATCHES,
            )  # fmt: skip
        if not self.training and not bool(found.tile.isfinite().all()):
            values = [p.values if p.valid is None else p.values[p.valid] for p in ready.values()]
            largest = max(float(some.detach().abs().max()) for some in values if some.numel())
            raise InputError(
                "embedding", "finite numbers", f"NaN or infinity from standardised values up to {largest:.3g}",
                "is nodata marked, do the statistics fit, are the weights finite?",
            )  # fmt: skip
        own = self.dtype  # which may be wider than that of the multiplications
        dense_tokens = None if found.dense is None else found.dense.to(own)
        return found._replace(tile=found.tile.to(own), patch=found.patch.to(own), dense=dense_tokens)

    def _standardise(self, batch: Batch) -> dict[str, PixelInput]:
        if not isinstance(batch, Batch):
            raise InputError("batch", "a Batch, such as Batch.of([tile])", type(batch).__name__)
        for key, observation in batch.observations.items():
            self.config.modality(key).check_same(observation.modality)
        batch = batch.to(self.device)
        standardised = (self.normaliser or statistics_of(batch)).standardise(batch)
        return {
            key: PixelInput(standardised[key], self._day_numbers(observation.dates), observation.valid)
            for key, observation in batch.observations.items()
        }

    def _check(
        self,
        inputs: Mapping[str, PixelInput],
        ids: Sequence[object],
        patch_size_m: float,
        *,
        refuse: Refuse = "one",
        dense: str | None = None,
        keep_unseen: bool = False,
    ) -> tuple[dict[str, PixelInput], PatchGrid, dict[str, int]]:
        """Inputs in the type of the weights with what is invalid marked, the grid, and what is absent."""
        grid = self._grid_of({key: pixels.values for key, pixels in inputs.items()}, patch_size_m)
        inputs = {key: pixels.to(self.device) for key, pixels in inputs.items()}
        marked, absent = mark_invalid(inputs, ids, refuse, keep_unseen=keep_unseen)
        if marked.keys() and all(self.config.modality(key).covers_tile for key in marked):
            # Only context is left: the patches are still those of what was given, and nobody saw them.
            marked |= {k: nothing_of(p) for k, p in inputs.items() if not self.config.modality(k).covers_tile}
        if dense is not None and dense not in marked:  # whose map is to be NaN, not missing
            marked[dense] = nothing_of(inputs[dense])
        ready = {key: pixels._replace(values=pixels.values.to(self.dtype)) for key, pixels in marked.items()}
        return ready, grid, absent

    def _day_numbers(self, dates: Tensor | None) -> Tensor | None:
        if dates is None:
            return None
        days = day_numbers(dates.cpu().numpy().astype("datetime64[D]"), self.config.day_convention)
        return torch.from_numpy(days).to(self.device)
