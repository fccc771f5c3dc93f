"""Losses that are deliberately wrong, each in one way. The right ones from which they derive pass every check."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import correct_losses as right
import torch
from correct_losses import ScoreMatching
from torch import nn

from ebm_plugin_cd.loss import ContrastiveDivergence as CD
from ebm_plugin_pcd.loss import PersistentContrastiveDivergence as PCD
from ebmcore.conditions import name_conditions
from ebmcore.energies import frozen
from ebmcore.samplers import run


class SignFlip(CD):
    """Raises the energy of data and lowers that of negatives."""

    def compute_loss(self, x, pred_x, *args, **kwargs):
        return -super().compute_loss(x, pred_x, *args, **kwargs)


class Scaled(CD):
    """A scale 5 % off."""

    def compute_loss(self, x, pred_x, *args, **kwargs):
        return 1.05 * super().compute_loss(x, pred_x, *args, **kwargs)


class Regularised(CD):
    """A hidden regulariser."""

    def compute_loss(self, x, pred_x, *args, **kwargs):
        return super().compute_loss(x, pred_x, *args, **kwargs) + 1e-3 * self.energy(x, *args, **kwargs).square().mean()


class Doubled(CD):
    """A regulariser twice as strong as asked."""

    def __init__(self, energy, sampler, k_steps: int = 1, *, energy_l2: float = 0.0, joint_forward: bool = True):
        super().__init__(energy, sampler, k_steps, energy_l2=2 * energy_l2, joint_forward=joint_forward)


class Attached(CD):
    """Negatives that carry a graph."""

    def forward(self, x, *args, **kwargs):
        pred_x = self.draw_negatives(x, *args, **kwargs).requires_grad_()
        return self.compute_loss(x, pred_x, *args, **kwargs), pred_x


class Graph(CD):
    """Missing detach: the gradient runs through the last step of the sampler."""

    def forward(self, x, *args, **kwargs):
        pred_x = self.draw_negatives(x, *args, **kwargs)
        moved = pred_x - 0.05 * sum(p.square().sum() for p in self.energy.parameters())
        return self.energy(x, *args, **kwargs).mean() - self.energy(moved, *args, **kwargs).mean(), pred_x


class TupleLess(CD):
    """Returns the loss alone."""

    def forward(self, x, *args, **kwargs):
        return super().forward(x, *args, **kwargs)[0]


class PerExample(CD):
    """Returns a loss for each example."""

    def compute_loss(self, x, pred_x, *args, **kwargs):
        return self.energy(x, *args, **kwargs) - self.energy(pred_x, *args, **kwargs).mean()


class Constant(CD):
    """NaN replaced by a constant."""

    def compute_loss(self, x, pred_x, *args, **kwargs):
        value = self.energy(x, *args, **kwargs).mean() - self.energy(pred_x, *args, **kwargs).mean()
        return torch.where(value.isfinite(), value, 0.1)


class ZeroFilled(CD):
    """Chains that are not finite replaced by zeros."""

    def draw_negatives(self, x, *args, **kwargs):
        return super().draw_negatives(x, *args, **kwargs).nan_to_num()


class EvalNegatives(CD):
    """Scores negatives in evaluation mode."""

    def compute_loss(self, x, pred_x, *args, **kwargs):
        positive = self.energy(x, *args, **kwargs).mean()
        was = self.energy.training
        self.energy.eval()
        negative = self.energy(pred_x, *args, **kwargs).mean()
        self.energy.train(was)
        return positive - negative


class BatchStatistics(CD):
    """Samples in training mode."""

    def draw_negatives(self, x, *args, **kwargs):
        for _ in range(self.k_steps):
            self.energy(x, *args, **kwargs)
        return super().draw_negatives(x, *args, **kwargs)


class Unfrozen(CD):
    """Sets all flags afterwards, also those that were not set."""

    def forward(self, x, *args, **kwargs):
        result = super().forward(x, *args, **kwargs)
        self.energy.train()
        self.energy.requires_grad_(True)
        return result


class LeftFrozen(CD):
    """Frozen flags not restored."""

    def forward(self, x, *args, **kwargs):
        result = super().forward(x, *args, **kwargs)
        self.energy.requires_grad_(False)
        return result


class Noise(CD):
    """Starts at noise."""

    def start_chains(self, x, *args, **kwargs):
        return self.new_chains(torch.randn_like(x, generator=self.generator), name_conditions(args, kwargs, x))


class Alias(CD):
    """Starts at the batch itself."""

    def start_chains(self, x, *args, **kwargs):
        return self.new_chains(x, name_conditions(args, kwargs, x))


class MovesTheBatch(CD):
    """Adds noise to the batch in place."""

    def forward(self, x, *args, **kwargs):
        with torch.no_grad():
            x.add_(0.01)
        return super().forward(x, *args, **kwargs)


class OneTransition(CD):
    """Makes one transition for any k_steps."""

    def draw_negatives(self, x, *args, **kwargs):
        k, self.k_steps = self.k_steps, 1
        try:
            return super().draw_negatives(x, *args, **kwargs)
        finally:
            self.k_steps = k


class HalfStays(CD):
    """Half of the negatives are where they started."""

    def draw_negatives(self, x, *args, **kwargs):
        pred_x = super().draw_negatives(x, *args, **kwargs).clone()
        half = len(x) // 2
        pred_x[:half] = x[:half]
        return pred_x


class SumOverLastAxis(CD):
    """Weights by the last axis, as if an example were flat."""

    def compute_loss(self, x, pred_x, *args, **kwargs):
        return super().compute_loss(x, pred_x, *args, **kwargs) * x.shape[-1] / 4


class FixedBatch(CD):
    """Takes the batch size of its first call for all others."""

    rows = None

    def forward(self, x, *args, **kwargs):
        self.rows = self.rows or len(x)
        weights = torch.ones(self.rows, dtype=x.dtype) / self.rows
        pred_x = self.draw_negatives(x, *args, **kwargs)
        return (weights * (self.energy(x) - self.energy(pred_x))).sum(), pred_x


class PlainMetrics(CD):
    """Metrics that carry a graph."""

    def compute_loss(self, x, pred_x, *args, **kwargs):
        value = super().compute_loss(x, pred_x, *args, **kwargs)
        self.metrics["loss"] = value
        return value


class OwnCall(CD):
    """Its own __call__."""

    def __call__(self, x, *args, **kwargs):
        return self.forward(x, *args, **kwargs)


class CachedDtype(CD):
    """Remembers the dtype of the beginning."""

    def __init__(self, energy, sampler, k_steps: int = 1):
        super().__init__(energy, sampler, k_steps)
        self.first = super().dtype

    def forward(self, x, *args, **kwargs):
        return super().forward(x.to(self.first).to(x.dtype), *args, **kwargs)

    dtype = property(lambda self: self.first)


class WithinReturn(CD):
    """to() returns nothing."""

    def to(self, *args, **kwargs):
        super().to(*args, **kwargs)


class Twice(CD):
    """The model stands twice in the state."""

    def __init__(self, energy, sampler, k_steps: int = 1):
        super().__init__(energy, sampler, k_steps)
        self.model = nn.ModuleDict({"inner": energy})


class Unsaved(CD):
    """State that state_dict() does not hold."""

    calls = 0

    def compute_loss(self, x, pred_x, *args, **kwargs):
        self.calls += 1
        return super().compute_loss(x, pred_x, *args, **kwargs) + 1e-3 * self.calls * self.energy(x).mean()


class LateBuffer(CD):
    """A buffer that is there only once it was used."""

    def forward(self, x, *args, **kwargs):
        if not hasattr(self, "mean"):
            self.register_buffer("mean", x.mean(0))
        return super().forward(x, *args, **kwargs)


class Shared(PCD):
    """All copies share one store of chains."""

    def __deepcopy__(self, memo):
        other = PCD(self.energy, self.sampler, self.k_steps, n_chains=self.n_chains)
        other.chains = self.chains
        other.__class__ = type(self)
        return other


class SamplerFirst(CD):
    """Takes the sampler first."""

    def __init__(self, sampler, energy, k_steps: int = 1):
        super().__init__(*((sampler, energy) if isinstance(sampler, nn.Module) else (energy, sampler)), k_steps)


class SameOnAllRanks(CD):
    """Seeds its own generator, on all ranks alike."""

    def draw_negatives(self, x, *args, **kwargs):
        self.generator = torch.Generator().manual_seed(0)
        return super().draw_negatives(x, *args, **kwargs)


class Summed(CD):
    """Sums over the batch in place of the mean."""

    def compute_loss(self, x, pred_x, *args, **kwargs):
        return super().compute_loss(x, pred_x, *args, **kwargs) * len(x)


class Swallowing(CD):
    """Turns every exception of the energy into noise."""

    def draw_negatives(self, x, *args, **kwargs):
        with contextlib.suppress(Exception):
            return super().draw_negatives(x, *args, **kwargs)
        return torch.randn_like(x, generator=self.generator)

    def compute_loss(self, x, pred_x, *args, **kwargs):
        with contextlib.suppress(Exception):
            return super().compute_loss(x, pred_x, *args, **kwargs)
        return sum(p.sum() for p in self.energy.parameters() if p.requires_grad) * 0.0


class Waiting(CD):
    """Reads the loss in the step."""

    def compute_loss(self, x, pred_x, *args, **kwargs):
        value = super().compute_loss(x, pred_x, *args, **kwargs)
        return value if value.item() < 1e9 else value * 0


class MaskIndex(PCD):
    """Picks the finite negatives with a mask."""

    def compute_loss(self, x, pred_x, *args, **kwargs):
        return super().compute_loss(x, pred_x[pred_x.isfinite().flatten(1).all(1)], *args, **kwargs)


class Hoarding(CD):
    """Keeps the graph of every call."""

    def forward(self, x, *args, **kwargs):
        value, pred_x = super().forward(x, *args, **kwargs)
        self.__dict__.setdefault("losses", []).append(value)
        return value, pred_x


class FirstInFirstOut(PCD):
    """Writes chains back at a running pointer (FIFO)."""

    pointer = 0

    def keep_chains(self, state):
        n = len(self.chain)
        slots = (self.pointer + torch.arange(len(state))) % n
        self.pointer = (self.pointer + len(state)) % n
        self.chain[slots] = state.x


class WithReplacement(PCD):
    """Draws chains with replacement."""

    def start_chains(self, x, *args, **kwargs):
        state = super().start_chains(x, *args, **kwargs)
        again = torch.randint(len(state), (len(state),), generator=self.generator)
        return state.with_tensors({name: t[again] for name, t in state.tensors().items()})

    def keep_chains(self, state):
        pass


class DeadSlots(PCD):
    """Draws from the first chains only."""

    def start_chains(self, x, *args, **kwargs):
        state = super().start_chains(x, *args, **kwargs)
        n = min(len(state), len(self.chain))
        return state.with_tensors({**state.tensors(), "x": self.chain[:n].clone()})

    def keep_chains(self, state):
        pass


class Resets(PCD):
    """The last batch resets the chains."""

    rows = None

    def start_chains(self, x, *args, **kwargs):
        if self.rows not in (None, len(x)):
            n = self.n_chains
            self.chain.copy_(self.initial_distribution(x.shape[1:]).sample(n, generator=self.generator))
        self.rows = len(x)
        return super().start_chains(x, *args, **kwargs)


class NotLive(PCD):
    """Returns copies of the chains."""

    chain = property(lambda self: None if self.chains.x is None else self.chains.x.clone())


class NudgedRestarts(PCD):
    """Restarts that add noise to where the chain was."""

    def start_chains(self, x, *args, **kwargs):
        restart_prob, self.restart_prob = self.restart_prob, 0.0
        state = super().start_chains(x, *args, **kwargs)
        self.restart_prob = restart_prob
        uniform = torch.rand(len(state), 1, generator=self.generator)
        noise = 0.01 * torch.randn_like(state.x, generator=self.generator)
        return state.with_tensors({**state.tensors(), "x": torch.where(uniform < restart_prob, state.x + noise, state.x)})


class RareRestarts(PCD):
    """Restarts half as often as asked."""

    def start_chains(self, x, *args, **kwargs):
        asked = self.restart_prob
        self.restart_prob = asked / 2
        try:
            return super().start_chains(x, *args, **kwargs)
        finally:
            self.restart_prob = asked


class Renumbered(PCD):
    """Ages chains by two in each call."""

    def keep_chains(self, state):
        super().keep_chains(state)
        self.chains.ages.mul_(2)


class LabelsLost(PCD):
    """Chains take over the labels of the batch."""

    def start_chains(self, x, *args, **kwargs):
        state = super().start_chains(x, *args, **kwargs)
        labels = {f"conditions.{name}": t[: len(state)] for name, t in name_conditions(args, kwargs, x).items()}
        return state.with_tensors(state.tensors() | labels)


class PositionsOnly(PCD):
    """Keeps positions, and loses what else the sampler's state holds."""

    def start_chains(self, x, *args, **kwargs):
        state = super().start_chains(x, *args, **kwargs)
        return self.new_chains(state.x, state.conditions)


class NotRefreshed(PCD):
    """Goes on with what the sampler cached under old parameters."""

    def start_chains(self, x, *args, **kwargs):
        refresh = type(self.sampler).refresh
        try:
            type(self.sampler).refresh = lambda sampler, energy, state: state
            return super().start_chains(x, *args, **kwargs)
        finally:
            type(self.sampler).refresh = refresh


class Quantised(PCD):
    """Stores chains in eight bits."""

    def keep_chains(self, state):
        x = (state.x.clamp(0, 1) * 255).to(torch.uint8).to(state.x.dtype) / 255
        super().keep_chains(state.with_tensors({**state.tensors(), "x": x}))


class LosesChains(PCD):
    """Clears its chains before it samples."""

    def draw_negatives(self, x, *args, **kwargs):
        if self.chain is None:
            return super().draw_negatives(x, *args, **kwargs)
        before = self.chain.clone()
        self.chain.zero_()
        state = self.new_chains(before[: len(x)], {})
        state, _ = run(self.sampler, self.energy, state, self.k_steps, generator=self.generator)
        self.chain.copy_(torch.cat([state.x, before[len(x) :]]))
        return state.x


class KeepsNaN(PCD):
    """Keeps chains that are NaN or infinite."""

    def keep_chains(self, state):
        slots = self.slots.index
        super().keep_chains(state)
        self.chain[slots] = state.x


class Stands(PCD):
    """Moves its chains, and stores them where they were."""

    def keep_chains(self, state):
        pass


class AlwaysANumber(CD):
    """Returns a loss when every chain is lost."""

    def forward(self, x, *args, **kwargs):
        with contextlib.suppress(RuntimeError):
            return super().forward(x, *args, **kwargs)
        return sum(p.sum() for p in self.energy.parameters()) * 0.0, x.clone()


class Keywords(CD):
    """Swallows typos."""


def _swallowing(self: Any, energy: Any, sampler: Any, k_steps: int = 1, **kwargs: Any) -> None:
    CD.__init__(self, energy, sampler, k_steps)


Keywords.__init__ = _swallowing  # put in afterwards, or the base would refuse what is unknown


class Lambda(CD):
    """Cannot be pickled."""

    def __init__(self, energy, sampler, k_steps: int = 1):
        super().__init__(energy, sampler, k_steps)
        self.schedule = lambda step: k_steps


class ClampedLoss(CD):
    """A hidden bound on the loss."""

    def compute_loss(self, x, pred_x, *args, **kwargs):
        return super().compute_loss(x, pred_x, *args, **kwargs).clamp(-100, 100)


class ClampedNegatives(CD):
    """Scores negatives as if they were in a box."""

    def compute_loss(self, x, pred_x, *args, **kwargs):
        return super().compute_loss(x, pred_x.clamp(-100, 100), *args, **kwargs)


class NaNGradient(CD):
    """A gradient that is not a number in all parameters but the first."""

    def compute_loss(self, x, pred_x, *args, **kwargs):
        value = super().compute_loss(x, pred_x, *args, **kwargs)
        for parameter in list(self.energy.parameters())[1:]:
            value = value + 0 * (0 * parameter.sum()).square().sqrt()
        return value


class InitUnfrozen(CD):
    """Lets the sampler evaluate the energy in training mode when chains begin."""

    def draw_negatives(self, x, *args, **kwargs):
        state = self.sampler.init(self.energy, x.detach().clone(), generator=self.generator)
        state, _ = run(self.sampler, self.energy, state, self.k_steps, generator=self.generator)
        return state.x


class Peeking(CD):
    """One more forward in training mode, to log the energy."""

    def draw_negatives(self, x, *args, **kwargs):
        with torch.no_grad():
            self.energy(x, *args, **kwargs)
        return super().draw_negatives(x, *args, **kwargs)


class PartlyEval(CD):
    """Scores negatives with dropout switched off, and the energy itself in training mode."""

    def compute_loss(self, x, pred_x, *args, **kwargs):
        positive = self.energy(x, *args, **kwargs).mean()
        dropouts = [(m, m.training) for m in self.energy.modules() if isinstance(m, nn.Dropout)]
        for module, _ in dropouts:
            module.training = False
        negative = self.energy(pred_x, *args, **kwargs).mean()
        for module, training in dropouts:
            module.training = training
        return positive - negative


class Annealing(CD):
    """Makes the steps of its sampler smaller from call to call."""

    def forward(self, x, *args, **kwargs):
        if hasattr(self.sampler, "step_size"):
            self.sampler.step_size *= 0.995
        return super().forward(x, *args, **kwargs)


class Unlabelled(CD):
    """Scores examples without their labels."""

    def compute_loss(self, x, pred_x, *args, **kwargs):
        return super().compute_loss(x, pred_x)


class UnlabelledPCD(PCD):
    """Scores examples without their labels."""

    def compute_loss(self, x, pred_x, *args, **kwargs):
        return super().compute_loss(x, pred_x)


class RolledLabels(CD):
    """Scores negatives under the labels of their neighbours."""

    def compute_loss(self, x, pred_x, *args, **kwargs):
        rolled = {name: t.roll(1, 0) for name, t in name_conditions(args, kwargs, x).items()}
        return self.energy_gap(x, pred_x, *args, negative_conditions=rolled, **kwargs)


class KeywordLabelsLost(PCD):
    """Labels given by keyword do not travel."""

    def start_chains(self, x, *args, **kwargs):
        state = super().start_chains(x, *args, **kwargs)
        return state.with_tensors(state.tensors() | {f"conditions.{n}": t[: len(state)] for n, t in kwargs.items()})


class RestartsKeepLabels(PCD):
    """A chain that restarts keeps the label that it had."""

    def start_chains(self, x, *args, **kwargs):
        state = super().start_chains(x, *args, **kwargs)
        slots = self.slots.index
        had = {f"conditions.{name}": t[slots] for name, t in self.chains.conditions.items()}
        return state.with_tensors(state.tensors() | had)


class GlobalRestarts(PCD):
    """Chains that restart are drawn from the global generator."""

    def initial_distribution(self, shape, x=None):
        inner = super().initial_distribution(shape, x)
        return Draws(lambda n, generator: inner.sample(n)) if self.restart_prob else inner


class SameStart(PCD):
    """Chains start alike on all ranks."""

    def initial_distribution(self, shape, x=None):
        inner = super().initial_distribution(shape, x)
        return Draws(lambda n, generator: inner.sample(n, generator=torch.Generator().manual_seed(0)))


class Origin(PCD):
    """All chains start at the origin."""

    def initial_distribution(self, shape, x=None):
        return Draws(lambda n, generator: torch.zeros(n, *shape))


class NormalStart(PCD):
    """Starts chains at normal noise for every energy."""

    def initial_distribution(self, shape, x=None):
        return Draws(lambda n, generator: torch.randn(n, *shape, generator=generator))


class OneDirection(right.SlicedScoreMatching):
    """Slices along the direction of all ones alone."""

    def directions(self, rows):
        return torch.ones_like(rows)


class ScaledLaplacian(ScoreMatching):
    """The Laplacian divided by the number of components."""

    def objective(self, grad, laplacian):
        return (0.5 * grad.square().sum(1) - laplacian / grad.shape[1]).mean()


class FlippedDenoising(right.DenoisingScoreMatching):
    """Denoising score matching that learns -E."""

    def target(self, noise):
        return -noise / self.sigma


class UndeclaredSmoothing(right.DenoisingScoreMatching):
    """Smooths the data and does not say so."""

    def fitted_precision(self, variance):
        return 1 / variance


class RatioLost(right.NoiseContrastive):
    """Noise-contrastive estimation without the ratio of noise to data in its logits: the log partition is off by log 2."""

    def logits(self, x, *args, **kwargs):
        return super().logits(x, *args, **kwargs) + math.log(self.noise_ratio)


class HalfOdds(right.PseudoLikelihood):
    """Half of the log-odds: it learns parameters that are twice as large."""

    def log_odds(self, x, flipped, *args, **kwargs):
        return 0.5 * super().log_odds(x, flipped, *args, **kwargs)


class OthersLabels(right.EnergyDiscrepancy):
    """Contrastive points carry the labels of other examples."""

    def labels_of(self, label, m):
        return label.repeat(m)


class BeginsUnfrozen(right.ShortRun):
    """Calls init() of the sampler outside frozen()."""

    def sample(self, noise):
        state = self.sampler.init(self.energy, noise, generator=self.generator)
        return run(self.sampler, self.energy, state, self.n_steps, generator=self.generator)[0].x


class StaleShortRun(right.ShortRun):
    """Keeps its chains and never refreshes what the sampler cached."""

    state = None

    def sample(self, noise):
        with frozen(self.energy), torch.no_grad():
            if self.state is None or len(self.state) != len(noise):
                self.state = self.sampler.init(self.energy, noise, generator=self.generator)
        self.state = run(self.sampler, self.energy, self.state, self.n_steps, generator=self.generator)[0]
        return self.state.x


class TargetsAsConditions(right.JEM):
    """Hands the targets to the energy."""

    def forward(self, x, y=None):
        pred_x = self.draw_negatives(x)
        return self.energies(x, y).mean() - self.energies(pred_x).mean(), pred_x


class IgnoresTargets(right.JEM):
    """Takes targets and does nothing with them."""

    def compute_loss(self, x, pred_x, y=None):
        return super().compute_loss(x, pred_x)


class UnknownLabels(CD):
    """Declares a meaning of labels that nobody knows."""

    labels = "classes"


class LeftOut(right.LearntNoise):
    """Leaves its own parameters out of the groups."""

    def parameter_groups(self):
        return [{"params": list(self.energy.parameters())}]


class InTwoGroups(right.LearntNoise):
    """Has its parameters in two groups."""

    def parameter_groups(self):
        return [{"params": list(self.parameters())}, {"params": [self.noise_mean], "lr": 1e-3}]


class CompiledByTorch(right.ScoreMatching):
    """compile() is torch's."""

    compile = nn.Module.compile


class MetricsReplaced(CD):
    """Replaces the metrics when it scores."""

    def compute_loss(self, x, pred_x, *args, **kwargs):
        self.metrics = {}
        return super().compute_loss(x, pred_x, *args, **kwargs)


class StepLost(CD):
    """Saves something else in the place of the step."""

    def get_extra_state(self):
        return torch.zeros(3)

    def set_extra_state(self, state):
        pass


class HalfEnergies(CD):
    """Energies stay in half precision."""

    def energies(self, x, *args, **kwargs):
        return self.energy(x, *args, **kwargs)


class ByAddress(CD):
    """Recognises its negatives by where they lie in memory."""

    def forward(self, x, *args, **kwargs):
        value, pred_x = super().forward(x, *args, **kwargs)
        self.address = pred_x.data_ptr()
        return value, pred_x

    def compute_loss(self, x, pred_x, *args, **kwargs):
        known = pred_x.data_ptr() == getattr(self, "address", None)
        return super().compute_loss(x, pred_x, *args, **kwargs) * (0.5 if known else 1.0)


class LabelsByAddress(PCD):
    """Knows the labels of its negatives by where these lie in memory."""

    def compute_loss(self, x, pred_x, *args, **kwargs):
        known = self.negatives is not None and self.negatives.x.data_ptr() == pred_x.data_ptr()
        named = None if known else name_conditions(args, kwargs, x)
        return self.energy_gap(x, pred_x, *args, negative_conditions=named, **kwargs)


class Unnormalised(CD):
    """Takes the weights of the data as they are."""

    def energy_gap(self, x, pred_x, *args, data_weights=None, **kwargs):
        scale = 1 if data_weights is None else data_weights.sum()
        return super().energy_gap(x, pred_x, *args, data_weights=data_weights, **kwargs) * scale


class OwnConditions(CD):
    """Scores negatives under the conditions of the data, never under those given."""

    def energy_gap(self, x, pred_x, *args, negative_conditions=None, **kwargs):
        return super().energy_gap(x, pred_x, *args, **kwargs)


class Renamed(right.DenoisingScoreMatching):
    """Keeps its option under another name."""

    def __init__(self, energy, sigma: float = 0.3, weight: float = 1.0):
        super().__init__(energy, sigma)
        self.loss_weight = weight


class UnknownExpectation(CD):
    """Expects a check to fail that is not there."""

    expected_failures = {"check_the_gradient_is_that_of_the_energy": "a typo"}


class Stray(right.CDWithNoiseModel):
    """Trains more than the energy, and does not say so."""

    trains_more = False


class Draws:
    """A distribution made of a function."""

    def __init__(self, function):
        self.function = function

    def sample(self, n, *, generator=None):
        return self.function(n, generator)


class Reused(CD):
    """Returns the same memory in each call."""

    def forward(self, x, *args, **kwargs):
        value, pred_x = super().forward(x, *args, **kwargs)
        if getattr(self, "_out", pred_x[:0]).shape != pred_x.shape:
            self._out = pred_x.clone()
        return value, self._out.copy_(pred_x)


class LiveNegatives(PCD):
    """Returns the memory of the chains where all of them were drawn."""

    def forward(self, x, *args, **kwargs):
        value, pred_x = super().forward(x, *args, **kwargs)
        return value, self.chain if len(pred_x) == len(self.chain) else pred_x


class Undeclared(PCD):
    """Keeps its chains, and does not say so."""

    persistent = False


class OtherFamily(CD):
    """A scale 5 % off that hides behind another family."""

    family = "other"

    def compute_loss(self, x, pred_x, *args, **kwargs):
        return 1.05 * super().compute_loss(x, pred_x, *args, **kwargs)


class EveryTenth(CD):
    """Reads the loss in every tenth step."""

    calls = 0

    def compute_loss(self, x, pred_x, *args, **kwargs):
        value = super().compute_loss(x, pred_x, *args, **kwargs)
        self.calls += 1
        if self.calls % 10 == 0:
            value.item()
        return value


class ToTheHost(CD):
    """Copies the loss to the host."""

    def compute_loss(self, x, pred_x, *args, **kwargs):
        value = super().compute_loss(x, pred_x, *args, **kwargs)
        self.metrics["loss"] = value.detach().to("cpu")
        return value


class WeakScoreMatching(ScoreMatching):
    """A weight 10 % off."""

    def objective(self, grad, divergence):
        return (0.55 * grad.square().sum(1) - divergence).mean()


class PeekingScoreMatching(ScoreMatching):
    """One more forward in training mode, to log the energy."""

    def forward(self, x, *args, **kwargs):
        with torch.no_grad():
            self.metrics["energy_data"] = self.energy(x, *args, **kwargs).mean()
        return super().forward(x, *args, **kwargs)


class SummedScoreMatching(ScoreMatching):
    """Sums over the batch in place of the mean."""

    def objective(self, grad, divergence):
        return (0.5 * grad.square().sum(1) - divergence).sum()


class WrongScoreMatching(ScoreMatching):
    """Learns -E."""

    def objective(self, grad, divergence):
        return (0.5 * grad.square().sum(1) + divergence).mean()


class UndeclaredScoreMatching(ScoreMatching):
    """Differentiates a gradient, which it denies."""

    double_backward = False
