"""STAC documents: valid by the schemas, offline; true of the store; nothing invented."""

import json
from datetime import UTC, datetime
from pathlib import Path

import jsonschema
import pystac
import pytest
import xarray
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT7

from anysat.errors import OutputExistsError, RecordError
from anysat.geo.validate.documents import store_of
from anysat.geo.write.catalog import EMB, EO, MLM, Energy, RunFacts, catalog_of, write_catalog
from anysat.geo.write.exports import export
from store_builders import DIM, GRID, class_layout, finished, model_facts, patch_layout, run_facts

STANDARDS = Path(__file__).parents[4] / "shared" / "standards"
CORE = Path(pystac.__file__).parent / "validation" / "jsonschemas"


@pytest.fixture(scope="module")
def documents(tmp_path_factory) -> dict[str, dict]:
    """Documents of embeddings, codes and a class map, by their names."""
    store = tmp_path_factory.mktemp("store") / "a.zarr"
    finished(store, [patch_layout(), patch_layout("int8-scale", name="codes"), class_layout()])
    files = export(store, store.with_name("a.tif"))
    root = write_catalog(store, run_facts(), exports={"patch": files})
    assert root == store.with_name("a.stac") / "catalog.json"
    return {str(path.relative_to(root.parent)): json.loads(path.read_text()) for path in root.parent.rglob("*.json")}


def test_there_is_a_catalog_a_model_and_a_collection_with_an_item_per_group(documents):
    groups = ("patch", "codes", "classes")
    assert set(documents) == {
        "catalog.json",
        "model.json",
        *(f"{g}/{n}.json" for g in groups for n in ("collection", "item")),
    }


def registry() -> Registry:
    """The core schemas that come with pystac, whatever version is asked for; what is not at hand allows anything."""
    known = {}
    for path in CORE.rglob("*.json"):
        known[json.loads(path.read_text())["$id"].rstrip("#")] = path
    for path in STANDARDS.glob("stac-*.schema.json"):
        known[json.loads(path.read_text())["$id"].rstrip("#")] = path

    def find(address: str) -> Resource:
        address = address.replace("v1.0.0/item-spec", "v1.1.0/item-spec").replace("v1.0.0/coll", "v1.1.0/coll")
        address = address.replace("processing/v1.1.0", "processing/v1.2.0")
        named = known.get(address) or next(
            (p for key, p in known.items() if key.endswith(address.rpartition("/")[2])), None
        )
        text = (
            named.read_text() if named and ("stacspec" in address or "geojson" in address or address in known) else None
        )
        if text is None:
            number = {"data_type": {"type": "string"}, "nodata": {}, "unit": {}, "statistics": {}}
            return Resource.from_contents(
                {"definitions": {"bands": {"items": {"properties": number}}, "fields": {}}}, DRAFT7
            )
        return Resource.from_contents(json.loads(text), DRAFT7)

    return Registry(retrieve=find)


NAMES = {"emb": "stac-embeddings", "mlm": "stac-mlm", "projection": "stac-projection", "processing": "stac-processing"}


@pytest.mark.skipif(not STANDARDS.is_dir(), reason="no schemas beside the repository (../shared/standards)")
def test_every_document_is_valid_by_every_schema_it_names(documents):
    checked = []
    for name, document in documents.items():
        kind = {"Feature": "item", "Collection": "collection", "Catalog": "catalog"}[document["type"]]
        schemas = [CORE / "stac-spec" / "v1.1.0" / f"{kind}.json"]
        for extension in document.get("stac_extensions", ()):
            short = extension.split("/")[3].replace("embeddings", "emb")
            if short == "eo":  # its schema is not at hand
                continue
            schemas.append(STANDARDS / f"{NAMES[short]}.schema.json")
            checked.append(short)
        for schema in schemas:
            rules = json.loads(schema.read_text())
            errors = list(jsonschema.Draft7Validator(rules, registry=registry()).iter_errors(document))
            assert not errors, (name, schema.name, errors[0].message, [e.message for e in errors[0].context][:6])
    assert set(checked) == {"emb", "mlm", "projection", "processing"}


def test_a_broken_document_is_refused_by_the_schemas(documents):
    """So that the test above means something."""
    if not STANDARDS.is_dir():
        pytest.skip("no schemas beside the repository (../shared/standards)")
    rules = json.loads((STANDARDS / "stac-embeddings.schema.json").read_text())
    check = jsonschema.Draft7Validator(rules, registry=registry())
    assert check.is_valid(documents["patch/item.json"])
    assert check.is_valid(documents["patch/collection.json"])
    for name, path in (("patch/item.json", ("assets",)), ("patch/collection.json", ("emb:type",))):
        broken = {key: value for key, value in documents[name].items() if key not in path}
        assert not check.is_valid(broken)


def test_the_asset_is_called_embeddings_and_is_the_store(documents):
    item = documents["patch/item.json"]
    assert EMB in item["stac_extensions"]
    assert item["assets"]["embeddings"]["href"] == "../../a.zarr"
    assert {asset["href"] for asset in item["assets"].values()} >= {"../../a_2020-01-01.tif", "../../a_2020-07-01.tif"}
    assert EMB not in documents["classes/item.json"].get("stac_extensions", [])
    assert documents["classes/item.json"]["assets"]["map"]["href"] == "../../a.zarr"


def test_place_and_time_are_those_of_the_store(documents):
    properties = documents["patch/item.json"]["properties"]
    assert (properties["proj:code"], properties["proj:shape"]) == ("EPSG:32737", [11, 7])
    assert properties["proj:transform"] == list(GRID.affine)[:6]
    assert (properties["start_datetime"], properties["end_datetime"]) == (
        "2020-01-01T00:00:00Z",
        "2020-12-31T23:59:59Z",
    )
    west, south, east, north = documents["patch/item.json"]["bbox"]
    corners = GRID.extent.to_crs("EPSG:4326").boundingbox
    assert (west, south, east, north) == pytest.approx(tuple(corners), abs=1e-6)


def test_provenance_names_inputs_weights_and_software(documents):
    properties, links = documents["patch/item.json"]["properties"], documents["patch/item.json"]["links"]
    assert properties["anysat:inputs"]["s2"]["dates"] == ["2020-03-01"]
    assert (properties["anysat:weights"], properties["anysat:seconds"]) == ("abc", 3.5)
    assert properties["processing:software"] == {"anysat": "0"}
    assert properties["emb:runtime_parameters"] == {"patch_size_m": 20.0}
    assert sum(link["rel"] == "emb:source-data" for link in links) == 3
    assert [link["href"] for link in links if link["rel"] == "emb:model"] == ["../model.json"]


def test_the_model_is_an_mlm_item_with_its_bands(documents):
    item = documents["model.json"]
    assert item["stac_extensions"] == [EO, MLM]
    assert item["properties"]["mlm:total_parameters"] == 12
    assert [band["name"] for band in item["properties"]["mlm:input"][1]["bands"]] == [
        f"aerial.{b}" for b in ("NIR", "G", "B", "R")
    ]
    assert item["assets"]["weights"]["href"] == "https://huggingface.co/g-astruc/AnySat"


def test_codes_tell_their_rule_and_steps(documents):
    told = documents["codes/item.json"]["properties"]["emb:quantization"]
    assert (told["original_dtype"], told["quantized_dtype"]) == ("float32", "int8")
    assert told["scale"] == pytest.approx([4 / 127] * DIM)
    assert documents["codes/collection.json"]["data_type"] == "int8"


def test_energy_is_told_only_when_a_meter_was_read(tmp_path, documents):
    assert "emb:energy" not in documents["patch/item.json"]["properties"]
    store = finished(tmp_path / "a.zarr")
    energy = Energy(device="cpu", energy_kwh=0.01, duration_s=360.0, name="meter")
    write_catalog(store, run_facts(energy=energy))
    item = json.loads((catalog_of(store) / "patch" / "item.json").read_text())
    assert item["properties"]["emb:energy"] == pytest.approx(
        {"device_type": "cpu", "energy_kwh": 0.01, "inference_duration_s": 360.0, "avg_power_w": 100.0, "name": "meter"}
    )
    with pytest.raises(RecordError, match="expected cpu or gpu"):
        Energy(device="tpu", energy_kwh=1, duration_s=1)


def test_pystac_walks_the_catalog_and_xarray_opens_what_it_finds(tmp_path):
    store = finished(tmp_path / "a.zarr")
    catalog = pystac.Catalog.from_file(str(write_catalog(store, run_facts())))
    (item,) = (item for item in catalog.get_items(recursive=True) if item.id == "a-patch")
    href = item.assets["embeddings"].get_absolute_href()
    with xarray.open_zarr(href, group="patch") as cube:
        assert cube["embedding"].shape == (2, DIM, *GRID.shape)
    assert store_of(tmp_path / "a.stac") == store_of(tmp_path / "a.stac" / "patch" / "item.json") == store


def test_documents_can_be_moved_with_their_store(tmp_path):
    store = finished(tmp_path / "one" / "a.zarr")
    write_catalog(store, run_facts())
    (tmp_path / "one").rename(tmp_path / "two")
    assert str(tmp_path / "one") not in (tmp_path / "two" / "a.stac" / "patch" / "item.json").read_text()
    assert store_of(tmp_path / "two" / "a.stac") == tmp_path / "two" / "a.zarr"


def test_documents_are_replaced_only_when_asked_to(tmp_path):
    store = finished(tmp_path / "a.zarr")
    write_catalog(store, run_facts())
    with pytest.raises(OutputExistsError, match="a.stac exists"):
        write_catalog(store, run_facts())
    write_catalog(store, run_facts(version="1"), overwrite=True)
    assert "anysat 1" in (tmp_path / "a.stac" / "patch" / "collection.json").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.stac", "a.zarr"]


def test_without_periods_the_dates_of_the_inputs_are_the_time(tmp_path):
    from anysat.geo.stores.stored import open_stored
    from anysat.geo.write.catalog import product_item

    group = open_stored(finished(tmp_path / "a.zarr"))["patch"]
    object.__setattr__(group, "periods", ())
    found = product_item(tmp_path / "a.zarr", group, run_facts()).to_dict()["properties"]
    assert (found["start_datetime"], found["end_datetime"]) == ("2020-03-01T00:00:00Z", "2020-03-01T23:59:59Z")


def test_a_store_tells_most_of_how_it_was_made(tmp_path):
    told = {"inputs": {"s2": {"path": "s2.nc"}}, "options": {"overlap": 2}, "version": "7"}
    store = finished(tmp_path / "a.zarr", made_from=told)
    found = RunFacts.of(store, model_facts(), finished=datetime(2026, 1, 2, tzinfo=UTC))
    assert (found.inputs, found.options, found.version, found.energy) == (*told.values(), None)
    assert write_catalog(store, found).exists()
