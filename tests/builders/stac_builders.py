"""Small static STAC catalogs of cloud-optimised GeoTIFFs, for the tests of sources."""

import datetime
from pathlib import Path

import numpy as np
import pystac
import rasterio
import rasterio.shutil

from anysat.geo.read.sources import open_sources
from anysat.modalities import MODALITIES
from geo_builders import geobox, write_tif

S2, L8 = "sentinel-2-l2a", "landsat-c2-l2"
BOX = geobox((20, 30))

EXTENSIONS = [
    "https://stac-extensions.github.io/projection/v2.0.0/schema.json",
    "https://stac-extensions.github.io/eo/v1.1.0/schema.json",
    "https://stac-extensions.github.io/raster/v1.1.0/schema.json",
]


def write_cog(path: Path, values, box, **options) -> Path:
    """One band as a real cloud-optimised GeoTIFF."""
    plain = write_tif(path.with_suffix(".plain.tif"), np.asarray(values)[None], box, **options)
    rasterio.shutil.copy(plain, path, driver="COG", blocksize=128)
    plain.unlink()
    return path


def make_item(
    folder: Path, name: str, date: str, assets, *, collection=None, has_grid=True, **properties
) -> pystac.Item:
    """An item whose assets are `{key: (values, geobox, fields of the asset)}`; the files are written."""
    boxes = [box for _, box, _ in assets.values()]
    extent = boxes[0].extent.to_crs("EPSG:4326")
    days = {"datetime": datetime.datetime.fromisoformat(date)}
    if "start_datetime" in properties:
        days = {"datetime": None}
    item = pystac.Item(
        name, extent.json, list(extent.boundingbox), properties={"proj:code": str(boxes[0].crs), **properties},
        stac_extensions=EXTENSIONS if has_grid else EXTENSIONS[1:], collection=collection, **days,
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    for key, (values, box, fields) in assets.items():
        fields = dict(fields)
        header = fields.pop("header", {})
        path = write_cog(folder / f"{name}_{key}.tif", values, box, **header)
        grid = {"proj:shape": list(box.shape), "proj:transform": list(box.affine)[:6]} if has_grid else {}
        media = fields.pop("media", pystac.MediaType.COG)
        item.add_asset(key, pystac.Asset(str(path), media_type=media, roles=["data"], extra_fields={**grid, **fields}))
    return item


def write_catalog(folder: Path, items) -> str:
    """A self-contained catalog on disk, with one collection for each that items name; path of its root."""
    catalog = pystac.Catalog("root", "a catalog of the tests")
    for name in dict.fromkeys(item.collection_id for item in items):
        parent = catalog
        if name is not None:
            extent = pystac.Extent(
                pystac.SpatialExtent([[-180, -90, 180, 90]]),
                pystac.TemporalExtent([[datetime.datetime(2015, 1, 1), None]]),
            )
            parent = pystac.Collection(name, "a collection of the tests", extent)
            catalog.add_child(parent)
        for item in items:
            if item.collection_id == name:
                parent.add_item(item)
    catalog.normalize_and_save(str(folder), pystac.CatalogType.SELF_CONTAINED)
    return str(folder / "catalog.json")


def flat(value, box=BOX, dtype=np.uint16):
    """An array of one number."""
    return np.full(box.shape, value, dtype)


def band(name, common=None, **raster):
    fields = {"eo:bands": [{"name": name} | ({"common_name": common} if common else {})]}
    return fields | ({"raster:bands": [raster]} if raster else {})


def item(
    folder, name, date, value=2000, box=BOX, key="B02", fields=None, collection=S2, platform="sentinel-2a", **more
):
    values = value if isinstance(value, np.ndarray) else flat(value, box)
    assets = {key: (values, box, band(key) if fields is None else fields)}
    return make_item(folder / "files", name, date, assets, collection=collection, platform=platform, **more)


def opened(catalog, key="s2", between=None, bbox=None, **described):
    return open_sources({key: {"stac": str(catalog), **described}}, MODALITIES, between=between, bbox=bbox)[key]
