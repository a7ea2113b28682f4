"""Overlapping crops at test time: FLAIR's five against an obvious loop, and five of any tile."""

import json

import numpy as np
import pytest
import torch

from anysat import AnySat, ModelConfig
from anysat.batch import Batch, Tile
from anysat.cli import main
from anysat.data.open import find_dataset, open_dataset
from anysat.data.transforms import extent_m, five_corners
from anysat.errors import InputError
from anysat.modalities import MODALITIES
from anysat.normalise import Normaliser
from anysat.observation import Observation
from anysat.tasks.base import make_task
from anysat.tasks.crops import crops_of, five_crops, outputs_of_crops, predict_crops, score_crops
from anysat.tasks.predictor import Predictor, View
from labelled import randomise
from miniatures import miniature

KEYS = ("aerial-flair", "s2")
NUM_CLASSES, VOID = 12, 12
LAND_COVER = find_dataset("world").target("land_cover")


@pytest.fixture(scope="module")
def flair():
    """Two tiles of the miniature, and a predictor with random weights whose answers differ from place to place."""
    tiles = open_dataset("flair", miniature("flair"), "all", modalities=KEYS, targets=("land_cover",)).take([0, 3])
    encoder = AnySat(ModelConfig(dim=64, depth=1, num_heads=2, modalities=tuple(MODALITIES[key] for key in KEYS)))
    encoder.normaliser = Normaliser.from_batch(Batch.of([tiles[0], tiles[1]]))
    target = find_dataset("flair").target("land_cover")
    view = View(patch_sizes_m=(10.0,), modalities=KEYS, dense="aerial-flair")
    return randomise(Predictor(encoder, make_task(target), view, "dense")).eval(), tiles


@torch.inference_mode()
def slowly(predictor, tiles, index):
    """Logits of the whole photo and its labels, pixel by pixel of each crop, from the files."""
    row, folder = tiles.samples.row(index), tiles.folder
    photo, stored = folder.read("aerial-flair", **row), folder.read("labels", **row)[0].astype(int)
    middle = tiles[index]
    total, count = np.zeros((512, 512, NUM_CLASSES)), np.zeros((512, 512, 1))
    for top, left in ((0, 0), (0, 12), (12, 0), (12, 12), (6, 6)):
        seen = folder.observe("aerial-flair", photo[:, top : top + 500, left : left + 500], **row)
        tile = Tile.of(seen, middle.observations["s2"])
        total[top : top + 500, left : left + 500] += predictor(Batch.of([tile]))[0].double().numpy()
        count[top : top + 500, left : left + 500] += 1
    return total / count, np.where((stored >= 1) & (stored <= NUM_CLASSES), stored - 1, VOID)


def test_five_crops_of_flair_are_those_of_an_obvious_loop(flair):
    predictor, tiles = flair
    for index in range(len(tiles)):
        wanted, labels = slowly(predictor, tiles, index)
        crops = crops_of(tiles, index, 100.0)
        with torch.inference_mode():
            found = outputs_of_crops(predictor, crops)
        assert np.allclose(found.numpy(), wanted, atol=1e-4)
        assert (crops.targets["land_cover"] == labels).all()
        assert np.unique(wanted.argmax(-1)).size > 1


def test_scores_of_crops_count_every_pixel_of_the_photo(flair):
    predictor, tiles = flair
    right = count = 0
    for index in range(len(tiles)):
        wanted, labels = slowly(predictor, tiles, index)
        right += ((wanted.argmax(-1) == labels) & (labels != VOID)).sum()
        count += (labels != VOID).sum()
    found = score_crops(predictor, tiles, 100.0)
    assert found.num_samples == count
    assert found.figures["accuracy"] == pytest.approx(right / count, abs=1e-5)


def test_a_run_is_scored_by_crops_of_any_dataset(tmp_path, capsys):
    world = '{"tiles": 12, "seed": 7, "modalities": ["s1"], "extent_m": 90}'
    words = ["--data.dataset=world", f"--data.world={world}", "--data.target=land_cover", "--patch-sizes-m=[30]"]
    assert main(["probe", *words, "--data.modalities=[s1]", "--epochs=1", "--learning-rates=[0.01]", "--report=false",
                 f"--out={tmp_path / 'run'}"]) == 0  # fmt: skip
    assert main(["evaluate", str(tmp_path / "run"), "--crop-m=60", f"--out={tmp_path / 'crops.json'}"]) == 0
    found = json.loads((tmp_path / "crops.json").read_text())
    assert found["crop_m"] == 60
    assert found["scores"]["num_samples"] == 81 * found["scores"]["num_tiles"]
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "run"), "--crop-m=90"]) == 2
    assert "a side below that of the tile" in capsys.readouterr().err
    assert main(["evaluate", "--compare", "--crop-m=60"]) == 2
    assert "unknown option '--crop-m'" in capsys.readouterr().err


# -- any tile


def radar(rows, cols, *, unseen=()):
    values = np.random.default_rng(0).normal(size=(2, 3, rows, cols)).astype(np.float32)
    for place in unseen:
        values[:, :, *place] = np.nan
    return Tile.of(Observation.of(MODALITIES["s1"], values, dates=["2020-03-01", "2020-07-01"]))


def test_crops_lie_in_the_corners_and_in_the_middle_and_cover_what_they_can():
    assert five_corners(radar(9, 9), 60.0) == ((0, 0), (0, 30), (30, 0), (30, 30), (10, 10))
    assert five_corners(radar(6, 9), 60.0) == ((0, 0), (0, 30), (0, 10)), "a strip has no second row"
    crops = five_crops(radar(9, 9), 60.0)
    assert all(extent_m(tile) == (60.0, 60.0) for tile in crops.tiles)
    with pytest.raises(InputError, match="a side below that of the tile"):
        five_corners(radar(6, 6), 60.0)


def world_predictor(tile, target=LAND_COVER):
    """A predictor of radar with random weights, which looks at patches of 30 m."""
    encoder = AnySat(ModelConfig(dim=64, depth=1, num_heads=2, modalities=(MODALITIES["s1"],)))
    encoder.normaliser = Normaliser.from_batch(Batch.of([tile]))
    is_map = target.level == "pixel"
    view = View(patch_sizes_m=(30.0,), modalities=("s1",), dense="s1" if is_map else None)
    return randomise(Predictor(encoder, make_task(target), view, "dense" if is_map else "both")).eval()


@pytest.mark.parametrize(("rows", "cols", "side", "least"), [(9, 9, 30, "45"), (9, 15, 60, "75")])
def test_crops_of_a_map_that_leave_ground_out_are_refused_with_the_smallest_side(rows, cols, side, least):
    tile = radar(rows, cols)
    with pytest.raises(InputError, match=f"a side of at least {least} m, so that they cover.*got {side} m"):
        predict_crops(world_predictor(tile), tile, side)


def test_crops_of_half_the_tile_cover_it_and_an_answer_for_a_tile_needs_no_cover():
    tile = radar(12, 12)
    assert (predict_crops(world_predictor(tile), tile, 60.0).answer != -1).all()
    assert (
        predict_crops(world_predictor(tile, find_dataset("treesatai_ts").targets[0]), tile, 30.0).answer.shape[0] == 1
    )


def test_a_place_that_one_crop_did_not_see_is_answered_by_the_others(flair):
    tile = radar(9, 9, unseen=[(0, 0), (4, 4)])
    predictor = world_predictor(tile).train()
    answer = predict_crops(predictor, tile, 60.0).answer[0]
    assert answer.shape == (9, 9)
    assert {tuple(place) for place in (answer == -1).nonzero().tolist()} == {(0, 0), (4, 4)}
    assert predictor.training, "left as it was"
