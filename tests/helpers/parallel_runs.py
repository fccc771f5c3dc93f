"""Training as one process and as two of a gloo group, for tests. Functions with a ``rank`` are called in each of them."""

from __future__ import annotations

import importlib
from dataclasses import replace

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import ebmcore
from ebmcore import BaseSampler
from ebmcore.energies import gradient
from ebmcore.training import fit

N_RANKS = 2
CURVE = {"steps": 200, "log_every": 40, "measure_every": 40}  # measured at five steps
LR = 0.4


class Collectives(TorchDispatchMode):
    """Notes the name of every collective, those that C++ starts included, with the bytes of its largest tensor."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__.strip("_")
        if func.namespace in ("c10d", "_c10d_functional") and not name.startswith(("wait", "wrap")):
            n_bytes = max((t.nbytes for t in tree_leaves(args) if isinstance(t, torch.Tensor)), default=0)
            if name == "all_gather_into_tensor":  # is given its part alone, and the number of parts
                n_bytes *= args[1]
            self.found.append((name, n_bytes))
        return func(*args, **kwargs or {})


def small(name, sampler=None, **options):
    """A CD loss of a small network, with the same parameters each time."""
    torch.manual_seed(0)
    energy = ebmcore.create_energy("mlp", shape=(2,), hidden=(32, 32))
    sampler = sampler or ebmcore.create_sampler("langevin", step_size=0.01)
    chains = {} if name == "cd" else {"n_chains": 16}
    return ebmcore.create_loss(name, energy, sampler, **chains, **options)


def points(n=64):
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(1))


def count(rank, names, out, strategy):
    """For each loss, the collectives of each step, and of what follows a step, by what is due then."""
    module = importlib.import_module("ebmcore.training.fit")  # not the function of that name
    train_step, after_step, counted = module._train_step, module._after_step, {}

    def step(training, step, *, read):
        with Collectives() as mode:
            readings = train_step(training, step, read=read)
        found["step"].append(mode.found)
        return readings

    def after(training, due, readings):
        with Collectives() as mode:
            after_step(training, due, readings)
        found["log" if due.log else "save" if due.save else "nothing"].append((mode.found, len(readings)))

    module._train_step, module._after_step = step, after
    for name in names:
        loss = small(name)
        tensors = list(loss.energy.parameters())
        found = counted[name] = {"tensors": len(tensors), "parameters": sum(p.numel() for p in tensors)}
        found |= {"step": [], "log": [], "save": [], "nothing": []}
        options = {"log_every": 3, "checkpoint_every": 4, "accelerator": "cpu", "progress": False, "out": f"{out}/{name}"}
        options["strategy"] = strategy
        fit(loss, points(), steps=10, batch_size=8, **options)
    return counted


def gradients_of_given_negatives(rank, names):
    """The gradient of each loss, whose negatives are given: of this rank's half in a group, of the whole alone (`None`)."""
    rows = slice(None) if rank is None else slice(rank, None, N_RANKS)
    x, pred_x = points(32)[rows], points(64)[32:][rows]
    found = {}
    for name in names:
        loss = small(name)
        loss.forward = loss.compute_loss
        model = loss if rank is None else DistributedDataParallel(loss)
        model(x, pred_x).backward()
        found[name] = torch.cat([p.grad.flatten() for p in loss.energy.parameters()])
    return found


class Descent(BaseSampler):
    """Moves chains downhill, without noise."""

    deterministic = True

    def step(self, energy, state, *, generator=None):
        return replace(state, x=state.x - 0.1 * gradient(energy, state.x)), {}


def noiseless(rank):
    """All parameters after 24 steps, three passes through the data, of CD without noise, in float64."""
    loss = small("cd", Descent(), k_steps=3)
    size = 8 if rank is None else 8 // N_RANKS
    options = {"accelerator": "cpu", "progress": False, "precision": "64-true"}
    fit(loss, points().double(), steps=24, batch_size=size, clip_grad=1.0, **options)
    return torch.cat([p.detach().flatten() for p in loss.energy.parameters()])


def curve(seed, *, batch_size=16, lr=LR):
    """Exact log-likelihood of a small RBM on bars and stripes, at five steps of persistent CD."""
    data, found = ebmcore.create_dataset("bars-and-stripes", side=4), []
    torch.manual_seed(seed)
    rbm = ebmcore.create_energy("rbm", shape=data.shape, hidden=16)
    loss = ebmcore.create_loss("pcd", rbm, ebmcore.create_sampler("gibbs"), n_chains=32)

    def measure(energy):
        with torch.no_grad():
            found.append(float(-energy(data.test).double().mean() - energy.log_partition()))
        return {}

    options = {"optimizer": "sgd", "accelerator": "cpu", "progress": False}
    fit(loss, data, batch_size=batch_size, lr=lr, seed=seed, measure=measure, **CURVE, **options)
    return found


def curves(rank, seeds):
    """The curves of several seeds, each with half a batch on each rank; of the first rank, which measures."""
    return [curve(seed, batch_size=16 // N_RANKS) for seed in seeds]
