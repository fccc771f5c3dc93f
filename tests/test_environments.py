"""Installing and removing distributions with pip, each time in a virtual environment of its own, from wheels.

The third-party packages of this environment are linked into it, so that pip finds what it needs without an index.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import venv
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
    return out


class Environment:
    """A virtual environment with our wheels as the only index."""

    def __init__(self, path, wheels, without=()):
        venv.create(path, with_pip=False, symlinks=True)
        self.path, self.bin = path, path / "bin"
        linked = path / "third-party"
        linked.mkdir()
        for package in Path(sysconfig.get_paths()["purelib"]).iterdir():
            if not package.name.startswith((*OURS, *without)) and package.suffix != ".pth":
                (linked / package.name).symlink_to(package)
        site = next(path.glob("lib/python*/site-packages"))
        (site / "third-party.pth").write_text(f"{linked}\n")
        for script in ("pip", "pytest"):
            (self.bin / script).write_text(f'#!/bin/sh\nexec "{self.bin}/python" -m {script} "$@"\n')
            (self.bin / script).chmod(0o755)
        # What pip would otherwise take from the outside, builds included.
        pip = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels), "PIP_NO_BUILD_ISOLATION": "0", "PIP_QUIET": "1"}
        self.variables = {
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }
        self.variables |= pip

    def __call__(self, command, cwd=None):
        done = subprocess.run(
            ["/bin/sh", "-c", command], capture_output=True, text=True, env=self.variables, cwd=cwd or self.path, timeout=600
        )
        return done

    def check(self, command, cwd=None):
        """Run a command that must succeed; what it printed."""
        done = self(command, cwd)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout


@pytest.fixture
def environment(tmp_path, wheels):
    """Makes a clean environment with the named distributions."""

    def make(*distributions, without=()):
        made = Environment(tmp_path / f"environment-{len(list(tmp_path.iterdir()))}", wheels, without)
        if distributions:
            made.check(f"pip install {' '.join(distributions)}")
        return made

    return make


TRAIN = "ebmcore train --energy rbm --energy.hidden 4 --sampler gibbs --loss pcd --data bars-and-stripes --steps 2 --out"


def test_removing_a_plugin_removes_its_names_and_its_wheel_brings_them_back(environment):
    site = environment("ebmcore[train]", "ebm-plugin-rbm", "ebm-plugin-datasets")
    assert " pcd " not in site.check("ebmcore list loss")
    refused = site(f"{TRAIN} run")
    assert refused.returncode == 2
    assert refused.stderr == "ebmcore: no installed plugin provides the loss 'pcd': pip install ebm-plugin-pcd\n"
    site.check("pip install ebm-plugin-pcd")
    assert "ebm-plugin-pcd:pcd" in site.check("ebmcore list loss")
    assert "trained 2 steps" in site.check(f"{TRAIN} run")
    site.check("pip uninstall -y ebm-plugin-pcd")
    assert " pcd " not in site.check("ebmcore list loss")


def test_a_run_without_its_plugin_says_which_version_to_install(environment):
    site = environment("ebm-plugin-pcd", "ebm-plugin-rbm", "ebm-plugin-datasets")
    site.check(f"{TRAIN} run")
    site.check("pip uninstall -y ebm-plugin-pcd")
    for command in ("ebmcore train --resume run --steps 3", "ebmcore sample run --out a.png"):
        refused = site(command)
        assert refused.returncode == 2
        assert re.search(r"step-00000002 needs plugins .*: pip install ebm-plugin-pcd==0\.1\.0\n$", refused.stderr), (
            refused.stderr
        )
    site.check(re.search(r"pip install \S+", refused.stderr).group())
    assert "trained 3 steps" in site.check("ebmcore train --resume run --steps 3")


def test_a_session_finds_what_is_installed_while_it_runs(environment):
    site = environment("ebmcore")
    program = """
import subprocess, ebmcore
assert ebmcore.list_components() == []
subprocess.run(["pip", "install", "ebm-plugin-pcd"], check=True)
ebmcore.refresh()
print([c.id for c in ebmcore.list_components()])
"""
    (site.path / "session.py").write_text(program)
    assert "['ebm-plugin-pcd:pcd']" in site.check("python session.py")


@pytest.mark.parametrize("name", sorted(p.name for p in (ROOT / "plugins").iterdir()))
def test_each_plugin_works_alone(environment, name):
    alone = environment(name)
    listed = json.loads(alone.check("ebmcore list --json"))
    assert listed
    assert {row["id"].split(":")[0] for row in listed} == {name}
    (row,) = json.loads(alone.check("ebmcore plugins --json"))
    assert row["state"] == "available"
    assert {(c["kind"], c["name"]) for c in row["components"]} == {(row["kind"], row["name"]) for row in listed}
    alone.check(f"ebmcore show {listed[0]['id']}")
    assert "1 plugin examined: all in order" in alone.check("ebmcore doctor")
    alone.check(f"pytest -p no:cacheprovider {ROOT / 'plugins' / name / 'tests'}")


def test_listing_works_on_the_bare_kernel_and_training_says_what_is_missing(environment):
    bare = environment("ebm-plugin-pcd", without=TRAINING)
    assert "pcd" in bare.check("ebmcore list")
    assert "ebm-plugin-pcd" in bare.check("ebmcore plugins")
    refused = bare("ebmcore train --loss pcd")
    assert refused.returncode == 2
    assert "pip install 'ebmcore[train]'" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def test_with_no_plugin_at_all_the_command_line_works(environment):
    empty = environment("ebmcore")
    assert json.loads(empty.check("ebmcore list --json")) == []
    assert json.loads(empty.check("ebmcore plugins --json")) == []
    assert empty.check("ebmcore list").split() == ["KIND", "NAME", "ID", "VERSION"]
    assert "0 plugins examined: all in order" in empty.check("ebmcore doctor")
    assert "pip install ebm-plugin-pcd" in empty("ebmcore show pcd").stderr
    assert empty("ebmcore train --loss pcd").returncode == 2
    empty.check("ebmcore --help")


@pytest.mark.parametrize("kind", ["loss", "sampler", "energy", "dataset", "metric", "observer"])
def test_a_new_plugin_of_each_kind_installs_passes_its_tests_and_trains(environment, kind):
    site = environment("ebmcore[all]")
    made = site.check(f"ebmcore new plugin my-first --kind {kind}")
    commands = [line.strip() for line in made.splitlines()[2:]]
    assert len(commands) == 4  # with the one above, five from nothing to a trained model
    # As a user would type them, one after the other in one shell.
    shown = site.check(" && ".join(commands))
    assert "passed" in shown
    assert "trained" in shown
    assert "ebm-plugin-my-first:my-first" in site.check("ebmcore list")
    assert "1 plugin examined: all in order" in site.check("ebmcore doctor ebm-plugin-my-first")


def test_the_page_write_a_plugin_is_true(environment):
    page = (ROOT / "docs/write-a-plugin.md").read_text()
    site = environment("ebmcore[all]")
    done, cwd = [], site.path
    for language, text in re.findall(r"```(bash|python)\n(.*?)```", page, re.DOTALL):
        if language == "python":  # the line above says which file it is
            (name,) = re.findall(rf"`([\w./]+)`\n```python\n{re.escape(text)}", page)
            assert (cwd / name).exists()
            (cwd / name).write_text(text)
            continue
        for command in text.splitlines():
            if command.startswith("cd "):
                cwd = cwd / command.removeprefix("cd ")
            else:
                done.append((command, site.check(command, cwd)))
    assert len(done) >= 10
    tree = re.search(r"```text\nebm-plugin-noisy-cd/\n(.*?)```", page, re.DOTALL).group(1)
    assert all((cwd / line.split()[0]).exists() for line in tree.splitlines())
    shown = dict(done)
    tests, train = shown["pytest"], next(c for c in shown if "--loss.start_noise" in c)
    passed = int(re.search(r"(\d+) passed", tests).group(1))
    assert passed == pytest.approx(50, abs=5)  # "about 50 checks"
    assert "trained" in shown[train]
    assert "start_noise: 0.2" in (cwd / "runs/noisy/config.yaml").read_text()
    assert "start_noise: float = 0.1" in shown["ebmcore show noisy-cd"]
    assert list((cwd / "dist").glob("*.whl"))

    loss = cwd / "ebm_plugin_noisy_cd/loss.py"
    loss.write_text("import torch\n" + loss.read_text().replace(", generator=self.generator", ""))
    wrong = site("ebmcore check noisy-cd", cwd)
    assert wrong.returncode == 1
    said = re.search(r"```text\n(noisy-cd breaks .*?)```", page, re.DOTALL).group(1)
    assert " ".join(said.split()) in " ".join(wrong.stdout.split())


def test_wheels_hold_no_tests_and_carry_types_licence_and_readme(wheels):
    assert len(list(wheels.iterdir())) == 1 + len(list((ROOT / "plugins").iterdir()))
    for path in wheels.iterdir():
        names = zipfile.ZipFile(path).namelist()
        metadata = zipfile.ZipFile(path).read(next(n for n in names if n.endswith("METADATA"))).decode()
        assert not [n for n in names if Path(n).name.startswith("test_") or "/tests/" in n]
        assert any(n.endswith("py.typed") for n in names)
        assert any(n.endswith("LICENSE") for n in names)
        assert "Description-Content-Type: text/markdown" in metadata
        assert len(metadata.split("\n\n", 1)[1]) > 200  # the README


def test_recipes_are_in_the_wheel(wheels):
    (path,) = wheels.glob("ebm_plugin_pcd-*.whl")
    recipes = [name for name in zipfile.ZipFile(path).namelist() if name.startswith("ebm_plugin_pcd/recipes/")]
    assert len(recipes) == len(list((ROOT / "plugins/ebm-plugin-pcd/ebm_plugin_pcd/recipes").iterdir())) == 2


def test_a_plugin_asks_only_for_what_it_needs(wheels):
    needs = {}
    for path in wheels.iterdir():
        name = path.name.split("-")[0].replace("_", "-")
        archive = zipfile.ZipFile(path)
        metadata = archive.read(next(n for n in archive.namelist() if n.endswith("METADATA"))).decode()
        lines = [line.split(": ", 1)[1] for line in metadata.splitlines() if line.startswith("Requires-Dist")]
        needs[name] = {line for line in lines if "extra ==" not in line}
    base = {"ebmcore>=0.1", "torch>=2.10"}
    assert needs.pop("ebmcore") == {"torch>=2.10", "pluggy>=1.5", "importlib-metadata<10,>=8", "packaging>=23"}
    assert needs.pop("ebm-plugin-datasets") == base | {"scikit-learn>=1.4", "numpy>=1.26"}
    assert all(needed == base for needed in needs.values()), needs
