"""YAML that people write: a key that is given twice is refused with its lines, in every file that is read."""

import pytest
import yaml

from anysat.data.base import find_dataset
from anysat.errors import RecordError
from anysat.geo.descriptions import describe_sources
from anysat.modalities import read_modalities

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
