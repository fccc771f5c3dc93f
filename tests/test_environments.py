"""Installing and removing distributions with pip, from wheels, in the virtual environments of `conftest`.

What the environments hold of third parties is what the requirements declare: see ``tools/environments.py``.
"""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path

import environments
import pytest

ROOT = Path(__file__).resolve().parents[1]
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
    site = environment("ebmcore[train]", "ebm-plugin-pcd", "ebm-plugin-rbm", "ebm-plugin-datasets")
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
    assert "'ebm-plugin-pcd:pcd'" in site.check("python session.py")


def test_what_no_one_declares_is_absent(environment):
    """A plugin's environment holds what it declares: neither the developer's packages nor extras of ebmcore."""
    site = environment("ebm-plugin-cd")
    site.check("python", "-c", "import torch, pluggy, ebmcore, ebm_plugin_cd")
    for module in (
        "sklearn",
        "numpy",
        "yaml",
        "rich",
        "matplotlib",
        "lightning_fabric",
        "jsonargparse",
        "pytest",
        "hatchling",
    ):
        assert f"No module named '{module}'" in site(f"python -c 'import {module}'").stderr


def test_what_an_extra_declares_is_there(environment):
    site = environment("ebmcore[train]", "ebm-plugin-datasets")
    site.check("python", "-c", "import sklearn, numpy, yaml, rich, matplotlib, lightning_fabric, jsonargparse")
    assert "No module named 'sphinx'" in site("python -c 'import sphinx'").stderr


def test_missing_requirements_are_named(wheels):
    with pytest.raises(LookupError, match="the environment requires ebm-no-such-thing>=2, which is not installed in"):
        environments.declared(["ebm-no-such-thing>=2"], wheels)


def test_listing_works_on_the_bare_kernel_and_training_says_what_is_missing(environment):
    bare = environment("ebm-plugin-pcd")
    assert "pcd" in bare.check("ebmcore list")
    assert "ebm-plugin-pcd" in bare.check("ebmcore plugins")
    refused = bare("ebmcore train --loss pcd")
    assert refused.returncode == 2
    assert "pip install 'ebmcore[train]'" in refused.stderr
    # torch itself says at import that there is no NumPy.
    assert len([line for line in refused.stderr.splitlines() if "Failed to initialize NumPy" not in line]) == 1


def test_with_no_plugin_at_all_the_command_line_works(environment):
    empty = environment("ebmcore")
    assert json.loads(empty.check("ebmcore list --json")) == []
    assert json.loads(empty.check("ebmcore plugins --json")) == []
    assert empty.check("ebmcore list").split() == ["KIND", "NAME", "ID", "VERSION"]
    assert "0 plugins examined: all in order" in empty.check("ebmcore doctor")
    assert "pip install ebm-plugin-pcd" in empty("ebmcore show pcd").stderr
    assert empty("ebmcore train --loss pcd").returncode == 2
    empty.check("ebmcore --help")


# Losses and samplers are made in test_readme.py.
@pytest.mark.parametrize("kind", ["energy", "dataset", "metric", "observer", "recipe", "command"])
def test_a_new_plugin_of_each_kind_installs_passes_its_tests_and_runs(everything, tmp_path, request, kind):
    made = everything.check(f"ebmcore new plugin my-first --kind {kind}", cwd=tmp_path)
    request.addfinalizer(lambda: everything.check("pip uninstall -y ebm-plugin-my-first"))
    commands = [line.strip() for line in made.splitlines()[2:]]
    assert len(commands) == 4  # with the one above, five from nothing to a trained model
    # As a user would type them, one after the other in one shell.
    shown = everything.check(" && ".join(commands), cwd=tmp_path)
    assert "passed" in shown
    assert ("Hello, world." if kind == "command" else "trained") in shown
    assert "ebm-plugin-my-first:my-first" in everything.check("ebmcore list")
    assert "1 plugin examined: all in order" in everything.check("ebmcore doctor ebm-plugin-my-first")


def test_the_page_write_a_plugin_is_true(everything, tmp_path, request):
    page = (ROOT / "docs/write-a-plugin.md").read_text()
    request.addfinalizer(lambda: everything.check("pip uninstall -y ebm-plugin-noisy-cd"))
    done, cwd = [], tmp_path
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
                done.append((command, everything.check(command, cwd=cwd)))
    assert len(done) >= 10
    tree = re.search(r"```text\nebm-plugin-noisy-cd/\n(.*?)```", page, re.DOTALL).group(1)
    assert all((cwd / line.split()[0]).exists() for line in tree.splitlines())
    shown = dict(done)
    tests, train = shown["pytest"], next(c for c in shown if "--loss.start_noise" in c)
    passed = int(re.search(r"(\d+) passed", tests).group(1))
    assert passed == pytest.approx(int(re.search(r"about (\d+) checks", page).group(1)), abs=5)
    assert "trained" in shown[train]
    assert "start_noise: 0.2" in (cwd / "runs/noisy/config.yaml").read_text()
    assert "start_noise: float = 0.1" in shown["ebmcore show noisy-cd"]
    assert list((cwd / "dist").glob("*.whl"))

    loss = cwd / "ebm_plugin_noisy_cd/loss.py"
    loss.write_text("import torch\n" + loss.read_text().replace(", generator=self.generator", ""))
    wrong = everything("ebmcore check noisy-cd", cwd)
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
    assert needs.pop("ebm-plugin-files") == base | {"numpy>=1.26", "pillow>=10", "safetensors>=0.5"}
    training = base - {"ebmcore>=0.1"} | {"ebmcore[train]>=0.1", "numpy>=1.26"}
    assert needs.pop("ebm-plugin-observers") == training | {"safetensors>=0.5", "matplotlib>=3.8"}
    plugins = {"ebm-plugin-langevin", "ebm-plugin-nets", "ebm-plugin-pcd"}
    assert needs.pop("ebm-plugin-sklearn") == training | plugins | {"scikit-learn>=1.6"}
    assert all(needed == base for needed in needs.values()), needs


def test_files_of_two_distributions_are_linked(tmp_path, monkeypatch):
    """The files of one that is declared, though another that is not holds them too."""
    site = tmp_path / "site"
    for name in ("small", "large"):  # as PyTorch Lightning holds the files of Lightning Fabric
        (site / f"{name}-1.0.dist-info").mkdir(parents=True)
        (site / f"{name}-1.0.dist-info/METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (site / f"{name}-1.0.dist-info/RECORD").write_text(
            "shared/one.py,,\n" + ("large/two.py,,\n" if name == "large" else "")
        )
    for file in ("shared/one.py", "large/two.py"):
        (site / file).parent.mkdir()
        (site / file).touch()
    monkeypatch.syspath_prepend(site)
    monkeypatch.setattr(environments, "SITE", site)
    found = environments.linked(["small"], tmp_path / "links")
    assert sorted(path.name for path in found.iterdir()) == ["shared"]
    assert (found / "shared/one.py").is_file()
