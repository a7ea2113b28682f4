"""The README is true: its tree is the tree on disk, its targets exist, its commands run."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox

import anysat
from anysat.cli import main
from anysat.model import checkpoint
from builders import random_model
from geo_builders import cube, write_nc

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", README, re.S) for line in block.splitlines() if line]


def test_the_tree_is_the_tree_on_disk():
    block = README.split("src/anysat/\n")[1].split("```")[0]
    written = {line.split()[0].rstrip("/") for line in block.splitlines() if line.strip()}
    source = ROOT / "src" / "anysat"
    on_disk = {p.name for p in source.iterdir() if p.name not in ("py.typed", "__pycache__")}
    assert written == on_disk


def test_every_command_is_one_that_runs_somewhere():
    """`make` targets run in .ci/run or are this suite; the installation is what make does; the rest runs below."""
    makefile, ci = (ROOT / "Makefile").read_text(), (ROOT / ".ci" / "run").read_text()
    for command in COMMANDS:
        if command.startswith("make "):
            target = command.split()[1]
            assert f"\n{target}:" in makefile
            assert f"make {target}" in ci
        else:
            assert command.startswith(("anysat ", "pip install -e '.[geo]'", "pip install -e '.[train]'")), command


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith(("anysat embed ", "anysat plan "))])
def test_the_commands_run_on_files_of_the_names_they_use(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    with rasterio.open(
        "photo.tif", "w", driver="GTiff", width=300, height=300, count=4, dtype="uint8", crs="EPSG:32632",
        transform=Affine(0.2, 0, 500000, 0, -0.2, 5500060),
    ) as file:  # fmt: skip
        file.write(generator.integers(1, 255, (4, 300, 300), dtype=np.uint8))
    box = GeoBox((6, 6), Affine(10, 0, 500000, 0, -10, 5500060), "EPSG:32632")
    bands = ["B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12"]
    values = generator.uniform(0, 4000, (3, 10, 6, 6)).astype("float32")
    write_nc(Path("series.nc"), cube(values, box, ["2024-03-01", "2024-06-01", "2024-09-01"], bands))
    model = random_model(dim=64, depth=1, num_heads=2)
    checkpoint.save(model, "model.safetensors")
    assert main(shlex.split(command)[1:]) == 0
    made = {
        "tile": ("tile.zarr", "tile.tif", "tile_dense.tif", "tile.png"), "area.zarr": ("area.zarr", "area.tif", "area.png")
    }  # fmt: skip
    out = command.partition("--out ")[2].partition(" ")[0]
    for name in made.get(out, ()):
        assert (tmp_path / name).exists(), name
    assert command.startswith("anysat plan ") or out in made


def test_the_data_commands_run_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = [command for command in COMMANDS if command.startswith(("anysat world", "anysat datasets"))]
    assert len(data) == 5
    for command in data:
        assert main(shlex.split(command)[1:]) == 0, command
    block = next(b for b in re.findall(r"```python\n(.*?)```", README, re.S) if "open_dataset" in b)
    found = {"anysat": anysat}
    exec(block, found)  # the README's own lines
    assert isinstance(found["dataset"][0], anysat.Tile)
    assert (tmp_path / "sample.png").stat().st_size > 10_000
