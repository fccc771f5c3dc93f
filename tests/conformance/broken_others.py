"""Energies, data sets, metrics and observers that are deliberately wrong, each in one way."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from ebm_plugin_datasets.bars_and_stripes import BarsAndStripes
from ebm_plugin_datasets.ring_of_gaussians import RingOfGaussians
from ebm_plugin_likelihood.exact import ExactLogLikelihood
from ebm_plugin_likelihood.pseudo import PseudoLogLikelihood
from ebm_plugin_nets.mlp import MLP
from ebm_plugin_rbm.rbm import RBM
from ebmcore.errors import UsageError
from ebmcore.testing import EnumerableRBM, Identity
from ebmcore.training import BaseObserver


class Column(MLP):
    """Returns a column."""

    def forward(self, x):
        return self.net(x)


class BatchDependent(MLP):
    """Subtracts the mean of the batch."""

    def forward(self, x):
        energies = super().forward(x)
        return energies - energies.mean()


class Detached(MLP):
    """Cuts the graph."""

    def forward(self, x):
        return super().forward(x.detach()) + 0 * x.flatten(1).sum(1).detach()


class DetachedLabel(MLP):
    """The part of the label is not trained."""

    example_conditions = {"label": 1}

    def __init__(self, shape):
        super().__init__(shape)
        self.bias = torch.nn.Parameter(torch.zeros(3))

    def forward(self, x, label):
        return super().forward(x) + self.bias.detach()[label]


class InfiniteSlope(MLP):
    """Has no gradient where two components are equal."""

    def forward(self, x):
        return super().forward(x) + (x - x).flatten(1).sum(1).sqrt()


class PathDetached(MLP):
    """Forgets that the network depends on the example."""

    def forward(self, x):
        return super().forward(x.detach()) + 0.5 * x.flatten(1).square().sum(1)


class Unused(MLP):
    """Has a parameter that changes nothing."""

    def __init__(self, shape, **options):
        super().__init__(shape, **options)
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, x):
        return super().forward(x) + 0 * self.scale


class ClampsExamples(MLP):
    """Clamps what it is given in its place."""

    def forward(self, x):
        with torch.no_grad():
            x.clamp_(-1, 1)
        return super().forward(x)


class Counting(MLP):
    """Knows how often it was called."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x) + self.calls


class Noisy(MLP):
    """Adds a little noise from the global generator."""

    def forward(self, x):
        return super().forward(x) + 1e-5 * torch.randn(len(x), dtype=x.dtype)


class Training(MLP):
    """Leaves itself in training mode."""

    def forward(self, x):
        self.train()
        return super().forward(x)


class SinglePrecision(MLP):
    """Always answers in float32."""

    def forward(self, x):
        return super().forward(x).float()


class WrongGradient(RBM):
    """Forgets the visible bias in the closed form of the gradient."""

    def value_and_grad(self, x):
        energy, grad = super().value_and_grad(x)
        return energy, grad + self.visible_bias.view_as(x[0])


class WrongConditional(RBM):
    """Forgets the visible bias in the conditional."""

    def visible_given(self, field, *args):
        return super().visible_given(field - self.visible_bias, *args)


class ColdConditional(RBM):
    """Does not temper the visible conditional."""

    def sample_visible(self, hidden, *, beta=None, generator=None):
        return super().sample_visible(hidden, generator=generator)


class ProbabilitiesForLogits(EnumerableRBM):
    """Gives probabilities of the hidden units in place of their log-odds."""

    def hidden_logits(self, x):
        return self._hidden_logits(x).sigmoid()


class WrongTempering(RBM):
    """Squares beta."""

    def tempered(self, beta, base=None):
        return super().tempered(0.5 * (1 + beta), base)


class WrongNormaliser(RBM):
    """Counts the empty state twice."""

    def log_partition(self):
        log_z = super().log_partition()
        return torch.logaddexp(log_z, torch.zeros((), dtype=torch.float64))


class SingleNormaliser(RBM):
    """log Z in float32."""

    def log_partition(self):
        return super().log_partition().float()


class GreyStart(RBM):
    """Chains of binary units start at probabilities."""

    def initial_distribution(self, shape):
        outer = super().initial_distribution(shape)

        class Grey:
            def sample(self, n, *, generator=None):
                return 0.5 * outer.sample(n, generator=generator)

        return Grey()


class Flat(RingOfGaussians):
    """Says another shape than it has."""

    shape = (1, 2)


class Integers(BarsAndStripes):
    """Holds integers."""

    def __init__(self):
        super().__init__()
        self.train = self.train.long()


class Signs(BarsAndStripes):
    """Binary data in -1 and 1."""

    def __init__(self):
        super().__init__()
        self.train = 2 * self.train - 1


class Unseeded(RingOfGaussians):
    """Draws its points from the global generator."""

    def __init__(self):
        super().__init__(seed=int(torch.randint(1000, ())))


class Tensors(ExactLogLikelihood):
    """Returns tensors."""

    def __call__(self, *args, **kwargs):
        return {name: torch.tensor(value) for name, value in super().__call__(*args, **kwargs).items()}


class Optimistic(ExactLogLikelihood):
    """Forgets a tenth of a nat."""

    def __call__(self, *args, **kwargs):
        result = super().__call__(*args, **kwargs)
        return result | {"log_likelihood": result["log_likelihood"] + 0.1}


class Late(ExactLogLikelihood):
    """Refuses nothing before it measures."""

    def __call__(self, energy, data, **kwargs):
        super().check(energy, data)
        return super().__call__(energy, data, **kwargs)

    def check(self, energy, data, *, sampler=None):
        pass


class Timid(PseudoLogLikelihood):
    """Refuses to measure without a sampler, which it does not need."""

    def check(self, energy, data, *, sampler=None):
        super().check(energy, data)
        if sampler is None:
            raise UsageError("no sampler")

    def __call__(self, energy, data, *, sampler=None, generator=None):
        return super().__call__(energy, data, sampler=Identity(), generator=generator)


class Converting(ExactLogLikelihood):
    """Leaves the model in evaluation mode."""

    def __call__(self, energy, data, **kwargs):
        return super().__call__(energy.eval(), data, **kwargs)


class WithoutRun(BaseObserver):
    """Takes the metrics alone."""

    def on_log(self, metrics):
        pass


class Misspelt(BaseObserver):
    """Waits for an event that does not exist."""

    def on_logged(self, run, metrics):
        pass


class Returning(BaseObserver):
    """Returns the metrics."""

    def on_log(self, run, metrics):
        return metrics


class NeedsDirectory(BaseObserver):
    """Fails where a run writes no files."""

    def on_end(self, run):
        (run.directory / "done").touch()


class Littering(BaseObserver):
    """Writes into the current directory."""

    def on_end(self, run):
        Path("done").touch()


class Freezing(BaseObserver):
    """Leaves the energy in evaluation mode."""

    def on_log(self, run, metrics):
        run.energy.eval()


class Sampling(BaseObserver):
    """Draws from the global generator."""

    def on_log(self, run, metrics):
        torch.randn(3)


class Ending(BaseObserver):
    """Ends the run."""

    def on_log(self, run, metrics):
        run.n_steps = 1


def silent(arguments):
    """Prints no help."""
    return 0


def failing(arguments):
    """Ends with status 1."""
    sys.stdout.write("no help")
    return 1


class OneTemperature(RBM):
    """Tempers to one inverse temperature for each row only."""

    def tempered(self, beta, base=None):
        if beta.ndim == 2:
            beta = beta[0]
        return super().tempered(beta, base)
