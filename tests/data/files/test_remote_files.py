"""Files on the network: read where they can be, and where not, it is said why, and nothing empty passes as finished."""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pystac
import pytest

from anysat.cli import main
from anysat.errors import SourceError
from anysat.geo.read.layers import reading
from anysat.geo.read.sources import open_sources
from anysat.modalities import MODALITIES
from geo_builders import geobox, write_tif
from stac_builders import make_item

DATES = ["2020-01-03", "2020-06-30"]
BOX = geobox((20, 24))
SAID = {"raster:bands": [{"nodata": 0, "scale": 0.0001, "offset": 0, "data_type": "uint16"}]}


class Server:
    """The files of a folder over HTTP, with ranges, as stores of objects have it."""

    def __init__(self, folder):
        self.refused = set()

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(handler):
                handler.do_GET(has_body=False)

            def do_GET(handler, has_body=True):
                name = handler.path.partition("?")[0].rpartition("/")[2]
                if name in self.refused or not (folder / name).is_file():
                    return handler.send_error(403 if name in self.refused else 404)
                content = (folder / name).read_bytes()
                asked = re.match(r"bytes=(\d+)-(\d*)", handler.headers.get("Range", ""))
                first, last = (int(asked[1]), int(asked[2] or len(content) - 1)) if asked else (0, len(content) - 1)
                last = min(last, len(content) - 1)
                handler.send_response(206 if asked else 200)
                handler.send_header("Accept-Ranges", "bytes")
                handler.send_header("Content-Length", str(last - first + 1))
                if asked:
                    handler.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
                handler.end_headers()
                return handler.wfile.write(content[first : last + 1]) if has_body else None

            def log_message(handler, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setattr("anysat.areas.job.RETRY_AFTER_S", 0.0)
    monkeypatch.setenv("CPL_VSIL_CURL_NON_CACHED", "/vsicurl/http://127.0.0.1")  # else a process asks once for a file
    folder = tmp_path / "files"
    folder.mkdir()
    server = Server(folder)
    server.folder = folder
    yield server
    server.server.shutdown()
    server.server.server_close()


def write_items(files, path):
    """A list of items of two dates whose assets lie on the server; their files, too."""
    items = []
    for number, date in enumerate(DATES):
        values = np.random.default_rng(number).integers(500, 3000, BOX.shape).astype(np.uint16)
        assets = dict.fromkeys(("B02", "B03", "B04"), (values, BOX, SAID))
        items.append(make_item(files.folder, f"i{number}", date, assets, collection="sentinel-2-l2a"))
    found = pystac.ItemCollection(items).to_dict()
    path.write_text(json.dumps(found).replace(f"{files.folder}/", files.url))
    return path


@pytest.fixture
def run(tmp_path, capsys):
    def call(*words, command="embed", own=("--patch-size-m=40", "--weights=nano", "--dataset=bigearthnet_pairs")):
        status = main([*command.split(), *map(str, words), *own])
        said = capsys.readouterr()
        return status, said.out, said.err

    return call


@pytest.mark.parametrize("words", [[], ["--statistics=from-data"], ["--store=int8-scale"], ["--keep=series"]])
def test_an_area_of_which_nothing_could_be_read_is_no_result(run, files, tmp_path, words):
    items, out = write_items(files, tmp_path / "items.json"), tmp_path / "out"
    kept = {path: path.read_bytes() for path in files.folder.iterdir()}
    for path in kept:
        path.unlink()
    call = [f"s2={items}", f"--out={out / 'a.zarr'}", "--dates=2020-01-01/2020-12-31", *words]
    status, said, errors = run(*call)
    assert (status, said) == (2, "")
    assert "could not be read" in errors
    assert "there is no such file: check its address" in errors
    assert not out.exists() or {path.name for path in out.iterdir()} <= {"a.series"}
    for path, content in kept.items():
        path.write_bytes(content)
    status, said, errors = run(*call)  # the same again
    assert status == 0, errors
    assert "seen: 30 of 30 patches" in said


def test_a_store_of_which_a_part_could_not_be_read_says_so_when_it_is_checked(run, files, tmp_path):
    items, out = write_items(files, tmp_path / "items.json"), tmp_path / "a.zarr"
    files.refused = {"i1_B02.tif"}
    status, said, _ = run(f"s2={items}", f"--out={out}", "--dates=2020-01-01/2020-12-31")
    assert status == 1
    assert "i1_B02.tif: it cannot be read (HTTP response code: 403); access is refused: set the keys" in said
    status, said, _ = run(out, command="catalog validate", own=())
    assert status == 0
    assert re.search(r"warning +a.zarr  inputs: 1 could not be read when the store was made, .*i1_B02.tif", said)


def write_radar(folder, name="s1_20200601.tif"):
    rng = np.random.default_rng(0)
    return write_tif(folder / name, rng.uniform(0.01, 0.2, (2, 20, 24)).astype(np.float32), BOX, names=("VV", "VH"))


@pytest.mark.parametrize("before", ["", "/vsicurl/"])
def test_a_geotiff_is_read_from_its_address_as_from_its_path(run, files, tmp_path, before):
    path = write_radar(files.folder)
    address = f"{before}{files.url}{path.name}"
    here = open_sources([f"s1={path}"], MODALITIES)["s1"]
    there = open_sources([f"s1={address}?signature=secret"], MODALITIES)["s1"]
    assert there.name == address
    assert (there.bands, there.dates.tolist(), there.footprint.geoboxes) == (
        here.bands, here.dates.tolist(), here.footprint.geoboxes,
    )  # fmt: skip
    seen, wanted = (source.observe(BOX)[0] for source in (there, here))
    np.testing.assert_array_equal(seen.values, wanted.values)


def test_what_is_embedded_from_an_address_does_not_tell_what_signs_it(run, files, tmp_path):
    address, out = f"{files.url}{write_radar(files.folder).name}", tmp_path / "out"
    out.mkdir()
    (tmp_path / "sources.yaml").write_text(f"s1: {{path: '{address}?signature=secret', units: linear}}\n")
    words = ["--statistics=from-data", "--overwrite"]
    status, said, errors = run(f"s1={address}?signature=secret", "--units=s1=linear", f"--out={out / 'a'}", *words)
    assert status == 0, errors
    assert f"read s1: {address}, 2020-06-01, bands VV VH" in said
    status, said, errors = run(tmp_path / "sources.yaml", f"--out={out / 'b.zarr'}", "--places=kept", *words)
    assert status == 0, errors
    assert f"input s1: {address}, 2020-06-01, bands VV VH" in said
    assert "seen: 30 of 30 patches" in said
    assert not [path for path in out.rglob("*") if path.is_file() and b"secret" in path.read_bytes()]


@pytest.mark.parametrize(("place", "told"), [
    ("{}gone.tif", "it cannot be read (HTTP response code: 404); there is no such file"),
    ("{}cube.nc", "only single GeoTIFFs can be read from an address; copy it to a disk"),
    ("s3://bucket/folder/", "s3://bucket/folder/: only single GeoTIFFs can be read from an address"),
    ("s3://bucket/items.json", "s3://bucket/items.json: STAC documents can only be read from a disk or over http"),
    ("{}picture", "it is not a STAC document (JSON); give the address of a STAC API"),
    ("{}page.html", "it is not a STAC document (JSON)"),
])  # fmt: skip
def test_what_cannot_be_read_from_an_address_is_said_as_it_is(files, place, told):
    (files.folder / "picture").write_bytes(write_radar(files.folder).read_bytes())
    (files.folder / "page.html").write_text("<html></html>")
    with pytest.raises(SourceError, match=re.escape(told)):
        open_sources([f"s1={place.format(files.url)}"], MODALITIES)


def test_a_path_in_yaml_may_be_an_address_without_suffix(files, tmp_path):
    (files.folder / "picture").write_bytes(write_radar(files.folder).read_bytes())
    (tmp_path / "a.yaml").write_text(f"s1: {{path: '{files.url}picture@2020-06-01'}}\n")
    assert open_sources([str(tmp_path / "a.yaml")], MODALITIES)["s1"].bands == ("VV", "VH")


def test_an_address_on_s3_keeps_its_name_in_messages(monkeypatch):
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SourceError, match=r"^s3://bucket/s1_20200601.tif: it cannot be read .*AWS_NO_SIGN_REQUEST=YES"):
        open_sources(["s1=s3://bucket/s1_20200601.tif"], MODALITIES)


@pytest.mark.parametrize(("said", "advice"), [
    ("AWS_SECRET_ACCESS_KEY and AWS_NO_SIGN_REQUEST configuration options not defined", "AWS_NO_SIGN_REQUEST=YES"),
    ("HTTP response code: 404", "no such file"), ("HTTP response code: 403", "renew the signature of expired addresses"),
    ("CURL error: Could not resolve host: nowhere", "check the network"),
    ("TIFFReadEncodedTile() failed", "check that the file is complete"),
])  # fmt: skip
def test_what_to_do_about_a_file_depends_on_why_it_cannot_be_read(said, advice):
    with pytest.raises(SourceError, match=advice), reading("a.tif"):
        raise OSError(said)
