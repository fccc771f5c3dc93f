"""The sentence that the demo prints follows from its numbers."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

DEMO = runpy.run_path(str(Path(__file__).resolve().parents[2] / "examples/demo.py"))
PIXELS = (-25.2, -25.7, -24.7)


@pytest.mark.parametrize(
    ("pcd", "cd", "expected"),
    [
        ((-17.5, -18.0, -17.0), (-17.6, -18.1, -17.1), "PCD-1 and CD-1 are about equal (0.10 nats apart); both beat"),
        ((-15.0, -15.5, -14.5), (-17.6, -18.1, -17.1), "PCD-1 is ahead by 2.60 nats; both beat"),
        ((-17.6, -18.1, -17.1), (-15.0, -15.5, -14.5), "CD-1 is ahead by 2.60 nats; both beat"),
        ((-25.0, -25.5, -24.5), (-15.0, -15.5, -14.5), "CD-1 is ahead by 10.00 nats; not both beat"),
    ],
)
def test_sentence_follows_from_numbers(pcd, cd, expected):
    assert DEMO["sentence"](pcd, cd, PIXELS) == f"After 30 epochs {expected} independent pixels."


def test_readme_shows_the_sentence():
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text()
    assert DEMO["sentence"]((-17.51, -18.05, -17.03), (-17.59, -18.11, -17.13), PIXELS) in readme
