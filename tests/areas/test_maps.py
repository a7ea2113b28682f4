"""Maps of areas: a predictor answers window by window, and the blended answers are those of tiles."""

from dataclasses import replace

import numpy as np
import pytest
import shapely
import zarr

from anysat.areas.run import run_here
from anysat.areas.sizes import Load, choose_sizes
from anysat.areas.units import UnitFiles
from anysat.areas.windows import Windowing
from anysat.batch import Batch, Tile
from anysat.geo.area import Span
from anysat.modalities import MODALITIES
from anysat.model.config import ModelConfig
from anysat.tasks.predictor import Predictor
from area_builders import CROPS, HEIGHT, KIND, LABELS, LEFT, TOP, Waves, area, map_job, map_store, predictor, waves


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
    (read,) = work.read(0, ground.span)
    plain, *others = (np.isnan(work._answered([read.tile], number, ground.span.shape)) for number in range(4))
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


class Cloudy(Waves):
    """Waves with a cloud at another place on each date. Dates on which nothing was seen are left out, as of files."""

    def observe(self, geobox, **options):
        seen, how = super().observe(geobox, **options)
        if seen.dates is None:
            return seen, how
        x = geobox.affine.c - LEFT + geobox.affine.a * (np.arange(geobox.width) + 0.5)
        y = TOP - geobox.affine.f - geobox.affine.e * (np.arange(geobox.height) + 0.5)
        place = np.searchsorted(self.dates, seen.dates)[:, None]
        is_cloud = (abs(y - 90 * place) < 110)[:, None, :, None] & (abs(x - 400 + 70 * place) < 150)[:, None, None]
        valid = seen.valid & ~is_cloud
        kept = valid.any((1, 2, 3))
        kept[0] |= not kept.any()
        values = np.where(valid, seen.values, 0)[kept]
        return replace(seen, values=values, valid=valid[kept], dates=seen.dates[kept]), how


@pytest.mark.parametrize(
    ("target", "keys", "options"),
    [
        (CROPS, ("s2", "s1"), {"probabilities": True}),
        (HEIGHT, ("s2", "s1"), {"variants": 5}),
        (KIND, ("s1", "s2"), {"variants": 5, "probabilities": True}),
        (LABELS, ("modis", "s2"), {}),
    ],
)
def test_blocks_of_windows_change_nothing(tmp_path, target, keys, options):
    """Not of windows at edges, with their own clouds, and of which one sensor, another, both or none saw something."""
    wanted = shapely.Point(LEFT + 150, TOP - 120).buffer(160)
    holes = [(LEFT + 90, TOP - 90, 70), (LEFT + 130, TOP - 130, 80 if "s1" in keys else 20)]
    sources = {key: Cloudy(MODALITIES[key], name=key, num_dates=6, hole=hole)
               for key, hole in zip(keys, holes, strict=True)}  # fmt: skip
    made, ground = predictor(target, keys=keys), area(11, 13, wanted=wanted)
    one, other = (
        mapped(
            map_job(made, sources, ground, tmp_path, side=4, overlap=0.25, across=across, **options),
            tmp_path / f"{across}.zarr",
        )
        for across in (1, 3)
    )
    for name, (values, seen) in one.items():
        np.testing.assert_allclose(other[name][0], values, rtol=1e-6, atol=1e-5, equal_nan=True)
        np.testing.assert_array_equal(other[name][1], seen)
        assert 0 < seen.sum() < seen.size


@pytest.mark.parametrize("target", [CROPS, KIND])
def test_a_window_of_which_only_context_was_seen_has_no_answer(tmp_path, target):
    """Patches of 20 m hold no pixel of 250 m, so that such a window has no patches. Embeddings are NaN there, too."""
    s2 = waves("s2", hole=(LEFT + 40, TOP - 40, 70))
    made, ground = predictor(target, keys=("s2", "modis")), area(8, 8)
    work = map_job(made, s2 | waves("modis"), ground, tmp_path, side=4, overlap=0.0)
    assert [read.tile is None for read in work.read(0, Span(0, 4, 0, 4))] == [True]
    _, seen = mapped(work, tmp_path / "a.zarr")["class"]
    assert not seen[: len(seen) // 2, : len(seen) // 2].any()
    assert seen[len(seen) // 2 :].any()


def test_a_block_is_read_once_and_its_windows_are_one_batch(tmp_path, monkeypatch):
    sizes, predict, sources = [], Predictor.predict, waves("s2")
    monkeypatch.setattr(Predictor, "predict", lambda made, batch: sizes.append(len(batch)) or predict(made, batch))
    made, ground = predictor(KIND, keys=("s2",)), area(9, 9, shard=16)
    mapped(map_job(made, sources, ground, tmp_path, side=3, overlap=0.0, across=2), tmp_path / "a.zarr")
    assert sizes == [4, 2, 2, 1]
    assert sorted(tuple(box.shape) for box in sources["s2"].reads) == [(6, 6), (6, 12), (12, 6), (12, 12)]


def test_blocks_of_windows_fit_the_memory():
    load, windowing = Load(values=40_000, modalities=1, dim=768), Windowing(side=6)
    sizes = [
        choose_sizes(load, windowing, ModelConfig.base(), memory_gb=gb, readers=2, blocks=range(60, 0, -6))
        for gb in (2, 4, 64)
    ]
    assert [one.block for one in sizes] == [6, 24, 60]
    assert all(one.peak_bytes <= gb * 1e9 for one, gb in zip(sizes, (2, 4, 64), strict=True))


def test_variants_that_agree_leave_no_uncertainty():
    from anysat.areas.maps import _disagreement

    same = np.full((3, 2, 2, 2), 0.5, np.float32)
    assert _disagreement(same, CROPS).max() < 1e-6
    apart = np.array([[1, 0], [0, 1]], np.float32)[:, None, None]
    assert _disagreement(apart, CROPS)[0, 0] == pytest.approx(np.log(2), rel=1e-5)
