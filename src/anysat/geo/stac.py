"""STAC items as layers, read by odc-stac's reader window by window.

It applies no scale and no offset, so the layers do, once: see `scaling_of`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from anysat.errors import SourceError, UnknownNameError
from anysat.geo.descriptions import SourceDescription
from anysat.geo.layers import Layer, Pixels, reading
from anysat.geo.matching import some
from anysat.geo.stac_bands import AssetBand, asset_bands, choose_bands, said_scaling, scaling_of
from anysat.geo.stac_search import day_of, importing
from anysat.modalities import Modality

_DRIVER_OF = {".jp2": "JP2OpenJPEG"}
_DRIVER = "GTiff"
"""No other: a VRT under the name of a GeoTIFF could lead to other files."""
_NOWHERE = GeoBox((1, 1), Affine.identity(), None)
_TRIED = 5
"""Files whose header is tried before a collection counts as unreadable."""


class _Header(NamedTuple):
    """What a file says of itself."""

    geobox: GeoBox | None
    nodata: tuple[float | None, ...]
    scalings: tuple[tuple[float, float], ...]


class _Stored(NamedTuple):
    """Where a band lies and what its numbers mean."""

    uri: str
    number: int
    nodata: float | None
    scaling: tuple[float, float]
    unit: str | None
    names: tuple[str, ...]
    header_scalings: tuple[tuple[float, float], ...] | None
    """Of the header that the scaling was taken from; None where the metadata state it."""


def item_layers(
    name: str, items: Sequence[Any], modality: Modality, described: SourceDescription, quality: Sequence[str] = ()
) -> list[Layer]:
    """Layers of items in the order in which they count (time, name): bands of one grid together, and quality layers.

    Raises:
        SourceError: no item has a band of the modality, or a grid is not known.
        UnknownNameError: an asset that was named is in no item.
        MissingExtraError: odc-stac is not installed.
    """
    importing("odc.stac", "odc-stac")
    logging.getLogger("odc.loader").addHandler(logging.NullHandler())  # what fails is raised, and said once
    ordered = sorted(items, key=lambda item: (day_of(item), str(item.datetime), item.id))
    samples = _Samples(ordered)
    layers: list[Layer] = []
    seen: dict[str, None] = {}
    for item in ordered:
        bands = list(asset_bands(item))
        seen |= dict.fromkeys(known for band in bands for known in band.names)
        wanted = choose_bands(bands, modality, described.bands)
        masks = [(band, n) for band in bands for n in quality if n.upper() in {known.upper() for known in band.names}]
        layers += _grouped(item, wanted, described, samples)
        layers += _grouped(item, masks[:1], SourceDescription(), samples)
    found = {names[0] for layer in layers for names in layer.bands}
    if isinstance(described.bands, Mapping):
        for band, asset in described.bands.items():
            if modality.band_names[modality.find_band(band)] not in found:
                raise UnknownNameError(f"band of {name}", asset, seen, f"It was given for {band}")
    if found.isdisjoint(modality.band_names):
        raise SourceError(
            name, f"none of the assets of its {len(items)} items ({some(list(seen))}) is known to be a band of "
            f"{modality.key!r}", f"name them with `bands`; the modality has {', '.join(modality.band_names)}",
        )  # fmt: skip
    return layers


def _grouped(
    item: Any,
    wanted: Sequence[tuple[AssetBand, str]],
    described: SourceDescription,
    samples: _Samples,
) -> Iterator[Layer]:
    """Layers of an item, one for each grid."""
    if not wanted:
        return
    by_grid: dict[GeoBox, list[_Stored]] = {}
    sources = _sources(item, [band.asset for band, _ in wanted])
    for band, name in wanted:
        source = sources.get((band.asset, band.number))
        grid = samples.grid(_grid(_uri(item.assets[band.asset]), source))
        by_grid.setdefault(grid, []).append(_stored(item, band, name, source, described, samples))
    date = np.array([day_of(item)], "datetime64[D]")
    for geobox, bands in by_grid.items():
        scalings = tuple(band.scaling for band in bands)
        yield Layer(
            path=f"{item.id} ({', '.join(dict.fromkeys(name for band in bands for name in band.names))})",
            bands=tuple(band.names for band in bands),
            units=tuple(band.unit for band in bands),
            shape_px=(geobox.height, geobox.width),
            geobox=geobox,
            load=partial(_read, tuple(bands), geobox, False),
            dates=date,
            scalings=() if all(scaling == (1, 0) for scaling in scalings) else scalings,
            load_stored=partial(_read, tuple(bands), geobox, True),
            scene=item.id,
        )


def _sources(item: Any, assets: Sequence[str]) -> Mapping[tuple[str, int], Any]:
    """What odc-stac makes of the assets: address, place, no-data and unit; nothing where the metadata are wanting."""
    from copy import copy

    from odc.stac import parse_item

    slim = copy(item)
    slim.assets = {key: item.assets[key] for key in assets}
    try:
        return dict(parse_item(slim).bands)
    except (ValueError, TypeError, KeyError):  # a projection that is half stated
        return {}


def _stored(
    item: Any,
    band: AssetBand,
    name: str,
    source: Any,
    described: SourceDescription,
    samples: _Samples,
) -> _Stored:
    """Where a band lies and what its numbers mean: as the user says, else the metadata, else its file."""
    uri = _uri(item.assets[band.asset])
    decoding = described.decoding
    header_scalings: tuple[tuple[float, float], ...] | None = None
    if decoding.scaling is not None:
        is_early = decoding.offset_from is not None and day_of(item) < decoding.offset_from
        scaling = (decoding.scaling[0], 0.0) if is_early else decoding.scaling
    else:
        said = said_scaling(band.said)
        if said == (None, None):
            header_scalings = samples.header(item, band.asset).scalings
        scaling = scaling_of(item.properties, said, header_scalings, band.number)
    of_item = None if source is None else source.meta.nodata
    nodata = of_item if decoding.nodata is None else decoding.nodata
    unit = band.said.get("unit")
    return _Stored(uri, band.number, nodata, scaling, unit, (name,), header_scalings)


def _grid(uri: str, source: Any) -> GeoBox:
    """Pixel grid of an asset as its item states it, else its file."""
    stated = None if source is None else source.geobox
    geobox: GeoBox | None = stated if stated is not None and stated.crs is not None else _header(uri).geobox
    if geobox is None:
        raise SourceError(uri, "it has no georeference, nor has its STAC item", "write one into the file")
    return geobox


class _Samples:
    """What items share: headers of one file per collection and asset, for what metadata do not state, and grids."""

    def __init__(self, items: Sequence[Any]) -> None:
        self._items = items
        self._headers: dict[tuple[object, str], _Header] = {}
        self._grids: dict[GeoBox, GeoBox] = {}

    def grid(self, geobox: GeoBox) -> GeoBox:
        """The one object that stands for all equal grids, so that a source travels light."""
        return self._grids.setdefault(geobox, geobox)

    def header(self, item: Any, asset: str) -> _Header:
        """Header of the first file of the item's collection that can be read."""
        key = item.collection_id, asset
        if key in self._headers:
            return self._headers[key]
        alike = [one for one in self._items if one.collection_id == item.collection_id and asset in one.assets]
        failed: SourceError | None = None
        for one in alike[:_TRIED]:
            try:
                return self._headers.setdefault(key, _header(_uri(one.assets[asset])))
            except SourceError as error:
                failed = failed or error
        assert failed is not None, key
        raise failed


def _uri(asset: Any) -> str:
    return str(asset.get_absolute_href() or asset.href)


@lru_cache(maxsize=8192)
def _header(uri: str) -> _Header:
    """Grid, no-data and scale of a file that is a raster of a kind that is read, and nothing else."""
    import rasterio

    driver = _DRIVER_OF.get(Path(urlsplit(uri).path).suffix.lower(), _DRIVER)
    with _asset(uri), rasterio.open(uri, driver=driver) as file:
        located = file.crs is not None and not file.transform.is_identity
        geobox = GeoBox(file.shape, file.transform, file.crs.to_string()) if located else None
        return _Header(geobox, tuple(file.nodatavals), tuple(zip(file.scales, file.offsets, strict=True)))


@contextmanager
def _asset(uri: str) -> Iterator[Any]:
    """What opens an asset, in the environment of `odc.stac.configure_rio`; what goes wrong is told under its name."""
    from odc.loader import RioDriver
    from rasterio.errors import RasterioError

    driver = RioDriver()
    with reading(uri), driver.restore_env(driver.capture_env(), driver.new_load(_NOWHERE)) as context:
        try:
            yield partial(driver.open, ctx=context)
        except RasterioError as error:
            raise OSError(str(error.__cause__ or error)) from error


def _read(
    bands: Sequence[_Stored], geobox: GeoBox, as_stored: bool, _times: Sequence[int], places: Sequence[int],
    row: slice, col: slice,
) -> Pixels:  # fmt: skip
    """A part of the bands of an item, on their own grid."""
    window = geobox[row, col]
    return np.stack([_read_band(bands[place], window, as_stored) for place in places])[None]


def _read_band(band: _Stored, window: GeoBox, as_stored: bool) -> NDArray[np.float32]:
    from odc.loader import RasterLoadParams, RasterSource

    header = _header(band.uri)
    of_others = band.header_scalings
    if of_others is not None and header.scalings != of_others:
        own, other = header.scalings[band.number - 1], of_others[band.number - 1]
        raise SourceError(
            band.uri, f"its header states scale and offset {own}, and that of another item {other}",
            "give `scale` and `offset` in the description of the source",
        )  # fmt: skip
    with _asset(band.uri) as opened:
        reader = opened(RasterSource(band.uri, band=band.number))
        (rows, cols), stored = reader.read(RasterLoadParams(fail_on_error=True), window)
    nodata = header.nodata[band.number - 1] if band.nodata is None else band.nodata
    values = stored.astype(np.float32)
    if not as_stored:
        if band.scaling != (1, 0):
            values = (stored * band.scaling[0] + band.scaling[1]).astype(np.float32)
        if nodata is not None:
            values[stored == float(nodata)] = np.nan
    placed = np.full(window.shape, np.nan, np.float32)
    placed[rows, cols] = values
    return placed
