"""Embeddings on disk: those of the encoder to the bit, never computed twice, and never those of something else."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from anysat.batch import Batch
from anysat.errors import SourceError, StatisticsError, WriteError
from anysat.normalise import Normaliser
from anysat.probing.cache import TILES_PER_FILE, batches, extract
from labelled import KEYS, meadow_encoder
from meadow import Meadow

COUNT = TILES_PER_FILE + 2
"""Tiles of a file, and two more."""
CHANGED = 1
"""The tile that is changed below, one of the first file."""


class Changed(Meadow):
    """A meadow with one modality of one tile changed."""

    def __init__(self, change, key="s2", count=COUNT, **options):
        super().__init__(count, **options)
        self.change, self.key = change, key

    def __getitem__(self, index):
        tile = super().__getitem__(index)
        if index != CHANGED:
            return tile
        return replace(tile, observations={**tile.observations, self.key: self.change(tile.observations[self.key])})


def one_pixel(seen):
    values = seen.values.copy()
    values[tuple(np.argwhere(seen.valid)[5])] += 1
    return replace(seen, values=values)


def one_flag(seen):
    valid = seen.valid.copy()
    valid[tuple(np.argwhere(valid)[5])] = False
    return replace(seen, valid=valid)


def one_date(seen):
    dates = seen.dates.copy()
    dates[1] += 1
    return replace(seen, dates=dates)


def a_place_without_any_date(seen):
    valid = seen.valid.copy()
    valid[..., 1, 2] = False
    return replace(seen, valid=valid)


@pytest.fixture(scope="module")
def encoder():
    """Shared: never change it."""
    return meadow_encoder()


def features(encoder, folder, tiles=None, size=20.0, *, modalities=KEYS, dense="s2", **options):
    return extract(encoder, tiles or Meadow(COUNT), size, folder, modalities=modalities, dense=dense, **options)


def embeddings(found, indices=None):
    return found.embeddings(range(len(found)) if indices is None else indices)


def parts(seen):
    return {name: getattr(seen, name) for name in seen.AXES if getattr(seen, name) is not None}


def same(ours, theirs):
    """Whether embeddings are the same to the bit, and NaN at the same places."""
    ours, theirs = parts(ours), parts(theirs)
    assert list(ours) == list(theirs)
    return all(torch.equal(ours[name].nan_to_num(nan=77.0), theirs[name].nan_to_num(nan=77.0)) for name in ours)


# --- what is kept


@pytest.mark.parametrize("dense", [None, "s2", "spot"])
def test_embeddings_are_those_of_the_encoder_in_whatever_order_they_are_asked_for(encoder, dense, tmp_path):
    tiles = Changed(a_place_without_any_date)
    found = features(encoder, tmp_path, tiles, dense=dense)
    with torch.inference_mode():
        direct = [
            encoder.encode(Batch.of([tiles[n] for n in numbers]), 20.0, dense=dense)
            for numbers in (range(TILES_PER_FILE), range(TILES_PER_FILE, COUNT))
        ]
    assert (found.grid, found.dense) == (direct[0].grid, direct[0].dense_modality)
    whole = {name: torch.cat([parts(one)[name] for one in direct]) for name in parts(direct[0])}
    for indices in (range(COUNT), range(COUNT)[::-1], [9, 1, 1, 0, 9], np.array([3]), np.array([8, 7])):
        rows = torch.tensor(list(indices))
        assert same(embeddings(found, indices), replace(direct[0], **{name: t[rows] for name, t in whole.items()}))
    if dense == "s2":
        assert direct[0].valid[CHANGED].all(), "the patch was seen"
        assert embeddings(found).dense[CHANGED, 1, 2].isnan().all()


def test_targets_and_names_come_in_the_order_of_the_tiles(encoder, tmp_path):
    found, tiles = features(encoder, tmp_path), Meadow(COUNT)
    assert found.ids == tuple(tiles.ids)
    assert len(found) == COUNT
    for name in ("cover", "kind"):
        assert torch.equal(
            found.targets[name], torch.stack([torch.as_tensor(tiles[n].targets[name]) for n in range(COUNT)])
        )


def test_workers_change_nothing(encoder, tmp_path):
    tiles = Meadow(7 * TILES_PER_FILE)  # more files than a worker has buffers, which it fills again
    one, other = (features(encoder, tmp_path / str(n), tiles, modalities=("s2",), num_workers=n) for n in range(2))
    assert [path.name for path in one.files] == [path.name for path in other.files]
    assert same(embeddings(one), embeddings(other))
    assert torch.equal(one.targets["cover"], other.targets["cover"])


def test_a_second_extraction_computes_nothing(encoder, tmp_path, monkeypatch):
    first = features(encoder, tmp_path)
    monkeypatch.setattr(encoder, "encode", lambda *_, **__: pytest.fail("it was computed again"))
    second = features(encoder, tmp_path)
    assert (first.num_new, second.num_new) == (COUNT, 0)
    assert same(embeddings(first), embeddings(second))


def test_the_encoder_stays_as_it_was_with_its_modes(tmp_path):
    encoder = meadow_encoder().train()
    encoder.spatial.eval()
    encoder.fusion.requires_grad_(True)
    before = copy.deepcopy(encoder)
    found = features(encoder, tmp_path)
    assert all(torch.equal(t, before.state_dict()[name]) for name, t in encoder.state_dict().items())
    assert [m.training for m in encoder.modules()] == [m.training for m in before.modules()]
    assert [p.requires_grad for p in encoder.parameters()] == [p.requires_grad for p in before.parameters()]
    assert all(p.grad is None for p in encoder.parameters())
    assert same(embeddings(found), embeddings(features(encoder.eval(), tmp_path / "other"))), "made in eval mode"


# --- nothing stale


def other_weight(encoder):
    with torch.no_grad():
        encoder.fusion.blocks[0].mlp.fc1.weight[3, 5] += 1e-3


def other_statistics(encoder):
    table = dict(encoder.normaliser.statistics["meadow"])
    table["s2"] = replace(table["s2"], mean=(table["s2"].mean[0] + 1, *table["s2"].mean[1:]))
    encoder.normaliser = Normaliser(statistics={"meadow": table})


def other_days(encoder):
    encoder.config = replace(encoder.config, day_convention="days_since 2019-06-01")


CHANGES = {
    "weight": (COUNT, other_weight, {}), "statistics": (COUNT, other_statistics, {}),
    "day convention": (COUNT, other_days, {}), "patch size": (COUNT, None, {"size": 10.0}),
    "other dense": (COUNT, None, {"dense": "spot"}), "no dense": (COUNT, None, {"dense": None}),
    "modalities": (COUNT, None, {"modalities": ("s2", "modis")}),
    "precision": (COUNT, None, {"precision": "bf16"}),
    "pixel": (TILES_PER_FILE, None, {"tiles": Changed(one_pixel)}),
    "pixel of the image": (TILES_PER_FILE, None, {"tiles": Changed(one_pixel, "spot")}),
    "flag": (TILES_PER_FILE, None, {"tiles": Changed(one_flag)}),
    "date": (TILES_PER_FILE, None, {"tiles": Changed(one_date)}),
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGES)
def test_another_input_is_computed_anew_and_never_found_under_the_old(encoder, tmp_path, what):
    num_new, change, options = CHANGES[what]
    old = features(encoder, tmp_path)
    changed = copy.deepcopy(encoder)
    if change is not None:
        change(changed)
    found = features(changed, tmp_path, **options)
    assert found.num_new == num_new
    assert same(embeddings(found), embeddings(features(changed, tmp_path / "fresh", **options)))
    if parts(embeddings(found)).keys() == parts(embeddings(old)).keys():
        assert not same(embeddings(found), embeddings(old))
    assert features(encoder, tmp_path).num_new == 0, "the old is still there"


def test_another_dataset_is_computed_anew(tmp_path):
    encoder = meadow_encoder()
    table = encoder.normaliser.statistics["meadow"]
    wetter = {**table, "s2": replace(table["s2"], std=tuple(2 * std for std in table["s2"].std))}
    encoder.normaliser = Normaliser(statistics={"meadow": table, "marsh": wetter})
    meadow = features(encoder, tmp_path)
    marsh = features(encoder, tmp_path, Meadow(COUNT, name="marsh"))
    assert marsh.num_new == COUNT
    assert not same(embeddings(meadow), embeddings(marsh))


def test_values_in_other_units_are_not_found_under_the_old(encoder, tmp_path):
    class InReflectance(Meadow):
        def __getitem__(self, index):
            tile = super().__getitem__(index)
            if index < TILES_PER_FILE:
                return tile
            seen = tile.observations["s2"]
            other = replace(seen, units=("reflectance",) * 10)
            return replace(tile, observations={**tile.observations, "s2": other})

    features(encoder, tmp_path)
    with pytest.raises(StatisticsError, match="reflectance"):
        features(encoder, tmp_path, InReflectance(COUNT))


def test_what_is_not_looked_at_does_not_matter(encoder, tmp_path):
    features(encoder, tmp_path, modalities=("s2", "modis"))
    other = features(encoder, tmp_path, Changed(one_pixel, "spot"), modalities=("s2", "modis"))
    assert other.num_new == 0


# --- what goes wrong


def test_an_extraction_that_was_interrupted_goes_on_with_the_rest(encoder, tmp_path):
    count = 2 * TILES_PER_FILE + 3
    with pytest.raises(SourceError, match="meadow/18.tif: it is truncated"):
        features(encoder, tmp_path, Meadow(count, broken=18))
    assert len(list(tmp_path.iterdir())) == 2
    assert features(encoder, tmp_path, Meadow(count)).num_new == 3


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.9999])
def test_a_file_that_was_cut_short_is_made_again(encoder, tmp_path, kept):
    first = features(encoder, tmp_path / "a")
    content = first.files[0].read_bytes()
    first.files[0].write_bytes(content[: int(kept * len(content))])
    again = features(encoder, tmp_path / "a")
    assert again.num_new == TILES_PER_FILE
    assert again.files[0].read_bytes() == content
    assert same(embeddings(again), embeddings(features(encoder, tmp_path / "b")))


@pytest.mark.parametrize("place", [3, 200, 0.3, 0.5, 0.9, -1])
def test_a_file_with_a_changed_byte_is_made_again(encoder, tmp_path, place):
    first = features(encoder, tmp_path / "a")
    embeddings(first)  # so that it has been open
    content = bytearray(first.files[0].read_bytes())
    number = int(place * len(content)) if isinstance(place, float) else place
    content[number] ^= 4
    first.files[0].write_bytes(content)
    again = features(encoder, tmp_path / "a")
    assert again.num_new == TILES_PER_FILE
    assert same(embeddings(again), embeddings(features(encoder, tmp_path / "b")))


def test_a_tile_without_a_valid_value_is_named_and_its_embeddings_are_nan(encoder, tmp_path):
    class Night(Meadow):
        def __getitem__(self, index):
            tile = super().__getitem__(index)
            if index not in (CHANGED, COUNT - 2, COUNT - 1):
                return tile
            dark = {key: replace(seen, valid=np.zeros_like(seen.valid)) for key, seen in tile.observations.items()}
            return replace(tile, observations=dark)

    found = features(encoder, tmp_path, Night(COUNT))
    assert found.unseen == tuple(Meadow(COUNT).ids[n] for n in (CHANGED, COUNT - 2, COUNT - 1))
    seen = embeddings(found)
    assert [n for n in range(COUNT) if seen.tile[n].isnan().all()] == [CHANGED, COUNT - 2, COUNT - 1]
    assert not seen.valid[[CHANGED, COUNT - 2]].any()
    assert seen.patch[CHANGED].isnan().all()
    again = features(encoder, tmp_path, Night(COUNT))
    assert (again.num_new, again.unseen) == (0, found.unseen)
    others = [n for n in range(TILES_PER_FILE) if n != CHANGED]
    plain = embeddings(features(encoder, tmp_path / "plain"))
    assert torch.allclose(seen.tile[others], plain.tile[others], atol=1e-5)


def test_a_folder_that_cannot_be_written_is_said(encoder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="could not be written"):
        features(encoder, tmp_path / "file")


def test_tiles_of_which_nobody_saw_the_dense_modality_are_kept_as_unseen(encoder, tmp_path):
    """Tiles without an image are among others in the first file; in the second no image has a valid pixel."""

    class Dark(Meadow):
        def __getitem__(self, index):
            tile = super().__getitem__(index)
            if index < TILES_PER_FILE or "spot" not in tile.observations:
                return tile
            seen = tile.observations["spot"]
            dark = replace(seen, valid=np.zeros_like(seen.valid))
            return replace(tile, observations={**tile.observations, "spot": dark})

    seen = embeddings(features(encoder, tmp_path, Dark(COUNT), dense="spot"))
    assert [n for n in range(COUNT) if seen.dense_valid[n].any()] == [1, 2, 3, 5, 6, 7]
    assert seen.dense[8:].isnan().all()
    without = embeddings(features(encoder, tmp_path, Dark(COUNT), dense=None))
    assert torch.allclose(seen.tile, without.tile, atol=1e-5)


# --- reading


def test_features_that_were_scored_can_be_trained_on(encoder, tmp_path):
    found = features(encoder, tmp_path)
    with torch.inference_mode():
        embeddings(found)
    layer = torch.nn.Linear(64, 2)
    layer(embeddings(found).tile).sum().backward()
    assert layer.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(("num_tiles", "batch_size"), [(1, 4), (8, 8), (19, 4), (19, 100), (24, 8)])
def test_batches_hold_every_tile_once(num_tiles, batch_size):
    plain = np.concatenate(list(batches(num_tiles, batch_size)))
    assert plain.tolist() == list(range(num_tiles))
    drawn = list(batches(num_tiles, batch_size, np.random.default_rng(3)))
    assert all(len(part) == batch_size for part in drawn[:-1])
    order = np.concatenate(drawn)
    assert sorted(order) == list(range(num_tiles))
    again = np.concatenate(list(batches(num_tiles, batch_size, np.random.default_rng(3))))
    other = np.concatenate(list(batches(num_tiles, batch_size, np.random.default_rng(4))))
    assert order.tolist() == again.tolist()
    assert num_tiles < 8 or order.tolist() != other.tolist()
