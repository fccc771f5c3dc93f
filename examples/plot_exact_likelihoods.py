"""
CD and persistent CD on bars and stripes
========================================

An RBM with 8 hidden units on 3x3 bars and stripes has so few states that its log-likelihood is known exactly at every moment.
CD-1 and PCD-1 train the same RBM with the same budget, and both curves are exact.
"""

# %%
# One RBM of each, from the same initial parameters.
import matplotlib.pyplot as plt
import torch

import ebmcore

data = ebmcore.create_dataset("bars-and-stripes", side=3)
x = data.train
gibbs = ebmcore.create_sampler("gibbs")


def log_likelihood(rbm):
    with torch.no_grad():
        return (-rbm(x).double() - rbm.log_partition()).mean().item()


def train(name, **options):
    """The exact mean log-likelihood at every 50th of 3,000 full-batch updates."""
    torch.manual_seed(0)
    rbm = ebmcore.create_energy("rbm", shape=data.shape, hidden=8)
    loss = ebmcore.create_loss(name, rbm, gibbs, **options)
    loss.generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.SGD(rbm.parameters(), lr=0.1)
    curve = []
    for step in range(3000):
        if step % 50 == 0:
            curve.append(log_likelihood(rbm))
        value, _ = loss(x)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    return curve


curves = {"CD-1": train("cd"), "PCD-1": train("pcd", n_chains=len(x))}

# %%
# The best that any model can do is the entropy of the data.
patterns, counts = x.unique(dim=0, return_counts=True)
share = counts.double() / counts.sum()
best = (share * share.log()).sum().item()

figure, axis = plt.subplots(figsize=(6, 4))
for name, curve in curves.items():
    axis.plot(range(0, 3000, 50), curve, label=name)
axis.axhline(best, color="gray", linestyle=":", label="best possible")
axis.set_xlabel("update")
axis.set_ylabel("exact log-likelihood, nats per pattern")
axis.legend()
figure.tight_layout()
