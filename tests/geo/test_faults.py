"""Ground that comes in pieces: two times of one day, two periods of one beginning, two zones, variants that saw less."""

import contextlib
import json
from datetime import date
from pathlib import Path
from types import SimpleNamespace

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
import xarray
from odc.geo import CRS
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords
from pyproj import Transformer
from shapely.geometry import box

import store_builders
from anysat.areas.maps import _disagreement, _mean
from anysat.cli import main
from anysat.errors import InputError, MissingFileError, SourceError, UnknownNameError, WriteError
from anysat.geo.area import plan_areas
from anysat.geo.degrees import WGS84, projected
from anysat.geo.grid import Footprint, plan_grid
from anysat.geo.ground import read_ground
from anysat.geo.read.matching import _unit_of
from anysat.geo.read.stac.search import _overlap
from anysat.geo.stores.layout import Layout
from anysat.geo.stores.store import AreaStore
from anysat.geo.write.exports import export
from anysat.geo.write.maps import class_attributes, class_layer
from anysat.modalities import MODALITIES
from anysat.workflows.areas.inputs import _told_of
from anysat.workflows.embed.area import tell_kept
from area_builders import CROPS, HEIGHT, KIND, predictor
from geo_builders import cube, geobox, opened, write_nc
from store_builders import GRID, NAMES, PERIODS, content, patch_layout

S2 = MODALITIES["s2"]


def test_two_times_of_one_day_are_joined_pixel_by_pixel_in_a_cube_of_variables(tmp_path):
    box = geobox((6, 8))
    y, x = box.dimensions
    times = np.array(["2020-06-01T10:50:21", "2020-06-01T10:50:35"], "datetime64[ns]")
    values = np.full((2, 6, 8), np.nan, np.float32)
    values[0, :, :5], values[1, :, 3:] = 1000, 2000
    bands = {name: (("time", y, x), values + n) for n, name in enumerate(S2.band_names)}
    data = xarray.Dataset(bands, coords={**xr_coords(box), "time": times})
    for name in S2.band_names:
        data[name].encoding["grid_mapping"] = "spatial_ref"
    source = opened(f"s2={write_nc(tmp_path / 's2.nc', data)}")
    seen, _ = source.observe(box)
    assert seen.dates.astype(str).tolist() == ["2020-06-01"]
    assert seen.valid.all()
    assert seen.values[0, 2, 0].tolist() == 5 * [1002.0] + 3 * [2002.0]


def stored(path, layout, periods):
    """A store of two periods that begin as they are told."""
    store = AreaStore.open(path, [layout], periods, store_builders.MADE_FROM)
    for unit in store.remaining():
        store.write(unit, store_builders.parts([layout], unit), {"seconds": 1.0})
    return store.finish()


def test_periods_that_begin_on_one_day_have_a_file_each(tmp_path):
    periods = [(date(2020, 1, 1), date(2020, 6, 30)), (date(2020, 1, 1), date(2020, 12, 31))]
    paths = export(stored(tmp_path / "a.zarr", patch_layout(), periods), tmp_path / "a.tif")
    assert [path.name for path in paths] == ["a_2020-01-01_2020-06-30.tif", "a_2020-01-01_2020-12-31.tif"]
    values, valid = content(patch_layout())
    for period, path in enumerate(paths):
        with rasterio.open(path) as file:
            read = np.moveaxis(file.read(), 0, -1)
        assert np.array_equal(read[valid[period]], values[period][valid[period]])


def test_polygons_of_ground_whose_first_rows_saw_nothing_have_names_and_times(tmp_path, monkeypatch):
    def without_north(layout, num_periods=2, seed=0):
        values, valid = content(layout, num_periods, seed)
        valid[:, : layout.shard_px] = False
        return values, valid

    monkeypatch.setattr(store_builders, "content", without_north)
    layout = Layout(name="classes", geobox=GRID, shard_px=4, chunk_px=2, kind="uint8", variable="class",
                    variable_attributes=class_attributes(NAMES, np.zeros((2, 3))))  # fmt: skip
    (out,) = export(stored(tmp_path / "a.zarr", layout, PERIODS), tmp_path / "a.gpkg")
    table = geopandas.read_file(out)
    assert len(table)
    assert (table["class_name"] == np.array(NAMES)[table["class"]]).all()
    assert set(table["start_datetime"].dt.month) == {1, 7}


def scene_of(crs, west, east, south=45.05, north=45.25):
    """A grid of 10 m around these longitudes and latitudes."""
    to = Transformer.from_crs("EPSG:4326", crs, always_xy=True)
    corners = [to.transform(lon, lat) for lon in (west, east) for lat in (south, north)]
    left, right = (round(pick(x for x, _ in corners), -1) for pick in (min, max))
    bottom, top = (round(pick(y for _, y in corners), -1) for pick in (min, max))
    return GeoBox(
        (int((top - bottom) // 10), int((right - left) // 10)), geobox((1, 1), left=left, top=top).affine, crs
    )


def test_a_second_source_counts_with_all_its_scenes_whatever_their_zone():
    """Landsat's scenes take the zone of their own middle: one of zone 32 may cover what one of zone 31 does in part."""
    s2 = Footprint(name="s2", modality=S2, geoboxes=(scene_of("EPSG:32631", 5.2, 5.9),))
    wide, narrow = scene_of("EPSG:32632", 5.0, 6.5, 45.0, 45.3), scene_of("EPSG:32631", 5.0, 5.5, 45.0, 45.3)
    wide, narrow = (one.zoom_to(resolution=30) for one in (wide, narrow))
    shapes = []
    for scenes in ((wide,), (narrow, wide)):
        l7 = Footprint(name="l7", modality=MODALITIES["l7"], geoboxes=scenes)
        (one,) = plan_areas([s2, l7], 30.0, "cell", shard=8)
        shapes.append(one.geobox.shape)
    assert np.abs(np.subtract(*shapes)).max() <= 1  # whose corner may be that of another raster
    assert shapes[0][1] > 1500


def test_a_zone_reaches_over_neighbours_that_are_not_there():
    """Zone 32 begins at 3 degrees east in Norway; zone 33 takes what is beyond 12."""
    scenes = scene_of("EPSG:32632", 4.6, 6.2, 60.0, 60.1), scene_of("EPSG:32633", 12.2, 12.6, 60.0, 60.1)
    areas = plan_areas([Footprint(name="s2", modality=S2, geoboxes=scenes)], 20.0, "cell", shard=8)
    west = {one.name: one.geobox.extent.to_crs("EPSG:4326").boundingbox.left for one in areas}
    assert west["utm32n"] == pytest.approx(4.6, abs=0.02)
    assert west["utm33n"] > 12


def test_a_grid_across_180_degrees_stays_in_its_zone():
    box = GeoBox((80, 100), geobox((1, 1), left=819_200.0, top=8_000_000.0).affine, "EPSG:32760")
    assert str(plan_grid([Footprint(name="s2", modality=S2, geoboxes=(box,))], 100).geobox.crs) == "EPSG:32760"
    beyond, within, elsewhere = [-179.9, -17.9, -179.85, -17.1], [179.2, -17.9, 179.4, -17.1], [10, -18, 11, -17]
    assert [_overlap([178.9, -18, -179.8, -17], one) for one in (beyond, within, elsewhere)] == [True, True, False]


def test_of_a_file_of_several_layers_the_one_that_is_the_area_is_named(tmp_path):
    path, boxes = tmp_path / "a.gpkg", {"north": box(4, 51, 5, 52), "south": box(4, 49, 5, 50)}
    for name, one in boxes.items():
        geopandas.GeoDataFrame(geometry=[one], crs="EPSG:4326").to_file(path, layer=name)
    with pytest.raises(SourceError, match="several layers with geometries: north, south; .* as in .*a.gpkg:north"):
        read_ground(str(path))
    for name, one in boxes.items():
        assert read_ground(f"{path}:{name}").equals(one)
    with pytest.raises(UnknownNameError, match="nroth"):
        read_ground(f"{path}:nroth")
    with pytest.raises(MissingFileError):
        read_ground(f"{tmp_path / 'b.gpkg'}:north")
    geopandas.GeoDataFrame(geometry=[box(4, 51, 5, 52)], crs="EPSG:4326").to_parquet(tmp_path / "a.parquet")
    with pytest.raises(SourceError, match="no layers"):
        read_ground(f"{tmp_path / 'a.parquet'}:north")


def test_edges_of_projected_polygons_stay_straight(tmp_path):
    square = box(300_000, 6_600_000, 400_000, 6_700_000)
    geopandas.GeoDataFrame(geometry=[square], crs="EPSG:32632").to_file(tmp_path / "a.gpkg")
    found = projected(shapely.segmentize(read_ground(str(tmp_path / "a.gpkg")), 0.05), WGS84, CRS("EPSG:32632"))
    assert found.symmetric_difference(square).area < 0.1e6


def test_more_classes_than_16_bits_tell_are_refused():
    names = [f"c{n}" for n in range(65_536)]
    assert class_layer(names[:255], np.zeros((255, 3)))["kind"] == "uint8"
    assert class_layer(names[:256], np.zeros((256, 3)))["kind"] == "uint16"
    with pytest.raises(InputError, match="at most 65535 classes"):
        class_layer(names, np.zeros((0, 3)))


@pytest.mark.parametrize(("scale", "unit"), [(1e-4, "reflectance"), (2.75e-5, "reflectance"), (1e4, "reflectance_1e4")])
def test_a_scale_that_makes_the_models_numbers_leaves_their_unit(scale, unit):
    layer = SimpleNamespace(units=[None], scalings=[(scale, 0.0)])
    assert _unit_of(layer, 0, S2, 0, {}, {}) == (unit, "assumed")


def test_ground_that_only_the_neighbour_zone_s_scene_covers_is_no_gap():
    """Scenes of zone 31 end at 5.7 degrees east, one of zone 32 begins at 5.6: between them and 6 nothing is lost."""

    def scene(crs, west, east):
        to = Transformer.from_crs("EPSG:4326", crs, always_xy=True)
        corners = [to.transform(lon, lat) for lon in (west, east) for lat in (45.05, 45.25)]
        left, right = min(x for x, _ in corners), max(x for x, _ in corners)
        top, bottom = max(y for _, y in corners), min(y for _, y in corners)
        left, top = round(left, -1), round(top, -1)
        return GeoBox(
            (int((top - bottom) // 10), int((right - left) // 10)), geobox((1, 1), left=left, top=top).affine, crs
        )

    scenes = scene("EPSG:32631", 5.3, 5.7), scene("EPSG:32632", 5.6, 6.4)
    footprint = Footprint(name="s2", modality=S2, geoboxes=scenes)
    areas = plan_areas([footprint], 20.0, "cell", shard=8)
    edges = {}
    for one in areas:
        box = one.geobox.extent.to_crs("EPSG:4326").boundingbox
        edges[one.name] = (box.left, box.right)
    assert set(edges) == {"utm31n", "utm32n"}
    assert edges["utm31n"][1] > 5.98, "up to the border, from the scene of zone 32"
    assert edges["utm31n"][1] < 6.1
    assert 5.9 < edges["utm32n"][0] < 6.0, "which it has as its own from there on"


def test_both_hemispheres_of_a_zone_have_their_own_ground():
    def scene(crs, south):
        left, _ = Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(3.2, south)
        top = 20_000.0 if crs == "EPSG:32631" else 9_999_980.0
        return GeoBox((1000, 1000), geobox((1, 1), left=round(left, -1), top=top).affine, crs)

    scenes = scene("EPSG:32631", 0.1), scene("EPSG:32731", -0.1)
    areas = plan_areas([Footprint(name="s2", modality=S2, geoboxes=scenes)], 20.0, "cell", shard=8)
    assert [one.name for one in areas] == ["utm31n", "utm31s"]
    assert all(one.geobox.shape[0] <= 501 for one in areas), [one.geobox.shape for one in areas]


@pytest.mark.parametrize("north_from_m", [-2000, 3000], ids=["both reach over it", "one reaches over it"])
def test_ground_at_the_equator_belongs_to_one_hemisphere(north_from_m):
    """Scenes of both hemispheres reach over the equator, as those of Sentinel-2 do."""

    def scene(crs, top):
        return GeoBox((1000, 1000), geobox((1, 1), left=500_000.0, top=top).affine, crs)

    scenes = scene("EPSG:32631", north_from_m + 10_000.0), scene("EPSG:32731", 10_002_000.0)
    areas = plan_areas([Footprint(name="s2", modality=S2, geoboxes=scenes)], 20.0, "cell", shard=8)
    north, south = (one.geobox.boundingbox for one in areas)
    assert [one.name for one in areas] == ["utm31n", "utm31s"]
    assert north.bottom == pytest.approx(0, abs=20)
    assert north.top == north_from_m + 10_000
    assert south.top == pytest.approx(10_000_000, abs=20)
    assert south.bottom == 9_992_000


def test_variants_that_saw_less_leave_the_answer_of_the_others():
    found = np.array([[[[0.2, 0.8]]], [[[np.nan, np.nan]]], [[[0.4, 0.6]]]], np.float32)
    assert _mean(found)[0, 0].tolist() == pytest.approx([0.3, 0.7])
    alike = np.array([[[[0.3, 0.7]]], [[[np.nan, np.nan]]]], np.float32)
    assert _disagreement(alike, CROPS)[0, 0] == pytest.approx(0, abs=1e-6)
    assert _disagreement(alike, HEIGHT)[0, 0] == pytest.approx(0, abs=1e-6)
    nobody = np.full((2, 1, 1, 2), np.nan, np.float32)
    assert np.isnan(_mean(nobody)).all()
    assert np.isnan(_disagreement(nobody, CROPS)).all()
    two = np.array([1.0, 3.0], np.float32).reshape(2, 1, 1, 1)
    assert _disagreement(two, HEIGHT)[0, 0] == pytest.approx(1.0)


def test_a_file_is_the_same_by_a_relative_path(tmp_path, monkeypatch):
    (tmp_path / "photo.tif").write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    assert _told_of("photo.tif") == _told_of(str(tmp_path / "photo.tif"))
    assert Path(_told_of("photo.tif")[0].split()[0]).is_absolute()


def test_a_tile_is_answered_into_a_json_file(tmp_path, capsys):
    predictor(KIND, ("s2",)).save(tmp_path / "kind.safetensors")
    values = np.random.default_rng(0).integers(100, 4000, (2, 10, 8, 8)).astype(np.float32)
    write_nc(tmp_path / "s2.nc", cube(values, geobox((8, 8)), ["2020-01-03", "2020-06-30"], S2.band_names))
    words = [
        "predict",
        str(tmp_path / "kind.safetensors"),
        f"s2={tmp_path / 's2.nc'}",
        f"--out={tmp_path / 'kind.json'}",
    ]
    assert main(words) == 0, capsys.readouterr().err
    told = json.loads((tmp_path / "kind.json").read_text())
    assert told["target"] == "kind"
    assert told["classes"] == list(KIND.classes)
    assert sum(told["probabilities"].values()) == pytest.approx(1, abs=1e-4)
    assert main([*words[:-1], f"--out={tmp_path / 'kind.of.2020.json'}"]) == 0, capsys.readouterr().err


def test_a_run_that_stopped_needs_room_for_what_it_has_not_kept_yet(tmp_path, monkeypatch):
    area = SimpleNamespace(span=SimpleNamespace(shape=(10, 10)))
    part = SimpleNamespace(
        is_computed=lambda: False, area=area, periods=[None], layouts=(), made_from={}, store=tmp_path / "a.zarr"
    )
    prepared = SimpleNamespace(load=SimpleNamespace(kept_bytes=10))
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=400))
    monkeypatch.setattr("anysat.geo.stores.store.AreaStore.fingerprint", staticmethod(lambda *_: "own"))
    with pytest.raises(WriteError, match="free"):
        tell_kept(prepared, [part])
    for name, enough in (("of-other-options", False), ("own", True)):
        (tmp_path / "a.series" / name).mkdir(parents=True)
        (tmp_path / "a.series" / name / "block").write_bytes(bytes(700))
        with contextlib.nullcontext() if enough else pytest.raises(WriteError, match="free"):
            tell_kept(prepared, [part])
