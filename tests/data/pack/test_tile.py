"""A packed tile: it comes back to the last bit, and only what is needed is stored."""

from dataclasses import replace

import numpy as np
import pytest
import safetensors.numpy
from affine import Affine
from odc.geo.geobox import GeoBox

from anysat.batch import Tile
from anysat.data.pack.tile import decode_tile, encode_tile, narrow
from anysat.errors import InputError, SourceError
from anysat.modalities import MODALITIES, Band, Modality
from anysat.observation import Observation
from pack_builders import assert_same, bits

DATES = np.array(["2020-01-01", "2020-01-05", "2021-12-31", "1999-02-03"], "datetime64[D]")


def tile_of(*observations, **options):
    return Tile.of(*observations, **{"id": "a/b.c d", "dataset": "mine", **options})


def s2(values, **options):
    return Observation.of(MODALITIES["s2"], values, dates=DATES[: len(values)], **options)


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(0, 100, shape)


DRAW = np.random.default_rng(0)
WHOLE = DRAW.integers(0, 12_000, (4, 10, 5, 5)).astype(np.float32)
TILES = {
    "whole numbers": tile_of(s2(WHOLE)),
    "negative whole numbers": tile_of(s2(-WHOLE)),
    "above 16 bits": tile_of(s2(WHOLE + 60_000)),
    "halves": tile_of(s2(np.round(WHOLE / 100) / 2)),
    "any number": tile_of(s2(random(4, 10, 5, 5))),
    "minus zero": tile_of(s2(np.where(WHOLE > 6000, -0.0, WHOLE))),
    "tiny and huge": tile_of(s2(np.where(WHOLE > 6000, 1e-40, 3e38).astype(np.float32))),
    "bands of different kinds": tile_of(
        Observation.of(
            MODALITIES["aerial-flair"],
            np.concatenate([DRAW.integers(0, 255, (4, 50, 50)), random(1, 50, 50)]),
        )
    ),
    "a band that is absent": tile_of(s2(WHOLE[:, :9], bands=MODALITIES["s2"].band_names[1:])),
    "every other band is absent": tile_of(s2(WHOLE[:, ::2], bands=MODALITIES["s2"].band_names[::2])),
    "nothing valid": tile_of(s2(WHOLE, valid=np.zeros(4, bool))),
    "some dates invalid": tile_of(s2(WHOLE, valid=[True, False, True, True])),
    "some pixels invalid": tile_of(s2(WHOLE, valid=DRAW.random((1, 1, 5, 5)) > 0.5)),
    "clouds": tile_of(s2(WHOLE, valid=DRAW.random((4, 1, 5, 5)) > 0.5)),
    "clouds and an absent band": tile_of(
        s2(WHOLE[:, 1:], bands=MODALITIES["s2"].band_names[1:], valid=DRAW.random((4, 1, 5, 5)) > 0.5)
    ),
    "anything invalid": tile_of(s2(WHOLE, valid=DRAW.random((4, 10, 5, 5)) > 0.5)),
    "a ratio that follows": tile_of(
        Observation.of(MODALITIES["s1"], random(4, 2, 5, 5), bands=["VV", "VH"], dates=DATES, valid=DRAW.random((4, 1, 5, 5)) > 0.5)
    ),
    "a ratio of its own": tile_of(Observation.of(MODALITIES["s1"], random(4, 3, 5, 5), dates=DATES)),
    "a ratio of absent parts": tile_of(Observation.of(MODALITIES["s1"], random(4, 1, 5, 5), bands=["VV"], dates=DATES)),
    "other units": tile_of(s2(WHOLE / 1e4, units="reflectance")),
    "context of the tile": tile_of(
        s2(WHOLE), Observation.of(MODALITIES["modis"], random(3, 7, 1, 1), dates=DATES[:3])
    ),
    "a place": tile_of(s2(WHOLE), geobox=GeoBox((5, 5), Affine(10 / 3, 0.1, 1e6 / 7, 0, -9.7, 1 / 3), "EPSG:25832")),
    "a place without a code": tile_of(s2(WHOLE), geobox=GeoBox((5, 5), Affine(10, 0, 5, 0, -10, 3), "+proj=sinu +R=6371007.181")),
    "targets": tile_of(
        s2(WHOLE),
        targets={
            "class": np.int64(-1), "raster": np.arange(25).reshape(5, 5), "value": np.float32(0.1), "none": np.zeros(0),
            "nan": np.array([np.nan, 1.0], np.float32), "flags": np.array([True, False]), "large": np.array([2**62]),
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", TILES)
def test_a_tile_comes_back_as_it_was(case):
    content, _ = encode_tile(TILES[case])
    assert_same(decode_tile(content), TILES[case])


@pytest.mark.parametrize("case", TILES)
def test_a_tile_is_a_safetensors_file(case):
    assert safetensors.numpy.load(encode_tile(TILES[case])[0])


@pytest.mark.parametrize(
    ("case", "parts"),
    [
        ("whole numbers", {"s2.values.0": "<u2", "s2.days": "<i4"}),
        ("negative whole numbers", {"s2.values.0": "<i2", "s2.days": "<i4"}),
        ("halves", {"s2.values.0": "<f2", "s2.days": "<i4"}),
        ("bands of different kinds", {"aerial-flair.values.0": "|u1", "aerial-flair.values.1": "<f4"}),
        ("nothing valid", {"s2.days": "<i4"}),
        ("a ratio that follows", {"s1.values.0": "<f4", "s1.valid": "|u1", "s1.days": "<i4"}),
    ],
)
def test_only_what_is_needed_is_stored(case, parts):
    loaded = safetensors.numpy.load(encode_tile(TILES[case])[0])
    assert {name: array.dtype.str for name, array in loaded.items()} == parts


@pytest.mark.parametrize(
    ("case", "num_bytes"),
    [("some dates invalid", 1), ("some pixels invalid", 4), ("clouds", 13), ("clouds and an absent band", 13),
     ("anything invalid", 125)],
)  # fmt: skip
def test_masks_are_stored_without_the_axes_that_do_not_matter(case, num_bytes):
    assert safetensors.numpy.load(encode_tile(TILES[case])[0])["s2.valid"].nbytes == num_bytes


def test_bands_made_from_others_are_found_bit_for_bit():
    s1 = TILES["a ratio that follows"].observations["s1"]
    values = s1.values.copy()
    values[0, 2, 0, 0] = np.nextafter(values[0, 2, 0, 0], np.float32(9e9))
    tile = tile_of(replace(s1, values=values))
    assert_same(decode_tile(encode_tile(tile)[0]), tile)


def test_numbers_are_narrowed_only_where_every_bit_comes_back():
    draw = np.random.default_rng(0)
    for kind in ("float32", "float64", "int64", "uint16"):
        for scale in (1, 100, 1e4, 1e9):
            with np.errstate(invalid="ignore"):
                array = draw.normal(0, scale, 50).astype(kind)
            for given in (array, np.rint(array), np.abs(array)):
                assert bits(narrow(given).astype(given.dtype)) == bits(given)


def test_a_target_of_words_is_refused():
    with pytest.raises(InputError, match="target 'name': expected an array of numbers"):
        encode_tile(tile_of(s2(WHOLE), targets={"name": np.array(["a"])}))


def test_a_strangers_modality_is_packed(tmp_path):
    thermal = Modality(key="thermal", sensor="x", bands=(Band(name="T", unit="K"),), gsd_m=5.0, is_temporal=False)
    tile = tile_of(Observation.of(thermal, np.full((1, 8, 8), 300.5)))
    assert_same(decode_tile(encode_tile(tile)[0], records={"thermal": thermal}), tile)


def test_bytes_of_something_else_are_refused():
    for content in (b"", b"\0" * 4, b"\xff" * 64, b"\2" + b"\0" * 7 + b"{}"):
        with pytest.raises(SourceError, match="packed tile"):
            decode_tile(content)
