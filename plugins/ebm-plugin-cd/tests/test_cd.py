"""CD-k."""

from __future__ import annotations

import pytest
import torch

import ebmcore
from ebm_plugin_cd.loss import ContrastiveDivergence
from ebmcore.testing import ExactGaussian, Identity, Quadratic


@pytest.mark.parametrize("shape", [(2,), (1, 2, 2)])
def test_it_fits_a_quadratic_with_the_right_sign_and_scale(shape):
    torch.manual_seed(0)
    energy = Quadratic(shape, precision=1.0)
    x = 1.0 + 2.0 * torch.randn(20_000, *shape)  # precision 1/4, mean 1
    loss = ContrastiveDivergence(energy, ExactGaussian())
    optimizer = torch.optim.Adam(energy.parameters(), lr=0.05)
    for step in range(300):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 300)
        value, _ = loss(x)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert energy.precision.item() == pytest.approx(0.25, rel=0.03)
    torch.testing.assert_close(energy.mean.detach(), torch.ones(shape), atol=0.1, rtol=0)


def test_its_gradient_is_its_closed_form_in_float64():
    energy = Quadratic((2,), precision=3.0).double()
    x, pred_x = torch.randn(5, 2).double(), torch.randn(7, 2).double()
    ContrastiveDivergence(energy, Identity()).compute_loss(x, pred_x).backward()
    expected = 0.5 * (x.square().sum(1).mean() - pred_x.square().sum(1).mean())
    torch.testing.assert_close(energy.precision.grad, expected, atol=1e-10, rtol=0)


def test_each_call_starts_at_the_data_again():
    x = torch.randn(4, 2)
    loss = ContrastiveDivergence(Quadratic(), Identity(), k_steps=3)
    for _ in range(2):
        assert torch.equal(loss(x)[1], x)
    assert loss.chain is None


def test_it_is_installed_under_its_name():
    loss = ebmcore.create_loss("cd", Quadratic(), Identity(), k_steps=2)
    assert isinstance(loss, ContrastiveDivergence)
    assert ebmcore.load("loss", "ebm-plugin-cd:cd") is ContrastiveDivergence


def test_an_unknown_keyword_names_the_accepted_ones():
    with pytest.raises(TypeError, match="it accepts: energy, sampler, k_steps, energy_l2, joint_forward"):
        ContrastiveDivergence(Quadratic(), Identity(), n_chains=3)
