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
