"""A stranger adds a dataset: the module of the how-to page, outside the package, by its dotted name."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from anysat.batch import Batch
from anysat.cli import main
from anysat.data.base import find_dataset, open_dataset
from anysat.data.world import World
from anysat.errors import UnknownNameError

PAGE = Path(__file__).parents[1] / "docs" / "howto" / "dataset.md"


@pytest.fixture
def clearings(tmp_path, monkeypatch):
    """The page's module under a name of its own, and its miniature."""
    package = tmp_path / "stranger_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "clearings.py").write_text(re.search(r"```python\n(.*?)```", PAGE.read_text(), re.S)[1])
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "stranger_package.clearings", tmp_path / "miniature"
    for name in [name for name in sys.modules if name.startswith("stranger_package")]:
        del sys.modules[name]


def test_the_module_of_the_page_is_a_dataset(clearings):
    name, root = clearings
    record = find_dataset(name)
    from anysat.data.layout import DatasetFolder

    record.write_miniature(DatasetFolder(root, record.layouts[0]), World(0), 8)
    tiles = list(open_dataset(name, root, "all"))
    assert len(tiles) == 8
    assert len(Batch.of(tiles)) == 8
    assert {tile.dataset for tile in tiles} == {"clearings"}
    seen = World(0).tile(0, extent_m=240).observe("s1", count=6)
    np.testing.assert_allclose(tiles[0].observations["s1"].values[:, :2], seen.values[:, :2], atol=0.01)


def test_what_to_do_next_with_its_miniature_is_told_by_the_name_it_was_asked_for(clearings, capsys):
    name, root = clearings
    assert main(["world", "make", str(root), f"--layout={name}", "--tiles=3"]) == 0
    assert f"Next: anysat datasets check {name} {root}" in capsys.readouterr().out


def test_a_module_that_is_not_on_the_path_is_told_with_what_to_do():
    with pytest.raises(
        UnknownNameError, match=r"No module named 'no_such_package'.*`python -m anysat …`.*PYTHONPATH=\."
    ):
        find_dataset("no_such_package.clearings")
    with pytest.raises(UnknownNameError, match="No module named 'anysat.nowhere'$"):
        find_dataset("anysat.nowhere")
