"""Schedules: their values, their text, and what fit sets by them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_runs import data, pcd, quiet, same_state

import ebmcore
from ebmcore import BaseSampler
from ebmcore.errors import UsageError
from ebmcore.testing import Identity, Quadratic
from ebmcore.training import BaseObserver
from ebmcore.training.schedules import Constant, Cosine, Exponential, Linear, Piecewise, as_schedule, as_text

SCHEDULES = [Constant(0.3), Constant(), Linear(0.5, 0.1), Linear(end=0.2), Cosine(0.1, 0.01), Exponential(1.0, 0.1)]


class Scheduled(BaseObserver):
    """Reads an option at each step."""

    def __init__(self, read):
        self.read, self.values = read, []

    def on_log(self, run, metrics):
        self.values.append(self.read(run))


class Wrapped(BaseSampler):
    """A sampler with another one inside, and an option that it keeps under another name."""

    def __init__(self, inner: BaseSampler, scale: float = 1, hidden: float = 2.0):
        self.inner, self.scale, self._hidden = inner, scale, hidden

    def step(self, energy, state, *, generator=None):
        return self.inner.step(energy, state, generator=generator)


def values(loss, read, schedules, **options):
    watch = Scheduled(read)
    quiet(loss, data(), log_every=1, observers=[watch], schedules=schedules, **({"steps": 4} | options))
    return watch.values


@pytest.mark.parametrize("schedule", [*SCHEDULES, Piecewise([0.1, 0.01], [3])], ids=as_text)
def test_text_is_read_again(schedule):
    assert as_schedule("loss.x", as_text(schedule)) == schedule


@pytest.mark.parametrize("kind", [Linear, Cosine, Exponential])
def test_ramps_reach_their_ends(kind):
    ramp = kind(0.2, 0.1)
    assert (ramp(0, 10), ramp(10, 10)) == pytest.approx((0.2, 0.1))
    assert 0.1 < ramp(9, 10) < ramp(5, 10) < 0.2


def test_sampler_option_follows_schedule():
    seen = values(pcd(), lambda run: run.sampler.step_size, {"sampler.step_size": Linear(0.08, 0.04)})
    assert seen == pytest.approx([0.08, 0.07, 0.06, 0.05])


def test_values_are_put_back():
    loss = pcd()
    values(loss, lambda run: None, {"sampler.step_size": Linear(0.08, 0.04), "loss.energy_l2": Constant(0.5)})
    assert (loss.sampler.step_size, loss.energy_l2) == (0.05, 0.0)


def test_values_are_put_back_after_errors():
    class Failing(BaseObserver):
        def on_log(self, run, metrics):
            raise RuntimeError("no disk")

    loss = pcd()
    with pytest.raises(RuntimeError, match="no disk"):
        quiet(loss, data(), steps=2, log_every=1, schedules={"loss.energy_l2": "constant(1)"}, observers=[Failing()])
    assert loss.energy_l2 == 0.0


def test_nested_sampler_is_scheduled():
    loss = ebmcore.create_loss("cd", Quadratic((2,)), Wrapped(ebmcore.create_sampler("langevin", step_size=0.05)))
    seen = values(loss, lambda run: run.sampler.inner.step_size, {"sampler.inner.step_size": "linear(end=0.01)"})
    assert seen == pytest.approx([0.05, 0.04, 0.03, 0.02])


def test_whole_numbers_are_rounded():
    seen = values(pcd(), lambda run: run.loss.k_steps, {"loss.k_steps": Linear(1, 5)})
    assert seen == [1, 2, 3, 4]
    assert all(type(k) is int for k in seen)


def test_annotated_float_is_not_rounded():
    loss = ebmcore.create_loss("cd", Quadratic((2,)), Wrapped(Identity()))
    assert values(loss, lambda run: run.sampler.scale, {"sampler.scale": Linear(end=0.0)}) == [1.0, 0.75, 0.5, 0.25]


def test_function_is_a_schedule():
    assert values(pcd(), lambda run: run.loss.energy_l2, {"loss.energy_l2": lambda step, n: step / n}) == [
        0,
        0.25,
        0.5,
        0.75,
    ]


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("sampler.stepsize", "did you mean sampler.step_size"),
        ("sampler.clip_grad", "is no numeric option"),  # None
        ("loss.joint_forward", "is no numeric option"),
        ("optimizer.betas", "is no numeric option"),
        ("energy.slope", "is no numeric option"),
        ("loss.training", "is no numeric option"),
    ],
)
def test_wrong_option_is_refused(name, advice):
    loss = pcd()
    before = [p.clone() for p in loss.parameters()]
    with pytest.raises(UsageError, match=advice) as caught:
        quiet(loss, data(), steps=2, schedules={name: Constant(1.0)})
    assert "what can be scheduled: sampler.step_size, sampler.temperature, loss.k_steps" in str(caught.value)
    assert "optimizer.lr" in str(caught.value)
    assert all(torch.equal(a, b) for a, b in zip(before, loss.parameters(), strict=True))


def test_option_that_follows_from_another_is_refused():
    """A temperature that the noise makes cannot have a schedule; the noise can."""
    langevin = ebmcore.create_sampler("langevin", step_size=0.1, noise=0.5)
    loss = ebmcore.create_loss("cd", Quadratic((2,)), langevin)
    with pytest.raises(UsageError, match=r"schedule of sampler\.temperature: the temperature follows from noise"):
        quiet(loss, data(), steps=2, schedules={"sampler.temperature": Constant(1.0)})
    assert values(loss, lambda run: run.sampler.noise, {"sampler.noise": "linear(0.4, 0.2)"})[0] == 0.4


def test_option_under_another_name_is_refused():
    loss = ebmcore.create_loss("cd", Quadratic((2,)), Wrapped(Identity()))
    with pytest.raises(UsageError, match=r"'sampler\.hidden' is no numeric option"):
        quiet(loss, data(), steps=2, schedules={"sampler.hidden": Constant(1.0)})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("cosinus(1, 2)", "there is no 'cosinus', did you mean cosine"),
        ("0.1", "it is not a name with arguments"),
        ("linear(0.1, 0.2, 0.3)", "positional arguments"),
        ("linear(begin=1)", "unexpected keyword argument 'begin'"),
        ("linear('a', 2)", "numbers or lists of numbers"),
        ("linear(True)", "numbers or lists of numbers"),
        ("linear(1e999)", "must be a number from"),
        (f"linear({'-' * 1900}1)", "write one of"),
        (f"linear({'(' * 900}1", "write one of"),
        (f"linear(1{'0' * 1900})", "must be a number from"),
        ("x" * 2001, "more than 2000 characters"),
        ("linear(end=exit())", "malformed node"),
        ("linear(", "was never closed"),
        ("exponential(1, 0)", "must have one sign"),
        ("piecewise([1, 2], [5, 4])", "one value more than steps"),
    ],
)
def test_wrong_text_is_refused(text, reason):
    with pytest.raises(UsageError, match=reason) as caught:
        quiet(pcd(), data(), steps=1, schedules={"loss.energy_l2": text})
    assert str(caught.value).startswith("the schedule of loss.energy_l2")
    assert "\n" not in str(caught.value)


def test_exponential_needs_a_start():
    with pytest.raises(UsageError, match="the schedule of loss.energy_l2: start and end of an exponential"):
        quiet(pcd(), data(), steps=1, schedules={"loss.energy_l2": "exponential(end=1)"})


def recorded(rates, **options):
    def optimizer(groups):
        made = torch.optim.SGD(groups, **({"lr": 1.0} | options))
        made.register_step_pre_hook(lambda o, *_: rates.append([group["lr"] for group in o.param_groups]))
        return made

    return optimizer


def test_linear_rate_ends_at_zero():
    rates = []
    quiet(pcd(), data(), steps=4, optimizer=recorded(rates), schedules={"optimizer.lr": Linear(end=0.0)})
    assert rates == [[1.0], [0.75], [0.5], [0.25]]


def test_groups_keep_their_ratio():
    rates, loss = [], pcd()
    first, *rest = loss.parameters()
    loss.parameter_groups = lambda: [{"params": rest}, {"params": [first], "lr": 0.1}]
    quiet(loss, data(), steps=2, optimizer=recorded(rates), schedules={"optimizer.lr": Linear(0.4, 0.0)})
    assert [pytest.approx(r) for r in rates] == [[0.4, 0.04], [0.2, 0.02]]


def test_unscheduled_rate_is_left_alone():
    rates, made = [], []

    class Halved(BaseObserver):
        def on_log(self, run, metrics):
            made[0].param_groups[0]["lr"] *= 0.5

    def optimizer(groups):
        made.append(recorded(rates)(groups))
        return made[0]

    quiet(pcd(), data(), steps=3, log_every=1, optimizer=optimizer, observers=[Halved()])
    assert rates == [[1.0], [0.5], [0.25]]


def test_resumed_schedule_is_bit_for_bit(tmp_path):
    options = {"schedules": {"sampler.step_size": Cosine(0.1, 0.01), "optimizer.lr": Linear(end=0.0)}}
    whole, resumed = pcd(), pcd(seed=3)

    class Stop(BaseObserver):
        def on_checkpoint(self, run, path):
            raise KeyboardInterrupt

    quiet(whole, data(), steps=20, **options)
    with pytest.raises(KeyboardInterrupt):
        quiet(pcd(), data(), steps=20, out=tmp_path, checkpoint_every=9, observers=[Stop()], **options)
    quiet(resumed, data(), steps=20, out=tmp_path, resume=True, **options)
    assert same_state(whole, resumed)


class Halving(BaseObserver):
    """Halves the learning rate at each log."""

    def __init__(self):
        self.groups = None

    def optimizer(self, groups):
        made = torch.optim.SGD(groups, lr=0.1)
        self.groups = made.param_groups
        return made

    def on_log(self, run, metrics):
        self.groups[0]["lr"] *= 0.5


def test_changed_rate_is_resumed(tmp_path):
    def options(steps):
        halving = Halving()
        return {"steps": steps, "optimizer": halving.optimizer, "observers": [halving], "log_every": 2}

    whole, resumed = pcd(), pcd()
    quiet(whole, data(), **options(6))
    quiet(pcd(), data(), out=tmp_path, **options(4))
    rates = []
    again = options(6)
    quiet(resumed, data(), out=tmp_path, resume=True, **again | {"optimizer": recorded(rates, lr=0.1), "observers": []})
    assert rates == [[0.025], [0.025]]
    assert same_state(whole, resumed)


def test_changed_rate_that_is_a_tensor_is_resumed(tmp_path):
    """A learning rate that the optimizer keeps in a tensor has the value of the run that was stopped, in a tensor."""

    class Decaying(torch.optim.Adam):
        def step(self, closure=None):
            super().step(closure)
            self.param_groups[0]["lr"].mul_(0.5)

    def options(steps):
        return {"steps": steps, "optimizer": lambda groups: Decaying(groups, lr=torch.tensor(0.1), foreach=False)}

    whole, resumed = pcd(), pcd()
    quiet(whole, data(), **options(6))
    quiet(pcd(), data(), out=tmp_path, **options(4))
    quiet(resumed, data(), out=tmp_path, resume=True, **options(6))
    assert same_state(whole, resumed)


def test_dropped_schedule_leaves_no_value(tmp_path):
    rates = []
    schedules = {"optimizer.lr": Linear(end=0.0)}
    quiet(pcd(), data(), steps=2, out=tmp_path, optimizer=recorded([], lr=0.5), schedules=schedules)
    quiet(pcd(), data(), steps=3, out=tmp_path, resume=True, optimizer=recorded(rates, lr=0.5))
    assert rates == [[0.5]]


def test_constant_schedule_changes_nothing():
    plain, constant = pcd(), pcd()
    quiet(plain, data(), steps=5)
    quiet(constant, data(), steps=5, schedules={"optimizer.lr": Constant(), "sampler.step_size": Constant()})
    assert same_state(plain, constant)


def test_configuration_holds_the_text():
    (config,) = values(pcd(), lambda run: run.config, {"loss.energy_l2": Linear(1.0, 0.5)}, steps=1)
    assert config["schedules"] == {"loss.energy_l2": "linear(start=1.0, end=0.5)"}
    assert replace(Linear(), start=1.0, end=0.5) == as_schedule("loss.energy_l2", config["schedules"]["loss.energy_l2"])


def test_schedule_makes_one_graph(interpreted):
    """A step size that changes at every step is an input of the graph."""
    losses = [pcd(), pcd()]
    for loss, compile in zip(losses, (False, True), strict=True):
        schedules = {"sampler.step_size": "linear(0.1, 0.05)"}
        quiet(loss, data(64), steps=4, compile=compile, schedules=schedules)
    eager, compiled = (loss.energy(data()) for loss in losses)
    torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=1e-5)
    assert len(losses[1].transitions.graphs) == 1


def test_schedule_of_an_inner_sampler_makes_one_graph(interpreted):
    """Of a sampler whose other numbers are constants of the graph, as those of tempering's ladder are."""
    sampler = ebmcore.create_sampler("tempering", "langevin", {"step_size": 0.1}, n_rungs=3)
    loss = ebmcore.create_loss("pcd", ebmcore.create_energy("mlp", shape=(2,), hidden=(8,)), sampler, n_chains=64)
    quiet(loss, torch.randn(64, 2), steps=4, compile=True, schedules={"sampler.inner.step_size": "linear(0.1, 0.05)"})
    assert len(loss.transitions.graphs) == 1
