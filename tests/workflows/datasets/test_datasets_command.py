"""`anysat datasets list, describe, check, show`, the picture of a sample, and the datasets in the documentation."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from anysat.batch import Tile
from anysat.cli import main
from anysat.data.check import CHECKS
from anysat.data.open import dataset_names, find_dataset, open_dataset
from anysat.modalities import MODALITIES
from anysat.observation import Observation
from anysat.picture_samples import class_colours, sample_figure
from anysat.workflows.datasets.facts import patch_sizes
from miniatures import copied, miniature


def run(capsys, *words):
    status = main(["datasets", *map(str, words)])
    return status, capsys.readouterr()


def test_list_names_every_dataset(capsys):
    status, printed = run(capsys, "list")
    assert status == 0
    assert all(name in printed.out for name in dataset_names())


def test_list_as_json_holds_every_record(capsys):
    _, printed = run(capsys, "list", "--json", "true")
    assert [record["name"] for record in json.loads(printed.out)] == dataset_names()


def test_describe_tells_files_targets_splits_and_notes(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    status, printed = run(capsys, "describe", "treesatai_ts")
    record = find_dataset("treesatai_ts")
    assert status == 0
    for text in ("sentinel-ts/{id}_{year}.h5", "[sen-2-data]", "checked against five real tiles", "Pseudotsuga",
                 "layout not checked against a real file", record.split_rule, record.homepage, record.notes[0]):  # fmt: skip
        assert text in printed.out


@pytest.mark.parametrize("name", dataset_names())
def test_describe_as_json_holds_every_entry(name, capsys):
    _, printed = run(capsys, "describe", name, "--json", "true")
    told = json.loads(printed.out)
    entries = [[entry["path"] for entry in layout["entries"]] for layout in told["layouts"]]
    assert entries == [[entry.path for entry in layout.entries] for layout in find_dataset(name).layouts]


@pytest.mark.parametrize("name", dataset_names())
def test_describe_prints_every_dataset(name, capsys):
    assert run(capsys, "describe", name)[0] == 0


def test_check_exits_with_0_where_nothing_looks_wrong(capsys):
    status, printed = run(capsys, "check", "treesatai_ts", miniature("treesatai_ts"))
    assert status == 0
    assert "6 of 6 tiles read, layout 'published' (five real tiles)" in printed.out
    assert "no problems found" in printed.out


@pytest.fixture
def damaged(tmp_path):
    root = copied("treesatai_ts", tmp_path)
    sorted(root.glob("aerial/*.tif"))[0].unlink()
    return root


def test_check_exits_with_1_and_says_what_where_and_what_to_do(capsys, damaged):
    status, printed = run(capsys, "check", "treesatai_ts", damaged)
    assert status == 1
    assert "error missing-file  aerial: aerial/World_0" in printed.out
    assert "take the sample out of the lists" in printed.out
    assert "1 errors, 0 warnings" in printed.out


def test_check_as_json_is_for_scripts(capsys, damaged):
    status, printed = run(capsys, "check", "treesatai_ts", damaged, "--json", "true")
    told = json.loads(printed.out)
    assert status == 1
    assert (told["errors"], told["warnings"], told["num_samples"]) == (1, 0, 6)
    assert told["findings"][0]["kind"] == "missing-file"


def test_check_reads_as_many_tiles_as_asked_for(capsys):
    _, printed = run(capsys, "check", "treesatai_ts", miniature("treesatai_ts"), "--samples", "2", "--split", "train")
    assert "2 of " in printed.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("check", "treesat", "."), "unknown dataset 'treesat'"),
        (("check", "treesatai_ts"), "PATH: expected a value"),
        (("check", "treesatai_ts", "none"), "no such file or folder"),
        (("check", "treesatai_ts", ".", "--samples", "0"), "--samples: expected one tile or more"),
        (("show", "treesatai_ts", ".", "--out", "a.jpg"), "--out: expected a name ending in .png, .pdf or .svg"),
        (("describe", "nothing.yaml"), "nothing.yaml"),
    ],
)
def test_a_mistake_in_the_call_exits_with_2_and_says_which(words, message, capsys):
    status, printed = run(capsys, *words)
    assert status == 2
    assert message in printed.err


def test_own_data_are_checked_by_their_yaml_file(capsys, tmp_path):
    rng = np.random.default_rng(0)
    from anysat.data.files import write_file
    from anysat.data.world import World

    for index in range(2):
        place = World(0).tile(index, extent_m=60.0)
        photo = place.observe("naip", gsd_m=1.25, extent_m=60.0).values + rng.normal(0, 1, (4, 48, 48))
        geobox = place.geobox(1.25)
        write_file(tmp_path / f"naip/{index}.tif", {None: photo.clip(0, 255).astype(np.uint8)}, geobox)
    (tmp_path / "mine.yaml").write_text(
        "{name: mine, tile_m: 60, modalities: {naip: {path: 'naip/{id}.tif', bands: [R, G, B, NIR]}}}"
    )
    status, printed = run(capsys, "check", tmp_path / "mine.yaml", tmp_path)
    assert "2 of 2 tiles read" in printed.out
    assert status == 0, printed.out


def test_show_writes_a_picture_and_says_of_what(capsys, tmp_path):
    out = tmp_path / "look.png"
    status, printed = run(capsys, "show", "treesatai_ts", miniature("treesatai_ts"), "--index", "1", "--out", out)
    assert status == 0
    assert out.read_bytes().startswith(b"\x89PNG")
    assert "number 1 of" in printed.out
    assert list(tmp_path.iterdir()) == [out]


def test_show_replaces_a_picture_only_when_asked_to(capsys, tmp_path):
    out = tmp_path / "look.png"
    out.write_text("mine")
    words = ("show", "treesatai_ts", miniature("treesatai_ts"), "--out", out)
    status, printed = run(capsys, *words)
    assert (status, out.read_text()) == (2, "mine")
    assert "exists" in printed.err
    assert run(capsys, *words, "--overwrite", "true")[0] == 0
    assert out.read_bytes().startswith(b"\x89PNG")


def test_show_says_how_many_samples_there_are(capsys, tmp_path):
    words = ("show", "treesatai_ts", miniature("treesatai_ts"), "--index", "99", "--out", tmp_path / "a.png")
    status, printed = run(capsys, *words)
    assert status == 2
    assert "--index: expected 0 to" in printed.err


def test_picture_shows_every_modality_with_its_dates_and_the_labels_in_words():
    tile = open_dataset("treesatai_ts", miniature("treesatai_ts"), "all")[0]
    figure = sample_figure(tile, find_dataset("treesatai_ts").targets, "treesatai_ts")
    figure.draw_without_rendering()
    titles = [axes.get_title() for axes in figure.axes]
    assert [title.split(":")[0] for title in titles] == ["aerial", "s2", "s1-asc", "s1-des"]
    assert "median of 24 dates, 2018-" in titles[1]
    assert "genera: " in figure.get_suptitle()
    assert "° N" in figure.get_suptitle()


def test_long_titles_are_wrapped_within_the_picture_and_dates_stay_whole():
    days = np.datetime64("2020-01-03") + 6 * np.arange(60)
    seen = [Observation.of(MODALITIES[key], np.ones((60, 2 if key != "s2" else 10, 6, 6)), dates=days) for key in
            ("s2", "s1-asc", "s1-des")]  # fmt: skip
    figure = sample_figure(Tile.of(*seen), [], "mine")
    figure.draw_without_rendering()
    right = [axes.title.get_window_extent().x1 for axes in figure.axes]
    assert max(right) <= figure.bbox.x1
    assert figure.axes[1].get_title().splitlines()[1] == "2020-12-22"


def flooded(**target):
    s2 = Observation.of(MODALITIES["s2"], np.ones((1, 10, 512, 512)), dates=["2019-09-18"])
    labels = np.zeros((512, 512), np.int64)
    labels[:128], labels[128:256] = 1, -1
    return sample_figure(Tile.of(s2, targets={"flood": labels}), find_dataset("sen1floods11").targets, "sen1floods11")


def test_picture_of_classes_has_a_legend_with_shares():
    figure = flooded()
    (legend,) = [axes.get_legend() for axes in figure.axes if axes.get_legend()]
    record = find_dataset("sen1floods11")
    dry, water = record.target("flood").classes
    assert [text.get_text() for text in legend.get_texts()] == [f"{dry} (50%)", f"{water} (25%)", "no label (25%)"]


def test_picture_of_classes_has_north_at_the_top_and_grey_where_there_is_no_label():
    image = next(axes for axes in flooded().axes if axes.get_title().startswith("flood")).images[0]
    colours = class_colours(2)
    np.testing.assert_allclose(image.get_array()[0, 0], colours[1])
    np.testing.assert_allclose(image.get_array()[200, 0], (0.85, 0.85, 0.85))
    np.testing.assert_allclose(image.get_array()[-1, 0], colours[0])
    assert image.origin == "upper"


def test_picture_of_values_has_a_scale():
    s2 = Observation.of(MODALITIES["s2"], np.ones((1, 10, 256, 256)), dates=["2019-09-18"])
    biomass = np.random.default_rng(0).uniform(0, 300, (256, 256)).astype(np.float32)
    figure = sample_figure(
        Tile.of(s2, targets={"biomass": biomass}), find_dataset("biomassters").targets, "biomassters"
    )
    assert [axes.get_ylabel() for axes in figure.axes if axes.get_label() == "<colorbar>"] == ["t/ha"]


def test_a_series_of_one_pixel_is_drawn_as_curves_not_as_a_median():
    pixel = Observation.of(MODALITIES["s2"], np.ones((2, 10, 1, 1)), dates=["2019-09-18", "2019-10-18"])
    axes = sample_figure(Tile.of(pixel), [], "PLANTED").axes[0]
    assert axes.get_title() == "s2: 2 dates, 2019-09-18 to 2019-10-18\none pixel, 100% valid"
    assert len(axes.lines) == 10
    assert not axes.images


@pytest.mark.parametrize("count", [2, 10, 20, 40, 60])
def test_colours_of_classes_differ(count):
    assert len(np.unique(class_colours(count), axis=0)) == count


@pytest.fixture(scope="module")
def hooks():
    path = Path(__file__).parents[3] / "docs/hooks.py"
    spec = importlib.util.spec_from_file_location("hooks", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_documentation_has_a_row_and_a_layout_table_for_every_dataset(hooks):
    page = hooks.on_page_markdown("<!-- datasets -->\n<!-- dataset layouts -->")
    for name in dataset_names():
        record = find_dataset(name)
        assert f"| [`{name}`](#{name}) |" in page
        assert f"## {record.title} {{ #{name} }}" in page
        for layout in record.layouts:
            assert all(f"`{entry.path}`" in page for entry in layout.entries)
    assert "layout not checked against a real file" in page


def test_documentation_has_a_row_for_every_kind_of_finding(hooks):
    page = hooks.on_page_markdown("<!-- checks -->")
    assert all(f"| `{kind}` |" in page for kind in CHECKS)


def test_rows_of_documentation_tables_have_the_columns_of_their_head(hooks):
    page = hooks.on_page_markdown("<!-- datasets -->\n\n<!-- dataset layouts -->\n\n<!-- checks -->")
    width = 0
    for line in page.splitlines():
        if line.startswith("|"):
            cells = line.replace("\\|", "").count("|")
            width = width or cells
            assert cells == width, line
        else:
            width = 0


def test_patch_sizes_are_listed_in_order_and_the_default_is_named_where_it_is_not_the_smallest():
    record = find_dataset("treesatai_ts")
    assert patch_sizes(replace(record, patch_sizes_m=(10.0, 30.0, 20.0))) == "10 20 30"
    assert patch_sizes(replace(record, patch_sizes_m=(40.0, 10.0, 20.0))) == "10 20 40 (default 40)"
