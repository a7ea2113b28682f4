"""Areas: what is computed does not depend on how the ground was cut, who computed it, or how often it was stopped."""

import numpy as np
import pytest
import torch

from anysat.areas.run import run_here
from anysat.areas.sample import measure_places
from anysat.areas.sizes import Load
from anysat.areas.windows import Blend, Seams, Windowing, fade
from anysat.batch import Batch, Tile
from anysat.geo.area import Span
from anysat.modalities import MODALITIES
from area_builders import LEFT, PERIOD, TOP, Waves, area, arrays_of, job, small_model, store_of, waves


def embedded(work, final, **options):
    store, work = store_of(work, final, **options)
    run_here(work, store)
    return arrays_of(store.finish())


def as_tile(sources, ground):
    return Tile.of(*(source.observe(ground.covering(ground.span, source.modality))[0] for source in sources.values()))


def test_an_area_of_one_window_is_a_tile(tmp_path):
    model, sources, ground = small_model("s2", "s1"), waves("s2", "s1"), area(6, 5)
    vectors, valid = embedded(job(model, sources, ground, tmp_path / "t"), tmp_path / "a.zarr")
    with torch.inference_mode():
        tile = model.encode(Batch.of([as_tile(sources, ground)]), 20.0)
    np.testing.assert_allclose(vectors[0], tile.patch[0].numpy(), rtol=0, atol=1e-5)
    assert valid.all()


def test_dense_embeddings_of_one_window_are_those_of_a_tile(tmp_path):
    model, sources, ground = small_model("s2", "s1"), waves("s2", "s1"), area(6, 5, shard=4)
    work = job(model, sources, ground, tmp_path / "t", dense="s2", block=2)
    store, work = store_of(work, tmp_path / "a.zarr")
    run_here(work, store)
    vectors, valid = arrays_of(store.finish(), "dense")
    with torch.inference_mode():
        tile = model.encode(Batch.of([as_tile(sources, ground)]), 20.0, dense="s2")
    np.testing.assert_allclose(vectors[0], tile.dense[0].numpy(), rtol=0, atol=1e-5)
    assert valid.all()


@pytest.mark.parametrize("dense", [None, "s2"])
def test_what_lies_on_disk_between_the_steps_is_known_before(tmp_path, dense):
    sources = waves("s2", "s1")
    work = job(small_model("s2", "s1"), sources, area(8, 8), tmp_path / "t", dense=dense)
    work.keep(work.units[0], [work.encode(0, span, work.read(0, span)) for span in work.blocks(work.units[0])])
    (file,) = (tmp_path / "t").iterdir()
    load = Load.of(sources, 20.0, work.model.config.dim, None if dense is None else MODALITIES[dense])
    assert file.stat().st_size == pytest.approx(64 * load.tokens_bytes, rel=0.02)


@pytest.mark.parametrize(("shard", "block", "first"), [(8, 4, (0, 0)), (4, 4, (0, 0)), (16, 2, (3, 5)), (4, 1, (1, 2))])
def test_tokens_do_not_depend_on_how_the_ground_is_cut(tmp_path, shard, block, first):
    model, sources = small_model("s2"), waves("s2", hole=(LEFT + 130, TOP - 90, 33))
    plain = job(model, sources, area(12, 14, shard=16), tmp_path / "a", block=16)
    cut = job(model, sources, area(12 - first[0], 14 - first[1], shard=shard, first=first), tmp_path / "b", block=block)
    whole, parts = plain.encode(0, plain.area.span, plain.read(0, plain.area.span)), {}
    for span in (span for unit in cut.units for span in cut.blocks(unit)):
        parts[span] = cut.encode(0, span, cut.read(0, span))
    for span, found in parts.items():
        there = Span(span.top + first[0], span.bottom + first[0], span.left + first[1], span.right + first[1]).slices
        nothing = np.zeros((*span.shape, model.config.dim), np.float32), np.zeros(span.shape, bool)
        vectors, valid = found.patch.get("s2", nothing)
        np.testing.assert_array_equal(valid, whole.patch["s2"][1][there])
        np.testing.assert_allclose(vectors[valid], whole.patch["s2"][0][there][valid], rtol=0, atol=1e-5)


def test_shards_and_blocks_change_nothing_that_is_written(tmp_path):
    model, sources = small_model("s2", "s1"), waves("s2", "s1", hole=(LEFT + 130, TOP - 90, 33))
    first = embedded(job(model, sources, area(21, 19, shard=32), tmp_path / "t", block=32), tmp_path / "a.zarr")
    second = embedded(job(model, sources, area(21, 19, shard=4), tmp_path / "t", block=2), tmp_path / "b.zarr")
    np.testing.assert_array_equal(first[1], second[1])
    np.testing.assert_allclose(first[0], second[0], rtol=0, atol=2e-5, equal_nan=True)


def test_what_nobody_saw_or_wanted_is_nan(tmp_path):
    from shapely.geometry import box

    hole = (LEFT + 130, TOP - 90, 33)
    wanted = box(LEFT, TOP - 200, LEFT + 250, TOP)
    model, sources = small_model("s2"), waves("s2", hole=hole)
    vectors, valid = embedded(job(model, sources, area(14, 16, wanted=wanted), tmp_path / "t"), tmp_path / "a.zarr")
    assert valid[0, :10, :13].sum() < 130  # the hole
    assert not valid[0, 10:].any()
    assert not valid[0, :, 13:].any()
    assert np.isnan(vectors[~valid]).all()
    assert np.isfinite(vectors[valid]).all()


def test_context_is_seen_by_every_window(tmp_path):
    model, ground = small_model("s2", "modis"), area(6, 5)
    plain = embedded(job(model, waves("s2"), ground, tmp_path / "t"), tmp_path / "a.zarr")
    beside = embedded(job(model, waves("s2", "modis"), ground, tmp_path / "t"), tmp_path / "b.zarr")
    with torch.inference_mode():
        tile = model.encode(Batch.of([as_tile(waves("s2", "modis"), ground)]), 20.0)
    np.testing.assert_allclose(beside[0][0], tile.patch[0].numpy(), rtol=0, atol=1e-5)
    assert np.abs(beside[0] - plain[0]).max() > 1e-3


def test_context_alone_makes_patches(tmp_path):
    model, sources = small_model("modis"), waves("modis")
    ground = area(3, 4, patch_size_m=250.0)
    vectors, valid = embedded(job(model, sources, ground, tmp_path / "t"), tmp_path / "a.zarr")
    with torch.inference_mode():
        tile = model.encode(Batch.of([as_tile(sources, ground)]), 250.0)
    np.testing.assert_allclose(vectors[0], tile.patch[0].numpy(), rtol=0, atol=1e-5)
    assert valid.all()


def test_each_period_sees_its_own_dates(tmp_path):
    model, sources, ground = small_model("s2"), waves("s2", num_dates=6), area(5, 5)
    halves = ((PERIOD[0], np.datetime64("2020-06-30")), (np.datetime64("2020-07-01"), PERIOD[1]))
    both = embedded(job(model, sources, ground, tmp_path / "t", periods=halves), tmp_path / "a.zarr")
    second = embedded(job(model, sources, ground, tmp_path / "t", periods=halves[1:]), tmp_path / "b.zarr")
    np.testing.assert_array_equal(both[0][1], second[0][0])
    assert np.abs(both[0][0] - both[0][1]).max() > 1e-3


def test_going_on_after_a_stop_gives_the_same_bits(tmp_path):
    model, sources = small_model("s2", "s1"), waves("s2", "s1")
    work = job(model, sources, area(19, 17, shard=8), tmp_path / "t")
    plain = embedded(work, tmp_path / "a.zarr")

    class Stop(Exception):
        pass

    def tick(done, _):
        if done in stops:
            stops.discard(done)
            raise Stop

    stops = {2, 7, 11}
    for _ in range(3):
        store, going = store_of(work, tmp_path / "b.zarr")
        with pytest.raises(Stop):
            run_here(going, store, tick)
        store.close()
    again = embedded(work, tmp_path / "b.zarr")
    np.testing.assert_array_equal(plain[0], again[0])


def test_every_pixel_is_read_once(tmp_path):
    model, sources = small_model("s2"), waves("s2")
    work = job(model, sources, area(19, 17, shard=8), tmp_path / "t")
    embedded(work, tmp_path / "a.zarr")
    assert sum(grid.height * grid.width for grid in sources["s2"].reads) == 19 * 17 * 4


def test_an_input_that_fails_is_tried_again_and_then_told(tmp_path, monkeypatch):
    monkeypatch.setattr("anysat.areas.job.RETRY_AFTER_S", 0.0)
    model, ground = small_model("s2", "s1"), area(6, 5)
    good = embedded(job(model, waves("s2", "s1"), ground, tmp_path / "t", block=8), tmp_path / "a.zarr")
    once = waves("s1") | {"s2": Waves(MODALITIES["s2"], name="s2", fails=2)}
    healed = embedded(job(model, once, ground, tmp_path / "t", block=8), tmp_path / "b.zarr")
    np.testing.assert_array_equal(good[0], healed[0])

    broken = waves("s1") | {"s2": Waves(MODALITIES["s2"], name="s2", fails=-1)}
    store, work = store_of(job(model, broken, ground, tmp_path / "t", block=8), tmp_path / "c.zarr")
    run_here(work, store)
    (notes,) = [kept for _, kept in store.notes()]
    alone = embedded(job(model, waves("s1"), ground, tmp_path / "t", block=8), tmp_path / "d.zarr")
    np.testing.assert_allclose(arrays_of(store.finish())[0], alone[0], atol=1e-6)
    assert notes["unreadable"] == ["s2: the disk said no"]


def test_windows_cover_everything_and_weights_add_up():
    for length, side, overlap in [(1, 8, 0.5), (8, 8, 0.5), (9, 8, 0.5), (50, 8, 0.25), (33, 16, 0.75)]:
        ground, windowing = area(length, length + 3), Windowing(side=side, overlap=overlap)
        blend = Blend(ground.span, 2)
        for window in windowing.touching(ground, ground.span):
            ones = np.ones((*window.shape, 2), np.float32)
            blend.add(window, ones, np.ones(window.shape, bool), fade(window.shape))
        values, seen = blend.result()
        assert seen.all()
        np.testing.assert_allclose(values, 1, rtol=1e-6)


@pytest.mark.parametrize("side", [1, 3, 8, 16])
@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.5, 0.75])
def test_what_windows_reach_is_what_they_touch(side, overlap):
    windowing, rng = Windowing(side=side, overlap=overlap), np.random.default_rng(side)
    for _ in range(40):
        ground = area(*rng.integers(1, 40, 2).tolist(), shard=4)
        span = ground.shard_span(*(int(rng.integers(0, count)) for count in ground.shards))
        windows = windowing.touching(ground, span)
        whole = Span(windows[0].top, windows[-1].bottom, windows[0].left, windows[-1].right)
        assert windowing.around(ground, span) == whole
        tops, lefts = (windowing.starts(length) for length in ground.span.shape)
        rows, cols = windowing.shape(ground)
        every = [Span(top, top + rows, left, left + cols) for top in tops for left in lefts]
        assert windows == [window for window in every if not window.shared_with(span).is_empty()]
        for count in (1, 2, 5):
            parts = [windowing.cut(block) for block in windowing.cut(whole, count)]
            assert max(map(len, parts)) <= count**2
            assert sorted(window for part in parts for window in part) == windows


def test_the_seam_score_is_one_without_seams_and_more_with():
    ground, windowing = area(40, 40), Windowing(side=8, overlap=0.0)
    rng = np.random.default_rng(0)
    smooth = rng.normal(size=(40, 40, 4)).astype(np.float32)
    seen = np.ones((40, 40), bool)
    assert abs(Seams.of(smooth, seen, ground.span, ground, windowing).score - 1) < 0.05
    stepped = smooth + 5 * rng.normal(size=(5, 5, 4)).repeat(8, 0).repeat(8, 1).astype(np.float32)
    assert Seams.of(stepped, seen, ground.span, ground, windowing).score > 1.5


def test_what_places_add_is_found_and_taken_away(tmp_path):
    """Windows of other ground have in common what their places add; without it, little."""
    model, sources = small_model("s2"), waves("s2")
    work = job(model, sources, area(64, 64, shard=16), tmp_path / "t", block=8)
    tokens = [work.encode(0, span, work.read(0, span)) for span in work.area.span.cut(8)]
    windows = np.stack([work.fuse_window(0, one)["patch"][0] for one in tokens]).astype(np.float64)

    def share(found):
        found = found - found.mean((0, 1, 2))
        return (found.mean(0) ** 2).mean() / (found**2).mean() - 1 / len(found)

    assert share(windows) > 0.1
    assert share(windows - measure_places(work).corrections) < share(windows) / 4


def test_what_places_add_is_found_where_the_first_period_saw_nothing(tmp_path):
    before = (np.datetime64("2019-01-01"), np.datetime64("2019-12-31"))
    model, sources = small_model("s2"), waves("s2")
    work = job(model, sources, area(32, 32, shard=16), tmp_path / "t", block=4, periods=(before, PERIOD))
    assert np.abs(measure_places(work).corrections).max() > 0.1


def test_rasters_without_a_place_on_the_way_are_not_warned_of(tmp_path):
    """While one thread warps, rasterio's silence about its own arrays is undone by another."""
    import warnings

    from rasterio.errors import NotGeoreferencedWarning

    class Loud(Waves):
        def _read(self, geobox):
            warnings.warn("Dataset has no geotransform", NotGeoreferencedWarning, stacklevel=2)
            return True

    sources = {"s2": Loud(MODALITIES["s2"], name="s2")}
    vectors, _ = embedded(job(small_model("s2"), sources, area(6, 5), tmp_path / "t"), tmp_path / "a.zarr")
    assert np.isfinite(vectors).all()
