"""Export of the forward pass with `torch.export`; batch size, number of dates and tile size stay free."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from anysat.errors import InputError
from anysat.model.encoder import AnySat
from anysat.model.inputs import PixelInput
from anysat.model.modes import evaluating
from anysat.patches import centimetres, patch_unit_m, subpatches_per_side

_MOST_DATES, _MOST_PATCHES_PER_SIDE, _LARGEST_BATCH = 1000, 256, 1024


class CoreModule(nn.Module):
    """The forward pass for fixed modalities and a fixed patch size, with all pixels valid."""

    def __init__(self, model: AnySat, keys: Sequence[str], patch_size_m: float, dense: str | None) -> None:
        super().__init__()
        self.model, self.keys, self.patch_size_m, self.dense = model, tuple(keys), patch_size_m, dense

    def forward(self, values: dict[str, Tensor], days: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Return tile, patch and, if requested, dense embeddings of standardised values."""
        inputs = {key: PixelInput(values[key], days.get(key)) for key in self.keys}
        found = self.model.core(inputs, self.patch_size_m, self.dense)
        return (found.tile, found.patch) if found.dense is None else (found.tile, found.patch, found.dense)


def export(model: AnySat, keys: Sequence[str], patch_size_m: float, *, dense: str | None = None) -> ExportedProgram:
    """Export an encoder as a program that takes `({key: values}, {key: days})` and returns (tile, patch[, dense]).

    The program takes standardised values, all of them valid, and day numbers in float32. It has no checks, masks or
    chunks. The batch size, the sides of the tile and the number of dates of each modality are free, but a tile needs
    at least two patches per side and a series at least two dates. Give a single date twice: this changes nothing.

    Args:
        model: The encoder. The program computes as in eval mode; the mode of the model does not change.
        keys: One or more modalities that the program takes. Context modalities (MODIS) cannot be exported.
        patch_size_m: Side of a patch in metres; fixed in the program.
        dense: Modality of a dense output, or None.

    Returns:
        The exported program.

    Raises:
        UnknownNameError: The model has no such modality.
        InputError: There is no modality, one is a context modality, or a patch does not hold whole sub-patches; or the
            model is not an encoder, such as a predictor.
    """
    if not isinstance(model, AnySat):
        raise InputError(
            "export", "an encoder", type(model).__name__,
            "export a predictor with `anysat.tasks.export.export_predictor`, or only its `.encoder`",
        )  # fmt: skip
    return traced(CoreModule(model, keys, patch_size_m, dense), model, keys, patch_size_m)


def traced(module: nn.Module, model: AnySat, keys: Sequence[str], patch_size_m: float) -> ExportedProgram:
    """Export a module that holds an encoder and takes what `export` describes.

    Args:
        module: The module. The program computes as in eval mode; the mode of the module does not change.
        model: Its encoder.
        keys, patch_size_m: See `export`.

    Raises:
        UnknownNameError, InputError: See `export`.
    """
    if not keys:
        raise InputError("export", "at least one modality", "none")
    modalities = [model.config.modality(key) for key in keys]
    unit_m = patch_unit_m(modalities, model.config.subpatch_order)
    if any(modality.covers_tile for modality in modalities) or centimetres(patch_size_m, "patch size") % centimetres(
        unit_m, "patch unit"
    ):
        raise InputError(
            "export",
            f"modalities that lie in patches of a multiple of {unit_m:g} m",
            f"{list(keys)}, {patch_size_m:g} m",
        )
    batch = Dim("batch", min=1, max=_LARGEST_BATCH)
    rows, cols = (Dim(name, min=2, max=_MOST_PATCHES_PER_SIDE) for name in ("rows", "cols"))
    values, days = {}, {}
    free_values: dict[str, dict[int, object]] = {}
    free_days: dict[str, dict[int, object]] = {}
    for modality in modalities:
        side_px = subpatches_per_side(patch_size_m, modality) * modality.subpatch_px
        shape = [2, *((3,) if modality.is_temporal else ()), len(modality.bands), 2 * side_px, 3 * side_px]
        values[modality.key] = torch.zeros(shape, dtype=model.dtype, device=model.device)
        rank = len(shape)
        free_values[modality.key] = {0: batch, rank - 2: side_px * rows, rank - 1: side_px * cols}
        if modality.is_temporal:
            time = Dim(f"dates_{modality.key}".replace("-", "_"), min=2, max=_MOST_DATES)
            days[modality.key] = torch.ones(2, 3, device=model.device)
            free_values[modality.key][1] = time
            free_days[modality.key] = {0: batch, 1: time}
    with evaluating(module):
        return torch.export.export(module, (values, days), dynamic_shapes=(free_values, free_days))
