"""Patch tokens of a part of an area before fusion: computed block by block, and stored while they are needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from anysat.areas.units import UnitFiles, names_in, unreadable_in
from anysat.batch import Batch, Tile
from anysat.errors import EmptyTileError
from anysat.geo.area import Span
from anysat.geo.stores.store import Unit
from anysat.model.encoder import CHUNK_ROWS, AnySat
from anysat.model.inputs import PixelInput
from anysat.model.steps import SeenPatches

Floats = NDArray[np.float32]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Tokens:
    """Tokens of the patches of a span. A modality that saw nothing is missing."""

    span: Span
    patch: dict[str, tuple[Floats, Flags]] = field(default_factory=dict)
    """Tokens (row col dim), without position codes, and their validity (row col), by modality."""
    sub: tuple[Floats, Flags] | None = None
    """Sub-patch tokens (sub_row sub_col dim) of the dense modality, and their validity."""
    unreadable: tuple[str, ...] = ()
    """What could not be read, and why."""

    @property
    def valid(self) -> Flags:
        """Which patches are valid in any modality (row col)."""
        flags = [seen for _, seen in self.patch.values()]
        return np.logical_or.reduce(flags) if flags else np.zeros(self.span.shape, bool)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays that are stored in files, by name."""
        found: dict[str, NDArray[Any]] = {f"patch.{key}": vectors for key, (vectors, _) in self.patch.items()}
        found |= {f"valid.{key}": valid for key, (_, valid) in self.patch.items()}
        return found if self.sub is None else found | {"sub": self.sub[0], "sub_valid": self.sub[1]}


def encode(model: AnySat, tile: Tile, patch_size_m: float, span: Span, inside: Flags, dense: str | None) -> Tokens:
    """Return the tokens of the patches of a block. Patches that are not `inside` are not valid."""
    inputs = prepared(model, tile, patch_size_m)
    kept = (dense,) if dense in inputs else ()
    return tokens_of(model.see(inputs, patch_size_m, kept, chunk_rows=CHUNK_ROWS), span, inside, dense)


def prepared(model: AnySat, tile: Tile, patch_size_m: float) -> dict[str, PixelInput]:
    """Return the encoder's inputs of a block, without context modalities; empty if nothing was seen."""
    tiling = {key: o for key, o in tile.observations.items() if not o.modality.covers_tile and o.valid.any()}
    if not tiling:
        return {}
    block = Tile(observations=tiling, id=tile.id, dataset=tile.dataset)
    try:
        return model.prepare(Batch.of([block]), patch_size_m)[0]
    except EmptyTileError:  # finite in the file, but not in the units of the statistics
        return {}


def tokens_of(found: Mapping[str, SeenPatches], span: Span, inside: Flags, dense: str | None) -> Tokens:
    """Convert the seen patches of a block to tokens on the CPU."""
    patch: dict[str, tuple[Floats, Flags]] = {}
    sub = None
    for key, seen in found.items():
        valid = inside if seen.patch_valid is None else inside & seen.patch_valid[0].cpu().numpy()
        patch[key] = seen.patch[0].float().cpu().numpy(), valid
        if key == dense and seen.sub is not None:
            side = round(seen.sub.shape[-2] ** 0.5)
            over = np.kron(inside, np.ones((side, side), bool))
            if seen.sub_valid is not None:
                over = over & _unfolded(seen.sub_valid[0, ..., None], side)[..., 0].astype(bool)
            sub = _unfolded(seen.sub[0].float(), side).astype(np.float32, copy=False), over
    return Tokens(span, patch, sub)


def _unfolded(sub: torch.Tensor, side: int) -> NDArray[Any]:
    """Rearrange (row col sub dim) to (sub_row sub_col dim)."""
    rows, cols, _, dim = sub.shape
    cut = sub.reshape(rows, cols, side, side, dim).permute(0, 2, 1, 3, 4)
    return cut.reshape(rows * side, cols * side, dim).cpu().numpy()


def joined(span: Span, parts: Sequence[Tokens]) -> Tokens:
    """Join the tokens of parts that overlap a span to those of the span. Patches in no part are not valid."""
    patch: dict[str, tuple[Floats, Flags]] = {}
    sub: tuple[Floats, Flags] | None = None
    for part in parts:
        shared = part.span.shared_with(span)
        if shared.is_empty():
            continue
        here, there = shared.within(span), shared.within(part.span)
        for key, (tokens, valid) in part.patch.items():
            if key not in patch:
                patch[key] = np.zeros((*span.shape, tokens.shape[-1]), np.float32), np.zeros(span.shape, bool)
            patch[key][0][here], patch[key][1][here] = tokens[there], valid[there]
        if part.sub is not None:
            side = part.sub[1].shape[0] // part.span.shape[0]
            if sub is None:
                shape = span.shape[0] * side, span.shape[1] * side
                sub = np.zeros((*shape, part.sub[0].shape[-1]), np.float32), np.zeros(shape, bool)
            fine, coarse = (tuple(slice(s.start * side, s.stop * side) for s in place) for place in (here, there))
            sub[0][fine], sub[1][fine] = part.sub[0][coarse], part.sub[1][coarse]
    problems = dict.fromkeys(problem for part in parts for problem in part.unreadable)
    return Tokens(span, patch, sub, tuple(problems))


def read_tokens(files: UnitFiles, unit: Unit, whole: Span, wanted: Span) -> Tokens:
    """Read the part of a unit's tokens (of the span `whole`) that lies in another span, without sub-patches."""
    shared = whole.shared_with(wanted)
    rows, cols = shared.within(whole)
    with files.opened(unit) as file:
        keys = [name.removeprefix("patch.") for name in names_in(file) if name.startswith("patch.")]
        patch = {
            key: (file.get_slice(f"patch.{key}")[rows, cols], file.get_tensor(f"valid.{key}")[rows, cols])
            for key in keys
        }
        return Tokens(shared, patch, unreadable=unreadable_in(file))


def read_sub(files: UnitFiles, unit: Unit) -> tuple[Floats, Flags] | None:
    """Read the sub-patch tokens of a unit; None if there are none."""
    with files.opened(unit) as file:
        if "sub" not in names_in(file):
            return None
        return file.get_tensor("sub"), file.get_tensor("sub_valid")


def stacked(tokens: Tokens, windows: Sequence[Span]) -> Mapping[str, tuple[torch.Tensor, torch.Tensor | None]]:
    """Return tokens (window row col dim) and validity of windows by modality; None means all are valid.

    Modalities without a valid token are left out.
    """
    found: dict[str, tuple[torch.Tensor, torch.Tensor | None]] = {}
    for key, (vectors, valid) in tokens.patch.items():
        places = [window.within(tokens.span) for window in windows]
        flags = np.stack([valid[place] for place in places])
        if flags.any():
            some = torch.from_numpy(np.stack([vectors[place] for place in places]))
            found[key] = some, None if flags.all() else torch.from_numpy(flags)
    return found
