"""Runs that a signal ends."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from small_runs import data, pcd, quiet, same_state
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from ebmcore.training import BaseObserver, InterruptedRun, latest_checkpoint, read_info


@pytest.fixture(autouse=True)
def _usual_handlers():
    """Those of a process in the foreground; a shell tells one in the background to ignore Ctrl-C."""
    before = {number: signal.getsignal(number) for number in ENDED}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


ENDED = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


class Signalled(torch.nn.Module):
    """Raises a signal in one of its forward passes, in the middle of a step."""

    def __init__(self, energy, at, signum):
        super().__init__()
        self.energy = energy
        self.raised = (signum if call == at else None for call in itertools.count(1))

    def forward(self, x):
        if (signum := next(self.raised)) is not None:
            signal.raise_signal(signum)
        return self.energy(x)


def signalled(at, signum=signal.SIGTERM):
    loss = pcd()
    loss.energy = Signalled(loss.energy, at, signum)
    return loss


@pytest.mark.parametrize("signum", ENDED)
@pytest.mark.parametrize("at", [2, 3, 9, 10, 11])
def test_signal_costs_no_step(tmp_path, signum, at):
    """The step is completed and saved, and the run resumes as if nothing had been."""
    whole = signalled(0)
    quiet(whole, data(), steps=8, log_every=3)
    before = {number: signal.getsignal(number) for number in ENDED}
    with pytest.raises(InterruptedRun, match=f"ended by {ENDED[signum]} after step ") as caught:
        quiet(signalled(at, signum), data(), steps=8, log_every=3, out=tmp_path)
    assert caught.value.signum == signum
    assert {number: signal.getsignal(number) for number in ENDED} == before
    checkpoint = latest_checkpoint(tmp_path / "checkpoints")
    assert f"step {read_info(checkpoint)['step']}; {checkpoint} is complete" in str(caught.value)
    assert read_info(checkpoint)["step"] == at // 2  # the first forward is the probe, and a step has two
    resumed = signalled(0)
    quiet(resumed, data(), steps=8, log_every=3, out=tmp_path, resume=True)
    assert same_state(whole, resumed)


@pytest.mark.parametrize("at", [4, 8])
def test_signal_ends_a_measurement(tmp_path, at):
    """It may take longer than the time that is left: the step is saved without it, also the last one, and the best one stays."""

    def measure(energy):
        measured.append(len(measured) + 1)
        if len(measured) == at // 2 + 1:  # the first step is measured too
            signal.raise_signal(signal.SIGTERM)
            measured.append("never")
        return {"quality": -float(len(measured))}

    measured = []
    options = {"steps": 8, "checkpoint_every": 2, "keep": "best quality", "out": tmp_path, "measure": measure}
    with pytest.raises(InterruptedRun, match=f"ended by SIGTERM after step {at}; .*step-0000000{at} is complete"):
        quiet(pcd(), data(), **options)
    assert measured[-1] != "never"
    assert latest_checkpoint(tmp_path / "checkpoints").name == f"step-0000000{at}"
    assert (tmp_path / "checkpoints/step-00000002").exists()
    assert quiet(pcd(), data(), **options, resume=True).step == 8


class Waiting(Dataset):
    """Raises a signal in all processes of a group while its fourth example is read."""

    def __len__(self):
        return 8

    def __getitem__(self, i):
        if i == 4 and get_worker_info() is not None:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)
        return torch.full((2,), float(i))


@pytest.mark.parametrize("loader", [False, True])
def test_readers_outlive_signals(loader):
    """The step in progress needs their data; signals to all processes of a run reach them too."""
    examples = DataLoader(Stream(Waiting()), 4, num_workers=1) if loader else Waiting()
    assert quiet(pcd(), examples, steps=4, batch_size=4, num_workers=0 if loader else 1).step == 4


class Stream(IterableDataset):
    def __init__(self, items):
        self.items = items

    def __iter__(self):
        return (self.items[i] for i in range(len(self.items)))


def test_second_signal_ends_at_once(tmp_path, monkeypatch):
    """A second Ctrl-C does what it does without a run; one that a launcher passes on a moment later does not count."""
    monkeypatch.setattr(sys.modules["ebmcore.training.stopping"], "_REPEATED", 0.05)
    seen = []

    class Twice(BaseObserver):
        def on_log(self, run, metrics):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            seen.append("one")
            time.sleep(0.1)
            signal.raise_signal(signal.SIGINT)
            seen.append("never")

    with pytest.raises(KeyboardInterrupt) as caught:
        quiet(pcd(), data(), steps=8, log_every=3, out=tmp_path, observers=[Twice()])
    assert not isinstance(caught.value, InterruptedRun)
    assert seen == ["one"]


def test_signal_without_a_directory_ends_at_once():
    """Where nothing is written there is nothing to wait for."""
    with pytest.raises(KeyboardInterrupt) as caught:
        quiet(signalled(5, signal.SIGINT), data(), steps=8)
    assert not isinstance(caught.value, InterruptedRun)


def test_run_in_a_thread_leaves_signals_alone(tmp_path):
    """Only the main thread has signals; a run in another one trains."""
    steps = []
    thread = threading.Thread(target=lambda: steps.append(quiet(pcd(), data(), steps=2, out=tmp_path).step))
    thread.start()
    thread.join()
    assert steps == [2]


@pytest.mark.parametrize("signum", ENDED)
def test_command_says_what_there_is(tmp_path, signum):
    """The command ends with the signal's status and one line, and the checkpoint that it names is there."""
    out = tmp_path / "run"
    options = (
        "train --energy mlp --sampler langevin --sampler.step_size 0.05 --loss pcd --data two-moons --progress false "
        f"--steps 1000000 --checkpoint_every 1000000 --out {out}"
    )
    child = subprocess.Popen(
        [sys.executable, "-m", "ebmcore", *options.split()],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    for _ in range(600):
        if (out / "metrics.csv").exists() and len((out / "metrics.csv").read_text().splitlines()) > 3:
            break
        time.sleep(0.1)
    child.send_signal(signum)
    _, said = child.communicate(timeout=60)
    assert child.returncode == 128 + signum
    checkpoint = latest_checkpoint(out / "checkpoints")
    assert said.splitlines() == [
        f"ebmcore: ended by {ENDED[signum]} after step {read_info(checkpoint)['step']}; {checkpoint} is complete, from which to "
        "resume"
    ]
    logged = int((out / "metrics.csv").read_text().splitlines()[-1].partition(",")[0])
    assert logged <= read_info(checkpoint)["step"] < logged + 10


@pytest.mark.parametrize("own", [signal.SIG_IGN, lambda *_: None])
def test_signals_of_the_user_are_left_alone(tmp_path, own):
    """One that is ignored, or has a handler, does not end the run."""
    signal.signal(signal.SIGTERM, own)
    assert quiet(signalled(5), data(), steps=8, out=tmp_path).step == 8
    assert signal.getsignal(signal.SIGTERM) == own


def test_signal_in_the_last_step_is_no_interruption(tmp_path):
    assert quiet(signalled(17), data(), steps=8, out=tmp_path).step == 8


@pytest.mark.parametrize(("launched", "said"), [({}, "ebmcore: ended by SIGTERM\n"), ({"LOCAL_RANK": "0"}, "")])
def test_signal_while_a_command_starts(launched, said):
    """The command ends by the signal, with one line unless a launcher has started the process."""
    code = (
        "import signal, ebmcore.cli.listing\n"
        "ebmcore.cli.listing.list = lambda _: signal.raise_signal(signal.SIGTERM)\n"
        "ebmcore.cli.main(['list'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | launched,
    )
    assert (done.returncode, done.stderr) == (-signal.SIGTERM, said)
