"""Attributes of Zarr groups by the `geoemb:`, `proj:` and `spatial:` conventions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from odc.geo.geobox import GeoBox

from anysat.geo.grid import crs_of

CONVENTIONS: tuple[Mapping[str, str], ...] = (
    {
        "schema_url": "https://raw.githubusercontent.com/geo-embeddings/embeddings-zarr-convention/refs/tags/v1/schema.json",
        "spec_url": "https://github.com/geo-embeddings/embeddings-zarr-convention/blob/v1/README.md",
        "uuid": "61c12cc5-0e28-4056-999a-480cf3fb7e4c",
        "name": "geoemb:",
        "description": "Geoembeddings convention for geospatial embedding arrays with model provenance",
    },
    {
        "schema_url": "https://raw.githubusercontent.com/zarr-conventions/geo-proj/refs/tags/v1/schema.json",
        "spec_url": "https://github.com/zarr-conventions/geo-proj/blob/v1/README.md",
        "uuid": "f17cb550-5864-4468-aeb7-f3180cfb622f",
        "name": "proj:",
        "description": "Coordinate reference system information for geospatial data",
    },
    {
        "schema_url": "https://raw.githubusercontent.com/zarr-conventions/spatial/refs/tags/v0.1/schema.json",
        "spec_url": "https://github.com/zarr-conventions/spatial/blob/v0.1/README.md",
        "uuid": "689b58e2-cf7b-45e0-9fff-9cfc0883d6b4",
        "name": "spatial",
        "description": "Spatial coordinate information",
    },
)  # fmt: skip
"""The conventions for embeddings, reference systems and pixel grids, as registered."""


def embedding_attributes(
    *, kind: str, dim: int, model: str, sources: Sequence[str], gsd_m: float, dtype: str = "float32",
    version: str = "", chip_px: tuple[int, int] | None = None, quantisation: Mapping[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Return the `geoemb:` attributes of a group.

    Args:
        kind: `chip` (a vector per patch) or `pixel` (a vector per pixel or sub-patch).
        dim: Length of a vector.
        model: Hub id, path or address of the weights.
        sources: Paths or addresses of the inputs.
        gsd_m: Pixel spacing of the finest input in metres.
        dtype: Type of the stored numbers.
        version: Version of the package.
        chip_px: Rows and columns of input pixels per vector; required for `chip`.
        quantisation: The `quantization` object, if codes are stored.
    """
    found: dict[str, Any] = {
        "zarr_conventions": [dict(CONVENTIONS[0])],
        "geoemb:type": kind,
        "geoemb:dimensions": dim,
        "geoemb:model": uri(model),
        "geoemb:source_data": [uri(source) for source in sources],
        "geoemb:data_type": dtype,
        "geoemb:gsd": float(gsd_m),
    }
    if version:
        found["geoemb:build_version"] = f"anysat {version}"
    if chip_px is not None:
        sides = list(chip_px)
        found["geoemb:chip_layout"] = {"layout_type": "regular_grid", "chip_size": sides, "stride": sides}
    if quantisation is not None:
        found["geoemb:quantization"] = dict(quantisation)
    return found


def grid_attributes(geobox: GeoBox) -> dict[str, Any]:
    """Return the `proj:` and `spatial:` attributes of a group over one pixel grid."""
    bounds, affine, crs = geobox.boundingbox, geobox.affine, crs_of(geobox)
    return {
        "zarr_conventions": [dict(convention) for convention in CONVENTIONS[1:]],
        **({"proj:code": f"EPSG:{crs.epsg}"} if crs.epsg else {"proj:wkt2": crs.to_wkt()}),
        "spatial:dimensions": list(geobox.dimensions),
        "spatial:shape": [geobox.height, geobox.width],
        "spatial:transform": [affine.a, affine.b, affine.c, affine.d, affine.e, affine.f],
        "spatial:bbox": [bounds.left, bounds.bottom, bounds.right, bounds.top],
        "spatial:registration": "pixel",
    }


def joined(*attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Join attributes for one group, including all conventions that any of them names."""
    found = {key: value for part in attributes for key, value in part.items()}
    named = [c for part in attributes for c in part.get("zarr_conventions", ())]
    if named:
        found["zarr_conventions"] = list({c["uuid"]: c for c in named}.values())
    return found


def uri(name: str) -> str:
    """Return a hub id, a path, an address or a package URL as the URI that the conventions require."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/|pkg:", name):
        return name
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not Path(name).exists():
        return f"https://huggingface.co/{name}"
    return Path(name).absolute().as_uri()
