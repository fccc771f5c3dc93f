"""Measured likelihoods stand in one place, the page of studies (or of benchmarks); READMEs that give one give the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
READMES = sorted(ROOT.glob("plugins/*/README.md"))
LIKELIHOOD = re.compile(r"(?<![\w.])-\d+\.\d+")  # a log-likelihood in nats: a negative decimal
PAGES = ("docs/studies.md", "docs/benchmarks.md")


def unsupported(text: str, pages: str) -> set[str]:
    return set(LIKELIHOOD.findall(text)) - set(LIKELIHOOD.findall(pages))


@pytest.mark.parametrize("path", READMES, ids=lambda path: path.parent.name)
def test_readme_figures_stand_in_studies(path):
    """A plugin's README gives no likelihood that the pages made by `make studies` and `make bench` do not give."""
    pages = "\n".join((ROOT / page).read_text() for page in PAGES)
    assert unsupported(path.read_text(), pages) == set(), f"{path}: link to docs/studies.md in place of these figures"


def test_outdated_figure_is_found():
    """A figure of an earlier run is found, one of the page is not, nor is a range."""
    assert unsupported("ends at -410.5, at best -108.1, in 0.5-1.5 s", "best possible -108.1") == {"-410.5"}
