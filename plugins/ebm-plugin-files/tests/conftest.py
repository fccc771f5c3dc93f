"""One thread, so that results repeat and neighbours do not matter; and the directory that the files are in."""

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def directory(tmp_path, monkeypatch):
    """Runs a test in an empty directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
