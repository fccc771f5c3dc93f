"""Listings and descriptions of what is installed."""

from __future__ import annotations

import json

from commands import ebmcore


def test_listings_are_tables_and_json(capsys):
    assert ebmcore("list loss") == 0
    table = capsys.readouterr().out
    assert table.splitlines()[0].split() == ["KIND", "NAME", "ID", "VERSION"]
    assert ebmcore("list loss --json") == 0
    assert {row["name"] for row in json.loads(capsys.readouterr().out)} >= {"cd", "pcd"}
    assert ebmcore("plugins --json") == 0
    assert "ebm-plugin-pcd" in {row["distribution"] for row in json.loads(capsys.readouterr().out)}


def test_show_tells_options_summary_and_citation(capsys):
    assert ebmcore("show pcd") == 0
    shown = capsys.readouterr().out
    for part in ("loss ebm-plugin-pcd:pcd", "Tieleman (2008)", "n_chains: int = 256", "restart_prob: float = 0.0"):
        assert part in shown
    assert ebmcore("show pcd --json") == 0
    assert json.loads(capsys.readouterr().out)[0]["summary"].startswith("Persistent contrastive divergence")
