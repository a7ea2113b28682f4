"""Validate the STAC documents of a store: their form, their links, and whether they agree with the store."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from anysat.errors import MissingFileError, SourceError
from anysat.geo.outline import outline
from anysat.geo.stores.stored import DAMAGED, StoredGroup, open_stored, told_of
from anysat.geo.validate import Finding, weights_of
from anysat.geo.write.catalog import EMB, catalog_of

_REQUIRED = ("emb:type", "emb:dimensions", "data_type", "license", "extent")
_LINKS = ("emb:model", "emb:source-data")
_OFF_DEG = 1e-5
"""Largest difference between two statements of one place, about a metre."""


def validate_documents(store: Path) -> list[Finding]:
    """Check the documents beside a store; return no findings if there are none."""
    folder = catalog_of(store)
    if not folder.exists():
        return []
    groups = open_stored(store)
    found = []
    for path in sorted(folder.rglob("*.json")):
        where = f"{folder.name}/{path.relative_to(folder)}"
        problems = list(_problems(path, store, groups.get(path.parent.name)))
        text = "; ".join(problems) or "form and links are right, and it agrees with the store"
        found.append(Finding(level="error" if problems else "ok", where=where, check="documents", text=text))
    return found


def _problems(path: Path, store: Path, group: StoredGroup | None) -> Iterator[str]:
    """Yield the problems of a document, as far as it can be read."""
    try:
        document = _read(path)
        yield from _form(document)
        yield from _links(path, document)
        if group is not None:
            yield from _group_problems(document, group)
            yield from _model_problems(document, store)
    except DAMAGED as error:
        yield f"damaged ({told_of(error)})"


def store_of(path: Path) -> Path:
    """Return the store that a path refers to: the store itself, the folder of its documents, or one of these.

    Raises:
        MissingFileError: There is no such document.
        SourceError: A document has no asset that is a store, or cannot be read.
    """
    folder = next((place for place in (path, *path.parents) if place.suffix == ".stac"), None)
    if folder is None and path.suffix != ".json":
        return path
    items = [path] if path.suffix == ".json" else sorted((folder or path).rglob("item.json"))
    for item in items:
        try:
            hrefs = [str(asset["href"]) for asset in _read(item).get("assets", {}).values()]
        except DAMAGED as error:
            raise SourceError(item, f"damaged ({told_of(error)})") from error
        if stores := [href for href in hrefs if href.endswith(".zarr")]:
            return Path(item.parent / stores[0]).resolve()
    if folder is not None and folder.with_suffix(".zarr").exists():
        return folder.with_suffix(".zarr")
    raise SourceError(path, "it has no asset that is a Zarr store", "give NAME.zarr, NAME.stac or one of its items")


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise MissingFileError(path, "a STAC document")
    try:
        found = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise SourceError(path, f"it is not JSON ({error})") from error
    if not isinstance(found, dict):
        raise SourceError(path, "it is not a STAC document")
    return found


def _form(document: Mapping[str, Any]) -> Iterator[str]:
    """Check the core schema and the rules of the `emb:` extension."""
    import pystac
    from pystac.errors import STACError, STACTypeError

    try:
        known = pystac.read_dict(dict(document))
    except (STACError, STACTypeError, KeyError, TypeError, ValueError) as error:
        yield f"pystac cannot read it ({type(error).__name__}: {error})"
        return
    yield from _core_problems(document, known.STAC_OBJECT_TYPE)
    if EMB not in document.get("stac_extensions", ()):
        return
    if document["type"] == "Collection":
        yield from (f"{key} is missing" for key in _REQUIRED if key not in document)
        links = {link["rel"] for link in document["links"]}
        yield from (f"a link {rel} is missing" for rel in _LINKS if rel not in links)
    elif "embeddings" not in document["assets"]:
        yield f"no asset is called embeddings; its assets are {', '.join(document['assets'])}"


def _core_problems(document: Mapping[str, Any], kind: Any) -> Iterator[str]:
    from pystac.errors import STACValidationError
    from pystac.validation.stac_validator import JsonSchemaSTACValidator

    try:
        JsonSchemaSTACValidator().validate_core(dict(document), kind, document["stac_version"])
    except STACValidationError as error:
        errors = error.source if isinstance(error.source, list) else []
        yield from (f"{'/'.join(map(str, found.path))}: {found.message}"[:200] for found in errors[:1])


def _links(path: Path, document: Mapping[str, Any]) -> Iterator[str]:
    """Yield relative links and assets that lead nowhere. Addresses are not checked."""
    told = [(link["rel"], link["href"]) for link in document.get("links", ())]
    told += [(f"asset {name}", asset["href"]) for name, asset in document.get("assets", {}).items()]
    for what, href in told:
        if not urlsplit(href).scheme and not (path.parent / href).exists():
            yield f"{what} leads to {href}, which does not exist"


def _group_problems(document: Mapping[str, Any], group: StoredGroup) -> Iterator[str]:
    properties = document.get("properties", {})
    transform = properties.get("proj:transform")
    if transform is not None and not np.allclose(transform[:6], list(group.geobox.affine)[:6], rtol=0, atol=1e-6):
        yield f"proj:transform {transform}, the store has {list(group.geobox.affine)[:6]}"
    yield from _place_problems(document, group)
    periods = [[str(first), str(last)] for first, last in group.periods]
    if properties.get("anysat:periods", periods) != periods:
        yield f"anysat:periods {properties['anysat:periods']}, the store has {periods}"
    shape = properties.get("proj:shape")
    if shape is not None and list(shape) != list(group.geobox.shape):
        yield f"proj:shape {shape}, the store has {list(group.geobox.shape)}"
    if document.get("emb:dimensions", group.dim) != group.dim:
        yield f"emb:dimensions {document['emb:dimensions']}, the store has {group.dim}"
    if document.get("data_type", group.array.dtype.name) != group.array.dtype.name:
        yield f"data_type {document['data_type']}, the store has {group.array.dtype.name}"


def _place_problems(document: Mapping[str, Any], group: StoredGroup) -> Iterator[str]:
    """Compare the place that a document states with that of the group."""
    from shapely.geometry import shape

    here = outline(group.geobox)
    if document.get("type") == "Feature":
        bbox, geometry = document.get("bbox"), shape(document["geometry"])
        if not geometry.hausdorff_distance(shape(here.geometry)) <= _OFF_DEG:
            yield f"its geometry lies within {list(geometry.bounds)}, the store within {here.bbox}"
    else:
        bbox = document["extent"]["spatial"]["bbox"][0]
    if bbox is None or not np.allclose(bbox, here.bbox, rtol=0, atol=_OFF_DEG):
        yield f"bbox {bbox}, the store has {here.bbox}"


def _model_problems(document: Mapping[str, Any], store: Path) -> Iterator[str]:
    told, kept = document.get("properties", {}).get("anysat:weights"), weights_of(store)
    if told and kept and told != kept:
        yield f"anysat:weights {told}, the store says {kept}"
