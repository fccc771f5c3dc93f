"""Arguments of fit that are of another kind than it takes."""

from __future__ import annotations

import inspect

import pytest
import torch

import ebmcore
from ebmcore.errors import UsageError
from ebmcore.testing import ExactGaussian, Quadratic
from ebmcore.training import fit

STRANGE = [3, 2.5, "three", [1], {1: 2}, object(), len, b"x", (1, 2)]
TAKES = {  # what of it an argument takes
    "accelerator": (str,),
    "config": (dict,),
    "data": (),
    "devices": (int,),
    "loss": (),
    "measure": (type(len),),
    "out": (str,),
}


def a_loss():
    return ebmcore.create_loss("cd", Quadratic((2,)), ExactGaussian())


@pytest.mark.parametrize("name", list(inspect.signature(fit).parameters))
def test_argument_of_another_kind_is_refused_by_name(name, tmp_path, monkeypatch):
    """One line that names it, before anything is written."""
    monkeypatch.chdir(tmp_path)
    parameter = inspect.signature(fit).parameters[name]
    numeric = parameter.annotation.split(" ")[0] in ("int", "float")
    for value in STRANGE:
        if isinstance(value, TAKES.get(name, ())) or (numeric and isinstance(value, (int, float))):
            continue
        options = {"loss": a_loss(), "data": torch.randn(20, 2), "steps": 1, "progress": False, name: value}
        if name == "epochs":
            del options["steps"]
        with pytest.raises(UsageError) as caught:
            fit(options.pop("loss"), options.pop("data"), **options)
        said = str(caught.value)
        assert name in said, (value, said)
        assert "\n" not in said
    assert list(tmp_path.iterdir()) == []
