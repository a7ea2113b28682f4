"""Records of own sensors: what cannot be is refused when it is read, with the field named."""

import pickle
from dataclasses import replace

import pytest

from anysat.errors import RecordError
from anysat.modalities import MODALITIES, read_modalities

RECORD = {"key": "drone", "sensor": "my drone", "bands": "[R, NIR]", "gsd_m": "0.5", "is_temporal": "false"}


def read(folder, **fields):
    path = folder / "drone.yaml"
    path.write_text("".join(f"{name}: {value}\n" for name, value in {**RECORD, **fields}.items()))
    return read_modalities(path)[0]


@pytest.mark.parametrize(("band", "message"), [
    ("{name: 443}", "band, name: expected .* in quotes if it is a number, got 443"),
    ("{name: yes}", "band, name: .* got True"),
    ("''", "band, name: .* got ''"),
    ("{name: R, common_name: [red, rouge]}", r"band 'R', common_name: .* got \['red', 'rouge'\]"),
    ("{name: R, polarisation: 5}", "band 'R', polarisation: .* got 5"),
    ("{name: R, wavelength_nm: red}", "band 'R', wavelength_nm: .* got 'red'"),
    ("{name: R, wavelength_nm: -650}", "band 'R', wavelength_nm: .* got -650"),
    ("{name: Q, ratio_of: [R, NIR, R]}", "band 'Q', ratio_of: expected the names of two bands"),
    ("{name: Q, ratio_of: []}", "band 'Q', ratio_of"),
    ("{name: Q, ratio_of: 3}", "band 'Q', ratio_of"),
    ("{name: Q, ratio_of: RG}", "band 'Q', ratio_of"),
])  # fmt: skip
def test_a_band_that_cannot_be_is_refused(tmp_path, band, message):
    with pytest.raises(RecordError, match=message):
        read(tmp_path, bands=f"[{band}, B]")


@pytest.mark.parametrize(("field", "values"), [
    ("subpatch_px", ["2.0", "2.5", "'2'", "true", "null", "0"]),
    ("gsd_m", ["true", "'1e1'", "5 m", "null", ".nan"]),
    ("date_period_days", [".nan", "'367'", "null", "1"]),
    ("dropout_prob", ["null", ".nan", "true", "'0.2'", "1"]),
    ("key", ["a{b}", "a_b"]),
    ("sensor", ["8", "2023-01-01", "''", "null"]),
    ("bands", ["[B1, B01]"]),
])  # fmt: skip
def test_a_field_that_cannot_be_is_named(tmp_path, field, values):
    for value in values:
        with pytest.raises(RecordError, match=f"modality .*, {field}: expected"):
            read(tmp_path, **{field: value})


def test_a_date_that_cannot_be_is_no_yaml(tmp_path):
    with pytest.raises(RecordError, match="drone.yaml: expected valid YAML"):
        read(tmp_path, sensor="2023-99-01")


def test_bands_may_be_named_by_their_wavelength(tmp_path):
    made = read(tmp_path, bands="['443', {name: '490.5', wavelength_nm: 490.5}]", date_period_days="365.25")
    assert made.band_names == ("443", "490.5")
    assert made.find_band("490.5") == 1


@pytest.mark.parametrize("key", ["drone", "s2"])
def test_a_record_that_was_put_into_the_table_reaches_processes_that_do_not_know_it(key, monkeypatch):
    own = replace(MODALITIES["s2"], key=key, sensor="mine")
    monkeypatch.setitem(MODALITIES, key, own)
    sent = pickle.dumps(own)
    monkeypatch.undo()
    assert pickle.loads(sent) == own


def test_a_shipped_record_travels_as_its_key():
    sent = pickle.dumps(MODALITIES["s2"])
    assert len(sent) < 100
    assert pickle.loads(sent) is MODALITIES["s2"]
