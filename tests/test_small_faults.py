"""Single values and files: days in one time zone, spacings with a remainder, files that are whole."""

from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest

from anysat.data.open import open_dataset
from anysat.data.pack import _modality
from anysat.errors import InputError, SourceError, WriteError
from anysat.modalities import MODALITIES
from anysat.model.checkpoint import save_folder
from anysat.model.config import ModelConfig
from anysat.model.export import export
from anysat.normalise import Normaliser
from anysat.observation import Observation
from builders import random_model
from labelled import meadow_batch
from miniatures import miniature

S1 = MODALITIES["s1"]
LATE = datetime(2020, 6, 1, 23, 30, tzinfo=timezone(timedelta(hours=-5)))


@pytest.mark.parametrize("date", [LATE, LATE.isoformat(), "20200601T233000-0500", "2020-06-01T23-05", "2020-06-02T23:30:60+00:00", "2020-06-01 23:30:00-05:00", "2020-06-01T23:30:00 -05:00", LATE.astimezone(UTC), "2020-06-02T04:30:00Z", "20200602T043000",
                                  "2020-06-02", np.datetime64("2020-06-02T04:30")])  # fmt: skip
def test_a_moment_has_one_day_however_it_is_written(date):
    seen = Observation.of(S1, np.ones((1, 3, 2, 2)), dates=[date])
    assert seen.dates.astype(str).tolist() == ["2020-06-02"]


def test_a_patch_of_several_units_with_a_remainder_in_binary_can_be_exported(monkeypatch):
    monkeypatch.setattr("torch.export.export", lambda *_, **__: "a program")  # the tracer does not stand shape checks
    photo = replace(MODALITIES["aerial"], key="photo", gsd_m=0.6, subpatch_px=6)
    options = {"dim": 64, "depth": 1, "num_heads": 2, "modalities": (photo,), "subpatch_order": "raster"}
    model = random_model(ModelConfig(**options)).eval()
    assert export(model, ["photo"], 18.0) == "a program"
    with pytest.raises(InputError, match="a multiple of 3.6 m"):
        export(model, ["photo"], 17.0)


def test_statistics_that_cannot_be_written_leave_what_was_there(tmp_path, monkeypatch):
    normaliser, path = Normaliser.from_batch(meadow_batch(4)), tmp_path / "statistics.json"
    normaliser.save(path)

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(WriteError, match="no space"):
        normaliser.save(path)
    assert Normaliser.read(path).to_dict() == normaliser.to_dict()
    assert [one.name for one in tmp_path.iterdir()] == ["statistics.json"]


def test_a_card_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    model = random_model(ModelConfig(dim=64, depth=1, num_heads=2, modalities=(S1,)))
    write = Path.write_bytes

    def full(self, *given, **options):
        if "README" in self.name:
            raise OSError("no space left on device")
        return write(self, *given, **options)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(WriteError, match="README"):
        save_folder(model, tmp_path)


def test_a_pack_of_own_data_has_the_sensors_it_was_made_with():
    own = replace(MODALITIES["spot"], subpatch_px=5)
    assert _modality(asdict(own), Path("pack"), is_own=True) == own
    assert _modality(asdict(replace(own, gsd_m=1.5)), Path("pack"), is_own=True).gsd_m == 1.5
    assert _modality(asdict(MODALITIES["spot"]), Path("pack"), is_own=True) is MODALITIES["spot"]
    with pytest.raises(SourceError, match="pack the dataset again"):
        _modality(asdict(replace(own, gsd_m=1.5)), Path("pack"), is_own=False)


def test_a_date_that_is_none_names_folder_and_sample():
    dataset = open_dataset("pastis_hd", miniature("pastis_hd"), "all")
    broken = replace(dataset.record, read_sample=lambda *_: np.datetime64("2018-13-01"))
    object.__setattr__(dataset, "record", broken)
    with pytest.raises(SourceError, match=r"sample .* of .*PASTIS"):
        dataset[0]
