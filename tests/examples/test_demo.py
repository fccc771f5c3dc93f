"""The sentence that the demo prints follows from its numbers."""

from __future__ import annotations

import re
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


def test_page_shows_what_follows_from_its_numbers():
    """The output on the page *Getting started*; the difference may be that of numbers before they were rounded."""
    page = (Path(__file__).resolve().parents[2] / "docs/getting-started.md").read_text()
    rows = re.findall(r"(-\d+\.\d\d) +\[(-\d+\.\d\d), (-\d+\.\d\d)\]", page)
    words, number = r"After 30 epochs .*; .* independent pixels\.", r"\d+\.\d\d"
    (shown,), made = re.findall(words, page), DEMO["sentence"](*(tuple(map(float, row)) for row in rows))
    assert re.sub(number, "", shown) == re.sub(number, "", made)
    assert float(*re.findall(number, shown)) == pytest.approx(float(*re.findall(number, made)), abs=0.011)
