"""A deep energy on a density with two modes of unequal masses: which loss finds the masses."""

from __future__ import annotations

import torch
from table import Row, mean_and_error

import ebmcore

MASS, AT, STD = 0.8, 3.0, 0.5  # of the right mode; where the modes are; their width
STEPS = 3000
NEAR = 0.1  # a mass is found when its error is smaller


def density(seed: int, n: int = 4000) -> torch.Tensor:
    """Points of two normal modes at ``(-AT, 0)`` and ``(AT, 0)``."""
    generator = torch.Generator().manual_seed(seed)
    right = torch.arange(n) < round(MASS * n)
    x = STD * torch.randn(n, 2, generator=generator)
    x[:, 0] += torch.where(right, AT, -AT)
    return x


def learned(loss: str, seed: int) -> tuple[float, list[float]]:
    """Mass of the right half plane under the trained energy, and its marginal density on the first axis."""
    torch.manual_seed(seed)
    x = density(seed)
    energy = ebmcore.create_energy("mlp", shape=(2,), hidden=(64, 64))
    options = {"n_rungs": 6, "min_beta": 0.1} if loss == "ptcd" else {}
    langevin = ebmcore.create_sampler("langevin", step_size=0.02)
    cd = ebmcore.create_loss(loss, energy, langevin, k_steps=5, n_chains=256, **options)
    optimizer = torch.optim.Adam(energy.parameters(), lr=1e-3)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = 1e-3 * (1 - step / STEPS)
        value, _ = cd(x[torch.randint(len(x), (256,))])
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    ticks = torch.linspace(-8, 8, 401)
    with torch.no_grad():
        p = torch.softmax(-energy(torch.cartesian_prod(ticks, ticks)).double(), 0).view(401, 401).sum(1)
    return float(p[ticks > 0].sum()), (p / (ticks[1] - ticks[0])).tolist()


def rows(found: dict[str, list[float]]) -> list[Row]:
    """PTCD's masses are near the true one, PCD's are not."""
    errors = {loss: [abs(mass - MASS) for mass in masses] for loss, masses in found.items()}
    told = {loss: ", ".join(f"{mass:.2f}" for mass in masses) for loss, masses in found.items()}
    name = f"deep energy, Langevin, two modes, mass {MASS} of the right one"
    pcd, error = mean_and_error(errors["pcd"])
    return [
        Row(f"{name}, PTCD", f"found to {NEAR} in every seed", told["ptcd"], max(errors["ptcd"]) < NEAR),
        Row(
            f"{name}, PCD",
            f"missed: mean error above {NEAR} by more than its standard error",
            f"{told['pcd']} (mean error {pcd:.2f} +- {error:.2f})",
            pcd - NEAR > error,
        ),
    ]
