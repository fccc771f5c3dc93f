"""Plugins that are broken in every way we could think of, each really installed, and what the host makes of them.

Installed means: a distribution with metadata and an entry point on the path of fresh interpreters, beside the working plugins.
"""

from __future__ import annotations

import json
import re

import pytest
from broken_plugins import NAME, Broken, component, hook, python

from ebmcore.host.doctor import examine
from ebmcore.host.report import State

LOADED = State.LOADED
MISSPELT = hook().replace("def ebmcore_register", "def ebmcore_registr")
SIGNATURE = (
    hook()
    .replace("ebmcore_register(register)", "ebmcore_register(registry)")
    .replace("register.sampler", "registry.sampler")
)
CIRCULAR = "import broken_plugin_2\nUSED = broken_plugin_2.NAME\n"
FAILURES = {
    "ImportError": Broken(
        hook("import a_module_that_is_not_there"), asked="ModuleNotFoundError: No module", doctor="No module"
    ),
    "ImportError of a component": Broken(
        component=component("import a_module_that_is_not_there"),
        state=LOADED,
        asked="ModuleNotFoundError",
        doctor="No module",
    ),
    "SyntaxError": Broken(hook("def :"), asked="SyntaxError: invalid syntax", doctor="SyntaxError"),
    "SyntaxError of a component": Broken(
        component=component("def :"), state=LOADED, asked="SyntaxError", doctor="SyntaxError"
    ),
    "SystemExit": Broken(hook("raise SystemExit(3)"), asked="SystemExit: 3", doctor="SystemExit: 3"),
    "SystemExit of a component": Broken(
        component=component("raise SystemExit(3)"), state=LOADED, asked="SystemExit: 3", doctor="SystemExit: 3"
    ),
    "sys.exit in a hook": Broken(hook(after="import sys; sys.exit(4)"), asked="SystemExit: 4", doctor="SystemExit: 4"),
    "exception in the hook after one registration": Broken(
        hook(after="raise KeyError('late')"), asked="KeyError: 'late'", doctor="KeyError"
    ),
    "exception that is no Exception": Broken(
        hook("raise type('Stop', (BaseException,), {})('now')"), asked="Stop: now", doctor="Stop: now"
    ),
    "wrong hook signature": Broken(SIGNATURE, asked="registry", doctor="registry"),
    "misspelt hook": Broken(
        MISSPELT,
        asked="unknown hook 'ebmcore_registr'; did you mean ebmcore_register",
        doctor="did you mean ebmcore_register",
    ),
    "hook that is a coroutine": Broken(
        hook().replace("def ebm", "async def ebm"),
        asked="TypeError: ebmcore_register must return nothing, but returned a coroutine",
        doctor="returned a coroutine: it must be a plain function",
    ),
    "hook that is a generator": Broken(
        hook(after="yield"), asked="returned a generator: it must be a plain function", doctor="returned a generator"
    ),
    "hook without its mark": Broken(
        hook().replace("@ebmcore.hookimpl", ""), asked="is @ebmcore.hookimpl missing", doctor="hookimpl missing"
    ),
    "hook that registers nothing": Broken(
        hook().replace("register.sampler", "(lambda *_: None)"), state=LOADED, asked="provides the sampler", doctor="nothing"
    ),
    "target that does not exist": Broken(
        component="",
        state=LOADED,
        asked="AttributeError: module 'broken_component' has no",
        doctor="has no attribute 'Still'",
    ),
    "target of the wrong type": Broken(
        component="Still = dict", state=LOADED, asked="a sampler must have init", doctor="must have init"
    ),
    "abstract class": Broken(
        component=component().replace("def step", "def stride"),
        state=LOADED,
        asked="is abstract: it lacks step",
        doctor="abstract",
    ),
    "circular import": Broken(
        CIRCULAR + hook(), asked="ImportError: cannot import name 'USED'|AttributeError: partially", doctor="partially|USED"
    ),
    "asks the host while it is imported": Broken(
        hook("ebmcore.list_components()"), asked="ask inside the function", doctor="ask inside the function"
    ),
    "torch at top level": Broken(hook("import torch"), state=LOADED, doctor=r"imports torch, which costs .* \d+\.\d s"),
    "two distributions with one name": Broken(
        state=LOADED, other="version", doctor="is installed twice: 1.2 in .* counts, 0.9 in .* does not"
    ),
    "two providers of one name": Broken(
        state=State.CONFLICT, other="name", asked="ebm-plugin-broken:broken, ebm-plugin-zother:broken"
    ),
    "shadows a first-party name": Broken(
        hook().replace('"broken"', '"langevin"'), state=State.CONFLICT, asked="provides the sampler 'broken'"
    ),
    "no version in the metadata": Broken(state=LOADED, version="", doctor="has no version in its metadata"),
    "malformed entry point": Broken(
        entry_point="broken = not a module!",
        asked="ValueError: .*Invalid object reference",
        doctor="Invalid object reference",
    ),
    "malformed file of entry points": Broken(entry_point="broken", doctor="entry_points.txt cannot be read", crashes=True),
    "prints on import": Broken(hook("print('this is no JSON')"), state=LOADED),
    "changes the default dtype": Broken(
        component=component("torch.set_default_dtype(torch.float64)"),
        state=LOADED,
        doctor="changes the default dtype; ebmcore restored",
    ),
    "changes the number of threads": Broken(
        component=component("torch.set_num_threads(7)"),
        state=LOADED,
        doctor="changes the number of threads; ebmcore restored",
    ),
    "changes the global RNG": Broken(
        component=component("import random, numpy; [m.seed(0) for m in (random, numpy.random)]; torch.manual_seed(1)"),
        state=LOADED,
        doctor="changes the random state of (torch|NumPy), the random state of (torch|NumPy); ebmcore restored",
    ),
    "seeds NumPy in a light module": Broken(
        hook("import numpy; numpy.random.seed(0)"),
        state=LOADED,
        doctor="changes the random state of NumPy; ebmcore restored",
    ),
    "changes the warning filters": Broken(
        hook("import warnings; warnings.simplefilter('ignore')"),
        state=LOADED,
        doctor="changes the warning filters; ebmcore restored",
    ),
    "os._exit": Broken(
        hook("import os; os._exit(0)"), doctor="ended with exit status 0 while importing broken_plugin", crashes=True
    ),
    "os._exit in a component": Broken(
        component=component("import os; os._exit(5)"),
        doctor=r"ended with exit status 5 while loading the sampler broken \(broken_component:Still\)",
        crashes=True,
    ),
    "segmentation fault": Broken(
        hook("import ctypes; ctypes.string_at(0)"),
        doctor="was killed by signal 11 while importing broken_plugin",
        crashes=True,
    ),
    "hangs on import": Broken(
        hook("import time; time.sleep(1000)"),
        doctor="did not come to an end in 10 s while importing broken_plugin",
        crashes=True,
    ),
}

PROGRAM = """
import json, random, sys, traceback, warnings
import numpy, torch
import ebmcore

def settings():
    state = numpy.random.get_state()
    return [torch.get_default_dtype(), torch.get_num_threads(), torch.get_rng_state().tolist(), random.getstate(),
            state[1].tolist() + list(state[2:]), [f for f in warnings.filters if f[1] is f[3] is None and f[2] is Warning]]

random.seed(3)
before = settings()
listed = [c.id for c in ebmcore.list_components()]
from ebmcore.testing import Quadratic
langevin = ebmcore.create_sampler("ebm-plugin-langevin:langevin", step_size=0.1)
energy = Quadratic((2,))
cd = ebmcore.create_loss("cd", energy, langevin)
cd.generator = torch.Generator()

def train():
    cd(torch.ones(3, 2))[0].backward()

train()
answer = dict(listed=listed)
for _ in range(2):
    try:
        ebmcore.create_sampler("broken")
    except Exception as error:
        cause = error.__cause__
        answer |= dict(error=type(error).__name__, message=str(error), cause=cause and type(cause).__name__)
        answer |= dict(chained="".join(traceback.format_exception(error)))
train()
assert settings() == before, [a for a, b in zip(before, settings()) if a != b]
answer["state"] = {r.distribution: r.state for r in ebmcore.host.plugins()}["ebm-plugin-broken"]
print(json.dumps(answer))
"""


@pytest.mark.parametrize("case", FAILURES.values(), ids=FAILURES)
def test_survived(case, install):
    install(case)
    if case.crashes:
        assert_it_can_be_found_and_left_out()
    else:
        assert_it_harms_nothing_else(case)
    if case.doctor:
        (examination,) = examine([NAME], seconds=10)
        assert re.search(case.doctor, "\n".join(examination.problems)), examination.problems


def assert_it_can_be_found_and_left_out():
    listed = python(["-m", "ebmcore", "plugins"])
    assert "ebm-plugin-broken" in listed.stdout
    left_out = python(["-m", "ebmcore", "list"], EBMCORE_DISABLED_PLUGINS=NAME)
    assert left_out.returncode == 0
    assert "ebm-plugin-langevin:langevin" in left_out.stdout


def assert_it_harms_nothing_else(case):
    done = python(PROGRAM, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert {"ebm-plugin-langevin:langevin", "ebm-plugin-cd:cd"} <= set(answer["listed"])
    assert answer["state"] == case.state
    registers = case.state is not State.FAILED and 'register.sampler("broken"' in case.hook
    assert ("ebm-plugin-broken:broken" in answer["listed"]) == registers
    if not case.asked:
        assert "error" not in answer
        return
    assert re.search(case.asked, answer["message"]), answer["message"]
    if answer["error"] == "PluginError":
        assert answer["cause"] in answer["chained"]
        for part in ("ebm-plugin-broken 1.2", "with ebmcore 0.1.0", "pip install --upgrade ebm-plugin-broken"):
            assert part in answer["message"]
        assert "EBMCORE_DISABLED_PLUGINS=ebm-plugin-broken" in answer["message"]
        target = "broken_component:Still" if case.state is LOADED else case.entry_point.partition("= ")[2]
        assert target in answer["message"]
