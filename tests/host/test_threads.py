"""Threads that meet in the host."""

from __future__ import annotations

import functools
import importlib
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import threads_meeting
import torch
from broken_plugins import python
from installed_plugins import GOOD, manager

from ebmcore.errors import PluginError
from ebmcore.host import manager as manager_module
from ebmcore.host.isolation import _SETTINGS, preserve_global_state
from ebmcore.host.registry import Component, Registry
from ebmcore.host.report import State
from ebmcore.testing import Identity


@pytest.mark.parametrize(
    ("meeting", "repetitions"), [("create", 5), ("create_while_torch_is_imported", 1), ("load", 4), ("change", 3)]
)
def test_threads_meet_at_first_use(meeting, repetitions):
    """Nothing is lost and nothing crashes; ``python tests/helpers/threads_meeting.py MEETING 100`` tries longer."""
    done = python([Path(threads_meeting.__file__), meeting, str(repetitions)], OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr


def test_host_is_built_once(monkeypatch):
    """Threads at first use wait for the one that builds the host."""
    built = []

    def build(*_):
        time.sleep(0.05)
        built.append(object())
        return built[-1]

    monkeypatch.setattr(manager_module, "PluginManager", build)
    monkeypatch.setattr(manager_module, "_manager", functools.cache(manager_module._manager.__wrapped__))
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(lambda _: manager_module.get_manager(), range(8)))) == 1
    assert len(built) == 1


def test_thread_that_imports_library_is_waited_for(tmp_path, monkeypatch):
    """Settings of a library are read only once the thread that imports it has finished."""
    (tmp_path / "slow_library.py").write_text("import time; time.sleep(0.3)\nget = set = lambda *_: 1")
    monkeypatch.syspath_prepend(tmp_path)
    setting = type(_SETTINGS[0])("slow_library", "a setting", "get", "set")
    monkeypatch.setattr("ebmcore.host.isolation._SETTINGS", (setting,))
    thread = threading.Thread(target=importlib.import_module, args=("slow_library",))
    thread.start()
    while "slow_library" not in sys.modules:
        time.sleep(0.001)
    with preserve_global_state() as changed:
        assert sys.modules["slow_library"].get() == 1
    thread.join()
    assert changed == []


def test_library_that_another_thread_failed_to_import_is_passed_over(tmp_path, monkeypatch):
    (tmp_path / "failing_library.py").write_text("import time; time.sleep(0.1); raise ImportError('no')")
    monkeypatch.syspath_prepend(tmp_path)
    setting = type(_SETTINGS[0])("failing_library", "a setting", "get", "set")
    monkeypatch.setattr("ebmcore.host.isolation._SETTINGS", (setting,))
    with ThreadPoolExecutor(1) as pool:
        importing = pool.submit(importlib.import_module, "failing_library")
        while "failing_library" not in sys.modules and not importing.done():
            time.sleep(0.001)
        with preserve_global_state() as changed:
            pass
    assert isinstance(importing.exception(), ImportError)
    assert changed == []


def test_numbers_of_another_thread_are_not_drawn_again():
    """What a thread draws while another loads a component stays drawn."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(int).result()  # starts the thread
        with preserve_global_state() as changed:
            first = pool.submit(torch.rand, 3).result()
        assert changed == []
        assert not torch.equal(pool.submit(torch.rand, 3).result(), first)


class SlowTable(dict):
    """Is read so slowly that another thread comes in between."""

    started = threading.Event()

    def values(self):
        for value in super().values():
            self.started.set()
            time.sleep(0.02)
            yield value


def test_registry_can_be_read_while_it_is_filled():
    """A table that grows under its reader would raise an error."""
    registry = Registry()
    registry._components = SlowTable()
    first, second, third = (Component("sampler", name, Identity, "test-plugin-a", "1") for name in ("a", "b", "c"))
    registry.add([first, second])
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(registry.components)
        assert registry._components.started.wait(10)
        registry.add([third])
        assert reading.result() == [first, second]
    assert registry.components() == [first, second, third]


class Meeting:
    """Two events by which a module that is being imported and a test wait for each other."""

    def __init__(self):
        self.reached, self.go = threading.Event(), threading.Event()

    def wait(self):
        self.reached.set()
        assert self.go.wait(10)


@pytest.fixture
def meeting(monkeypatch):
    monkeypatch.setattr(sys, "meeting", Meeting(), raising=False)
    return sys.meeting


def test_what_is_known_is_found_while_another_thread_imports(plugin, meeting):
    """Registering and finding do not wait for an import, so a module may do both while it is being imported."""
    host_ = manager(plugin("test-plugin-a", GOOD))
    still = host_.load(host_.find("sampler", "identity"))
    plugin("slow-component", "import sys; sys.meeting.wait()\nfrom ebmcore.testing import Identity")
    host_.register("sampler", "slow", "slow_component:Identity")
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(lambda: host_.load(host_.find("sampler", "slow")))
        assert meeting.reached.wait(10)
        host_.register("sampler", "new", Identity)
        assert host_.find("sampler", "new")
        assert host_.load(host_.find("sampler", "identity")) is still
        meeting.go.set()
        assert loading.result() is Identity


def test_thread_that_imports_nothing_waits_without_limit(plugin, meeting, monkeypatch):
    monkeypatch.setattr(manager_module, "PATIENCE", 0.01)
    host_ = manager(plugin("test-plugin-a", "import sys; sys.meeting.wait()\n" + GOOD))
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(host_.find, "sampler", "identity") for _ in range(2)]
        assert meeting.reached.wait(10)
        time.sleep(0.1)
        meeting.go.set()
        assert waiting[0].result() is waiting[1].result()


def test_module_that_two_threads_need_does_not_hang(plugin, meeting, monkeypatch):
    """A module asks for components while it is imported, and the thread that imports plugins needs this module."""
    monkeypatch.setattr(manager_module, "PATIENCE", 0.2)
    host_ = manager(plugin("test-plugin-a", "import sys; sys.meeting.wait(); import asking_module\n" + GOOD))
    monkeypatch.setattr(sys, "host", host_, raising=False)
    plugin("asking-module", "import sys, threading\nif threading.current_thread().name == 'second': sys.host.components()")
    failures = []

    def second():
        try:
            importlib.import_module("asking_module")
        except PluginError as error:
            failures.append(str(error))

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(host_.components)
        assert meeting.reached.wait(10)
        thread = threading.Thread(target=second, name="second")
        thread.start()
        while "asking_module" not in sys.modules:
            time.sleep(0.001)
        meeting.go.set()
        assert [c.name for c in first.result()] == ["identity"]
        thread.join()
    assert "ask inside the function that needs them" in failures[0]
    assert [r.state for r in host_.reports()] == [State.LOADED]


def test_refresh_runs_in_one_thread_at_a_time(monkeypatch):
    """Python's caches of its paths cannot be emptied by two threads at once."""
    inside, seen = [], []

    def invalidate_caches():
        inside.append(1)
        time.sleep(0.01)
        seen.append(len(inside))
        inside.pop()

    monkeypatch.setattr(importlib, "invalidate_caches", invalidate_caches)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: manager_module.refresh(), range(4)))
    assert seen == [1, 1, 1, 1]
