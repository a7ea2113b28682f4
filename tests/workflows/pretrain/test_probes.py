"""Probes of the labelled handful while an encoder is pretrained: told from other tiles, and beside the bands."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from anysat.batch import Tile
from anysat.data.base import Target
from anysat.modalities import MODALITIES
from anysat.observation import Observation
from anysat.workflows.pretrain import probes
from anysat.workflows.pretrain.probes import Labelled, band_statistics, scores

CLASSES = ("wood", "field")


def target(level):
    return Target(name="cover", kind="class", level=level, classes=CLASSES, gsd_m=10.0 if level == "pixel" else None)


def radar(seed, side=6, dates=3, cover=0, **changes):
    """A tile of 60 m with a class, of radar with a gap."""
    rng = np.random.default_rng(seed)
    values = rng.normal(-12, 3, (dates, 2, side, side))
    values[0, :, 0, 0] = np.nan
    seen = Observation.of(
        MODALITIES["s1"], values, bands=["VV", "VH"], dates=[f"2020-0{n + 1}-10" for n in range(dates)]
    )
    return Tile.of(seen, id=str(seed), targets={"cover": np.array(cover)}, **changes)


def handful(features, tiles, labels):
    return Labelled(features=features, labels=torch.as_tensor(labels), tiles=torch.as_tensor(tiles))


def test_a_class_that_lies_along_one_axis_is_found_by_the_linear_probe_alone():
    rng = np.random.default_rng(0)
    labels, tiles = np.arange(160) % 2, np.arange(160) // 20
    features = rng.normal(size=(160, 12)) * 10
    features[:, 0] = labels
    found = scores(handful(torch.from_numpy(features), tiles, labels))
    assert found["linear"] == 1
    assert found["neighbours"] < 0.7
    assert found["linear_chance"] == found["neighbours_chance"] == 0.5


def test_the_linear_probe_finds_a_rare_class_as_well_as_a_frequent_one():
    labels, tiles = (np.arange(2000) % 50 == 0).astype(int), np.arange(2000) // 200
    features = np.random.default_rng(0).normal(size=(2000, 1)) + 2.0 * labels[:, None]
    assert scores(handful(torch.from_numpy(features), tiles, labels))["linear"] > 0.75


def test_the_penalty_of_the_linear_probe_is_chosen_between_tiles(monkeypatch):
    """Four samples of a tile are much alike, so each would tell the others with the smallest penalty."""
    rng = np.random.default_rng(0)
    tiles = np.repeat(np.arange(60), 4)
    labels = rng.permutation(60)[tiles] % 2
    features = rng.normal(size=(60, 60))[tiles] + 0.1 * rng.normal(size=(240, 60))
    features[:, 0] += 2 * labels - 1
    given = handful(torch.from_numpy(features), tiles, labels)
    chosen = scores(given)["linear"]
    monkeypatch.setattr(probes, "_PENALTIES", probes._PENALTIES[-1:])
    assert chosen > scores(given)["linear"] + 0.05


@pytest.mark.parametrize("labels", [[5, 5, 5, 2], [0, 0, 1], [0, 1, 2], [3, 7, 3, 7, 7, 3]])
def test_few_tiles_and_classes_that_a_fold_lacks_are_no_hindrance(labels):
    found = scores(handful(torch.eye(len(labels)), range(len(labels)), labels))
    assert 0 <= found["linear"] <= 1


def test_vectors_that_only_know_their_tile_tell_no_class():
    tiles = np.arange(160) // 20
    labels = (tiles // 4) % 2  # two of each fold: one of each class
    found = scores(handful(torch.eye(8)[tiles], tiles, labels))
    assert found["linear"] <= 0.5
    assert found["neighbours"] <= 0.5


def test_vectors_that_are_all_equal_score_chance():
    found = scores(handful(torch.zeros(90, 4), np.arange(90) // 9, np.arange(90) % 3))
    assert found["linear"] == pytest.approx(found["linear_chance"]) == pytest.approx(1 / 3)


def test_two_tiles_have_neighbours_and_no_linear_probe():
    found = scores(handful(torch.eye(8), [0] * 4 + [1] * 4, [0, 1] * 4))
    assert found.keys() == {"neighbours", "neighbours_chance"}


def test_one_class_is_not_asked_for():
    assert scores(handful(torch.eye(8), range(8), [0] * 8)) == {}


def test_patches_have_the_commonest_class_of_their_pixels():
    raster = np.array([[0, 0, 1, 1], [0, 1, 1, 1], [-1, -1, 1, 0], [-1, -1, 0, 0]])
    tiles = [Tile.of(*radar(0).observations.values(), id="a", targets={"cover": raster})]
    found = Labelled.of(torch.arange(4.0).reshape(1, 2, 2, 1), tiles, target("pixel"))
    assert found.labels.tolist() == [0, 1, 0]
    assert found.features.ravel().tolist() == [0, 1, 3]


def test_tiles_without_a_label_are_left_out_whatever_number_marks_them():
    marked = replace(target("tile"), ignore=9)
    found = Labelled.of(
        torch.zeros(4, 1, 1, 2), [radar(n, cover=cover) for n, cover in enumerate([0, 9, 1, -1])], marked
    )
    assert (found.labels.tolist(), found.tiles.tolist()) == ([0, 1], [0, 2])


def test_vectors_nobody_saw_are_left_out():
    vectors = torch.tensor([[1.0], [torch.nan], [3.0]])[:, None, None]
    found = Labelled.of(vectors, [radar(n, cover=n % 2) for n in range(3)], target("tile"))
    assert found.tiles.tolist() == [0, 2]
    assert found.labels.tolist() == [0, 0]


def test_statistics_of_bands_equal_loops():
    tiles = [radar(0), radar(1)]
    found = band_statistics(tiles, 2, 3).numpy()
    for n, tile in enumerate(tiles):
        seen = tile.observations["s1"]
        known = np.where(seen.valid, seen.values, np.nan)
        for row, col in np.ndindex(2, 3):
            expected = []
            for over_dates in (np.nanmean, np.nanstd):
                pixels = over_dates(known[:, :, row * 3 :, col * 2 :][:, :, :3, :2], axis=0)
                expected.append((np.nanmean(pixels, axis=(1, 2)), np.nanstd(pixels, axis=(1, 2))))
            (mean, mean_spread), (deviation, deviation_spread) = expected
            wanted = [*mean, *deviation, *mean_spread, *deviation_spread]
            assert found[n, row, col] == pytest.approx(wanted, abs=1e-5)


def test_statistics_of_a_tile_without_a_modality_are_the_mean_of_the_others():
    optical = Observation.of(MODALITIES["s2"], np.full((1, 10, 6, 6), 2000.0), dates=["2020-06-01"])
    with_both = Tile.of(*radar(0).observations.values(), optical, id="both")
    found = band_statistics([with_both, radar(1)], 1, 1)
    assert found[1, 0, 0, -40:].tolist() == found[0, 0, 0, -40:].tolist()
    assert bool(found.isfinite().all())


def test_one_pixel_over_the_tile_is_the_same_in_every_patch():
    values = np.arange(14.0).reshape(2, 7, 1, 1) * 100
    tile = Tile.of(
        Observation.of(MODALITIES["modis"], values, dates=["2020-06-01", "2020-07-01"]),
        *radar(0).observations.values(), id="a",
    )  # fmt: skip
    found = band_statistics([tile], 2, 3)[0]
    assert bool((found[..., :14] == found[0, 0, :14]).all())
    assert not bool((found[..., 14:] == found[0, 0, 14:]).all())
