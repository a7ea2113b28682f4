"""Pictures: what is white, what is stretched, and that colours can be compared."""

from __future__ import annotations

from datetime import date

import numpy as np
import pytest
import torch

from anysat.batch import Batch, Embeddings, Tile
from anysat.data.base import Target
from anysat.errors import InputError
from anysat.geo.stores.store import AreaStore
from anysat.modalities import MODALITIES
from anysat.model.config import ModelConfig
from anysat.model.encoder import AnySat
from anysat.normalise import Normaliser
from anysat.observation import Observation
from anysat.patches import PatchGrid
from anysat.picture_areas import area_figure
from anysat.picture_samples import sample_figure
from anysat.pictures import fit_pca, pca_rgb, picture_of, quicklook, shown_bands, tile_figure
from store_builders import class_layout, parts, patch_layout

WHITE = [255, 255, 255]
DATES = ["2020-01-05", "2020-04-05", "2020-07-05"]


def _series(key: str, rows: int, cols: int, dates: list[str] = DATES, seed: int = 0) -> Observation:
    shape = (len(dates), len([b for b in MODALITIES[key].bands if b.ratio_of is None]), rows, cols)
    values = np.random.default_rng(seed).uniform(1, 3000, shape)
    return Observation.of(MODALITIES[key], values, dates=dates)


def _image(key: str, rows: int, cols: int) -> Observation:
    shape = (len(MODALITIES[key].bands), rows, cols)
    return Observation.of(MODALITIES[key], np.random.default_rng(1).uniform(1, 255, shape))


def _vectors(rows: int = 5, cols: int = 7, dim: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, cols, dim))


def test_a_picture_says_what_of_a_store_it_does_not_show(tmp_path) -> None:
    months = [(date(2020, month, 1), date(2020, month, 28)) for month in range(1, 9)]
    for name, layouts, told in (
        ("a", [patch_layout()], "first 6 of 8 periods"),
        ("b", [class_layout(), patch_layout()], "first 6 of 8 periods of classes, no patch"),
        ("c", [patch_layout()], None),
    ):
        store = AreaStore.open(tmp_path / f"{name}.zarr", layouts, months if told else months[:6], {})
        for unit in store.remaining():
            store.write(unit, parts(layouts, unit._replace(period=0)))
        title = area_figure(store.finish(), "a title").get_suptitle()
        assert title == (f"a title\n{told}" if told else "a title")


@pytest.mark.parametrize("key", MODALITIES)
def test_every_modality_has_a_quicklook(key: str) -> None:
    made = _series(key, 4, 6) if MODALITIES[key].is_temporal else _image(key, 4, 6)
    image = quicklook(made)
    assert image.shape == (4, 6, 3)
    assert image.dtype == np.uint8
    assert image.std() > 0


def test_red_is_the_first_channel_whatever_the_order_of_the_bands() -> None:
    values = np.full((4, 4, 4), 50.0)  # NIR, G, B, R
    values[3, 0, 0] = 200
    values[0, 3, 3] = 200
    values[:3, 1, 1] += 1  # spread in the other bands
    image = quicklook(Observation.of(MODALITIES["aerial"], values))
    assert image[0, 0, 0] == 255
    assert image[0, 0].argmax() == 0
    assert image[3, 3].tolist() == image[2, 2].tolist()


def test_nan_pixel_of_an_image_is_white() -> None:
    values = np.random.default_rng(0).uniform(0, 200, (4, 5, 5))
    values[3, 2, 2] = np.nan
    assert quicklook(Observation.of(MODALITIES["aerial"], values))[2, 2].tolist() == WHITE


def test_pixel_without_a_valid_date_is_white_and_one_valid_date_is_enough() -> None:
    values = _series("s2", 5, 5).values.copy()
    values[:, :, 1, 1] = np.nan
    values[:2, :, 2, 2] = np.nan
    image = quicklook(Observation.of(MODALITIES["s2"], values, dates=DATES))
    assert image[1, 1].tolist() == WHITE
    assert image[2, 2].tolist() != WHITE


def test_series_shows_the_median_of_the_valid_dates() -> None:
    values = _series("s2", 6, 6).values
    outlier = np.full_like(values[:1], 60000)
    valid = np.concatenate([np.ones_like(values, bool), np.zeros_like(outlier, bool)])
    masked = Observation.of(
        MODALITIES["s2"], np.concatenate([values, outlier]), dates=[*DATES, "2020-09-01"], valid=valid
    )
    median = Observation.of(MODALITIES["s2"], np.median(values, axis=0)[None], dates=DATES[:1])
    assert np.array_equal(quicklook(masked), quicklook(median))


def test_optical_modality_without_its_visible_bands_shows_the_first_it_has() -> None:
    values = np.random.default_rng(0).uniform(0, 3000, (1, 3, 5, 5))
    image = quicklook(Observation.of(MODALITIES["s2"], values, bands=["B5", "B6", "B7"], dates=DATES[:1]))
    assert image.std() > 0


def test_observation_with_nothing_valid_is_all_white() -> None:
    image = quicklook(Observation.of(MODALITIES["s2"], np.full((1, 10, 3, 3), np.nan), dates=DATES[:1]))
    assert (image == 255).all()


def test_radar_in_power_and_in_decibels_look_the_same() -> None:
    power = Observation.of(
        MODALITIES["s1"], np.random.default_rng(0).uniform(0.01, 1, (2, 2, 6, 6)), units="linear", dates=DATES[:2]
    )
    difference = quicklook(power).astype(int) - quicklook(power.in_units("dB"))
    assert np.abs(difference).max() <= 1


@pytest.mark.parametrize(
    ("key", "bands", "told"),
    [
        ("s1", ["VV"], "VV in grey"),
        ("s1", ["VH"], "VH in grey"),
        ("s1", ["VV", "VH"], "VV, VH, VV-VH as colours"),
        ("alos", ["HV"], "HV in grey"),
        ("aerial", ["NIR"], "NIR in grey"),
        ("aerial", ["NIR", "G"], "NIR, G as colours"),
        ("aerial", ["NIR", "G", "B"], "NIR, G, B as colours"),
        ("aerial", ["R", "G", "B"], "true colours"),
    ],
)
def test_only_bands_that_were_seen_are_shown_and_told(key: str, bands: list[str], told: str) -> None:
    values = np.random.default_rng(0).uniform(1, 20, (len(bands), 4, 5))
    modality = MODALITIES[key]
    dates = {"dates": DATES[:1]} if modality.is_temporal else {}
    seen = Observation.of(modality, values[None] if dates else values, bands=bands, **dates)
    image = quicklook(seen)
    assert shown_bands(seen) == told
    assert (image == 255).all(-1).mean() < 0.5
    assert image.std() > 0
    assert (image == image[..., :1]).all() == told.endswith("grey")


def test_radar_bands_in_different_units_are_shown_alike() -> None:
    power = np.random.default_rng(0).uniform(0.01, 1, (1, 2, 6, 6))
    mixed = power.copy()
    mixed[:, 0] = 10 * np.log10(power[:, 0])
    one, other = (
        Observation.of(MODALITIES["s1"], values, bands=["VV", "VH"], units=units, dates=DATES[:1])
        for values, units in ((power, "linear"), (mixed, ["dB", "linear"]))
    )
    assert np.abs(quicklook(one).astype(int) - quicklook(other)).max() <= 1


def test_band_without_spread_is_mid_grey() -> None:
    image = quicklook(Observation.of(MODALITIES["s2"], np.ones((1, 10, 3, 3)), dates=DATES[:1]))
    assert set(image.ravel().tolist()) == {128}


def test_colours_are_the_same_for_the_same_basis_wherever_the_vectors_are() -> None:
    first, second = _vectors(seed=1), _vectors(seed=2)
    basis = fit_pca([first, second])
    whole = pca_rgb(np.concatenate([first, second]), basis)
    assert np.array_equal(whole, np.concatenate([pca_rgb(first, basis), pca_rgb(second, basis)]))


def test_pca_does_not_depend_on_how_the_vectors_are_split_into_arrays() -> None:
    vectors = _vectors(6, 6)
    whole, halves = fit_pca([vectors]), fit_pca([vectors[:3], vectors[3:]])
    assert np.allclose(whole.directions, halves.directions, atol=1e-6)
    assert np.allclose(whole.high, halves.high, atol=1e-6)


def test_pca_directions_equal_a_singular_value_decomposition() -> None:
    vectors = _vectors(20, 20, 6) * [9, 5, 3, 1, 1, 1]
    flat = vectors.reshape(-1, 6)
    expected = np.linalg.svd(flat - flat.mean(0), full_matrices=False)[2][:3]
    found = fit_pca([vectors]).directions
    assert np.allclose(np.abs(found), np.abs(expected), atol=1e-4)
    assert (np.take_along_axis(found, np.abs(found).argmax(1)[:, None], axis=1) > 0).all()


def test_nan_vectors_are_white_and_do_not_change_the_basis() -> None:
    vectors = _vectors()
    holed = np.concatenate([vectors, np.full_like(vectors[:1], np.nan)])
    basis = fit_pca([holed])
    assert np.allclose(basis.directions, fit_pca([vectors]).directions)
    assert (pca_rgb(holed, basis)[-1] == 255).all()


@pytest.mark.parametrize("shape", [(1, 1, 8), (1, 2, 8), (3, 3, 2)])
def test_few_vectors_or_few_dims_still_have_colours(shape: tuple[int, ...]) -> None:
    vectors = _vectors(*shape)
    assert pca_rgb(vectors, fit_pca([vectors])).shape == (*shape[:2], 3)


def test_pca_of_vectors_of_different_dims_is_refused() -> None:
    with pytest.raises(InputError, match=r"one and the same last axis, got dims \[4, 8\]"):
        fit_pca([_vectors(dim=4), _vectors(dim=8)])


def test_figure_shows_images_and_series_of_a_rectangular_tile_in_metres() -> None:
    tile = Tile(
        observations={"s2": _series("s2", 6, 9), "s1": _series("s1", 6, 9), "aerial": _image("aerial", 300, 450)}
    )
    batch = Batch.of([tile])
    model = AnySat(ModelConfig(dim=64, depth=1, num_heads=2), normaliser=Normaliser.from_batch(batch)).eval()
    with torch.no_grad():
        figure = tile_figure(tile, model.encode(batch, 30, dense="aerial"), "a tile")
    figure.draw_without_rendering()
    titles = [axes.get_title() for axes in figure.axes]
    assert [title.split("\n")[0] for title in titles] == [
        "s2", "s1", "aerial", "patch embeddings", "dense embeddings",
    ]  # fmt: skip
    assert "2020-01-05 to 2020-07-05" in titles[0]
    for axes in figure.axes:
        assert axes.get_xlim() == (0, 90)
        assert axes.get_ylim() == (0, 60)


def test_figure_without_dense_embeddings_has_one_panel_less() -> None:
    tile = Tile(observations={"s2": _series("s2", 4, 4, dates=DATES[:1])})
    embeddings = Embeddings(
        tile=torch.zeros(1, 8),
        patch=torch.from_numpy(_vectors(2, 2, 8))[None].float(),
        valid=torch.ones(1, 2, 2, dtype=torch.bool),
        grid=PatchGrid(20, 2, 2),
    )
    figure = tile_figure(tile, embeddings, "no dense")
    assert [axes.get_title().split("\n")[0] for axes in figure.axes] == ["s2", "patch embeddings"]
    assert "2020-01-05" in figure.axes[0].get_title()


def test_figure_has_north_at_the_top() -> None:
    values = np.zeros((1, 10, 4, 4))
    values[:, :, 0] = 3000
    tile = Tile(observations={"s2": Observation.of(MODALITIES["s2"], values, dates=DATES[:1])})
    embeddings = Embeddings(
        tile=torch.zeros(1, 8),
        patch=torch.zeros(1, 1, 1, 8),
        valid=torch.ones(1, 1, 1, dtype=torch.bool),
        grid=PatchGrid(40, 1, 1),
    )
    figure = tile_figure(tile, embeddings, "north")
    picture = figure.axes[0].images[0]
    assert picture.origin == "upper"
    assert picture.get_array()[0].mean() > picture.get_array()[-1].mean()


def test_no_word_of_a_sample_s_picture_is_cut_or_covers_another() -> None:
    """One panel with a long name and many labels, as in BigEarthNet."""
    names = ("Land principally occupied by agriculture, with significant areas of natural vegetation",
             "Non-irrigated arable land", "Complex cultivation patterns")  # fmt: skip
    target = Target(name="corine", level="tile", kind="labels", classes=names)
    tile = Tile.of(
        _series("s2", 12, 12), targets={"corine": np.ones(3, np.int64)}, id="S2A_MSIL2A_20170613T101031_87_48"
    )
    figure = sample_figure(tile, [target], "BigEarthNet in the WIDEST LETTERS WWWWWW")
    figure.draw_without_rendering()
    title, (axes,) = figure._suptitle.get_window_extent(), figure.axes
    panel, whole = axes.get_tightbbox(), figure.bbox
    assert 0 <= title.x0 < title.x1 <= whole.x1
    assert title.y1 <= whole.y1
    assert panel.y1 <= title.y0
    assert panel.y0 >= 0
    assert 0 <= panel.x0 < panel.x1 <= whole.x1


@pytest.mark.parametrize("title", ["", "a/b", "Fields / 2020", "gone.tif", "a.zarr"])
def test_a_picture_of_another_program_may_have_any_title(tmp_path, title):
    from PIL import Image, PngImagePlugin

    text = PngImagePlugin.PngInfo()
    text.add_text("Title", title)
    Image.new("L", (2, 2)).save(tmp_path / "a.png", pnginfo=text)
    (tmp_path / "a.zarr").mkdir()
    assert picture_of(tmp_path / "a.tif").name == ("a.tif.png" if title == "a.zarr" else "a.png")
