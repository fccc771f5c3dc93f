"""The bases of losses: what the conformance kit, run on variants of them, does not say already."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from variants import Data, Persistent

from ebmcore import BaseLoss, BaseSampler, ChainState
from ebmcore.compiling import CompiledTransitions
from ebmcore.energies import SupportsBlockGibbs
from ebmcore.errors import DivergenceError, MissingCapabilityError, UnknownKeywordError, UsageError
from ebmcore.samplers import sample
from ebmcore.testing import Affine, Gaussian, Identity, Labelled, Poison, Quadratic


class Spy(BaseSampler):
    """Notes where chains start, and moves them by one."""

    def __init__(self):
        self.starts = []

    def step(self, energy, state, *, generator=None):
        self.starts.append(state.x)
        return ChainState(state.x + 1), {"acceptance_rate": torch.ones(len(state))}


class ScoreMatching(BaseLoss):
    """The trace of the Hessian through double backward; samples nothing."""

    def __init__(self, energy):
        super().__init__()
        self.energy = energy

    def forward(self, x, *args, **kwargs):
        x = x.detach().requires_grad_()
        (grad,) = torch.autograd.grad(self.energies(x, *args, **kwargs).sum(), x, create_graph=True)
        second = [torch.autograd.grad(grad[:, i].sum(), x, create_graph=True)[0][:, i] for i in range(x.shape[1])]
        value = (0.5 * grad.square().sum(1) - sum(second)).mean()
        self.metrics["score"] = value.detach()
        return value


def gradients(module):
    return [p.grad.clone() for p in module.parameters() if p.grad is not None]


def network(size=4):
    """A small float64 network with the same parameters each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(size, 8), nn.SiLU(), nn.Linear(8, 1), nn.Flatten(0)).double()


def noise(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# BaseLoss


def test_score_matching_survives_compile():
    """`compile` of a loss that samples nothing changes no number and leaves the double backward pass alone."""
    x, loss = noise(8, 2), ScoreMatching(network(2))
    plain = loss(x)
    plain.backward()
    before = gradients(loss.energy)
    assert loss.compile() is None
    loss.zero_grad()
    compiled = loss(x)
    compiled.backward()
    assert torch.equal(compiled, plain)
    assert all(torch.equal(a, b) for a, b in zip(gradients(loss.energy), before, strict=True))
    assert len(before) == 3  # all but the last bias, on which no gradient depends
    assert loss.metrics["score"] == plain


@pytest.mark.parametrize(("args", "kwargs"), [(("inductor",), {}), ((), {"backend": "eager"})])
def test_compile_takes_no_options(args, kwargs):
    with pytest.raises(TypeError, match=r"compile\(\)"):
        ScoreMatching(Quadratic()).compile(*args, **kwargs)


def test_compile_hands_on_compiled_transitions():
    """After `compile` a loss that samples makes its transitions by what `compile` made."""

    class Sampling(ScoreMatching):
        def forward(self, x):
            return self.energies(sample(Affine(), self.energy, x, 2, transitions=self.transitions)).mean()

    loss, calls = Sampling(Quadratic((2,))), []
    loss.compile()
    assert isinstance(loss.transitions, CompiledTransitions)
    made = loss.transitions
    loss.transitions = lambda *args, **kwargs: calls.append(args[3]) or made(*args, **kwargs)
    assert loss(torch.zeros(3, 2)).item() == 4.0
    assert calls == [2]


def test_the_step_is_part_of_the_state():
    """A tensor in ``state_dict()``; loaded, it is a number again."""
    used, fresh = ScoreMatching(Quadratic()), ScoreMatching(Quadratic())
    used.step = 7
    assert torch.equal(used.state_dict()["_extra_state"], torch.tensor(7))
    fresh.load_state_dict(used.state_dict())
    assert fresh.step == 7
    assert type(fresh.step) is int


def test_a_state_without_step_is_incomplete():
    """A strict load names the missing key; one that is not strict leaves the number."""
    loss = ScoreMatching(Quadratic())
    state = loss.state_dict()
    loss.step = 7
    del state["_extra_state"]
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "_extra_state"'):
        loss.load_state_dict(state)
    assert loss.load_state_dict(state, strict=False).missing_keys == ["_extra_state"]
    assert loss.step == 7


def test_a_wrapped_losss_step_is_loaded():
    """As in `DistributedDataParallel`, where its key is ``"module._extra_state"``."""
    used, fresh = (nn.ModuleDict({"module": ScoreMatching(Quadratic())}) for _ in range(2))
    used["module"].step = 7
    fresh.load_state_dict(used.state_dict())
    assert fresh["module"].step == 7


def test_parameter_groups_hold_each_parameter_once():
    """Also a parameter that the energy and a second network share."""
    loss = ScoreMatching(Quadratic())
    loss.second = nn.ModuleList([loss.energy, nn.Linear(2, 1)])
    (group,) = loss.parameter_groups()
    assert len(group["params"]) == 4
    assert {id(p) for p in group["params"]} == {id(p) for p in loss.parameters()}
    torch.optim.SGD(loss.parameter_groups(), lr=0.1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_energies_are_at_least_float32(dtype):
    loss, x = ScoreMatching(Quadratic((2,)).to(dtype)), torch.full((3, 2), 0.5, dtype=dtype)
    energies = loss.energies(x)
    assert energies.dtype == torch.float32
    assert torch.equal(energies, loss.energy(x).float())
    assert ScoreMatching(Quadratic((2,)).double()).energies(x.double()).dtype == torch.float64


def test_energies_take_their_conditions():
    loss = ScoreMatching(Labelled(3))
    loss.energy.weight.data = torch.tensor([1.0, 2.0, 3.0])
    labels = torch.tensor([2, 0])
    assert loss.energies(torch.zeros(2, 2), labels).tolist() == [3.0, 1.0]
    assert loss.energies(torch.zeros(2, 2), label=labels).tolist() == [3.0, 1.0]


def test_energies_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"must return \(4,\)"):
        ScoreMatching(nn.Linear(2, 1)).energies(torch.zeros(4, 2))


def test_metrics_are_new_at_each_call():
    """What a caller kept of an earlier call stays as it was, and no metric of that call is found in the next."""
    loss = ScoreMatching(Quadratic((2,)))
    loss(torch.zeros(4, 2))
    first = loss.metrics
    first["extra"] = torch.tensor(1.0)
    loss(torch.ones(4, 2))
    assert set(loss.metrics) == {"score"}
    assert first["score"] == -2
    assert loss.metrics["score"] == -1


# Negatives


def test_chains_start_at_a_copy():
    """They start at the data, whose tensor is left as it is."""
    sampler, x = Spy(), torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
    before = x.clone()
    _, pred_x = Data(Quadratic(), sampler)(x)
    assert torch.equal(sampler.starts[0], before)
    assert sampler.starts[0].data_ptr() != x.data_ptr()
    assert torch.equal(x, before)
    assert torch.equal(pred_x, before + 1)


def test_negatives_are_detached():
    """The loss is 0-dim and the negatives hold no graph, also where the data require a gradient."""
    x = torch.ones(8, 2, requires_grad=True)
    loss, pred_x = Data(Quadratic(), Spy())(x)
    assert loss.shape == ()
    assert pred_x.grad_fn is None
    assert not pred_x.requires_grad


def test_negatives_are_drawn_under_no_grad():
    """Inference mode, in which no gradient of the energy can be taken, is refused with advice."""
    loss = Data(Quadratic(), Spy())
    with torch.no_grad():
        assert loss.draw_negatives(torch.zeros(2, 2)).shape == (2, 2)
    with torch.inference_mode(), pytest.raises(RuntimeError, match="no_grad"):
        loss.draw_negatives(torch.zeros(2, 2))


def test_an_energy_error_loses_no_chain():
    """An energy that raises while sampling raises; chains, parameters and flags are what they were."""

    class Fuse(Quadratic):
        burnt = False

        def forward(self, x):
            if self.burnt:
                raise ZeroDivisionError("burnt")
            return super().forward(x)

    class Descent(Spy):
        def step(self, energy, state, *, generator=None):
            return ChainState(state.x - energy(state.x)[:, None]), {}

    loss = Persistent(Fuse(), Descent())
    loss(torch.zeros(4, 2))
    before = copy.deepcopy(loss.state_dict())
    loss.energy.burnt = True
    with pytest.raises(ZeroDivisionError, match="burnt"):
        loss(torch.zeros(4, 2))
    assert all(torch.equal(t, loss.state_dict()[name]) for name, t in before.items())
    assert all(p.requires_grad for p in loss.energy.parameters())


def test_chains_start_standard_normal():
    """Unless the energy has an initial distribution of its own."""
    loss = Data(Quadratic((2,)), Identity())
    loss.generator = torch.Generator().manual_seed(0)
    x = loss.initialize_persistent_chain((100_000, 2))
    assert x.mean().item() == pytest.approx(0, abs=0.01)
    assert x.std().item() == pytest.approx(1, abs=0.01)


class Counting(Quadratic):
    """Notes the data that it is told of."""

    def __init__(self):
        super().__init__((2,))
        self.observed = []

    def observe_data(self, x, *args, **kwargs):
        self.observed.append((x, torch.is_grad_enabled()))


def test_statistics_are_of_training_data():
    """An energy that keeps statistics is told of the data of each training step, without gradients, and of no other."""
    energy, x = Counting(), torch.ones(4, 2)
    loss = Persistent(energy, Identity())
    loss(x)
    ((seen, graded),) = energy.observed
    assert seen is x
    assert graded is False
    with torch.no_grad():
        loss(x)
    loss.eval()(x)
    assert len(energy.observed) == 1


# The energy gap


@pytest.mark.parametrize("joint_forward", [True, False])
@pytest.mark.parametrize("shape", [(4,), (1, 2, 2)])
def test_the_gradient_is_the_autograd_identity(shape, joint_forward):
    """The mean gradient at the data minus that at the negatives, in float64, for flat and image-shaped examples."""
    energy, x, pred_x = network(), noise(6, *shape), noise(9, *shape, seed=1)
    Data(energy, Identity(), joint_forward=joint_forward).compute_loss(x, pred_x).backward()
    found = gradients(energy)
    positive = torch.autograd.grad(energy(x).mean(), list(energy.parameters()))
    negative = torch.autograd.grad(energy(pred_x).mean(), list(energy.parameters()))
    for got, p, n in zip(found, positive, negative, strict=True):
        torch.testing.assert_close(got, p - n, atol=1e-10, rtol=0)


def weighted(weights, values):
    """The weighted mean; the plain one where there are no weights."""
    return values.mean() if weights is None else (weights * values).sum() / weights.sum()


DATA_WEIGHTS = torch.tensor([1.0, 2.0, 0.5, 4.0, 3.0, 0.1]).double()
NEGATIVE_WEIGHTS = torch.tensor([0.2, 1.0, 7.0, 0.5, 1.5, 1.0, 2.0, 3.0, 0.4]).double()


@pytest.mark.parametrize("joint_forward", [True, False])
@pytest.mark.parametrize("energy_l2", [0.0, 0.3])
@pytest.mark.parametrize(
    ("data_weights", "negative_weights"),
    [(DATA_WEIGHTS, None), (None, NEGATIVE_WEIGHTS), (DATA_WEIGHTS, NEGATIVE_WEIGHTS), (None, None)],
    ids=["data", "negatives", "both", "none"],
)
def test_the_gap_is_a_weighted_mean(data_weights, negative_weights, energy_l2, joint_forward):
    """Value, gradient and metrics are those of weighted means in float64, and so is the regulariser."""
    energy, x, pred_x = network(), noise(6, 4), noise(9, 4, seed=1)
    loss = Data(energy, Identity(), energy_l2=energy_l2, joint_forward=joint_forward)
    value = loss.energy_gap(x, pred_x, data_weights=data_weights, negative_weights=negative_weights)
    value.backward()
    found = gradients(energy)
    data, negatives = energy(x), energy(pred_x)
    gap = weighted(data_weights, data) - weighted(negative_weights, negatives)
    l2 = energy_l2 * (weighted(data_weights, data.square()) + weighted(negative_weights, negatives.square()))
    torch.testing.assert_close(value, gap + l2, atol=1e-12, rtol=0)
    for got, expected in zip(found, torch.autograd.grad(gap + l2, list(energy.parameters())), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(loss.metrics["energy_data"], weighted(data_weights, data).detach(), atol=1e-12, rtol=0)
    torch.testing.assert_close(
        loss.metrics["energy_negatives"], weighted(negative_weights, negatives).detach(), atol=1e-12, rtol=0
    )
    torch.testing.assert_close(loss.metrics["energy_gap"], gap.detach(), atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", ["data_weights", "negative_weights"])
def test_weights_have_no_scale(name):
    loss, x, pred_x = Data(network(), Identity()), noise(6, 4), noise(6, 4, seed=1)
    values = [loss.energy_gap(x, pred_x, **{name: scale * DATA_WEIGHTS}) for scale in (1.0, 1e-6, 1e6)]
    torch.testing.assert_close(values[1:], [values[0]] * 2, atol=1e-12, rtol=0)
    assert (values[0] - loss.energy_gap(x, pred_x)).abs() > 1e-3  # the weights count


def test_weight_zero_leaves_out():
    """An example of weight 0 has no influence on the gradient, at any energy."""
    energy, x, pred_x = network(), noise(6, 4), noise(9, 4, seed=1)
    loss = Data(energy, Identity())
    some, others = torch.arange(6) != 2, torch.arange(9) < 5
    x[2], pred_x[5:] = 1e3, -1e3
    loss.energy_gap(x, pred_x, data_weights=some.double(), negative_weights=others.double()).backward()
    got = gradients(energy)
    loss.zero_grad()
    loss.compute_loss(x[some], pred_x[others]).backward()
    for a, b in zip(got, gradients(energy), strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


@pytest.mark.parametrize("lost", [torch.nan, torch.inf])
@pytest.mark.parametrize("weight", [5.0, torch.nan])
def test_a_lost_chains_weight_is_zero(lost, weight):
    """A chain that is NaN or infinite is left out even where it is given a weight, and that weight may be NaN."""
    energy, x, pred_x, weights = network(), noise(6, 4), noise(9, 4, seed=1), NEGATIVE_WEIGHTS.clone()
    pred_x[3, 1], weights[3] = lost, weight
    loss, kept = Data(energy, Identity()), torch.arange(9) != 3
    value = loss.energy_gap(x, pred_x, negative_weights=weights)
    value.backward()
    got = gradients(energy)
    assert loss.metrics["quarantined"] == 1
    loss.zero_grad()
    expected = loss.energy_gap(x, pred_x[kept], negative_weights=weights[kept])
    expected.backward()
    torch.testing.assert_close(value, expected, atol=1e-12, rtol=0)
    for a, b in zip(got, gradients(energy), strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


def test_weights_are_detached():
    """The loss trains the energy, never what the weights were computed by."""
    weights = DATA_WEIGHTS.clone().requires_grad_()
    loss = Data(network(), Identity())
    loss.energy_gap(noise(6, 4), noise(6, 4, seed=1), data_weights=weights, negative_weights=weights).backward()
    assert weights.grad is None


def test_no_gradient_reaches_the_negatives():
    """Also where the negatives given ask for one; the data receive theirs."""
    x, pred_x = noise(6, 4).requires_grad_(), noise(6, 4, seed=1).requires_grad_()
    Data(network(), Identity()).energy_gap(x, pred_x).backward()
    assert x.grad.abs().sum() > 0
    assert pred_x.grad is None


@pytest.mark.parametrize("name", ["data_weights", "negative_weights"])
def test_negative_weights_are_refused(name):
    with pytest.raises(UsageError, match="a weight is negative.* at least 0"):
        Data(network(), Identity()).energy_gap(noise(3, 4), noise(3, 4), **{name: torch.tensor([1.0, -0.1, 1.0])})


@pytest.mark.parametrize("name", ["data_weights", "negative_weights"])
@pytest.mark.parametrize("shape", [(3, 1), (2,), (4,), (1,), ()])
def test_weights_of_another_shape_are_refused(name, shape):
    with pytest.raises(UsageError, match=r"weights must be \(3,\), one for each example"):
        Data(network(), Identity()).energy_gap(noise(3, 4), noise(3, 4), **{name: torch.ones(shape)})


@pytest.mark.parametrize("name", ["data_weights", "negative_weights"])
def test_a_mask_is_a_weight(name):
    """Booleans leave out, as 0 and 1 do."""
    loss, x, pred_x, mask = Data(network(), Identity()), noise(3, 4), noise(3, 4, seed=1), torch.tensor([True, False, True])
    expected = loss.energy_gap(x, pred_x, **{name: mask.double()})
    torch.testing.assert_close(loss.energy_gap(x, pred_x, **{name: mask}), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", ["data_weights", "negative_weights"])
@pytest.mark.parametrize("weight", [torch.nan, torch.inf])
def test_infinite_weights_are_refused(name, weight):
    """A NaN or infinite weight of an example or of a finite chain raises: it neither counts as 0 nor makes the loss NaN."""
    with pytest.raises((UsageError, DivergenceError)):
        Data(network(), Identity()).energy_gap(noise(3, 4), noise(3, 4), **{name: torch.tensor([1.0, weight, 1.0])})


@pytest.mark.parametrize("name", ["data_weights", "negative_weights"])
@pytest.mark.parametrize("scale", [1e50, 1e-50])
def test_float64_weights_are_normalised_in_float64(name, scale):
    """Weights beyond the range of float32, as of annealed chains, give the same loss of a float32 energy."""
    loss, x, pred_x = Data(network().float(), Identity()), noise(6, 4).float(), noise(6, 4, seed=1).float()
    expected = loss.energy_gap(x, pred_x, **{name: DATA_WEIGHTS})
    torch.testing.assert_close(loss.energy_gap(x, pred_x, **{name: scale * DATA_WEIGHTS}), expected)


def test_data_without_weight_are_named():
    """Where all data have weight 0, the message speaks of the data and not of lost chains."""
    with pytest.raises((UsageError, DivergenceError), match="data"):
        Data(network(), Identity()).energy_gap(noise(3, 4), noise(3, 4), data_weights=torch.zeros(3))


def test_overwritten_negatives_are_looked_at_again():
    """Which negatives are lost is read from ``pred_x``, not remembered from the draw."""
    loss, x = Data(Quadratic((2,)), Identity()), torch.ones(4, 2)
    _, pred_x = loss(x)
    pred_x[0] = torch.nan
    assert loss.compute_loss(x, pred_x).isfinite()
    assert loss.metrics["quarantined"] == 1


@pytest.mark.parametrize("variant", [Data, Persistent])
def test_a_lost_chain_has_no_influence(variant):
    """It is NaN in the negatives, is counted, and the gradient is that of the others."""
    loss, x = variant(Quadratic(), Poison(1)), noise(8, 2).float()
    value, pred_x = loss(x)
    value.backward()
    got = gradients(loss.energy)
    assert pred_x[0].isnan().all()
    assert loss.metrics["quarantined"] == 1
    reference = Data(Quadratic(), Identity())
    reference.compute_loss(x, pred_x[1:]).backward()
    for a, b in zip(got, gradients(reference.energy), strict=True):
        torch.testing.assert_close(a, b)


def test_all_chains_lost_raises():
    """The message says what to lower."""
    with pytest.raises(DivergenceError, match="lower the step size or the learning rate"):
        Data(Quadratic(), Poison(8))(torch.zeros(8, 2))


def test_negatives_of_another_shape_are_refused():
    with pytest.raises(UsageError, match=r"one shape, got \(4, 2\) and \(4, 3\)"):
        Data(Quadratic(), Identity()).compute_loss(torch.zeros(4, 2), torch.zeros(4, 3))


def test_both_halves_share_one_mode():
    """Data and negatives are scored in the mode of the energy: in one forward, or in one each."""

    class Modes(Quadratic):
        seen = []

        def forward(self, x):
            self.seen.append((self.training, len(x)))
            return super().forward(x)

    for joint, expected in ((True, [(True, 8)]), (False, [(True, 4), (True, 4)])):
        energy = Modes().train()
        energy.seen = []
        Data(energy, Identity(), joint_forward=joint)(torch.zeros(4, 2))
        assert energy.seen == expected


def test_a_joint_forward_shares_batch_statistics():
    """Negatives equal to the data give no gap under any statistics of the batch, which count one forward."""
    torch.manual_seed(0)
    energy = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout(0.0), nn.Linear(2, 1), nn.Flatten(0)).train()
    loss, _ = Data(energy, Identity())(torch.randn(16, 2) + 5)
    assert loss.abs().item() < 1e-5
    assert energy[0].num_batches_tracked == 1


def test_half_precision_means_are_float32():
    """Under autocast the means over energies in bfloat16 are those of the same energies in float32."""

    class Half(Quadratic):
        def forward(self, x):
            return super().forward(x).bfloat16()

    energy, x, pred_x = Half(), noise(64, 2).float(), noise(64, 2, seed=1).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = Data(energy, Identity()).compute_loss(x, pred_x)
    expected = energy(x).float().mean() - energy(pred_x).float().mean()
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, expected)


# Metrics


class Noting(Persistent):
    """Writes a metric wherever a variant can."""

    def note(self, name):
        self.metrics[name] = torch.tensor(float(len(self.metrics)))

    def forward(self, x):
        self.note("before")
        pred_x = self.draw_negatives(x)
        self.note("after")
        value = self.compute_loss(x, pred_x)
        self.note("end")
        return value, pred_x

    def start_chains(self, x):
        self.note("start")
        return super().start_chains(x)

    def keep_chains(self, state):
        self.note("keep")
        super().keep_chains(state)


def test_metrics_last_to_the_calls_end():
    """What is written before, during and after the draw is found after the call, beside what the base writes."""
    loss = Noting(Quadratic(), Spy())
    for _ in range(2):
        loss(torch.zeros(4, 2))
        assert list(loss.metrics) == [
            "before", "start", "keep", "acceptance_rate", "after",
            "energy_data", "energy_negatives", "energy_gap", "quarantined", "end",
        ]  # fmt: skip
        assert loss.metrics["before"] == 0


def test_metrics_are_detached_scalars():
    loss = Data(Quadratic(), Spy(), energy_l2=0.1)
    loss(torch.zeros(4, 2))
    assert {"acceptance_rate", "energy_gap", "quarantined", "energy_l2"} < set(loss.metrics)
    assert all(t.shape == () and not t.requires_grad for t in loss.metrics.values())


def test_lost_chains_reach_no_metric():
    """What the sampler reports is averaged over the finite chains."""

    class Reporting(Poison):
        def step(self, energy, state, *, generator=None):
            state, _ = super().step(energy, state)
            return state, {"energy": energy(state.x)}

    loss = Data(Quadratic(), Reporting(1))
    loss(torch.ones(4, 2))
    assert loss.metrics["energy"].item() == 1.0


# Construction


def test_the_energy_can_be_replaced():
    """Another energy takes the place of the first, as an attribute and as a module."""
    loss = Data(Quadratic((2,)), Identity())
    loss.energy = other = Quadratic((2,), precision=3.0)
    loss(torch.ones(4, 2))[0].backward()
    assert loss.energy is other is dict(loss.named_children())["energy"]
    assert other.precision.grad is not None


def test_an_unknown_keyword_lists_the_accepted():
    with pytest.raises(
        UnknownKeywordError, match=r"'energy_l3'; it accepts: energy, sampler, k_steps, energy_l2, joint_forward"
    ):
        Data(Quadratic(), Identity(), energy_l3=1.0)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(4), "tensor"),
        (torch.zeros(0, 2), "at least one example"),
        ([[1.0, 2.0]], "got list"),
        (torch.zeros(4, 2, dtype=torch.uint8), r"x\.to\(loss\.dtype\)"),
        (torch.zeros(4, 2, dtype=torch.float64), r"x is torch\.float64 but the loss is torch\.float32"),
    ],
)
def test_impossible_batches_are_refused(x, message):
    with pytest.raises(UsageError, match=message):
        Data(Quadratic(), Identity())(x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k_steps": 0}, "k_steps must be a whole number of at least 1"),
        ({"k_steps": 1.5}, "k_steps must be a whole number"),
        ({"energy_l2": -1.0}, "energy_l2 must be at least 0"),
        ({"energy": torch.sum}, r"energy must be a torch\.nn\.Module"),
        ({"sampler": "gibbs"}, "expected a sampler"),
    ],
)
def test_impossible_options_are_refused(arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        Data(**({"energy": Quadratic(), "sampler": Identity()} | arguments))


def test_an_unfit_sampler_is_refused_at_once():
    """The constructor names the capability that the energy lacks."""

    class Needy(Identity):
        requires = (SupportsBlockGibbs,)

    with pytest.raises(MissingCapabilityError, match="Needy needs"):
        Data(Gaussian(torch.eye(2)), Needy())


def test_one_column_too_many_is_refused():
    """An energy ``(B, 1)`` raises instead of broadcasting."""
    with pytest.raises(ValueError, match=r"must return \(8,\)"):
        Data(nn.Linear(2, 1), Identity())(torch.zeros(4, 2))
