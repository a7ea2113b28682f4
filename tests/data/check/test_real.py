"""Findings on bright ground, on real imagery of nine sources, on days counted from 0 and on files nobody sampled."""

from pathlib import Path

import numpy as np
import pytest

from anysat.batch import Tile
from anysat.data.base import Samples
from anysat.data.check import CHECKS, check_dataset, find, look
from anysat.data.check.evidence import Evidence, see_tile
from anysat.data.check.files import look_up
from anysat.data.layout import DatasetFolder
from anysat.data.open import find_dataset, open_dataset
from anysat.modalities import MODALITIES
from anysat.observation import Observation
from miniatures import copied, miniature

VALUE_KINDS = [kind for kind, check in CHECKS.items() if check.find.__module__.endswith((".values", ".offset"))]
GREEN = np.array([250, 450, 300, 700, 1900, 2300, 2500, 2600, 1600, 700.0])
DESERT = np.array([1150, 1650, 2450, 2700, 2800, 2900, 3000, 3100, 3600, 3300.0])


def findings_of(tiles):
    """(severity, kind, message) of the rules about values on tiles in memory."""
    record = find_dataset("treesatai_ts")
    rng = np.random.default_rng(0)
    evidence = Evidence(
        record=record, folder=DatasetFolder(Path(), record.layouts[0]), samples=Samples(id=["0"], split=["train"]),
        tiles=tuple(see_tile(tile, str(index), "train", rng) for index, tile in enumerate(tiles)), files=(), unread=(),
        is_complete=True,
    )  # fmt: skip
    return [(one.severity, one.kind, one.message) for kind in VALUE_KINDS for one in find(kind, evidence)]


def ground(spectrum, first="2020-01-05", count=40, step=10, seed=0):
    """A series of one kind of ground: brightness varies by pixel and date, every fifth date is under clouds."""
    rng = np.random.default_rng(seed)
    dates = np.datetime64(first) + step * np.arange(count)
    factor = rng.uniform(0.9, 1.4, (count, 1, 8, 8)) * rng.uniform(0.95, 1.1, (count, 10, 1, 1))
    values = spectrum[:, None, None] * factor
    values[::5] = rng.uniform(5000, 9000, (len(values[::5]), 1, 8, 8)) * rng.uniform(0.9, 1.1, (1, 10, 8, 8))
    return values, dates


def tile_of(values, dates):
    return Tile.of(Observation.of(MODALITIES["s2"], values, dates=dates))


def test_a_desert_among_green_tiles_is_no_offset():
    tiles = [tile_of(*ground(GREEN, seed=seed)) for seed in range(19)]
    assert findings_of([*tiles, tile_of(*ground(DESERT, seed=19))]) == []


@pytest.mark.parametrize("first", ["2020-01-05", "2023-01-05"])
def test_a_dataset_of_deserts_only_has_no_offset(first):
    assert findings_of([tile_of(*ground(DESERT, first, seed=seed)) for seed in range(10)]) == []


def clouded_at_the_end(seed):
    values, dates = ground(GREEN, "2021-03-05", 39, seed=seed)
    late = dates >= np.datetime64("2022-01-25")
    assert late.sum() >= 5
    values[late] = np.random.default_rng(seed).uniform(1500, 6000, (late.sum(), 10, 8, 8))
    return tile_of(values, dates)


def test_clouds_until_a_series_ends_in_march_2022_are_no_offset():
    assert findings_of([clouded_at_the_end(seed) for seed in range(10)]) == []


def with_offset(values, dates):
    return tile_of(values + 1000.0 * (dates >= np.datetime64("2022-01-25"))[:, None, None, None], dates)


@pytest.mark.parametrize("spectrum", [GREEN, DESERT])
def test_an_offset_from_january_2022_is_an_error(spectrum):
    found = findings_of([with_offset(*ground(spectrum, "2021-03-05", 70, seed=seed)) for seed in range(5)])
    assert [(severity, kind) for severity, kind, _ in found] == [("error", "offset")]


def test_an_offset_that_lasts_weeks_only_is_not_judged():
    assert findings_of([with_offset(*ground(GREEN, "2021-03-05", 38, seed=seed)) for seed in range(5)]) == []


def test_a_raised_level_is_a_warning_that_asks_for_the_baseline():
    values, dates = ground(GREEN, "2023-01-05")
    ((severity, kind, message),) = findings_of([tile_of(values + 1000, dates)])
    assert (severity, kind) == ("warning", "raised-level")
    assert message.endswith("subtract 1000 only if it says so")


def test_a_landsat_at_the_same_level_has_no_offset():
    values, dates = ground(GREEN)
    seen = Observation.of(MODALITIES["l7"], values[:, [0, 1, 2, 6, 8, 9]] + 1000, dates=dates)
    assert findings_of([Tile.of(seen)]) == []


def archive(path):
    with np.load(path) as found:
        return {name: found[name] for name in found.files}


def raster(path):
    rasterio = pytest.importorskip("rasterio")
    with rasterio.open(path) as file:
        return file.read()


def observed(key, values, bands, unit, dates=None, **masks):
    return Tile.of(Observation.of(MODALITIES[key], values, bands=bands, units=unit, dates=dates, **masks))


def one_date(key, path_values, bands, unit, **masks):
    return observed(key, path_values[None], bands, unit, ["2017-06-15"], **masks)


def larger(values, factor=2):
    return values.repeat(factor, -1).repeat(factor, -2)


BANDS_10M, BANDS_20M = ["B2", "B3", "B4", "B8"], ["B5", "B6", "B7", "B8A", "B11", "B12"]


def crop_sentinel2(data):
    found = archive(data / "crop_patches_multisensor/00002806639B424A.npz")
    values = np.concatenate([found["s2_10m"], larger(found["s2_20m"])], axis=1)
    yield observed("s2", values, BANDS_10M + BANDS_20M, "reflectance_1e4", found["s2_dates"], nodata=0)


def crop_sentinel1(data):
    for path in sorted((data / "crop_patches_multisensor").glob("*.npz")):
        found = archive(path)
        yield observed("s1-asc", found["s1"], ["VV", "VH"], "dB", found["s1_dates"])


def crop_landsat8(data):
    for name in ("00002806639B424A", "000028085BF08E7E"):
        found = archive(data / f"crop_patches_multisensor/{name}.npz")
        values = found["l8"][:, :6]
        yield observed("l8", values, [f"B{band}" for band in range(2, 8)], "reflectance_1e4", found["l8_dates"],
                       valid=(values > 0) & (values < 65535))  # fmt: skip


def landsat7(data):
    found = archive(data / "landsat7/landsat7_toa_clouds.npz")
    yield one_date("l7", found["img"], found["bands"].tolist(), "reflectance")


def landsat8(data):
    values = raster(data / "landsat8/LC80200392015216_30m.tif")
    yield one_date("l8", values, [f"B{band}" for band in (1, 2, 3, 4, 5, 6, 7, 9, 10, 11)], "DN", nodata=0)


def naip(data):
    yield observed("naip", raster(next((data / "naip").glob("*.tif"))), ["R", "G", "B", "NIR"], "DN")


def terramesh_sentinel2(data):
    for path in sorted((data / "terramesh_s1s2/S2L2A").glob("*.tif")):
        values = raster(path)[[1, 2, 3, 4, 5, 6, 7, 8, 10, 11]]
        yield one_date("s2", values, [band.name for band in MODALITIES["s2"].bands], "reflectance_1e4")


def terramesh_sentinel1(data):
    for path in sorted((data / "terramesh_s1s2/S1RTC").glob("*.tif")):
        yield one_date("s1", raster(path), ["VV", "VH"], "dB")


def bigearthnet_sentinel2(data):
    for folder in sorted((data / "bigearthnet/S2").iterdir()):
        fine, coarse = (
            [raster(next(folder.glob(f"*_B{band[1:]:0>2}.tif")))[0] for band in bands]
            for bands in (BANDS_10M, BANDS_20M)
        )
        values = np.stack([*fine, *(larger(band) for band in coarse)])
        yield one_date("s2", values, BANDS_10M + BANDS_20M, "reflectance_1e4")


def bigearthnet_sentinel1(data):
    for folder in sorted((data / "bigearthnet/S1").iterdir()):
        values = np.stack([raster(next(folder.glob(f"*_{band}.tif")))[0] for band in ("VV", "VH")])
        yield one_date("s1", values, ["VV", "VH"], "dB")


def sentinel2_l1c(data):
    fine, coarse = (raster(data / f"sentinel2_l1c/S2_{gsd}m.tif") for gsd in (10, 20))
    yield one_date("s2", np.concatenate([fine, larger(coarse)]), BANDS_10M + BANDS_20M, "reflectance_1e4", nodata=0)


def modis(data):
    found = archive(data / "modis_mato_grosso/cube_porto_dos_gauchos.npz")
    places = [found["bands"].tolist().index(name) for name in ("red", "nir", "blue", "mir")]
    dates = np.datetime64("2007-09-14") + 16 * np.arange(len(found["series"]))
    yield observed("modis", found["series"][:, places], ["B1", "B2", "B3", "B7"], "reflectance_1e4", dates,
                   nodata=-32768)  # fmt: skip


REAL = [
    crop_sentinel2, crop_sentinel1, crop_landsat8, landsat7, landsat8, naip, terramesh_sentinel2, terramesh_sentinel1,
    bigearthnet_sentinel2, bigearthnet_sentinel1, sentinel2_l1c, modis,
]  # fmt: skip


@pytest.mark.parametrize("source", REAL)
def test_nothing_is_found_in_the_values_of_real_imagery(source, shared_data):
    assert findings_of(list(source(shared_data))) == []


def renamed(root, stem, day):
    """Give the first scene another day."""
    for path in sorted(root.glob(f"*/*{stem}*")):
        path.rename(path.with_name(path.name.replace(stem, day)))


def burn_scars(tmp_path):
    root = copied("hls_burn_scars", tmp_path)
    row = open_dataset("hls_burn_scars", root, "all").samples.row(0)
    return root, f"{row['mgrs']}.{row['day']}", row["mgrs"]


def unreadable(root):
    return [
        finding.message for finding in check_dataset("hls_burn_scars", root).findings
        if finding.kind == "unreadable-sample"
    ]  # fmt: skip


@pytest.mark.parametrize("day", ["2020000", "2019366", "2020367"])
def test_a_day_that_the_year_does_not_have_is_found_in_names(day, tmp_path):
    root, stem, place = burn_scars(tmp_path)
    renamed(root, stem, f"{place}.{day}")
    (message,) = unreadable(root)
    assert "counted from 001" in message


@pytest.mark.parametrize("day", ["2020001", "2020366", "2019365"])
def test_the_ends_of_a_year_are_days(day, tmp_path):
    root, stem, place = burn_scars(tmp_path)
    renamed(root, stem, f"{place}.{day}")
    assert unreadable(root) == []


@pytest.fixture
def one_sampled(tmp_path):
    """A folder, and the photo of a tile that a check of one sample does not open."""
    root = copied("treesatai_ts", tmp_path)
    opened = {tile.id for tile in look(open_dataset("treesatai_ts", root, "train"), 1).tiles}
    rows = open_dataset("treesatai_ts", root, "train").samples
    photo = next(row["id"] for row in rows if row["id"] not in opened)
    return root, root / f"aerial/{photo}.tif"


def kinds(root):
    found = check_dataset("treesatai_ts", root, "train", samples=1).findings
    return [(one.kind, one.where) for one in found if one.kind.endswith("-file")]


def test_a_missing_file_is_found_though_its_tile_is_not_sampled(one_sampled):
    root, path = one_sampled
    path.unlink()
    assert kinds(root) == [("missing-file", f"aerial: aerial/{path.name}")]


def test_a_file_without_bytes_is_found_though_its_tile_is_not_sampled(one_sampled):
    root, path = one_sampled
    path.write_bytes(b"")
    assert kinds(root) == [("unreadable-file", f"aerial: aerial/{path.name}")]


def test_the_report_says_of_how_many_tiles_files_were_looked_up():
    assert check_dataset("treesatai_ts", miniature("treesatai_ts"), samples=1).num_looked_up == 6


def test_a_huge_dataset_is_looked_up_evenly():
    dataset = open_dataset("treesatai_ts", miniature("treesatai_ts"), "all")
    per_tile = look_up(dataset.folder, dataset.samples, set(), limit=2)[0]
    assert 1 <= per_tile <= 2


def test_a_file_of_many_samples_is_one_missing_file(tmp_path):
    dataset = open_dataset("treesatai_ts", miniature("treesatai_ts"), "all")
    samples = dataset.samples.take(np.zeros(50, int))
    _, absent = look_up(DatasetFolder(tmp_path, dataset.folder.layout), samples, set())
    assert len(absent) == len({file.path for file in absent})
