"""The backbone for other libraries: its maps against `encode` and `end_at`, gradients, and what it takes."""

import copy
import io
import pickle
import subprocess
import sys

import lightning
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader

from anysat.batch import Batch
from anysat.errors import InputError, UnknownNameError
from anysat.modalities import MODALITIES
from anysat.model.backbone import Backbone
from anysat.model.config import ModelConfig
from anysat.model.early import end_at, joinable_layers
from anysat.model.encoder import AnySat
from builders import child_environment, random_input, random_model
from labelled import meadow_batch, meadow_encoder

SIDE_M = 20.0
LAYERS = ["spatial.2", "fusion.1", "fusion.2", "last"]


@pytest.fixture(scope="module")
def encoder():
    return meadow_encoder(depth=2).eval()


@pytest.fixture(scope="module")
def batch():
    return meadow_batch(4)


@pytest.fixture(scope="module")
def images():
    """An encoder of several modalities, and standardised tensors of two rectangles of 60 by 90 m."""
    return random_model(ModelConfig(dim=64, depth=2, num_heads=2)), random_input(("s2", "aerial"), 60, width_m=90)


def as_map(embeddings, valid):
    """Embeddings as the backbone gives them."""
    return embeddings.masked_fill(~valid[..., None], 0).permute(0, 3, 1, 2)


def learning(encoder):
    return copy.deepcopy(encoder).requires_grad_(True)


@torch.inference_mode()
def test_each_map_is_that_of_the_encoder_that_ends_there(encoder, batch):
    assert joinable_layers(encoder) == LAYERS
    maps = Backbone(encoder, SIDE_M, layers=LAYERS)(batch)
    for layer, found in zip(LAYERS, maps, strict=True):
        wanted = end_at(copy.deepcopy(encoder), layer).encode(batch, SIDE_M)
        assert torch.allclose(found, as_map(wanted.patch, wanted.valid), atol=1e-5), layer
    assert not any(torch.allclose(a, b, atol=1e-3) for n, a in enumerate(maps) for b in maps[:n])


@torch.inference_mode()
def test_the_last_layer_is_the_patch_embedding_and_the_encoder_stays_as_it_was(encoder, batch):
    before = encoder.encode(batch, SIDE_M)
    names = list(encoder.state_dict())
    (found,) = Backbone(encoder, SIDE_M)(batch)
    Backbone(encoder, SIDE_M, layers=["fusion.1"])(batch)
    after = encoder.encode(batch, SIDE_M)
    assert torch.equal(found, as_map(before.patch, before.valid))
    assert torch.equal(after.patch, before.patch)
    assert list(encoder.state_dict()) == names


@torch.inference_mode()
def test_dense_comes_first_and_is_the_dense_embedding(encoder, batch):
    backbone = Backbone(encoder, SIDE_M, layers=["fusion.1", "last"], dense="s2")
    dense, *others = backbone(batch)
    wanted = encoder.encode(batch, SIDE_M, dense="s2")
    assert torch.equal(dense, as_map(wanted.dense, wanted.dense_valid))
    assert [one.shape[1] for one in (dense, *others)] == backbone.out_channels == [128, 64, 64]
    assert backbone.spacings_m == [10.0, SIDE_M, SIDE_M]
    assert [40 / one.shape[-1] for one in (dense, *others)] == backbone.spacings_m


@torch.inference_mode()
def test_rectangles_and_standardised_tensors_give_the_published_call(images):
    encoder, x = images
    backbone = Backbone(encoder, 30, layers=["fusion.1", "last"], dense="aerial")
    dense, early, last = backbone(x)
    assert last.shape == early.shape == (2, 64, 2, 3)
    for found, wanted in ((last, encoder(x, 30)), (dense, encoder(x, 30, "dense", "aerial"))):
        assert torch.allclose(found, wanted.permute(0, 3, 1, 2), atol=1e-5)
    assert torch.equal(Backbone(encoder, 30)(x)[0], encoder(x, 30).permute(0, 3, 1, 2))


@torch.inference_mode()
def test_a_missing_modality_changes_nothing_and_unseen_ground_is_0(images):
    encoder, x = images
    backbone = Backbone(encoder, 30, layers=["fusion.1", "last"])
    without = {key: one for key, one in x.items() if key != "aerial"}
    masked = {**x, "aerial_mask": torch.zeros(2, 1, 1, 1)}
    for found, wanted in zip(backbone(masked), backbone(without), strict=True):
        assert torch.equal(found, wanted)
    hidden = torch.ones(1, 1, 1, 6, 9)
    hidden[..., :3, :3] = 0
    for found in backbone({**without, "s2_mask": hidden}):
        assert (found[:, :, 0, 0] == 0).all()
        assert (found[:, :, 1:] != 0).all()


@torch.inference_mode()
def test_bands_are_matched_by_name_and_others_are_masked(images):
    encoder, x = images
    single = {"s2": x["s2"][:, :1], "s2_dates": x["s2_dates"][:, :1]}
    stored = ["B12", "B2", "B8A"]
    index = [encoder.config.modality("s2").find_band(name) for name in stored]
    mask = torch.zeros(1, 1, 10, 1, 1)
    mask[:, :, index] = 1
    wanted = encoder({**single, "s2_mask": mask}, 30).permute(0, 3, 1, 2)
    backbone = Backbone(encoder, 30, bands={"s2": stored})
    image = single["s2"][:, 0, index]
    (found,) = backbone(image, s2_dates=single["s2_dates"][:, 0])
    assert torch.equal(found, wanted)
    assert torch.equal(backbone({"s2": image[:, None], "s2_dates": single["s2_dates"]})[0], wanted)
    clear = torch.ones(2, 1, 6, 9)
    assert torch.equal(backbone(image, s2_dates=single["s2_dates"], s2_mask=clear)[0], wanted)


@torch.inference_mode()
def test_a_day_stands_in_for_dates_only_if_it_is_given(images):
    encoder, x = images
    image = x["s2"][:, 0]
    bands = {"s2": encoder.config.modality("s2").band_names}
    with pytest.raises(InputError, match="s2_dates: expected day numbers"):
        Backbone(encoder, 30, bands=bands)(image)
    (found,) = Backbone(encoder, 30, bands=bands, day=170)(image)
    wanted = encoder({"s2": image[:, None], "s2_dates": torch.full((2, 1), 170)}, 30)
    assert torch.equal(found, wanted.permute(0, 3, 1, 2))


def test_what_does_not_fit_is_refused_with_what_does(encoder, batch, images):
    with pytest.raises(UnknownNameError, match="unknown layer 'fusion.3'; closest: fusion.2"):
        Backbone(encoder, SIDE_M, layers=["fusion.3"])
    for layers in ([], ["last", "fusion.1"], ["last", "last"]):
        with pytest.raises(InputError, match="in this order"):
            Backbone(encoder, SIDE_M, layers=layers)
    with pytest.raises(UnknownNameError, match="B13"):
        Backbone(encoder, SIDE_M, bands={"s2": ["B13"]})
    with pytest.raises(InputError, match="a dict of tensors by modality.*`bands`"):
        Backbone(encoder, SIDE_M)(torch.zeros(1, 10, 4, 4))
    with pytest.raises(InputError, match=r"2 bands \(B4, B2\)"):
        Backbone(encoder, SIDE_M, bands={"s2": ["B4", "B2"]}, day=1)(torch.zeros(1, 10, 4, 4))
    with pytest.raises(UnknownNameError, match="location_coords"):
        Backbone(images[0], 30)(images[1], location_coords=torch.zeros(2, 2))
    one_band = Backbone(encoder, SIDE_M, bands={"s2": ["B4"]}, day=1)
    with pytest.raises(InputError, match=r"s2: expected .*rank 5, got shape \(4, 4\)"):
        one_band(torch.zeros(4, 4))
    with pytest.raises(InputError, match="s2: expected a torch tensor, got ndarray"):
        one_band({"s2": torch.zeros(1, 1, 4, 4).numpy()})
    with pytest.raises(InputError, match="or a Batch, got list"):
        one_band([torch.zeros(1, 1, 4, 4)])
    with pytest.raises(InputError, match="inside it"):
        Backbone(encoder, SIDE_M)(batch, s2_dates=torch.zeros(1, 1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder": "nano"}, r"encoder: expected a model, such as anysat.load\('nano'\), got 'nano'"),
        ({"day": "2020-06-01"}, "day: expected a day of the year, such as 170, got '2020-06-01'"),
        ({"bands": ["B2"]}, "bands: expected names by modality, such as {'s2': .*, got \\['B2'\\]"),
        ({"bands": {"s2": "B2"}}, "s2 bands: expected a list of names, got 'B2'"),
        ({"bands": {"s2": 3}}, "s2 bands: expected a list of names, got 3"),
    ],
)
def test_arguments_of_other_kinds_are_told(encoder, options, message):
    with pytest.raises(InputError, match=message):
        Backbone(**{"encoder": encoder, "patch_size_m": 20, **options})


def test_one_layer_may_be_given_by_its_name_and_companions_are_tensors(encoder):
    backbone = Backbone(encoder, 20, layers="last", bands={"s2": (name for name in ["B2", "B3"])}, day=170)
    assert (backbone.layers, len(backbone(torch.ones(1, 2, 6, 6)))) == (("last",), 1)
    for name in ("s2_dates", "s2_mask"):
        with pytest.raises(InputError, match=f"{name}: expected a torch tensor, got list"):
            backbone(torch.ones(1, 2, 6, 6), **{name: [1]})


def test_gradients_reach_the_blocks_before_a_layer_and_no_block_is_idle(encoder, batch):
    model = learning(encoder)
    backbone = Backbone(model, SIDE_M, layers=["spatial.2", "fusion.1"])
    first, second = backbone(batch)
    first.square().sum().backward(retain_graph=True)
    assert model.spatial.blocks[1].attention.qkv.weight.grad.abs().sum() > 0
    assert not model.fusion.blocks[0].attention.qkv.weight.grad.any()
    second.square().sum().backward()
    assert model.fusion.blocks[0].attention.qkv.weight.grad.abs().sum() > 0
    assert model.fusion.blocks[1].attention.qkv.weight.grad is None
    own = {id(one) for one in backbone.parameters()}
    assert not own & {id(one) for part in (model.fusion.blocks[1], model.fusion.pooling) for one in part.parameters()}


def test_it_freezes_and_trains_as_any_module(encoder, batch):
    backbone = Backbone(learning(encoder), SIDE_M)
    assert not backbone.training, "the mode of the encoder"
    assert all(part.training for part in backbone.train().modules())
    assert not any(one.requires_grad for one in backbone.requires_grad_(False).parameters())
    assert not backbone(batch)[0].requires_grad


@torch.inference_mode()
def test_it_can_be_pickled_and_its_weights_saved(encoder, batch):
    backbone = Backbone(encoder, SIDE_M, layers=["fusion.1", "last"])
    again = pickle.loads(pickle.dumps(backbone))
    file = io.BytesIO()
    torch.save(backbone.state_dict(), file)
    file.seek(0)
    other = Backbone(meadow_encoder(depth=2), SIDE_M, layers=["fusion.1", "last"])
    for weight in other.parameters():
        weight.zero_()
    other.load_state_dict(torch.load(file, weights_only=True))
    for one in (again, other):
        assert all(torch.equal(a, b) for a, b in zip(one(batch), backbone(batch), strict=True))


COMPILED = """
import torch
from anysat.model.backbone import Backbone
from labelled import meadow_batch, meadow_encoder

with torch.inference_mode():
    backbone = Backbone(meadow_encoder(depth=2), 20, layers=["fusion.1", "last"])
    wanted = backbone(meadow_batch(4))
    for block in backbone.encoder.fusion.blocks:
        block.compile(backend="eager")
    found = backbone(meadow_batch(4))
print(all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, wanted, strict=True)))
print(torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0)
"""


def test_its_blocks_can_be_compiled():
    """In a process of its own, without checks of shapes, which do not compile."""
    done = subprocess.run(
        [sys.executable, "-c", COMPILED], capture_output=True, text=True, env=child_environment(),
        check=False,
    )  # fmt: skip
    assert done.stdout.split() == ["True", "True"], done.stderr[-3000:]


class Segmenter(lightning.LightningModule):
    """A decoder of 1 x 1 convolutions over all maps, in the way of other libraries."""

    def __init__(self, backbone, classes):
        super().__init__()
        self.encoder = backbone
        self.decoder = nn.Conv2d(sum(backbone.out_channels), classes, 1)
        self.losses = []

    def training_step(self, sample, _):
        size = sample["mask"].shape[-2:]
        maps = [functional.interpolate(one.clone(), size) for one in self.encoder(sample["image"])]
        loss = functional.cross_entropy(self.decoder(torch.cat(maps, 1)), sample["mask"])
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 3e-3)


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # of torch 2.13, caused by Lightning 2.6
@pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")
def test_a_small_decoder_learns_a_toy_segmentation_in_lightning():
    torch.manual_seed(0)
    encoder = AnySat(ModelConfig(dim=64, depth=2, num_heads=2, modalities=(MODALITIES["s2"],)))
    image = torch.randn(4, 10, 6, 9)
    mask = (image[:, 3] > 0).long()
    image[:, 3] += 4 * mask - 2  # two classes that one band tells apart
    bands = {"s2": MODALITIES["s2"].band_names}
    model = Segmenter(Backbone(encoder, 30, layers=["fusion.1", "last"], dense="s2", bands=bands, day=170), 2)
    trainer = lightning.Trainer(
        max_steps=100, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, DataLoader([{"image": image, "mask": mask}] * 100, batch_size=None))
    assert model.losses[0] > 0.6
    assert model.losses[-1] < 0.2


def test_a_batch_equals_its_tiles_one_by_one(encoder, batch):
    backbone = Backbone(encoder, SIDE_M, layers=["fusion.1", "last"])
    with torch.inference_mode():
        whole = backbone(batch)
        for index in range(len(batch)):
            for all_tiles, one in zip(whole, backbone(Batch.of([batch.tile(index)])), strict=True):
                assert torch.allclose(all_tiles[index], one[0], atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 16, 16), (2, 1, 3, 16, 16), (2, 1, 8, 16)])
def test_a_mask_of_another_shape_is_told_which_it_should_have(shape):
    encoder = random_model(modalities=(MODALITIES["s2"],), dim=64, depth=1)
    backbone = Backbone(encoder, 40, bands={"s2": ["B2", "B3"]}, day=170)
    with pytest.raises(InputError, match=r"s2_mask: expected shape \(2, 1, 2, 16, 16\), or 1"):
        backbone(torch.randn(2, 2, 16, 16), s2_mask=torch.ones(shape))
