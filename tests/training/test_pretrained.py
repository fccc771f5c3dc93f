"""Exported energies from strangers: each file replaced, damaged or forged."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch
from commands import RBM, ebmcore, train
from safetensors.torch import load_file, save_file

from ebmcore import from_pretrained
from ebmcore.errors import EbmcoreError, UsageError

FILES = ["config.json", "model.safetensors"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    assert train(f"{RBM} --loss pcd --loss.n_chains 10 --steps 2", folder / "run") == 0
    assert ebmcore(f"export {folder / 'run'} --out", folder / "model") == 0
    return folder / "model"


@pytest.fixture
def model(exported, tmp_path):
    shutil.copytree(exported, tmp_path / "model")
    return tmp_path / "model"


def link(path, other):
    path.unlink()
    path.symlink_to(other)


def hard_link(path, other):
    path.unlink()
    os.link(other, path)


def pipe(path, other):
    path.unlink()
    os.mkfifo(path)


def missing(path, other):
    path.unlink()


def directory(path, other):
    path.unlink()
    path.mkdir()


def empty(path, other):
    path.write_bytes(b"")


def noise(path, other):
    path.write_bytes(b"\xff\x00\x1b" * 100)


def truncated(path, other):
    path.write_bytes(path.read_bytes()[:-10])


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("attack", [link, hard_link, pipe, missing, directory, empty, noise, truncated])
def test_replaced_file_is_refused(model, exported, attack, name):
    attack(model / name, exported / name)
    with pytest.raises(EbmcoreError) as caught:
        from_pretrained(model)
    assert "\n" not in str(caught.value)


def test_card_is_not_read(model, exported):
    link(model / "README.md", exported / "missing")
    from_pretrained(model)


def edit(model, change):
    record = json.loads((model / "config.json").read_text())
    change(record)
    (model / "config.json").write_text(json.dumps(record))


VALUES = [None, True, 7, -1, 2**63, 0.5, "text", [], {}, {"name": "mlp"}, [[]]]


@pytest.mark.parametrize("key", ["format", "energy", "examples", "components", "ebmcore"])
def test_wrong_type_in_the_record_is_refused(model, key):
    original = (model / "config.json").read_text()
    for value in VALUES:
        if (key, value) in [("ebmcore", None), ("ebmcore", "text"), ("format", 1)]:
            continue  # another version, which is a warning; and 1 is True
        (model / "config.json").write_text(original)
        edit(model, lambda record, value=value: record.update({key: value}))
        with pytest.raises(EbmcoreError):
            from_pretrained(model)


@pytest.mark.parametrize(
    "options",
    [
        {"hidden": 2**40},
        {"hidden": -1},
        {"hidden": "os.system"},
        {"hidden": 4, "class_path": "os.system"},
        {"hidden": 4, "shape": [9]},
        {"hidden": 5},
    ],
)
def test_other_options_are_refused(model, options):
    edit(model, lambda record: record.update(energy=options))
    with pytest.raises(EbmcoreError):
        from_pretrained(model)


def test_name_among_the_options_is_not_used(model):
    """The component is the one of the record's origin."""
    edit(model, lambda record: record["energy"].update(name="mlp"))
    assert type(from_pretrained(model)).__name__ == "RBM"


def test_only_components_are_loaded(model):
    """A class that no plugin registered is not imported, whatever the record says."""
    edit(model, lambda record: record["components"]["energy"].update({"id": None, "class": "torch.nn:Identity"}))
    with pytest.raises(UsageError, match="only installed components are loaded"):
        from_pretrained(model)


def test_missing_plugin_is_named(model):
    edit(model, lambda record: record["components"]["energy"].update(distribution="ebm-plugin-x", version="3.1"))
    with pytest.raises(EbmcoreError, match=r"get ebm-plugin-x==3\.1 from who made the run"):
        from_pretrained(model)


@pytest.mark.parametrize(
    "change", [lambda t: t.new_zeros(3, 3), lambda t: t * float("nan"), lambda t: t.to(torch.complex64), lambda t: t.int()]
)
def test_other_weights_are_refused(model, change):
    weights = load_file(model / "model.safetensors")
    save_file(weights | {"weight": change(weights["weight"])}, model / "model.safetensors")
    with pytest.raises(EbmcoreError):
        from_pretrained(model)


def test_additional_weights_are_refused(model):
    weights = load_file(model / "model.safetensors")
    save_file(weights | {"evil": torch.zeros(1)}, model / "model.safetensors")
    with pytest.raises(UsageError, match="do not fit"):
        from_pretrained(model)


def test_directory_of_another_kind_is_refused(tmp_path):
    with pytest.raises(UsageError, match="holds no exported energy"):
        from_pretrained(tmp_path)
    with pytest.raises(UsageError, match="holds no exported energy"):
        from_pretrained(tmp_path / "missing")


def test_random_numbers_are_left_alone(model):
    torch.manual_seed(3)
    wanted = torch.rand(1)
    torch.manual_seed(3)
    from_pretrained(model)
    assert torch.equal(torch.rand(1), wanted)
