"""A stranger adds a dataset: the module of the how-to page, outside the package, by its dotted name."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from anysat.batch import Batch
from anysat.data.base import find_dataset, open_dataset
from anysat.data.world import World

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
