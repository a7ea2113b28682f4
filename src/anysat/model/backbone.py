"""An encoder as a backbone for the decoders of other libraries: tensors in, a list of feature maps out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from anysat.batch import Batch
from anysat.errors import InputError
from anysat.modalities import Modality
from anysat.model.early import LAST, joined_at
from anysat.model.encoder import AnySat
from anysat.observation import stored_bands


class Backbone(nn.Module):
    """An encoder that returns a list of feature maps, as decoders of TerraTorch and others expect.

    It shares its weights with the given encoder. Blocks after the last of the layers are left out.

    Args:
        encoder: The encoder.
        patch_size_m: Side of a patch in metres.
        layers: Layers to return, one map each, by depth: `spatial.N` with N the depth of the encoder (what enters
            fusion), `fusion.1` to `fusion.N` (after so many blocks of it), `last`.
        dense: Modality of an additional, first map with one vector per sub-patch: the feature of its patch in the last
            of the layers, then its own token. None for no such map.
        bands: Names of the stored bands by modality, in the order of the tensors. Bands that are not stored are masked;
            that includes ratio bands, which cannot be computed from standardised values. Modalities that are not named
            come in the order of their record. If only one modality is named, its tensor may be given without a dict.
        day: Day of the year (1 is 1 January) of series that come without dates. None refuses these.

    Raises:
        UnknownNameError: There is no such layer, modality or band.
        InputError: The layers are not in the order of their depth, a band is named twice, or an argument is of another
            kind.

    Examples:
        >>> from anysat.model.load import load
        >>> bands = {"s2": ["B2", "B3", "B4", "B8A", "B11", "B12"]}
        >>> backbone = Backbone(load("nano"), 40, layers=["fusion.1", "last"], bands=bands, day=170)
        >>> [tuple(features.shape) for features in backbone(torch.randn(2, 6, 16, 24))]
        [(2, 160, 4, 6), (2, 160, 4, 6)]
    """

    def __init__(
        self,
        encoder: AnySat,
        patch_size_m: float,
        *,
        layers: Sequence[str] = (LAST,),
        dense: str | None = None,
        bands: Mapping[str, Sequence[str]] | None = None,
        day: float | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(encoder, AnySat):
            raise InputError("encoder", "a model, such as anysat.load('nano')", repr(encoder))
        said: Any = day
        if said is not None and not isinstance(said, Real):
            raise InputError("day", "a day of the year, such as 170", repr(said))
        if bands is not None and not isinstance(bands, Mapping):
            raise InputError("bands", "names by modality, such as {'s2': ['B2', 'B3', 'B4']}", repr(bands))
        layers = (layers,) if isinstance(layers, str) else layers
        self.encoder = joined_at(encoder, layers)
        self.patch_size_m, self.layers, self.dense, self.day = patch_size_m, tuple(layers), dense, day
        self.places: dict[str, list[int]] = {}
        """Index of each stored band in the order of its modality."""
        for key, names in (bands or {}).items():
            if isinstance(names, str) or not isinstance(names, Iterable):
                raise InputError(f"{key} bands", "a list of names", repr(names))
            listed = list(names)
            self.places[key] = stored_bands(encoder.config.modality(key), len(listed), listed)
        dim = encoder.config.dim
        own = [] if dense is None else [encoder.config.modality(dense)]
        self.out_channels = [*(2 * dim for _ in own), *(dim for _ in layers)]
        """Number of channels of each map."""
        self.spacings_m = [*(modality.subpatch_m for modality in own), *(float(patch_size_m) for _ in layers)]
        """Side of a pixel of each map in metres. Divided by the `gsd_m` of a modality, it is the stride of the map."""
        self.training = encoder.training

    def forward(self, x: Batch | Mapping[str, Tensor] | Tensor, **companions: Tensor) -> list[Tensor]:
        """Return the feature maps (batch channel row col). Where nothing was observed, they are 0.

        Args:
            x: Either standardised tensors by modality: (batch band row col), for a series also (batch time band row
                col), with `<key>_dates` and `<key>_mask` as in `AnySat.forward`, (batch) being enough for single
                dates; or the tensor of the one modality in `bands`; or a batch of source values, which the encoder
                standardises.
            **companions: Dates and masks that are not in `x`, such as `s2_dates`.

        Raises:
            InputError, UnknownNameError, ExtentError, PatchSizeError, EmptyTileError: The input does not fit.
            StatisticsError: The statistics do not fit the data, which is a batch of source values.
        """
        if isinstance(x, Batch):
            if companions:
                raise InputError("batch", "its dates and masks inside it", ", ".join(companions))
            found = self.encoder.encode(x, self.patch_size_m, dense=self.dense)
        else:
            found = self.encoder.encode_standardised(self._dict(x, companions), self.patch_size_m, dense=self.dense)
        maps = list(found.patch.masked_fill(~found.valid[..., None], 0.0).chunk(len(self.layers), dim=-1))
        if found.dense is not None and found.dense_valid is not None:
            last = found.dense[..., -self.out_channels[0] :]
            maps.insert(0, last.masked_fill(~found.dense_valid[..., None], 0.0))
        return [rearrange(one, "batch row col channel -> batch channel row col") for one in maps]

    def _dict(self, x: Mapping[str, Tensor] | Tensor, companions: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the published dict, with all axes, all bands in their order, and dates."""
        if isinstance(x, Tensor):
            if len(self.places) != 1:
                expected = f"a dict of tensors by modality, such as {{{self.encoder.config.modalities[0].key!r}: ...}}"
                raise InputError("input", expected, "one tensor", "or name the bands of one modality in `bands`")
            x = dict.fromkeys(self.places, x)
        if not isinstance(x, Mapping):
            raise InputError("input", "a tensor, a dict of tensors by modality, or a Batch", type(x).__name__)
        given: dict[str, Any] = {**x, **companions}
        for name, one in given.items():
            if not isinstance(one, Tensor) and not (one is None and str(name).endswith(("_dates", "_mask"))):
                raise InputError(str(name), "a torch tensor", type(one).__name__)
        made = dict(given)
        for key, values in given.items():
            if str(key).endswith(("_dates", "_mask")):
                continue
            modality = self.encoder.config.modality(key)
            if values.ndim not in (4, 5):
                continue  # is refused later
            dates, mask = given.get(f"{key}_dates"), given.get(f"{key}_mask")
            if modality.is_temporal and values.ndim == 4:
                values = values[:, None]
                mask = mask[:, None] if mask is not None and mask.ndim == 4 else mask
                dates = dates[:, None] if dates is not None and dates.ndim == 1 else dates
            if modality.is_temporal and dates is None and self.day is not None:
                dates = values.new_full(values.shape[:2], self.day)
            if key in self.places:
                values, mask = _in_order(modality, self.places[key], values, mask)
            made |= {key: values}
            made |= {f"{key}{name}": one for name, one in (("_dates", dates), ("_mask", mask)) if one is not None}
        return made


def _in_order(
    modality: Modality, places: Sequence[int], values: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Return values and mask with all bands of a modality in its order. Bands that are not stored are masked."""
    if values.shape[-3] != len(places):
        names = ", ".join(modality.band_names[place] for place in places)
        raise InputError(modality.key, f"{len(places)} bands ({names})", f"shape {tuple(values.shape)}")
    if mask is None:
        mask = values.new_ones((1,) * values.ndim, dtype=torch.bool)
    elif mask.ndim == 2:
        mask = mask[:, :, None, None, None]
    if mask.ndim != values.ndim or any(a not in (1, b) for a, b in zip(mask.shape, values.shape, strict=True)):
        expected = f"shape {tuple(values.shape)}, or 1 for an axis that does not matter"
        raise InputError(f"{modality.key}_mask", expected, str(tuple(mask.shape)))
    mask = mask.expand(*mask.shape[:-3], len(places), *mask.shape[-2:])
    return _placed(values, places, len(modality.bands)), _placed(mask, places, len(modality.bands))


def _placed(stored: Tensor, places: Sequence[int], num_bands: int) -> Tensor:
    """Put the bands of a tensor at their places, with zeros at the others."""
    found = stored.new_zeros(*stored.shape[:-3], num_bands, *stored.shape[-2:])
    return found.index_copy(-3, torch.tensor(places, device=stored.device), stored)
