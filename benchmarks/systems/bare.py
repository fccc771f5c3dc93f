"""The barest PCD-1 of an RBM: the fewest operators that learn, none of them to watch, restart or measure anything.

Hidden units persist, which saves a product; everything is written in place; the parameters move by the products themselves.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor


def rbm(x: Tensor, hidden: int, lr: float, batch_size: int) -> Any:
    n_visible = x.shape[1]
    weight, b, c = 0.01 * torch.randn(n_visible, hidden), torch.zeros(n_visible), torch.zeros(hidden)
    h = torch.rand(batch_size, hidden).round()
    model, uniform_v = torch.empty(batch_size, n_visible), torch.empty(batch_size, n_visible)
    p_model, uniform_h = torch.empty_like(h), torch.empty_like(h)

    @torch.no_grad()
    def epoch() -> None:
        for v in x[torch.randperm(len(x))].split(batch_size):
            p_data = torch.addmm(c, v, weight).sigmoid_()
            torch.lt(uniform_v.uniform_(), torch.addmm(b, h, weight.T, out=model).sigmoid_(), out=model)
            torch.lt(uniform_h.uniform_(), torch.addmm(c, model, weight, out=p_model).sigmoid_(), out=h)
            weight.addmm_(v.T, p_data, alpha=lr / len(v)).addmm_(model.T, p_model, alpha=-lr / batch_size)
            b.add_(v.mean(0).sub_(model.mean(0)), alpha=lr)
            c.add_(p_data.mean(0).sub_(p_model.mean(0)), alpha=lr)

    return SimpleNamespace(epoch=epoch, weights=lambda: (weight, b, c))
