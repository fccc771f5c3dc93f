"""The restricted Boltzmann machine: all of it against enumeration."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import ebmcore
from ebm_plugin_rbm import rbm as module
from ebm_plugin_rbm.rbm import RBM
from ebmcore.distributions import Bernoulli, Normal
from ebmcore.energies import SupportsBlockGibbs, SupportsEnumeration, SupportsValueAndGrad, supports
from ebmcore.errors import UsageError
from ebmcore.tempering import SupportsTempering


def states(n):
    return ((torch.arange(2**n)[:, None] >> torch.arange(n)) & 1).double()


def random_rbm(shape=(2, 2), hidden=3, scale=1.0, seed=0):
    torch.manual_seed(seed)
    rbm = RBM(shape, hidden, weight_std=scale).double()
    with torch.no_grad():
        rbm.visible_bias.normal_(0, scale)
        rbm.hidden_bias.normal_(0, scale)
    return rbm


def joint_energy(rbm, v, h):
    """``E(v, h)`` for all pairs, ``(V, H)``."""
    v = v.flatten(1)
    return -(v @ rbm.visible_bias)[:, None] - (h @ rbm.hidden_bias) - v @ rbm.weight @ h.T


def test_free_energy_sums_joint_energy():
    """The free energy sums the joint energy over the hidden units."""
    rbm, v, h = random_rbm(), states(4).view(-1, 2, 2), states(3)
    expected = -torch.logsumexp(-joint_energy(rbm, v, h), dim=1)
    torch.testing.assert_close(rbm(v), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("visible", "hidden"), [(4, 3), (3, 6), (1, 1)])
def test_log_partition_sums_all_states(visible, hidden):
    """Log partition is the sum over all states."""
    rbm = random_rbm((visible,), hidden)
    expected = torch.logsumexp(-joint_energy(rbm, states(visible), states(hidden)).flatten(), dim=0)
    found = rbm.log_partition()
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def test_log_partition_ignores_chunk_size(monkeypatch):
    """Log partition does not depend on the chunks."""
    rbm = random_rbm((12,), 9)
    whole = rbm.log_partition()
    for elements in (1, 12 * 4, 12 * 64):
        monkeypatch.setattr(module, "_CHUNK_ELEMENTS", elements)
        torch.testing.assert_close(rbm.log_partition(), whole, atol=1e-12, rtol=0)


def test_log_partition_is_float64():
    """Log partition of a float32 model is computed in float64."""
    rbm = random_rbm((6,), 5).float()
    assert rbm.log_partition() == RBM.log_partition(rbm.double())


@pytest.mark.parametrize("method", [RBM.check_enumeration, RBM.log_partition])
def test_enumeration_refuses_many_units(method):
    """Too many units to enumerate raises an error with advice."""
    with pytest.raises(UsageError, match=r"up to 25 units, .* has 26: .*'ais-ll'"):
        method(RBM((30,), 26))


def test_smaller_layer_decides_on_enumeration():
    """Either layer may be large."""
    RBM((784,), 25).check_enumeration()
    RBM((25,), 500).check_enumeration()


def test_parameter_gradient_holds_hidden_probabilities():
    """The parameter gradient holds hidden probabilities given the same visible units."""
    rbm = random_rbm((4,), 3)
    v = states(4)[[3, 9]]
    rbm(v).sum().backward()
    h = torch.sigmoid(v @ rbm.weight + rbm.hidden_bias)
    torch.testing.assert_close(rbm.weight.grad, -(v.T @ h).detach(), atol=1e-10, rtol=0)
    torch.testing.assert_close(rbm.hidden_bias.grad, -h.sum(0).detach(), atol=1e-10, rtol=0)
    torch.testing.assert_close(rbm.visible_bias.grad, -v.sum(0), atol=1e-10, rtol=0)


@pytest.mark.parametrize("beta", [None, 0.3])
def test_conditionals_match_joint_energy(beta):
    """The conditionals are those of the joint energy."""
    rbm, v, h = random_rbm(), states(4).view(-1, 2, 2), states(3)
    joint = torch.softmax(-(beta or 1.0) * joint_energy(rbm, v, h).flatten(), 0).view(16, 8)
    expected = (joint / joint.sum(1, keepdim=True)) @ h
    n = 100_000
    for row in (3, 10):
        many = v[row].expand(n, 2, 2)
        betas = None if beta is None else torch.full((n,), beta).double()
        found = rbm.sample_hidden(many, beta=betas, generator=torch.Generator().manual_seed(0)).mean(0)
        torch.testing.assert_close(found, expected[row], atol=4 * 0.5 / n**0.5, rtol=0)
    expected = (joint / joint.sum(0)).T @ v.flatten(1)
    many = h[5].expand(n, 3)
    betas = None if beta is None else torch.full((n,), beta).double()
    found = rbm.sample_visible(many, beta=betas, generator=torch.Generator().manual_seed(0)).flatten(1).mean(0)
    torch.testing.assert_close(found, expected[5], atol=4 * 0.5 / n**0.5, rtol=0)


def test_each_chain_has_its_own_beta():
    rbm = random_rbm((4,), 3)
    beta = torch.cat([torch.zeros(50_000), torch.ones(50_000)]).double()
    v = states(4)[15].expand(100_000, 4)
    h = rbm.sample_hidden(v, beta=beta, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(h[:50_000].mean(0), torch.full((3,), 0.5).double(), atol=0.01, rtol=0)
    torch.testing.assert_close(h[50_000:].mean(0), rbm.hidden_logits(v[:1])[0].sigmoid(), atol=0.01, rtol=0)


def test_tempered_path_joins_base_and_model():
    """Tempering goes from the normalised base to the model."""
    rbm, v = random_rbm(), states(4).view(-1, 2, 2)
    base = Bernoulli(torch.randn(2, 2).double())
    torch.testing.assert_close(rbm.tempered(torch.tensor(0.0), base)(v), -base.log_prob(v), atol=1e-12, rtol=0)
    torch.testing.assert_close(rbm.tempered(torch.tensor(1.0), base)(v), rbm(v), atol=1e-12, rtol=0)
    flat = rbm.tempered(torch.tensor(0.0))(v)
    torch.testing.assert_close(flat, flat[:1].expand(16), atol=1e-12, rtol=0)


def test_tempered_conditionals_match_energy():
    """A tempered RBM keeps its conditionals in agreement with its energy."""
    # One exact Gibbs sweep, as a matrix, must leave the tempered free energy's distribution invariant.
    rbm, v, h = random_rbm(), states(4), states(3)
    base = Bernoulli(torch.randn(2, 2).double())
    for beta in torch.tensor([0.0, 0.4, 1.0]).double():
        hot = rbm.tempered(beta, base)
        p = torch.softmax(-hot(v.view(-1, 2, 2)), 0)
        to_h = torch.distributions.Bernoulli(logits=beta * rbm.hidden_logits(v.view(-1, 2, 2))).log_prob
        to_hidden = torch.stack([to_h(row.expand(16, 3)).sum(1) for row in h], 1).exp()
        visible_logits = beta * (rbm.visible_bias + h @ rbm.weight.T) + (1 - beta) * base.logits.flatten()
        to_v = torch.distributions.Bernoulli(logits=visible_logits).log_prob
        to_visible = torch.stack([to_v(row.expand(8, 4)).sum(1) for row in v], 1).exp()
        torch.testing.assert_close(p @ to_hidden @ to_visible, p, atol=1e-12, rtol=0)


def test_base_must_be_binary():
    """A base that is not binary raises an error."""
    with pytest.raises(UsageError, match="the base of RBM must be a Bernoulli"):
        random_rbm().tempered(torch.tensor(0.5), Normal(torch.zeros(2, 2)))


def test_images_equal_flattened():
    image, flat = random_rbm((1, 2, 2)), random_rbm((4,))
    x = states(4)
    assert torch.equal(image(x.view(-1, 1, 2, 2)), flat(x))
    assert image.sample_visible(torch.zeros(5, 3).double()).shape == (5, 1, 2, 2)


def test_chains_start_as_fair_coins():
    x = RBM((1, 8, 8), 4).initial_distribution((1, 8, 8)).sample(1000, generator=torch.Generator().manual_seed(0))
    assert x.shape == (1000, 1, 8, 8)
    assert x.unique().tolist() == [0.0, 1.0]
    assert x.mean().item() == pytest.approx(0.5, abs=0.01)


def test_it_has_the_capabilities_that_it_claims():
    for capability in (SupportsBlockGibbs, SupportsValueAndGrad, SupportsEnumeration, SupportsTempering):
        assert supports(RBM, capability)


@pytest.mark.parametrize("arguments", [{"hidden": 0}, {"hidden": 3, "weight_std": -1.0}])
def test_invalid_options_raise(arguments):
    """A value that cannot work raises an error."""
    with pytest.raises(ValueError, match="must be at least"):
        RBM((4,), **arguments)


def test_it_is_installed_under_its_name():
    assert isinstance(ebmcore.create_energy("rbm", (1, 8, 8), hidden=4), RBM)


@pytest.mark.parametrize("scale", [0.3, 5.0, 300.0], ids=["small", "large", "beyond float64"])
@pytest.mark.parametrize("hidden", [3, 9])
def test_normaliser_sums_visible_states(hidden, scale):
    """The normaliser is the sum over all visible states."""
    rbm = random_rbm((6,), hidden, scale)
    with torch.no_grad():
        torch.testing.assert_close(rbm.log_partition(), torch.logsumexp(-rbm(states(6)), 0), rtol=1e-12, atol=1e-10)


def test_free_energy_gradient_is_closed_form():
    """The gradient of the free energy is its closed form."""
    rbm, x = random_rbm((2, 3), hidden=4), torch.rand(5, 2, 3, dtype=torch.float64, requires_grad=True)
    signs = torch.tensor([1.0, -1.0, 2.0, 0.5, -3.0], dtype=torch.float64)
    (signs * rbm(x)).sum().backward()
    v = x.detach().flatten(1)
    p = signs[:, None] * torch.sigmoid(v @ rbm.weight + rbm.hidden_bias).detach()
    closed = {
        rbm.weight: -v.T @ p,
        rbm.visible_bias: -signs @ v,
        rbm.hidden_bias: -p.sum(0),
        x: -(signs[:, None] * rbm.visible_bias + p @ rbm.weight.T).view_as(x),
    }
    assert all(torch.allclose(t.grad, expected, rtol=0, atol=1e-12) for t, expected in closed.items())


def test_per_example_gradients_with_vmap():
    """The gradient of each example can be taken in one call."""
    rbm, x = random_rbm((2, 2), hidden=3), torch.rand(5, 2, 2, dtype=torch.float64)
    each = torch.func.vmap(torch.func.grad(lambda one: rbm(one[None])[0]))(x)
    torch.testing.assert_close(each, rbm.value_and_grad(x)[1].detach())


def test_the_free_energy_has_second_derivatives():
    rbm, x = random_rbm((2, 2), hidden=3), torch.rand(2, 2, 2, dtype=torch.float64, requires_grad=True)
    names, values = zip(*rbm.named_parameters(), strict=True)

    def energy(x, *parameters):
        return torch.func.functional_call(rbm, dict(zip(names, parameters, strict=True)), (x,))

    assert torch.autograd.gradgradcheck(energy, (x, *values))


def test_drawing_allocates_no_extra_tensor():
    """Drawing units makes no further tensor of their size."""
    rbm = RBM((8,), hidden=500)
    x = torch.zeros(40, 8)

    class Sized(TorchDispatchMode):
        found = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            fresh = not any(result is a for a in args)
            self.found += fresh and result.shape == (40, 500)
            return result

    with torch.no_grad(), Sized() as sized:
        rbm.sample_hidden(x)
    assert sized.found == 3  # their logits, the probabilities, and the random numbers that become the units


def test_it_trains_under_autocast():
    rbm, x = RBM((4,), hidden=3), torch.ones(6, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        energy = rbm(x).float().mean()
    energy.backward()
    assert rbm.weight.grad.isfinite().all()
    assert rbm.weight.grad.dtype == torch.float32


def test_drawn_units_have_no_gradient():
    rbm = RBM((4,), hidden=3)
    assert not rbm.sample_hidden(torch.ones(2, 4)).requires_grad
    assert not rbm.sample_visible(torch.ones(2, 3)).requires_grad


def test_rare_units_stay_rare_in_half_precision():
    rbm = RBM((1,), hidden=1, weight_std=0.0).bfloat16()
    rbm.hidden_bias.data.fill_(-7.0)  # p = 0.00091; numbers in bfloat16 are multiples of 1/256
    on = rbm.sample_hidden(torch.zeros(200_000, 1, dtype=torch.bfloat16), generator=torch.Generator().manual_seed(0))
    assert on.dtype == torch.bfloat16
    assert abs(float(on.float().sum()) - 182.2) < 4 * 182.2**0.5
