"""Parameters sharded over processes: the training is that of whole parameters, and they are gathered once in a step."""

from __future__ import annotations

import os
from contextlib import nullcontext

import pytest
import torch
import torch.distributed as dist
from groups import run
from small_runs import data, pcd, quiet
from torch.autograd.function import once_differentiable
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

import ebmcore
from ebmcore import BaseLoss
from ebmcore.errors import UsageError
from ebmcore.training import BaseObserver, latest_checkpoint, read_checkpoint
from ebmcore.training.sharding import check_shardable, gathered, like, make_whole, shard, without_parameters

DIFFERENCES = "finite-difference-score-matching"
WITHOUT_SAMPLER = sorted(c.name for c in ebmcore.list_components("loss") if not ebmcore.load("loss", c.name).needs_sampler)


class OnceDifferentiable(torch.nn.Module):
    """``w . x``, through a function whose gradient cannot be differentiated."""

    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight):
            ctx.save_for_backward(x, weight)
            return x @ weight

        @staticmethod
        @once_differentiable
        def backward(ctx, grad):
            x, weight = ctx.saved_tensors
            return grad[:, None] * weight, grad @ x

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2))

    def forward(self, x):
        return self.Product.apply(x, self.weight)


def make(name, energy="mlp"):
    torch.manual_seed(0)
    if energy == "rbm":
        machine, sampler = ebmcore.create_energy("rbm", (16,), hidden=5), ebmcore.create_sampler("gibbs")
    else:
        machine = ebmcore.create_energy("mlp", (2,), hidden=(7, 8))
        sampler = ebmcore.create_sampler("mala" if name == "pcd" else "langevin", step_size=0.05)
    if name in WITHOUT_SAMPLER:
        return ebmcore.create_loss(name, machine)
    return ebmcore.create_loss(name, machine, sampler, **({} if name == "cd" else {"n_chains": 12}))


def examples(energy):
    return (torch.rand(60, 16, generator=torch.Generator().manual_seed(3)) < 0.5).float() if energy == "rbm" else data(60)


def train(rank, folder, cases):
    for name, energy, strategy, options in cases:
        loss = make(name, energy)
        same = loss.energy
        found = quiet(loss, examples(energy), out=folder / f"{name}-{energy}-{strategy}", strategy=strategy, **options)
        assert found.energy is loss.energy is same
        assert not any(isinstance(p, DTensor) for p in (*loss.parameters(), *loss.buffers()))
        assert type(same).__name__ in ("MLP", "RBM")


CASES = [
    ("cd", "mlp", {"clip_grad": 0.1}),
    ("pcd", "mlp", {"accumulate": 2}),
    ("fpcd", "mlp", {}),
    ("pcd", "rbm", {"optimizer": "sgd"}),
    ("ptcd", "rbm", {}),
    ("pseudo-likelihood", "rbm", {"optimizer": "sgd"}),
    (DIFFERENCES, "mlp", {"optimizer": "sgd"}),  # the gradient of the last bias is rounding, which Adam would blow up
]


def test_sharded_training_is_that_of_whole_parameters(tmp_path):
    """Every loss ends with the parameters, chains and optimizer's state of ``ddp``, to rounding, and with whole parameters."""
    cases = [(n, e, s, {"steps": 9, "checkpoint_every": 4} | o) for n, e, o in CASES for s in ("ddp", "fsdp")]
    run(train, 2, tmp_path, cases)
    for name, energy, _ in CASES:
        both = [latest_checkpoint(tmp_path / f"{name}-{energy}-{s}" / "checkpoints") for s in ("ddp", "fsdp")]
        (whole, _), (sharded, _) = (read_checkpoint(path) for path in both)
        assert whole.keys() == sharded.keys()
        for key in whole:
            torch.testing.assert_close(whole[key], sharded[key], rtol=1e-5, atol=1e-6, msg=f"{name} {energy} {key}")


@pytest.mark.parametrize("name", ["pcd", "fpcd"])
def test_sharded_runs_resume_with_another_strategy(tmp_path, name):
    """A run goes on from shards to whole parameters, on three processes, and on one: each chain is there exactly once."""
    for world, strategy, steps in ((2, "fsdp", 3), (3, "ddp", 5), (3, "fsdp", 7), (1, "auto", 9)):
        run(resume, world, tmp_path, name, strategy, steps)
        tensors, info = read_checkpoint(latest_checkpoint(tmp_path / "run" / "checkpoints"))
        assert info["step"] == steps
        assert sorted(tensors["loss.chains.id"].tolist()) == list(range(12))
        assert tensors["optimizer.0.exp_avg"].shape == (7, 2)


def resume(rank, folder, name, strategy, steps):
    quiet(make(name), data(60), steps=steps, out=folder / "run", strategy=strategy, resume=True)


def test_parameters_are_gathered_once_in_a_step():
    """A step gathers the parameters once, whatever the number of transitions, and reduces the gradient once."""
    run(count, 2)


def count(rank):
    mesh = mesh_of_two()
    for k_steps in (1, 20):
        loss = make("pcd")
        loss.k_steps, loss.generator = k_steps, torch.Generator().manual_seed(rank)
        shard(loss, mesh)
        for _ in range(2):
            with Collectives() as made, gathered(loss.energy):
                loss(data(12))[0].backward()
        assert made.names == ["_allgather_base_", "_reduce_scatter_base_"]


class Collectives(TorchDispatchMode):
    """Notes the collectives that are called."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "c10d":
            self.names.append(function.overloadpacket.__name__)
        return function(*args, **kwargs or {})


def mesh_of_two():
    return init_device_mesh("cpu", (2, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))


def test_fast_weights_are_sharded():
    """Each of two processes keeps half of the fast weights."""
    run(fast_weights, 2)


def fast_weights(rank):
    loss = make("fpcd")
    shard(loss, mesh_of_two())
    sizes = [(fast.numel(), fast.to_local().numel()) for fast in loss.fast.buffers()]
    assert sum(own for _, own in sizes) < 0.6 * sum(whole for whole, _ in sizes)


def test_sharded_gradient_is_that_of_the_whole_batch():
    """The gradient of two processes is that of one process on both halves, to 1e-6."""
    run(gradients, 2)


def gradients(rank):
    one, loss = make("cd"), make("cd")
    x, negatives = data(20), data(20).flip(0) + 0.1
    one.compute_loss(x, negatives).backward()
    shard(loss, mesh_of_two())
    with gathered(loss.energy):
        loss.compute_loss(x[rank::2], negatives[rank::2]).backward()
    for whole, part in zip(one.energy.parameters(), loss.energy.parameters(), strict=True):
        torch.testing.assert_close(part.grad.full_tensor(), whole.grad, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", WITHOUT_SAMPLER)
def test_loss_declares_double_backward(name):
    """Exactly the losses that declare it fail on an energy whose gradient has no derivative."""
    kind = ebmcore.load("loss", name)
    loss = ebmcore.create_loss(name, OnceDifferentiable(), **kind.example_options)
    x = (data(20) > 0).float()
    if getattr(loss, "awaits_data", False):
        loss.start_from_data(x)
    with pytest.raises(RuntimeError, match="does not require grad") if kind.double_backward else nullcontext():
        loss(x).backward()


def test_what_cannot_be_sharded_is_refused(tmp_path):
    """A loss that differentiates a gradient, an average and a graph are refused with the reason and the alternative."""

    class Matching(BaseLoss):
        def __init__(self, energy):
            super().__init__()
            self.energy = energy

        def forward(self, x):
            raise AssertionError

    assert check_shardable(make(DIFFERENCES), ema_decay=None, compile=False) is None
    refused = [
        (Matching(make("cd").energy), {}, "Matching differentiates a gradient"),
        (make("cd"), {"ema_decay": 0.9}, "a moving average is kept of whole parameters"),
        (make("cd"), {"compile": True}, "a compiled graph holds whole parameters"),
    ]
    second = make("cd")
    second.add_module("second", torch.nn.Linear(1, 1))
    refused.append((second, {}, "ContrastiveDivergence trains parameters beside the energy's"))
    faults = {
        "keeps a parameter in a list": lambda e: setattr(e, "kept", [next(e.parameters())]),
        "has parameters of several types": lambda e: e.register_parameter(
            "wide", torch.nn.Parameter(torch.ones(2).double())
        ),
        "has a parameter that is not contiguous": lambda e: e.register_parameter(
            "turned", torch.nn.Parameter(torch.ones(2, 3).T)
        ),
        "has a parameter in two of its blocks": lambda e: setattr(e, "blocks", [e, e]),
        "has a 0-dim parameter": lambda e: e.register_parameter("number", torch.nn.Parameter(torch.ones(()))),
    }
    for reason, spoil in faults.items():
        spoilt = make("cd")
        spoil(spoilt.energy)
        refused.append((spoilt, {}, f"MLP {reason}"))
    for loss, options, reason in refused:
        with pytest.raises(UsageError, match=f"strategy='fsdp' cannot train this: {reason}.*; use strategy='ddp'"):
            check_shardable(loss, **({"ema_decay": None, "compile": False} | options))


class Uncommon(torch.nn.Module):
    """An energy with a weight that two layers share, and a buffer that is in no state dict."""

    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
        self.second.weight = self.first.weight
        self.register_buffer("calls", torch.zeros(1), persistent=False)

    def forward(self, x):
        if self.training and torch.is_grad_enabled():
            self.calls += 1
        return 0.5 * self.second(self.first(x).tanh()).square().sum(1)


class Watching(BaseObserver):
    """Looks at the energy, which only the first of the processes does."""

    def __init__(self):
        self.seen = []

    def on_start(self, run):
        with torch.no_grad():
            self.seen.append(float(run.energy(torch.ones(1, 2))))

    on_end = on_start

    def on_log(self, run, metrics):
        self.on_start(run)

    def on_checkpoint(self, run, path):
        self.on_start(run)


def test_shared_weights_buffers_and_observers(tmp_path):
    """Shared weights stay shared, buffers are those of training, and an observer on one process may call the energy."""
    run(uncommon, 2, tmp_path)


def uncommon(rank, folder):
    seen = {}
    for strategy in ("ddp", "fsdp"):
        torch.manual_seed(0)
        loss = ebmcore.create_loss("cd", Uncommon(), ebmcore.create_sampler("langevin", step_size=0.01))
        watching = Watching()
        options = {"steps": 5, "log_every": 2, "checkpoint_every": 3, "observers": [watching]}
        with pytest.warns(UserWarning, match=r"training changes energy\.calls, which no checkpoint holds"):
            quiet(loss, data(60), out=folder / strategy, strategy=strategy, **options)
        assert loss.energy.first.weight is loss.energy.second.weight
        assert loss.energy.calls == 5
        seen[strategy] = watching.seen
    assert len(seen["ddp"]) == (7 if rank == 0 else 0)  # the start, three logs, two checkpoints, and the end
    torch.testing.assert_close(torch.tensor(seen["fsdp"]), torch.tensor(seen["ddp"]))


class Normalised(Uncommon):
    """An energy with statistics of batches, which each process computes from its own, and with a shared weight."""

    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(2)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x):
        return super().forward(self.norm(x))


def test_batch_statistics_resume_bit_for_bit(tmp_path):
    """A checkpoint has the buffers of one process, with which all end and from which all resume; shared weights resume too."""
    run(statistics, 2, tmp_path)


def statistics(rank, folder):
    def loss():
        torch.manual_seed(0)
        return ebmcore.create_loss("pcd", Normalised(), ebmcore.create_sampler("langevin", step_size=0.01), n_chains=12)

    for strategy in ("ddp", "fsdp"):
        whole, stopped, resumed = loss(), loss(), loss()
        out, options = folder / f"statistics-{strategy}", {"strategy": strategy, "checkpoint_every": 3}
        quiet(whole, data(60), steps=8, out=folder / f"whole-{strategy}", **options)
        quiet(stopped, data(60), steps=4, out=out, **options)
        quiet(resumed, data(60), steps=8, out=out, resume=True, **options)
        for name, tensor in whole.energy.state_dict().items():
            assert torch.equal(tensor, resumed.energy.state_dict()[name]), name
            everyone = [torch.empty_like(tensor) for _ in range(2)]
            dist.all_gather(everyone, tensor)
            assert torch.equal(*everyone), name
        assert whole.energy.norm.running_mean.abs().max() > 0


def test_energy_is_sharded_again_and_put_back_after_a_refusal():
    """The same energy trains twice; what is refused before the first step leaves it and its parameters as they were."""
    run(again, 2)


def again(rank):
    loss = make("fpcd")
    before = {name: p.detach().clone() for name, p in loss.energy.named_parameters()}
    held = dict(loss.energy.named_parameters())
    with pytest.raises(UsageError, match="no numeric option"):
        quiet(loss, data(60), steps=2, strategy="fsdp", schedules={"loss.nothing": "linear(end=0)"})
    for name, parameter in loss.energy.named_parameters():
        assert parameter is held[name]
        assert torch.equal(parameter, before[name])
    assert not any(isinstance(t, DTensor) for t in (*loss.parameters(), *loss.buffers()))
    for steps in (2, 3):
        assert quiet(loss, data(60), steps=steps, strategy="fsdp").step == steps
    assert loss.step == 5


def test_group_that_was_there_is_the_world(tmp_path):
    """A process group that the user has made, without a launcher's variables, is that of the run, and stays."""
    run(without_launcher, 2, tmp_path)
    tensors, _ = read_checkpoint(latest_checkpoint(tmp_path / "run" / "checkpoints"))
    assert sorted(tensors["loss.chains.id"].tolist()) == list(range(12))


def without_launcher(rank, folder):
    assert "RANK" not in os.environ
    found = quiet(make("pcd"), data(60), steps=3, out=folder / "run")
    assert found.rank == rank
    assert dist.get_world_size() == 2


def test_one_process_shards_nothing():
    loss = pcd()
    quiet(loss, data(), steps=2, strategy="fsdp")
    assert not any(isinstance(p, DTensor) for p in loss.parameters())


def test_copy_without_parameters_takes_no_memory_for_them():
    loss = make("cd")
    energy = loss.energy
    bare = without_parameters(energy)
    assert all(p.is_meta for p in bare.parameters())
    values = {name: t.clone() for name, t in energy.state_dict().items()}
    make_whole(loss, bare)
    assert all(torch.equal(t, values[name]) for name, t in energy.state_dict().items())


def test_whole_tensors_stay_whole():
    t = torch.ones(3)
    assert like(t, torch.zeros(3)) is t


class Idle(Uncommon):
    """An energy with a layer that its value does not depend on."""

    def __init__(self):
        super().__init__()
        self.idle = torch.nn.Linear(1, 1)


def test_idle_parameters_are_refused_in_the_first_step():
    """DistributedDataParallel says so in the second step, when the parameters of the processes differ already."""
    run(idle, 2)


def idle(rank):
    loss = ebmcore.create_loss("cd", Idle(), ebmcore.create_sampler("langevin", step_size=0.01))
    with pytest.raises(UsageError, match=r"energy\.idle\.weight is trained but takes no part in the loss"):
        quiet(loss, data(60), steps=1)
