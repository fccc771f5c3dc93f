"""Installing and removing distributions, each in a clean environment made from wheels.

The environment is a folder with links to the third-party packages of this one and, installed from their wheels, only those of
our distributions that a test asks for; the interpreter is started without this environment's site-packages.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS = ("ebmcore", "ebm_plugin_", "__editable__", "_ebm", "_ebmcore")
TRAINING = ("lightning_fabric", "jsonargparse", "rich", "matplotlib", "yaml", "tensorboard")


@pytest.fixture(scope="session")
def wheels(tmp_path_factory):
    """One wheel of each of our distributions, by name."""
    out = tmp_path_factory.mktemp("wheels")
    sources = [ROOT, *sorted((ROOT / "plugins").iterdir())]
    for source in sources:
        command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
        subprocess.run(command, check=True, capture_output=True)
    return {path.name.split("-")[0].replace("_", "-"): path for path in out.iterdir()}


@pytest.fixture
def environment(tmp_path, wheels):
    """Makes a clean environment; returns the function that runs ``ebmcore`` in it."""

    def make(*distributions, without=()):
        site = tmp_path / f"site-{len(list(tmp_path.iterdir()))}"
        site.mkdir()
        for path in Path(sysconfig.get_paths()["purelib"]).iterdir():
            if not path.name.startswith((*OURS, *without)) and path.suffix != ".pth":
                (site / path.name).symlink_to(path)
        for name in ("ebmcore", *distributions):
            with zipfile.ZipFile(wheels[name]) as wheel:
                wheel.extractall(site)

        def ebmcore(command, program=("-m", "ebmcore")):
            variables = {"PATH": os.environ["PATH"], "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
            arguments = [sys.executable, "-S", *program, *command.split()]
            return subprocess.run(arguments, capture_output=True, text=True, env=variables, cwd=tmp_path)

        return ebmcore

    return make


def test_removing_a_plugin_removes_its_names_and_its_wheel_brings_them_back(environment):
    others = ("ebm-plugin-rbm", "ebm-plugin-datasets")
    train = "train --energy rbm --energy.hidden 4 --sampler gibbs --loss pcd --data bars-and-stripes --steps 2 --out run"
    without = environment(*others)
    assert " pcd " not in without("list loss").stdout
    refused = without(train)
    assert refused.returncode == 2
    assert refused.stderr == "ebmcore: no installed plugin provides the loss 'pcd': pip install ebm-plugin-pcd\n"
    with_pcd = environment(*others, "ebm-plugin-pcd")
    assert "ebm-plugin-pcd:pcd" in with_pcd("list loss").stdout
    done = with_pcd(train)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", sorted(p.name for p in (ROOT / "plugins").iterdir()))
def test_each_plugin_works_alone(environment, name):
    alone = environment(name)
    listed = json.loads(alone("list --json").stdout)
    assert listed
    assert {row["id"].split(":")[0] for row in listed} == {name}
    assert json.loads(alone("plugins --json").stdout)[0]["state"] == "available"
    for row in listed:
        assert alone(f"show {row['id']}").returncode == 0
    own_tests = alone(f"-p no:cacheprovider {ROOT / 'plugins' / name / 'tests'}", program=("-m", "pytest"))
    assert own_tests.returncode == 0, own_tests.stdout


def test_listing_works_on_the_bare_kernel_and_training_says_what_is_missing(environment):
    bare = environment("ebm-plugin-pcd", without=TRAINING)
    assert "pcd" in bare("list").stdout
    assert "ebm-plugin-pcd" in bare("plugins").stdout
    refused = bare("train --loss pcd")
    assert refused.returncode == 2
    assert "pip install 'ebmcore[train]'" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def test_with_no_plugin_at_all_listings_are_empty(environment):
    empty = environment()
    assert json.loads(empty("list --json").stdout) == []
    assert json.loads(empty("plugins --json").stdout) == []
    assert empty("list").stdout.split() == ["KIND", "NAME", "ID", "VERSION"]


def test_wheels_hold_no_tests_and_carry_types_licence_and_readme(wheels):
    assert len(wheels) == 8
    for path in wheels.values():
        names = zipfile.ZipFile(path).namelist()
        metadata = zipfile.ZipFile(path).read(next(n for n in names if n.endswith("METADATA"))).decode()
        assert not [n for n in names if Path(n).name.startswith("test_") or "/tests/" in n]
        assert any(n.endswith("py.typed") for n in names)
        assert any(n.endswith("LICENSE") for n in names)
        assert "Description-Content-Type: text/markdown" in metadata
        assert len(metadata.split("\n\n", 1)[1]) > 200  # the README


def test_a_plugin_asks_only_for_what_it_needs(wheels):
    needs = {}
    for name, path in wheels.items():
        archive = zipfile.ZipFile(path)
        metadata = archive.read(next(n for n in archive.namelist() if n.endswith("METADATA"))).decode()
        lines = [line.split(": ", 1)[1] for line in metadata.splitlines() if line.startswith("Requires-Dist")]
        needs[name] = {line for line in lines if "extra ==" not in line}
    base = {"ebmcore>=0.1", "torch>=2.10"}
    assert needs.pop("ebmcore") == {"torch>=2.10", "pluggy>=1.5", "importlib-metadata<10,>=8", "packaging>=23"}
    assert needs.pop("ebm-plugin-datasets") == base | {"scikit-learn>=1.4", "numpy>=1.26"}
    assert all(needed == base for needed in needs.values()), needs
