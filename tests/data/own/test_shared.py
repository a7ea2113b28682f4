"""Files that many tiles share: they are opened once per process, and anew once they change."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
from pyproj import Transformer

from anysat.data.open import open_dataset
from anysat.geo.read import formats
from geo_builders import LEFT, SOUTH, TOP
from own_builders import S2, described, image

SHARED = {"centre": "table", "modalities": {"s2": {"path": "s2"}}, "tiles": "tiles.csv"}


@pytest.fixture
def opened(monkeypatch):
    """Names of the GeoTIFFs whose metadata are read."""
    found, read = [], formats._tiff_layer
    monkeypatch.setattr(formats, "_tiff_layer", lambda path, *given: found.append(path.name) or read(path, *given))
    return found


def _shared(root, num_tiles=3):
    """Tiles in the middle of a series of two dates that all of them share."""
    for day in ("20200601", "20200611"):
        image(root / "s2" / f"{day}.tif", tags={})
    lon, lat = Transformer.from_crs(SOUTH, "EPSG:4326", always_xy=True).transform(LEFT + 40, TOP - 40)
    rows = [f"t{number},{lon},{lat}" for number in range(num_tiles)]
    (root / "tiles.csv").write_text("\n".join(["id,lon,lat", *rows]))
    return open_dataset(described(root, **SHARED), root, "all")


def test_files_that_tiles_share_are_opened_once(tmp_path, opened):
    dataset = _shared(tmp_path)
    for tile in dataset:
        assert len(tile.observations["s2"].dates) == 2
    assert sorted(opened) == ["20200601.tif", "20200611.tif"]


@pytest.mark.parametrize("change", ["rewritten", "added"])
def test_a_shared_folder_that_changes_is_opened_anew(tmp_path, change):
    dataset = _shared(tmp_path)
    before = dataset[0].observations["s2"]
    name = "20200611" if change == "rewritten" else "20200621"
    image(tmp_path / "s2" / f"{name}.tif", np.full((len(S2), 8, 8), 7.0), tags={}, scale=(2.0, 0.0))
    after = dataset[0].observations["s2"]
    assert len(after.dates) == len(before.dates) + (change == "added")
    assert (after.values[-1] == 14).all()


def _sum(dataset):
    return float(dataset[0].observations["s2"].values.sum())


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_read_what_their_parent_has_opened(tmp_path, start):
    dataset = _shared(tmp_path)
    here = _sum(dataset)
    with ProcessPoolExecutor(2, get_context(start)) as pool:
        assert list(pool.map(_sum, [dataset] * 3)) == [here] * 3


def test_a_link_to_nothing_beside_the_files_does_no_harm(tmp_path):
    dataset = _shared(tmp_path)
    (tmp_path / "s2" / "notes.txt").symlink_to(tmp_path / "gone.txt")
    assert len(dataset[0].observations["s2"].dates) == 2
