"""Maps of areas: a predictor answers window by window, and the blended answers are those of tiles."""

from dataclasses import replace

import numpy as np
import pytest
import zarr

from anysat.areas.run import run_here
from anysat.areas.units import UnitFiles
from anysat.batch import Batch, Tile
from area_builders import CROPS, HEIGHT, KIND, LABELS, LEFT, TOP, area, map_job, map_store, predictor, waves


def mapped(work, final):
    """Values and validity by layout of a job that was run."""
    store = map_store(work, final)
    run_here(replace(work, kept=UnitFiles(store.partial / "between")), store)
    group = zarr.open_group(store.finish(), mode="r")
    return {name: (group[name][name][0], group[name]["valid"][0]) for name in store.layouts}


def answered(made, sources, ground):
    tile = Tile.of(*(s.observe(ground.covering(ground.span, s.modality))[0] for s in sources.values()))
    return made.predict(Batch.of([tile]))


@pytest.mark.parametrize("shard", [8, 4])
def test_a_map_of_one_window_is_the_answer_for_the_tile(tmp_path, shard):
    made, sources, ground = predictor(CROPS), waves("s2", "s1"), area(6, 7, shard=shard)
    found = mapped(map_job(made, sources, ground, tmp_path, probabilities=True), tmp_path / "a.zarr")
    tile = answered(made, sources, ground)
    np.testing.assert_allclose(np.moveaxis(found["probability"][0], 0, -1), tile.probabilities[0], atol=1e-5)
    np.testing.assert_array_equal(found["class"][0], tile.answer[0])


def test_values_are_mapped_with_nothing_where_nobody_saw(tmp_path):
    sources = waves("s2", "s1", hole=(LEFT + 60, TOP - 60, 25))
    made, ground = predictor(HEIGHT), area(6, 7)
    values, seen = mapped(map_job(made, sources, ground, tmp_path), tmp_path / "a.zarr")["value"]
    tile = answered(made, sources, ground).answer[0].numpy()
    np.testing.assert_allclose(values, tile, atol=1e-5, equal_nan=True)
    assert 0 < (~seen).sum() < seen.size
    np.testing.assert_array_equal(seen, np.isfinite(tile))


def test_shards_change_nothing_where_windows_overlap(tmp_path):
    made, sources = predictor(CROPS), waves("s2", "s1")
    one, other = (
        mapped(
            map_job(made, sources, area(19, 21, shard=shard), tmp_path, probabilities=True), tmp_path / f"{shard}.zarr"
        )
        for shard in (32, 4)
    )
    np.testing.assert_allclose(one["probability"][0], other["probability"][0], atol=1e-5)
    assert (one["class"][0] == other["class"][0]).mean() > 0.999


def test_a_target_of_tiles_is_answered_for_every_window(tmp_path):
    made, sources, ground = predictor(KIND), waves("s2", "s1"), area(8, 8)
    shares, seen = mapped(
        map_job(made, sources, ground, tmp_path, side=4, overlap=0.0, probabilities=True), tmp_path / "a.zarr"
    )["probability"]
    corner = area(4, 4)
    np.testing.assert_allclose(shares[:, 1, 2], answered(made, sources, corner).probabilities[0], atol=1e-5)
    assert seen.all()
    windows = shares[0].reshape(2, 4, 2, 4).swapaxes(1, 2).reshape(4, 16)
    assert np.ptp(windows, axis=1).max() < 1e-5
    assert np.ptp(windows[:, 0]) > 1e-3


def test_labels_are_mapped_as_probabilities(tmp_path):
    made, sources, ground = predictor(LABELS), waves("s2", "s1"), area(8, 8)
    shares, _ = mapped(map_job(made, sources, ground, tmp_path, side=8), tmp_path / "a.zarr")["probability"]
    np.testing.assert_allclose(shares[:, 3, 3], answered(made, sources, ground).probabilities[0], atol=1e-5)


@pytest.mark.parametrize("target", [CROPS, HEIGHT])
def test_variants_are_put_the_right_way_round(tmp_path, target):
    made, sources, ground = predictor(target), waves("s2", "s1", hole=(LEFT + 40, TOP - 25, 11)), area(6, 7)
    work = map_job(made, sources, ground, tmp_path, variants=4)
    tile = work.read(0, ground.span).tile
    plain, *others = (np.isnan(work._answered(tile, number, ground.span.shape)) for number in range(4))
    assert plain.any()
    for seen in others:
        np.testing.assert_array_equal(seen, plain)


@pytest.mark.parametrize("target", [CROPS, HEIGHT, KIND])
def test_variants_leave_an_uncertainty_everywhere(tmp_path, target):
    made, sources, ground = predictor(target), waves("s2", "s1"), area(6, 7)
    doubt, seen = mapped(map_job(made, sources, ground, tmp_path, variants=8), tmp_path / "a.zarr")["uncertainty"]
    assert seen.all()
    assert (doubt >= 0).all()
    assert doubt.max() > 1e-4


def test_variants_that_agree_leave_no_uncertainty():
    from anysat.areas.maps import _disagreement

    same = np.full((3, 2, 2, 2), 0.5, np.float32)
    assert _disagreement(same, CROPS).max() < 1e-6
    apart = np.array([[1, 0], [0, 1]], np.float32)[:, None, None]
    assert _disagreement(apart, CROPS)[0, 0] == pytest.approx(np.log(2), rel=1e-5)
