"""A run is gone on with on the data it was begun with, loose or packed, and on no others."""

import os
import shutil

import numpy as np
import pytest
import yaml

from anysat.data.open import open_dataset
from anysat.data.pack.write import pack_dataset
from anysat.data.work import tiles_facts
from anysat.errors import InputError
from anysat.train.run import DATA, open_run
from anysat.workflows.pretrain import PretrainConfig, pretrain
from anysat.workflows.pretrain.run import _check_names, open_part
from geo_builders import geobox, ramp, write_tif
from tiny_pretraining import tiny, world

TILES = 12
KINDS = "ab"


@pytest.fixture
def meadows(tmp_path):
    """Own data: a table of tiles, some of which are tests; there are images of more tiles than it lists."""
    root = tmp_path / "meadows"
    root.mkdir()
    for number in range(TILES + 2):
        box = geobox((4, 4), 10.0)
        write_tif(root / f"{number:02d}.tif", ramp(10, 4, 4, dtype="float32", start=number), box)
    content = {
        "name": "meadows", "tile_m": 40, "tiles": "tiles.csv", "targets": {"kind": {"column": "kind"}},
        "modalities": {"s2": {"path": "{id}.tif@2020-06-01", "units": "reflectance_1e4"}},
        "splits": {"column": "part"},
    }  # fmt: skip
    (root / "meadows.yaml").write_text(yaml.safe_dump(content))
    return root, list_tiles(root, TILES)


def list_tiles(root, count, kinds=KINDS):
    rows = [f"{n:02d},{kinds[n % 2]},{'test' if n % 4 == 3 else 'train'}\n" for n in range(count)]
    (root / "tiles.csv").write_text("id,kind,part\n" + "".join(rows))
    return str(root / "meadows.yaml")


def test_facts_of_tiles_are_those_of_names_splits_and_order_however_they_lie(meadows, tmp_path):
    root, name = meadows
    loose = open_dataset(name, root, "train")
    pack_dataset(open_dataset(name, root, "all"), tmp_path / "packed")
    facts = tiles_facts(loose)
    assert facts["tiles"] == 9
    assert tiles_facts(open_dataset(name, tmp_path / "packed", "train", modalities=["s2"], targets=())) == facts
    for other in (loose.take(np.arange(9)[::-1]), loose.take(np.arange(8)), open_dataset(name, root, "test")):
        assert tiles_facts(other) != facts
    list_tiles(root, TILES + 1)
    assert tiles_facts(open_dataset(name, root, "train")) != facts


def test_a_run_folder_refuses_other_data_by_name_and_keeps_what_it_knows(tmp_path):
    options = {"config": {}, "seed": 0, "resume": True}
    begun = {"train": {"tiles": 3, "sha256": "a"}, "val": {"tiles": 1, "sha256": "b"}}
    for _ in range(2):
        with open_run(tmp_path / "run", data=begun, **options):
            pass
    for other, told in (
        ({"tiles": 3, "sha256": "c"}, "3 others"),
        ({"tiles": 4, "sha256": "c"}, "4 others"),
        (None, "none"),
    ):
        data = {**begun, "val": other} if other else {"train": begun["train"]}
        refused = pytest.raises(InputError, match=rf"val: expected the 1 tiles .* started with, .*got {told}.*--out")
        with refused, open_run(tmp_path / "run", data=data, **options):
            pass
    (tmp_path / "run" / DATA).unlink()  # as in a run of an earlier version
    with open_run(tmp_path / "run", data={"train": begun["val"]}, **options):
        pass


def test_pretraining_is_not_gone_on_with_on_tiles_of_another_table(meadows, tmp_path):
    root, name = meadows
    part = world(dataset=name, world=None, root=str(root), val_split=None, patch_sizes_m=[20])
    pretrain(tiny(tmp_path / "run", part, resume=True, max_steps=1))
    list_tiles(root, TILES + 2)
    with pytest.raises(InputError, match=r"part 1 \(meadows\), train"):
        pretrain(tiny(tmp_path / "run", part, resume=True))


def part_of(root, description, **options):
    return world(dataset=str(description), world=None, root=str(root), val_split=None, patch_sizes_m=[20], **options)


@pytest.mark.parametrize("other", ["its own description", "its own folder"])
def test_two_datasets_of_one_name_are_not_mixed(other, meadows, tmp_path):
    """They would share statistics, and metrics."""
    root, name = meadows
    copied = shutil.copytree(root, tmp_path / "far")
    parts = [part_of(root, name), part_of(copied, copied / "meadows.yaml" if other.endswith("description") else name)]
    told = r"part 2 of the mixture: expected another name than part 1.*'meadows'.*give one of them another `name`"
    with pytest.raises(InputError, match=told):
        pretrain(tiny(tmp_path / "run", *parts))
    assert not (tmp_path / "run").exists()


def test_parts_of_one_dataset_and_of_generated_worlds_are_mixed(meadows, monkeypatch):
    root, name = meadows
    monkeypatch.chdir(root)
    there = os.path.relpath(name)
    parts = [part_of(root, name), part_of(".", there, batch_size=1), world("s1", tiles=8), world("alos", tiles=6)]
    _check_names([open_part(PretrainConfig(data=parts), part) for part in parts])


def test_classes_that_tell_what_is_drawn_are_part_of_the_data(meadows, tmp_path):
    root, name = meadows
    part = world(dataset=name, world=None, root=str(root), val_split=None, patch_sizes_m=[20], sampler="sqrt_frequency")
    pretrain(tiny(tmp_path / "run", part, resume=True, max_steps=1))
    list_tiles(root, TILES, KINDS[::-1])
    with pytest.raises(InputError, match=r"part 1 \(meadows\), train"):
        pretrain(tiny(tmp_path / "run", part, resume=True))


def test_fine_tuning_is_not_gone_on_with_where_other_tiles_are_held_out(meadows, run_task):
    root, name = meadows
    words = [f"--data.dataset={name}", f"--data.root={root}", "--data.val=null", "--data.val-frac=0.3",
             "--patch-sizes-m=[20]", "--epochs=2", "--batch-size=2", "--max-steps=1", "--report=false"]  # fmt: skip
    status, _, err = run_task("finetune", *words)
    assert status == 0, err
    list_tiles(root, TILES + 1)
    status, _, err = run_task("finetune", "--resume")
    assert status == 2
    assert "train: expected the 6 tiles that the run was started with" in err
