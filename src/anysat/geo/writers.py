"""Embeddings of one tile to georeferenced files: one class per format, chosen by the file's suffix.

Files are written beside their place under a temporary name and renamed when all are complete.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from anysat.batch import Embeddings
from anysat.errors import OutputExistsError, RecordError, UnknownNameError, WriteError
from anysat.geo.cogs import Cog, whole, write_cog
from anysat.geo.conventions import embedding_attributes, grid_attributes, joined
from anysat.geo.grid import TileGrid
from anysat.modalities import Modality

if TYPE_CHECKING:
    import xarray

_CHUNK_PX = 128


@dataclass(frozen=True, eq=False, kw_only=True)
class Product:
    """What is written: the embeddings of one tile, where they lie and where they come from."""

    embeddings: Embeddings
    """A batch of one."""
    grid: TileGrid
    modalities: Sequence[Modality]
    """Modalities the embeddings are made from."""
    model: str
    """Hub id or path of the weights."""
    sources: Sequence[str]
    """Paths of the inputs."""
    provenance: Mapping[str, Any]
    """Anything that turns into JSON: version, weights, statistics, inputs, dates."""

    @property
    def maps(self) -> dict[str, tuple[NDArray[np.float32], NDArray[np.bool_], GeoBox]]:
        """Vectors (row col dim), validity (row col) and grid of `patch`, and of `dense` if there is one."""
        found = self.embeddings
        maps = {"patch": (_numpy(found.patch[0].float()), _numpy(found.valid[0]), self.grid.geobox)}
        if found.dense is not None and found.dense_valid is not None and found.dense_modality is not None:
            dense = _numpy(found.dense[0].float())
            maps["dense"] = (dense, _numpy(found.dense_valid[0]), self.grid.dense(found.dense_modality))
        return maps


class Writer(Protocol):
    """One output format."""

    def files(self, path: Path) -> tuple[Path, ...]:
        """What `write` makes, the dense map included."""

    def write(self, product: Product, path: Path) -> None:
        """Write all of it."""


class ZarrWriter:
    """A Zarr v3 group: `tile` (dim) in the root; groups `patch` and `dense` with `embedding` (dim y x) and `valid`."""

    def files(self, path: Path) -> tuple[Path, ...]:
        """The folder, whatever is in it."""
        return (path,)

    def write(self, product: Product, path: Path) -> None:
        """Write the groups, each with its reference system and the `geoemb:`, `proj:` and `spatial` conventions."""
        import xarray

        tile = _numpy(product.embeddings.tile[0].float())
        attributes = _chip_attributes(
            product, len(tile), (product.grid.patches.num_rows, product.grid.patches.num_cols)
        )
        root = xarray.Dataset({"tile": ("dim", tile)}, attrs=attributes | {"anysat": dict(product.provenance)})
        options: dict[str, Any] = {"zarr_format": 3, "consolidated": False, "mode": "w"}
        root.to_zarr(path, **options)
        for name, (vectors, valid, geobox) in product.maps.items():
            dim = vectors.shape[-1]
            if name == "patch":
                attributes = _chip_attributes(product, dim, (1, 1))
            else:
                attributes = _embedding_attributes(product, "pixel", dim, geobox.resolution.x)
            cube = _as_cube(vectors, valid, geobox, joined(attributes, grid_attributes(geobox)))
            chunks = (dim, *(min(side, _CHUNK_PX) for side in valid.shape))
            encoding = {"embedding": {"_FillValue": np.float32(np.nan), "chunks": chunks}}
            cube.to_zarr(path, group=name, encoding=encoding, **options)


class CogWriter:
    """Cloud-optimised GeoTIFFs: one band per dimension, NaN without data; NAME.tif and NAME_dense.tif."""

    def files(self, path: Path) -> tuple[Path, ...]:
        """One file per map; without dense embeddings there is no second."""
        return path, _dense_file(path)

    def write(self, product: Product, path: Path) -> None:
        """Write each file, and read it through."""
        for name, (vectors, valid, geobox) in product.maps.items():
            bands = np.moveaxis(np.where(valid[..., None], vectors, np.float32(np.nan)), -1, 0)
            cog = Cog(
                geobox=geobox, dtype="float32", names=[f"{name}_{index}" for index in range(len(bands))],
                nodata=float("nan"), resampling="nearest", tags=product.provenance, texts={"ANYSAT_EMBEDDING": name},
            )  # fmt: skip
            write_cog(_dense_file(path) if name == "dense" else path, cog, [(whole(geobox), bands)])


WRITERS: dict[str, Writer] = {".zarr": ZarrWriter(), ".tif": CogWriter()}
"""Formats by suffix; add one here."""


def find_writer(suffix: str) -> Writer:
    """The writer for a file's suffix.

    Raises:
        UnknownNameError: there is none.
    """
    if suffix not in WRITERS:
        raise UnknownNameError("output format", suffix, WRITERS)
    return WRITERS[suffix]


@contextmanager
def staged(finals: Sequence[Path], *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder to write into; its files take their final places when the block ends well, or none does.

    Args:
        finals: where the files, written under their names, are to lie; all in one folder. Of one that is not
            written, an older version goes too.
        overwrite: replace what lies there.

    Raises:
        WriteError: something is in the way, or could not be written; nothing is left behind.
    """
    from rasterio.errors import RasterioError

    check_free(finals, overwrite=overwrite)
    parent = finals[0].absolute().parent
    was_there = parent.exists()
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=parent, prefix=".anysat-", ignore_cleanup_errors=True) as folder:
            new, old = Path(folder) / "new", Path(folder) / "old"
            new.mkdir()
            old.mkdir()
            yield new
            _put_in_place(finals, new, old)
        was_there = True
    except (OSError, RasterioError) as error:
        if isinstance(error, WriteError):
            raise
        raise WriteError(finals[0], str(error).strip().split("\n")[0] or type(error).__name__) from error
    finally:
        if not was_there:
            with suppress(OSError):  # it may never have been made
                parent.rmdir()


def check_apart(finals: Sequence[Path], inputs: Sequence[str]) -> None:
    """Refuse outputs that would replace an input, or lie inside one."""
    for final in (path.absolute().resolve() for path in finals):
        for path in (Path(name).absolute().resolve() for name in inputs):
            if final == path or path in final.parents or final in path.parents:
                raise RecordError("--out", str(final), f"a place that is not that of an input ({path})")


def check_free(finals: Sequence[Path], *, overwrite: bool) -> None:
    """Refuse to write over what exists, unless asked to."""
    if (taken := [str(path) for path in finals if path.exists()]) and not overwrite:
        raise OutputExistsError(taken)


def _put_in_place(finals: Sequence[Path], new: Path, old: Path) -> None:
    done: list[Path] = []
    try:
        for final in dict.fromkeys(finals):  # a file that is named twice is not taken for an older one
            if final.exists():
                final.rename(old / final.name)
            done.append(final)
            if (new / final.name).exists():
                (new / final.name).rename(final)
    except BaseException:
        for final in reversed(done):
            if final.exists():
                final.rename(new / final.name)
            if (old / final.name).exists():
                (old / final.name).rename(final)
        raise


def _dense_file(path: Path) -> Path:
    return path.with_name(f"{path.stem}_dense{path.suffix}")


def _numpy(tensor: Any) -> NDArray[Any]:
    return np.asarray(tensor.detach().cpu().numpy())


def _as_cube(
    vectors: NDArray[np.float32], valid: NDArray[np.bool_], geobox: GeoBox, attributes: Mapping[str, Any]
) -> xarray.Dataset:
    import xarray
    from odc.geo.xr import xr_coords

    coords: Any = xr_coords(geobox)
    y, x = geobox.dimensions
    cube = xarray.Dataset(
        {"embedding": (("dim", y, x), np.moveaxis(vectors, -1, 0)), "valid": ((y, x), valid)},
        coords=coords,
        attrs=dict(attributes),
    )
    for variable in cube.data_vars.values():
        variable.encoding["grid_mapping"] = "spatial_ref"
    return cube


def _chip_attributes(product: Product, dim: int, num_patches: tuple[int, int]) -> dict[str, Any]:
    """Of vectors that each stand for a block of patches."""
    tiling = [m for m in product.modalities if not m.covers_tile] or list(product.modalities)
    gsd_m = min(modality.gsd_m for modality in tiling)
    rows, cols = (round(count * product.grid.patches.patch_size_m / gsd_m) for count in num_patches)
    return _embedding_attributes(product, "chip", dim, gsd_m, (rows, cols))


def _embedding_attributes(
    product: Product, kind: str, dim: int, gsd_m: float, chip_px: tuple[int, int] | None = None
) -> dict[str, Any]:
    return embedding_attributes(
        kind=kind, dim=dim, model=product.model, sources=product.sources, gsd_m=gsd_m,
        version=str(product.provenance.get("version", "")), chip_px=chip_px,
    )  # fmt: skip
