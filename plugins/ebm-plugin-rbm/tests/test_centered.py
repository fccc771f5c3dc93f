"""The centred RBM: the same model, another gradient."""

from __future__ import annotations

import pytest
import torch

from ebm_plugin_rbm.gibbs import Gibbs
from ebm_plugin_rbm.rbm import OFFSET_RATE, RBM
from ebmcore import BaseContrastiveDivergence
from ebmcore.testing.targets import binary_states


class CD(BaseContrastiveDivergence):
    def forward(self, x):
        pred_x = self.draw_negatives(x)
        return self.compute_loss(x, pred_x), pred_x

    def compute_loss(self, x, pred_x):
        return self.energy_gap(x, pred_x)


def states(n):
    return binary_states(n, torch.zeros((), dtype=torch.float64))


def machine(centered=True, seed=0, visible=5, hidden=3):
    torch.manual_seed(seed)
    rbm = RBM((visible,), hidden, weight_std=1.0, centered=centered).double()
    with torch.no_grad():
        rbm.visible_bias.normal_()
        rbm.hidden_bias.normal_()
        if centered:
            rbm.visible_offset.uniform_()
            rbm.hidden_offset.uniform_()
    return rbm


def gradient_of(rbm, x, pred_x):
    """That of the energy gap."""
    rbm.zero_grad()
    (rbm(x).mean() - rbm(pred_x).mean()).backward()
    return rbm.weight.grad, rbm.visible_bias.grad, rbm.hidden_bias.grad


def test_centered_energy_equals_plain():
    """The energy is bit for bit that of the plain machine."""
    centered, plain = machine(), machine(centered=False)
    plain.load_state_dict({name: t for name, t in centered.state_dict().items() if "_bias" in name or name == "weight"})
    assert torch.equal(centered(states(5)), plain(states(5)))
    assert torch.equal(centered.log_partition(), plain.log_partition())


def test_centered_gradient_matches_melchior_2016():
    """The gradient is the one of Melchior, Fischer and Wiskott."""
    rbm, v, pred_v = machine(), states(5)[[3, 9, 30]], states(5)[[1, 1, 7, 20]]
    w, b, c = gradient_of(rbm, v, pred_v)
    mu, lam = rbm.visible_offset, rbm.hidden_offset

    def centred(x):
        h = rbm.hidden_logits(x).sigmoid()
        return (x - mu).T @ (h - lam) / len(x), x.mean(0), h.mean(0)

    with torch.no_grad():
        (w_data, v_data, h_data), (w_model, v_model, h_model) = centred(v), centred(pred_v)
        expected_w = w_model - w_data
        expected_b = v_model - v_data - expected_w @ lam
        expected_c = h_model - h_data - mu @ expected_w
    torch.testing.assert_close(w, expected_w, atol=1e-12, rtol=0)
    torch.testing.assert_close(b, expected_b, atol=1e-12, rtol=0)
    torch.testing.assert_close(c, expected_c, atol=1e-12, rtol=0)


def test_offsets_of_zero_give_the_plain_gradient():
    rbm, plain, v, pred_v = machine(), machine(centered=False), states(5)[:7], states(5)[9:]
    rbm.visible_offset.zero_()
    rbm.hidden_offset.zero_()
    plain.load_state_dict({name: t for name, t in rbm.state_dict().items() if name in dict(plain.named_parameters())})
    for a, b in zip(gradient_of(rbm, v, pred_v), gradient_of(plain, v, pred_v), strict=True):
        torch.testing.assert_close(a, b, atol=1e-14, rtol=0)


def flipped(rbm):
    """The machine that gives flipped data the same energies."""
    other = machine()
    with torch.no_grad():
        other.weight.copy_(-rbm.weight)
        other.visible_bias.copy_(-rbm.visible_bias)
        other.hidden_bias.copy_(rbm.hidden_bias + rbm.weight.sum(0))
    other.visible_offset.copy_(1 - rbm.visible_offset)
    other.hidden_offset.copy_(rbm.hidden_offset)
    return other


@pytest.mark.parametrize("centered", [True, False])
def test_only_centred_learning_is_flip_invariant(centered):
    """Learning is the same on flipped data with centring only."""
    data, results = states(5)[[3, 7, 7, 19, 31]], []
    first = machine()
    for rbm, x in ((first, data), (flipped(first), 1 - data)):
        if not centered:
            rbm.visible_offset.zero_()
            rbm.hidden_offset.zero_()
        optimizer = torch.optim.SGD(rbm.parameters(), lr=0.2)
        for _ in range(30):
            everything = states(5)
            p = torch.softmax(-rbm(everything), 0).detach()
            optimizer.zero_grad()
            (rbm(x).mean() - (p * rbm(everything)).sum()).backward()
            optimizer.step()
            if centered:
                rbm.observe_data(x)
        results.append((-rbm(x).mean() - rbm.log_partition()).item())
    assert (abs(results[0] - results[1]) < 1e-9) is centered


def test_offsets_are_sliding_averages():
    """Offsets are sliding averages of the data and of the hidden probabilities."""
    rbm = RBM((4,), 3, weight_std=1.0, centered=True)
    loss, x, y = CD(rbm, Gibbs()), states(4)[[3, 5, 15]].float(), states(4)[[8, 9]].float()
    assert rbm.hidden_offset.tolist() == [0.5] * 3
    first = rbm.hidden_logits(x).sigmoid().mean(0).detach()
    loss(x)
    torch.testing.assert_close(rbm.visible_offset, x.mean(0))
    torch.testing.assert_close(rbm.hidden_offset, 0.5 + OFFSET_RATE * (first - 0.5))
    loss(y)
    torch.testing.assert_close(rbm.visible_offset, x.mean(0) + OFFSET_RATE * (y.mean(0) - x.mean(0)))


def test_offsets_stand_still_in_evaluation():
    rbm = RBM((4,), 3, centered=True)
    loss, x = CD(rbm, Gibbs()), states(4)[[3, 5, 15]].float()
    loss(x)
    before = rbm.visible_offset.clone()
    with torch.no_grad():
        loss(1 - x)
    loss.eval()(1 - x)
    assert torch.equal(rbm.visible_offset, before)
    assert set(rbm.state_dict()) == {
        "weight", "visible_bias", "hidden_bias", "visible_offset", "hidden_offset", "n_observed"
    }  # fmt: skip


def test_gradients_of_two_calls_add():
    """Two calls before one backward give the sum of their gradients."""
    x = states(5)[:8]
    loss = CD(machine(), Gibbs())
    parts, values = [], []
    for batch in (x[:4], x[4:]):
        value, _ = loss(batch)
        values.append(value)
        parts.append(torch.autograd.grad(value, list(loss.energy.parameters()), retain_graph=True))
    sum(values).backward()
    for parameter, *of_each in zip(loss.energy.parameters(), *parts, strict=True):
        torch.testing.assert_close(parameter.grad, sum(of_each))
