"""What a training step costs on many devices: a model of it, and its constants for gloo as measured on this machine.

Prints the tables of ``docs/scale.md``. The model is of a network of dense layers under data parallelism, with Langevin
dynamics and float32; nothing of the exchange is hidden behind computation, so that it is an upper bound.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

import ebmcore
from ebmcore.testing.processes import process_group

WORLDS, MILLIONS, K_STEPS = (8, 64, 1024), (1, 100, 1000), (1, 20)
BATCH = 64
ROUNDS = 200


@dataclass(frozen=True)
class Link:
    """What connects two processes.

    Args:
        latency: Seconds of a message without content.
        bandwidth: Bytes that a process sends in a second.
    """

    latency: float
    bandwidth: float

    def all_reduce(self, n_bytes: float, world: int) -> float:
        """Seconds to sum that many bytes over all processes: a ring for the content, a tree for what each message costs."""
        return 2 * math.ceil(math.log2(world)) * self.latency + 2 * (world - 1) / world * n_bytes / self.bandwidth


@dataclass(frozen=True)
class Device:
    """An accelerator.

    Args:
        arithmetic: Operations per second that dense layers reach.
        memory: Bytes per second from its memory.
        launch: Seconds to start the operators of one pass through the network, however small it is.
    """

    arithmetic: float
    memory: float
    launch: float

    def step(self, parameters: float, batch: int, k_steps: int) -> float:
        """Seconds of a step of one process: transitions of two passes, a gradient of three on both halves, and Adam."""
        transition, training = self._pass(parameters, batch), self._pass(parameters, 2 * batch)
        return 2 * k_steps * transition + 3 * training + 28 * parameters / self.memory

    def _pass(self, parameters: float, rows: int) -> float:
        return max(self.launch, 2 * parameters * rows / self.arithmetic, 4 * parameters / self.memory)


# Published of a node with eight H100: 400 Gbit/s for each adapter, 450 GB/s of NVLink in each direction, 3.35 TB/s of memory and
# 494 TFLOP/s in TF32. Assumed: what is reached of it (80 % of links and memory, 20 % of arithmetic), latencies and launches.
WITHIN_NODE = Link(latency=10e-6, bandwidth=0.8 * 450e9)
BETWEEN_NODES = Link(latency=20e-6, bandwidth=0.8 * 8 * 50e9)  # eight rings, each through an adapter of its own
GPU = Device(arithmetic=0.2 * 494e12, memory=0.8 * 3.35e12, launch=100e-6)


def predicted(world: int, millions: float, k_steps: int) -> tuple[float, float]:
    """Seconds of a step of that many GPUs, eight to a node, and of what they exchange in it."""
    exchange = (WITHIN_NODE if world <= 8 else BETWEEN_NODES).all_reduce(4e6 * millions, world)
    return GPU.step(1e6 * millions, BATCH, k_steps) + exchange, exchange


def predictions() -> list[str]:
    """Rows of the table: milliseconds of a step, and the share of it that is not exchange."""
    rows = []
    for k_steps in K_STEPS:
        for world in WORLDS:
            cells = [predicted(world, millions, k_steps) for millions in MILLIONS]
            shown = " | ".join(f"{1e3 * step:.3g} ms, {1 - exchange / step:.0%}" for step, exchange in cells)
            rows.append(f"| {k_steps} | {world:,} | {shown} |")
    return rows


def _all_reduces(rank: int, sizes: tuple[int, ...]) -> list[float]:
    torch.set_num_threads(1)
    return [_fastest(dist.all_reduce, torch.ones(size // 4)) for size in sizes]


def _steps(rank: int, hidden: int) -> tuple[int, float, float]:
    """Parameters of an energy, and seconds of a step of persistent CD beside another process, without exchange and with it."""
    torch.set_num_threads(1)
    energy = ebmcore.create_energy("mlp", shape=(16,), hidden=(hidden, hidden))
    loss = ebmcore.create_loss("pcd", energy, ebmcore.create_sampler("langevin", step_size=0.01), n_chains=256)
    model, optimizer = DistributedDataParallel(loss), torch.optim.Adam(energy.parameters())

    def step(x: Tensor) -> None:
        value, _ = model(x)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()

    def step_alone(x: Tensor) -> None:
        with model.no_sync():
            step(x)

    x = torch.randn(BATCH, 16)
    return sum(p.numel() for p in energy.parameters()), _fastest(step_alone, x), _fastest(step, x)


def _fastest(function: Callable[[Tensor], object], x: Tensor) -> float:
    """Seconds of the fastest of many calls: the one that the fewest others on the machine have slowed down."""
    times = []
    for _ in range(ROUNDS):
        dist.barrier()
        start = time.perf_counter()
        function(x)
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    small, large = 4, 2**24
    latency, whole = process_group(_all_reduces, 2, (small, large))[0]
    gloo = Link(latency=latency / 2, bandwidth=large / (whole - latency))
    print(f"gloo between two processes: {1e6 * gloo.latency:.0f} us, {gloo.bandwidth / 1e9:.2f} GB/s\n")
    print(
        "| parameters | without exchange | all-reduce, predicted | step, predicted | step, measured |\n|---|---|---|---|---|"
    )
    for hidden in (128, 512, 1024):
        parameters, alone, together = process_group(_steps, 2, hidden)[0]
        exchange = gloo.all_reduce(4 * parameters, 2)
        cells = " | ".join(f"{1e3 * seconds:.1f} ms" for seconds in (alone, exchange, alone + exchange, together))
        print(f"| {parameters:,} | {cells} |")
    print()
    print("\n".join(predictions()))


if __name__ == "__main__":
    import scale  # by its name, under which other processes find its functions

    scale.main()
