"""No parser takes an abbreviated option: `--step` is not `--steps`."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import MOONS, ebmcore

from ebmcore import cli

ABBREVIATED = {
    "sample": "sample run --step 50 --out a.npy",
    "sample value": "sample run --step=50 --out a.npy",
    "sampler": "sample run --out a.npy --sampl langevin",
    "evaluate": "evaluate run --met exact-ll",
    "metric": "evaluate run --metric exact-ll --metric.n_boot 3",
    "train": f"train {MOONS} --loss cd --step 1 --out run",
    "component": f"train {MOONS} --loss cd --loss.k_step 1 --steps 1 --out run",
    "resume": "train --resum run",
    "compile": f"train {MOONS} --loss cd --steps 1 --comp true --out run",
    "config": f"train {MOONS} --loss cd --steps 1 --conf options.yaml --out run",
    "recipe": "train --recip du-mordatch-2019 --steps 1 --out run",
    "list": "list --js",
    "plugins": "plugins --js",
    "show": "show pcd --js",
    "doctor": "doctor --time 1",
    "check": "check pcd --opt a=1",
    "new": "new plugin my-cd --kind loss --dir here",
}


@pytest.mark.parametrize("command", ABBREVIATED.values(), ids=ABBREVIATED)
def test_abbreviation_is_refused(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert ebmcore(command) == 2
    error = capsys.readouterr().err
    assert "unknown option" in error or "unrecognized arguments" in error
    assert len(error.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_every_parser_is_one_of_these():
    """A new parser of the command line is `Parser`, which takes no abbreviations, or says so itself."""
    folder = Path(cli.__file__).parent
    for path in (*folder.glob("*.py"), *folder.glob("template/*.py.template")):
        calls = [line for line in path.read_text().splitlines() if "ArgumentParser(" in line and "class " not in line]
        assert all("allow_abbrev=False" in line for line in calls), path
