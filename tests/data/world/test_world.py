"""The generated world: one ground for all sensors, seeded, with events, hard enough, and frozen."""

import hashlib
import importlib.util
import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from anysat.cli import main
from anysat.data.world import FACTORS, THEMES, World, WorldTile
from anysat.data.world import parameters as stored
from anysat.data.world.map import flood_reach
from anysat.errors import InputError, UnknownNameError
from anysat.modalities import MODALITIES, Band, Modality

EVERY = pytest.mark.parametrize("key", sorted(MODALITIES))
SUMMER, WINTER = np.array(["2020-07-10"], "datetime64[D]"), np.array(["2020-01-20"], "datetime64[D]")
FOREST, CROPLAND, WATER = (FACTORS["land_cover"].index(name) for name in ("forest", "cropland", "water"))


def of_theme(theme, extent_m=320.0, after=0, seed=0):
    index = after + next(n for n in range(6) if THEMES[(after + n + seed) % 6] == theme)
    return World(seed).tile(index, extent_m=extent_m)


def band(observation, name):
    return observation.values[..., observation.modality.find_band(name), :, :]


def ndvi(observation):
    red, nir = band(observation, "red"), band(observation, "nir")
    return (nir - red) / np.maximum(nir + red, 1)


@pytest.mark.parametrize("factor", FACTORS)
def test_a_coarse_map_is_the_fine_one_at_its_pixel_centres(factor):
    tile = World(3).tile(5, extent_m=320.0)
    np.testing.assert_array_equal(tile.raster(factor, 10.0), tile.raster(factor, 2.0)[2::5, 2::5])


def test_a_coarse_map_is_mostly_the_commonest_class_of_the_fine_one():
    for theme in ("crop", "species", "flood"):
        tile = of_theme(theme)
        cut = tile.raster("land_cover", 2.0).reshape(32, 5, 32, 5)
        counts = [(cut == number).sum((1, 3)) for number in range(len(FACTORS["land_cover"]))]
        assert (np.argmax(counts, axis=0) == tile.raster("land_cover", 10.0)).mean() > 0.93


def shifted(tile, east_m, south_m):
    return replace(tile, x_m=tile.x_m + east_m, y_m=tile.y_m - south_m)


@pytest.mark.parametrize("factor", FACTORS)
def test_overlapping_tiles_have_the_same_map_on_their_overlap(factor):
    tile = World(0).tile(4, extent_m=640.0)
    one, other = tile.raster(factor, 10.0), shifted(tile, 200, 130).raster(factor, 10.0)
    np.testing.assert_array_equal(one[13:, 20:], other[:-13, :-20])


@pytest.mark.parametrize(("key", "scale"), [("s2", 1.0), ("s1", 1.0), ("l8", 1.0), ("hls", 1.0)])
def test_overlapping_tiles_see_the_same_values_but_for_noise(key, scale):
    tile = of_theme("flood", 1200.0)
    dates = tile.dates(key, 3)
    gsd_m = MODALITIES[key].gsd_m
    rows, cols = round(120 / gsd_m), round(240 / gsd_m)
    one, other = (t.observe(key, dates=dates, keep_clouds=True).values for t in (tile, shifted(tile, 240, 120)))
    one, other = one[..., rows:, cols:], other[..., :-rows, :-cols]
    alike = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(one.mean(1), other.mean(1), strict=True)]
    assert min(alike) > (0.5 if MODALITIES[key].is_radar else 0.97)


def test_what_is_asked_together_changes_nothing():
    tile = of_theme("crop", 120.0)
    dates = tile.dates("s2", 6)
    np.testing.assert_array_equal(
        tile.observe("s2", dates=dates).values[4], tile.observe("s2", dates=dates[4:5]).values[0]
    )


@EVERY
def test_every_modality_sees_a_tile_in_its_own_bands_units_and_pixels(key):
    modality, tile = MODALITIES[key], of_theme("species", 120.0)
    seen = tile.observe(key)
    side = 1 if modality.covers_tile else round(120 / modality.gsd_m)
    assert seen.values.shape[-3:] == (len(modality.bands), side, side)
    assert seen.units == modality.units
    assert np.isfinite(seen.values).all()
    assert seen.valid.mean() > 0.3
    assert not seen.values[~seen.valid].any()


LIMITS = {"reflectance_1e4": (1, 7000), "DN": (0, 12_000), "dB": (-40, 8), "K": (250, 325), "ratio": (-50, 50)}


@EVERY
def test_values_lie_where_a_sensors_values_lie(key):
    for theme in ("flood", "species", "town"):
        seen = of_theme(theme, 60.0 if MODALITIES[key].gsd_m < 1 else 250.0).observe(key)
        for number, record in enumerate(seen.modality.bands):
            values = seen.values[..., number, :, :][seen.valid[..., number, :, :]]
            low, high = LIMITS[record.unit]
            if record.unit == "DN" and not seen.modality.is_radar:
                high = 255
            assert low <= np.percentile(values, 0.5) <= np.percentile(values, 99.5) <= high, record.name


def test_leaves_are_green_in_summer_and_needles_all_year():
    tile = of_theme("species", 600.0)
    trees, seen = tile.raster("species", 10.0) >= 0, tile.observe("s2", count=12)
    green = np.array([np.median(index[trees]) for index in ndvi(seen)[seen.valid.all((1, 2, 3))]])
    assert green.min() > 0.1
    assert green.max() > 0.5


def test_water_is_dark_to_the_near_infrared_and_to_radar():
    tile = of_theme("flood", 2000.0)
    cover = tile.raster("land_cover", 10.0)
    water = np.all([np.roll(cover == WATER, (r, c), (0, 1)) for r in range(-1, 2) for c in range(-1, 2)], axis=0)
    seen, radar = tile.observe("s2", count=4), tile.observe("s1", count=4)
    nir = band(seen, "nir")[seen.valid[:, 0] & ~water]
    assert water.sum() > 20
    assert np.median(band(seen, "nir")[:, water][seen.valid[:, 0][:, water]]) < 500 < np.median(nir)
    assert np.median(band(radar, "VV")[:, water]) < -17
    assert -16 < np.median(band(radar, "VV")[:, cover == FOREST]) < -8


def test_summer_forest_is_greener_than_winter_forest():
    tile = of_theme("species", 320.0)
    seen = tile.observe("s2", count=12)
    clear = seen.valid.all((1, 2, 3))
    months = seen.dates.astype("datetime64[M]").astype(int) % 12 + 1
    broadleaf = np.isin(tile.raster("species", 10.0), (2, 3, 4))
    green = np.array([np.median(index[broadleaf]) for index in ndvi(seen)])
    assert (
        green[clear & np.isin(months, (6, 7, 8))].mean() > green[clear & np.isin(months, (12, 1, 2, 3))].mean() + 0.15
    )


def test_sent_and_received_alike_is_stronger_than_crossed():
    for key, strong, weak in (("s1", "VV", "VH"), ("s1-asc", "VV", "VH"), ("alos", "HH", "HV")):
        seen = of_theme("crop", 600.0).observe(key)
        assert np.median(band(seen, strong) - band(seen, weak)) > 0
        assert (band(seen, strong) > band(seen, weak)).mean() > 0.95


def test_radar_speckle_is_that_of_a_few_looks():
    tile = of_theme("species", 320.0)
    values = tile.observe("s1", count=30).in_units("linear").values[:, 0]
    quiet = values / np.median(values, axis=(1, 2), keepdims=True)
    assert 0.25 < np.median(quiet.std(0) / quiet.mean(0)) < 0.6


def test_sensors_see_the_same_place():
    tile = of_theme("town", 320.0)
    photo = tile.observe("aerial", dates=SUMMER)
    blocks = photo.values.reshape(4, 32, 50, 32, 50).mean((2, 4))
    red = blocks[photo.modality.find_band("red")]
    for key in ("s2", "l8", "planet"):
        seen = tile.observe(key, dates=SUMMER, gsd_m=10.0, keep_clouds=True)
        other = band(seen, "red").reshape(32, 32)
        assert np.corrcoef(red.ravel(), other.ravel())[0, 1] > 0.6, key


def test_one_modis_pixel_is_the_mean_of_its_ground():
    tile = of_theme("crop", 60.0)
    modis = MODALITIES["modis"]
    fine = replace(modis, key="modis-fine", gsd_m=10.0, covers_tile=False)
    dates = tile.dates("modis", 4)
    coarse = tile.observe("modis", dates=dates).values[..., 0, 0]
    seen = tile.observe(fine, dates=dates, extent_m=250.0)
    clear = seen.valid.all((1, 2, 3)) & (coarse[:, 0] > 0)
    assert clear.any()
    np.testing.assert_allclose(coarse[clear], seen.values.mean((2, 3))[clear], rtol=0.1, atol=60)


def test_a_users_own_record_is_seen_too():
    bands = (
        Band(name="green", unit="reflectance", wavelength_nm=550),
        Band(name="T", unit="K"),
        Band(name="height", unit="m"),
    )
    own = Modality(key="drone", sensor="my drone", bands=bands, gsd_m=0.5, is_temporal=False)
    seen = of_theme("species", 60.0).observe(own)
    assert seen.units == ("reflectance", "K", "m")
    green, kelvin, height = (np.median(seen.values[number]) for number in range(3))
    assert 0.01 < green < 0.2
    assert 270 < kelvin < 320
    assert 3 < height < 40


@EVERY
@pytest.mark.parametrize("count", [1, 12, 61])
def test_dates_are_as_many_as_asked_in_order_and_of_the_year(key, count):
    dates = World(1).tile(0, extent_m=60.0, year=2019).dates(key, count)
    assert len(np.unique(dates)) == count
    assert (np.diff(dates).astype(int) > 0).all()
    assert set(dates.astype("datetime64[Y]").astype(str)) == {"2019"}


def test_dates_keep_the_revisit_of_the_sensor():
    tile = World(0).tile(0, extent_m=60.0)
    for key, days in (("s2", 5), ("s1", 6), ("s1-asc", 12), ("l8", 16), ("modis", 8)):
        assert not (np.diff(tile.dates(key, 8)).astype(int) % days).any()


def test_more_dates_than_days_are_refused():
    with pytest.raises(InputError, match="s2, count of dates: expected 1 to 365 in a year, got 400"):
        World(0).tile(0, extent_m=60.0).dates("s2", 400)


def test_clouds_are_masked_or_kept_bright_and_hide_no_radar():
    tile = World(0).tile(2, extent_m=1280.0)
    dates = np.arange("2020-01-03", "2020-12-20", 15, dtype="datetime64[D]")
    masked, kept = (tile.observe("s2", dates=dates, keep_clouds=kept) for kept in (False, True))
    assert kept.valid.all()
    assert 0.2 < masked.valid.mean() < 0.9
    np.testing.assert_array_equal(masked.values, kept.values * masked.valid)
    thick = np.percentile(kept.values[:, 0][~masked.valid[:, 0]], 60)
    assert thick > 5000
    assert tile.observe("s1", dates=dates).valid.all()


def test_landsat_7_has_gaps_since_its_scan_line_corrector_failed():
    tiles = [World(0).tile(1, extent_m=3000.0, year=year) for year in (2002, 2010)]
    shares = [tile.observe("l7", count=4, keep_clouds=True).valid.mean() for tile in tiles]
    assert shares[0] == 1
    assert 0.7 < shares[1] < 0.9


def flood_dates(seed=0):
    days = np.arange("2020-03-01", "2020-11-01", dtype="datetime64[D]")
    reach = [flood_reach(seed, day) for day in days]
    return days[[int(np.argmin(reach)), int(np.argmax(reach))]]


def test_a_flood_is_seen_by_radar_and_near_infrared_on_its_dates():
    low, high = flood_dates()
    tile = of_theme("flood", 1000.0)
    dry, wet = (tile.raster("flood", 10.0, date=day) for day in (low, high))
    open_land = np.isin(tile.raster("land_cover", 10.0), [CROPLAND, FACTORS["land_cover"].index("bare")])
    flooded = (wet == 1) & (dry == 0) & open_land
    assert flooded.sum() > 200
    before, during = (tile.observe("s1", dates=[day]) for day in (low, high))
    assert np.median((band(during, "VV") - band(before, "VV"))[0][flooded]) < -3
    seen = tile.observe(replace(MODALITIES["s2"], key="s2-like"), dates=[low, high], keep_clouds=True)
    assert np.median(band(seen, "B11")[1][flooded]) < np.median(band(seen, "B11")[1][(wet == 0) & open_land]) or (
        seen.values[1].min() > 3000
    )


def test_a_map_of_floods_without_a_date_is_of_the_whole_year():
    tile = of_theme("flood", 1000.0)
    on_a_day = tile.raster("flood", 10.0, date=flood_dates()[1])
    assert (tile.raster("flood", 10.0) >= on_a_day).all()


def before_and_after(tile, factor, name):
    """Median of a band over what the event hit, in the year before it and in the year after."""
    hit = tile.raster(factor, 10.0) == 1
    medians = []
    for year in (tile.year - 1, tile.year + 1):
        seen = replace(tile, year=tile.year).observe("s2", dates=[f"{year}-07-{day}" for day in (12, 17, 22)])
        values = np.where(seen.valid.all(1), ndvi(seen) if name == "ndvi" else band(seen, name), np.nan)
        values = values[:, hit]
        medians.append(np.nanmedian(values) if np.isfinite(values).any() else np.nan)
    return medians


@pytest.mark.parametrize(("factor", "name", "fall"), [("change", "ndvi", 0.06), ("burn", "ndvi", 0.03)])
def test_what_is_cut_or_burnt_loses_its_green(factor, name, fall):
    falls = []
    for after in range(0, 36, 6):
        tile = of_theme(factor, 320.0, after)
        if (tile.raster(factor, 10.0) == 1).sum() > 30:
            first, second = before_and_after(tile, factor, name)
            falls.append(first - second)
    assert len(falls) >= 4
    assert np.nanmedian(falls) > fall


def test_events_happen_between_two_dates_of_the_year():
    for factor in ("change", "burn"):
        tile = of_theme(factor, 640.0)
        maps = [
            tile.raster(factor, 10.0, date=np.datetime64(day)) for day in ("2020-01-02", "2020-07-01", "2020-12-31")
        ]
        assert not maps[0].any()
        assert (maps[1] <= maps[2]).all()
        assert maps[2].any()


def test_many_tiles_have_something_to_learn():
    tiles = [World(5).tile(index, extent_m=320.0) for index in range(18)]
    for factor, least in (("species", 7), ("crop", 7), ("change", 3), ("flood", 2), ("burn", 2)):
        found = [len(np.unique(tile.raster(factor, 20.0))) > 1 for tile in tiles]
        assert sum(found) >= least, factor


def test_heights_and_biomass_are_those_of_trees_and_houses():
    tile = of_theme("species", 320.0)
    height, biomass = tile.height_m(10.0), tile.biomass(10.0)
    trees = tile.raster("species", 10.0) >= 0
    assert 5 < np.median(height[trees]) < 35
    assert height.max() < 50
    assert 40 < np.median(biomass[trees]) < 450
    assert height.dtype == np.float32


def test_shares_are_of_the_whole_tile():
    tile = of_theme("species", 320.0)
    assert tile.fractions("land_cover").sum() == pytest.approx(1)
    assert tile.fractions("species").sum() == pytest.approx((tile.raster("species", 10.0) >= 0).mean())


def test_an_unknown_factor_names_the_closest():
    with pytest.raises(UnknownNameError, match="unknown factor of the world 'specie'; closest: species"):
        World(0).tile(0, extent_m=60.0).raster("specie", 10.0)


DIGEST = """
import hashlib, sys
from anysat.data.world import World
for seed in sys.argv[1:]:
    tile, digest = World(int(seed)).tile(1, extent_m=60.0), hashlib.sha256()
    for key in ("aerial-flair", "s2", "s1", "alos", "modis", "l8"):
        digest.update(tile.observe(key).values.tobytes())
    for factor in ("land_cover", "crop", "flood"):
        digest.update(tile.raster(factor, 10.0).tobytes())
    print(digest.hexdigest())
"""


def test_the_same_seed_gives_the_same_bytes_in_another_process_and_another_seed_others():
    one, two = (
        subprocess.run(
            [sys.executable, "-c", DIGEST, *seeds], capture_output=True, text=True, check=True
        ).stdout.split()
        for seeds in (["7", "8"], ["7"])
    )
    assert one[0] == two[0] != one[1]


def test_nobody_tuned_the_parameters():
    parts = [stored.VERSION, stored.KNOTS_NM, stored.ENDMEMBERS, stored.POLARISATIONS]
    parts += [[asdict(material) for material in stored.MATERIALS], asdict(stored.PARAMETERS)]
    parts += [{key: asdict(optics) for key, optics in stored.SENSORS.items()}]
    content = json.dumps(parts, sort_keys=True).encode()
    assert hashlib.sha256(content).hexdigest() == stored.PARAMETERS_SHA256


SUMMARY = {
    ("aerial", 3): [229.667, 92.468, 71.639, 81.172],
    ("s2", 3): [601.125, 882.718, 845.162, 1360.546, 2436.718, 3072.991, 3346.949, 3467.981, 2285.097, 1319.231],
    ("s1", 3): [-12.326, -17.87, 0.696],
    ("l8", 3): [867.104, 542.903, 578.889, 882.493, 849.229, 3423.451, 2260.215, 1298.069, 55.583, 285.172, 284.586],
    ("alos", 3): [4409.417, 2396.75, 1.895],
    ("modis", 3): [643.333, 2737.667, 403.333, 656.333, 2799.667, 1854.0, 1159.333],
    ("aerial-flair", 5): [93.094, 92.136, 80.487, 177.794, 0.106],
    ("naip", 11): [128.998, 118.748, 87.445, 234.193],
    ("s2", 0): [650.74, 948.137, 963.966, 1330.37, 2088.185, 2547.308, 2756.623, 2846.979, 2198.979, 1463.404],
    ("s1", 0): [-11.149, -17.522, 0.619],
    ("s2", 4): [382.935, 549.116, 576.241, 856.537, 1398.981, 1731.366, 1902.398, 1983.764, 1606.468, 1011.495],
}
"""Mean values of tiles of world 0, 60 m wide: forest, town, river, burn."""


@pytest.mark.parametrize(("key", "number"), SUMMARY)
def test_a_stored_tile_looks_as_it_did(key, number):
    """Whatever moves a number of the map moves one of these; libraries of another machine do not."""
    seen = World(0).tile(number, extent_m=60.0).observe(key, **({"count": 6} if MODALITIES[key].is_temporal else {}))
    means = [band(seen, name)[seen.valid[..., n, :, :]].mean() for n, name in enumerate(seen.modality.band_names)]
    np.testing.assert_allclose(means, SUMMARY[key, number], rtol=2e-3, atol=2e-3)


def difficulty():
    path = Path(__file__).parents[3] / "benchmarks" / "world_difficulty.py"
    spec = importlib.util.spec_from_file_location("world_difficulty", path)
    module = sys.modules["world_difficulty"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_linear_model_on_statistics_gets_part_of_the_way_on_every_task():
    """The benchmark with fewer tiles, so with a margin around its 40 to 80 %."""
    for task, (linear, ceiling) in difficulty().measure(0, 42).items():
        assert 0.25 < linear / ceiling < 0.88, (task, linear, ceiling)


def make(*words):
    return main(["world", "make", *map(str, words)])


def test_make_writes_a_dataset_and_says_what_to_do_next(tmp_path, capsys):
    assert make(tmp_path / "d", "--layout", "treesatai_ts", "--form", "training", "--tiles", 2) == 0
    said = capsys.readouterr().out
    assert f"anysat datasets check treesatai_ts {tmp_path / 'd'}" in said
    assert "2 generated tiles in the training layout of TreeSatAI-TS" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d"]
    assert make(tmp_path / "e", "--layout", "biomassters", "--form", "training", "--tiles", 1) == 0
    assert "3 generated tiles" in capsys.readouterr().out  # of which each list has one


def test_make_gives_the_same_files_for_the_same_seed(tmp_path):
    def digests(name, seed):
        make(tmp_path / name, "--layout", "treesatai_ts", "--tiles", 1, "--seed", seed)
        files = sorted(path for path in (tmp_path / name).rglob("*.tif"))
        return [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]

    one, same, other = digests("a", 1), digests("b", 1), digests("c", 2)
    assert one == same != other


def test_make_refuses_a_folder_that_holds_something(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("keep me")
    assert make(tmp_path, "--layout", "treesatai_ts", "--tiles", 1) == 2
    assert f"{tmp_path} exists; give another name, or replace it with --overwrite true" in capsys.readouterr().err
    assert (tmp_path / "mine.txt").read_text() == "keep me"


def test_make_replaces_a_folder_when_told_to(tmp_path):
    out = tmp_path / "d"
    out.mkdir()
    (out / "old.txt").write_text("old")
    assert make(out, "--layout", "treesatai_ts", "--tiles", 1, "--overwrite", "true") == 0
    assert not (out / "old.txt").exists()
    assert (out / "sentinel-ts").is_dir()


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError("disk full")])
def test_make_that_is_stopped_leaves_nothing_and_keeps_what_was_there(tmp_path, monkeypatch, stop):
    out = tmp_path / "d"
    out.mkdir()
    (out / "old.txt").write_text("old")

    def stopped(*_, **__):
        raise stop

    monkeypatch.setattr(WorldTile, "observe", stopped)
    assert make(out, "--layout", "treesatai_ts", "--tiles", 1, "--overwrite", "true") != 0
    assert [path.name for path in tmp_path.iterdir()] == ["d"]
    assert (out / "old.txt").read_text() == "old"


@pytest.mark.parametrize("held", [[], ["old.txt"]])
def test_make_writes_into_the_folder_that_a_link_leads_to(tmp_path, held):
    (tmp_path / "disk" / "d").mkdir(parents=True)
    (tmp_path / "here").mkdir()
    for name in held:
        (tmp_path / "disk" / "d" / name).write_text("old")
    link = tmp_path / "here" / "link"
    link.symlink_to(tmp_path / "disk" / "d")
    words = ("--overwrite", "true") if held else ()
    assert make(link, "--layout", "so2sat", "--tiles", 1, *words) == 0
    assert link.is_symlink()
    assert sorted(path.suffix for path in (tmp_path / "disk" / "d").iterdir()) == [".h5"] * 3
    assert [len(list((tmp_path / folder).iterdir())) for folder in ("disk", "here")] == [1, 1]


def test_make_names_the_layouts_a_dataset_has(tmp_path, capsys):
    assert make(tmp_path / "d", "--layout", "treesatai_ts", "--form", "trainig") == 2
    assert "unknown layout of treesatai_ts 'trainig'; closest: training" in capsys.readouterr().err


def test_a_world_tells_which_tile_is_asked_for():
    asked = []
    World(0, on_tile=asked.append).tile(4, extent_m=60.0)
    assert asked == [4]
