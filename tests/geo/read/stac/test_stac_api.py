"""A STAC API through pystac-client: searched by collection, area and days; what cannot be found or reached is named."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from anysat.errors import SourceError, UnknownNameError
from stac_builders import BOX, L8, S2, item, opened


class Api:
    """A STAC API on this machine, with items of two collections, that answers searches as the standard says."""

    def __init__(self, items):
        api = self
        self.items, self.asked = items, []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.answer(api.root() if self.path == "/" else api.collections())

            def do_POST(self):
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                api.asked.append(asked)
                self.answer(api.search(asked))

            def answer(self, content):
                body = json.dumps(content).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/geo+json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def root(self):
        parts = ("core", "item-search", "collections")
        links = [("self", ""), ("root", ""), ("search", "search"), ("data", "collections")]
        return {
            "type": "Catalog", "id": "api", "description": "a test", "stac_version": "1.0.0",
            "conformsTo": [f"https://api.stacspec.org/v1.0.0/{part}" for part in parts],
            "links": [{"rel": rel, "href": self.url + at, "type": "application/json"} for rel, at in links]
                     + [{"rel": "search", "href": self.url + "search", "method": "POST", "type": "application/geo+json"}],
        }  # fmt: skip

    def collections(self):
        extent = {"spatial": {"bbox": [[-180, -90, 180, 90]]}, "temporal": {"interval": [[None, None]]}}
        known = dict.fromkeys(item.collection_id for item in self.items)
        return {"links": [], "collections": [
            {"type": "Collection", "id": name, "description": "x", "license": "other", "stac_version": "1.0.0",
             "extent": extent, "links": []} for name in known
        ]}  # fmt: skip

    def search(self, asked):
        first, last = (moment[:10] for moment in asked.get("datetime", "1900-01-01/2100-01-01").split("/"))
        west, south, east, north = asked["bbox"]
        found = [
            item.to_dict() for item in self.items
            if item.collection_id in asked["collections"] and first <= str(item.datetime.date()) <= last
            and item.bbox[0] <= east and item.bbox[2] >= west and item.bbox[1] <= north and item.bbox[3] >= south
        ]  # fmt: skip
        return {"type": "FeatureCollection", "features": found, "links": []}


@pytest.fixture
def api(tmp_path):
    items = [item(tmp_path, f"i{k}", f"2020-06-0{k}", 10 * k) for k in (1, 2, 3)]
    items.append(item(tmp_path, "l8", "2020-06-02", 99, collection=L8, platform="landsat-8"))
    api = Api(items)
    yield api
    api.server.shutdown()
    api.server.server_close()


AREA = BOX.extent.to_crs("EPSG:4326").boundingbox.bbox


def test_an_api_is_searched_by_collection_area_and_days(api):
    days = np.datetime64("2020-06-02"), np.datetime64("2020-06-30")
    source = opened(api.url, collection=S2, bbox=AREA, between=days)
    assert source.dates.astype(str).tolist() == ["2020-06-02", "2020-06-03"]
    assert source.observe(BOX)[0].values[:, 0, 0, 0].tolist() == [20, 30]
    assert [asked["collections"] for asked in api.asked] == [[S2]]
    assert np.allclose(api.asked[0]["bbox"], AREA)
    assert api.asked[0]["datetime"] == "2020-06-02T00:00:00Z/2020-06-30T23:59:59Z"


def test_a_search_needs_a_collection_and_an_area(api):
    with pytest.raises(SourceError, match=rf"needs a collection, and none is given; choose .*{S2}, {L8}"):
        opened(api.url, bbox=AREA)
    with pytest.raises(SourceError, match="needs an area, and none is given"):
        opened(api.url, collection=S2)


def test_a_search_that_finds_nothing_says_what_was_searched(api):
    with pytest.raises(SourceError, match=rf"it has no item of {S2} in longitude 10 to 11, latitude 50 to 51"):
        opened(api.url, collection=S2, bbox=(10, 50, 11, 51))
    with pytest.raises(UnknownNameError, match=f"unknown collection of .*'sentinel-2'; closest: {S2}"):
        opened(api.url, collection="sentinel-2", bbox=AREA)


def test_an_api_that_cannot_be_reached_is_refused():
    with pytest.raises(
        SourceError, match=r"http://127.0.0.1:9/: the STAC API cannot be reached or read .*check the address"
    ):
        opened("http://127.0.0.1:9/", collection=S2, bbox=AREA)
