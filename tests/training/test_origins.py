"""What a checkpoint's record of its components advises where one is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from ebmcore.errors import CheckpointError
from ebmcore.training import check_installed


def record(*distributions):
    origins = [{"class": "a:B", "id": f"{name}:b", "distribution": name, "version": "1.2"} for name in distributions]
    return {"ebmcore": "0.1.0", "components": {"observers": origins}}


def message(*distributions):
    with pytest.raises(CheckpointError) as error:
        check_installed(record(*distributions), Path("step-00000002"))
    return str(error.value)


def test_unknown_distribution_is_not_installed_from_the_index():
    """A checkpoint may be a stranger's: only distributions that are known draw the line that installs them."""
    assert message("ebm-plugin-stranger").endswith("not installed: get ebm-plugin-stranger==1.2 from who made the run")


def test_known_distribution_draws_the_line_that_installs_it(monkeypatch):
    monkeypatch.setattr("ebmcore.training.origins.host.plugins", list)
    assert message("ebm-plugin-pcd").endswith("not installed: pip install ebm-plugin-pcd==1.2")


def test_missing_plugins_of_both_kinds(monkeypatch):
    monkeypatch.setattr("ebmcore.training.origins.host.plugins", list)
    advice = "pip install ebm-plugin-pcd==1.2; get mine==1.2 from who made the run"
    assert message("mine", "ebm-plugin-pcd").endswith(advice)
