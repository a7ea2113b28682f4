"""Real scenes through the same doors: what a window holds is what the provider stored there."""

import numpy as np
import pytest
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox

from anysat.geo.read.sources import open_sources
from anysat.modalities import MODALITIES as M
from geo_builders import cube, source_of, write_nc
from stac_builders import make_item, write_catalog

S2_FINE, S2_COARSE = ("B02", "B03", "B04", "B08"), ("B05", "B06", "B07", "B8A", "B11", "B12")


def stored(path, window=None):
    with rasterio.open(path) as file:
        return file.read(window=window), GeoBox(file.shape, file.transform, str(file.crs)), file.descriptions


def test_the_sentinel_2_scene_is_cut_out_bit_by_bit(shared_data):
    folder = shared_data / "sentinel2_l1c"
    fine, box, _ = stored(folder / "S2_10m.tif")
    source = open_sources([f"s2={folder}@2017-05-01"], M)["s2"]
    assert source.bands == M["s2"].band_names
    observation, how = source.observe(box[100:228, 300:428])
    assert how == "exact and bilinear of 20 m pixels"
    np.testing.assert_array_equal(observation.values[0, [0, 1, 2, 6]], fine[:, 100:228, 300:428])


def test_the_scene_lies_where_it_lies_when_it_comes_from_a_catalog(shared_data, tmp_path):
    """Two overlapping halves of the scene as cloud-optimised files of a catalog make the scene again."""
    folder = shared_data / "sentinel2_l1c"
    fine, box, _ = stored(folder / "S2_10m.tif")
    coarse, coarse_box, _ = stored(folder / "S2_20m.tif")
    items = []
    for name, rows in (("north", slice(0, 400)), ("south", slice(300, 640))):
        assets = {band: (fine[k, rows], box[rows, :], {}) for k, band in enumerate(S2_FINE)}
        half = slice(rows.start // 2, rows.stop // 2)
        assets |= {band: (coarse[k, half], coarse_box[half, :], {}) for k, band in enumerate(S2_COARSE)}
        items.append(make_item(tmp_path / "files", name, "2017-05-01", assets, collection="sentinel-2-l1c"))
    source = open_sources({"s2": {"stac": write_catalog(tmp_path, items)}}, M)["s2"]
    window = box[250:450, 100:300]
    whole = open_sources([f"s2={folder}@2017-05-01"], M)["s2"].observe(window)[0]
    found = source.observe(window)[0]
    np.testing.assert_array_equal(found.values[0, [0, 1, 2, 6]], whole.values[0, [0, 1, 2, 6]])
    inner = found.values[0, :, 60:], whole.values[0, :, 60:]  # coarse pixels mix across the edge of a half
    np.testing.assert_allclose(inner[0][:, :80], inner[1][:, :80], rtol=1e-5)


def test_landsat_8_has_all_its_bands_on_one_grid(shared_data):
    folder = shared_data / "landsat8"
    coarse, box, names = stored(folder / "LC80200392015216_30m.tif")
    source = open_sources({"l8": {"path": f"{folder}@2015-08-04", "units": "DN"}}, M)["l8"]
    assert source.bands == M["l8"].band_names
    window = GeoBox((300, 300), Affine(10, 0, box.affine.c + 3000, 0, -10, box.affine.f - 3000), box.crs)
    observation, _ = source.observe(window)
    assert observation.valid.all()
    for place, name in enumerate(names):
        own = M["l8"].find_band(name)
        np.testing.assert_allclose(observation.values[0, own, 1::3, 1::3], coarse[place, 100:200, 100:200], atol=0.01)


@pytest.fixture(scope="module")
def patch(shared_data):
    return dict(np.load(shared_data / "crop_patches_multisensor" / "00002806639B424A.npz"))


def grid(patch, pixel_m, count):
    left, top = (patch[f"{axis}_{pixel_m}m"][0] + half for axis, half in (("x", -pixel_m / 2), ("y", pixel_m / 2)))
    return GeoBox((count, count), Affine(pixel_m, 0, left, 0, -pixel_m, top), f"EPSG:{int(patch['epsg'])}")


def test_the_scene_classification_of_a_real_series_masks_it(patch, tmp_path):
    """A year and a half of Sentinel-2 over Flanders: pixels of clear classes stay, dates without one are gone."""
    box, coarse = grid(patch, 10, 64), grid(patch, 20, 32)
    classes = cube(patch["s2_scl"][:, None], coarse, patch["s2_dates"], ["SCL"])
    layer = write_nc(tmp_path / "scl.nc", classes)
    imagery = cube(patch["s2_10m"], box, patch["s2_dates"], S2_FINE)
    quality = {"kind": "scl", "layer": str(layer)}
    observation, _ = source_of(imagery, M["s2"], quality=quality).observe(box)
    clear = np.isin(patch["s2_scl"], (2, 4, 5, 6, 7, 11)).repeat(2, 1).repeat(2, 2)
    kept = clear.any(axis=(1, 2))
    assert 40 < kept.sum() < len(kept)
    assert observation.dates.astype(str).tolist() == patch["s2_dates"][kept].tolist()
    np.testing.assert_array_equal(observation.valid[:, 0], clear[kept])
    np.testing.assert_array_equal(observation.values[:, 0], np.where(clear, patch["s2_10m"][:, 0], 0)[kept])


def test_flags_of_a_real_landsat_series_mask_it(patch, tmp_path):
    """Flags of Collection 1, where bit 3 is cloud shadow and bit 5 cloud; scenes of one day are joined."""
    box = grid(patch, 10, 64)
    bands = ["B2", "B3", "B4", "B5", "B6", "B7", "B10", "B11"]
    imagery = cube(patch["l8"], box, patch["l8_dates"], bands)
    imagery["pixel_qa"] = (("time", "y", "x"), patch["l8_pixel_qa"])
    quality = {"kind": "bits", "layer": "pixel_qa", "invalid": [3, 5]}
    observation, _ = source_of(imagery, M["l8"], quality=quality).observe(box)
    clear = (patch["l8_pixel_qa"].astype(int) & 0b101000) == 0
    days = np.unique(patch["l8_dates"])
    assert len(days) < len(clear)
    clear = np.stack([clear[patch["l8_dates"] == day].any(axis=0) for day in days])
    np.testing.assert_array_equal(observation.valid[:, 4], clear[clear.any(axis=(1, 2))])


def test_a_series_without_georeference_is_part_of_a_tile_of_ones_own_data(shared_data, tmp_path):
    """Of TreeSatAI-TS, centred on its photo."""
    from anysat.data.open import open_dataset

    (tmp_path / "trees.yaml").write_text(
        "{name: trees, tile_m: 60, tiles: trees.csv, modalities: {aerial: {path: 'aerial/{id}.tif', bands: [NIR, G, B, "
        "R], units: DN}, s2: {path: 'sentinel-ts/{id}_2020.h5'}}}"
    )
    (tmp_path / "trees.csv").write_text("id\nAbies_alba_1_1005_WEFL_NLF\n")
    tile = open_dataset(str(tmp_path / "trees.yaml"), shared_data / "treesatai_ts", "all")[0]
    assert tile.observations["aerial"].shape_px == (300, 300)
    assert tile.observations["s2"].values.shape[1:] == (10, 6, 6)
    assert tile.observations["s2"].valid.mean() > 0.9
