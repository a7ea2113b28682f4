"""YAML that people write: a key that is given twice is refused with its lines, in every file that is read."""

import pytest
import yaml

from anysat.cli import _parse, make_parser
from anysat.data.open import find_dataset
from anysat.errors import RecordError
from anysat.geo.read.descriptions import describe_sources
from anysat.modalities import read_modalities
from anysat.workflows.embed import EmbedConfig
from anysat.workflows.probe import ProbeConfig

OWN = "name: mine\ntile_m: 40\nmodalities:\n  s2: {path: 's2/{id}'}\n  s2: {path: 'other/{id}'}\n"
SENSOR = "key: drone\nsensor: camera\ngsd_m: 10\ngsd_m: 5\nis_temporal: false\nbands: [{name: R, unit: DN}]\n"


@pytest.mark.parametrize(
    ("read", "text", "told"),
    [
        (find_dataset, OWN, "key 's2' is given twice, in lines 4 and 5"),
        (describe_sources, "s2: {path: a.nc, nodata: 0,\n nodata: 1}", "key 'nodata' is given twice, in lines 1 and 2"),
        (read_modalities, SENSOR, "key 'gsd_m' is given twice, in lines 3 and 4"),
        (read_modalities, "- {key: a}\n- {key: b, key: c}\n", "key 'key' is given twice, in line 2"),
    ],
)
def test_a_key_that_is_given_twice_is_named_with_file_and_lines(tmp_path, read, text, told):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(RecordError, match=rf"mine\.yaml: expected valid YAML, got .*{told}"):
        read(str(tmp_path / "mine.yaml"))


def test_keys_that_come_again_elsewhere_or_by_merging_are_taken():
    from anysat.yaml_files import parse_yaml

    text = (
        "base: {deep: {one: &one {a: 1, b: {a: 2}}, two: &two {<<: *one, a: 3}}}\n"
        "both: {<<: [*two, *one], b: 4}\nagain: {<<: *two, c: 5}\ntwice: {<<: *one, <<: *two}\nlist: [{a: 1}, {a: 2}]\n"
    )
    assert parse_yaml(text) == yaml.safe_load(text)
    assert parse_yaml(text)["again"]["b"] == {"a": 2}


def test_a_file_of_options_may_give_one_value_where_a_list_is_taken(tmp_path):
    path, config = tmp_path / "o.yaml", ProbeConfig
    path.write_text("patch_sizes_m: 20\nlearning_rates: 1e-2\ndata: {dataset: world, modalities: s2, folds: null}\n")
    found = _parse(make_parser("probe", config), config, ["--config", str(path), "--out=run"])
    assert (found.patch_sizes_m, found.learning_rates) == ([20.0], [0.01])
    assert (found.data.modalities, found.data.folds, found.data.dataset) == (["s2"], None, "world")
    path.write_text("inputs: s2=a.nc\nout: a.zarr\npatch_size_m: 20\n")
    assert _parse(make_parser("embed", EmbedConfig), EmbedConfig, ["--config", str(path)]).inputs == ["s2=a.nc"]


def test_a_file_of_options_may_still_not_give_words_where_numbers_are_taken(tmp_path):
    path = tmp_path / "o.yaml"
    path.write_text("patch_sizes_m: wide\n")
    with pytest.raises(RecordError, match="--patch-sizes-m: expected a number, got 'wide'"):
        _parse(make_parser("probe", ProbeConfig), ProbeConfig, ["--config", str(path), "--out=run"])
