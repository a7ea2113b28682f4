"""`anysat evaluate --compare` in turns: folds of blocks against an obvious loop, and folds that a dataset gives."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pyproj import Transformer
from sklearn.linear_model import LogisticRegression

from anysat import AnySat, Batch, ModelConfig
from anysat.cli import main
from anysat.data.base import Target
from anysat.data.datasets.world import WorldSettings
from anysat.data.open import find_dataset, open_dataset
from anysat.data.splits import block_numbers, fold_numbers
from anysat.model.checkpoint import save
from anysat.model.digest import digest as sha256
from anysat.model.first_weights import init_isometric
from anysat.model.load import load
from anysat.normalise import Normaliser
from anysat.tasks.base import make_task
from anysat.tasks.simple import MODELS, models, outputs
from anysat.workflows.evaluate.comparison import _score
from anysat.workflows.evaluate.features import FeatureSet
from anysat.workflows.evaluate.told import Comparison, Line
from anysat.workflows.evaluate.turns import Turns
from anysat.workflows.supervised.config import LabelledData
from miniatures import miniature

WORLD = {"tiles": 24, "seed": 7, "modalities": ["s1"], "extent_m": 60}
TARGET, CLASSES = "land_cover", 7
BLOCK_KM = 150
FOLDS = 3
COUNTS = {"sickle": 6, "timesen2crop": 12}
"""Tiles of miniatures; those of SICKLE are maps, and take long."""


@pytest.fixture
def compared(tmp_path, capsys):
    """Compares simple models in the world; gives exit status, record, report and errors."""

    def call(*words):
        path = tmp_path / "all.json"
        options = ["--data.dataset=world", f"--data.world={json.dumps(WORLD)}", f"--data.target={TARGET}",
                   "--data.modalities=[s1]", "--weights=[]", "--models=[logistic]", f"--out={path}"]  # fmt: skip
        status = main(["evaluate", "--compare", *options, *words])
        said = capsys.readouterr()
        return status, json.loads(path.read_text()) if path.exists() else None, said.out, said.err

    return call


def miou(pairs):
    """Of (truth, answer)."""
    found = []
    for number in range(CLASSES):
        both = sum(t == a == number for t, a in pairs)
        either = sum(number in (t, a) for t, a in pairs)
        if either:
            found.append(both / either)
    return float(np.mean(found))


def pixels(tile):
    """Mean and deviation over dates of each band, and the class, of every pixel."""
    seen = tile.observations["s1"]
    for row in range(6):
        for col in range(6):
            features = []
            for moment in (np.mean, np.std):
                features += [moment(seen.values[seen.valid[:, band, row, col], band, row, col].astype(float))
                             for band in range(3)]  # fmt: skip
            yield features, int(tile.targets[TARGET][row, col])


def slowly(tiles, blocks, folds):
    """(truth, answer) of every pixel, by block: logistic regression on statistics, each fold scored once."""
    found = {int(block): [] for block in blocks}
    for turn in range(FOLDS):
        sides = {"train": [], "val": [], "test": []}
        for number, tile in enumerate(tiles):
            side = (
                "test" if folds[number] == turn else "val" if folds[number] == (turn + FOLDS - 1) % FOLDS else "train"
            )
            sides[side] += [(features, truth, number) for features, truth in pixels(tile)]
        known = np.array([features for features, _, _ in sides["train"]])
        arrays = {
            side: (np.array([f for f, _, _ in rows]) - known.mean(0)) / known.std(0) for side, rows in sides.items()
        }
        truths = {side: [t for _, t, _ in rows] for side, rows in sides.items()}
        fitted = [LogisticRegression(C=c, max_iter=1000).fit(arrays["train"], truths["train"]) for c in (0.01, 0.1, 1)]
        best = max(fitted, key=lambda model: miou(list(zip(truths["val"], model.predict(arrays["val"]), strict=True))))
        for (_, truth, number), answer in zip(sides["test"], best.predict(arrays["test"]), strict=True):
            found[int(blocks[number])].append((truth, int(answer)))
    return found


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    """All tiles in the order of the splits, and the block of each, by its centre."""
    root = tmp_path_factory.mktemp("world")
    (root / "world.json").write_text(json.dumps(WorldSettings.of(WORLD).to_dict()))
    tiles = [tile for split in ("train", "val", "test")
             for tile in open_dataset("world", root, split, modalities=["s1"], targets=(TARGET,))]  # fmt: skip
    corners = []
    for tile in tiles:
        place, (rows, cols) = tile.geobox.affine, tile.geobox.shape
        middle = (place.c + place.a * cols / 2, place.f + place.e * rows / 2)
        lon, lat = Transformer.from_crs(str(tile.geobox.crs), "EPSG:4326", always_xy=True).transform(*middle)
        row = lat * 111.195 // BLOCK_KM
        width = np.cos(np.radians((row + 0.5) * BLOCK_KM / 111.195))
        corners.append((lon * 111.195 * width // BLOCK_KM, row))
    return tiles, np.array([sorted(set(corners)).index(corner) for corner in corners])


def test_folds_of_blocks_give_what_an_obvious_loop_gives(compared, ground):
    tiles, blocks = ground
    folds = fold_numbers(blocks, FOLDS)
    status, found, out, err = compared(f"--folds={FOLDS}", f"--block-km={BLOCK_KM}")
    assert status == 0, err
    assert len(set(blocks)) > FOLDS
    line = next(line for line in found["lines"] if line["features"] == "statistics")
    wanted = slowly(tiles, blocks, folds)
    every = [pair for pairs in wanted.values() for pair in pairs]
    assert line["num_samples"] == len(every) == 36 * len(tiles)
    assert line["figures"]["miou"] == pytest.approx(miou(every), abs=1e-9)
    assert line["figures"]["accuracy"] == pytest.approx(np.mean([t == a for t, a in every]), abs=1e-9)
    rng, drawn = np.random.default_rng(1), []
    shares = [(sum(t == a for t, a in pairs), len(pairs)) for pairs in wanted.values()]
    for _ in range(4000):
        right, count = np.array(shares)[rng.integers(len(shares), size=len(shares))].sum(0)
        drawn.append(right / count)
    assert line["intervals"]["accuracy"] == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.01)
    assert (found["folds"]["turns"], found["folds"]["groups"]) == (FOLDS, len(set(blocks)))
    assert found["lines"][0]["num_tiles"] == found["lines"][0]["num_labelled_tiles"] == len(tiles)
    assert found["lines"][0]["num_samples"] == 36 * len(tiles)
    assert f"{FOLDS} folds, 95 % interval over {len(set(blocks))} blocks of {BLOCK_KM} km" in out


def test_folds_keep_the_mark_worse_than_band_statistics(compared):
    _, found, out, _ = compared(f"--folds={FOLDS}", "--block-km=50", "--models=[logistic,neighbours]")
    best = max(line["figures"]["miou"] for line in found["lines"] if line["features"] == "statistics")
    for line in found["lines"]:
        low, high = line["difference"]
        if line["against_baseline"] == "baseline":
            assert (line["features"], line["figures"]["miou"], low, high) == ("statistics", best, 0, 0)
        else:
            wanted = "better" if low > 0 else "worse" if high < 0 else "not better"
            assert line["against_baseline"] == wanted
            assert low <= line["figures"]["miou"] - best <= high
    for verdict in ("better", "worse", "not better"):
        shown = len(re.findall(rf"\) {verdict} than band statistics", out))
        assert shown == sum(line["against_baseline"] == verdict for line in found["lines"])


def test_a_line_is_worse_only_where_the_whole_interval_of_the_paired_difference_is():
    truth = torch.arange(60) % 3
    for target, worse, better in (("class", [0.5, 0.9], [1.0, 0.9]), ("value", [2.0, 1.0], [0.5, 1.0])):
        assert verdicts(target, truth, worse, better) == ["worse", "not better"]
        assert verdicts(target, truth, better[:1], worse[:1]) == ["better"]


def verdicts(kind, truth, lines, baseline):
    """Of lines beside a baseline: shares that are right, or sizes of error of which half have the other sign."""
    task = make_task(Target(name="x", level="tile", kind=kind, classes=("a", "b", "c") if kind == "class" else ()))

    def line(features, quality, seed):
        draw = torch.Generator().manual_seed(seed)
        sheet = task.metric()
        if kind == "class":
            told = truth.where(torch.rand(60, generator=draw) < quality, (truth + 1) % 3)
            sheet.update(10.0 * torch.nn.functional.one_hot(told, 3), truth)
        else:
            sheet.update(truth + quality * torch.randn(60, generator=draw), truth.float())
        made = FeatureSet(name=features, num_features=1, seconds=0.0)
        return Line(features=made, model="logistic", scores=sheet.compute(), seconds=0.0)

    found = []
    for seed, (own, simple) in enumerate(zip(lines, baseline, strict=False)):
        both = [line("statistics", simple, seed), line("ours", own, seed + 10)]
        turns = Turns(roles=np.zeros((1, 60)), groups=np.arange(60), unit="tiles", selected_on="val")
        comparison = Comparison(lines=both, task=task, turns=turns, num_tiles=60)
        assert comparison.verdict(0) == "baseline"
        found.append(comparison.verdict(1))
    return found


def test_members_that_take_turns_are_each_scored_once(compared, ground):
    status, found, out, err = compared("--data.folds=[train,val,test]")
    assert status == 0, err
    assert [turn["test"] for turn in found["folds"]["tiles"]] == [20, 2, 2]
    assert found["lines"][0]["num_samples"] == 36 * len(ground[0])
    assert "3 folds, 95 % interval over 24 tiles" in out


def test_folds_refuse_what_they_cannot_do(compared):
    for words, told in (
        (["--folds=2"], "3 or more"),
        (["--folds=5", "--block-km=100000"], "at least as many blocks"),
        (["--folds=3", "--data.folds=[train,val,test]"], "got both"),
        (["--data.folds=[train,val]"], "three or more members"),
        (["--block-km=0"], "a length above 0"),
    ):
        status, _, _, err = compared(*words)
        assert status == 2, words
        assert told in err, (words, err)


def test_tiles_without_coordinates_cannot_be_in_blocks(capsys):
    root = miniature("timesen2crop", tiles=12)
    words = ["evaluate", "--compare", "--data.dataset=timesen2crop", f"--data.root={root}", "--weights=[]", "--folds=3"]
    assert main(words) == 2
    assert "tiles with coordinates" in capsys.readouterr().err


# -- statistics of the bands, which standardise what encoders see


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A very small encoder without statistics."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save(AnySat(ModelConfig(dim=64, depth=1, num_heads=2, subpatch_order="raster", pixel_dropout_prob=0.0)), path)
    return path


@pytest.fixture
def embedded(weights):
    """Compares embeddings on a miniature; gives the names of the files that are in the cache after it."""

    def call(name, cache, *words):
        options = [f"--data.dataset={name}", f"--data.root={miniature(name, tiles=COUNTS[name])}", f"--weights=[{weights}]",
                   f"--data.target={find_dataset(name).targets[0].name}", "--data.modalities=[s2]",
                   "--models=[neighbours]", f"--cache={cache}"]  # fmt: skip
        assert main(["evaluate", "--compare", *options, *words]) == 0
        return {path.name for path in cache.iterdir()}

    return call


def test_two_datasets_in_one_cache_keep_their_own_statistics(embedded, tmp_path):
    both = embedded("timesen2crop", tmp_path / "both")
    both = embedded("sickle", tmp_path / "both") - both
    assert both == embedded("sickle", tmp_path / "alone")


def test_two_training_splits_in_one_cache_keep_their_own_statistics(embedded, tmp_path):
    first, other = embedded("timesen2crop", tmp_path / "both"), ["--data.train=val", "--data.val=train"]
    second = embedded("timesen2crop", tmp_path / "both", *other) - first
    assert second == embedded("timesen2crop", tmp_path / "alone", *other)


@pytest.mark.filterwarnings("ignore:no training tile of")
def test_a_share_of_the_training_tiles_is_standardised_as_all_of_them(embedded, tmp_path):
    whole = embedded("timesen2crop", tmp_path / "whole")
    some = embedded("timesen2crop", tmp_path / "some", "--data.train-frac=0.5")
    assert len(whole & some) == 2, "of the tiles of val and test"


def test_every_turn_is_standardised_by_its_own_training_tiles(embedded, tmp_path):
    members = ["--data.folds=[train,val,test]"]
    asked = embedded("timesen2crop", tmp_path / "turns", *members)
    alone = [
        embedded("timesen2crop", tmp_path / train, f"--data.train={train}", f"--data.val={val}", f"--data.test={test}")
        for train, val, test in (("val", "test", "train"), ("test", "train", "val"), ("train", "val", "test"))
    ]
    assert asked == set.union(*alone)
    assert len(asked) == 3 * 3


def test_a_comparison_sees_the_tiles_as_it_is_told_to(embedded, tmp_path):
    cache, statistics = tmp_path / "cache", tmp_path / "own.json"
    tiles = open_dataset("sickle", miniature("sickle", tiles=COUNTS["sickle"]), "test", modalities=["s2", "s1"])
    Normaliser.from_batch(Batch.of([tiles[0]])).save(statistics)
    seen, both = set(), "--data.modalities=[s2,s1]"
    for words in ([], ["--day-convention=days_since 2015-01-01"], [f"--statistics={statistics}"], ["--dense=s1"]):
        found = embedded("sickle", cache, both, *words)
        assert found > seen, words
        seen = found
    assert embedded("sickle", cache, both, "--dense=s2") == seen, "what is chosen where nothing is said"


def test_new_weights_begin_as_they_are_told_to(weights, tmp_path):
    out, names = tmp_path / "all.json", [f"untrained:{weights}", f"isometric:{weights}"]
    assert main(["evaluate", "--compare", "--data.dataset=timesen2crop", "--models=[neighbours]", "--seed=3",
                 f"--data.root={miniature('timesen2crop', tiles=12)}", f"--weights=[{','.join(names)}]",
                 f"--cache={tmp_path / 'cache'}", f"--out={out}"]) == 0  # fmt: skip
    found = {name: one["sha256"] for name, one in json.loads(out.read_text())["weights"].items()}
    config = load(weights).config
    for name, begin in zip(names, (lambda _: None, init_isometric), strict=True):
        torch.manual_seed(3)
        expected = AnySat(config)
        begin(expected)
        assert found[name] == sha256(expected), name


# -- the parts


def test_a_block_is_in_one_fold_and_folds_are_alike():
    rng = np.random.default_rng(0)
    x_m, y_m = rng.uniform(0, 1e5, (2, 500))
    blocks = block_numbers(x_m, y_m, 1e4)
    for one, other in rng.integers(500, size=(300, 2)):
        same = (x_m[one] // 1e4, y_m[one] // 1e4) == (x_m[other] // 1e4, y_m[other] // 1e4)
        assert (blocks[one] == blocks[other]) == same
    folds = fold_numbers(blocks, 5, seed=3)
    assert all(len(set(folds[blocks == block])) == 1 for block in set(blocks))
    assert np.ptp(np.bincount(folds)) <= 2
    assert (folds == fold_numbers(blocks, 5, seed=3)).all()
    assert (folds != fold_numbers(blocks, 5, seed=4)).any()


def test_turns_of_members_score_each_once_and_choose_on_the_one_before():
    turns = LabelledData(dataset="x", folds=["a", "b", "c", "d"]).turns()
    assert {test: (one.train, one.val) for test, one in turns.items()} == {
        "a": ("b+c", "d"), "b": ("c+d", "a"), "c": ("a+d", "b"), "d": ("a+b", "c"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("dataset", "modality", "primary"), [("treesatai_ts", "s1-asc", "f1_weighted"), ("biomassters", "s1", "rmse")]
)
def test_labels_and_values_are_compared_too(dataset, modality, primary, tmp_path, capsys):
    """Of the miniature's labels some never occur in training, and some always do."""
    path = tmp_path / "all.json"
    words = [f"--data.dataset={dataset}", f"--data.root={miniature(dataset)}", "--weights=[]", f"--out={path}",
             f"--data.modalities=[{modality}]", "--models=[logistic]", "--max-pixels=300"]  # fmt: skip
    status = main(["evaluate", "--compare", *words])
    assert status == 0, capsys.readouterr().err
    found = json.loads(path.read_text())
    assert found["primary"] == primary
    assert {line["model"] for line in found["lines"]} == {"ridge" if primary == "rmse" else "logistic"}
    assert all(np.isfinite(line["figures"][primary]) for line in found["lines"])


@pytest.mark.parametrize(("kind", "outputs_of", "is_constant"), [
    ("class", [[0.9, 0.1], [0.7, 0.3]], True), ("class", [[0.9, 0.1], [0.3, 0.7]], False),
    ("labels", [[-1.0, -2.0], [-3.0, -0.5]], True), ("labels", [[-1.0, 2.0], [-3.0, -0.5]], False),
    ("value", [[1.0], [1.0]], True), ("value", [[1.0], [1.1]], False),
])  # fmt: skip
def test_one_answer_for_all_is_told_by_answers_not_by_probabilities(kind, outputs_of, is_constant, monkeypatch):
    monkeypatch.setattr("anysat.workflows.evaluate.comparison.outputs", lambda *_: torch.tensor(outputs_of))
    truth = np.array([[0, 1], [1, 0]]) if kind == "labels" else np.array([0, 1])
    target = Target(name="t", level="tile", kind=kind, classes=() if kind == "value" else ("a", "b"))
    samples = SimpleNamespace(places=SimpleNamespace(truth=truth, tile=np.arange(2)),
                              turns=SimpleNamespace(groups=np.arange(2)))  # fmt: skip
    task = make_task(target)
    assert _score(task.metric(), None, np.zeros((2, 1)), np.arange(2), samples, task) == is_constant


@pytest.mark.parametrize("name", MODELS)
def test_a_label_that_never_or_always_occurs_in_training_is_told_so(name):
    rng = np.random.default_rng(0)
    features, sometimes = rng.normal(size=(40, 3)), rng.integers(2, size=40)
    truth = np.stack([np.zeros(40, int), sometimes, np.ones(40, int)], axis=1)
    task = make_task(Target(name="t", level="tile", kind="labels", classes=("never", "at times", "always")))
    told = outputs(models(task.target, 0, 40)[name][0].fit(features, truth), features, task)
    assert (told[:, 0] < -10).all()
    assert (told[:, 2] > 10).all()
    assert told[sometimes == 1, 1].mean() > told[sometimes == 0, 1].mean()
