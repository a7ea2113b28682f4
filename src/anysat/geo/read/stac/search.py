"""Find the items of a STAC catalog or API for an area and a range of days, with pystac and pystac-client."""

from __future__ import annotations

import datetime
import importlib
import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from anysat.errors import AnySatError, MissingExtraError, MissingFileError, SourceError, UnknownNameError, some
from anysat.geo.read.addresses import is_remote
from anysat.geo.read.descriptions import Between, LonLatBox, is_url

_ROOTS = ("catalog.json", "collection.json")
"""Files that are opened when a folder is given."""


def find_items(
    location: str, collections: Sequence[str] = (), *, bbox: LonLatBox | None = None, between: Between | None = None
) -> list[Any]:
    """Return the items of an API, or of a catalog, collection, item or item collection in a JSON file.

    Args:
        location: Path or address.
        collections: Collections to take; needed if there are several, and for an API.
        bbox: Area in degrees that items must touch; an API needs one.
        between: First and last day, both included.

    Raises:
        MissingFileError: There is no such file.
        SourceError: It cannot be reached or read, has no such item, or no collection was chosen of several.
        UnknownNameError: It has no such collection.
        MissingExtraError: pystac-client is not installed.
    """
    importing("pystac_client", "pystac-client")
    root = _opened(location)
    with _talking_to(location):
        if _can_search(root):
            items = _searched(location, root, collections, bbox, between)
        else:
            items = _walked(root, collections)
    known = dict.fromkeys(_product(item) for item in items)
    for name in collections:
        if name not in known:
            raise UnknownNameError(f"collection of {location}", name, known)
    items = [item for item in items if not collections or _product(item) in collections]
    if len(known) > 1 and not collections:
        raise SourceError(location, f"it holds several collections: {some(known)}", "choose with `collection`")
    return _in_range(location, items, bbox, between)


def _walked(root: Any, collections: Sequence[str]) -> list[Any]:
    """Return all items on disk. If all wanted collections are found by their id, only these are read."""
    if not hasattr(root, "get_items"):
        return list(root)
    found = [one for one in _collections_in(root) if one.id in collections] if collections else []
    if not found or {one.id for one in found} != set(collections):
        return list(root.get_items(recursive=True))
    return [item for one in found for item in _items_below(one)]


def _collections_in(catalog: Any) -> Iterator[Any]:
    """Yield all collections of a catalog, including itself, outermost first."""
    import pystac

    if isinstance(catalog, pystac.Collection):
        yield catalog
    for child in catalog.get_children():
        yield from _collections_in(child)


def _items_below(catalog: Any) -> Iterator[Any]:
    """Yield the items of a collection and of the catalogs in it, but not of collections in it."""
    import pystac

    yield from catalog.get_items()
    for child in catalog.get_children():
        if not isinstance(child, pystac.Collection):
            yield from _items_below(child)


def importing(module: str, package: str) -> Any:
    """Import a module of the extra `geo`.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtraError(package, "geo") from error


def moment_of(item: Any) -> datetime.datetime:
    """Return the time (UTC, naive) at which an item was acquired, or its acquisition began. No offset means UTC."""
    moment = item.datetime or item.common_metadata.start_datetime
    if moment is None:
        raise SourceError(item.id, "the STAC item has neither datetime nor start_datetime", "give it one")
    moment = moment if moment.tzinfo is None else moment.astimezone(datetime.UTC).replace(tzinfo=None)
    assert isinstance(moment, datetime.datetime), moment
    return moment


def day_of(item: Any) -> np.datetime64:
    """Return the day (UTC) on which an item was acquired, or its acquisition began."""
    return np.datetime64(f"{moment_of(item):%Y-%m-%d}", "D")


def _opened(location: str) -> Any:
    """Open a document as the pystac object of its type."""
    import pystac
    from pystac_client import Client
    from pystac_client.stac_api_io import StacApiIO

    if is_remote(location) and not is_url(location):
        raise SourceError(location, "STAC documents can only be read from a disk or over http",
                          "copy it to a disk, or give its https address; its assets may lie at s3://")  # fmt: skip
    if not is_url(location):
        location = str(_file(Path(location)).absolute())
    with _talking_to(location):
        io = StacApiIO(max_retries=2)
        content = json.loads(io.read_text(location))
        kind = content.get("type") if isinstance(content, dict) else None
        if kind == "Catalog":
            return Client.open(location, stac_io=io)
        if kind == "Collection":
            return pystac.Collection.from_file(location, stac_io=io)
        if kind == "Feature":
            return pystac.ItemCollection([pystac.Item.from_dict(content, href=location)])
        if kind == "FeatureCollection":
            items = pystac.ItemCollection.from_dict(content)
            for item in items:  # so that assets beside the list are found
                if item.get_self_href() is None:
                    item.set_self_href(f"{location.rpartition('/')[0]}/{item.id}.json")
            return items
    raise SourceError(
        location, f"it is not a STAC document (its type is {kind!r})", "give a catalog, collection or item"
    )


def _file(path: Path) -> Path:
    file = next((path / name for name in _ROOTS if (path / name).is_file()), path)
    if not file.is_file():
        raise MissingFileError(path, "a STAC catalog, collection or item (JSON), or the address of a STAC API")
    return file


@contextmanager
def _talking_to(location: str) -> Iterator[None]:
    """Turn errors of reading a catalog into a `SourceError`, and silence warnings about catalogs that are no API."""
    from pystac import STACError
    from pystac_client.exceptions import APIError
    from pystac_client.warnings import PystacClientWarning

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PystacClientWarning)
            yield
    except AnySatError:
        raise
    except (APIError, STACError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        problem = (str(error).strip() or type(error).__name__).split("\n")[0][:200]
        if is_url(location) and _is_no_json(error):
            raise SourceError(
                location, "it is not a STAC document (JSON)", "give the address of a STAC API, catalog or list "
                "of items; for a GeoTIFF whose name does not end in .tif, use `path` in a YAML file",
            ) from error  # fmt: skip
        if is_url(location):
            advice = "check the address and the network, or give a catalog on disk"
            raise SourceError(location, f"the STAC API cannot be reached or read ({problem})", advice) from error
        raise SourceError(location, f"it cannot be read as STAC ({problem})", "check that it is complete") from error


def _is_no_json(error: Exception) -> bool:
    """Return whether the error is that an answer is not text, or not JSON."""
    causes = (error, error.__cause__, error.__context__)
    return any(isinstance(cause, UnicodeDecodeError | json.JSONDecodeError) for cause in causes)


def _can_search(root: Any) -> bool:
    from pystac_client import Client

    if not isinstance(root, Client) or root.get_search_link() is None:
        return False
    if not root.conforms_to("ITEM_SEARCH"):
        root.add_conforms_to("ITEM_SEARCH")
    return True


def _searched(
    location: str, root: Any, collections: Sequence[str], bbox: LonLatBox | None, between: Between | None
) -> list[Any]:
    if not collections:
        advice = f"choose with `collection`: {some([collection.id for collection in root.get_collections()])}"
        raise SourceError(location, "searching a STAC API needs a collection, and none is given", advice)
    if bbox is None:
        raise SourceError(location, "searching a STAC API needs an area, and none is given", "give the area")
    days = None if between is None else f"{between[0]}T00:00:00Z/{between[1]}T23:59:59Z"
    items = list(root.search(collections=list(collections), bbox=bbox, datetime=days).items())
    if not items:
        known = [collection.id for collection in root.get_collections()]
        for name in collections:
            if name not in known:
                raise UnknownNameError(f"collection of {location}", name, known)
        when = "" if between is None else f" between {between[0]} and {between[1]}"
        raise SourceError(
            location, f"it has no item of {', '.join(collections)} in longitude {bbox[0]:g} to {bbox[2]:g}, latitude "
            f"{bbox[1]:g} to {bbox[3]:g}{when}", "widen the dates or the area",
        )  # fmt: skip
    return list({item.id: item for item in items}.values())


def _product(item: Any) -> str:
    """Return the collection of an item or, if it has none, its sensor."""
    properties = item.properties
    sensor = properties.get("constellation") or properties.get("platform") or "items without a collection"
    return str(item.collection_id or sensor)


def _in_range(location: str, items: Sequence[Any], bbox: LonLatBox | None, between: Between | None) -> list[Any]:
    if not items:
        raise SourceError(location, "it has no items", "check the catalog")
    near = [item for item in items if bbox is None or item.bbox is None or _overlap(item.bbox, bbox)]
    if not near:
        problem = f"none of its {len(items)} items lies in the area"
        raise SourceError(location, problem, "give sources that cover the same ground")
    if between is None:
        return near
    found = [item for item in near if between[0] <= day_of(item) <= between[1]]
    if not found:
        days = np.unique([day_of(item) for item in near])
        raise SourceError(
            location, f"none of its dates is between {between[0]} and {between[1]}",
            f"it has {len(days)} from {days[0]} to {days[-1]}: {some(days.tolist())}",
        )  # fmt: skip
    return found


def _overlap(one: Sequence[float], other: Sequence[float]) -> bool:
    """Return whether two boxes in degrees touch. That of an item (the first) may also have heights."""
    west, south, east, north = one[0], one[1], one[len(one) // 2], one[len(one) // 2 + 1]
    beyond, within = west <= other[2], east >= other[0]
    is_between = beyond and within if west <= east else beyond or within  # west > east: it crosses 180 degrees
    return is_between and south <= other[3] and north >= other[1]
