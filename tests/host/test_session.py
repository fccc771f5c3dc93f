"""What changes while a session runs: components registered by hand, plugins installed meanwhile."""

from __future__ import annotations

import sys

import pytest
from installed_plugins import GOOD, manager

import ebmcore
from ebmcore import host
from ebmcore.errors import PluginError, UnknownComponentError, UsageError
from ebmcore.testing import Identity

BROKEN = "import a_module_that_does_not_exist"


def test_a_class_can_be_registered_for_the_session_and_replaced():
    host_ = manager()
    first, second = (type("Still", (Identity,), {}) for _ in range(2))
    for cls in (first, second):
        host_.register("sampler", "still", cls)
        found = host_.find("sampler", "session:still")
        assert host_.load(found) is cls
    assert host_.find("sampler", "still") is found
    host_.register("sampler", "other", Identity)
    assert [c.name for c in host_.components()] == ["other", "still"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("sampler", "a:b", Identity), ValueError, "without ':'"),
        (("sampler", "--still", Identity), ValueError, "does not begin with '-'"),
        (("sampler", "still", dict), TypeError, "a sampler must have init"),
        (("sampler", "still", Identity()), TypeError, "must be a class or"),
        (("smapler", "still", Identity), UnknownComponentError, "the kinds are"),
    ],
)
def test_what_cannot_be_registered_for_the_session_is_refused_at_once(arguments, error, message):
    with pytest.raises(error, match=message):
        manager().register(*arguments)


def test_module_that_has_changed_is_registered_again(plugin):
    """Under the same import string a session may register a class that it has edited."""
    host_, source = manager(), "from ebmcore.testing import Identity\nclass Still(Identity): {}\n"
    loaded = []
    for body in ("pass", "edited = True"):
        plugin("edited-component", source.format(body))
        sys.modules.pop("edited_component", None)
        host_.register("sampler", "still", "edited_component:Still")
        loaded.append(host_.load(host_.find("sampler", "still")))
    assert [hasattr(cls, "edited") for cls in loaded] == [False, True]


def test_plugin_cannot_register_for_the_session_while_it_is_imported(plugin, monkeypatch):
    host_ = manager(plugin("test-plugin-a", "import sys; sys.host.register('sampler', 'still', 'm:C')\n" + GOOD))
    monkeypatch.setattr(sys, "host", host_, raising=False)
    assert host_.components() == []
    assert "test-plugin-a asks for components while it is being imported" in host_.reports()[0].reason


class Temporary:
    @ebmcore.hookimpl
    def ebmcore_register(self, register):
        register.sampler("passing", "ebmcore.testing:Identity")


def test_a_temporary_plugin_leaves_nothing_behind(plugin):
    host_ = manager(plugin("test-plugin-a", GOOD))
    for _ in range(2):
        with host_.temporary(Temporary(), "test-plugin-t") as components:
            assert [c.id for c in components] == ["test-plugin-t:passing"]
            assert host_.load(host_.find("sampler", "passing")) is Identity
        with pytest.raises(UnknownComponentError):
            host_.find("sampler", "passing")
    assert [r.distribution for r in host_.reports()] == ["test-plugin-a"]


def test_temporary_plugin_outlasts_refresh(plugin):
    """Looking again at what is installed keeps a plugin that is not."""
    host_ = manager(installed := plugin("test-plugin-a", GOOD))
    with host_.temporary(Temporary(), "test-plugin-0"):
        host_.rescan([installed], {})
        assert host_.find("sampler", "passing")
        assert [r.distribution for r in host_.reports()] == ["test-plugin-0", "test-plugin-a"]
    host_.rescan([installed], {})
    assert [c.name for c in host_.components()] == ["identity"]


def test_temporary_plugin_needs_a_name_of_its_own(plugin):
    host_ = manager(plugin("test-plugin-a", GOOD))
    with pytest.raises(UsageError, match="there is a plugin test-plugin-a already"), host_.temporary(None, "test-plugin-a"):
        raise AssertionError


def test_a_temporary_plugin_that_is_wrong_raises_and_leaves_nothing_behind():
    class Wrong:
        @ebmcore.hookimpl
        def ebmcore_registr(self, register):
            raise AssertionError

    host_ = manager()
    with pytest.raises(PluginError, match="did you mean ebmcore_register"), host_.temporary(Wrong(), "wrong"):
        raise AssertionError
    assert host_.reports() == []
    with host_.temporary(Temporary(), "right"):
        assert host_.find("sampler", "passing")


def test_after_an_installation_the_host_can_look_again(plugin):
    host_ = manager(first := plugin("test-plugin-a", GOOD))
    identity = host_.load(host_.find("sampler", "identity"))
    second = plugin("test-plugin-b", GOOD.replace("identity", "other"))
    host_.rescan([first, second], {})
    assert host_.find("sampler", "other").distribution == "test-plugin-b"
    assert host_.load(host_.find("sampler", "identity")) is identity
    host_.rescan([second], {})
    assert [c.name for c in host_.components()] == ["other"]
    host_.rescan([second], {"EBMCORE_PLUGINS": ""})
    assert host_.components() == []
    host_.rescan([second], {})
    assert [c.name for c in host_.components()] == ["other"]


def test_looking_again_gives_a_failed_plugin_another_chance_and_keeps_the_session(plugin):
    host_ = manager(broken := plugin("test-plugin-a", BROKEN))
    host_.register("sampler", "still", Identity)
    with pytest.raises(PluginError):
        host_.find("sampler", "test-plugin-a:identity")
    mended = plugin("test-plugin-a", GOOD)
    host_.rescan([mended], {})
    assert host_.find("sampler", "identity")
    assert host_.find("sampler", "still")
    assert broken is not mended


def test_another_version_of_an_imported_plugin_needs_a_new_python(plugin):
    host_ = manager(plugin("test-plugin-a", GOOD))
    assert host_.find("sampler", "identity").version == "1.2"
    with pytest.warns(RuntimeWarning, match=r"test-plugin-a 2\.0 is installed, but 1\.2 is imported: restart Python"):
        host_.rescan([plugin("test-plugin-a", GOOD, version="2.0")], {})
    assert host_.find("sampler", "identity").version == "1.2"


def test_looking_again_in_the_real_host_finds_what_was_installed(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UnknownComponentError):
        host.find("sampler", "fresh")
    info = tmp_path / "test_plugin_fresh-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: test-plugin-fresh\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[ebmcore]\nfresh = test_plugin_fresh\n")
    (tmp_path / "test_plugin_fresh.py").write_text(GOOD.replace("identity", "fresh"))
    ebmcore.refresh()
    assert host.find("sampler", "fresh").distribution == "test-plugin-fresh"
    monkeypatch.undo()
    ebmcore.refresh()
    with pytest.raises(UnknownComponentError):
        host.find("sampler", "fresh")


def test_refresh_warns_at_caller(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    info = tmp_path / "test_plugin_dated-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: test-plugin-dated\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[ebmcore]\ndated = test_plugin_dated\n")
    (tmp_path / "test_plugin_dated.py").write_text(GOOD.replace("identity", "dated"))
    ebmcore.refresh()
    assert host.find("sampler", "dated").version == "1"
    info.rename(info.with_name("test_plugin_dated-2.dist-info"))
    (tmp_path / "test_plugin_dated-2.dist-info/METADATA").write_text("Name: test-plugin-dated\nVersion: 2\n")
    with pytest.warns(RuntimeWarning, match="test-plugin-dated 2 is installed, but 1 is imported") as caught:
        ebmcore.refresh()
    assert [warning.filename for warning in caught] == [__file__]
    monkeypatch.undo()
    ebmcore.refresh()
