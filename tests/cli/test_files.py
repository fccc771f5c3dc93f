"""``--data FILE`` finds the data set that reads the file."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import yaml
from commands import ebmcore

import ebmcore as kernel
from ebmcore.cli.files import reader

REST = "--energy mlp --energy.hidden [4] --sampler langevin --sampler.step_size 0.01 --loss cd --steps 1 --progress false"
TRAIN = f"train {REST} --accelerator cpu --out run --data"


class Lines:
    """Points of a text file, one in each line.

    Args:
        path: The file.
        scale: A factor.
    """

    def __init__(self, path: str, scale: float = 1.0):
        rows = [[scale * float(value) for value in line.split()] for line in Path(path).read_text().splitlines()]
        self.train = self.test = torch.tensor(rows)
        self.shape, self.state_space = (len(rows[0]),), "continuous"

    @staticmethod
    def reads(path: Path) -> bool:
        return path.suffix == ".points"


class Folder(Lines):
    def __init__(self, path: str):
        super().__init__(f"{path}/all.points")

    @staticmethod
    def reads(path: Path) -> bool:
        return path.is_dir()


class Silent:
    """A data set that reads no files."""


class Failing:
    @staticmethod
    def reads(path: Path) -> bool:
        raise RuntimeError("the disk is on fire")


@pytest.fixture(autouse=True)
def _without_installed_readers(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("EBMCORE_DISABLED_PLUGINS", "ebm-plugin-files")
        kernel.refresh()
        yield
    kernel.refresh()


@contextmanager
def plugin(distribution="files", **classes):
    class Plugin:
        @kernel.hookimpl
        def ebmcore_register(self, register):
            for name, cls in classes.items():
                register.dataset(name, cls)

    with kernel.temporary_plugin(Plugin(), distribution):
        yield


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.points").write_text("1 2\n3 4\n5 6\n")
    (tmp_path / "many").mkdir()
    (tmp_path / "many/all.points").write_text("1 2 3\n4 5 6\n")
    return tmp_path


def refused(command, capsys):
    assert ebmcore(command) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1, error
    return error


def data():
    return yaml.safe_load(Path("run/config.yaml").read_text())["data"]


def test_file_is_read_by_the_data_set_that_says_so():
    """Its own options may follow."""
    with plugin(lines=Lines, folder=Folder, silent=Silent):
        assert ebmcore(f"{TRAIN} mine.points --data.scale 0.5") == 0
    assert data() == {"name": "lines", "path": "mine.points", "scale": 0.5}


@pytest.mark.parametrize("path", ["many", "./many", "many/"])
def test_directory_is_read(path):
    with plugin(lines=Lines, folder=Folder):
        assert ebmcore(f"{TRAIN} {path}") == 0
    assert data() == {"name": "folder", "path": path}


def test_file_in_a_configuration_is_read(folder):
    (folder / "options.yaml").write_text("data: mine.points")
    with plugin(lines=Lines):
        assert ebmcore(f"{TRAIN.removesuffix(' --data')} --config options.yaml") == 0
    assert data()["path"] == "mine.points"


def test_run_on_a_file_is_resumed():
    with plugin(lines=Lines):
        assert ebmcore(f"{TRAIN} mine.points") == 0
        assert ebmcore("train --resume run --steps 2") == 0


def test_options_of_the_reader_are_in_the_help(capsys):
    with plugin(lines=Lines), pytest.raises(SystemExit):
        ebmcore("train --data mine.points --help")
    assert "--data.scale" in capsys.readouterr().out


def test_name_of_a_data_set_is_no_path(folder):
    """An installed name is that data set, although a directory is called the same."""
    (folder / "two-moons").mkdir()
    with plugin(folder=Folder):
        assert ebmcore(f"{TRAIN} two-moons --data.n_train 10") == 0
    assert data()["name"] == "two-moons"


def test_several_readers_are_named(capsys):
    with plugin(lines=Lines), plugin("others", texts=Lines):
        error = refused(f"{TRAIN} mine.points", capsys)
    assert "several data sets read mine.points: files:lines, others:texts. Name one: --data files:lines --data.path" in error


def test_readers_of_one_name_are_told_apart():
    with plugin(lines=Lines), plugin("others", lines=Folder):
        assert ebmcore(f"{TRAIN} mine.points") == 0
    assert data()["name"] == "files:lines"


@pytest.mark.parametrize("name", ["table.npy", "table.CSV", "many"])
def test_known_reader_is_advised(name, folder, capsys):
    (folder / "table.npy").touch()
    (folder / "table.CSV").touch()
    error = refused(f"{TRAIN} {name}", capsys)
    if "ebm-plugin-files" in [report.distribution for report in kernel.host.plugins()]:
        pytest.skip("the reader is installed")
    assert (
        f"no installed data set reads {name}: pip install ebm-plugin-files, or make one that does: ebmcore new plugin"
        in error
    )


def test_file_that_nobody_reads_is_one_line(capsys):
    error = refused(f"{TRAIN} mine.points", capsys)
    assert "no installed data set reads mine.points: make one that does: ebmcore new plugin NAME --kind dataset" in error


@pytest.mark.parametrize("path", ["nothing.points", "no/such", "many/nothing.txt"])
def test_missing_file_is_one_line(path, capsys):
    error = refused(f"{TRAIN} {path}", capsys)
    assert f"there is no file or directory {path}, and no installed plugin provides a data set of that name" in error


def test_broken_readers_are_skipped():
    """One that cannot be imported is not asked; one that raises reads nothing, and a warning says so."""
    warning = pytest.warns(UserWarning, match="files:failing cannot say whether it reads mine.points: the disk is on fire")
    with plugin(lines=Lines, failing=Failing, broken="not_there:Data"), warning:
        assert reader("mine.points") == "lines"


@pytest.mark.parametrize("command", ["--data", "--data=", "--data --steps 1"])
def test_missing_name_of_data_is_one_line(command, capsys):
    assert "--data needs the name of a component of the kind dataset" in refused(f"train {command}", capsys)
