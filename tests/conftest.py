"""Fixtures of several test files; one thread, so that results repeat and neighbours do not matter."""

import importlib
import sys
import textwrap
from dataclasses import replace

import pytest
import torch
import wheels as builder
from broken_plugins import NAME
from environments import Environment
from installed_plugins import Installed

from ebmcore.compiling import graph

torch.set_num_threads(1)


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Installs distributions into a folder of their own, which this process and its children have on their path."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def write(name, case, folder=tmp_path, version=None):
        info = folder / f"{name.replace('-', '_')}-{version or '1.2'}.dist-info"
        info.mkdir(parents=True)
        number = case.version if version is None else f"Version: {version}\n"
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\n{number}Summary: broken\nRequires-Dist: ebmcore>=0.1\n"
        )
        (info / "entry_points.txt").write_text(f"[ebmcore]\n{case.entry_point}\n")

    def make(case):
        write(NAME, case)
        (tmp_path / "broken_plugin.py").write_text(case.hook)
        (tmp_path / "broken_plugin_2.py").write_text("from broken_plugin import USED\nNAME = 'x'\n")
        (tmp_path / "broken_component.py").write_text(case.component)
        if case.other == "version":
            write(NAME, case, tmp_path / "old", version="0.9")
            monkeypatch.syspath_prepend(tmp_path / "old")
            monkeypatch.syspath_prepend(tmp_path)
            monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{tmp_path / 'old'}")
        if case.other == "name":
            write("ebm-plugin-zother", replace(case, entry_point="broken = zother_plugin"))
            (tmp_path / "zother_plugin.py").write_text(case.hook)

    return make


@pytest.fixture(scope="session")
def wheels(tmp_path_factory):
    """One wheel of each of our distributions."""
    return builder.build(tmp_path_factory.mktemp("wheels"))


class Site(Environment):
    """An environment in which commands are written as a user types them."""

    def __call__(self, command, cwd=None):
        return self.run("/bin/sh", "-c", command, cwd=cwd)

    def check(self, *command, cwd=None):
        return super().check(*(["/bin/sh", "-c", *command] if len(command) == 1 else command), cwd=cwd)


@pytest.fixture
def environment(tmp_path, wheels, tmp_path_factory):
    """Makes a clean environment with the named requirements."""
    links = tmp_path_factory.getbasetemp() / "links"

    def make(*requirements):
        return Site(tmp_path / f"environment-{len(list(tmp_path.iterdir()))}", wheels, requirements, links)

    return make


@pytest.fixture(scope="session")
def everything(tmp_path_factory, wheels):
    """An environment with all our distributions, and with what plugins are built and tested with; shared, as it takes seconds."""
    folder = tmp_path_factory.mktemp("everything")
    requirements = ("ebmcore[all]", "hatchling", "editables", "build", "pytest")
    return Site(folder / "environment", wheels, requirements, folder / "links")


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """Makes a distribution whose plugin is a module of the given source."""
    monkeypatch.syspath_prepend(tmp_path)
    made = []

    def make(distribution, source, **metadata):
        module = distribution.replace("-", "_")
        (tmp_path / f"{module}.py").write_text(textwrap.dedent(source))
        importlib.invalidate_caches()
        made.append(module)
        return Installed(distribution, module, **metadata)

    yield make
    for module in made:
        sys.modules.pop(module, None)


@pytest.fixture
def interpreted(monkeypatch):
    """Makes graphs run as they were traced: what inductor makes of them has tests of its own."""
    monkeypatch.setattr(graph, "compile_with_inductor", lambda module, inputs: module)
