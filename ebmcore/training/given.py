"""The processes of a group that was there before `ebmcore.training.fit` was called, as Lightning Fabric sees them."""

from __future__ import annotations

import os

import torch.distributed as dist
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment


class GivenGroup(ClusterEnvironment):
    """Rank and number of processes of torch's own process group."""

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return os.environ.get("MASTER_ADDR", "127.0.0.1")

    @property
    def main_port(self) -> int:
        return int(os.environ.get("MASTER_PORT", 0))

    @staticmethod
    def detect() -> bool:
        return dist.is_initialized()

    def world_size(self) -> int:
        return dist.get_world_size()

    def set_world_size(self, size: int) -> None:
        """Nothing: the group has its size."""

    def global_rank(self) -> int:
        return dist.get_rank()

    def set_global_rank(self, rank: int) -> None:
        """Nothing: the group gives the rank."""

    def local_rank(self) -> int:
        return int(os.environ.get("LOCAL_RANK", dist.get_rank()))

    def node_rank(self) -> int:
        return int(os.environ.get("GROUP_RANK", 0))
