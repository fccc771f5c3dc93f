"""The plugin host, on entry points that are built rather than installed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from installed_plugins import GOOD, Installed, manager

import ebmcore
from ebmcore import host
from ebmcore.errors import (
    AmbiguousComponentError,
    PluginError,
    UnknownComponentError,
    UnknownKeywordError,
    UsageError,
)
from ebmcore.host.discovery import names_in_source
from ebmcore.host.kinds import CLASSES
from ebmcore.host.registry import known_plugins
from ebmcore.host.report import State
from ebmcore.testing import Identity

BROKEN = {
    "import error": "import a_module_that_does_not_exist",
    "syntax error": "compile('def', 'module', 'exec')",
    "system exit on import": "raise SystemExit(3)",
    "exit in the hook": "import ebmcore, sys\n@ebmcore.hookimpl\ndef ebmcore_register(register):\n    sys.exit(1)",
    "raises after one registration": (
        "import ebmcore\n@ebmcore.hookimpl\ndef ebmcore_register(register):\n"
        "    register.sampler('half', 'ebmcore.testing:Identity')\n    raise KeyError('late')"
    ),
    "wrong signature": "import ebmcore\n@ebmcore.hookimpl\ndef ebmcore_register(registry): pass",
    "misspelt hook": "import ebmcore\n@ebmcore.hookimpl\ndef ebmcore_registr(register): pass",
    "no hook": "def ebmcore_register(register): pass",
    "bad target": "import ebmcore\n@ebmcore.hookimpl\ndef ebmcore_register(register):\n    register.loss('x', 3)",
    "bad name": "import ebmcore\n@ebmcore.hookimpl\ndef ebmcore_register(register):\n    register.loss('a:b', 'm:C')",
    "same name twice": (
        "import ebmcore\n@ebmcore.hookimpl\ndef ebmcore_register(register):\n"
        "    register.loss('a', 'm:C')\n    register.loss('a', 'm:D')"
    ),
}


def test_hook_ebmcore_register(plugin):
    """Called once, when a component is first asked for; what it names is found by name and by canonical id."""
    host_ = manager(plugin("test-plugin-a", GOOD))
    found = host_.find("sampler", "identity")
    assert found.id == "test-plugin-a:identity"
    assert host_.find("sampler", "test-plugin-a:identity") is found
    assert host_.load(found).__name__ == "Identity"


def test_no_plugin_is_imported_before_it_is_needed(plugin):
    host_ = manager(plugin("test-plugin-a", "raise AssertionError"))
    assert [r.state for r in host_.reports()] == [State.AVAILABLE]


@pytest.mark.parametrize("source", BROKEN.values(), ids=BROKEN)
def test_a_broken_plugin_costs_nothing_until_it_is_asked_for(plugin, source):
    host_ = manager(plugin("test-plugin-b", source), plugin("test-plugin-a", GOOD))
    assert [c.id for c in host_.components()] == ["test-plugin-a:identity"]
    assert [r.state for r in host_.reports()] == [State.LOADED, State.FAILED]
    with pytest.raises(PluginError, match=r"test-plugin-b 1\.2.*EBMCORE_DISABLED_PLUGINS=test-plugin-b") as caught:
        host_.find("sampler", "test-plugin-b:half")
    assert caught.value.__cause__ is not None


def test_a_target_that_does_not_exist_fails_when_it_is_loaded(plugin):
    source = GOOD.replace("ebmcore.testing:Identity", "ebmcore.testing:Nothing")
    host_ = manager(plugin("test-plugin-a", source))
    with pytest.raises(PluginError, match=r"test-plugin-a:identity .*AttributeError.*pip install --upgrade"):
        host_.load(host_.find("sampler", "identity"))


@pytest.mark.parametrize(
    ("kind", "target", "reason"),
    [
        ("loss", "ebmcore.testing:Identity", r"must derive from ebmcore\.losses\.BaseLoss"),
        ("loss", "ebmcore.losses:BaseContrastiveDivergence", "abstract: it lacks compute_loss, forward"),
        ("sampler", "ebmcore.testing:Quadratic", "must have"),
        ("sampler", "ebmcore.samplers:run", "must be a class"),
        ("metric", "ebmcore.samplers:ChainState", "must have __call__"),
        ("energy", "ebmcore.samplers:ChainState", "must have forward"),
    ],
)
def test_a_target_of_the_wrong_type_says_what_is_wrong(plugin, kind, target, reason):
    source = GOOD.replace("register.sampler", f"register.{kind}").replace("ebmcore.testing:Identity", target)
    host_ = manager(plugin("test-plugin-a", source))
    with pytest.raises(PluginError, match=reason):
        host_.load(host_.find(kind, "identity"))


def test_two_providers_of_one_name_are_an_error_only_when_it_is_asked_for(plugin):
    points = plugin("test-plugin-a", GOOD), plugin("test-plugin-b", GOOD)
    host_ = manager(*points)
    assert len(host_.components()) == 2
    assert {r.state for r in host_.reports()} == {State.CONFLICT}
    with pytest.raises(AmbiguousComponentError, match="test-plugin-a:identity, test-plugin-b:identity"):
        host_.find("sampler", "identity")
    assert host_.find("sampler", "test-plugin-b:identity").distribution == "test-plugin-b"
    preferring = manager(*points, EBMCORE_PREFER="identity=test_plugin_b")
    assert preferring.find("sampler", "identity").distribution == "test-plugin-b"


def test_order_of_discovery_does_not_matter(plugin):
    points = plugin("test-plugin-a", GOOD), plugin("test-plugin-b", GOOD.replace("identity", "other"))
    assert manager(*points).components() == manager(*reversed(points)).components()


def test_plugins_are_controlled_by_the_environment(plugin):
    points = plugin("test-plugin-a", GOOD), plugin("test-plugin-b", "raise AssertionError('imported')")
    for environ in ({"EBMCORE_PLUGINS": "Test_Plugin.A"}, {"EBMCORE_DISABLED_PLUGINS": "test-plugin-b"}):
        host_ = manager(*points, **environ)
        assert [c.distribution for c in host_.components()] == ["test-plugin-a"]
        assert host_.reports()[1].state is State.DISABLED
    assert manager(*points, EBMCORE_PLUGINS="").components() == []


@pytest.mark.parametrize("variable", ["EBMCORE_PLUGINS", "EBMCORE_DISABLED_PLUGINS"])
def test_an_unknown_plugin_in_the_environment_is_an_error(plugin, variable):
    with pytest.raises(UsageError, match="names test-plugin-z, which is not installed"):
        manager(plugin("test-plugin-a", GOOD), **{variable: "test-plugin-z"})


def test_a_disabled_plugin_says_by_what_when_it_is_asked_for(plugin):
    host_ = manager(plugin("test-plugin-a", GOOD), EBMCORE_DISABLED_PLUGINS="test-plugin-a")
    with pytest.raises(PluginError, match="disabled: by EBMCORE_DISABLED_PLUGINS"):
        host_.find("sampler", "test-plugin-a:identity")


def test_a_plugin_for_another_kernel_is_never_imported(plugin):
    host_ = manager(plugin("test-plugin-a", "raise AssertionError('imported')", requires=["ebmcore>=99"]))
    assert host_.components() == []
    assert host_.reports()[0].state is State.INCOMPATIBLE
    with pytest.raises(PluginError, match=r"needs ebmcore>=99, but .* is installed"):
        host_.find("sampler", "test-plugin-a:identity")


def test_an_unknown_preferred_distribution_is_an_error(plugin):
    with pytest.raises(UsageError, match="EBMCORE_PREFER names no-such-plugin, which is not installed"):
        manager(plugin("test-plugin-a", GOOD), EBMCORE_PREFER="identity=no-such-plugin")


def test_a_class_that_is_registered_where_it_is_not_defined_has_its_provenance(plugin):
    host_ = manager(plugin("test-plugin-a", GOOD))  # ebmcore.testing re-exports it
    cls = host_.load(host_.find("sampler", "identity"))
    assert host_.provenance(cls)["id"] == "test-plugin-a:identity"


@pytest.mark.parametrize(
    ("requirement", "reason"),
    [
        ("no-such-distribution>=2", "needs no-such-distribution>=2, which is not installed"),
        ("pluggy<1", r"needs pluggy<1, but 1\.\d.* is installed"),
        ("ebmcore what?", "its requirement 'ebmcore what\\?' cannot be evaluated"),
        ("pluggy; made_up_marker == 'x'", "cannot be evaluated"),
    ],
)
def test_every_requirement_is_evaluated_before_the_import(plugin, requirement, reason):
    host_ = manager(plugin("test-plugin-a", "raise AssertionError('imported')", requires=[requirement]))
    assert host_.reports()[0].state is State.INCOMPATIBLE
    with pytest.raises(PluginError, match=reason):
        host_.find("sampler", "test-plugin-a:identity")


@pytest.mark.parametrize(
    "requirement", ["no-such-thing; extra == 'dev'", "no-such-thing; python_version < '3'", "PLUGGY>=1"]
)
def test_a_requirement_that_holds_or_does_not_concern_us_is_no_obstacle(plugin, requirement):
    assert manager(plugin("test-plugin-a", GOOD, requires=[requirement])).find("sampler", "identity")


@pytest.mark.parametrize("value", ["1", "true", "Yes", "ON"])
def test_a_strict_host_refuses_to_work_beside_a_broken_plugin(plugin, value):
    host_ = manager(plugin("test-plugin-a", GOOD), plugin("test-plugin-b", BROKEN["import error"]), EBMCORE_STRICT=value)
    for _ in range(2):
        with pytest.raises(PluginError, match=r"EBMCORE_STRICT is set, and .*test-plugin-b .*ModuleNotFoundError") as caught:
            host_.find("sampler", "identity")
        assert isinstance(caught.value.__cause__, ModuleNotFoundError)


@pytest.mark.parametrize("value", ["", "0", "false", "No", "off"])
def test_strictness_can_be_off(plugin, value):
    host_ = manager(plugin("test-plugin-a", GOOD), plugin("test-plugin-b", BROKEN["import error"]), EBMCORE_STRICT=value)
    assert host_.find("sampler", "identity")


def test_a_strict_host_lets_a_preference_settle_a_conflict(plugin):
    points = plugin("test-plugin-a", GOOD), plugin("test-plugin-b", GOOD)
    with pytest.raises(PluginError, match="also provided by another plugin: identity"):
        manager(*points, EBMCORE_STRICT="1").find("sampler", "identity")
    host_ = manager(*points, EBMCORE_STRICT="1", EBMCORE_PREFER="identity=test-plugin-b")
    assert host_.find("sampler", "identity").distribution == "test-plugin-b"


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"EBMCORE_STRICT": "maybe"}, "EBMCORE_STRICT must be one of 1, true, yes, on, 0, false, no, off, but is 'maybe'"),
        ({"EBMCORE_PREFER": "identity"}, "must hold name=distribution pairs, but holds 'identity'"),
        (
            {"EBMCORE_DISABLE_PLUGINS": "x"},
            "no .* EBMCORE_DISABLE_PLUGINS; did you mean EBMCORE_DISABLED_PLUGINS",
        ),
        ({"EBMCORE_HOME": "x"}, "there is no environment variable EBMCORE_HOME"),
    ],
)
def test_a_variable_that_cannot_be_obeyed_is_an_error(plugin, environ, message):
    with pytest.raises(UsageError, match=message):
        manager(plugin("test-plugin-a", GOOD), **environ)


def test_a_failure_is_remembered_and_not_tried_again(plugin, monkeypatch):
    source = GOOD.replace("ebmcore.testing:Identity", "counted_component:Nothing")
    installed = plugin("test-plugin-a", source)
    plugin("counted-component", "import sys; sys.tries.append(1); raise ImportError('again')")
    host_ = manager(installed)
    monkeypatch.setattr(sys, "tries", [], raising=False)
    for _ in range(3):
        with pytest.raises(PluginError, match="ImportError: again"):
            host_.load(host_.find("sampler", "identity"))
    assert len(sys.tries) == 1
    host_.rescan([installed], {})  # the user has mended something
    with pytest.raises(PluginError, match="ImportError: again"):
        host_.load(host_.find("sampler", "identity"))
    assert len(sys.tries) == 2


def test_a_component_registered_after_its_hook_is_an_error(plugin):
    source = GOOD.replace("(register):\n", "(register):\n    global late; late = register\n")
    host_ = manager(plugin("test-plugin-a", source))
    assert host_.find("sampler", "identity")
    with pytest.raises(RuntimeError, match="inside ebmcore_register, not after it"):
        sys.modules["test_plugin_a"].late.loss("x", "m:C")


def test_who_interrupts_the_first_listing_may_ask_again(plugin):
    points = plugin("test-plugin-a", GOOD), plugin("test-plugin-b", "raise KeyboardInterrupt")
    host_ = manager(*points)
    with pytest.raises(KeyboardInterrupt):
        host_.find("sampler", "identity")
    plugin("test-plugin-b", GOOD.replace("identity", "other"))
    assert [c.name for c in host_.components()] == ["identity", "other"]


def test_a_constructor_cannot_end_the_process():
    class Exit(Identity):
        def __init__(self):
            sys.exit(3)

    class Plugin:
        @ebmcore.hookimpl
        def ebmcore_register(self, register):
            register.sampler("exit", Exit)

    with (
        ebmcore.temporary_plugin(Plugin()),
        pytest.raises(PluginError, match="making the sampler 'exit' .* called sys.exit"),
    ):
        ebmcore.create_sampler("exit")


def test_what_a_plugin_prints_on_import_is_not_in_the_output(plugin, capsys):
    host_ = manager(plugin("test-plugin-a", "print('noise')\n" + GOOD))
    assert host_.find("sampler", "identity")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "noise\n")


def test_many_threads_see_the_same_components(plugin):
    host_ = manager(plugin("test-plugin-a", "import time; time.sleep(0.1)\n" + GOOD))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: host_.load(host_.find("sampler", "identity")), range(8)))
    assert len(set(found)) == 1


def test_names_are_read_from_the_source_without_importing_it(plugin, tmp_path):
    source = "raise AssertionError('imported')\n" + GOOD
    host_ = manager(plugin("test-plugin-a", source))
    assert names_in_source(host_.reports()[0]) == [("sampler", "identity")]
    nested = Installed("test-plugin-b", "test_package_b.inner.plugin")
    (tmp_path / "test_package_b/inner").mkdir(parents=True)
    for name in ("", "inner/"):
        (tmp_path / f"test_package_b/{name}__init__.py").write_text("raise AssertionError('imported')")
    (tmp_path / "test_package_b/inner/plugin.py").write_text(source)
    assert names_in_source(manager(nested).reports()[0]) == [("sampler", "identity")]


def test_a_name_that_a_failed_plugin_would_have_provided_raises_its_failure(plugin):
    host_ = manager(plugin("test-plugin-a", "import no_such_module\n" + GOOD))
    with pytest.raises(
        PluginError, match=r"'identity' is not available: the plugin test-plugin-a \(test_plugin_a\) is failed"
    ):
        host_.find("sampler", "identity")


def test_an_unknown_name_offers_what_is_close(plugin):
    host_ = manager(plugin("test-plugin-a", GOOD))
    with pytest.raises(UnknownComponentError, match="did you mean identity"):
        host_.find("sampler", "identtiy")


def test_a_first_party_name_that_is_not_installed_names_its_distribution(plugin):
    with pytest.raises(UnknownComponentError, match="pip install ebm-plugin-pcd"):
        manager(plugin("test-plugin-a", GOOD)).find("loss", "pcd")


def test_known_id_names_its_distribution(plugin):
    with pytest.raises(UnknownComponentError, match="the loss 'ebm-plugin-pcd:pcd': pip install ebm-plugin-pcd"):
        manager(plugin("test-plugin-a", GOOD)).find("loss", "ebm-plugin-pcd:pcd")


@pytest.mark.parametrize("name", ["ebm-plugin-x:y", "my_energy:Net", "stranger:pcd", "torch:nn"])
def test_unknown_distribution_is_not_advised(plugin, name):
    """No name that a user or a stranger made up draws the advice to install a package of that name."""
    with pytest.raises(UnknownComponentError, match=f"no installed plugin provides the loss '{name}'") as error:
        manager(plugin("test-plugin-a", GOOD)).find("loss", name)
    assert ": pip install" not in str(error.value)  # a close name that is known may be offered


def test_a_close_first_party_name_is_offered_with_its_distribution(plugin):
    with pytest.raises(UnknownComponentError, match=r"mala \(pip install ebm-plugin-langevin\)"):
        manager(plugin("test-plugin-a", GOOD)).find("sampler", "mala2")


def test_an_unknown_kind_lists_the_kinds():
    with pytest.raises(UnknownComponentError, match="loss, sampler, energy, dataset, metric, observer, recipe, command"):
        ebmcore.list_components("lose")


def test_an_unknown_keyword_names_the_accepted_ones():
    with pytest.raises(
        UnknownKeywordError, match=r"sampler 'langevin' got .*'stepsize'; it accepts: step_size, temperature"
    ):
        ebmcore.create_sampler("langevin", stepsize=0.1)


def test_the_table_of_first_party_names_is_what_the_plugins_register():
    known = known_plugins()
    assert {(c.kind, c.name): c.distribution for c in host.list_components() if c.distribution in known.values()} == known


def test_every_installed_component_loads():
    for component in host.list_components():
        loaded = host.load(component.kind, component.id)
        assert isinstance(loaded, {"recipe": Path, "command": Callable}.get(component.kind, type))


def test_provenance_names_the_plugin_of_an_object():
    sampler = ebmcore.create_sampler("langevin", step_size=0.1)
    found = host.provenance(sampler)
    assert found["id"] == "ebm-plugin-langevin:langevin"
    assert found["distribution"] == "ebm-plugin-langevin"
    assert host.provenance(object())["id"] is None


def test_each_kind_has_its_create_function_and_its_method_to_register():
    assert set(host.Register.__annotations__) == set(host.KINDS)
    for kind in CLASSES:
        assert callable(getattr(ebmcore, f"create_{kind}"))


@pytest.mark.parametrize(
    "program",
    [
        "import ebmcore",
        "import ebmcore; ebmcore.hookimpl; ebmcore.list_components()",
        "from ebmcore.cli import main; main(['list'])",
        "from ebmcore.cli import main; main(['plugins'])",
    ],
)
def test_listing_imports_neither_torch_nor_a_component(program):
    deny = ("torch", "numpy", "sklearn", "jsonargparse", "lightning_fabric", "rich", "matplotlib", "ebm_plugin_pcd.loss")
    check = f"{program}\nimport sys\nfound = [m for m in {deny} if m in sys.modules]\nassert not found, found"
    subprocess.run([sys.executable, "-c", check], check=True, capture_output=True)


def test_every_public_name_resolves():
    for name in ebmcore.__all__:
        assert getattr(ebmcore, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'create_lose'"):
        ebmcore.create_lose  # noqa: B018
