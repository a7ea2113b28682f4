"""Open STAC items as layers, which are read window by window in the environment configured for odc-stac.

Scale and offset are applied once, see `scaling_of`. Masks and nodata hold as in a GeoTIFF given by its path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from anysat.errors import SourceError, UnknownNameError, some
from anysat.geo.read.addresses import geobox_of, opened, unsigned
from anysat.geo.read.descriptions import SourceDescription
from anysat.geo.read.formats import unmasked
from anysat.geo.read.layers import Layer, Pixels
from anysat.geo.read.stac.bands import AssetBand, asset_bands, choose_bands, said_nodata, said_scaling, scaling_of
from anysat.geo.read.stac.grids import StatedGrid, drift_px, part_px, shift_px, stated_grid
from anysat.geo.read.stac.search import day_of, importing, moment_of
from anysat.modalities import Modality

_TRIED = 5
"""Number of files of a collection whose header is tried before it counts as unreadable."""


class _Header(NamedTuple):
    """Grid, scale and band names of a file."""

    geobox: GeoBox | None
    shape_px: tuple[int, int]
    scalings: tuple[tuple[float, float], ...]
    names: tuple[str | None, ...]


class _Stored(NamedTuple):
    """A band in a file, and what its numbers mean."""

    uri: str
    number: int
    nodata: float | None
    """Nodata as given by the user or in the metadata; None leaves it to the file."""
    scaling: tuple[float, float]
    unit: str | None
    names: tuple[str, ...]
    header_scalings: tuple[tuple[float, float], ...] | None
    """Scales and offsets of the header that `scaling` was taken from; None if it is from elsewhere."""


def item_layers(
    name: str, items: Sequence[Any], modality: Modality, described: SourceDescription, quality: Sequence[str] = ()
) -> list[Layer]:
    """Return the layers of items in order of precedence (time, name), with quality layers. A layer has one grid.

    Raises:
        SourceError: No item has a band of the modality, or a grid is not known.
        UnknownNameError: No item has an asset that was named.
        MissingExtraError: odc-stac is not installed.
    """
    importing("odc.stac", "odc-stac")
    ordered = sorted(items, key=lambda item: (moment_of(item), item.id))
    samples = _Samples(ordered)
    layers, seen = _layers(ordered, modality, described, quality, samples, lambda *_: ())
    if not _has_any(layers, modality):  # the files may name the bands that the items do not
        layers, seen = _layers(ordered, modality, described, quality, samples, samples.names)
    found = {names[0] for layer in layers for names in layer.bands}
    if isinstance(described.bands, Mapping):
        for band, asset in described.bands.items():
            if modality.band_names[modality.find_band(band)] not in found:
                raise UnknownNameError(f"band of {name}", asset, seen, f"It was given for {band}")
    if not _has_any(layers, modality):
        raise _nothing_known(name, ordered, seen, modality, samples)
    return layers


def _layers(
    items: Sequence[Any], modality: Modality, described: SourceDescription, quality: Sequence[str], samples: _Samples,
    names: Callable[[Any, str], Sequence[str | None]],
) -> tuple[list[Layer], list[str]]:  # fmt: skip
    """Return the layers of items, and all band names. `names` returns those in the file of an item's asset."""
    layers: list[Layer] = []
    seen: dict[str, None] = {}
    for item in items:
        bands = list(asset_bands(item, partial(names, item)))
        seen |= dict.fromkeys(known for band in bands for known in band.names)
        wanted = choose_bands(bands, modality, described.bands)
        masks = [(band, n) for band in bands for n in quality if n.upper() in {known.upper() for known in band.names}]
        layers += _grouped(item, wanted, described, samples)
        layers += _grouped(item, masks[:1], SourceDescription(scale=1.0), samples)
    return layers, list(seen)


def _has_any(layers: Sequence[Layer], modality: Modality) -> bool:
    return any(names[0] in modality.band_names for layer in layers for names in layer.bands)


def _nothing_known(
    name: str, items: Sequence[Any], seen: Sequence[str], modality: Modality, samples: _Samples
) -> SourceError:
    """Return the error for items of which no asset is known to be a band of the modality."""
    there = f"the modality has {', '.join(modality.band_names)}"
    several = {key: len(names) for key in items[0].assets if len(names := samples.names(items[0], key)) > 1}
    if several:
        key, count = next(iter(several.items()))
        return SourceError(
            name, f"it is not known which bands of {modality.key!r} the {count} bands of its asset {key!r} are: no "
            "item or file names them", f"name them in `eo:bands` of the items or in the files, or give the files by "
            f"`path` with `bands: [NAME, …]`; {there}",
        )  # fmt: skip
    if not seen:
        media = dict.fromkeys(asset.media_type or "unknown" for item in items for asset in item.assets.values())
        return SourceError(
            name, f"none of its {len(items)} items has an asset that can be read, a GeoTIFF or JPEG 2000 with "
            f"measurements; their types are {some(media) or 'none'}", "correct `type` and `roles` of the assets",
        )  # fmt: skip
    return SourceError(
        name, f"none of the assets of its {len(items)} items ({some(seen)}) is known to be a band of "
        f"{modality.key!r}", f"name them with `bands`; {there}",
    )  # fmt: skip


def _grouped(
    item: Any, wanted: Sequence[tuple[AssetBand, str]], described: SourceDescription, samples: _Samples
) -> Iterator[Layer]:
    """Yield the layers of an item, one for each grid."""
    if not wanted:
        return
    by_grid: dict[GeoBox, list[_Stored]] = {}
    notes: dict[GeoBox, tuple[str, ...]] = {}
    for band, name in wanted:
        grid = samples.grid_of(item, band.asset)
        notes[grid] = samples.notes(item, band.asset)
        by_grid.setdefault(grid, []).append(_stored(item, band, name, described, samples))
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
            notes=notes[geobox],
            files=tuple(dict.fromkeys(unsigned(band.uri) for band in bands)),
            stated=str(([band._replace(uri=unsigned(band.uri)) for band in bands], geobox)),
        )


def _stored(item: Any, band: AssetBand, name: str, described: SourceDescription, samples: _Samples) -> _Stored:
    """Return where a band lies and what its numbers mean: as the user says, else the metadata, else the file."""
    uri = _uri(item.assets[band.asset])
    header_scalings: tuple[tuple[float, float], ...] | None = None
    if described.scaling is not None:
        is_early = described.offset_from is not None and day_of(item) < described.offset_from
        scaling = (described.scaling[0], 0.0) if is_early else described.scaling
    else:
        said = said_scaling(band.said)
        if said == (None, None):
            header_scalings = samples.header(item, band.asset).scalings
        about = {**item.properties, "id": item.id, "collection": item.collection_id}
        scaling = scaling_of(about, said, header_scalings, band.number)
    nodata = said_nodata(item, band.said) if described.nodata is None else described.nodata
    unit = band.said.get("unit")
    return _Stored(uri, band.number, nodata, scaling, unit, (name,), header_scalings)


class _Samples:
    """What items share: grids, and for what the metadata do not state, the header of a file of each collection."""

    def __init__(self, items: Sequence[Any]) -> None:
        self._items = items
        self._read: dict[tuple[object, str], tuple[Any, _Header] | SourceError] = {}
        self._grids: dict[GeoBox, GeoBox] = {}
        self._drifts: dict[tuple[object, str], tuple[float, float] | None] = {}

    def grid_of(self, item: Any, asset: str) -> GeoBox:
        """Return the pixel grid of an asset. Equal grids are one object, so that sources are small when pickled.

        It is the grid that the asset states, or that its item states if the sampled file of the collection agrees, else
        the grid of the asset's file. If the sampled file is shifted by a fraction of a pixel, all are shifted.
        """
        uri, stated = _uri(item.assets[asset]), stated_grid(item, asset)
        drift = self._drift(item, asset)
        if stated is not None and (stated.is_own or drift is not None):
            row, col = part_px(drift or (0.0, 0.0))
            geobox = stated.geobox.translate_pix(-col, -row) if row or col else stated.geobox
        else:
            geobox = _grid_of_file(uri, stated)
        return self._grids.setdefault(geobox, geobox)

    def header(self, item: Any, asset: str) -> _Header:
        """Return the header of the first file of the item's collection that can be read."""
        found = self._sample(item, asset)
        if isinstance(found, SourceError):
            raise found
        return found[1]

    def names(self, item: Any, asset: str) -> tuple[str | None, ...]:
        """Return the names of the bands of a file; if it cannot be read, of the first file of its collection."""
        try:
            return _header(_uri(item.assets[asset])).names
        except SourceError:
            found = self._sample(item, asset)
            return () if isinstance(found, SourceError) else found[1].names

    def notes(self, item: Any, asset: str) -> tuple[str, ...]:
        """Return a note for the user if files are shifted against the grid of their items."""
        row, col = part_px(self._drift(item, asset) or (0.0, 0.0))
        said = f"placed as the files say; the grids in the items are off by {row:+.3g} rows and {col:+.3g} columns"
        return (said,) if (row or col) and stated_grid(item, asset) is not None else ()

    def _drift(self, item: Any, asset: str) -> tuple[float, float] | None:
        """Return where, in the first readable file, the grid of its item begins: `drift_px`, 0 if none is readable."""
        key = item.collection_id, asset
        if key not in self._drifts:
            found = self._sample(item, asset)
            self._drifts[key] = (0.0, 0.0)
            if not isinstance(found, SourceError):
                sample, header = found
                stated = stated_grid(sample, asset)
                of_file = header.shape_px, header.geobox
                self._drifts[key] = None if stated is None else drift_px(stated.geobox, *of_file)
        return self._drifts[key]

    def _sample(self, item: Any, asset: str) -> tuple[Any, _Header] | SourceError:
        key = item.collection_id, asset
        if key not in self._read:
            alike = [one for one in self._items if one.collection_id == item.collection_id and asset in one.assets]
            self._read[key] = _first_read(alike[:_TRIED], asset)
        return self._read[key]


def _grid_of_file(uri: str, stated: StatedGrid | None) -> GeoBox:
    """Return the grid in a file, else in its item, even if the file is unreadable, which fails when it is read."""
    try:
        own = _header(uri).geobox
    except SourceError:
        if stated is None:
            raise
        own = None
    if own is not None:
        return own
    if stated is not None:
        return stated.geobox
    raise SourceError(
        uri, "it has no georeference, and its STAC item has none that can be used",
        "write one into the file, or give its item `proj:code`, `proj:shape` and `proj:transform`",
    )  # fmt: skip


def _first_read(items: Sequence[Any], asset: str) -> tuple[Any, _Header] | SourceError:
    failed: SourceError | None = None
    for item in items:
        try:
            return item, _header(_uri(item.assets[asset]))
        except SourceError as error:
            failed = failed or error
    assert failed is not None, asset
    return failed


def _uri(asset: Any) -> str:
    return str(asset.get_absolute_href() or asset.href)


@lru_cache(maxsize=8192)
def _header(uri: str) -> _Header:
    """Read grid, scale and band names of a file, which must be a GeoTIFF or JPEG 2000."""
    with opened(uri) as file:
        scalings = tuple(zip(file.scales, file.offsets, strict=True))
        return _Header(geobox_of(file), file.shape, scalings, tuple(file.descriptions))


def _read(
    bands: Sequence[_Stored], geobox: GeoBox, as_stored: bool, _times: Sequence[int], places: Sequence[int],
    row: slice, col: slice,
) -> Pixels:  # fmt: skip
    """Read a part of the bands of an item, on their own grid."""
    wanted = [bands[place] for place in places]
    found = np.full((len(wanted), row.stop - row.start, col.stop - col.start), np.nan, np.float32)
    for band, out in zip(wanted, found, strict=True):
        top, left = _shift(band, geobox)
        height, width = _header(band.uri).shape_px
        rows, cols = _part(row, top, height), _part(col, left, width)
        if rows.start < rows.stop and cols.start < cols.stop:
            inside = (slice(one.start - shift - all_of.start, one.stop - shift - all_of.start)
                      for one, shift, all_of in ((rows, top, row), (cols, left, col)))  # fmt: skip
            beside = [other.number - 1 for other in wanted if other.uri == band.uri]
            out[tuple(inside)] = _read_band(band, beside, rows, cols, as_stored)
    return found[None]


def _part(wanted: slice, shift: int, length: int) -> slice:
    """Return the rows (or columns) of a file that has `length` of them, for a grid that begins at its row `shift`."""
    return slice(max(wanted.start + shift, 0), min(wanted.stop + shift, length))


def _shift(band: _Stored, geobox: GeoBox) -> tuple[int, int]:
    """Return the row and column of the file at which the grid of the layer begins."""
    header = _header(band.uri)
    if band.header_scalings is not None and header.scalings != band.header_scalings:
        own, other = header.scalings[band.number - 1], band.header_scalings[band.number - 1]
        raise SourceError(
            band.uri, f"its header states scale and offset {own}, but that of another item {other}",
            "give `scale` and `offset` in the description of the source",
        )  # fmt: skip
    drift = drift_px(geobox, header.shape_px, header.geobox)
    found = None if drift is None else shift_px(drift)
    if found is None:
        beside = "" if drift is None else f", off by {drift[0]:.3g} rows and {drift[1]:.3g} columns"
        raise SourceError(
            band.uri, f"its pixels ({_told(header.shape_px, header.geobox)}) are not those of its STAC item "
            f"({_told((geobox.height, geobox.width), geobox)}{beside})",
            "correct `proj:shape` and `proj:transform`, or give the files by `path`",
        )  # fmt: skip
    return found


def _told(shape_px: tuple[int, int], geobox: GeoBox | None) -> str:
    """Describe a grid in a few words."""
    place = "without georeference" if geobox is None else f"of {geobox.resolution.x:g} in {geobox.crs}"
    return f"{shape_px[0]} x {shape_px[1]} {place}"


def _read_band(band: _Stored, beside: Sequence[int], rows: slice, cols: slice, as_stored: bool) -> NDArray[np.float32]:
    """Read a part of a band. `beside` are all bands of its file that are read, counted from 0."""
    with opened(band.uri) as file:
        window = ((rows.start, rows.stop), (cols.start, cols.stop))
        (stored,) = file.read([band.number], window=window)
        own = None if as_stored or band.nodata is not None else stored[None]
        seen = unmasked(file, [band.number - 1], window, own, beside)
    values = stored.astype(np.float32)
    if not as_stored:
        seen = seen if band.nodata is None else seen & (stored != float(band.nodata))
        values = values if band.scaling == (1, 0) else stored * band.scaling[0] + band.scaling[1]
    return np.where(seen, values, np.nan).astype(np.float32).reshape(stored.shape)
