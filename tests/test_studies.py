"""What the studies stand on: machines side by side, and the identities."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import ebmcore
from ebm_plugin_rbm.rbm import RBM
from ebmcore.testing import Boltzmann, Quadratic

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def studies(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "studies")
    yield
    for path in (ROOT / "studies").glob("*.py"):
        sys.modules.pop(path.stem, None)


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


def test_no_study_asks_the_plugin_for_its_normaliser(monkeypatch, tmp_path):
    import bars
    import images
    import theory

    monkeypatch.delattr(RBM, "log_partition")
    monkeypatch.setattr(bars, "UPDATES", 1)
    monkeypatch.setattr(bars, "EVERY", 1)
    assert -356 < bars.tempered_curve(0)[0] < -353  # about 32 * 16 * log 2, that of fair coins
    grey = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)
    np.savez(tmp_path / "mnist.npz", x_train=grey, x_test=grey[:2])
    assert images.mnist("pcd", 0, directory=tmp_path, epochs=1) < 0
    monkeypatch.setattr(theory, "BOUNDS", {20: 3.0})
    assert theory.annealing(2)[0].verdict


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


def trials(*mean, noise=0.1):
    """Ten curves about ``mean``."""
    curve = torch.tensor(mean)
    return (curve + noise * torch.randn(10, len(mean), generator=torch.Generator().manual_seed(0))).tolist()


@pytest.mark.parametrize(
    ("curves", "verdict"),
    [
        (trials(-10.0, 0.0, -4.0), True),
        (trials(0.0, -4.0, -10.0), False),
        (trials(-10.0, -4.0, 0.0), False),
        (trials(-10.0, 0.0, -0.5, noise=2.0), False),
        (trials(-0.5, 0.0, -10.0, noise=2.0), False),
    ],
    ids=["it does", "only falls", "only rises", "falls by less than its error", "rises by less than its error"],
)
def test_what_rises_then_falls(curves, verdict):
    import bars

    assert bars.rises_then_falls("a loss", curves).verdict is verdict


@pytest.mark.parametrize(
    ("curves", "verdict"),
    [
        (trials(-200.0, 0.0, -1.0), True),
        (trials(-200.0, -10.0, 0.0), True),
        (trials(-200.0, 0.0, -4.0), False),
        (trials(-200.0, 0.0, -10.0, noise=20.0), False),
        (trials(0.0, -1.0, -2.0), False),
    ],
    ids=["loses half a percent", "only rises", "loses two percent", "loses more, but less than its error", "only falls"],
)
def test_what_does_not_fall(curves, verdict):
    import bars

    assert bars.does_not_fall("a loss", curves).verdict is verdict


@pytest.mark.parametrize(("end", "noise", "verdict"), [(-1.0, 0.1, True), (1.0, 0.1, False), (-1.0, 5.0, False)])
def test_ptcd_leads_where_it_ends_above_the_other_by_two_errors(end, noise, verdict):
    import bars

    assert bars.lead_of_ptcd("a lead", trials(-5.0, 0.0, noise=noise), trials(0.0, end, noise=noise)).verdict is verdict


def test_the_leads_of_ptcd_are_over_each_of_the_others():
    import bars

    best, worse = trials(-200.0, -100.0), trials(-200.0, -150.0)
    curves = {"ptcd": best, "pcd": worse, "pcd-10": best, "cd": best}
    assert [row.verdict for row in bars.tempering(curves)[:2]] == [True, False]


def test_pcd_is_above_cd_only_if_it_is_at_the_rate_of_its_row():
    import bars

    def found(cd, pcd, fpcd):
        return {loss: [mean - 0.1, mean, mean + 0.1] for loss, mean in (("cd", cd), ("pcd", pcd), ("fpcd", fpcd))}

    def verdicts(small, large):
        return [row.verdict for row in bars.variant_rows({0.05: found(*small), 0.2: found(*large)})]

    assert verdicts((-5.0, -4.0, -3.0), (-6.0, -7.0, -4.0)) == [True, True]
    assert verdicts((-5.0, -6.0, -3.0), (-6.0, -4.0, -4.0)) == [False, False]


def test_a_mass_is_missed_by_the_bound_within_which_the_other_found_it():
    import two_modes

    def verdicts(ptcd, pcd):
        return [row.verdict for row in two_modes.rows({"ptcd": ptcd, "pcd": pcd})]

    assert verdicts([0.82, 0.78, 0.8], [0.5, 1.0, 0.4]) == [True, True]
    assert verdicts([0.82, 0.78, 0.65], [0.9, 0.88, 0.92]) == [False, False]
    assert verdicts([0.82, 0.78, 0.8], [0.8, 0.8, 0.45])[1] is False  # 0.12 on average, with an error as large


def test_annealing_is_judged_by_its_largest_error():
    import theory

    row = theory.annealing_row(100, 0.5, [0.01, -0.6, 0.02])
    assert (row.ours, row.verdict) == ("0.6000", False)
    assert theory.annealing_row(100, 0.5, [0.01, -0.4]).verdict


def test_divergence_on_a_grid():
    """Between normal densities the quadrature gives the closed form, whatever constants the two functions hold."""
    import densities

    ticks = torch.linspace(-8, 8, 161)
    grid = torch.cartesian_prod(ticks, ticks)
    log_p = -0.5 * grid.square().sum(1) + 3.0
    found = densities.divergence(log_p, Quadratic((2,), precision=2.0), grid)
    assert found == pytest.approx(1 - math.log(2), abs=1e-6)  # (tr P - d - log det P) / 2


def test_divergence_with_impossible_states():
    import densities

    model = Boltzmann(3)
    log_p = torch.full((8,), -torch.inf)
    log_p[5] = 0.0
    found = densities.divergence(log_p, model, model.states())
    assert found == pytest.approx(-model.probabilities()[5].log().item(), abs=1e-5)


def test_network_of_the_plane():
    import densities

    network = densities.network()
    assert [tuple(p.shape) for p in network.parameters() if p.ndim == 2] == [(128, 2), *[(128, 128)] * 3, (1, 128)]
    assert network(torch.zeros(5, 2)).shape == (5,)


@pytest.mark.parametrize("loss", ["energy-discrepancy", "score-matching"])
def test_training_in_the_plane(loss, monkeypatch):
    """After a few steps the average is another energy than the one that it began with, and nearer to the data."""
    import densities

    monkeypatch.setattr(densities, "TICKS", 121)
    monkeypatch.setattr(densities, "AVERAGE", 0.5)
    assert densities.in_plane(loss, 0, steps=30) < densities.in_plane(loss, 0, steps=1)


@pytest.mark.parametrize("loss", ["pcd", "discrete-energy-discrepancy", "pseudo-likelihood"])
def test_training_in_bits(loss, monkeypatch):
    import densities

    monkeypatch.setattr(densities, "AVERAGE", 0.5)
    assert densities.in_bits(loss, 0, steps=60) < densities.in_bits(loss, 0, steps=1) - 0.02


def test_verdicts_in_the_plane():
    import densities

    def verdicts(discrepancy, score):
        rows = densities.plane_rows({"energy-discrepancy": discrepancy, "score-matching": score})
        return [row.verdict for row in rows]

    assert verdicts([0.15, 0.1], [0.6, 0.51]) == [True, True]
    assert verdicts([0.16, 0.1], [0.6, 0.5]) == [False, False]


def test_verdicts_in_bits():
    """A loss may end nearer to the density than PCD, or as near within the errors, not further away."""
    import densities

    near, far = [0.3, 0.31, 0.32], [0.5, 0.51, 0.52]

    def verdicts(pcd, discrepancy, pseudo):
        found = {"pcd": pcd, "discrete-energy-discrepancy": discrepancy, "pseudo-likelihood": pseudo}
        return [row.verdict for row in densities.bits_rows(found)]

    assert verdicts(far, far, near) == [True, True]
    assert verdicts(near, far, near) == [False, True]
    assert verdicts(near, near, far) == [True, False]


def test_likelihood_of_weighted_states():
    import recovery

    rbm = recovery.machine(4.0, seed=1)
    x = rbm.sample(500, generator=torch.Generator().manual_seed(0))
    distinct, counts = x.unique(dim=0, return_counts=True)
    found = recovery.log_likelihood(rbm, distinct, counts.double() * len(distinct) / 500)
    wanted = -rbm(x).mean() - joint_log_partition(rbm)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)


def test_recovery_of_a_small_machine(monkeypatch):
    """Three units are recovered without a normaliser; CD-1 of one step stays where it began."""
    import recovery

    for name, value in {"UNITS": 3, "ITERATIONS": 200, "CD_STEPS": 1}.items():
        monkeypatch.setattr(recovery, name, value)
    gaps = recovery.below_the_maximum(0)
    assert abs(gaps["minimum-probability-flow"]) < 1e-3
    assert abs(gaps["pseudo-likelihood"]) < 1e-3
    assert gaps["cd"] > 0.1


def test_verdicts_of_recovery():
    import recovery

    def verdicts(*gaps):
        found = [dict(zip(recovery.NAMES, trial, strict=True)) for trial in zip(*gaps, strict=True)]
        return [row.verdict for row in recovery.rows(found)]

    assert verdicts([0.1, 0.0, -0.1], [0.0, 0.0, 0.0], [0.9, 1.0, 1.1]) == [True, True, True]
    assert verdicts([0.11, 0.0, 0.0], [0.0, 0.0, -0.11], [0.1, 0.0, 0.0]) == [False, False, False]


def test_images_made_of_digits():
    import denoising

    x = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(1)).sub(0.5).repeat(5, 1, 1, 1)
    made = denoising.others(x)
    assert torch.equal(made["mirrored"][..., 0], x[..., 7])
    assert torch.equal(made["inverted"], -x)
    assert torch.equal(made["shuffled"].flatten(1).sort(1).values, x.flatten(1).sort(1).values)
    assert len(torch.cat([made["shuffled"], x]).unique(dim=0)) == 6, "each is shuffled in a way of its own"


def test_areas_of_a_known_energy():
    """The sum of pixels knows inverted images, whose energy is higher, and takes mirrored and shuffled ones for digits."""
    import denoising

    x = torch.randint(-8, 0, (50, 1, 8, 8), generator=torch.Generator().manual_seed(1)).float()
    summed = nn.Sequential(nn.Flatten(), nn.LazyLinear(1, bias=False), nn.Flatten(0))
    summed(x)
    nn.init.ones_(summed[1].weight)
    assert denoising.areas(summed, x) == pytest.approx({"mirrored": 0.5, "shuffled": 0.5, "inverted": 1.0})


def test_verdicts_of_denoising():
    import denoising

    def verdicts(**areas):
        return [row.verdict for row in denoising.rows([areas, areas])]

    assert verdicts(mirrored=0.85, shuffled=0.99, inverted=0.99) == [True, True, True]
    assert verdicts(mirrored=0.84, shuffled=0.98, inverted=0.98) == [False, False, False]


def test_the_page_holds_the_table_of_the_last_run():
    page = (ROOT / "docs/studies.md").read_text()
    table = page.partition("<!-- table -->")[2].partition("<!-- end of the table -->")[0]
    lines = table.strip().splitlines()
    assert lines[0] == "| study | published | ours | holds |"
    assert len(lines) > 15
    assert not [line for line in lines[2:] if not line.endswith("| True |")]


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


def test_the_page_is_left_alone_where_a_study_was_not_run(tmp_path, monkeypatch):
    import run
    from table import Row

    page = tmp_path / "studies.md"
    page.write_text("<!-- table -->\nof all studies\n<!-- end of the table -->\n")
    monkeypatch.setattr(run, "PAGE", page)
    monkeypatch.setattr(run, "plot", lambda curves, marginals: (tmp_path / "plot.png").touch())
    run.publish([Row("a", "1", "2", True), Row("b", "1", "3", None)], {}, {})
    assert "of all studies" in page.read_text()
    assert not (tmp_path / "plot.png").exists()
    run.publish([Row("a", "1", "2", True)], {}, {})
    assert "| a | 1 | 2 | True |" in page.read_text()
    assert (tmp_path / "plot.png").exists()


def test_the_last_line_says_nothing_of_what_was_not_run():
    import run
    from table import Row

    true, false, missing = (Row(name, "1", "2", verdict) for name, verdict in (("a", True), ("b", False), ("c", None)))
    assert run.summary([true]) == "every verdict is true"
    assert run.summary([true, false]) == "not true: b"
    assert run.summary([true, missing]).startswith(
        "every verdict on what was run is true; not run: c; the page is written only"
    )
    assert run.summary([false, missing]).startswith("not true: b; not run: c")
