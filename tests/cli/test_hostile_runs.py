"""Runs from strangers: each file replaced, linked or damaged, and checkpoints forged by somebody who knows their digests.

On any content of a run, a command ends within two seconds, with one line if it fails. It reads, writes and removes nothing
outside of the run, and runs no code of it.
"""

from __future__ import annotations

import gc
import hashlib
import importlib
import json
import os
import shutil
import socket
import stat
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from commands import RBM, forge
from safetensors.torch import load_file, save, save_file

import ebmcore
from ebmcore.cli import main
from ebmcore.errors import EbmcoreError
from ebmcore.training import latest_checkpoint, read_checkpoint

pytestmark = pytest.mark.filterwarnings("default")  # a warning is none of an error for a command

SHARD = "shard-00001-model-00001-of-00001.safetensors"
OLD, LAST = "checkpoints/step-00000002", "checkpoints/step-00000004"
OPTIONS = f"{RBM} --loss pcd --loss.n_chains 10 --optimizer adam --metric exact-ll --accelerator cpu --checkpoint_every 2"

ROADS = {
    "resume": "train --resume run --steps 5",
    "auto": f"train {OPTIONS} --steps 5 --out run --resume auto",
    "evaluate": "evaluate run --metric exact-ll",
    "sample": "sample run --out a.npy -n 2 --steps 1",
    "score": "score run ../x.npy --out a.csv",
    "export": "export run --out model",
    "from": f"train {OPTIONS} --steps 1 --from run --out new",
}

# What each road takes from the run; it does not read the rest.
CHECKPOINT = {"config.yaml", "checkpoints", LAST, f"{LAST}/checkpoint.json", f"{LAST}/{SHARD}"}
TAKES = {
    "resume": CHECKPOINT | {"metrics.csv", "evaluation.json", ".lock", "tensorboard"},
    "auto": CHECKPOINT | {"metrics.csv", "evaluation.json", ".lock", "tensorboard"},
    "evaluate": CHECKPOINT | {"evaluation.json"},
    "sample": CHECKPOINT,
    "score": CHECKPOINT,
    "export": CHECKPOINT | {"evaluation.json"},
    "from": CHECKPOINT - {"config.yaml"},
}
FILES = [
    "config.yaml", "metrics.csv", "evaluation.json", ".lock", "tensorboard/events", f"{OLD}/checkpoint.json", f"{OLD}/{SHARD}",
    f"{LAST}/checkpoint.json", f"{LAST}/{SHARD}",
]  # fmt: skip
DIRECTORIES = ["checkpoints", OLD, LAST, "tensorboard"]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A run with two checkpoints, metrics, an evaluation, TensorBoard's files and a lock."""
    importlib.import_module("ebmcore.cli.options")
    for component in ebmcore.host.list_components():
        ebmcore.host.load(component.kind, component.id)
    folder = tmp_path_factory.mktemp("original") / "work"
    folder.mkdir()
    np.save(folder.parent / "x.npy", np.zeros((2, 1, 2, 2), dtype=np.float32))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for steps in (2, 4):  # resumed once, as the modules of a first run are loaded only then
            assert main(f"train {OPTIONS} --steps {steps} --out run --resume auto".split()) == 0
        for road in ("evaluate", "sample", "score", "export"):
            assert main(ROADS[road].split()) == 0
    run = folder / "run"
    (run / "tensorboard").mkdir(exist_ok=True)  # where it is not installed
    for file in run.glob("tensorboard/events.*"):
        file.replace(run / "tensorboard/events")
    (run / "tensorboard/events").touch()
    assert sorted(str(p.relative_to(run)) for p in run.rglob("*")) == sorted([*FILES, *DIRECTORIES])
    gc.freeze()  # training collects garbage at its end, and looks through all of torch for it
    yield run
    gc.unfreeze()


class Watch:
    """The files that Python opens, changes or removes, and what it starts, while a folder is watched."""

    WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    PATHS = {"os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown",
        "os.utime", "shutil.rmtree", "shutil.move", "shutil.copyfile"}  # fmt: skip
    STARTS = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect", "pickle.find_class"}

    def __init__(self):
        self.folder = None
        self.found = []

    def __call__(self, event, arguments):
        if self.folder is None:
            return
        if event == "open":
            path, _, flags = arguments
            follows = not flags & (os.O_NOFOLLOW | os.O_EXCL)
            self._note(event, path, writes=bool(flags & self.WRITES), follows=follows)
        elif event in ("os.listdir", "os.scandir"):
            self._note(event, arguments[0], writes=False)
        elif event in self.PATHS:
            for path in arguments[:2]:
                self._note(event, path, writes=True, follows=event in ("os.truncate", "os.chmod", "os.chown", "os.utime"))
        elif event in self.STARTS:
            self.found.append((event, arguments))

    def _note(self, event, path, *, writes, follows=True):
        if not isinstance(path, (str, bytes, os.PathLike)):
            return
        path = Path(os.fsdecode(path))
        place = os.path.realpath(path) if follows else os.path.join(os.path.realpath(path.parent), path.name)
        allowed = place.startswith((f"{self.folder}/work/", f"{self.folder}/work")) or "__pycache__" in place
        if place.startswith(f"{self.folder}/outside") or (writes and not allowed):
            self.found.append((event, str(path)))


WATCH = Watch()
sys.addaudithook(WATCH)  # cannot be removed: it does nothing unless a folder is watched


class Case:
    """A copy of the run in ``work/run``, and another outside of it, whose files nobody may open."""

    def __init__(self, original, folder, capsys):
        self.original, self.folder, self.capsys = original, folder, capsys
        self.run, self.outside = folder / "work/run", folder / "outside"

        shutil.copytree(original, self.outside)
        shutil.copy(original.parent.parent / "x.npy", folder)
        self.run.parent.mkdir()
        os.chdir(self.run.parent)

    def renew(self):
        for path in self.run.parent.iterdir():
            remove(path)
        shutil.copytree(self.original, self.run)

    def command(self, road):
        """Its exit status; a status of 2 comes with one line."""
        before = self._outside()
        for path in before:  # a read sets the time of access
            os.utime(path, ns=(1, path.stat().st_mtime_ns), follow_symlinks=False)
        self.capsys.readouterr()
        WATCH.found, WATCH.folder = [], self.folder
        started = time.perf_counter()
        try:
            status = main(ROADS[road].split())
        finally:
            WATCH.folder = None
        taken = time.perf_counter() - started
        assert not WATCH.found
        assert all(path.stat().st_atime_ns == 1 for path in before if path.is_file())
        assert self._outside() == before
        error = self.capsys.readouterr().err
        assert taken < 2
        assert status in (0, 2), error
        if status:
            assert error.startswith("ebmcore: ")
            assert error.endswith("\n")
            assert error[:-1].isprintable(), error  # which a newline is not
        return status

    def _outside(self):
        return {p: p.read_bytes() if p.is_file() else None for p in sorted(self.outside.rglob("*"))}


@pytest.fixture
def case(original, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Case(original, tmp_path.resolve(), capsys)


def remove(path):
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def link(path, other):
    remove(path)
    path.symlink_to(other)


def relative_link(path, other):
    remove(path)
    path.symlink_to(os.path.relpath(other, path.parent))


def dangling_link(path, other):
    remove(path)
    path.symlink_to(other.with_name("missing"))


def link_to_itself(path, other):
    remove(path)
    path.symlink_to(path.name)


def link_to_device(path, other):
    remove(path)
    path.symlink_to("/dev/zero")


def hard_link(path, other):
    remove(path)
    os.link(other, path)


def pipe(path, other):
    remove(path)
    os.mkfifo(path)


def device(path, other):
    remove(path)
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("only root makes devices")


def unix_socket(path, other):
    remove(path)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(path))


def other_kind(path, other):
    was_directory = path.is_dir()
    remove(path)
    path.touch() if was_directory else path.mkdir()


REPLACEMENTS = [
    link,
    relative_link,
    dangling_link,
    link_to_itself,
    link_to_device,
    hard_link,
    pipe,
    device,
    unix_socket,
    other_kind,
]


def roads_for(place):
    """The roads that take a file or directory, and one that does not."""
    return [road for road in ROADS if road != "auto" and (road != "evaluate" or place in TAKES[road])]


@pytest.mark.parametrize("place", [*FILES, *DIRECTORIES])
@pytest.mark.parametrize("attack", REPLACEMENTS)
def test_replaced_file_is_refused(case, attack, place):
    """Whatever stands in the place of a file or directory is refused by each road that takes it, and ignored by the others."""
    if attack is hard_link and place in DIRECTORIES:
        pytest.skip("directories have no hard links")
    for road in roads_for(place):
        case.renew()
        attack(case.run / place, case.outside / place)
        is_gone = place == LAST and not (case.run / place).is_dir()  # then the checkpoint before is the last
        assert case.command(road) == (2 if place in TAKES[road] and not is_gone else 0), road


@pytest.mark.parametrize("place", ["config.yaml", ".lock", "checkpoints", f"{LAST}/checkpoint.json", f"{LAST}/{SHARD}"])
@pytest.mark.parametrize("attack", [link, dangling_link, pipe, other_kind])
def test_automatic_resuming_refuses_it_too(case, attack, place):
    """``--resume auto`` refuses what ``--resume`` refuses, and starts no run in its place."""
    case.renew()
    attack(case.run / place, case.outside / place)
    assert case.command("auto") == 2


def truncated(content):
    return content[: len(content) // 2]


def emptied(content):
    return b""


def random_bytes(content):
    return hashlib.shake_128(content).digest(len(content) + 100)


def zeros(content):
    return bytes(len(content) + 1)


def escapes(content):
    return b"\x1b]0;x\a\x9b31m: \xe2\x80\xae\n" * 3


def other_run(content):
    return b'{"energy": "rbm"}'


def first_bit(content):
    return bytes([content[0] ^ 1]) + content[1:]


def middle_bit(content):
    k = len(content) // 2
    return content[:k] + bytes([content[k] ^ 4]) + content[k + 1 :]


def last_bit(content):
    return content[:-1] + bytes([content[-1] ^ 128])


DAMAGES = [truncated, emptied, random_bytes, zeros, escapes, other_run, first_bit, middle_bit, last_bit]


@pytest.mark.parametrize("place", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_file_is_refused(case, damage, place):
    """Damage of a checkpoint is refused; of the other files it is refused or harmless."""
    for road in roads_for(place):
        case.renew()
        path = case.run / place
        path.write_bytes(damage(path.read_bytes() or b"x"))
        status = case.command(road)
        if place.startswith(LAST):
            assert status == 2, road
        if place not in TAKES[road]:
            assert status == 0, road


@pytest.mark.parametrize("place", FILES)
def test_terabyte_is_refused(case, place):
    """A sparse file of a terabyte is refused before it is read, unless its content does not matter."""
    for road in roads_for(place):
        case.renew()
        os.truncate(case.run / place, 2**40)
        assert case.command(road) == (2 if place in TAKES[road] - {".lock"} else 0), road


@pytest.mark.parametrize(
    "name", ["extra.safetensors", "..safetensors", "\x1b[31m", ".metadata", "model.safetensors.index.json"]
)
@pytest.mark.parametrize("make", [Path.touch, Path.mkdir, os.mkfifo])
def test_added_file_is_refused(case, name, make):
    """A checkpoint with one more file is refused."""
    for road in ROADS:
        case.renew()
        make(case.run / LAST / name)
        assert case.command(road) == 2, road


@pytest.mark.parametrize(
    "name", ["step-00000009", "step-99999999", "step-\x1b[31m", "step-z\x1b]0;x\a", "step-", "step-0000000٤"]
)
@pytest.mark.parametrize("make", ["directory", "link", "copy", "file"])
def test_added_checkpoint_is_not_read(case, name, make):
    """A directory beside the checkpoints of a run is refused where it would be the last one, or has no checkpoint's name."""
    for road in ("resume", "sample", "from"):
        case.renew()
        path = case.run / "checkpoints" / name
        if make == "directory":
            path.mkdir()
        elif make == "link":
            path.symlink_to(case.outside / LAST)
        elif make == "copy":
            shutil.copytree(case.run / LAST, path)
        else:
            path.touch()
        assert case.command(road) == (2 if path.is_dir() else 0), road


@pytest.mark.parametrize("name", [".config.yaml.writing", ".writing-00000005", ".x.0123456789abcdef.writing",
    ".step-00000005.writing",
    ".\x1b[31m.writing", "a.writing"])  # fmt: skip
@pytest.mark.parametrize("attack", [link, dangling_link, hard_link, pipe, "directory"])
def test_temporary_names_are_not_taken(case, name, attack):
    """What lies under the name of a temporary file is not written to, and what it points to is not removed."""
    case.renew()
    for parent in (case.run, case.run / "checkpoints", case.run / LAST.replace("4", "2")):
        path = parent / name
        if attack == "directory":
            (path / "a/b").mkdir(parents=True)
            (path / "a/outside").symlink_to(case.outside)
        else:
            path.touch()
            attack(path, case.outside / "config.yaml")
    assert case.command("resume") == 0
    assert not [*case.run.glob(".*.writing"), *case.run.glob("checkpoints/.*.writing")]


def test_samples_follow_no_link(case):
    """The file of samples is written under a name of its own, and no link is followed."""
    case.renew()
    Path(".writing-a.npy").symlink_to(case.outside / "config.yaml")
    Path("a.npy").symlink_to(case.outside / "missing")
    assert case.command("sample") == 0
    assert not Path("a.npy").is_symlink()


def test_deep_directories_are_refused(case):
    """Directories that nobody can remove in one go end in one line too."""
    case.renew()
    deep = case.run / ".x.00.writing"
    deep.mkdir()
    here = os.open(deep, os.O_RDONLY)
    for _ in range(1200):
        os.mkdir("a", dir_fd=here)
        inner = os.open("a", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)
    assert case.command("resume") == 2
    subprocess.run(["rm", "-r", deep], check=True)  # pytest could not


def test_forged_checkpoint_is_read(case):
    """What these tests change besides is what is refused."""
    for road in ROADS:
        case.renew()
        forge(case.run / LAST)
        assert case.command(road) == 0


VALUES = {
    "null": None, "true": True, "number": 7, "negative": -1, "large": 2**63, "real": 0.5, "nan": float("nan"), "text": "text",
    "parent": "../../../outside/config.yaml", "escape": "\x1b]0;x\a", "shell": "x; reboot", "list": [], "mapping": {},
    "itself": {"../../outside": "../x"}, "deep": json.loads("[" * 60 + "]" * 60),
}  # fmt: skip
KEYS = [
    ("format",), ("step",), ("ebmcore",), ("components",), ("components", "loss"), ("components", "loss", "id"),
    ("components", "loss", "distribution"), ("components", "loss", "version"), ("components", "observers"), ("run",),
    ("run", "options"), ("run", "options", "seed"), ("run", "options", "data"), ("run", "options", "data", "side"),
    ("run", "options", "loss", "k_steps"), ("run", "options", "optimizer"), ("run", "data"), ("optimizer_groups",),
    ("optimizer_groups", 0), ("bytes",), ("bytes", SHARD), ("sha256",), ("sha256", SHARD),
    ("examples",), ("examples", "shape"), ("examples", "state_space"), ("examples", "low"), ("examples", "n_classes"),
]  # fmt: skip
# Values with a meaning: no origin, another version (a warning), no observers, what an optimizer keeps that has no name here.
MEANINGS = {
    ("components",): {"mapping"}, ("components", "loss"): {"list"}, ("components", "observers"): {"list"},
    ("components", "loss", "id"): {"null"}, ("components", "loss", "distribution"): {"null"},
    ("components", "loss", "version"): {"null", "text"}, ("ebmcore",): {"null", "text"},
    ("run", "options", "loss", "k_steps"): {"true"}, ("optimizer_groups", 0): {"mapping", "itself"},
    ("examples", "low"): {"number", "negative", "large", "real"},
    ("examples", "state_space"): {"null"}, ("examples", "n_classes"): {"null", "number", "large"},
}  # fmt: skip


@pytest.mark.parametrize("key", KEYS, ids=lambda key: ".".join(map(str, key)))
def test_wrong_type_in_a_checkpoint_is_refused(case, key):
    """A value of each wrong type at each key is refused, although the digests fit."""
    for label, value in VALUES.items():
        case.renew()

        def change(info, value=value):
            part = info
            for step in key[:-1]:
                part = part[step]
            part[key[-1]] = value

        forge(case.run / LAST, change)
        status = case.command("resume" if key[0] == "optimizer_groups" else "evaluate")
        assert status == (0 if label in MEANINGS.get(key, ()) else 2), label


@pytest.mark.parametrize("key", ["format", "step", "components", "run", "optimizer_groups", "bytes", "sha256", "ebmcore"])
def test_missing_key_is_refused(case, key):
    case.renew()
    forge(case.run / LAST, lambda info: info.pop(key) and None)
    assert case.command("resume") == 2


@pytest.mark.parametrize("info", [[], "text", 3, None, [[]]])
def test_record_of_another_type_is_refused(case, info):
    for road in ROADS:
        case.renew()
        (case.run / LAST / "checkpoint.json").write_text(json.dumps(info))
        assert case.command(road) == 2


@pytest.mark.parametrize("group", [{"lr": "x"}, {"lr": None}, {"lr": []}, {"params": []}, {"params": [0]}, {"betas": [1.0, 1.0]},
    {"betas": [float("nan")] * 2}, {"eps": "x"}, {"amsgrad": True}, {"lr": float("nan")}, {"lr": 1e308},
    {"weight_decay": {}}])  # fmt: skip
def test_hostile_options_of_the_optimizer_are_refused(case, group):
    """An optimizer keeps the options of the run; its learning rate is that of the schedule, whatever the checkpoint says."""
    case.renew()
    forge(case.run / LAST, lambda info: info.update(optimizer_groups=[group]))
    assert case.command("resume") == (0 if "lr" in group else 2)


def header(tensors, metadata=None, data=b"", length=None):
    """A file of safetensors with a header of any content, which may contradict the data."""
    text = (
        json.dumps(({"__metadata__": metadata} if metadata else {}) | tensors) if isinstance(tensors, dict) else tensors
    ).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def claim(dtype="F32", shape=(4,), offsets=(0, 16)):
    return {"loss.chains.x": {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}}


def sharding(places):
    """A true file whose tensors claim to be parts of others."""
    return save(
        {"loss.chains.x": torch.ones(10, 4)},
        {"DCP_SHARDING_INFO": places if isinstance(places, str) else json.dumps(places)},
    )


def at(offsets):
    return sharding({"loss.chains.x": {"saved_offsets": offsets}})


HEADERS = {
    "nothing": b"",
    "length alone": struct.pack("<Q", 8),
    "huge header": header("{}", length=2**63),
    "header of a terabyte": header("{}", length=2**40),
    "negative length": b"\xff" * 8 + b"{}",
    "no tensors": header({}),
    "no JSON": header("nonsense"),
    "list": header("[]"),
    "nested": header("[" * 100_000),
    "data beyond the file": header(claim(offsets=(0, 2**40)), data=bytes(16)),
    "negative offsets": header(claim(offsets=(-16, 0)), data=bytes(16)),
    "offsets in reverse": header(claim(offsets=(16, 0)), data=bytes(16)),
    "hole": header(claim(offsets=(4, 20)), data=bytes(20)),
    "more data": header(claim(), data=bytes(64)),
    "overlap": header(claim() | {"loss.chains.id": claim()["loss.chains.x"]}, data=bytes(16)),
    "name twice": header('{"a":' + json.dumps(claim()["loss.chains.x"]) + "," + json.dumps(claim())[1:], data=bytes(16)),
    "same name twice": header(json.dumps(claim())[:-1] + "," + json.dumps(claim())[1:], data=bytes(16)),
    "huge shape": header(claim(shape=(2**62, 4)), data=bytes(16)),
    "overflowing shape": header(claim(shape=(2**32, 2**32, 1)), data=bytes(16)),
    "negative shape": header(claim(shape=(-4,)), data=bytes(16)),
    "many dimensions": header(claim(shape=(1,) * 50_000 + (4,)), data=bytes(16)),
    "no values": header(claim(shape=(0, 2**40), offsets=(0, 0))),
    "unknown dtype": header(claim(dtype="PICKLE"), data=bytes(16)),
    "small dtype": header(claim(dtype="F4", shape=(32,)), data=bytes(16)),
    "parent in a name": header({"../../x": claim()["loss.chains.x"]}, data=bytes(16)),
    "escape in a name": header({"\x1b[31m": claim()["loss.chains.x"]}, data=bytes(16)),
    "many tensors": header({str(i): {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(3000)}),
    "no sharding": sharding("nonsense"),
    "sharding of another type": sharding("[]"),
    "nested sharding": sharding("[" * 100_000),
    "sharding of no tensor": sharding({"x": 1}),
    "no offsets": sharding({"loss.chains.x": {}}),
    "offsets of text": at("ab"),
    "offsets of null": at(None),
    "one offset": at([0]),
    "many offsets": at([0] * 100_000),
    "huge offsets": at([2**62, 0]),
    "offset of 100 digits": at([10**100, 0]),
    "offset of thousands of digits": sharding('{"loss.chains.x": {"saved_offsets": [' + "1" * 10_000 + ", 0]}}"),
    "real offset": at([0.5, 0]),
    "offset below 0": at([-1, 0]),
    "offsets that cancel": at([-5, 4]),
    "offset NaN": sharding('{"loss.chains.x": {"saved_offsets": [NaN, 0]}}'),
}


@pytest.mark.parametrize("content", HEADERS.values(), ids=HEADERS)
def test_hostile_tensors_are_refused(case, content):
    """A file of tensors that contradicts itself, claims more than it holds or holds other tensors is refused."""
    case.renew()
    (case.run / LAST / SHARD).write_bytes(content)
    forge(case.run / LAST)
    assert case.command("evaluate") == 2


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_weights_of_another_kind_are_refused(case, dtype):
    """Weights of another precision are a matter of arithmetic; those that are no real numbers are not of the run."""
    case.renew()
    tensors = load_file(case.run / LAST / SHARD)
    save_file(tensors | {WEIGHT: tensors[WEIGHT].to(dtype)}, case.run / LAST / SHARD)
    forge(case.run / LAST)
    for road in ("resume", "from"):
        assert case.command(road) == 2, road


@pytest.mark.parametrize("value", [float("nan"), 1e38])
def test_hostile_chains_are_harmless(case, value):
    """Chains that are NaN or huge are valid data: they are restarted, or they move, or training diverges."""
    case.renew()
    tensors = load_file(case.run / LAST / SHARD)
    save_file(tensors | {"loss.chains.x": tensors["loss.chains.x"] * 0 + value}, case.run / LAST / SHARD)
    forge(case.run / LAST)
    case.command("resume")


WEIGHT, BUFFER, ID = "loss.energy.weight", "optimizer.0.exp_avg", "loss.chains.id"
TENSORS = {
    "weight of another shape": (WEIGHT, lambda t: t.new_zeros(3, 3)),
    "number as weight": (WEIGHT, lambda t: t.new_zeros(())),
    "no weight": (WEIGHT, None),
    "NaN weight": (WEIGHT, lambda t: t * float("nan")),
    "buffer of another shape": (BUFFER, lambda t: t.new_zeros(3, 3)),
    "no buffer": (BUFFER, None),
    "NaN buffer": (BUFFER, lambda t: t * float("nan")),
    "steps of another shape": ("optimizer.0.step", lambda t: t.new_zeros(2)),
    "buffer of no parameter": ("optimizer.99.exp_avg", lambda t: torch.zeros(2)),
    "buffer without number": ("optimizer.x.exp_avg", lambda t: torch.zeros(2)),
    "buffer without name": ("optimizer", lambda t: torch.zeros(2)),
    "tensor of no part": ("evil.x", lambda t: torch.zeros(2)),
    "tensor of the loss": ("loss.__class__", lambda t: torch.zeros(2)),
    "ids twice": (ID, lambda t: t * 0),
    "fewer ids": (ID, lambda t: t[:3]),
    "number as ids": (ID, lambda t: t[0].clone()),
    "ids in rows": (ID, lambda t: t[:, None].clone()),
    "real ids": (ID, lambda t: t.double()),
    "no ids": (ID, None),
    "real ages": ("loss.chains.age", lambda t: t.double()),
    "chains of another shape": ("loss.chains.x", lambda t: t.new_zeros(10, 9)),
    "number as chains": ("loss.chains.x", lambda t: t.new_zeros(())),
    "step of another shape": ("loss._extra_state", lambda t: t.new_zeros(3)),
    "step NaN": ("loss._extra_state", lambda t: torch.tensor(float("nan"))),
}


@pytest.mark.parametrize(("name", "change"), TENSORS.values(), ids=TENSORS)
def test_other_tensors_are_refused(case, name, change):
    """Tensors that do not fit the run are refused at the latest in the first step; a trained run has no need of the optimizer."""
    case.renew()
    tensors = load_file(case.run / LAST / SHARD)
    old = tensors.pop(name, None)
    if change is not None:
        tensors[name] = change(old).contiguous()
    save_file(tensors, case.run / LAST / SHARD)
    forge(case.run / LAST)
    assert case.command("evaluate") == (2 if name.startswith("loss.") else 0)
    assert case.command("from") == (2 if name.startswith("loss.") else 0)
    assert case.command("resume") == 2


EDITS = {
    "seed": ("seed", 1), "k_steps": ("loss.k_steps", 2), "data": ("data.side", 3), "dataset": ("data.name", "two-moons"),
    "energy": ("energy.hidden", 5), "loss": ("loss.name", "cd"), "chains": ("loss.n_chains", 2**32),
    "optimizer": ("optimizer.name", "sgd"), "decay": ("optimizer.weight_decay", 0.5), "batch_size": ("batch_size", 5),
    "accumulate": ("accumulate", 2), "average": ("ema_decay", 0.9), "no seed": ("seed", None),
    "no k_steps": ("loss.k_steps", None),
}  # fmt: skip


@pytest.mark.parametrize(("key", "value"), EDITS.values(), ids=EDITS)
def test_edited_configuration_is_refused(case, key, value):
    """A run whose options were changed, or removed, after its checkpoint was written is refused; the message names the option."""
    for road in ("resume", "evaluate", "sample"):
        case.renew()
        path = case.run / "config.yaml"
        config = part = yaml.safe_load(path.read_text())
        *way, last = key.split(".")
        for step in way:
            part = part[step]
        part[last] = value
        if value is None:
            del part[last]
        path.write_text(yaml.safe_dump(config))
        assert case.command(road) == 2, road


@pytest.mark.parametrize("option", ["--seed 1", "--loss.k_steps 2", "--batch_size 5"])
def test_checkpoint_of_another_run_is_refused(case, option):
    """The checkpoint of a run with another option is refused, also beside those of the run itself."""
    case.renew()
    other = f"train {OPTIONS} --steps 6 --out other {option}"
    assert main(other.split()) == 0
    shutil.move("other/checkpoints/step-00000006", case.run / "checkpoints")
    shutil.rmtree("other")
    for road in ROADS.keys() - {"from"}:  # a new run may have other options
        assert case.command(road) == 2, road


def test_hostile_owner_is_one_line(case):
    """What the lock says of its owner is shown without escapes, whatever it holds."""
    import fcntl

    case.renew()
    (case.run / ".lock").write_bytes(b"\xff\x1b]0;x\a" * 50)
    with (case.run / ".lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert case.command("resume") == 2


@pytest.mark.parametrize("attack", REPLACEMENTS)
@pytest.mark.parametrize("place", sorted(CHECKPOINT - {"config.yaml", LAST}))
def test_python_refuses_it_too(case, attack, place):
    """`read_checkpoint` raises an error of ebmcore for what the commands refuse."""
    if attack is hard_link and place == "checkpoints":
        pytest.skip("directories have no hard links")
    case.renew()
    attack(case.run / place, case.outside / place)
    with pytest.raises(EbmcoreError):
        read_checkpoint(latest_checkpoint(case.run / "checkpoints"))
