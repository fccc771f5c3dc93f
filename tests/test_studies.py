"""What the studies stand on: machines side by side, and the identities."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import ebmcore
from ebm_plugin_rbm.rbm import RBM

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def studies(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "studies")
    yield
    for name in ("bars", "images", "machines", "table", "theory", "two_modes", "run"):
        sys.modules.pop(name, None)


def side_by_side(n=3, visible=4, hidden=2):
    from machines import Machines

    torch.manual_seed(0)
    machines = Machines(torch.randn(n, visible, hidden), torch.randn(n, visible), torch.randn(n, hidden)).double()
    alone = [RBM((visible,), hidden).double() for _ in range(n)]
    with torch.no_grad():
        for i, rbm in enumerate(alone):
            for name, parameter in rbm.named_parameters():
                parameter.copy_(getattr(machines, name)[i])
    return machines, alone


def test_machines_side_by_side_have_the_gradients_of_each_alone():
    from machines import for_each

    machines, alone = side_by_side()
    x = torch.randint(2, (5, 4), generator=torch.Generator().manual_seed(1)).double()
    pred_x = torch.randint(2, (7, 3, 4), generator=torch.Generator().manual_seed(2)).double()
    cd = ebmcore.create_loss("cd", machines, ebmcore.create_sampler("gibbs"))
    cd.compute_loss(for_each(x, 3), pred_x).backward()
    for i, rbm in enumerate(alone):
        (rbm(x).mean() - rbm(pred_x[:, i]).mean()).backward()
        for name, parameter in rbm.named_parameters():
            torch.testing.assert_close(getattr(machines, name).grad[i], parameter.grad)


def states(n):
    return torch.cartesian_prod(*[torch.tensor([0.0, 1.0]).double()] * n)


@torch.no_grad()
def joint_log_partition(rbm):
    """From the table of ``-E(v, h)`` of all pairs of a visible and a hidden state."""
    v, h = states(len(rbm.visible_bias)), states(len(rbm.hidden_bias))
    minus_energy = (v @ rbm.visible_bias)[:, None] + h @ rbm.hidden_bias + v @ rbm.weight @ h.T
    return torch.logsumexp(minus_energy.flatten(), 0)


@pytest.mark.parametrize(("visible", "hidden"), [(5, 3), (3, 5), (4, 4)])
@pytest.mark.parametrize("chunk", [3, 4096])
def test_the_enumerator_agrees_with_all_joint_states(visible, hidden, chunk):
    from machines import alone, log_partitions

    machines, rbms = side_by_side(3, visible, hidden)
    wanted = torch.stack([joint_log_partition(rbm) for rbm in rbms])
    torch.testing.assert_close(log_partitions(machines, chunk), wanted, rtol=0, atol=1e-8)
    torch.testing.assert_close(log_partitions(alone(rbms[1]), chunk), wanted[1:2], rtol=0, atol=1e-8)


def test_likelihoods_are_enumerated_in_float64_from_what_float32_machines_hold():
    from machines import alone, summed_log_likelihoods

    _, rbms = side_by_side(1)
    found = summed_log_likelihoods(alone(rbms[0].float()), states(4).float())
    rbm = rbms[0].double()
    wanted = -rbm(states(4)).sum() - 16 * joint_log_partition(rbm)
    torch.testing.assert_close(found, wanted[None].detach(), rtol=0, atol=1e-8)


def test_their_likelihoods_are_those_of_each_alone():
    from machines import summed_log_likelihoods

    for visible, hidden in ((4, 2), (2, 5)):
        machines, alone = side_by_side(3, visible, hidden)
        x = torch.randint(2, (5, visible), generator=torch.Generator().manual_seed(1)).double()
        found = summed_log_likelihoods(machines, x)
        with torch.no_grad():
            wanted = torch.stack([-rbm(x).sum() - 5 * joint_log_partition(rbm) for rbm in alone])
        torch.testing.assert_close(found, wanted)


def test_no_study_asks_the_plugin_for_its_normaliser(monkeypatch):
    import bars
    import images

    from ebm_plugin_datasets.mnist import Mnist

    monkeypatch.delattr(RBM, "log_partition")
    monkeypatch.setattr(bars, "UPDATES", 1)
    monkeypatch.setattr(bars, "EVERY", 1)
    assert -356 < bars.tempered_curve(0)[0] < -353  # about 32 * 16 * log 2, that of fair coins
    assert images.mnist("pcd", 0, **Mnist.example_options(), epochs=1) < 0


def test_their_conditionals_are_those_of_each_alone():
    machines, alone = side_by_side()
    x = torch.randint(2, (1, 3, 4), generator=torch.Generator().manual_seed(1)).double().expand(20_000, -1, -1)
    hidden = machines.sample_hidden(x, generator=torch.Generator().manual_seed(2))
    visible = machines.sample_visible(hidden[:1].expand(20_000, -1, -1), generator=torch.Generator().manual_seed(3))
    for i, rbm in enumerate(alone):
        exact = rbm.hidden_logits(x[:1, i]).sigmoid()[0]
        assert (hidden[:, i].mean(0) - exact).abs().max() < 4.5 * 0.5 / 20_000**0.5
        exact = (rbm.visible_bias + hidden[0, i] @ rbm.weight.T).sigmoid()
        assert (visible[:, i].mean(0) - exact).abs().max() < 4.5 * 0.5 / 20_000**0.5


@pytest.mark.parametrize("name", ["pseudo_likelihood", "score_matching", "second_eigenvalue"])
def test_identity(name):
    import theory

    row = getattr(theory, name)()
    assert row.verdict, row


def test_the_page_holds_the_table_of_the_last_run():
    page = (ROOT / "docs/studies.md").read_text()
    table = page.partition("<!-- table -->")[2].partition("<!-- end of the table -->")[0]
    lines = table.strip().splitlines()
    assert lines[0] == "| study | published | ours | holds |"
    assert len(lines) > 15
    assert not [line for line in lines[2:] if not line.endswith(("| True |", "| not run |"))]


def test_writing_the_table_keeps_the_rest_of_the_page(tmp_path, monkeypatch):
    import run
    from table import Row

    page = tmp_path / "studies.md"
    page.write_text("before\n<!-- table -->\nstale\n<!-- end of the table -->\nafter\n")
    monkeypatch.setattr(run, "PAGE", page)
    run.write_page([Row("a", "1", "2", True), Row("b", "1", "3", None)])
    text = page.read_text()
    assert text.startswith("before\n<!-- table -->\n")
    assert text.endswith("\n<!-- end of the table -->\nafter\n")
    assert "| a | 1 | 2 | True |\n| b | 1 | 3 | not run |" in text
    assert "stale" not in text
