"""The demo: what its page says, what it refuses, and that it needs nothing from outside."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from anysat.data.datasets import bigearthnet_pairs
from anysat.errors import PatchSizeError, RecordError, SourceError, WriteError
from anysat.model.checkpoint import save
from anysat.model.config import ModelConfig
from anysat.model.encoder import AnySat
from anysat.workflows.demo import DemoConfig, demo
from anysat.workflows.demo import data as demo_data
from anysat.workflows.demo.page import Match, PairView, QueryView, Report, render
from anysat.workflows.demo.steps import (
    LARGE_CROP_M,
    SizeResult,
    affordable_m,
    apart,
    choose_model,
    cosine,
    maps_of,
    size_for_queries,
)

needs_imagery = pytest.mark.skipif(
    importlib.util.find_spec(bigearthnet_pairs.PACKAGE) is None,
    reason=f"imagery is missing: {bigearthnet_pairs.INSTALL}",
)


def _weights(folder: Path, **provenance: str) -> Path:
    torch.manual_seed(0)
    model = AnySat(ModelConfig(dim=64, depth=1, num_heads=2))
    model.provenance = provenance or model.provenance
    save(model, folder / "small.safetensors")
    return folder / "small.safetensors"


def _report(**changes: object) -> Report:
    image = np.zeros((4, 4, 3), np.uint8)
    pairs = [
        PairView(letter=letter, name=f"patch_{letter}", place="1 N", labels=["<Rice> & fields"],
                 pictures=[("s2", image)])
        for letter in "AB"
    ]  # fmt: skip
    match = Match(where="A", image=image, similarity=0.5)
    values = {
        "untrained": False, "story": "Weights: mine.", "patch_sizes_m": [40.0, 120.0], "pairs": pairs,
        "similarity": np.eye(2, dtype=np.float32), "queries": [QueryView(query=match, nearest=[match])], "query_size_m": 120.0,
        "facts": [], "timings": [], "command": "anysat demo",
    }  # fmt: skip
    return Report(**{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("demo")
    said = demo(DemoConfig(out=str(folder / "out"), weights=str(_weights(folder)), crop_m=240))
    assert "UNTRAINED" in said
    assert str(folder / "out" / "index.html") in said
    assert [path.name for path in (folder / "out").iterdir()] == ["index.html"]
    return (folder / "out" / "index.html").read_text()


@needs_imagery
def test_page_loads_nothing_from_outside(page: str) -> None:
    sources = re.findall(r"""(?:src|href)\s*=\s*["']([^"']{0,40})""", page)
    assert sources
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r"@import|url\(|<script|<link|<iframe", page)


@needs_imagery
def test_page_shows_all_six_pairs_with_their_classes_and_both_patch_sizes(page: str) -> None:
    assert page.count('<section class="pair">') == 6
    for word in ("S2A_MSIL2A_20170613T101031_87_48", "S2B_MSIL2A_20180204T94161_57_38", "Peatbogs", "2018-02-04"):
        assert word in page
    assert page.count("patches, 40 m") == page.count("patches, 120 m")
    assert "patches, 40 m" in page


@needs_imagery
def test_page_says_untrained_in_large_letters(page: str) -> None:
    assert "<strong>UNTRAINED MODEL</strong>" in page
    assert "Nothing here was learned" in page


@needs_imagery
def test_page_tells_timings_versions_and_the_command(page: str) -> None:
    assert "patches/s" in page
    assert f"torch {torch.__version__}" in page
    assert "anysat demo --out" in page
    assert "--patch-sizes-m" in page


def test_page_of_trained_weights_does_not_say_untrained() -> None:
    made = render(_report())
    assert "UNTRAINED" not in made
    assert "Nothing here was learned" not in made
    assert "Weights: mine." in made


def test_page_escapes_what_it_shows() -> None:
    made = render(_report(command="anysat demo --out '<b>'"))
    assert "&lt;Rice&gt; &amp; fields" in made
    assert "--out &#x27;&lt;b&gt;&#x27;" in made


def test_missing_package_is_refused_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, bigearthnet_pairs.PACKAGE, None)
    with pytest.raises(SourceError, match="pip install --no-deps bigearthnet-common"):
        demo(DemoConfig(out=str(tmp_path)))


def test_broken_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.tar.bz2").write_bytes(b"no archive")
    with pytest.raises(SourceError, match=r"broken\.tar\.bz2: cannot be unpacked"):
        demo_data.read_pairs({"s1": tmp_path / "broken.tar.bz2"})


@pytest.mark.parametrize("out", ["file", "file/below"])
def test_out_that_cannot_be_a_folder_is_refused_before_any_work(tmp_path: Path, out: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(WriteError, match="could not be written"):
        demo(DemoConfig(out=str(tmp_path / out), weights="nowhere.safetensors"))
    assert (tmp_path / "file").read_text() == "mine"


@needs_imagery
def test_patch_size_that_does_not_fit_is_refused_without_a_page(tmp_path: Path) -> None:
    config = DemoConfig(out=str(tmp_path / "out"), weights=str(_weights(tmp_path)), patch_sizes_m=[40, 70])
    with pytest.raises(PatchSizeError, match="70 m"):
        demo(config)
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("option", [{"patch_sizes_m": []}, {"crop_m": 5}, {"crop_m": 245}, {"crop_m": 2000}])
def test_impossible_option_is_refused_by_its_name(option: dict[str, object]) -> None:
    with pytest.raises(RecordError, match="--" + next(iter(option)).replace("_", "-")):
        DemoConfig(**option)  # type: ignore[arg-type]


@needs_imagery
def test_pairs_share_ground_and_have_every_band() -> None:
    pairs = demo_data.read_pairs(bigearthnet_pairs.find_archives())
    assert len(pairs) == 6
    for pair in pairs:
        assert {o.shape_px for o in pair.tile.observations.values()} == {(120, 120)}
        assert all(o.valid.all() for o in pair.tile.observations.values())
    assert demo_data.crop(pairs[0], 840).tile.observations["s1"].shape_px == (84, 84)


def test_large_model_on_a_cpu_gets_less_ground() -> None:
    with torch.device("meta"):
        large, small = AnySat(ModelConfig.base()), AnySat(ModelConfig.tiny())
    assert affordable_m(small) is None
    assert affordable_m(large.to_empty(device="cpu")) == LARGE_CROP_M


def test_setting_apart_removes_what_a_pair_or_a_position_has_in_common() -> None:
    random = np.random.default_rng(0)
    common = random.normal(size=(3, 1, 1, 8)) + random.normal(size=(1, 4, 5, 8))
    assert np.allclose(apart(common), 0)


def test_similarity_of_a_vector_with_itself_is_one() -> None:
    vectors = np.random.default_rng(0).normal(size=(4, 8))
    assert np.allclose(np.diag(cosine(vectors, 3 * vectors)), 1)


def test_demo_takes_the_model_that_ships_and_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anysat.model.checkpoint.download", lambda *_, **__: pytest.fail("asked the hub"))
    chosen = choose_model(None)
    assert not chosen.untrained
    assert chosen.model.config.dim == 160
    assert "nano" in chosen.story


def _results(*shapes: tuple[int, int]) -> list[SizeResult]:
    rng = np.random.default_rng(0)
    return [
        SizeResult(patch_size_m=600.0 / rows, tile=rng.normal(size=(2, 8)).astype(np.float32), dense=None, seconds=1.0,
                   patch=rng.normal(size=(2, rows, cols, 8)).astype(np.float32))
        for rows, cols in shapes
    ]  # fmt: skip


def test_neighbours_are_sought_among_the_largest_patches_of_which_a_tile_has_several() -> None:
    several, one = _results((3, 3), (1, 1))
    assert size_for_queries([several, one]) is several
    assert size_for_queries([one]) is None


def test_a_tile_of_one_patch_has_no_map_that_sets_it_apart() -> None:
    """Less the mean of its own pair nothing is left of it."""
    several, one = _results((3, 3), (1, 1))
    captions = [caption for caption, _ in maps_of("patches", [several.patch, one.patch], [" a", " b"])]
    assert captions == ["patches a: original", "patches a: centred", "patches b: original"]
    assert len(maps_of("patches", [one.patch])) == 1


def test_a_page_of_one_patch_per_tile_says_why_there_are_no_neighbours() -> None:
    page = render(_report(queries=[], query_size_m=None))
    assert "Which patches are alike?" not in page
    assert "each pair is a single patch" in page
    assert "The middle patch of each pair" in render(_report())
