"""Denoising score matching on digits: whether the energy knows them from images that are none."""

from __future__ import annotations

import torch
from sklearn.metrics import roc_auc_score
from table import Row, mean_and_error
from torch import Tensor, nn

import ebmcore
from ebmcore.training import fit

SIGMA, EPOCHS = 0.3, 100
BOUNDS = {"mirrored": 0.85, "shuffled": 0.99, "inverted": 0.99}  # of the areas


def others(x: Tensor) -> dict[str, Tensor]:
    """Images made of digits ``(N, 1, 8, 8)``: mirrored, with the pixels of each shuffled in a way of its own, and inverted."""
    order = torch.rand(len(x), 64, generator=torch.Generator().manual_seed(0)).argsort(1)
    return {"mirrored": x.flip(-1), "shuffled": x.flatten(1).gather(1, order).view_as(x), "inverted": -x}


@torch.no_grad()
def areas(energy: nn.Module, x: Tensor) -> dict[str, float]:
    """The area under the ROC curve of the energy as the sign of another image, of each kind."""
    found = {}
    for kind, images in others(x).items():
        is_other = torch.arange(2 * len(x)) >= len(x)
        found[kind] = float(roc_auc_score(is_other, energy(torch.cat([x, images]))))
    return found


def learned(seed: int, epochs: int = EPOCHS) -> dict[str, float]:
    """These areas on test digits, of a convolutional energy trained with the options of the command line."""
    torch.manual_seed(seed)
    data = ebmcore.create_dataset("digits", binary=False)
    energy = ebmcore.create_energy("conv", data.shape)
    loss = ebmcore.create_loss("denoising-score-matching", energy, sigma=SIGMA)
    return areas(fit(loss, data, epochs=epochs, seed=seed, log_every=1000, progress=False).energy, data.test)


def rows(found: list[dict[str, float]]) -> list[Row]:
    """Each kind of image is known by its energy, on average over seeds."""
    made = []
    for kind, bound in BOUNDS.items():
        mean, error = mean_and_error([seed[kind] for seed in found])
        name = f"grey digits 8x8, denoising score matching, area under the ROC curve of digits and {kind} ones"
        made.append(Row(name, f"at least {bound}", f"{mean:.4f} +- {error:.4f}", mean >= bound))
    return made
