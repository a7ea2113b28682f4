"""The real labelled tasks: what the files are said to hold, no ground in two folds, no fill taken for a value."""

import numpy as np
import pretraining_real
import pytest
import torch
from real import features, parcels, points, protocol, scores
from real.tasks import SMOKE, TASKS, load

from anysat.batch import Batch
from anysat.errors import MissingFileError, UnknownNameError
from anysat.modalities import MODALITIES
from real_builders import made_task, once

SCORED = sorted(set(TASKS) - SMOKE)
RANGES = {"s2": (0, 20_000), "s1": (-50, 15), "modis": (0, 10_000)}
JULY, JANUARY = 6, 0


@pytest.fixture
def task(request, shared_data):
    return once(request.param, shared_data)


every = pytest.mark.parametrize("task", SCORED, indirect=True)


def columns(path):
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def series(task, key, *bands):
    """Values and validity (band tile time) of single pixels."""
    at = [MODALITIES[key].find_band(band) for band in bands]
    seen = [tile.observations[key] for tile in task.tiles]
    values, valid = np.stack([one.values for one in seen]), np.stack([one.valid for one in seen])
    return values[:, :, at, 0, 0].transpose(2, 0, 1), valid[:, :, at, 0, 0].transpose(2, 0, 1)


def counts(task):
    number, count = np.unique(task.truth(), return_counts=True)
    return {task.target.classes[n]: int(c) for n, c in zip(number, count, strict=True)}


def test_crops_of_canada_are_the_nine_of_60_points_or_more(shared_data):
    assert counts(once("crop_canada", shared_data)) == {
        "Permanent grass crops": 691, "Spring wheat": 499, "Soya beans": 421, "Maize": 398, "Winter wheat": 166,
        "Unknown": 157, "Other Leguminous crops - Permanent": 72, "Potatoes": 70, "Spring barley": 66,
    }  # fmt: skip


def test_land_uses_are_the_1559_points_of_nine_classes(shared_data):
    found = counts(once("landuse_modis", shared_data))
    assert len(found) == 9
    assert sum(found.values()) == 1559
    assert found["Forest"] == 96


def test_land_covers_have_30_points_or_more(shared_data):
    found = counts(once("landcover_global", shared_data))
    assert sum(found.values()) == 407
    assert found["temporary crops"] == 123
    assert min(found.values()) == found["water"] == 30


def test_fuel_moisture_is_in_percent_at_101_places(shared_data):
    task = once("fuel_moisture", shared_data)
    truth = task.truth()
    assert len(truth) == 1578
    assert 40 < truth.min() < truth.max() < 320
    assert len(np.unique(columns(shared_data / "s1s2_pixel_tasks/fuel_moisture.npz")["latlon"], axis=0)) == 101


def test_parcels_are_the_pixels_of_the_crops_both_patches_have(shared_data):
    task = once("parcels_belgium", shared_data)
    fold, truth = task.folds[task.places()[:, 0]], task.truth()
    assert np.bincount(truth[fold != protocol.TEST]).tolist() == [1249, 835, 25]
    assert np.bincount(truth[fold == protocol.TEST]).tolist() == [1277, 1102, 445]
    assert set(np.unique(truth[fold == protocol.VALIDATION])) == {0, 1}


@every
def test_no_group_is_in_two_folds(task):
    pairs = np.unique(np.stack([task.groups, task.folds]), axis=1)
    assert len(np.unique(pairs[0])) == pairs.shape[1]


@every
def test_every_tested_sample_is_tested_once_and_never_trained_on(task):
    tested = np.zeros(len(task.tiles), int)
    for train, test in task.splits():
        assert not (train & test).any()
        assert not set(task.groups[train]) & set(task.groups[test])
        tested += test
    assert (tested == (task.folds == protocol.TEST if task.is_official else 1)).all()


@every
def test_dates_are_real_and_increase(task):
    for tile in task.tiles:
        for seen in tile.observations.values():
            assert (np.diff(seen.dates).astype(int) > 0).all()
            assert np.datetime64("2000-09-01") < seen.dates[0] < seen.dates[-1] < np.datetime64("2022-01-01")


@every
def test_valid_values_are_finite_and_physically_possible(task):
    for tile in task.tiles:
        for key, seen in tile.observations.items():
            bands = [n for n, band in enumerate(seen.modality.bands) if band.ratio_of is None]
            values = seen.values[:, bands][seen.valid[:, bands]]
            assert np.isfinite(seen.values).all()
            assert RANGES[key][0] <= values.min(initial=0)
            assert values.max(initial=0) <= RANGES[key][1]


@every
def test_an_encoder_takes_the_tiles(task, nano):
    with pytest.warns(UserWarning, match="statistics"), torch.inference_mode():
        found = nano.encode(Batch.of([task.tiles[0], task.tiles[-1]]), task.patch_size_m)
    assert found.tile.isfinite().all()


@pytest.mark.parametrize(
    ("name", "path"),
    [("crop_canada", "crop_points_canada/canada2017_monthly_s1s2.npz"),
     ("landcover_global", "crop_points_global/global500_monthly_s1s2.npz")],
)  # fmt: skip
def test_fill_is_never_valid_and_all_else_is(name, path, shared_data):
    z, task = columns(shared_data / path), once(name, shared_data)
    ids = z["sample_id"] if "sample_id" in z else np.arange(len(z["lat"]))
    rows = np.flatnonzero(np.isin(ids.astype(str), [tile.id for tile in task.tiles]))
    for key in ("s2", "s1"):
        _, valid = series(task, key, *z[f"{key}_bands"])
        stored = z[key][rows].transpose(2, 0, 1)
        assert (valid == ((stored != 65535) & (stored != 0))).all()
        assert not valid.all()


def test_bands_that_a_source_lacks_are_invalid(shared_data):
    assert not series(once("crop_canada", shared_data), "s2", "B8A")[1].any()
    assert not series(once("landuse_modis", shared_data), "modis", "B4", "B5", "B6")[1].any()
    assert not series(once("parcels_belgium", shared_data), "s2", "B2", "B3", "B4", "B8")[1].any()


def test_radar_without_echo_is_invalid(shared_data):
    values, valid = series(once("fuel_moisture", shared_data), "s1", "VV", "VH")
    assert (~valid).sum() == 5
    assert values[valid].min() > points.NO_ECHO_DB


def test_months_of_the_composites_are_those_of_the_file(shared_data):
    stored = columns(shared_data / "s1s2_pixel_tasks/fuel_moisture.npz")["month"]
    for tile, months in zip(once("fuel_moisture", shared_data).tiles, stored, strict=True):
        begins = tile.observations["s2"].dates - 15
        assert (begins.astype("datetime64[M]").astype(int) % 12).tolist() == months.tolist()
        assert np.diff(begins).astype(int).tolist() == [30, 30]


def test_crops_are_green_in_july_and_not_in_january(shared_data):
    task = once("crop_canada", shared_data)
    (red, nir), (valid, _) = series(task, "s2", "B4", "B8")
    assert task.tiles[0].observations["s2"].dates[[JANUARY, JULY]].astype(str).tolist() == ["2017-01-15", "2017-07-15"]
    ndvi = np.where(valid, (nir - red) / np.maximum(nir + red, 1), np.nan)
    assert np.nanmedian(ndvi[:, JULY]) > 0.5 > 0.2 > np.nanmedian(ndvi[:, JANUARY])


def test_vegetation_of_the_north_is_greenest_in_summer_whatever_the_start(shared_data):
    task = once("landcover_global", shared_data)
    (red, nir), valid = series(task, "s2", "B4", "B8")
    ndvi = np.where(valid.all(0), (nir - red) / np.maximum(nir + red, 1), np.nan)
    z = columns(shared_data / "crop_points_global/global500_monthly_s1s2.npz")
    north = z["lat"][[int(tile.id) for tile in task.tiles]] > 40
    month = np.stack([t.observations["s2"].dates for t in task.tiles]).astype("datetime64[M]").astype(int) % 12
    seen = ndvi[north], month[north]
    assert np.nanmean(seen[0][np.isin(seen[1], (5, 6, 7))]) > np.nanmean(seen[0][np.isin(seen[1], (11, 0, 1))]) + 0.1


@pytest.mark.parametrize(
    ("name", "key", "low", "high", "index", "path"),
    [("landuse_modis", "modis", "B1", "B2", "ndvi", "modis_mato_grosso/points_9classes.npz"),
     ("fuel_moisture", "s2", "B3", "B7", "NDVI", "s1s2_pixel_tasks/fuel_moisture.npz")],
)  # fmt: skip
def test_bands_give_the_index_that_the_file_holds(name, key, low, high, index, path, shared_data):
    """What the fuel moisture file calls NDVI was made from B7 and B3; its bands are as they are called."""
    z = columns(shared_data / path)
    names = (z["bands"] if "bands" in z else z["channels"]).tolist()
    (one, other), valid = series(once(name, shared_data), key, low, high)
    error = np.abs((other - one) / np.maximum(other + one, 1) - z["series"][..., names.index(index)])
    assert np.median(error[valid.all(0)]) < 1e-3


def test_maize_is_harvested_between_july_and_october(shared_data):
    task = once("parcels_belgium", shared_data)
    for part in (protocol.TRAIN, protocol.TEST):
        index = {7: [], 10: []}
        for tile in (t for t, fold in zip(task.tiles, task.folds, strict=True) if fold == part):
            seen, maize = tile.observations["s2"], tile.targets["crop"] == 0
            edge, nir = (seen.values[:, MODALITIES["s2"].find_band(band)] for band in ("B5", "B8A"))
            year = seen.dates.max().astype("datetime64[Y]")
            for month, found in index.items():
                at = seen.dates.astype("datetime64[M]") == year + np.timedelta64(month - 1, "M")
                ok = seen.valid[at, MODALITIES["s2"].find_band("B5")] & maize
                found.append(((nir - edge) / np.maximum(nir + edge, 1))[at][ok])
        assert np.median(np.concatenate(index[7])) > np.median(np.concatenate(index[10])) + 0.2


def test_like_polarised_radar_is_the_stronger(shared_data):
    for name in ("crop_canada", "landcover_global", "fuel_moisture", "parcels_belgium"):
        (vv, vh), valid = series(once(name, shared_data), "s1", "VV", "VH")
        assert 4 < np.median((vv - vh)[valid.all(0)]) < 9


def test_patches_of_the_parcels_do_not_overlap(shared_data):
    task = once("parcels_belgium", shared_data)
    boxes = [tile.geobox.boundingbox for tile in task.tiles]
    assert {str(tile.geobox.crs) for tile in task.tiles} == {"EPSG:32631"}
    for n, one in enumerate(boxes):
        assert (one.right - one.left, one.top - one.bottom) == (160, 160)
        for other in boxes[:n]:
            assert min(one.right, other.right) <= max(one.left, other.left) or (
                min(one.top, other.top) <= max(one.bottom, other.bottom)
            )


def test_series_of_both_patches_have_the_same_half_months(shared_data):
    first, last = (once("parcels_belgium", shared_data).tiles[n].observations for n in (0, -1))
    for key in ("s2", "s1"):
        halves = [parcels._half_months(seen[key].dates) for seen in (first, last)]
        assert (halves[1] - halves[0] == 24).all()
        assert len(halves[0]) == 32


def test_fold_0_of_the_crops_is_what_pretraining_never_sees(shared_data):
    task = once("crop_canada", shared_data)
    seen = set(pretraining_real.points(shared_data).ids)
    assert [tile.id in seen for tile in task.tiles] == (task.folds != 0).tolist()


def test_trees_are_five_tiles_of_all_sensors(shared_data):
    task = once("trees_smoke", shared_data)
    assert task.truth().shape == (5, 15)
    assert set(task.tiles[0].observations) == {"aerial", "s2", "s1-asc", "s1-des"}


def test_unknown_tasks_and_absent_folders_are_refused(tmp_path):
    with pytest.raises(UnknownNameError, match="crop_canada"):
        load("crop_canda", tmp_path)
    with pytest.raises(MissingFileError, match="folder of the real data"):
        load("crop_canada", tmp_path / "nothing")


def test_folds_are_whole_groups_and_spread_a_class_of_few_groups():
    groups = np.repeat(np.arange(30), 10)
    labels = np.where(groups < 5, 1, 0)
    folds = protocol.blocked_folds(groups, labels)
    assert np.bincount(folds[labels == 1]).tolist() == [10] * 5
    assert all(len(set(folds[groups == group])) == 1 for group in range(30))


def test_a_missing_date_has_the_mean_of_the_others():
    task = made_task()
    found = features.samples(task).features
    assert np.allclose(found["series"][0, :2], found["series"][0, 2:])
    assert np.allclose(found["statistics"][0, :2], task.tiles[0].observations["s1-asc"].values[0, :, 0, 0])
    assert np.allclose(found["statistics"][0, 2:], 0)


def test_scores_equal_their_definitions():
    rng = np.random.default_rng(0)
    truth, answers, groups = rng.integers(3, size=200), rng.integers(3, size=(2, 200)), np.arange(200) // 10
    found = scores.score(truth, answers, groups, num_classes=3)
    recalls, f1 = [], []
    for run in answers:
        hits = [np.sum((run == c) & (truth == c)) for c in range(3)]
        recalls.append(np.mean([hit / np.sum(truth == c) for c, hit in enumerate(hits)]))
        f1.append(np.mean([2 * hit / (np.sum(truth == c) + np.sum(run == c)) for c, hit in enumerate(hits)]))
    assert found["accuracy"]["score"] == pytest.approx(np.mean(answers == truth))
    assert found["balanced accuracy"]["seeds"] == pytest.approx(recalls)
    assert found["macro F1"]["seeds"] == pytest.approx(f1)
    low, high = found["accuracy"]["interval"]
    assert low < found["accuracy"]["score"] < high
    values = rng.normal(size=200) + 5
    found = scores.score(values, values[None] + 0.5, groups)
    assert found["RMSE"]["score"] == pytest.approx(0.5)
    assert found["R2"]["score"] == pytest.approx(1 - 0.25 / values.var())


def test_a_model_does_not_differ_from_itself():
    rng = np.random.default_rng(0)
    truth, answers = rng.integers(3, size=90), rng.integers(3, size=(1, 90))
    for found in scores.difference(truth, answers, answers, np.arange(90) // 9, num_classes=3).values():
        assert found == {"difference": 0, "interval": [0, 0]}


def test_simple_models_find_what_is_there_and_see_no_test_label():
    pytest.importorskip("sklearn")
    from real import simple

    task = made_task()
    asked = features.samples(task)
    model = simple.MODELS["linear"]
    answers, _ = simple.answered(task, asked, asked.features["series"], model)
    assert np.mean(answers == asked.truth) > 0.9
    hidden = task.folds == 0
    turned = features.Samples(asked.features, np.where(hidden, 1 - asked.truth, asked.truth), asked.groups, asked.tile)
    again, _ = simple.answered(task, turned, asked.features["series"], model)
    assert (again[:, hidden] == answers[:, hidden]).all()


def test_the_command_skips_where_there_is_no_folder(tmp_path, monkeypatch, capsys):
    pytest.importorskip("sklearn")
    from real import simple

    options = ["run", "crop_canada", "--data", tmp_path / "none", "--json", tmp_path / "out.json"]
    monkeypatch.setattr("sys.argv", ["simple.py", *map(str, options)])
    simple.main()
    assert capsys.readouterr().out.startswith("skipped: there is no folder")
    assert not list(tmp_path.iterdir())
