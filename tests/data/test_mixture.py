"""The stream of batches: a pure function of seed and step, whoever asks, wherever it starts."""

import hashlib
import os
import pickle
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from anysat.batch import Batch
from anysat.data.mixture import GEOPLEX, Loader, Mixture, OrderedPass, Part
from anysat.data.open import dataset_names, open_dataset
from anysat.data.pack.write import pack_dataset
from anysat.data.transforms import Augmentation
from anysat.errors import AnySatError, InputError, MissingFileError, RecordError, SourceError, UnknownNameError
from anysat.modalities import MODALITIES
from builders import child_environment
from meadow import Meadow, tensors
from miniatures import miniature


def meadows(weights=(2, 1), counts=(11, 7), batch_size=4, sampler="shuffle", **options):
    """Two datasets in memory."""
    parts = [
        Part(tiles=Meadow(count, name=f"meadow{count}"), batch_size=batch_size, weight=weight,
             patch_sizes_m=(10.0, 20.0, 40.0), sampler=sampler)
        for weight, count in zip(weights, counts, strict=True)
    ]  # fmt: skip
    return Mixture(parts=parts, **options)


def real_mixture(rank=0, world_size=1, batch_size=2, root=None):
    """A dataset on disk and one in memory, every augmentation on."""
    trees = open_dataset("treesatai_ts", root or miniature("treesatai_ts", tiles=14), "all")
    everything = Augmentation(turns_and_flips=True, crop_m=20, keep_dates_frac=0.5, max_dates=6)
    return Mixture(
        parts=[
            Part(tiles=trees, batch_size=batch_size, weight=1, patch_sizes_m=(10.0, 20.0), augmentation=everything),
            Part(tiles=Meadow(), batch_size=batch_size, weight=2, patch_sizes_m=(10.0, 20.0), augmentation=everything),
        ],
        seed=7, rank=rank, world_size=world_size,
    )  # fmt: skip


def fingerprint(draw):
    """A hash of everything a draw holds."""
    made = hashlib.sha256(
        repr((draw.step, draw.dataset, draw.patch_size_m, draw.batch.ids, draw.batch.dataset)).encode()
    )
    for name, tensor in tensors(draw.batch):
        made.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode() + tensor.contiguous().numpy().tobytes())
    for key, seen in draw.batch.observations.items():
        made.update(repr((key, seen.modality, seen.units)).encode())
    return made.hexdigest()


@pytest.fixture(scope="module")
def in_one_go():
    return [fingerprint(draw) for draw in real_mixture().loader(0, 200)]


# -- the same sequence, however it is drawn ----------------------------------------------------------


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")
@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_stopping_after_73_batches_and_going_on_gives_the_same_200(num_workers, in_one_go):
    before = [fingerprint(d) for d in islice(iter(real_mixture().loader(num_workers=num_workers)), 73)]
    after = [fingerprint(d) for d in real_mixture().loader(73, 127, num_workers=num_workers)]
    assert before + after == in_one_go
    assert len(set(in_one_go)) == 200


def test_any_step_is_drawn_without_those_before_it(in_one_go):
    mixture = real_mixture()
    assert [fingerprint(mixture.draw(step)) for step in (199, 3, 150)] == [in_one_go[step] for step in (199, 3, 150)]


def test_a_killed_process_goes_on_where_it_was(in_one_go):
    """A process writes fingerprints until it is killed; another goes on after its last complete line."""
    script = (
        "import sys\nfrom tests.data.test_mixture import fingerprint, real_mixture\n"
        "start = int(sys.argv[1])\n"
        "for draw in real_mixture(root=sys.argv[2]).loader(start, 200 - start, num_workers=2):\n"
        "    print(fingerprint(draw), flush=True)\n"
    )
    root = miniature("treesatai_ts", tiles=14)

    def run(start):
        return subprocess.Popen([sys.executable, "-c", script, str(start), str(root)], env=child_environment(),
                                stdout=subprocess.PIPE, text=True, start_new_session=True)  # fmt: skip

    with run(0) as process:
        seen = [process.stdout.readline().strip() for _ in range(40)]
        os.killpg(process.pid, signal.SIGKILL)
    with run(len(seen)) as process:
        seen += [line.strip() for line in process.stdout]
    assert seen == in_one_go


def test_two_ranks_draw_what_one_rank_with_twice_the_batch_does():
    ranks = [real_mixture(rank, 2) for rank in (0, 1)]
    for step, together in zip(range(30), real_mixture(batch_size=4).loader(0, 30), strict=True):
        draws = [rank.draw(step) for rank in ranks]
        assert {(d.dataset, d.patch_size_m) for d in draws} == {(together.dataset, together.patch_size_m)}
        assert draws[0].batch.ids + draws[1].batch.ids == together.batch.ids
        tiles = [tile for rank in ranks for tile in rank.read(rank.plan(step))]
        for name, tensor in tensors(Batch.of(tiles)):
            assert torch.equal(tensor, dict(tensors(together.batch))[name]), name


def test_ranks_share_no_sample_in_an_epoch_and_leave_none_out():
    ranks = [meadows((1,), (60,), batch_size=5, rank=rank, world_size=3) for rank in range(3)]
    for epoch in range(3):
        steps = range(4 * epoch, 4 * epoch + 4)
        taken = [np.concatenate([rank.plan(step).indices for step in steps]) for rank in ranks]
        assert sorted(np.concatenate(taken)) == list(range(60))


@pytest.mark.parametrize("count", [13, 17, 40])
def test_no_sample_comes_twice_in_a_step_of_all_ranks(count):
    """Also where an epoch ends inside a batch."""
    ranks = [meadows((1,), (count,), batch_size=2, rank=rank, world_size=2) for rank in range(2)]
    steps = [np.concatenate([rank.plan(step).indices for rank in ranks]) for step in range(120)]
    assert all(len(set(step)) == 4 for step in steps)
    whole = np.concatenate(steps)[: count * (480 // count)].reshape(-1, count)
    assert (np.sort(whole) == np.arange(count)).all()


def test_samples_without_a_label_are_not_balanced():
    tiles = Meadow(11)
    tiles.labels = lambda: np.repeat([-1, 0, 1], [7, 2, 2])
    mixture = Mixture(parts=[Part(tiles=tiles, batch_size=5, patch_sizes_m=(10.0,), sampler="sqrt_frequency")])
    assert {index for step in range(40) for index in mixture.plan(step).indices.tolist()} == {7, 8, 9, 10}


def test_patch_sizes_that_do_not_divide_the_tile_are_refused():
    trees = open_dataset("treesatai_ts", miniature("treesatai_ts"), "all")
    with pytest.raises(RecordError, match="sizes that divide the 60 m of a tile"):
        Part(tiles=trees, batch_size=1, patch_sizes_m=(25,))
    with pytest.raises(RecordError, match="sizes that divide the 30 m of a crop"):
        Part(tiles=trees, batch_size=1, patch_sizes_m=(20,), augmentation=Augmentation(crop_m=30))


def test_patch_sizes_divide_the_side_of_the_world_that_is_there(tmp_path):
    for extent_m, fits, breaks in ((240, 80, 100), (90, 45, 60)):
        (tmp_path / "world.json").write_text(f'{{"tiles": 3, "extent_m": {extent_m}, "modalities": ["s2"]}}')
        tiles = open_dataset("world", tmp_path, "all")
        Part(tiles=tiles, batch_size=1, patch_sizes_m=(fits,))
        with pytest.raises(RecordError, match=f"sizes that divide the {extent_m} m of a tile, got {breaks}"):
            Part(tiles=tiles, batch_size=1, patch_sizes_m=(breaks,))


@pytest.mark.parametrize("option", ["max_dates_of", "keep_dates_frac_of"])
def test_dates_of_a_modality_that_the_tiles_lack_are_refused(option):
    trees = open_dataset("treesatai_ts", miniature("treesatai_ts"), "all")
    with pytest.raises(UnknownNameError, match=f"modality of part 'treesatai_ts', {option} 'sentinel2'; .*s2"):
        Part(tiles=trees, batch_size=1, patch_sizes_m=(10,), augmentation=Augmentation(**{option: {"sentinel2": 1}}))


@pytest.mark.parametrize("rank", [0, 1])
def test_resuming_holds_on_every_rank(rank):
    whole = [fingerprint(draw) for draw in real_mixture(rank, 2).loader(0, 200)]
    parts = [fingerprint(draw) for first, count in ((0, 73), (73, 127))
             for draw in real_mixture(rank, 2).loader(first, count, num_workers=1)]  # fmt: skip
    assert parts == whole


def test_another_seed_gives_another_sequence():
    plans = [[mixture.plan(step) for step in range(60)] for mixture in (meadows(seed=0), meadows(seed=1))]
    for field in ("dataset", "patch_size_m"):
        assert [getattr(p, field) for p in plans[0]] != [getattr(p, field) for p in plans[1]]
    assert [p.indices.tolist() for p in plans[0]] != [p.indices.tolist() for p in plans[1]]


# -- what is drawn -----------------------------------------------------------------------------------


def test_datasets_take_turns_in_exactly_their_shares():
    mixture = meadows((2, 1, 1, 1, 4), (5, 6, 7, 8, 9))
    drawn = [mixture.plan(step).part for step in range(90)]
    for first in range(0, 90, 9):
        assert Counter(drawn[first : first + 9]) == {0: 2, 1: 1, 2: 1, 3: 1, 4: 4}
    assert len({tuple(drawn[first : first + 9]) for first in range(0, 90, 9)}) > 5


@pytest.mark.parametrize(
    ("weights", "shares"),
    [
        ((0.5, 1.5), (1, 3)),
        ((Fraction(1, 3), 1), (1, 3)),
        ((10, 20), (1, 2)),
        ((0.1, 0.3), (1, 3)),
        ((1 / 3, 2 / 3), (1, 2)),
    ],
)
def test_weights_are_ratios(weights, shares):
    mixture = meadows(weights)
    drawn = Counter(mixture.plan(step).part for step in range(sum(shares)))
    assert (drawn[0], drawn[1]) == shares


def test_every_sample_comes_once_per_epoch_and_the_rest_of_an_epoch_is_not_dropped():
    mixture = meadows((1,), (11,), batch_size=4)
    drawn = np.concatenate([mixture.plan(step).indices for step in range(33)])
    epochs = drawn.reshape(12, 11)
    assert (np.sort(epochs) == np.arange(11)).all()
    assert len({tuple(epoch) for epoch in epochs}) == 12


def test_batches_larger_than_the_dataset_run_through_it_several_times():
    drawn = meadows((1,), (3,), batch_size=8).plan(0).indices
    assert sorted(drawn[:3]) == sorted(drawn[3:6]) == [0, 1, 2]


def test_a_batch_is_of_one_dataset_and_one_of_its_patch_sizes():
    mixture = meadows()
    seen = set()
    for draw in mixture.loader(0, 40):
        assert {name[0] for name in draw.batch.ids} == {"m"}
        assert draw.batch.dataset == draw.dataset
        seen.add((draw.dataset, draw.patch_size_m))
    assert seen == {(name, size) for name in ("meadow11", "meadow7") for size in (10.0, 20.0, 40.0)}


def test_patch_sizes_are_drawn_alike():
    mixture = meadows()
    drawn = Counter(mixture.plan(step).patch_size_m for step in range(3000))
    assert all(abs(count - 1000) < 110 for count in drawn.values())


def test_augmentation_is_drawn_anew_in_every_epoch():
    mixture = real_mixture()
    one, other = ((mixture.plan(step).seeds, mixture.plan(step).dataset) for step in (0, 60))
    every = [seed for step in range(200) for seed in mixture.plan(step).seeds]
    assert len(set(every)) == len(every)
    assert one != other


def test_classes_are_drawn_by_the_square_root_of_their_frequency():
    mixture = meadows((1,), (105,), batch_size=50, sampler="sqrt_frequency")
    labels = Meadow(105).labels()
    drawn = np.concatenate([mixture.plan(step).indices for step in range(400)])
    expected = np.sqrt(np.bincount(labels))
    np.testing.assert_allclose(np.bincount(labels[drawn]) / len(drawn), expected / expected.sum(), atol=0.015)
    within = np.bincount(drawn, minlength=105)[:100]
    assert within.min() > 0.7 * within.mean()
    again = meadows((1,), (105,), batch_size=50, sampler="sqrt_frequency")
    assert again.plan(333).indices.tolist() == mixture.plan(333).indices.tolist()


def test_late_steps_are_planned_without_those_before():
    mixture = meadows((1, 3), (50, 60), batch_size=4)
    step = 4 * 25_000_000_000 * 50 // 4
    counts = np.array([mixture.plan(step + offset).part for offset in range(4)])
    assert sorted(counts) == [0, 1, 1, 1]
    drawn = [mixture.plan(step + offset).indices for offset in range(60) if mixture.plan(step + offset).part == 1]
    first = 3 * (step // 4) * 4
    assert first % 60 == 0
    assert sorted(np.concatenate(drawn)[:60]) == list(range(60))


# -- loading -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_error_in_the_data_reaches_the_user_as_it_was(num_workers):
    mixture = Mixture(parts=[Part(tiles=Meadow(9, broken=4), batch_size=2, patch_sizes_m=(10.0,))])
    with pytest.raises(SourceError) as caught:
        list(mixture.loader(0, 5, num_workers=num_workers))
    assert str(caught.value) == "meadow/4.tif: it is truncated; get it again"
    assert "while batch" in caught.value.__notes__[0]


@pytest.mark.parametrize(
    "error", [MissingFileError("a.tif", "a photo"), SourceError("a", "b"), InputError("a", "b", 3)]
)
def test_errors_travel_between_processes(error):
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy)) == (type(error), str(error))


@pytest.mark.parametrize("name", ["treesatai_ts", "planted"])
def test_packed_and_loose_files_give_the_same_batches(name, tmp_path):
    """Packed tiles are stacked from the type they are stored in; planted has ratio bands and gaps."""
    loose = open_dataset(name, miniature(name), "all")
    packed = open_dataset(name, pack_dataset(loose, tmp_path / "packed"), "all")
    everything = Augmentation(turns_and_flips=True, crop_m=30, keep_dates_frac=0.7, max_dates=6)
    for augmentation in (Augmentation(), everything):
        streams = [
            Mixture(parts=[Part(tiles=tiles, batch_size=3, patch_sizes_m=(30.0,), augmentation=augmentation)])
            for tiles in (loose, packed)
        ]
        for step in range(6):
            assert fingerprint(streams[0].draw(step)) == fingerprint(streams[1].draw(step))


def test_modalities_stay_the_records_of_the_table_between_processes():
    (draw,) = meadows().loader(0, 1, num_workers=1)
    assert draw.batch.observations["s2"].modality is MODALITIES["s2"]
    own = replace(MODALITIES["s2"], key="own")
    assert pickle.loads(pickle.dumps(own)) == own


def test_a_mixture_travels_to_a_process():
    mixture = real_mixture()
    assert fingerprint(pickle.loads(pickle.dumps(mixture)).draw(5)) == fingerprint(mixture.draw(5))


def test_batches_that_are_kept_are_never_written_over(in_one_go):
    """Workers fill their memory again, but only what nobody looks at any more, not even as an array."""
    kept = list(real_mixture().loader(0, 40, num_workers=1))
    assert [fingerprint(draw) for draw in kept] == in_one_go[:40]
    arrays, copies = [], []
    for draw in real_mixture().loader(0, 60, num_workers=1):
        arrays.append(draw.batch.observations["s2"].values[0].numpy())
        copies.append(arrays[-1].copy())
    for array, copy in zip(arrays, copies, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_memory_that_nobody_looks_at_is_filled_again():
    places = {next(tensors(draw.batch))[1].untyped_storage().data_ptr()
              for draw in meadows().loader(0, 60, num_workers=1, prefetch=1)}  # fmt: skip
    assert len(places) <= 2 * 3  # pieces, each made anew once when a larger batch came


def test_pinned_batches_are_the_same(monkeypatch):
    from anysat.data import loader

    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)
    steps = loader._Steps(meadows(), None)
    assert fingerprint(steps[3].pin_memory().open()) == fingerprint(steps[3].open())


def open_files():
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_batch_costs_one_file_descriptor_however_many_tensors_it_has():
    held, before = [], open_files()
    loader = iter(real_mixture().loader(0, 60, num_workers=1, prefetch=1))
    for _ in range(50):
        held.append(next(loader))
    assert open_files() - before < 70
    assert len({tensor.untyped_storage().data_ptr() for _, tensor in tensors(held[0].batch)}) == 1


def test_memory_stays_flat_over_300_samples():
    mixture = real_mixture(batch_size=4)

    def resident_mb():
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGESIZE") / 2**20

    for draw in mixture.loader(0, 25):
        del draw
    before = resident_mb()
    for draw in mixture.loader(25, 75):
        del draw
    assert resident_mb() - before < 5


def test_one_ordered_pass_holds_every_sample_once_in_order():
    for num_workers in (0, 2):
        drawn = list(OrderedPass(tiles=Meadow(11), batch_size=4, patch_size_m=20.0).loader(num_workers=num_workers))
        assert [draw.batch.ids for draw in drawn] == [
            ("m0", "m1", "m2", "m3"), ("m4", "m5", "m6", "m7"), ("m8", "m9", "m10")
        ]  # fmt: skip
        assert fingerprint(drawn[2]) == fingerprint(
            OrderedPass(tiles=Meadow(11), batch_size=4, patch_size_m=20.0).draw(2)
        )


@pytest.mark.parametrize("count", [8, 9, 11, 14])
def test_ranks_share_an_ordered_pass(count):
    passes = [OrderedPass(tiles=Meadow(count), batch_size=2, patch_size_m=10.0, rank=r, world_size=3) for r in range(3)]
    taken = [index for one in passes for step in range(len(one)) for index in one.plan(step).indices]
    assert sorted(taken) == list(range(count))
    assert all(len(one.plan(step).indices) for one in passes for step in range(len(one)))


def test_ranks_take_turns_tile_by_tile_in_an_ordered_pass():
    one = OrderedPass(tiles=Meadow(11), batch_size=2, patch_size_m=10.0, rank=1, world_size=3)
    assert [one.plan(step).indices.tolist() for step in range(len(one))] == [[1, 4], [7, 10]]


def test_a_loader_knows_its_length_and_may_be_iterated_again():
    loader = meadows().loader(3, 4)
    assert len(loader) == 4
    assert [draw.step for draw in loader] == [draw.step for draw in loader] == [3, 4, 5, 6]


# -- refusals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [({"weights": (0, 1)}, "part 'meadow11', weight: expected a positive number, got 0"),
     ({"weights": (float("nan"), 1)}, "a positive number"),
     ({"weights": (2**0.5, 1)}, r"weight: expected a ratio of small integers, such as Fraction\('1393/985'\)"),
     ({"weights": (0.997, 0.991, 0.1), "counts": (2, 3, 4)}, None),
     ({"weights": (Fraction(1, 997), Fraction(1, 991), 1), "counts": (2, 3, 4)}, "repeat within 10000 steps; round"),
     ({"batch_size": 0}, "batch_size: expected at least one tile, got 0"),
     ({"counts": (0, 5)}, "part 'meadow0': expected at least one sample"),
     ({"sampler": "random"}, "sampler: expected one of shuffle, sqrt_frequency, got 'random'"),
     ({"rank": 2, "world_size": 2}, r"expected 0 to 1, got \(2, 2\)"), ({"seed": -1}, "seed"),
     ({"weights": (), "counts": ()}, "at least one part")],
)  # fmt: skip
def test_impossible_mixtures_are_refused(options, message):
    if message is None:
        meadows(**options)
        return
    with pytest.raises((RecordError, InputError), match=message):
        meadows(**options)


def test_patch_sizes_and_steps_that_cannot_be_are_refused():
    with pytest.raises(RecordError, match="patch_sizes_m: expected at least one patch size"):
        Part(tiles=Meadow(), batch_size=1, patch_sizes_m=())
    with pytest.raises(RecordError, match="patch_sizes_m: expected a positive length"):
        Part(tiles=Meadow(), batch_size=1, patch_sizes_m=(0.0,))
    with pytest.raises(RecordError, match="step: expected 0 or more, got -1"):
        meadows().plan(-1)
    for options in ({"num_workers": -1}, {"prefetch": 0}, {"start_step": -1}):
        with pytest.raises(RecordError, match="loader"):
            meadows().loader(**options)


def test_datasets_without_classes_cannot_be_balanced():
    trees = open_dataset("treesatai_ts", miniature("treesatai_ts"), "all")
    with pytest.raises(AnySatError, match="one class per sample, to balance classes"):
        Mixture(parts=[Part(tiles=trees, batch_size=1, patch_sizes_m=(10.0,), sampler="sqrt_frequency")])


def test_stacking_into_given_memory_changes_nothing():
    tiles = [Meadow()[index] for index in range(5)]
    made = []

    def allocate(shape, dtype):
        made.append(torch.full(shape, 1, dtype=dtype))
        return made[-1]

    plain, given = Batch.of(tiles), dict(tensors(Batch.of(tiles, allocate)))
    assert len(made) == len(given)
    for name, tensor in tensors(plain):
        assert torch.equal(tensor, given[name]), name


# -- the published recipe ----------------------------------------------------------------------------


def test_the_geoplex_recipe_names_datasets_and_modalities_that_exist():
    assert set(GEOPLEX) <= set(dataset_names())
    for recipe in GEOPLEX.values():
        assert set(recipe.modalities) <= set(MODALITIES)
    assert {name: recipe.weight for name, recipe in GEOPLEX.items()} == {
        "planted": 2, "pastis_hd": 1, "flair": 1, "treesatai_ts": 1, "s2naip_urban": 4
    }  # fmt: skip


def test_loader_is_the_one_of_the_module():
    assert isinstance(meadows().loader(0, 1), Loader)


def test_a_photo_larger_than_a_tile_is_cut_at_random_where_asked_for_and_else_in_its_middle():
    trees = open_dataset("treesatai_ts", miniature("treesatai_ts", tiles=14), "all")

    def photos(**options):
        part = Part(tiles=trees, batch_size=14, patch_sizes_m=(10.0,), augmentation=Augmentation(**options))
        found = {}
        for step in range(4):
            batch = Mixture(parts=[part], seed=1).draw(step).batch
            for name, values in zip(batch.ids, batch.observations["aerial"].values, strict=True):
                found.setdefault(name, []).append(values.numpy())
        return found

    def kinds(found):
        return [len({one.tobytes() for one in every}) for every in found.values()]

    assert set(kinds(photos())) == {1}
    assert min(kinds(photos(cut_at_random=True))) > 1
    twice = [next(iter(photos(cut_at_random=True).values())) for _ in range(2)]
    assert np.array_equal(*twice)
