"""What the target of each kind must be, recipes and commands above all."""

from __future__ import annotations

import pytest
from installed_plugins import GOOD, manager

from ebmcore import host
from ebmcore.errors import PluginError, UsageError
from ebmcore.host.kinds import check_form, check_target


@pytest.fixture
def recipe(plugin, tmp_path, monkeypatch):
    """A host with the recipe of the given target, in a package that holds ``recipes/small.yaml``."""
    folder = tmp_path / "recipe_package"
    (folder / "recipes").mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "recipes/small.yaml").write_text("energy: rbm\n")
    (folder / "notes.txt").write_text("")
    (tmp_path / "outside.yaml").write_text("energy: rbm\n")

    def make(target):
        source = GOOD.replace('sampler("identity", "ebmcore.testing:Identity")', f'recipe("small", {target!r})')
        return manager(plugin("test-plugin-r", source))

    return make


def test_recipe_loads_as_path(recipe):
    host_ = recipe("recipe_package:recipes/small.yaml")
    found = host_.find("recipe", "test-plugin-r:small")
    assert host_.load(found).read_text() == "energy: rbm\n"
    assert found.import_path == "recipe_package:recipes/small.yaml"


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("recipe_package:recipes/none.yaml", "there is no file .*none.yaml"),
        ("recipe_package:../outside.yaml", "must be a YAML file inside the package recipe_package"),
        ("recipe_package:notes.txt", "must be a YAML file inside"),
        ("no_such_package:a.yaml", "ModuleNotFoundError"),
    ],
)
def test_broken_recipe_names_plugin(recipe, target, message):
    host_ = recipe(target)
    with pytest.raises(PluginError, match=f"the recipe test-plugin-r:small .*{message}"):
        host_.load(host_.find("recipe", "small"))


@pytest.mark.parametrize(
    ("kind", "target", "form"),
    [
        ("recipe", dict, "'package:path/in/the/package.yaml'"),
        ("command", dict, "a function or 'package.module:function'"),
        ("command", "a.function", "a function or"),
        ("loss", check_form, "a class or 'package.module:Class'"),
        ("loss", "package.Class", "a class or"),
    ],
)
def test_form_of_target(kind, target, form):
    with pytest.raises(TypeError, match=f"the target of 'x' must be {form}"):
        check_form(kind, "x", target)


def test_loss_is_known_by_name():
    base = type("BaseLoss", (), {"__module__": "ebmcore.losses"})
    check_target("loss", type("Loss", (base,), {}))
    with pytest.raises(TypeError, match=r"must derive from ebmcore\.losses\.BaseLoss"):
        check_target("loss", type("Loss", (), {}))


@pytest.mark.parametrize("kind", ["recipe", "command"])
def test_kinds_without_instances(kind):
    with pytest.raises(UsageError, match=rf"a {kind} has no instances: use ebmcore\.host\.load"):
        host.create(kind, "x")
