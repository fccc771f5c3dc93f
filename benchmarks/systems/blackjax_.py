"""blackjax, on JAX with ``jit``: the same network, and a loop of steps in one compiled function."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import blackjax
import jax
import jax.numpy as jnp
import torch
from torch import Tensor, nn


def _log_density(energy: nn.Module) -> Callable[[Any], Any]:
    if hasattr(energy, "precision"):
        return lambda x: -0.5 * energy.precision.item() * jnp.sum((x - energy.mean.item()) ** 2, -1)
    layers = [m for m in energy.modules() if isinstance(m, nn.Linear)]
    weights = [(jnp.array(m.weight.detach().numpy()).T, jnp.array(m.bias.detach().numpy())) for m in layers]

    def log_density(x: Any) -> Any:
        for weight, bias in weights[:-1]:
            x = jax.nn.silu(x @ weight + bias)
        weight, bias = weights[-1]
        return -(x @ weight + bias)[..., 0]

    return log_density


def langevin(energy: nn.Module, x: Tensor, step_size: float) -> Callable[[int], Tensor]:
    gradient = jax.grad(lambda x: _log_density(energy)(x).sum())
    sgld = blackjax.sgld(lambda x, _: gradient(x))

    @partial(jax.jit, static_argnums=2)
    def many(key: Any, x: Any, n: int) -> Any:
        return jax.lax.scan(lambda x, key: (sgld.step(key, x, None, step_size), None), x, jax.random.split(key, n))[0]

    state = [jax.random.key(0), jnp.array(x.numpy())]

    def move(n: int) -> Tensor:
        state[0], key = jax.random.split(state[0])
        state[1] = many(key, state[1], n).block_until_ready()
        return torch.from_dlpack(state[1])

    return move


def mala(energy: nn.Module, x: Tensor, step_size: float) -> Callable[[int], Tensor]:
    kernel = blackjax.mala(_log_density(energy), step_size)

    @partial(jax.jit, static_argnums=2)
    def many(key: Any, states: Any, n: int) -> Any:
        def step(states: Any, key: Any) -> Any:
            return jax.vmap(kernel.step)(jax.random.split(key, len(x)), states)[0], None

        return jax.lax.scan(step, states, jax.random.split(key, n))[0]

    state = [jax.random.key(0), jax.vmap(kernel.init)(jnp.array(x.numpy()))]

    def move(n: int) -> Tensor:
        state[0], key = jax.random.split(state[0])
        state[1] = jax.block_until_ready(many(key, state[1], n))
        return torch.from_dlpack(state[1].position)

    return move
