"""Real scenes through the public doors: embedded, written, and opened by others where the scene lies, to the pixel."""

import json

import geopandas
import numpy as np
import pytest
import rasterio
import rioxarray
import xarray
import zarr
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.warp import Resampling, reproject

import anysat
from anysat.cli import main
from anysat.data.datasets.bigearthnet_pairs import METADATA, write_pairs
from geo_builders import cube, write_nc, write_tif

pytestmark = pytest.mark.filterwarnings(  # rioxarray 0.19 calls what affine 3.1 is about to drop; nothing of ours does
    "ignore:Use `@` matmul:PendingDeprecationWarning:rioxarray"
)
MM = 1e-3
S2_FINE, S2_COARSE = ("B02", "B03", "B04", "B08"), ("B05", "B06", "B07", "B8A", "B11", "B12")
L2A = ["B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12"]


def embed(folder, *words, patch_size_m, sources=None):
    """The store that `anysat embed` writes with its other formats; `sources` are the content of a YAML file."""
    if sources is not None:
        (folder / "sources.yaml").write_text(json.dumps(sources))
        words = (folder / "sources.yaml", *words)
    made = [f"--patch-size-m={patch_size_m}", "--weights=nano", "--statistics=from-data", "--also=.tif,.parquet"]
    assert main([str(word) for word in ("embed", *words, *made, f"--out={folder / 'area.zarr'}")]) == 0
    return folder / "area.zarr"


def patches(left, top, patch_m, rows, cols, crs):
    return GeoBox((rows, cols), Affine(patch_m, 0, left, 0, -patch_m, top), crs)


def check_place(store, expected):
    """Zarr, GeoTIFF and GeoParquet lie on the same patches for every reader, and these are those expected."""
    found = xarray.open_zarr(store, group="patch")
    place = found.embedding.odc.geobox
    assert place.shape == expected.shape
    assert place.crs == expected.crs
    np.testing.assert_allclose(list(place.affine), list(expected.affine), rtol=0, atol=MM)
    assert found.rio.crs == rasterio.crs.CRS.from_string(str(expected.crs))
    np.testing.assert_allclose(list(found.rio.transform()), list(place.affine), rtol=0, atol=MM)
    images = sorted(path for path in store.parent.glob("area*.tif"))
    assert len(images) == found.sizes["time"]
    for image, vectors in zip(images, found.embedding.values, strict=True):
        with rasterio.open(image) as file:  # GDAL
            assert GeoBox(file.shape, file.transform, str(file.crs)) == place
            assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
            np.testing.assert_array_equal(file.read(), vectors)
        with rioxarray.open_rasterio(image) as again:
            assert again.odc.geobox == place
    table = geopandas.read_parquet(store.with_suffix(".parquet"))
    assert table.crs == str(expected.crs)
    assert len(table) == int(found.valid.sum())
    assert set(table.geom_type) == {"Polygon"}
    rows, cols = table.patch_row.to_numpy(), table.patch_col.to_numpy()
    left, bottom, right, top = table.bounds.to_numpy().T
    side = place.affine.a
    for bounds, at in ((left, found.x[cols] - side / 2), (right, found.x[cols] + side / 2),
                       (bottom, found.y[rows] - side / 2), (top, found.y[rows] + side / 2)):  # fmt: skip
        np.testing.assert_allclose(bounds, at, rtol=0, atol=MM)
    days = np.searchsorted(found.time.values, table.start_datetime.dt.tz_localize(None).to_numpy())
    np.testing.assert_array_equal(np.stack(table.embedding), found.embedding.values[days, :, rows, cols])
    assert main(["catalog", "validate", str(store)]) == 0
    assert store.with_suffix(".png").stat().st_size > 5000
    return found


def where_it_fits(vectors, geobox, values, source):
    """Rows and columns of patches by which embeddings (dim row col) best explain imagery as the source places it."""
    means = np.full(geobox.shape, np.nan, np.float32)
    reproject(values.astype(np.float32), means, src_transform=source.affine, src_crs=str(source.crs), src_nodata=np.nan,
              dst_transform=geobox.affine, dst_crs=str(geobox.crs), dst_nodata=np.nan,
              resampling=Resampling.average)  # fmt: skip
    flat = np.nan_to_num(vectors.reshape(len(vectors), -1))
    axes = np.linalg.svd(flat - flat.mean(1, keepdims=True), full_matrices=False)[2][:12]
    features = np.concatenate([axes, np.ones((1, axes.shape[1]))]).reshape(-1, *geobox.shape)
    features[:, ~np.isfinite(vectors[0])] = np.nan
    inner, errors = np.s_[1:-1, 1:-1], {}
    for shift in ((row, col) for row in (-1, 0, 1) for col in (-1, 0, 1)):
        moved = np.roll(means, shift, (0, 1))[inner].ravel()
        known = features[:, *inner].reshape(len(features), -1)
        use = np.isfinite(moved) & np.isfinite(known).all(0)
        fit, *_ = np.linalg.lstsq(known[:, use].T, moved[use])
        errors[shift] = np.var(moved[use] - fit @ known[:, use]) / np.var(moved[use])
    return min(errors, key=errors.get)


def stored(path, band=1):
    with rasterio.open(path) as file:
        return file.read(band), GeoBox(file.shape, file.transform, str(file.crs))


def grid_left(found, side=16, overlap=0.25):
    """Share of what tells neighbours apart that places in windows explain, beyond what they would by chance."""
    step, vectors = round(side * (1 - overlap)), np.moveaxis(found.embedding.values[0], 0, -1).astype(np.float64)
    sides = vectors[:-2, 1:-1] + vectors[2:, 1:-1] + vectors[1:-1, :-2] + vectors[1:-1, 2:]
    fine = vectors[1:-1, 1:-1] - sides / 4
    rows, cols = (length // step for length in fine.shape[:2])
    fine = fine[: rows * step, : cols * step] - fine[: rows * step, : cols * step].mean((0, 1))
    of_place = fine.reshape(rows, step, cols, step, -1).mean((0, 2))
    return (of_place**2).sum() / (fine**2).sum() * rows * cols - 1 / (rows * cols)


def seam_score(store):
    return zarr.open_group(store, mode="r").attrs["anysat"]["summary"]["seam_score"]


@pytest.fixture(scope="module")
def scene(shared_data, tmp_path_factory):
    """The Sentinel-2 scene with default options."""
    source = f"s2={shared_data / 'sentinel2_l1c'}@2017-05-01"
    return embed(tmp_path_factory.mktemp("scene"), source, patch_size_m=40)


def test_the_sentinel_2_scene_is_where_its_files_are(scene, shared_data):
    """Patches begin where the 20 m file does, 10 m before the other, so that no pixel is cut."""
    red, box = stored(shared_data / "sentinel2_l1c" / "S2_10m.tif", 3)
    found = check_place(scene, patches(437_720, 4_177_460, 40, 160, 161, "EPSG:32618"))
    assert bool(found.valid.all())
    assert where_it_fits(found.embedding.values[0], found.odc.geobox, red, box) == (0, 0)


def test_windows_leave_neither_seams_nor_a_grid_on_the_sentinel_2_scene(scene):
    assert 0.8 < seam_score(scene) <= 1.2
    assert grid_left(xarray.open_zarr(scene, group="patch")) < 0.015


@pytest.fixture(scope="module")
def terramesh(shared_data, tmp_path_factory):
    """A place of TerraMesh with default options; its files name no bands and no dates."""
    name = "637U_59R_1_3.tif"
    folder = shared_data / "terramesh_s1s2"
    sources = {
        "s2": {"path": f"{folder / 'S2L2A' / name}@2020-06-01", "bands": L2A},
        "s1": {"path": f"{folder / 'S1RTC' / name}@2020-06-02", "bands": ["VV", "VH"]},
    }
    return embed(tmp_path_factory.mktemp("terramesh"), patch_size_m=20, sources=sources)


def test_terramesh_is_where_its_files_are(terramesh, shared_data):
    near_infrared, box = stored(shared_data / "terramesh_s1s2" / "S2L2A" / "637U_59R_1_3.tif", 8)
    left, top = box.affine.c, box.affine.f
    found = check_place(terramesh, patches(left, top, 20, 112, 112, "EPSG:32632"))
    assert where_it_fits(found.embedding.values[0], found.odc.geobox, near_infrared, box) == (0, 0)


def test_windows_leave_neither_seams_nor_a_grid_on_terramesh(terramesh):
    assert 0.8 < seam_score(terramesh) <= 1.2
    assert grid_left(xarray.open_zarr(terramesh, group="patch")) < 0.015


def grid(patch, pixel_m):
    left, top = (patch[f"{axis}_{pixel_m}m"][0] + half for axis, half in (("x", -pixel_m / 2), ("y", pixel_m / 2)))
    count = 640 // pixel_m
    return GeoBox((count, count), Affine(pixel_m, 0, left, 0, -pixel_m, top), f"EPSG:{int(patch['epsg'])}")


FLANDERS = {"00002806639B424A": (2018, (501_360, 5_629_680)), "000028085BF08E7E": (2019, (526_140, 5_670_200))}
"""Of each patch the year of its summer, and its left top corner; of the second the 10 m bands of Sentinel-2 are lacking."""


@pytest.mark.parametrize("name", FLANDERS)
def test_three_sensors_over_flanders_are_embedded_season_by_season(shared_data, tmp_path, name):
    """Sentinel-2 masked by its scene classification and Landsat-8 by its flags, each of its own pixels, and radar."""
    year, corner = FLANDERS[name]
    patch = dict(np.load(shared_data / "crop_patches_multisensor" / f"{name}.npz"))
    fine, coarse = grid(patch, 10), grid(patch, 20)
    days = {key: np.flatnonzero((patch[f"{key}_dates"] >= f"{year}-03") & (patch[f"{key}_dates"] < f"{year}-09"))[::4]
            for key in ("s2", "s1", "l8")}  # fmt: skip
    for folder in ("s2", "scl"):
        (tmp_path / folder).mkdir()
    for at in days["s2"]:
        day = patch["s2_dates"][at]
        if "s2_10m" in patch:
            write_tif(tmp_path / "s2" / f"{day}_10m.tif", patch["s2_10m"][at], fine, names=S2_FINE, nodata=0)
        write_tif(tmp_path / "s2" / f"{day}_20m.tif", patch["s2_20m"][at], coarse, names=S2_COARSE, nodata=0)
        write_tif(tmp_path / "scl" / f"{day}_SCL.tif", patch["s2_scl"][at][None], coarse, names=["SCL"])
    radar = cube(patch["s1"][days["s1"]], coarse, patch["s1_dates"][days["s1"]], ["VV", "VH"], units="dB")
    write_nc(tmp_path / "s1.nc", radar)
    thermal = ["B2", "B3", "B4", "B5", "B6", "B7", "B10", "B11"]
    landsat = cube(patch["l8"][days["l8"]], fine, patch["l8_dates"][days["l8"]], thermal)
    landsat["pixel_qa"] = (("time", "y", "x"), patch["l8_pixel_qa"][days["l8"]])
    write_nc(tmp_path / "l8.nc", landsat)
    sources = {
        "s2": {"path": "s2", "quality": {"kind": "scl", "layer": "scl"}},
        "s1": "s1.nc",
        "l8": {"path": "l8.nc", "units": "DN", "quality": {"kind": "bits", "layer": "pixel_qa", "invalid": [3, 5]}},
    }
    seasons = f"--period={year}-03-01/{year}-05-31,{year}-06-01/{year}-08-31"
    store = embed(tmp_path, seasons, "--window=8", patch_size_m=40, sources=sources)
    found = check_place(store, patches(*corner, 40, 16, 16, "EPSG:32631"))
    assert bool(found.valid.all())  # by radar, through every cloud
    summer = np.flatnonzero((patch["s2_dates"] >= f"{year}-06") & (patch["s2_dates"] < f"{year}-09"))
    clear = np.isin(patch["s2_scl"][summer], (4, 5)).mean((1, 2)) > 0.97
    red_edge = patch["s2_20m"][summer[clear], 2].mean(0)
    assert where_it_fits(found.embedding.values[1], found.odc.geobox, red_edge, coarse) == (0, 0)


@pytest.mark.filterwarnings("ignore:s2. lacks B2, B3, B4, B8$:anysat.errors.SourceWarning")
def test_a_patch_south_of_the_equator_is_embedded_from_cubes_in_memory(shared_data):
    patch = dict(np.load(shared_data / "crop_patches_multisensor" / "2021_TZA_COPERNICUS-GEOGLAM_POLY_1101950.npz"))
    box = grid(patch, 20)
    clear = np.flatnonzero(np.isin(patch["s2_scl"], (4, 5)).mean((1, 2)) > 0.99)[:4]
    imagery = cube(patch["s2_20m"][clear], box, patch["s2_dates"][clear], S2_COARSE)
    radar = cube(patch["s1"][:4], box, patch["s1_dates"][:4], ["VV", "VH"], units="dB")
    found = anysat.embed({"s2": imagery, "s1": radar}, 40, weights="nano", statistics="from-data", window=8)
    assert found.odc.geobox == patches(260_900, 9_595_800, 40, 16, 16, "EPSG:32737")
    assert bool(found.valid.all())
    red_edge = patch["s2_20m"][clear, 2].mean(0)
    assert where_it_fits(found.embedding.values[0], found.odc.geobox, red_edge, box) == (0, 0)


def test_two_adjacent_cubes_are_one_area_with_nothing_beside_them(shared_data, tmp_path):
    """Two squares that overlap at a corner: what neither saw is nodata in every format."""
    cubes = {}
    for key, bands in (("s2", None), ("s1", ["VV", "VH"])):
        parts = []
        for name in "ab":
            file = np.load(shared_data / "crop_cubes_belgium" / f"belgium_{name}.npz")
            (use,) = np.nonzero(np.isin(file["dates"], ["2020-11-01", "2021-06-01"]))
            numbers = file[key][use].astype(np.float32)
            seen = np.isin(numbers, (65535, 0), invert=True)
            values = numbers if key == "s2" else 20 * np.log10(np.maximum(numbers, 1)) - 83
            coords = {"time": file["dates"][use].astype("datetime64[ns]"), "band": bands or file["s2_bands"].tolist(),
                      "y": file["y"], "x": file["x"]}  # fmt: skip
            parts.append(xarray.DataArray(np.where(seen, values, np.nan), coords, ("time", "band", "y", "x")))
        joined = parts[0].combine_first(parts[1]).sortby("y", ascending=False)
        box = GeoBox((153, 151), Affine(10, 0, 664_000, 0, -10, 5_612_650), "EPSG:32631")
        whole = joined.reindex(y=[5_612_645 - 10 * row for row in range(153)]).astype(np.float32)
        assert whole.shape[2:] == box.shape
        cubes[key] = cube(whole.values, box, whole.time.values, whole.band.values, **({"units": "dB"} if bands else {}))
        write_nc(tmp_path / f"{key}.nc", cubes[key])
    store = embed(tmp_path, f"s2={tmp_path / 's2.nc'}", f"s1={tmp_path / 's1.nc'}", patch_size_m=20)
    found = check_place(store, patches(664_000, 5_612_650, 20, 77, 76, "EPSG:32631"))
    pixels = np.zeros((154, 152), bool)
    for values in cubes.values():
        pixels[:153, :151] |= np.isfinite(values.pixels.values).any((0, 1))
    np.testing.assert_array_equal(found.valid.values[0], pixels.reshape(77, 2, 76, 2).any((1, 3)))
    assert 0.2 < float((~found.valid).mean()) < 0.6
    red = cubes["s2"].pixels.values[:, 2].mean(0)
    assert where_it_fits(found.embedding.values[0], found.odc.geobox, red, box) == (0, 0)


def test_landsat_8_with_its_panchromatic_band_is_where_its_files_are(shared_data, tmp_path):
    """All 11 bands of 2 km out of the scene."""
    folder = shared_data / "landsat8"
    near_infrared, box = stored(folder / "LC80200392015216_30m.tif", 5)
    sources = {"l8": {"path": f"{folder}@2015-08-04", "units": "DN"}}
    wanted = box[210:280, 100:170].extent.to_crs("EPSG:4326").boundingbox
    store = embed(tmp_path, f"--area={','.join(map(str, wanted))}", patch_size_m=60, sources=sources)
    found = xarray.open_zarr(store, group="patch")
    place = found.odc.geobox
    check_place(store, patches(place.affine.c, place.affine.f, 60, *place.shape, "EPSG:32616"))
    first_px = 452_465, 3_408_655  # of 10 m, the one in which the panchromatic file begins, on the grid of the other
    assert (place.affine.c - first_px[0]) % 60 == (place.affine.f - first_px[1]) % 60 == 0
    assert max(place.shape) <= 38
    assert float(found.valid.mean()) > 0.9  # the box of degrees stands askew
    assert where_it_fits(found.embedding.values[0], place, near_infrared, box) == (0, 0)


def test_landsat_7_with_a_place_of_its_own_leaves_its_clouds_out(shared_data, tmp_path):
    """Its files tell no place; here it is given one in Europe. Clouds and their shadows become nodata."""
    file = np.load(shared_data / "landsat7" / "landsat7_toa_clouds.npz")
    cut = np.s_[..., 128:288, 64:224]
    box = GeoBox((160, 160), Affine(30, 0, 500_010, 0, -30, 5_400_000), "EPSG:32633")
    write_tif(tmp_path / "l7.tif", file["img"][cut], box, names=file["bands"].tolist(), units="reflectance")
    write_tif(tmp_path / "clouds.tif", file["mask"][cut][None], box)
    sources = {"l7": {"path": "l7.tif@2001-07-01", "quality": {"layer": "clouds.tif", "invalid": [0, 4]}}}
    found = check_place(embed(tmp_path, patch_size_m=60, sources=sources),
                        patches(500_010, 5_400_000, 60, 80, 80, "EPSG:32633"))  # fmt: skip
    clear = np.isin(file["mask"][cut], (1, 2, 3))
    np.testing.assert_array_equal(found.valid.values[0], clear.reshape(80, 2, 80, 2).any((1, 3)))
    assert 0.02 < float((~found.valid).mean()) < 0.9
    infrared = np.where(clear, file["img"][cut][3], np.nan)
    assert where_it_fits(found.embedding.values[0], found.odc.geobox, infrared, box) == (0, 0)


def test_naip_is_brought_to_its_pixels_where_its_file_is(shared_data, tmp_path):
    """Pixels of 0.6 m that are not quite square become such of 1.25 m from the same corner."""
    path = shared_data / "naip" / "m_3211605_ne_11_060_20200415.tif"
    red, box = stored(path)
    sources = {"naip": {"path": str(path), "bands": ["R", "G", "B", "NIR"]}}
    store = embed(tmp_path, "--dates=2020-01-01/2020-12-31", "--window=8", patch_size_m=10, sources=sources)
    found = check_place(store, patches(box.affine.c, box.affine.f, 10, 13, 16, "EPSG:26911"))
    assert where_it_fits(found.embedding.values[0], found.odc.geobox, red, box) == (0, 0)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Sentinel-1 and Sentinel-2 of one place out of a package of the registry: never skipped."""
    root = write_pairs(tmp_path_factory.mktemp("pairs"))
    radar = sorted(root.rglob(f"S1*{METADATA}"))[0]
    partner = json.loads(radar.read_text())["corresponding_s2_patch"]
    (optical,) = root.rglob(f"{partner}{METADATA}")
    return {"s2": optical.parent, "s1": radar.parent}


def test_imagery_of_a_fresh_clone_is_where_its_files_are(pair, tmp_path):
    red, box = stored(next(pair["s2"].glob("*_B04.tif")))
    words = [f"{key}={folder}" for key, folder in pair.items()]
    found = check_place(embed(tmp_path, *words, patch_size_m=20),
                        patches(box.affine.c, box.affine.f, 20, 60, 60, str(box.crs)))  # fmt: skip
    assert bool(found.valid.all())
    assert seam_score(tmp_path / "area.zarr") <= 1.2
    assert where_it_fits(found.embedding.values[0], found.odc.geobox, red, box) == (0, 0)
