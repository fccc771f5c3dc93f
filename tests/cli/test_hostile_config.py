"""Configurations of strangers: each key wrong in type and in sense, and text that tries to run code, to exhaust or to mislead."""

from __future__ import annotations

import copy
import importlib
import os
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import pytest
import torch
import yaml
from torch import nn

import ebmcore
from ebmcore.cli import _warn, main
from ebmcore.training.numbers import BOUNDS

DEEP = yaml.safe_load("[" * 60 + "]" * 60)
BOMB = "[&a [x, x], &b [*a, *a, *a, *a], &c [*b, *b, *b, *b], *c]"
TYPES = {
    "null": None, "list": [], "mapping": {}, "text": "text", "empty": "", "list of text": ["x"], "deep": DEEP,
    "class": {"class_path": "canary.Evil"}, "dotted": "canary.Evil", "bomb in text": BOMB, "escape": "\x1b[31m",
}  # fmt: skip
NUMBERS = {
    "-1": -1, "-0.5": -0.5, "1e26": 1e26, "10**30": 10**30, "2**63": 2**63, "inf": float("inf"), "-inf": float("-inf"),
    "nan": float("nan"), "true": True, "text of a number": "1e3", "digits": "1" * 5000, "nan in a list": [float("nan")],
}  # fmt: skip

CONFIGS = {
    "moons": """
data: {name: two-moons, n_train: 20, n_test: 10, noise: 0.2, seed: 0}
energy: {name: mlp, hidden: [8], spectral_norm: false}
sampler: {name: langevin, step_size: 0.01, temperature: 1.0, clip_grad: 1.0, bounds: [-9.0, 9.0], noise: null}
loss: {name: pcd, k_steps: 1, data_noise: 0.0, n_chains: 10, restart_prob: 0.0, initial: model, energy_l2: 0.0,
  joint_forward: true}
optimizer: {name: adamw, betas: [0.9, 0.999], eps: 1.0e-08, weight_decay: 0.01, amsgrad: false, maximize: false,
  foreach: false, capturable: false, differentiable: false, fused: false}
from: null
epochs: null
steps: 1
batch_size: 8
accumulate: 1
lr: 0.001
clip_grad: 1.0
ema_decay: 0.9
seed: 0
num_workers: 0
accelerator: cpu
devices: 1
num_nodes: 1
strategy: auto
precision: 32-true
out: run
changed: [seed]
log_every: 10
checkpoint_every: 500
checkpoint_async: false
keep: 2
measure_every: null
compile: false
progress: false
schedules: {optimizer.lr: linear(end=0)}
""",
    "ring": """
data: {name: ring-of-gaussians, n_modes: 8, radius: 2.0, std: 0.2, n_train: 20, n_test: 10, seed: 0}
energy: {name: gaussian-rbm, hidden: 3, weight_std: 0.01, std: 1.0, learn_variance: true, visible_bias: zero}
sampler: {name: tempering, inner: mala, inner_options: {step_size: 0.01}, n_rungs: 2, min_beta: 0.1, betas: [1.0, 0.5],
  adapt: 0.0}
loss: {name: fpcd, k_steps: 1, fast_lr: 0.01, fast_decay: 0.95, n_chains: 10, restart_prob: 0.0, initial: model,
  energy_l2: 0.0, joint_forward: true}
metric:
- {name: ais-ll, n_chains: 5, n_temperatures: 3, sampler: mala, sampler_options: {step_size: 0.01}, n_bootstrap: 5}
""",
    "bars": """
data: {name: bars-and-stripes, side: 2}
energy: {name: rbm, hidden: 3, weight_std: 0.01, centered: false, visible_bias: zero}
sampler: {name: gibbs}
loss: {name: ptcd, k_steps: 1, n_rungs: 2, min_beta: 0.1, betas: null, adapt: 0.0, n_chains: 4, restart_prob: 0.0,
  initial: model, energy_l2: 0.0, joint_forward: true}
metric:
- {name: pseudo-ll, n_bootstrap: 5}
""",
}
CONFIGS = {name: yaml.safe_load(text) for name, text in CONFIGS.items()}
CONFIGS = {name: copy.deepcopy(CONFIGS["moons"]) | config for name, config in CONFIGS.items()}

# The keys for which such a value has a meaning; true has one where the value is true or false.
WORKS = {
    "null": "optimizer schedules metric epochs clip_grad from ema_decay measure_every sampler.clip_grad sampler.bounds "
    "sampler.noise sampler.temperature sampler.betas loss.betas optimizer.foreach optimizer.fused devices num_nodes",
    "list": "energy.hidden metric changed", "list of text": "changed",
    "mapping": "optimizer schedules",
    "text": "out", "dotted": "out", "escape": "out",
    "-1": "seed data.seed",
    "true": "sampler.inner_options.step_size metric.0.sampler_options.step_size",
    "text of a number": "data.noise data.radius data.std energy.weight_std energy.std sampler.step_size sampler.temperature "
    "sampler.clip_grad sampler.min_beta sampler.inner_options.step_size loss.data_noise loss.energy_l2 loss.fast_lr "
    "optimizer.eps sampler.adapt loss.adapt optimizer.weight_decay lr clip_grad metric.0.sampler_options.step_size",
}  # fmt: skip


def keys(value, path=()):
    """Paths to all values; of lists only into that of metrics."""
    if path:
        yield path
    if isinstance(value, dict):
        for key, item in value.items():
            yield from keys(item, (*path, key))
    elif isinstance(value, list) and path[-1] == "metric":
        yield from keys(value[0], (*path, 0))


CASES = [
    (name, path)
    for name, config in CONFIGS.items()
    for path in keys(config)
    if name == "moons" or path[0] in yaml.safe_load("{data: 1, energy: 1, sampler: 1, loss: 1, metric: 1}")
]


# Each key is tried with every fourth value, and its neighbours with the others, which saves two minutes; with 1, all with all.
SHARES = int(os.environ.get("HOSTILE_SHARES", 4))


@pytest.fixture(scope="module", autouse=True)
def _imported():
    """What commands import takes seconds, and is none of their own work."""
    importlib.import_module("ebmcore.cli.options")
    for component in ebmcore.host.list_components():
        ebmcore.host.load(component.kind, component.id)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty folder, with a module on the path whose import leaves a file in it."""
    monkeypatch.chdir(tmp_path)
    modules = tmp_path.parent / f"{tmp_path.name}-modules"
    modules.mkdir()
    (modules / "canary.py").write_text(
        f"open({str(tmp_path / 'CANARY')!r}, 'w').close()\nclass Evil: pass\ndef evil(*args): pass\n"
    )
    monkeypatch.syspath_prepend(modules)
    yield tmp_path
    sys.modules.pop("canary", None)
    assert not (tmp_path / "CANARY").exists()


def assert_refused(arguments, capsys, within=2.0):
    """Exit status 2 and one printable line within two seconds; nothing is left behind."""
    before = sorted(os.listdir())
    started = time.perf_counter()
    assert main([str(argument) for argument in arguments]) == 2
    assert time.perf_counter() - started < within
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.endswith("\n")
    line = captured.err[:-1]
    assert line.startswith("ebmcore: ")
    assert line.isprintable()  # which a newline is not
    assert len(line) < 5000
    assert sorted(os.listdir()) == before
    return line


@pytest.mark.parametrize("name", CONFIGS)
def test_configurations_are_whole(name, folder):
    """A run with the configuration works, and saves each of its keys and no other."""
    (folder / "a.yaml").write_text(yaml.safe_dump(CONFIGS[name]))
    assert main(["train", "--config", "a.yaml"]) == 0
    saved = yaml.safe_load((folder / "run/config.yaml").read_text())
    assert set(keys(saved)) == set(keys(CONFIGS[name]))


@pytest.mark.parametrize(("name", "path"), CASES, ids=[f"{name}-{'.'.join(map(str, path))}" for name, path in CASES])
def test_wrong_value_is_refused(name, path, folder, capsys):
    """Each key with a value of each wrong type and sense is refused in one line, unless the value has a meaning there."""
    key = ".".join(map(str, path))
    for label, value in list((TYPES | NUMBERS).items())[CASES.index((name, path)) % SHARES :: SHARES]:
        config, old = with_value(CONFIGS[name], path, value)
        write("a.yaml", config)
        if key in WORKS.get(label, "").split() or (value is True and isinstance(old, bool) and key not in REFUSED_FLAGS):
            continue
        assert_refused(["train", "--config", "a.yaml"], capsys)


REFUSED_FLAGS = ("optimizer.capturable", "optimizer.differentiable")


def with_value(config, path, value):
    """A copy of the configuration with another value at the path, and the value that was there."""
    part = config = copy.deepcopy(config)
    for step in path[:-1]:
        part = part[step]
    old, part[path[-1]] = part[path[-1]], value
    return config, old


def write(path, config):
    Path(path).write_text(yaml.safe_dump(config) if isinstance(config, dict) else config, encoding="utf-8")


@pytest.mark.parametrize("value", ["-1", "1e26", ".inf", ".nan", "1" + "0" * 30, "true", BOMB, "[" * 99, "0x1" + "0" * 5000])
@pytest.mark.parametrize("option", [*BOUNDS, "energy.hidden", "sampler.step_size", "data.n_train", "loss.n_chains"])
def test_wrong_number_on_the_command_line_is_refused(option, value, capsys):
    write("a.yaml", CONFIGS["moons"])
    if (option, value) != ("seed", "-1"):
        line = assert_refused(["train", "--config", "a.yaml", f"--{option}={value}"], capsys)
        assert option.split(".")[-1] in line or "a number is too large" in line


@pytest.mark.parametrize(("text", "message"), [(BOMB, "has an alias"), ("[" * 99, "within each other")])
def test_yaml_within_a_value_is_limited(text, message, capsys):
    """Text that jsonargparse reads as YAML once more has the limits of a file."""
    write("a.yaml", CONFIGS["moons"])
    line = assert_refused(["train", "--config", "a.yaml", "--epochs", text], capsys)
    assert line.startswith("ebmcore: option --epochs has ")
    assert message in line
    write("a.yaml", CONFIGS["moons"] | {"epochs": text})
    assert "option --epochs has" in assert_refused(["train", "--config", "a.yaml"], capsys)


FILES = {
    "alias bomb": "a: " + BOMB,
    "self-reference": "energy: &a {name: *a}",
    "nested": "energy: " + "[" * 10_000,
    "nested block": "- " * 10_000,
    "too large": "#" * 10**6,
    "long list": "energy: {name: mlp, hidden: [" + "1, " * 5000 + "1]}",
    "object": "energy: !!python/object/apply:canary.evil []",
    "module": "energy: !!python/module:canary x",
    "key twice": "steps: 1\nsteps: 2",
    "number as key": "1: 2",
    "list": "[energy]",
    "text": "energy",
    "nothing": "",
    "unknown option": "bogus: 1",
    "unknown option of null": "bogus: null",
    "unknown option of nothing": "bogus: {}",
    "attribute": "keys: {}",
    "path of jsonargparse": "__path__: x",
    "option in one key": "energy: rbm\nenergy.hidden: 3",
    "other file": "config: other.yaml",
    "recipe": "recipe: x",
    "escape in a key": '"\\e[31m\\u202e": 1',
    "escape in a name": 'energy: "\\e]0;x\\a\\x9b31m\\u202e\\u2066"',
    "escape in a schedule": 'schedules: {optimizer.lr: "\\e[31m"}',
    "long name": "energy: " + "x" * 20_000,
    "NUL": 'out: "a\\0b"',
    "surrogate": 'out: "\\ud800"',
    "code as name": "energy: canary:Evil",
    "code as optimizer": "optimizer: canary.Evil",
    "code as metric": "metric: {name: ais-ll, sampler: 'canary:Evil'}",
    "metric twice": "metric: [exact-ll, {name: exact-ll}]",
    "schedule of code": "schedules: {optimizer.lr: \"constant(__import__('canary'))\"}",
    "deep schedule": f'schedules: {{optimizer.lr: "constant({"(" * 1000}"}}',
    "infinite schedule": 'schedules: {optimizer.lr: "linear(1e999)"}',
    "schedules of another type": "schedules: []",
}


@pytest.mark.parametrize("text", FILES.values(), ids=FILES)
def test_hostile_file_is_refused(text, capsys):
    base = {key: value for key, value in CONFIGS["bars"].items() if not text.startswith(key)}
    write("a.yaml", base)
    write("b.yaml", text)
    assert_refused(["train", "--config", "a.yaml", "--config", "b.yaml"], capsys)


@pytest.mark.parametrize("text", FILES.values(), ids=FILES)
def test_hostile_run_is_refused(text, folder, capsys):
    """The same in the directory of a run, for each command that takes one."""
    (folder / "run").mkdir()
    write("run/config.yaml", text)
    for command in ("train --resume run", "evaluate run --metric exact-ll", "sample run --out a.npy"):
        assert_refused(command.split(), capsys)
    assert os.listdir("run") == ["config.yaml"]


@pytest.mark.parametrize("option", [("-n", "-1"), ("-n", "0"), ("-n", "1e3"), ("-n", str(2**63)), ("--steps", "0"),
    ("--steps", str(10**30)), ("--seed", str(2**63)), ("--seed", "nan")])  # fmt: skip
def test_wrong_number_of_samples_is_refused(option, capsys):
    assert_refused(["sample", "run", "--out", "a.npy", *option], capsys)


def test_absurd_size_is_refused(capsys):
    """A size that the bounds allow and no memory holds: 1.6 TiB."""
    config = CONFIGS["bars"] | {"data": {"name": "bars-and-stripes", "side": 10}, "energy": {"name": "rbm", "hidden": 2**32}}
    write("a.yaml", config)
    assert "a size is too large" in assert_refused(["train", "--config", "a.yaml"], capsys)


class Takes(Protocol):
    def sample(self, n: int) -> int: ...


class Open(nn.Module):
    """An energy with an option of each kind that a program may fill with code."""

    made: list = []

    def __init__(
        self,
        shape: Any,
        *,
        function: Callable[..., Any] | None = None,
        factory: Callable[[int], nn.Module] | None = None,
        kind: type | None = None,
        layer: type[nn.Module] | None = None,
        module: nn.Module | None = None,
        modules: list[nn.Module] | None = None,
        file: types.ModuleType | None = None,
        expression: types.UnionType | None = None,
        protocol: Takes | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
        mapping: dict[str, Any] | None = None,
        anything: Any = None,
        untyped=None,
    ) -> None:
        super().__init__()
        self.made.append({name: value for name, value in locals().items() if name not in ("self", "shape")})
        raise ValueError("that is enough")


@pytest.fixture
def open_energy():
    class Plugin:
        @ebmcore.hookimpl
        def ebmcore_register(self, register):
            register.energy("open", Open)

    Open.made.clear()
    with ebmcore.temporary_plugin(Plugin()):
        yield


EVIL = {"class_path": "canary.Evil"}
CODE = ["canary", "canary.Evil", "canary.evil", "int | canary.Evil", ["canary.Evil"], EVIL, [EVIL], {"a": EVIL}]
CODE.append(EVIL | {"init_args": {"a": 1}})


@pytest.mark.parametrize(
    "option", [name for name in Open.__init__.__annotations__ if name not in ("shape", "return")] + ["untyped"]
)
def test_no_value_names_code(option, open_energy, capsys):
    """An option of any type imports nothing for a value: it is refused, or stays text or a mapping."""
    base = CONFIGS["moons"]
    for value in CODE:
        write("a.yaml", base | {"energy": {"name": "open", option: value}})
        assert_refused(["train", "--config", "a.yaml"], capsys)
        write("a.yaml", base | {"energy": "open"})
        assert_refused(["train", "--config", "a.yaml", f"--energy.{option}={value}"], capsys)
    assert_refused(["train", "--config", "a.yaml", f"--energy.{option}.class_path=canary.Evil"], capsys)
    assert_refused(["train", "--config", "a.yaml", f"--energy.{option}.help=canary.Evil"], capsys)
    assert "canary" not in sys.modules
    for made in Open.made:
        assert isinstance(made[option], (str, dict, list))


@pytest.mark.parametrize("text", ["\x1b[31m", "\r", "\a", "\x9b", "\u202e", "\u2066", "\u200b", "\ud800"])
def test_warning_shows_escapes(text, capsys):
    _warn(f"a {text} b")
    error = capsys.readouterr().err
    assert error[:-1].isprintable()
    assert error.startswith("ebmcore: warning: a ")


def test_message_keeps_letters(capsys):
    _warn("größe\n 大")
    assert capsys.readouterr().err == "ebmcore: warning: größe 大\n"
