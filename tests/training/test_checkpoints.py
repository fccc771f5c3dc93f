"""Checkpoints: what a resumed run does, what they hold, and what they refuse."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import shutil
from dataclasses import dataclass, replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_runs import data, pcd, quiet, same_state, table
from torch.distributed.checkpoint.api import CheckpointException

import ebmcore
from ebmcore import BaseSampler, ChainState
from ebmcore.errors import CheckpointError, UsageError
from ebmcore.training import BaseObserver, checkpoints, latest_checkpoint, read_checkpoint

SHARD = "shard-00001-model-00001-of-00001.safetensors"


def test_resumed_run_is_bit_for_bit(tmp_path):
    """A resumed run is the uninterrupted one bit for bit."""
    whole, first, second = pcd(restart_prob=0.1), pcd(restart_prob=0.1), pcd(seed=99, restart_prob=0.1)
    options = {"ema_decay": 0.9}
    expected = quiet(whole, data(), steps=40, out=tmp_path / "whole", **options)
    quiet(first, data(), steps=23, out=tmp_path / "run", **options)
    resumed = quiet(second, data(), steps=40, out=tmp_path / "run", resume=True, **options)
    assert same_state(whole, second)
    assert same_state(expected.energy, resumed.energy)


def test_float64_chain_state_is_resumed(tmp_path):
    """What a chain keeps in float64 is resumed bit for bit."""

    @dataclass(eq=False)
    class Adapting(ChainState):
        log_step: torch.Tensor

    class Walk(BaseSampler):
        def init(self, energy, x, *, generator=None):
            return Adapting(x, torch.zeros(len(x), dtype=torch.float64))

        def step(self, energy, state, *, generator=None):
            step = state.log_step + 0.1 * state.x.double().tanh().mean(1)
            noise = torch.randn(state.x.shape, generator=generator)
            return replace(state, x=0.9 * state.x + step.exp().float()[:, None] * noise, log_step=step - 0.01), {}

    def loss():
        torch.manual_seed(0)
        return ebmcore.create_loss("pcd", ebmcore.create_energy("mlp", (2,), hidden=(8,)), Walk(), n_chains=20)

    whole, resumed = loss(), loss()
    quiet(whole, data(), steps=8)
    quiet(loss(), data(), steps=4, out=tmp_path)
    quiet(resumed, data(), steps=8, out=tmp_path, resume=True)
    assert whole.state_dict()["chains.log_step"].dtype == torch.float64
    assert same_state(whole, resumed)


def test_resumed_metrics_are_the_same(tmp_path):
    """A resumed run writes the metrics of the uninterrupted one."""
    options = {"log_every": 3, "checkpoint_every": 10}
    quiet(pcd(), data(), steps=40, out=tmp_path / "whole", **options)
    quiet(pcd(), data(), steps=25, out=tmp_path / "run", **options)
    file = tmp_path / "run" / "metrics.csv"
    lines = file.read_text().splitlines()
    later = ",".join(["28", *lines[-1].split(",")[1:]])  # whole, but written after the last checkpoint
    file.write_text("\n".join([*lines, later, "30,0."]))  # the last was cut off
    quiet(pcd(), data(), steps=40, out=tmp_path / "run", resume=True, **options)
    rows = table(file)
    whole = table(tmp_path / "whole" / "metrics.csv")
    assert [r for r in rows if r["step"] != "25"] == whole


def test_run_without_checkpoint_starts(tmp_path):
    """A run without a checkpoint yet starts again."""
    result = quiet(pcd(), data(), steps=3, out=tmp_path, resume=True)
    assert result.step == 3


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    loss, again = pcd(), pcd(seed=1)
    quiet(loss, data(), steps=5, out=tmp_path)
    result = quiet(again, data(), steps=5, out=tmp_path, resume=True)
    assert result.step == 5
    assert same_state(loss, again)


def test_a_run_never_overwrites_another(tmp_path):
    quiet(pcd(), data(), steps=3, out=tmp_path)
    with pytest.raises(UsageError, match="choose another directory .*or resume it"):
        quiet(pcd(), data(), steps=3, out=tmp_path)


def test_last_two_checkpoints_are_kept(tmp_path):
    """The last two checkpoints are kept and no half written one."""
    quiet(pcd(), data(), steps=50, out=tmp_path, checkpoint_every=10)
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000040", "step-00000050"]


def test_checkpoint_holds_tensors_and_origins(tmp_path):
    """A checkpoint holds everything and says where it came from."""
    result = quiet(pcd(), data(), steps=5, out=tmp_path, ema_decay=0.9)
    tensors, info = read_checkpoint(result.checkpoint)
    assert {name.split(".")[0] for name in tensors} == {"loss", "optimizer", "average"}
    assert {"loss.chains.x", "loss.chains.id", "loss.chains.age", "loss.energy.net.1.weight"} <= set(tensors)
    assert info["step"] == 5
    assert info["components"]["loss"]["id"] == "ebm-plugin-pcd:pcd"
    assert info["components"]["sampler"]["distribution"] == "ebm-plugin-langevin"
    assert info["components"]["energy"]["version"]


@pytest.mark.parametrize("part", [SHARD, "checkpoint.json"])
@pytest.mark.parametrize("damage", ["cut", "change", "remove"])
def test_damaged_checkpoint_is_refused(tmp_path, part, damage):
    """A damaged checkpoint raises an error that says what to do."""
    quiet(pcd(), data(), steps=20, out=tmp_path, checkpoint_every=10)
    path = latest_checkpoint(tmp_path / "checkpoints") / part
    content = path.read_bytes()
    if damage == "remove":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        path.write_bytes(content[:-9] + bytes([content[-9] ^ 255]) + content[-8:])
    with pytest.raises(CheckpointError, match="is damaged .*remove it to resume from step-00000010"):
        quiet(pcd(), data(), steps=30, out=tmp_path, resume=True)


def test_other_configuration_is_refused(tmp_path):
    """A checkpoint of another configuration raises an error that names what differs."""
    quiet(pcd(), data(), steps=3, out=tmp_path)
    sampler = ebmcore.create_sampler("langevin", step_size=0.05)
    other = ebmcore.create_loss("pcd", ebmcore.create_energy("mlp", (2,), hidden=(9,)), sampler, n_chains=20)
    with pytest.raises(CheckpointError, match=r"of a run with energy\.net\.1='Linear.*out_features=8, .*out_features=9"):
        quiet(other, data(), steps=5, out=tmp_path, resume=True)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("seed", {"seed": 7}),
        ("batch_size", {"batch_size": 5}),
        ("data", {"data": 1 + data()}),
        ("loss.k_steps", {"k_steps": 2}),
        ("sampler", {"step_size": 0.01}),
    ],
)
def test_named_change_is_allowed(tmp_path, name, other):
    """What differs is refused by its name, and allowed by it."""

    def run(steps, data, k_steps=1, step_size=0.05, **options):
        torch.manual_seed(0)
        langevin = ebmcore.create_sampler("langevin", step_size=step_size)
        loss = ebmcore.create_loss("cd", ebmcore.create_energy("mlp", (2,), hidden=(4,)), langevin, k_steps=k_steps)
        return quiet(loss, data, steps=steps, out=tmp_path, **options)

    run(2, data())
    changed = {"data": data(), **other}
    with pytest.raises(CheckpointError, match=rf"{name}.*, or name what differs in changed"):
        run(4, **changed, resume=True)
    assert run(4, **changed, resume=True, changed=[name]).step == 4
    assert run(5, **changed, resume=True).step == 5  # the checkpoint is now of the changed run


def test_unknown_change_is_refused(tmp_path):
    quiet(pcd(), data(), steps=2, out=tmp_path)
    with pytest.raises(
        UsageError, match="changed names 'loss.k_step', which is no option of the run: did you mean loss.k_steps"
    ):
        quiet(pcd(), data(), steps=4, out=tmp_path, resume=True, changed=["loss.k_step"])


def test_missing_average_is_refused(tmp_path):
    """An average that only one side keeps raises an error."""
    quiet(pcd(), data(), steps=2, out=tmp_path, ema_decay=0.9)
    with pytest.raises(CheckpointError, match=r"of a run with ema_decay=0\.9, not None: resume with that one, or name"):
        quiet(pcd(), data(), steps=4, out=tmp_path, resume=True)


def test_lost_optimizer_state_is_refused(tmp_path):
    """An optimizer whose state would be lost raises an error."""

    class Counting(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            for p in self.param_groups[0]["params"]:
                self.state[p]["count"] = 3

    with pytest.raises(CheckpointError, match="Counting keeps count, which is no tensor"):
        quiet(pcd(), data(), steps=2, out=tmp_path, optimizer=lambda p: Counting(p, lr=0.1))


def test_counting_optimizer_is_resumed(tmp_path):
    """An optimizer that counts in its groups is resumed bit for bit."""

    class Counting(torch.optim.SGD):
        def step(self, closure=None):
            group = self.param_groups[0]
            group["k"] = group.get("k", 0) + 1
            for parameter in group["params"]:
                parameter.grad /= group["k"]
            super().step(closure)

    def options(steps):
        return {"steps": steps, "optimizer": lambda p: Counting(p, lr=0.1)}

    whole, resumed = pcd(), pcd()
    quiet(whole, data(), **options(6))
    quiet(pcd(), data(), out=tmp_path, **options(3))
    quiet(resumed, data(), out=tmp_path, resume=True, **options(6))
    assert same_state(whole, resumed)


@pytest.mark.parametrize(("place", "value"), [("state", "much"), ("groups", object())])
def test_lost_state_stops_the_first_step(tmp_path, place, value):
    """What an optimizer would lose raises an error after the first step."""
    steps = []

    class Noting(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            steps.append(1)
            group = self.param_groups[0]
            (self.state[group["params"][0]] if place == "state" else group)["seen"] = value

    with pytest.raises(CheckpointError, match="Noting keeps seen, which is no tensor"):
        quiet(pcd(), data(), steps=20, out=tmp_path, optimizer=lambda p: Noting(p, lr=0.1))
    assert len(steps) == 1


def test_full_disk_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    """A disk that is full at the end of a checkpoint leaves the last one."""

    def full(directory):
        if "00000004" in directory.name:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "_flush_to_disk", full)
    with pytest.raises(CheckpointError, match=r"step-00000004 cannot be written \(.*No space left.*step-00000002"):
        quiet(pcd(), data(), steps=4, checkpoint_every=2, out=tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]


def test_interrupt_while_writing(tmp_path, monkeypatch):
    """An interrupt while a checkpoint is written is one."""

    def interrupted(*args, **options):
        raise CheckpointException("write", {0: (KeyboardInterrupt(), None)})

    monkeypatch.setattr(checkpoints, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        quiet(pcd(), data(), steps=4, out=tmp_path)


def test_extra_state_is_refused(tmp_path):
    """Extra state of an energy raises an error before the first step."""
    loss = pcd()
    loss.energy.__class__ = type("Extra", (type(loss.energy),), {"get_extra_state": lambda self: {"a": 1}})
    before = [p.clone() for p in loss.energy.parameters()]
    with pytest.raises(CheckpointError, match=r"keeps loss\.energy\._extra_state, which is no tensor"):
        quiet(loss, data(), steps=2, out=tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(before, loss.energy.parameters(), strict=True))


def test_resuming_to_fewer_steps(tmp_path):
    """Resuming to fewer steps than there are raises an error."""
    quiet(pcd(), data(), steps=5, out=tmp_path)
    with pytest.raises(UsageError, match="already has 5 steps, more than the 3"):
        quiet(pcd(), data(), steps=3, out=tmp_path, resume=True)


def test_other_component_is_refused(tmp_path):
    """A checkpoint of another component raises an error."""
    quiet(pcd(), data(), steps=3, out=tmp_path)
    energy, sampler = ebmcore.create_energy("mlp", (2,), hidden=(8,)), ebmcore.create_sampler("langevin", step_size=0.05)
    with pytest.raises(CheckpointError, match="with the loss ebm-plugin-pcd:pcd, not with ebm-plugin-cd:cd"):
        quiet(ebmcore.create_loss("cd", energy, sampler), data(), steps=5, out=tmp_path, resume=True)


def test_data_and_observers_are_recorded(tmp_path):
    """The data set and the observers are recorded too."""

    class Plugin:
        @ebmcore.hookimpl
        def ebmcore_register(self, register):
            register.observer("listening", type("Listening", (BaseObserver,), {}))

    moons = ebmcore.create_dataset("two-moons", n_train=50)
    with ebmcore.temporary_plugin(Plugin(), "hearing"):
        observers = [ebmcore.create_observer("listening")]
        _, info = read_checkpoint(quiet(pcd(), moons, steps=1, out=tmp_path, observers=observers).checkpoint)
    assert info["components"]["dataset"]["id"] == "ebm-plugin-datasets:two-moons"
    assert [o["id"] for o in info["components"]["observers"]] == ["hearing:listening"]


def rewrite(checkpoint, change):
    """Change what a checkpoint says of itself, as somebody would who knows how its digests are made."""
    info = json.loads((checkpoint / "checkpoint.json").read_text())
    del info["sha256_of_this"]
    change(info)
    info["bytes"] = {name: (checkpoint / name).stat().st_size for name in info["bytes"]}
    info["sha256"] = {name: hashlib.sha256((checkpoint / name).read_bytes()).hexdigest() for name in info["sha256"]}
    info["sha256_of_this"] = hashlib.sha256(json.dumps(info, sort_keys=True).encode()).hexdigest()
    (checkpoint / "checkpoint.json").write_text(json.dumps(info))


def test_other_version_is_a_warning(tmp_path):
    """Another version of a component is a warning."""
    checkpoint = quiet(pcd(), data(), steps=2, out=tmp_path).checkpoint
    rewrite(checkpoint, lambda info: info["components"]["loss"].update(version="0.0.1"))
    with pytest.warns(UserWarning, match=r"was written with ebm-plugin-pcd 0\.0\.1, but 0\.1\.0 is installed"):
        quiet(pcd(), data(), steps=3, out=tmp_path, resume=True)


@pytest.mark.parametrize("change", [lambda info: info.pop("components"), lambda info: info.update(components={"loss": 3})])
def test_checkpoint_without_origins_is_refused(tmp_path, change):
    """A checkpoint that does not say what wrote it raises an error."""
    checkpoint = quiet(pcd(), data(), steps=1, out=tmp_path).checkpoint
    rewrite(checkpoint, change)
    with pytest.raises(CheckpointError, match="does not say which components wrote it"):
        quiet(pcd(), data(), steps=2, out=tmp_path, resume=True)


def test_weights_are_read_by_safetensors(tmp_path):
    """A reader of safetensors files that knows nothing of ebmcore reads the parameters of a run."""
    loss = pcd()
    checkpoint = quiet(loss, data(), steps=3, out=tmp_path).checkpoint
    read = load_file(checkpoint / SHARD)
    assert all(torch.equal(read[f"loss.energy.{name}"], p) for name, p in loss.energy.named_parameters())


def test_checkpoint_of_version_one_is_refused(tmp_path):
    """A checkpoint of version 0.1, whose index is a pickle, is refused; nothing of it is loaded."""
    checkpoint = quiet(pcd(), data(), steps=2, out=tmp_path / "run").checkpoint
    trace = tmp_path / "trace"
    (checkpoint / ".metadata").write_bytes(pickle.dumps(Malice(os.mkdir, str(trace))))
    with pytest.raises(CheckpointError, match=r"written by version 0\.1, in a format that can run code, and is not read"):
        quiet(pcd(), data(), steps=3, out=tmp_path / "run", resume=True)
    assert not trace.exists()


class Malice:
    """What an attacker would pickle."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("file", [SHARD, "checkpoint.json"])
@pytest.mark.parametrize("loads", [pickle.dumps, lambda payload: torch_saved(payload)])
def test_pickle_in_place_of_a_file_is_refused(tmp_path, file, loads):
    """A pickle in the place of a file of the checkpoint is refused and nothing of it runs, though its digest fits."""
    checkpoint = quiet(pcd(), data(), steps=2, out=tmp_path / "run").checkpoint
    trace = tmp_path / "trace"
    (checkpoint / file).write_bytes(loads(Malice(os.mkdir, str(trace))))
    if file == SHARD:
        rewrite(checkpoint, lambda info: None)
    with pytest.raises(CheckpointError, match="is damaged"):
        quiet(pcd(), data(), steps=3, out=tmp_path / "run", resume=True)
    assert not trace.exists()


def torch_saved(payload):
    buffer = io.BytesIO()
    torch.save(payload, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("offsets", "reason"),
    [
        ([2**40, 0], "do not make up a tensor"),
        ([-1, 0], "do not make up a tensor"),
        ([0], "is damaged"),
        ("ab", "is damaged"),
        (None, "is damaged"),
    ],
)
def test_claim_to_a_huge_tensor_is_refused(tmp_path, offsets, reason):
    """A file that claims to hold a part of a huge tensor is refused before memory is taken."""
    checkpoint = quiet(pcd(), data(), steps=2, out=tmp_path).checkpoint
    tensors = load_file(checkpoint / SHARD)
    places = {name: {"saved_offsets": [0] * t.ndim} for name, t in tensors.items()}
    places["loss.chains.x"] = {"saved_offsets": offsets}
    save_file(tensors, checkpoint / SHARD, {"DCP_SHARDING_INFO": json.dumps(places)})
    rewrite(checkpoint, lambda info: None)
    with pytest.raises(CheckpointError, match=reason):
        read_checkpoint(checkpoint)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"seed": 1}, "seed=0, not 1"),
        ({"batch_size": 8}, "batch_size=16, not 8"),
        ({"optimizer": "sgd"}, "optimizer='adam', not 'sgd'"),
        ({"accumulate": 2}, "accumulate=1, not 2"),
    ],
)
def test_checkpoint_is_bound_to_its_options(tmp_path, options, name):
    """A run that is resumed with another seed or another such option is refused by name."""
    quiet(pcd(), data(), steps=2, out=tmp_path)
    with pytest.raises(CheckpointError, match=f"is of a run with {name}"):
        quiet(pcd(), data(), steps=4, out=tmp_path, resume=True, **options)


@pytest.mark.parametrize("option", ["loss.k_steps", "loss.restart_prob", "sampler.step_size"])
def test_checkpoint_is_bound_to_its_components(tmp_path, option):
    """A run that is resumed from Python with another option of the loss or the sampler is refused by name."""
    quiet(pcd(), data(), steps=2, out=tmp_path)
    part, _, name = option.partition(".")
    other = pcd()
    setattr(other if part == "loss" else other.sampler, name, 1)
    other.k_steps += option == "loss.k_steps"
    with pytest.raises(CheckpointError, match=f"is of a run with {option}="):
        quiet(other, data(), steps=4, out=tmp_path, resume=True)


def test_checkpoint_is_bound_to_its_data(tmp_path):
    """A run that is resumed on other data is refused."""
    quiet(pcd(), data(), steps=2, out=tmp_path)
    other = data()
    other[-1, -1] += 1e-6
    with pytest.raises(CheckpointError, match="is of a run on other data"):
        quiet(pcd(), other, steps=4, out=tmp_path, resume=True)


def test_renamed_checkpoint_is_refused(tmp_path):
    """A checkpoint under the name of another step is refused."""
    checkpoint = quiet(pcd(), data(), steps=2, out=tmp_path).checkpoint
    checkpoint.rename(checkpoint.with_name("step-00000007"))
    with pytest.raises(CheckpointError, match="it is of step 2: give it its name step-00000002 again"):
        quiet(pcd(), data(), steps=9, out=tmp_path, resume=True)


def test_newest_checkpoint_has_most_steps(tmp_path):
    """From step 10^8 on names are longer, and the newest one is not the last in alphabetical order."""
    for name in ("step-99999999", "step-100000000", "step-00000007"):
        (tmp_path / name).mkdir()
    assert latest_checkpoint(tmp_path).name == "step-100000000"


def test_added_file_is_refused(tmp_path):
    """A file that somebody added to a checkpoint is not read as a part of it."""
    checkpoint = quiet(pcd(), data(), steps=2, out=tmp_path).checkpoint
    save_file({"loss.energy.net.1.weight": torch.zeros(8, 2)}, checkpoint / "more.safetensors")
    with pytest.raises(CheckpointError, match=r"more\.safetensors was added or removed"):
        read_checkpoint(checkpoint)


def test_asynchronous_checkpoints_are_the_same(tmp_path):
    """Checkpoints that are written during training hold the state of their step."""
    options = {"steps": 30, "checkpoint_every": 7}
    quiet(pcd(), data(), out=tmp_path / "a", **options)
    quiet(pcd(), data(), out=tmp_path / "b", checkpoint_async=True, **options)
    for name in ("step-00000028", "step-00000030"):
        a, b = (read_checkpoint(tmp_path / run / "checkpoints" / name)[0] for run in ("a", "b"))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_asynchronous_checkpoint_that_fails_is_reported(tmp_path, monkeypatch):
    """A checkpoint that cannot be written in the background stops training, with the last good one."""

    def full(directory):
        if "00000004" in directory.name:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "_flush_to_disk", full)
    with pytest.raises(CheckpointError, match=r"step-00000004 cannot be written \(.*No space left.*step-00000002"):
        quiet(pcd(), data(), steps=100, checkpoint_every=2, out=tmp_path, checkpoint_async=True)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]


def test_run_is_written_where_directories_cannot_be_opened(tmp_path, monkeypatch):
    """As on Windows: a directory cannot be opened, and only a file that is open to write can be synced."""
    opened, synced, read_only = os.open, os.fsync, set()

    def windows_open(path, flags, *rest, **more):
        if os.path.isdir(path):
            raise PermissionError(13, "Permission denied", str(path))
        descriptor = opened(path, flags, *rest, **more)
        (read_only.discard if flags & (os.O_WRONLY | os.O_RDWR) else read_only.add)(descriptor)
        return descriptor

    def windows_fsync(descriptor):
        if descriptor in read_only:
            raise OSError(9, "Bad file descriptor")
        synced(descriptor)

    monkeypatch.setattr(shutil, "_use_fd_functions", False)
    monkeypatch.setattr(os, "open", windows_open)
    monkeypatch.setattr(os, "fsync", windows_fsync)
    quiet(pcd(), data(), steps=4, out=tmp_path, checkpoint_every=2)
    assert quiet(pcd(), data(), steps=6, out=tmp_path, resume=True).step == 6


def test_checkpoint_written_while_looking(tmp_path, monkeypatch):
    """A checkpoint that another process finishes between the two looks at the directory is no stranger in it."""
    listed = checkpoints._checkpoints

    def slow(directory):
        before = listed(directory)
        (directory / "step-00000004").mkdir()
        return before

    (tmp_path / "step-00000002").mkdir()
    monkeypatch.setattr(checkpoints, "_checkpoints", slow)
    assert latest_checkpoint(tmp_path) == tmp_path / "step-00000002"
