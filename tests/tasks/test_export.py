"""An exported predictor gives the answers of the predictor, from source values, at other batch sizes, dates and sides."""

import subprocess
import sys

import pytest

from anysat.errors import InputError
from anysat.model.export import export
from anysat.tasks.base import make_task
from anysat.tasks.export import export_predictor
from anysat.tasks.predictor import Predictor, View
from builders import child_environment
from labelled import KIND, meadow_encoder

SCRIPT = """
import io, sys, torch
from dataclasses import replace
from anysat.batch import Batch
from anysat.data.base import Target
from anysat.tasks.base import make_task
from anysat.tasks.export import export_predictor
from anysat.tasks.predictor import Predictor, View
from labelled import COVER, meadow_batch, meadow_encoder, randomise
mass = Target(name="mass", level="pixel", kind="value", gsd_m=20.0, unit="t/ha", limits=(0.0, 50.0))
labels = Target(name="genera", level="tile", kind="labels", classes=("Abies", "Acer"))
target = {"cover": COVER, "mass": mass, "genera": labels}[sys.argv[1]]
options = {"mean": 5.0, "deviation": 7.7} if target is mass else None
dense = "s2" if target.level == "pixel" else None
view = View(patch_sizes_m=(20.0,), modalities=tuple(sys.argv[3].split(",")), dense=dense)
predictor = Predictor(meadow_encoder(), make_task(target, options), view, sys.argv[2])
randomise(predictor.head)
buffer = io.BytesIO()
torch.export.save(export_predictor(predictor), buffer)
assert predictor.training
buffer.seek(0)
program = torch.export.load(buffer).module()
predictor.requires_grad_()
given = meadow_batch(4)
for tiles, rows in ((slice(1, 4), slice(None)), (slice(1, 2), slice(4))):
    observations = {}
    for key in view.modalities:
        seen = given.observations[key]
        scale = 1 if rows == slice(None) else seen.values.shape[-2] // given.observations["s2"].values.shape[-2]
        part = slice(None) if rows == slice(None) else slice(rows.stop * scale)
        values = seen.values[tiles][..., part, :]
        dates = None if seen.dates is None else seen.dates[tiles].clone()
        if dates is not None:
            dates[:] = given.observations[key].dates[1]
        observations[key] = replace(seen, values=values, valid=torch.ones_like(values, dtype=torch.bool), dates=dates)
    batch = Batch(observations=observations, ids=given.ids[tiles])
    with torch.no_grad():
        predictor.eval()
        outputs = predictor(batch)
    expected = [predictor.task.answer(outputs), predictor.task.probabilities(outputs)]
    days = {k: predictor.encoder._day_numbers(o.dates).float() for k, o in observations.items() if o.dates is not None}
    found = program({k: o.values for k, o in observations.items()}, days)
    assert len(found) == (1 if expected[1] is None else 2)
    for one, other in zip(found, expected):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
print("same")
"""


@pytest.mark.parametrize(("target", "head", "keys"), [
    ("cover", "conv", "s2"), ("genera", "both", "s2,spot"), ("mass", "dense", "s2"),
])  # fmt: skip
def test_the_program_of_a_predictor_gives_its_answers(target, head, keys):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, target, head, keys],
        capture_output=True, text=True, check=False, env=child_environment(),
    )  # fmt: skip
    assert done.stdout.strip().endswith("same"), done.stderr[-2000:]


def _predictor(sizes=(20.0,), encoder=None):
    view = View(patch_sizes_m=sizes, modalities=("s2",))
    return Predictor(encoder or meadow_encoder(), make_task(KIND, None), view, "both")


def test_predictors_that_cannot_be_exported_are_refused():
    with pytest.raises(InputError, match=r"expected a predictor with one patch size, got \[10.0, 20.0\]"):
        export_predictor(_predictor((10.0, 20.0)))
    bare = meadow_encoder()
    bare.normaliser = None
    with pytest.raises(InputError, match="a predictor with statistics"):
        export_predictor(_predictor(encoder=bare))


def test_the_export_of_encoders_says_how_to_export_a_predictor():
    with pytest.raises(InputError, match=r"expected an encoder, got Predictor.*export_predictor.*\.encoder"):
        export(_predictor(), ["s2"], 20)
