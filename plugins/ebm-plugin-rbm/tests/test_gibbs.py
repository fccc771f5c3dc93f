"""Block Gibbs sampling."""

from __future__ import annotations

import pytest
import torch

import ebmcore
from ebm_plugin_rbm.gibbs import Gibbs
from ebm_plugin_rbm.rbm import RBM
from ebmcore.errors import MissingCapabilityError
from ebmcore.samplers import check_sampler
from ebmcore.testing import Quadratic

N = 100_000
CHI_SQUARE_15_DF = 44.3  # exceeded with probability 1e-4


def random_rbm():
    torch.manual_seed(1)
    rbm = RBM((2, 2), 3, weight_std=1.0)
    with torch.no_grad():
        rbm.visible_bias.normal_()
        rbm.hidden_bias.normal_()
    return rbm


def states():
    return ((torch.arange(16)[:, None] >> torch.arange(4)) & 1).float()


def chi_square(x, p):
    codes = (x.flatten(1) * 2 ** torch.arange(4)).sum(1).long()
    counts = torch.bincount(codes, minlength=16).double()
    return ((counts - len(x) * p).square() / (len(x) * p)).sum().item()


@torch.no_grad()
def probabilities(rbm):
    return torch.softmax(-rbm(states().view(-1, 2, 2)).double(), 0)


def test_it_leaves_exact_samples_exact():
    rbm, generator = random_rbm(), torch.Generator().manual_seed(0)
    p = probabilities(rbm)
    x = states()[torch.multinomial(p, N, replacement=True, generator=generator)].view(-1, 2, 2)
    assert chi_square(Gibbs().sample(rbm, x, 3, generator=generator), p) < CHI_SQUARE_15_DF


def test_it_finds_the_model_from_a_bad_start():
    rbm, generator = random_rbm(), torch.Generator().manual_seed(0)
    assert (
        chi_square(Gibbs().sample(rbm, torch.zeros(N, 2, 2), 60, generator=generator), probabilities(rbm)) < CHI_SQUARE_15_DF
    )


def test_one_step_has_the_exact_transition_probabilities():
    rbm, generator = random_rbm(), torch.Generator().manual_seed(0)
    hidden = ((torch.arange(8)[:, None] >> torch.arange(3)) & 1).float()
    start = states()[6]
    with torch.no_grad():
        p_h = torch.distributions.Bernoulli(logits=rbm.hidden_logits(start[None])).log_prob(hidden).sum(1).exp()
        logits = rbm.visible_logits(hidden)
        p_v = torch.stack(
            [torch.distributions.Bernoulli(logits=logits).log_prob(s.expand(8, 4)).sum(1) for s in states()], 1
        )
        row = p_h.double() @ p_v.exp().double()
    x = Gibbs().sample(rbm, start.view(1, 2, 2).expand(N, 2, 2), 1, generator=generator)
    assert chi_square(x, row) < CHI_SQUARE_15_DF


def test_it_samples_a_tempered_rbm():
    rbm, generator = random_rbm(), torch.Generator().manual_seed(0)
    hot = ebmcore.tempered(rbm, torch.tensor(0.4))
    x = Gibbs().sample(hot, torch.zeros(N, 2, 2), 40, generator=generator)
    assert chi_square(x, probabilities(hot)) < CHI_SQUARE_15_DF


def test_its_generator_is_its_only_randomness():
    before = torch.get_rng_state()
    samples = [
        Gibbs().sample(random_rbm(), torch.zeros(50, 2, 2), 3, generator=torch.Generator().manual_seed(0)) for _ in "ab"
    ]
    torch.set_rng_state(before)
    with torch.random.fork_rng():
        rbm = random_rbm()
        state = torch.get_rng_state()
        Gibbs().sample(rbm, torch.zeros(50, 2, 2), 3, generator=torch.Generator().manual_seed(0))
        assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(*samples)


def test_an_energy_without_conditionals_is_an_error_that_says_what_would_fit():
    with pytest.raises(MissingCapabilityError, match=r"Gibbs needs .*SupportsBlockGibbs.*ebm-plugin-rbm:rbm"):
        check_sampler(Gibbs(), Quadratic())


def test_it_is_installed_under_its_name():
    assert isinstance(ebmcore.create_sampler("gibbs"), Gibbs)
