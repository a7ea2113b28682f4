"""The encoder, which turns observations by any set of modalities into tile, patch and dense embeddings.

`encode` takes a batch of source values; calling the model takes the published dict of standardised tensors. Both check
their input and then run `core`, which takes tensors only and can be exported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

import torch
from einops import rearrange
from torch import Tensor, nn

from anysat.batch import Batch, Embeddings
from anysat.dates import day_numbers
from anysat.errors import InputError, UnknownNameError
from anysat.model.checkpoint import Pretrained
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
from anysat.patches import PatchGrid, cells_per_side, centimetres, subpatches_per_side

CHUNK_ROWS = 2560
"""Pixel-dates (for an image, sub-patches) that pass projector and spatial transformer at once. The widest tensor, four
times the base size in float32, is then just within `chunks.LARGEST_KEPT`."""

MAX_PAIRS = 1 << 25
"""Pairs of place and token that are attended to at once when tokens are fused."""

RECOMPUTE_PATCHES = 1024
"""For tiles with more patches, training recomputes the activations of projectors and spatial transformer instead of
keeping them: for a tile of 512 x 512 sub-patches they would take gigabytes at any width."""

Output = Literal["tile", "patch", "dense", "all"]


class AnySat(Pretrained):
    """The AnySat encoder (CVPR 2025, arXiv 2412.14123, section 3). Load one with weights by `anysat.load`.

    Args:
        config: The configuration, or the name of a size: `base`, `small` or `tiny`. None for `base`.
        normaliser: Statistics that `encode` standardises with, as in `anysat.load`.

    Examples:
        >>> model = AnySat(ModelConfig(dim=64, depth=1, num_heads=2)).eval()
        >>> x = {"s2": torch.randn(1, 3, 10, 6, 6), "s2_dates": torch.tensor([[10, 120, 200]])}
        >>> model(x, patch_size=20, output="patch").shape
        torch.Size([1, 3, 3, 64])
    """

    def __init__(
        self, config: ModelConfig | str | None = None, *, normaliser: Normaliser | str | Path | None = None
    ) -> None:
        super().__init__(config, normaliser=normaliser)
        self.projectors = nn.ModuleDict({m.key: make_projector(m, self.config) for m in self.config.modalities})
        self.spatial = SpatialTransformer(self.config)
        self.fusion = FusionTransformer(self.config)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.fusion.tile_token.device

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the weights."""
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
        """Embed a batch of source values. Outside training, loop over batches within `model.ready.keeping_ready()`.

        Args:
            batch: Tiles of one size, in source values. They are standardised here.
            patch_size_m: Side of a patch in metres. It must divide the tile and hold whole sub-patches.
            dense: Key of the modality that gets one dense embedding per sub-patch. None for no dense embeddings.
            faithful: Reproduce two faults of the published code: invalid values are filled in and stay in the
                attention, and dense maps of aerial imagery are scrambled inside each patch.
            refuse_empty: Raise an error for a tile without a valid value. If False, all its embeddings are NaN.
            precision: Type of matrix products, `float32` or `bf16`. None leaves it to `torch.autocast`.

        Raises:
            InputError: `bf16` was requested for weights that are neither float32 nor bfloat16.
            UnknownNameError: The model has no projector for a modality of the batch.
            PatchSizeError, ExtentError: The patch size does not fit, or modalities cover different ground.
            StatisticsError: The statistics do not fit the data.
            EmptyTileError: A tile has no valid value in any modality.
        """
        with multiplying(precision, self.device, self.dtype):
            return self._embed(self._standardise(batch), batch.ids, patch_size_m, dense, faithful, refuse_empty)

    def encode_standardised(
        self,
        x: Mapping[str, Tensor],
        patch_size_m: float,
        *,
        dense: str | None = None,
        faithful: bool = False,
        precision: Precision | None = None,
    ) -> Embeddings:
        """Embed standardised tensors, given as to the published interface. No statistics are applied.

        Args:
            x: The tensors, see `forward`.
            patch_size_m, dense, faithful, precision: See `encode`.

        Raises:
            InputError, UnknownNameError, ExtentError, PatchSizeError, EmptyTileError: The input does not fit.
        """
        inputs = read_published(x, self.config)
        ids = range(len(next(iter(inputs.values())).values))
        with multiplying(precision, self.device, self.dtype):
            return self._embed(inputs, ids, patch_size_m, dense, faithful)

    def prepare(
        self, batch: Batch, patch_size_m: float, *, refuse_empty: bool = True
    ) -> tuple[dict[str, PixelInput], PatchGrid]:
        """Return the input of the core for a batch of source values, and how its tiles are divided.

        Raises the errors of `encode`, but tiles without a valid value are kept, and EmptyTileError is raised only if
        `refuse_empty` is set and no tile has a valid value.
        """
        refuse: Refuse = "all" if refuse_empty else "none"
        inputs, grid, _ = self._check(self._standardise(batch), batch.ids, patch_size_m, refuse=refuse)
        return inputs, grid

    def grid(self, batch: Batch, patch_size_m: float) -> PatchGrid:
        """Return how the tiles of a batch are divided into patches.

        Raises:
            PatchSizeError, ExtentError: The patch size does not fit, or modalities cover different ground.
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
        """Embed standardised tensors, with the interface of the published code. No statistics are applied.

        Args:
            x: Images (batch band row col) and series (batch time band row col) by modality key. Series need day
                numbers `<key>_dates` (batch time). `<key>_mask` is optional, 1 or True where data is real: (batch
                time), or broadcastable to the values.
            patch_size: Side of a patch in metres.
            output: `tile` (batch dim), `patch` (batch row col dim), `all` (batch 1+patch dim, the tile first) or
                `dense` (batch row col 2*dim). Embeddings of places that nothing observed are NaN.
            output_modality: Modality of a dense output; by default the first one in `x`.
            faithful, precision: See `encode`.

        Raises:
            InputError, UnknownNameError, ExtentError, PatchSizeError, EmptyTileError: The input does not fit.
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
        """Run the forward pass on checked tensors, which have the device and type of the weights.

        It can be exported if `chunk_rows` is None. `leave_out=False` keeps invalid values in the attention and returns
        dense maps in the published layout. `tile_alone` computes no fused patch tokens. `recompute` keeps no
        activations of the first step for the backward pass.
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
        """Run the first step of the core: encode each modality by itself, without patch positions; see `steps.see`.

        `keep_sub` names the modalities whose sub-patch tokens are returned, too.
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
        """Run the second step of the core: the tile token and fused tokens of `grid` patches; see `steps.fuse`."""
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
        """Check the input, mark invalid values, run the core, and put NaN where nothing was observed."""
        if dense is not None and (dense not in list(inputs) or self.config.modality(dense).covers_tile):
            having = [key for key in inputs if not self.config.modality(key).covers_tile]
            raise UnknownNameError("dense modality", dense, having, "It must be an input whose pixels lie in patches")
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
        """Run the core in chunks; its output must be finite."""
        every = (*self.parameters(), *(pixels.values for pixels in ready.values()))
        wanted = any(one.requires_grad for one in every)
        with torch.set_grad_enabled(torch.is_grad_enabled() and (wanted or is_special(self))):  # hooks may need them
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
        own = self.dtype  # may be wider than the type of the matrix products
        dense_tokens = None if found.dense is None else found.dense.to(own)
        return found._replace(tile=found.tile.to(own), patch=found.patch.to(own), dense=dense_tokens)

    def _standardise(self, batch: Batch) -> dict[str, PixelInput]:
        if torch.compiler.is_compiling():  # a decorator would load the compiler whenever the package starts
            return torch.compiler.disable(self._standardised)(batch)  # type: ignore[no-untyped-call]
        return self._standardised(batch)

    def _standardised(self, batch: Batch) -> dict[str, PixelInput]:
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
        """Return the inputs in the type of the weights with invalid values marked, the grid, and what is absent."""
        grid = self._grid_of({key: pixels.values for key, pixels in inputs.items()}, patch_size_m)
        inputs = {key: pixels.to(self.device) for key, pixels in inputs.items()}
        marked, absent = mark_invalid(inputs, ids, refuse, keep_unseen=keep_unseen)
        if marked.keys() and all(self.config.modality(key).covers_tile for key in marked):
            # Only context modalities are left: the patches stay those of the given modalities, all invalid.
            marked |= {k: nothing_of(p) for k, p in inputs.items() if not self.config.modality(k).covers_tile}
        if dense is not None and dense not in marked:  # its map is NaN, not missing
            marked[dense] = nothing_of(inputs[dense])
        ready = {key: pixels._replace(values=pixels.values.to(self.dtype)) for key, pixels in marked.items()}
        return ready, grid, absent

    def _day_numbers(self, dates: Tensor | None) -> Tensor | None:
        if dates is None:
            return None
        days = day_numbers(dates.cpu().numpy().astype("datetime64[D]"), self.config.day_convention)
        return torch.from_numpy(days).to(self.device)
