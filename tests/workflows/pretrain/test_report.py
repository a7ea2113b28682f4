"""The report of a pretraining run: what it says loudly, which curves lie together, and that it is always one file."""

from __future__ import annotations

import base64
import io
import math
import re
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from anysat.batch import Tile
from anysat.errors import InputError, MissingFileError, WriteError
from anysat.modalities import MODALITIES
from anysat.observation import Observation
from anysat.probing.health import ABOUT, Health, HealthLimits
from anysat.train.metrics import write_metrics
from anysat.workflows.pretrain import curves as pretrain_curves
from anysat.workflows.pretrain.curves import panels_of
from anysat.workflows.pretrain.report import ProbeFigure, ReportInput, TileView, render, write_report

HEALTHY = {"health/spread": 0.5, "health/rank_frac": 0.3, "health/position_share": 0.1, "health/finite_frac": 1.0}


def _given(**changes: object) -> ReportInput:
    return ReportInput(**{"title": "nano", "step": 20, "num_steps": 20} | changes)  # type: ignore[arg-type]


def _curves(**changes: float) -> dict[str, list[tuple[int, float]]]:
    last = {"train/loss": 0.5} | HEALTHY | {name.replace("__", "/"): value for name, value in changes.items()}
    return {name: [(10, 0.7), (20, value)] for name, value in last.items()}


def _view(name: str, patch: np.ndarray) -> TileView:
    return TileView(name=name, imagery=[("s2", np.zeros((4, 4, 3), np.uint8))], patch=patch)


def _pictures(page: str, alt: str) -> list[np.ndarray]:
    found = re.findall(r'<img[^>]*src="data:image/png;base64,([^"]+)" alt="([^"]*)"', page)
    return [imread(io.BytesIO(base64.b64decode(data))) for data, name in found if alt in name]


def _lines(monkeypatch: pytest.MonkeyPatch, curves: dict) -> dict[str, list[str]]:
    """Labels of the lines of each panel, as drawn."""
    drawn: dict[str, list[str]] = {}
    draw = pretrain_curves._draw

    def look(axes, panel) -> None:
        draw(axes, panel)
        drawn[panel.name] = [f"{line.get_label()} {line.get_linestyle()}" for line in axes.get_lines()]

    monkeypatch.setattr(pretrain_curves, "_draw", look)
    render(_given(), curves)
    return drawn


def test_the_report_of_a_run_holds_its_metrics(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        write_metrics(tmp_path / "metrics.csv", step, {"train/loss": 1 / step})
    path = write_report(tmp_path, _given())
    assert path == tmp_path / "report.html"
    assert '<th scope="row">train/loss</th><td>0.3333</td><td>3</td>' in path.read_text("utf-8")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["metrics.csv", "report.html"]


def test_a_run_with_one_logged_step_has_a_report(tmp_path: Path) -> None:
    write_metrics(tmp_path / "metrics.csv", 1, {"train/loss": 0.25, "val/loss": 0.5} | HEALTHY)
    page = write_report(tmp_path, _given(step=1)).read_text("utf-8")
    assert "<b>Not finished:</b> 1 of 20 steps so far" in page
    assert "Healthy at step 1:" in page


def test_a_run_that_logged_nothing_has_a_report(tmp_path: Path) -> None:
    page = write_report(tmp_path, _given(step=0)).read_text("utf-8")
    assert "Nothing has been logged yet." in page
    assert "Health has not been measured yet." in page


def test_a_finished_run_is_not_called_unfinished() -> None:
    page = render(_given(), _curves())
    assert "Not finished" not in page
    assert "20 of 20 steps" in page


def test_the_page_loads_nothing() -> None:
    page = render(_given(tiles=[_view("a", np.ones((2, 2, 4)))]), _curves())
    assert not re.search(r'(src|href)="(?!data:)|url\(|@import|https?://', page)


def test_a_collapse_is_loud() -> None:
    page = render(_given(), _curves(health__spread=0.001))
    box = page[page.index('role="alert"') : page.index("<h2>")]
    assert "<strong>1 problem</strong>" in box
    assert "At step 20, spread is 0.001, less than 0.05" in box


def test_a_healthy_run_is_not_loud() -> None:
    assert 'role="alert"' not in render(_given(), _curves())


def test_where_most_of_what_differs_is_position_the_quiet_line_says_so() -> None:
    page = render(_given(), _curves(health__position_within_share=0.656))
    assert (
        "no metric is beyond its limit. But most of the difference between patches of a tile, 66 %, is position" in page
    )
    assert "But most" not in render(_given(), _curves(health__position_within_share=0.45))


def test_every_figure_of_health_is_explained_in_the_report_and_on_the_page() -> None:
    names = {item.name for item in fields(Health)} - {"num_samples", "retrieval_chance"}
    assert set(ABOUT) == names | {"neighbours", "linear"}
    howto = (Path(__file__).parents[3] / "docs" / "howto" / "pretrain.md").read_text()
    for name, about in ABOUT.items():
        told = render(_given(), _curves(**{f"health__{name}": 0.5}))
        assert f"<dt>{name}</dt><dd>{about}</dd>" in told
        assert f"| `{name}` | {about} |" in howto
    assert "retrieval" not in render(_given(), _curves()), "what was not measured is not explained"


def test_limits_of_the_run_decide_what_is_loud() -> None:
    given = _given(limits=HealthLimits(spread_min=0.6))
    assert "spread is 0.5, less than 0.6" in render(given, _curves())


def test_a_loss_that_is_no_longer_a_number_is_loud() -> None:
    page = render(_given(), _curves(train__loss=math.nan))
    assert "train/loss is nan at step 20: no longer a number" in page


def test_health_that_was_bad_and_is_good_is_not_loud() -> None:
    curves = _curves() | {"health/spread": [(10, 0.0), (20, 0.5)]}
    assert 'role="alert"' not in render(_given(), curves)


def test_training_and_validation_share_a_panel_and_the_loss_is_first() -> None:
    curves = {name: [(1, 1.0)] for name in ("train/predict", "train/loss", "val/loss", "train/tiles_per_s")}
    (panels,) = panels_of(curves, HealthLimits()).values()
    assert [panel.lines for panel in panels] == [
        {"train": "train/loss", "val": "val/loss"}, {"train": "train/predict"}, {"train": "train/tiles_per_s"},
    ]  # fmt: skip


def test_what_is_of_one_dataset_is_not_drawn_twice() -> None:
    names = ["train/loss", "train/world/loss", "train/my/world/loss"]
    assert "train/world" in panels_of({name: [(1, 1.0)] for name in names}, HealthLimits())
    assert list(panels_of({name: [(1, 1.0)] for name in names[:2]}, HealthLimits())) == ["Training"]


def test_every_metric_has_a_panel() -> None:
    names = {"train/loss", "val/loss", "health/retrieval", "health/retrieval_chance", "health/spread", "epoch",
             "neighbours/accuracy", "neighbours/chance", "own/metric"}  # fmt: skip
    groups = panels_of({name: [(1, 1.0)] for name in names}, HealthLimits())
    assert {name for panels in groups.values() for panel in panels for name in panel.lines.values()} == names
    assert list(groups)[:3] == ["Training", "Health", "Nearest neighbours"]


def test_a_figure_of_health_is_drawn_with_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = _lines(monkeypatch, {"health/spread": [(1, 0.5)], "train/top_frac": [(1, 0.5)], "health/other": [(1, 1.0)]})
    assert drawn["spread"] == ["spread -", "limit 0.05 --"]
    assert drawn["top_frac"] == ["train -"]
    assert drawn["other"] == ["other -"]


def test_chance_is_dotted_in_the_panels_it_belongs_to(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("neighbours/accuracy", "neighbours/chance", "health/retrieval", "health/retrieval_chance", "health/spread")
    drawn = _lines(monkeypatch, {name: [(1, 0.5), (2, 0.6)] for name in names})
    assert drawn["accuracy"] == ["accuracy -", "chance :"]
    assert drawn["retrieval"] == ["retrieval -", "chance :"]
    assert drawn["spread"] == ["spread -", "limit 0.05 --"]


def test_the_moving_average_is_the_mean_at_its_middle() -> None:
    steps, values = np.arange(400.0), np.random.default_rng(0).normal(size=400)
    at, mean = pretrain_curves._smooth(steps, values)
    place = int(np.flatnonzero(at == 103.5)[0])
    assert mean[place] == pytest.approx(np.mean([values[i] for i in range(100, 108)]))


def test_tiles_share_one_basis_of_colours() -> None:
    patch = np.random.default_rng(0).normal(size=(3, 4, 8))
    tiles = [_view("a", patch), _view("b", patch + 5), _view("c", patch)]
    one, other, again = _pictures(render(_given(tiles=tiles), {}), "original")
    assert (one == again).all()
    assert (one != other).any()


def test_tiles_that_differ_by_their_mean_alone_look_the_same_set_apart() -> None:
    patch = np.random.default_rng(0).normal(size=(3, 4, 8))
    tiles = [_view("a", patch), _view("b", patch + 5)]
    one, other = _pictures(render(_given(tiles=tiles), {}), "centred")
    assert np.abs(one - other).max() <= 1 / 255
    assert one.std() > 0.1


def test_patches_nobody_saw_are_white() -> None:
    patch = np.random.default_rng(0).normal(size=(3, 4, 8))
    patch[1, 2] = np.nan
    unseen = np.full((2, 2, 8), np.nan)
    page = render(_given(tiles=[_view("a", patch), _view("b", unseen)]), {})
    for kind in ("original", "centred"):
        picture, white = _pictures(page, kind)
        assert picture.shape[:2] == (3, 4)
        assert (picture[1, 2] == 1).all()
        assert (picture[0, 0] != 1).any()
        assert (white == 1).all()


def test_a_view_of_a_tile_has_a_small_picture_of_each_modality_that_was_seen() -> None:
    values = np.random.default_rng(0).uniform(0, 200, (4, 800, 800))
    unseen = np.full((1, 10, 16, 16), np.nan)
    tile = Tile(id="t", observations={
        "aerial": Observation.of(MODALITIES["aerial"], values),
        "s2": Observation.of(MODALITIES["s2"], unseen, dates=["2020-06-01"]),
    })  # fmt: skip
    ((caption, picture),) = TileView.of(tile, np.zeros((2, 2, 4))).imagery
    assert (caption, picture.shape) == ("aerial", (267, 267, 3))


def test_probes_are_a_table_of_what_was_measured_with_the_best_in_bold() -> None:
    probes = [ProbeFigure(name="crop", ours=0.5, untrained=0.7, chance=0.0), ProbeFigure(name="flood", ours=0.6)]
    page = render(_given(probes=probes), {})
    assert '<th scope="row">crop</th><td>0.500</td><td><b>0.700</b></td><td>0.000</td>' in page
    assert '<th scope="row">flood</th><td><b>0.600</b></td><td>–</td><td>–</td>' in page
    assert "band statistics" not in page


def test_words_of_the_user_are_not_read_as_html() -> None:
    word = "<script>$x"
    given = _given(
        title=word, facts=[(word, word)], config=word, tiles=[_view(word, np.ones((1, 1, 3)))],
        probes=[ProbeFigure(name=word, ours=0)],
    )  # fmt: skip
    page = render(given, {f"train/{word}": [(1, 2.0)]})
    assert "<script>" not in page
    assert page.count("&lt;script&gt;$x") > 5


def test_a_page_that_cannot_be_written_leaves_the_former_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_report(tmp_path, _given())
    former = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(WriteError, match="report.html: could not be written.*No space left"):
        write_report(tmp_path, _given(title="other"))
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
    assert path.read_bytes() == former


def test_a_run_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="the folder of a run"):
        write_report(tmp_path / "none", _given())


def test_tiles_of_different_dimensions_are_told() -> None:
    with pytest.raises(InputError, match="dims"):
        render(_given(tiles=[_view("a", np.ones((1, 1, 3))), _view("b", np.ones((1, 1, 4)))]), {})
