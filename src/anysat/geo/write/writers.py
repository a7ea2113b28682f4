"""Write the embeddings of one tile to georeferenced files, with one class per format (see `anysat.geo.write.outputs`).

Files are written into a temporary folder beside their final place, and renamed when all are complete.
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

from anysat.errors import OutputExistsError, RecordError, WriteError
from anysat.geo.grid import TileGrid
from anysat.geo.stores.conventions import embedding_attributes, grid_attributes, joined
from anysat.geo.write.cogs import Cog, whole, write_cog
from anysat.modalities import Modality
from anysat.whole_files import sync

if TYPE_CHECKING:
    import xarray

    from anysat.batch import Embeddings

_CHUNK_PX = 128


@dataclass(frozen=True, eq=False, kw_only=True)
class Product:
    """The embeddings of one tile with their grid and provenance."""

    embeddings: Embeddings
    """A batch of one."""
    grid: TileGrid
    modalities: Sequence[Modality]
    """Modalities that the embeddings are made from."""
    model: str
    """Hub id or path of the weights."""
    sources: Sequence[str]
    """Paths of the inputs."""
    provenance: Mapping[str, Any]
    """Anything that can be written as JSON: version, weights, statistics, inputs, dates."""

    @property
    def maps(self) -> dict[str, tuple[NDArray[np.float32], NDArray[np.bool_], GeoBox]]:
        """Vectors (row col dim), validity (row col) and grid of `patch`, and of `dense` if there are any."""
        found = self.embeddings
        maps = {"patch": (_numpy(found.patch[0].float()), _numpy(found.valid[0]), self.grid.geobox)}
        if found.dense is not None and found.dense_valid is not None and found.dense_modality is not None:
            dense = _numpy(found.dense[0].float())
            maps["dense"] = (dense, _numpy(found.dense_valid[0]), self.grid.dense(found.dense_modality))
        return maps


class Writer(Protocol):
    """One output format."""

    def files(self, path: Path) -> tuple[Path, ...]:
        """Return all files that `write` may make, including that of the dense map."""

    def write(self, product: Product, path: Path) -> None:
        """Write the product."""


class ZarrWriter:
    """A Zarr v3 group: `tile` (dim) in the root; groups `patch` and `dense` with `embedding` (dim y x) and `valid`."""

    def files(self, path: Path) -> tuple[Path, ...]:
        """Return the folder, whatever is in it."""
        return (path,)

    def write(self, product: Product, path: Path) -> None:
        """Write the root and the groups with their reference system and `geoemb:`, `proj:` and `spatial` attributes."""
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
    """Cloud-optimised GeoTIFFs NAME.tif and NAME_dense.tif: one band per dimension, NaN where nothing was seen."""

    def files(self, path: Path) -> tuple[Path, ...]:
        """Return one file per map. Without dense embeddings, the second is not written."""
        return path, _dense_file(path)

    def write(self, product: Product, path: Path) -> None:
        """Write each file, and read it back."""
        for name, (vectors, valid, geobox) in product.maps.items():
            bands = np.moveaxis(np.where(valid[..., None], vectors, np.float32(np.nan)), -1, 0)
            cog = Cog(
                geobox=geobox, dtype="float32", names=[f"{name}_{index}" for index in range(len(bands))],
                nodata=float("nan"), resampling="nearest", tags=product.provenance, texts={"ANYSAT_EMBEDDING": name},
            )  # fmt: skip
            write_cog(_dense_file(path) if name == "dense" else path, cog, [(whole(geobox), bands)])


@contextmanager
def staged(finals: Sequence[Path], *, overwrite: bool = False) -> Iterator[Path]:
    """Provide a temporary folder to write into; when the block ends without error, its files move to their places.

    Args:
        finals: Final paths, all in one folder. The block writes files of the same names. If it does not write one of
            them, an older version of that one is removed.
        overwrite: Replace existing files.

    Raises:
        WriteError: A file exists already or could not be written. Nothing is left behind.
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
            for path in new.iterdir():
                if path.is_file():
                    sync(path)
            _put_in_place(finals, new, old)
        was_there = True
    except (OSError, RasterioError) as error:
        if isinstance(error, WriteError):
            raise
        raise WriteError(finals[0], str(error).strip().split("\n")[0] or type(error).__name__) from error
    finally:
        if not was_there:
            with suppress(OSError):  # it may not exist, or hold other files by now
                parent.rmdir()


def check_apart(finals: Sequence[Path], inputs: Sequence[str]) -> None:
    """Refuse outputs that would replace an input, lie inside one, or contain one."""
    for final in (path.absolute().resolve() for path in finals):
        for path in (Path(name).absolute().resolve() for name in inputs):
            if final == path or path in final.parents or final in path.parents:
                raise RecordError("--out", str(final), f"a path other than that of an input ({path})")


def check_free(finals: Sequence[Path], *, overwrite: bool) -> None:
    """Refuse to overwrite existing files, unless asked to."""
    if (taken := [str(path) for path in finals if path.exists()]) and not overwrite:
        raise OutputExistsError(taken)


def _put_in_place(finals: Sequence[Path], new: Path, old: Path) -> None:
    done: list[Path] = []
    try:
        for final in dict.fromkeys(finals):  # a second mention would remove the new file as an older version
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
    """Return the attributes of vectors that each stand for a block of patches."""
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
