"""
Two moons
=========

A small network learns the density of two moons by persistent contrastive divergence: chains of Langevin dynamics go on from one
training step to the next, and the energy is raised where they are and lowered at the data.
"""

# %%
# Data, energy, sampler and loss are components of plugins.
import matplotlib.pyplot as plt
import torch

import ebmcore
from ebmcore.training import fit

torch.manual_seed(0)
moons = ebmcore.create_dataset("two-moons")
energy = ebmcore.create_energy("mlp", shape=moons.shape, hidden=(128, 128))
langevin = ebmcore.create_sampler("langevin", step_size=0.01)
pcd = ebmcore.create_loss("pcd", energy, langevin, k_steps=20, n_chains=2000, restart_prob=0.01)

# %%
# Train. All randomness is a function of the seed.
fit(pcd, moons, steps=400, batch_size=256, lr=2e-3, schedules={"optimizer.lr": "linear(end=0)"}, seed=0, progress=False)

# %%
# The learned density up to its constant, and where the persistent chains are at the end.
ticks = torch.linspace(-4, 4, 160)
grid = torch.cartesian_prod(ticks, ticks)
with torch.no_grad():
    density = (-energy(grid)).view(160, 160).T.exp()

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4), sharex=True, sharey=True)
left.scatter(*moons.test.T, s=3)
left.set_title("test data")
right.contourf(ticks, ticks, density / density.max(), levels=20, cmap="viridis")
right.scatter(*pcd.chain[:500].T, s=3, c="white")
right.set_title("learned density and 500 chains")
figure.tight_layout()
