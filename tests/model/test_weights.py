"""Weight files: published names in, our own file, the hub's folder, and everything that can be wrong with a file."""

import io
import json
import pickle
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import anysat
from anysat.errors import InputError, MissingFileError, RecordError, UnknownNameError, WeightsError, WriteError
from anysat.modalities import MODALITIES, Band, Modality
from anysat.model import checkpoint
from anysat.model.config import ModelConfig
from anysat.model.encoder import AnySat
from anysat.normalise import Normaliser
from builders import golden_state_dict, random_input, random_model

SMALL = ModelConfig(dim=64, depth=1, num_heads=2)


@pytest.fixture(scope="module")
def small():
    return random_model(SMALL)


def write_published(path, model, **changes):
    torch.save({"state_dict": {**model.published_state_dict(), **changes}}, path)
    return path


def same_numbers(one, other):
    x = random_input(("s2", "aerial"))
    with torch.no_grad():
        return torch.equal(one(x, 20, "all"), other(x, 20, "all"))


def test_a_published_file_loads_strictly_in_eval_mode(tmp_path, small):
    loaded = anysat.load(write_published(tmp_path / "AnySat.pth", small), config=SMALL)
    assert not loaded.training
    assert same_numbers(loaded, small)
    assert loaded.provenance == {"weights": str(tmp_path / "AnySat.pth"), "licence": "unknown"}


@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
def test_the_teacher_of_a_training_checkpoint_is_what_is_loaded(suffix, tmp_path, small):
    teacher = {f"target_encoder.{k}": t for k, t in small.published_state_dict().items()}
    student = {f"model.encoder.{k}": t + 1 for k, t in small.published_state_dict().items()}
    predictor = {"model.predictor.mask_token": torch.zeros(1, 1, 64), "model.masked_token": torch.zeros(1, 1, 64)}
    tensors = {**student, **predictor, **teacher}
    if suffix == "ckpt":
        torch.save({"state_dict": tensors, "epoch": 3}, tmp_path / "full.ckpt")
    else:
        save_file(tensors, tmp_path / "full.safetensors")
    assert same_numbers(anysat.load(tmp_path / f"full.{suffix}", config=SMALL), small)


def test_published_names_are_the_inverse_of_loading_them(small):
    other = AnySat(SMALL)
    other.load_published_state_dict(small.published_state_dict())
    assert all(torch.equal(a, b) for a, b in zip(other.state_dict().values(), small.state_dict().values(), strict=True))


def test_our_file_keeps_weights_configuration_statistics_provenance_and_licence(tmp_path):
    drone = Modality(key="drone", sensor="x", bands=(Band(name="R"),), gsd_m=0.5, is_temporal=False, subpatch_px=4)
    config = ModelConfig(dim=64, depth=1, num_heads=2, subpatch_order="raster").with_modalities(drone)
    model = random_model(config)
    model.normaliser = Normaliser.preset("treesatai_ts")
    model.provenance = {"weights": "mine", "licence": "CC-BY-4.0"}
    checkpoint.save(model, tmp_path / "deep" / "model.safetensors")
    loaded = anysat.load(tmp_path / "deep" / "model.safetensors")
    assert (loaded.config, loaded.normaliser, loaded.provenance) == (config, model.normaliser, model.provenance)
    assert same_numbers(loaded, model)
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["model.safetensors"]
    with safe_open(tmp_path / "deep" / "model.safetensors", "pt") as file:
        assert f'"anysat": "{anysat.__version__}"' in file.metadata()["anysat"]


def test_a_folder_with_our_file_loads_and_save_pretrained_makes_one(tmp_path, small):
    small.save_pretrained(tmp_path / "mine")
    assert {p.name for p in (tmp_path / "mine").iterdir()} == {"model.safetensors", "config.json", "README.md"}
    assert same_numbers(AnySat.from_pretrained(tmp_path / "mine"), small)
    assert same_numbers(anysat.load(tmp_path / "mine"), small)


def test_push_to_hub_uploads_the_folder(small, monkeypatch):
    uploaded = {}

    class Hub:
        def __init__(self, **_):
            pass

        def create_repo(self, repo_id, **_):
            return type("Repo", (), {"repo_id": repo_id})

        def upload_folder(self, folder_path, **_):
            uploaded.update({p.name: p.stat().st_size for p in Path(folder_path).iterdir()})
            return "address"

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    assert small.push_to_hub("me/model") == "address"
    assert set(uploaded) == {"model.safetensors", "config.json", "README.md"}


def test_a_hub_id_is_fetched_through_the_hubs_own_client(tmp_path, small, monkeypatch):
    asked = []

    def fetch(repo, name, revision=None, token=None):
        asked.append((repo, name, revision))
        return str(write_published(tmp_path / "AnySat.pth", small))

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    loaded = anysat.load("g-astruc/AnySat", config=SMALL, revision="main")
    assert same_numbers(loaded, small)
    assert loaded.provenance == {"weights": "g-astruc/AnySat", "licence": "MIT"}
    assert asked == [("g-astruc/AnySat", "models/AnySat.pth", "main")]


def test_a_hub_that_cannot_be_reached_says_so_and_names_the_way_out(monkeypatch):
    from huggingface_hub.errors import LocalEntryNotFoundError

    def fetch(*_, **__):
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    with pytest.raises(
        WeightsError, match="could not be fetched from the hub .*no connection.*or give a local file.*--weights nano"
    ):
        anysat.load("g-astruc/AnySat")


def test_torch_hub_gives_an_untrained_size_or_loads_a_file(tmp_path, small):
    repository = Path(__file__).parents[2]
    checkpoint.save(small, tmp_path / "w.safetensors")
    loaded = torch.hub.load(str(repository), "anysat", source="local", weights=str(tmp_path / "w.safetensors"))
    assert same_numbers(loaded, small)
    untrained = torch.hub.load(str(repository), "anysat", source="local", pretrained=False, size="tiny")
    assert untrained.config == ModelConfig.tiny()
    assert not untrained.training


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_come_in_the_type_asked_for(tmp_path, small, dtype):
    loaded = anysat.load(write_published(tmp_path / "a.pth", small), config=SMALL, dtype=dtype)
    assert {p.dtype for p in loaded.parameters()} == {dtype}


def test_statistics_come_from_the_file_a_preset_a_json_or_the_data(tmp_path, small):
    path = write_published(tmp_path / "a.pth", small)
    preset = Normaliser.preset("treesatai_ts")
    preset.save(tmp_path / "s.json")
    assert anysat.load(path, config=SMALL).normaliser is None
    assert anysat.load(path, config=SMALL, statistics="treesatai_ts").normaliser == preset
    assert anysat.load(path, config=SMALL, statistics=tmp_path / "s.json").normaliser == preset
    assert anysat.load(path, config=SMALL, statistics=preset).normaliser == preset
    model = random_model(SMALL)
    model.normaliser = preset
    checkpoint.save(model, tmp_path / "own.safetensors")
    assert anysat.load(tmp_path / "own.safetensors").normaliser == preset
    assert anysat.load(tmp_path / "own.safetensors", statistics="from-data").normaliser is None
    with pytest.raises(UnknownNameError, match="unknown statistics 'treesat'; closest: treesatai_ts"):
        anysat.load(path, config=SMALL, statistics="treesat")


def test_missing_extra_and_misshapen_tensors_are_named(tmp_path, small):
    tensors = small.published_state_dict()
    tensors["surplus"] = torch.zeros(1)
    tensors["cls_token"] = torch.zeros(1, 1, 32)
    del tensors["blocks.1.attn.wk.bias"]
    torch.save({"state_dict": tensors}, tmp_path / "odd.pth")
    message = (
        r"1 missing \(blocks.1.attn.wk.bias\); 1 extra \(surplus\); "
        r"1 misshapen \(cls_token \(1, 1, 32\) instead of \(1, 1, 64\)\)"
    )
    with pytest.raises(WeightsError, match=message):
        anysat.load(tmp_path / "odd.pth", config=SMALL)


def test_weights_of_another_size_say_what_configuration_is_needed(tmp_path, small):
    with pytest.raises(WeightsError, match=r"misshapen.*give the configuration the weights were made with"):
        anysat.load(write_published(tmp_path / "a.pth", small), config=ModelConfig(dim=128, depth=1, num_heads=4))


@pytest.mark.parametrize("size", ["base", "small", "tiny"])
def test_a_size_is_not_weights_and_says_so(size):
    with pytest.raises(
        WeightsError, match="only base has published weights; load 'g-astruc/AnySat', or make an untrained"
    ):
        anysat.load(size)


class Malicious:
    def __reduce__(self):
        return (exec, ("import pathlib; pathlib.Path('hacked').write_text('')",))


@pytest.mark.parametrize("suffix", [".pth", ".ckpt", ".pt", ".bin"])
def test_a_planted_pickle_is_refused_and_does_not_run(tmp_path, monkeypatch, suffix):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {}, "x": Malicious()}, tmp_path / f"bad{suffix}")
    with pytest.raises(WeightsError, match="holds more than tensors, so it was refused and none of it was run"):
        anysat.load(tmp_path / f"bad{suffix}")
    (tmp_path / f"raw{suffix}").write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(WeightsError, match="refused|not a readable checkpoint"):
        anysat.load(tmp_path / f"raw{suffix}")
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize(
    "content", [b"", b"not a checkpoint at all", b"PK\x03\x04broken"], ids=["empty", "text", "zip"]
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_corrupt_file_is_refused_with_its_name(tmp_path, content, suffix):
    path = tmp_path / f"corrupt{suffix}"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=rf"corrupt\{suffix}: (not a readable|holds more)"):
        anysat.load(path)


def test_a_truncated_file_is_refused(tmp_path, small):
    checkpoint.save(small, tmp_path / "a.safetensors")
    for path in (write_published(tmp_path / "a.pth", small), tmp_path / "a.safetensors"):
        path.write_bytes(path.read_bytes()[:-1000])
        with pytest.raises(WeightsError, match="not a readable"):
            anysat.load(path)


def test_files_of_other_kinds_are_refused(tmp_path, small):
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(WeightsError, match="holds a list, not a state dict"):
        anysat.load(tmp_path / "list.pth")
    (tmp_path / "weights.onnx").write_bytes(b"x")
    with pytest.raises(WeightsError, match=r"unknown suffix '.onnx'"):
        anysat.load(tmp_path / "weights.onnx")
    with pytest.raises(MissingFileError, match="a weight file, a folder that holds one, nano, or a hub id"):
        anysat.load(tmp_path / "none.pth")
    with pytest.raises(MissingFileError, match=r"a folder with model.safetensors"):
        anysat.load(tmp_path)
    save_file(
        {"a": torch.zeros(1)}, tmp_path / "new.safetensors", {"anysat": '{"format": "anysat-9", "anysat": "9.0"}'}
    )
    with pytest.raises(WeightsError, match="format 'anysat-9', written by anysat 9.0"):
        anysat.load(tmp_path / "new.safetensors")


def test_published_names_in_safetensors_load_too(tmp_path, small):
    save_file({k: t.contiguous() for k, t in small.published_state_dict().items()}, tmp_path / "p.safetensors")
    assert same_numbers(anysat.load(tmp_path / "p.safetensors", config=SMALL), small)


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are POSIX")
def test_a_full_disk_leaves_nothing_behind(tmp_path, small, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(
        WriteError, match=r"a.safetensors: could not be written .*No space left.*nothing was left behind"
    ):
        checkpoint.save(small, tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_new_sensors_get_projectors_beside_the_released_ones():
    config = SMALL.with_modalities(MODALITIES["hls"], MODALITIES["planet"], MODALITIES["s1-des"])
    model = AnySat(config)
    state = golden_state_dict(model)
    assert len(state) == len(golden_state_dict(AnySat(SMALL))) + 30 + 9 + 30
    buffer = io.BytesIO()
    torch.save(state, buffer)
    assert {"projector_hls.pad_parameter", "projector_planet.patch_embed.weight"} <= set(state)


def test_weights_that_are_not_finite_are_refused(tmp_path, small):
    broken = {"cls_token": torch.full((1, 1, 64), float("nan"))}
    with pytest.raises(WeightsError, match=r"NaN or infinity in 1 tensors \(cls_token\)"):
        anysat.load(write_published(tmp_path / "a.pth", small, **broken), config=SMALL)


def test_what_would_not_load_is_not_saved(tmp_path):
    model = random_model(SMALL)
    with pytest.raises(WeightsError, match="unknown suffix ''; give a name that ends in .safetensors"):
        checkpoint.save(model, tmp_path / "b")
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(WeightsError, match=r"weights of the model: NaN or infinity in 1 tensors"):
        checkpoint.save(model, tmp_path / "b.safetensors")
    assert not [*tmp_path.iterdir()]


def test_weights_of_a_compiled_model_are_those_of_the_model(tmp_path, small, monkeypatch):
    named = {f"_orig_mod.{name}": weight for name, weight in small.state_dict().items()}  # as `torch.compile` does
    with monkeypatch.context() as patch:
        patch.setattr(small, "state_dict", lambda: named)
        checkpoint.save(small, tmp_path / "a.safetensors")
    assert same_numbers(anysat.load(tmp_path / "a.safetensors"), small)


def test_a_saved_file_can_be_read_by_whom_the_folder_allows(tmp_path, small):
    checkpoint.save(small, tmp_path / "a.safetensors")
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_keys_that_are_no_names_are_refused(tmp_path):
    torch.save({1: torch.zeros(1)}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match="holds a dict, not a state dict"):
        anysat.load(tmp_path / "a.pth")


def test_wide_weights_are_not_rounded_on_their_way_into_a_wide_model(tmp_path, small):
    wide = {name: tensor.double() + 1e-12 for name, tensor in small.published_state_dict().items()}
    torch.save(wide, tmp_path / "a.pth")
    found = anysat.load(tmp_path / "a.pth", config=SMALL, dtype=torch.float64).published_state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in wide.items())


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_pointer_of_git_lfs_is_told(tmp_path, suffix):
    path = tmp_path / f"AnySat{suffix}"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 5\n")
    with pytest.raises(WeightsError, match="a pointer of Git LFS, not the weights; fetch them with `git lfs pull`"):
        anysat.load(path)


def test_bytes_of_no_kind_are_not_called_a_pickle(tmp_path):
    for start in (b"", b"\x00\x01", b"hello"):
        (tmp_path / "a.pth").write_bytes(start + bytes(range(256)))
        with pytest.raises(WeightsError, match=r"not a readable checkpoint \(neither of torch nor of safetensors\)"):
            anysat.load(tmp_path / "a.pth")


def test_a_safetensors_file_is_known_by_its_content(tmp_path, small):
    checkpoint.save(small, tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").rename(tmp_path / "a.pth")
    assert same_numbers(anysat.load(tmp_path / "a.pth"), small)


@pytest.mark.parametrize("name", ["./missing", "../missing", "/missing", "~/missing", "a/b/c", "", "~nobody/missing"])
def test_what_can_only_be_a_path_is_not_asked_of_the_hub(name, monkeypatch):
    monkeypatch.setattr(checkpoint, "download", lambda *_: pytest.fail("asked the hub"))
    with pytest.raises(MissingFileError, match=f"^{name or repr(name)}: no such file or folder"):
        anysat.load(name)


def test_the_users_home_is_written_with_a_tilde(tmp_path, small, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    small.save_pretrained("~/kept")
    assert {one.name for one in (tmp_path / "kept").iterdir()} == {"model.safetensors", "config.json", "README.md"}
    assert same_numbers(anysat.load("~/kept"), small)


def test_the_entry_of_torch_hub_takes_what_the_authors_does_and_a_type(small, tmp_path):
    entry = partial(torch.hub.load, str(Path(__file__).parents[2]), "anysat", source="local")
    with pytest.raises(UnknownNameError, match="unknown size 'huge'"):
        entry(pretrained=False, size="huge")
    made = entry(
        pretrained=False, size="tiny", flash_attn=False, device="cpu", dtype=torch.bfloat16, depth=1,
        modalities=(MODALITIES["s2"],),
    )  # fmt: skip
    named = entry(pretrained=False, size="tiny", device="auto", dtype="bfloat16", depth=1)
    assert (named.dtype, named.device.type) == (torch.bfloat16, "cuda" if torch.cuda.is_available() else "cpu")
    assert (made.dtype, made.config.depth, made.training) == (torch.bfloat16, 1, False)
    checkpoint.save(small, tmp_path / "w.safetensors")
    assert same_numbers(entry(weights=str(tmp_path / "w.safetensors"), flash_attn=True), small)


@pytest.mark.parametrize(
    "options",
    [{"pretrained": False, "size": "tiny", "weights": "mine.safetensors"}, {"size": "small", "weights": "nano"}],
    ids=str,
)
def test_the_entry_of_torch_hub_refuses_weights_beside_what_goes_without_them(options):
    entry = partial(torch.hub.load, str(Path(__file__).parents[2]), "anysat", source="local")
    with pytest.raises(InputError, match="weights: expected none .*, got '(mine.safetensors|nano)'; leave out"):
        entry(**options)


def test_weights_that_are_one_tensor_are_told_where_they_are_saved(tmp_path):
    model = random_model(SMALL)
    block = model.spatial.blocks[0]
    block.norm2.weight = block.norm1.weight
    named = "spatial.blocks.0.norm1.weight, spatial.blocks.0.norm2.weight"
    with pytest.raises(WeightsError, match=f"these are one tensor: {named}; give each its own"):
        model.save_pretrained(tmp_path / "tied")
    assert not (tmp_path / "tied").exists()


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
def test_tensors_of_types_that_are_not_computed_with_are_refused(tmp_path, small, dtype):
    path = write_published(tmp_path / "a.pth", small, cls_token=torch.zeros(1, 1, 64).to(dtype))
    with pytest.raises(WeightsError, match=f"1 tensors of a type that is not computed with .cls_token {dtype}"):
        anysat.load(path, config=SMALL)


@pytest.mark.parametrize("changes", [{"depth": 1.0}, {"num_heads": 2.0}, {"dim": 64.0}, {"pixel_widths": (8.0,)}])
def test_counts_that_are_no_whole_numbers_are_refused(changes, tmp_path, small):
    with pytest.raises(RecordError, match=f"ModelConfig.{next(iter(changes))}: expected (a whole|multiples)"):
        ModelConfig(**changes)
    assert ModelConfig(dim=np.int64(64), num_heads=2).dim == 64
    checkpoint.save(small, tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        meta = json.loads(file.metadata()["anysat"])
    meta["config"] |= changes
    save_file({"a": torch.zeros(1)}, tmp_path / "b.safetensors", {"anysat": json.dumps(meta)})
    with pytest.raises(WeightsError, match=r"unreadable metadata \(ModelConfig"):
        anysat.load(tmp_path / "b.safetensors")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_state_dict_with_our_names_loads_with_its_configuration(tmp_path, small, suffix):
    path = tmp_path / f"own{suffix}"
    (torch.save if suffix == ".pth" else save_file)(small.state_dict(), path)
    loaded = anysat.load(path, config=SMALL)
    assert same_numbers(loaded, small)
    assert loaded.provenance == {"weights": str(path), "licence": "unknown"}
    with pytest.raises(WeightsError, match=r"270 misshapen \(projectors.*; give the configuration"):
        anysat.load(path, config=ModelConfig(dim=128, depth=1, num_heads=4))


def test_an_encoder_inside_a_larger_model_says_how_to_get_it_out(tmp_path, small):
    inside = {"head.weight": torch.zeros(1), **{f"net.enc.{name}": one for name, one in small.state_dict().items()}}
    torch.save({"state_dict": inside, "epoch": 3}, tmp_path / "lit.ckpt")
    told = r"lit.ckpt: holds a larger model, .* begin with 'net.enc.'; .*`save_pretrained\(folder\)`.*`load_state_dict`"
    with pytest.raises(WeightsError, match=told):
        anysat.load(tmp_path / "lit.ckpt", config=SMALL)


def test_devices_and_types_go_by_name():
    assert anysat.load("nano", device="auto").device.type in ("cpu", "cuda")
    for name in ("bfloat16", "torch.bfloat16"):
        assert anysat.load("nano", dtype=name).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("given", "options", "error", "message"),
    [
        ("nano", {"device": "gpu"}, RecordError, "^device: expected a device of this machine such as cpu"),
        ("nano", {"device": 1.5}, RecordError, "^device: expected a device"),
        ("nano", {"dtype": "bf16"}, UnknownNameError, "unknown dtype 'bf16'; closest: bfloat16"),
        ("nano", {"dtype": torch.int8}, UnknownNameError, "unknown dtype 'int8'"),
        ("nano", {"statistics": {"s2": 1}}, InputError, "statistics: expected a Normaliser, .* got dict; .*from_dict"),
        (None, {}, InputError, "weights: expected a name, a path or a hub id, such as 'nano', got NoneType"),
        ("nano", {"config": {"dim": 64}}, InputError, "config: expected a ModelConfig, .* got dict; .*from_dict"),
        ("nano", {"config": "huge"}, UnknownNameError, "unknown size 'huge'; "),
    ],
)
def test_what_load_cannot_take_is_told(given, options, error, message):
    with pytest.raises(error, match=message):
        anysat.load(given, **options)


def test_a_size_and_statistics_go_by_name_into_a_model():
    model = AnySat("tiny", normaliser="treesatai_ts")
    assert (model.config, model.normaliser) == (ModelConfig.tiny(), Normaliser.preset("treesatai_ts"))
    model.normaliser = "from-data"
    assert model.normaliser is None
    with pytest.raises(UnknownNameError, match="unknown statistics 'preset'; .*Or give a JSON file"):
        model.normaliser = "preset"
    with pytest.raises(InputError, match="statistics: expected a Normaliser"):
        model.normaliser = {"s2": 1}
