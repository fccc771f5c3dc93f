"""Which plugin's code raised an error."""

from __future__ import annotations

import pytest

from ebmcore.errors import UsageError
from ebmcore.host.origin import origin


def raised_in(*modules):
    """An error that went through functions of these modules, the innermost last."""
    module, *inner = modules
    try:
        exec("call(*inner) if inner else {}['missing']", {"__name__": module, "call": raise_in, "inner": inner})
    except KeyError as error:
        return error


def raise_in(*modules):
    raise raised_in(*modules)


@pytest.mark.parametrize(
    ("modules", "distribution"),
    [
        (["ebm_plugin_datasets.mnist"], "ebm-plugin-datasets"),
        (["ebm_plugin_datasets.a_helper"], "ebm-plugin-datasets"),
        (["ebmcore.losses", "ebm_plugin_rbm.rbm", "torch.nn.modules.module"], "ebm-plugin-rbm"),
        (["ebm_plugin_pcd.loss", "ebm_plugin_rbm.rbm"], "ebm-plugin-rbm"),
    ],
)
def test_innermost_plugin_counts(modules, distribution):
    assert origin(raised_in(*modules)).startswith(f"the plugin {distribution} ")


@pytest.mark.parametrize(
    "modules", [["torch.nn"], ["ebm_plugin_nobody"], ["ebm_plugin_rbm.rbm", "ebmcore.energies", "torch.nn"]]
)
def test_kernel_and_libraries_are_no_plugin(modules):
    assert origin(raised_in(*modules)) == ""


def test_wrong_variable_does_not_hide_error(monkeypatch):
    """The error itself is reported where the plugins cannot be listed."""
    monkeypatch.setattr("ebmcore.host.manager._manager", raise_usage_error)
    assert origin(raised_in("ebm_plugin_rbm.rbm")) == ""


def raise_usage_error():
    raise UsageError("EBMCORE_STRICT must be one of ...")
