"""Energy matching, Balcerak et al. 2025."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ebmcore import BaseLoss, Sampler
from ebmcore.conditions import name_conditions
from ebmcore.distributions import at_least_float32
from ebmcore.samplers import as_rows, check_sampler, finite_rows, sample

BLUR = 0.02  # entropy of the transport plan, as a share of the mean cost
ITERATIONS = 100  # of Sinkhorn's algorithm


class EnergyMatching(BaseLoss):
    r"""Energy matching: a flow from noise to the data away from them, contrastive divergence near them, in one energy.

    .. math:: L = \frac1B\sum_i \Big[w(t)\,\big|\nabla E(x_t) + x_i - \epsilon_i\big|^2
              + \lambda_{cd}\big(E(x_i) - E(\hat x_i)\big)\Big],
              \qquad x_t = (1 - t)\,\epsilon_i + t\,x_i,\quad t \sim U(0, 1)

    The first term matches :math:`-\nabla E` to the velocity of straight lines from standard normal noise to the data. Noise and
    data of a batch are paired by optimal transport (100 rounds of Sinkhorn's algorithm), so that the lines cross little.

    The second term is contrastive divergence. Its negatives :math:`\hat x_i` start at the data in every other row, at noise in
    the rest, and the sampler moves them for ``n_steps``. Give the sampler the temperature at which the model is sampled. The
    paper's is small, such as 0.01: the slopes that carry noise to the data then hold samples near them.

    The paper trains in two phases, which are a schedule of ``lambda_cd``: 0, then a small number. At 0 nothing is sampled. The
    gradient of the loss differentiates the energy twice. Under labels the pairs do not see the labels.

    Args:
        energy: The model, any module ``(B, *shape) -> (B,)``, twice differentiable.
        sampler: A `Sampler`. It receives the energy at each call.
        lambda_cd: Weight of the contrastive-divergence term, at least 0.
        n_steps: Transitions of the negatives, at least 1.
        pairing: ``"optimal-transport"``, or ``"random"``, whose cost does not grow with the square of the batch.
        cutoff: Share of the way from noise to data after which the weight ``w`` of the flow falls linearly to 0 at the data, at
            least 0 and at most 1; at 1 it stays 1.

    Source: M. Balcerak, T. Amiranashvili, A. Terpin, S. Shit, L. Bogensperger, S. Kaltenbach, P. Koumoutsakos and B. Menze
    (2025), "Energy matching: unifying flow matching and energy-based models for generative modeling".

    Example:
        >>> from ebmcore.testing import Drift, Quadratic
        >>> EnergyMatching(Quadratic((2,)), Drift(), lambda_cd=0.1)(torch.randn(64, 2)).shape
        torch.Size([])
    """

    state_space = "continuous"
    needs_sampler = True
    weighted = True
    # The kit's batches are large for optimal transport.
    example_options: ClassVar[dict[str, Any]] = {"lambda_cd": 1.0, "n_steps": 1, "pairing": "random"}
    interpolates: ClassVar[bool] = True  # the flow is not at its minimum where the energy is that of the data's density

    def __init__(
        self,
        energy: nn.Module,
        sampler: Sampler,
        *,
        lambda_cd: float = 0.0,
        n_steps: int = 100,
        pairing: Literal["optimal-transport", "random"] = "optimal-transport",
        cutoff: float = 1.0,
    ) -> None:
        super().__init__()
        if not lambda_cd >= 0:
            raise ValueError(f"lambda_cd must be at least 0, got {lambda_cd!r}")
        if isinstance(n_steps, bool) or not isinstance(n_steps, int) or n_steps < 1:
            raise ValueError(f"n_steps must be a whole number of at least 1, got {n_steps!r}")
        if pairing not in ("optimal-transport", "random"):
            raise ValueError(f"pairing must be 'optimal-transport' or 'random', got {pairing!r}")
        if not 0 <= cutoff <= 1:
            raise ValueError(f"cutoff must be at least 0 and at most 1, got {cutoff!r}")
        check_sampler(sampler, energy)
        self.energy, self.sampler = energy, sampler
        self.lambda_cd, self.n_steps, self.pairing, self.cutoff = lambda_cd, n_steps, pairing, cutoff

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        terms = flow = self.flow(x, *args, **kwargs)
        self.metrics["flow"] = flow.detach().mean()
        if self.lambda_cd:
            gap = self.gap(x, *args, **kwargs)
            self.metrics["energy_gap"] = gap.detach().mean()
            terms = flow + self.lambda_cd * gap
        return (terms if self.data_weights is None else self.data_weights.to(terms) * terms).mean()

    def flow(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Returns the weighted squared error ``(B,)`` of the velocities."""
        noise = torch.randn_like(x, generator=self.generator)
        if self.pairing == "optimal-transport":
            noise = noise[self.pair(x, noise)]
        t = torch.rand(len(x), generator=self.generator, dtype=x.dtype, device=x.device)
        with torch.enable_grad():
            between = torch.lerp(noise, x.detach(), as_rows(t, x)).requires_grad_()
            (grad,) = torch.autograd.grad(self.energies(between, *args, **kwargs).sum(), between, create_graph=True)
        error = (grad + x - noise).flatten(1).square().sum(1)
        return error if self.cutoff == 1 else ((1 - t) / (1 - self.cutoff)).clamp(max=1) * error

    @torch.no_grad()
    def pair(self, x: Tensor, noise: Tensor) -> Tensor:
        """Draws for each example the row ``(B,)`` of the noise that optimal transport, slightly blurred, pairs it with."""
        with torch.autocast(x.device.type, enabled=False):
            cost = torch.cdist(at_least_float32(x.flatten(1)), at_least_float32(noise.flatten(1))).square()
            plan = -cost / (BLUR * cost.mean())
            for _ in range(ITERATIONS):
                plan = plan.log_softmax(0).log_softmax(1)
            # A draw of each row, by the largest of its logits and noise: torch.multinomial waits for the device.
            return (plan - torch.empty_like(plan).exponential_(generator=self.generator).log()).argmax(1)

    def gap(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Returns the energy of each example minus that of its negative, ``(B,)``."""
        at_data = torch.arange(len(x), device=x.device) % 2 == 0
        start = torch.where(as_rows(at_data, x), x.detach(), torch.randn_like(x, generator=self.generator))
        negatives = sample(
            self.sampler,
            self.energy,
            start,
            self.n_steps,
            conditions=name_conditions(args, kwargs, x),
            generator=self.generator,
            transitions=self.transitions,
        )
        finite = finite_rows(negatives)
        self.metrics["lost"] = (~finite).sum()
        points = torch.cat([x, torch.where(as_rows(finite, x), negatives, x.detach())])  # a lost chain pulls nowhere
        args = [label.repeat(2, *[1] * (label.ndim - 1)) for label in args]
        kwargs = {name: label.repeat(2, *[1] * (label.ndim - 1)) for name, label in kwargs.items()}
        energies = self.energies(points, *args, **kwargs)
        return energies[: len(x)] - energies[len(x) :]
