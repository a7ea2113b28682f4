"""One table of output formats: checks, messages and help follow it, and a stranger's format needs nothing else."""

import importlib
import sys

import numpy as np
import pytest

from anysat.cli import COMMANDS, main, make_parser
from anysat.errors import RecordError, UnknownNameError
from anysat.geo.write.outputs import OUTPUTS, STORE, Output, Result, check_output, find_writer, named, suffixes
from anysat.modalities import MODALITIES
from anysat.workflows.embed import EmbedConfig
from geo_builders import cube, geobox, write_nc

SHOWN = {
    "embed": (Result.TILE, Result.AREA),
    "predict": (Result.MAP, Result.ANSWER, Result.AREA),
    "zonal": (Result.POLYGONS,),
    "similar": (Result.AREA,),
    "classify": (Result.CLASSES,),
    "datasets embed": (Result.TILES,),
    "datasets predict": (Result.TILES,),
    "datasets show": (Result.PICTURE,),
    "datasets stats": (Result.FIGURES,),
    "weights convert": (Result.WEIGHTS,),
}
STRANGER = """
import numpy as np

class NpzWriter:
    def files(self, path):
        return (path,)

    def write(self, product, path):
        vectors, valid, box = product.maps["patch"]
        np.savez(path, vectors=vectors, valid=valid, transform=list(box.affine))
"""


@pytest.mark.parametrize("suffix", OUTPUTS)
def test_what_the_table_names_as_a_writer_exists(suffix):
    for result, place in OUTPUTS[suffix].writers.items():
        assert not place or callable(find_writer(result, suffix))


@pytest.mark.parametrize("command", SHOWN)
def test_the_help_of_an_output_names_the_formats_of_its_results(command):
    module, config, _ = COMMANDS[command]
    parser = make_parser(command, getattr(importlib.import_module(module), config))
    (action,) = (action for action in parser._actions if action.dest == "out")
    assert all(named(result) in action.help for result in SHOWN[command])


def test_other_suffixes_are_refused_with_those_that_would_do():
    for out in ("a.gpkg", "a", ".zarr", ""):
        with pytest.raises(RecordError, match=r"--out: expected a name ending in \.zarr, \.tif or \.parquet, got"):
            check_output("--out", out, Result.AREA)
    with pytest.raises(RecordError, match=r"\.zarr or \.tif, or without suffix, because I say so, got 'a\.x'"):
        check_output("--out", "a.x", Result.TILE, may_lack=True, because=", because I say so")
    check_output("--out", "a", Result.TILE, may_lack=True)
    with pytest.raises(UnknownNameError, match=r"unknown output format '\.jpg'"):
        find_writer(Result.TILE, ".jpg")
    with pytest.raises(UnknownNameError, match=r"unknown output format '\.zarr'"):
        find_writer(Result.AREA, STORE)  # the store itself, which nothing is exported to


def test_a_strangers_format_is_written_by_embed_and_is_in_its_messages(tmp_path, monkeypatch):
    values = np.full((1, 10, 4, 6), 800, np.float32)
    data = cube(values, geobox((4, 6)), ["2020-06-30"], MODALITIES["s2"].band_names)
    given = write_nc(tmp_path / "s2.nc", data)
    (tmp_path / "strange.py").write_text(STRANGER)
    monkeypatch.syspath_prepend(tmp_path)
    new = Output(title="NumPy", media_type="application/octet-stream", writers={Result.TILE: "strange:NpzWriter"})
    monkeypatch.setitem(OUTPUTS, ".npz", new)
    out = tmp_path / "a.npz"
    options = ("--patch-size-m=20", "--weights=nano", "--statistics=from-data")
    assert main(["embed", f"s2={given}", f"--out={out}", *options]) == 0
    found = np.load(out)
    assert found["vectors"].shape[:2] == found["valid"].shape
    assert ".npz" in suffixes(Result.TILE)
    with pytest.raises(RecordError, match=r"\.zarr, \.tif, \.parquet or \.npz, or without suffix"):
        EmbedConfig(inputs=["s2=a.nc"], out="a.jpg", patch_size_m=20)
    sys.modules.pop("strange", None)
