"""The processes of one training, as Lightning asks for them, and the store through which they speak beside torch."""

from datetime import timedelta

from lightning.fabric.plugins.environments import ClusterEnvironment
from torch.distributed import TCPStore

from diffcli.training.ranks import HERE


class Processes(ClusterEnvironment):
    """What Lightning is told of the processes: all of them are there when it starts, so it starts none.

    The store is rank 0's, on a port of its own for each training: see `ranks.put` and `ranks.get`.
    """

    def __init__(
        self, rank: int = 0, size: int = 1, local: int = 0, node: int = 0, address: str = HERE, others: int = 0
    ):
        super().__init__()
        self.rank, self.size, self.local, self.node, self.address = rank, size, local, node, address
        self.others = others  # ranks that this one starts on its node
        self.store: TCPStore | None = None
        self.watch = None

    def open(self, timeout: float = 300, port: int = 0) -> None:
        """Make the store (rank 0, on a free port), or connect to it."""
        limit = timedelta(seconds=timeout)
        if self.rank == 0:  # torch's own store finds this one by its port, and shares it
            more = dict(is_master=True, wait_for_workers=False, multi_tenant=True)
            self.store = TCPStore(self.address, port, timeout=limit, **more)
        else:
            self.store = TCPStore(self.address, port, is_master=False, timeout=limit)

    def another(self, timeout: float) -> TCPStore:
        """A connection of its own to the same store, for another thread: one that waits would block the other."""
        limit = timedelta(seconds=timeout)
        return TCPStore(self.address, self.store.port, is_master=False, timeout=limit)

    def environment(self) -> dict[str, str]:
        """What torch reads of this process."""
        return {
            "MASTER_ADDR": self.address,
            "MASTER_PORT": str(self.store.port),
            "TORCHELASTIC_USE_AGENT_STORE": "False",  # torchrun's has another port, and outlives a training of a sweep
        }

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return self.address

    @property
    def main_port(self) -> int:
        return self.store.port if self.store else 0

    @staticmethod
    def detect() -> bool:
        return False

    def world_size(self) -> int:
        return self.size

    def set_world_size(self, size: int) -> None:
        """It is known already."""

    def global_rank(self) -> int:
        return self.rank

    def set_global_rank(self, rank: int) -> None:
        """It is known already; SLURM may number the ranks across the nodes."""

    def local_rank(self) -> int:
        return self.local

    def node_rank(self) -> int:
        return self.node
