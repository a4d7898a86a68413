"""Which process of several this one is, and the words that they say to each other beside torch; without Lightning."""

import json
import os
import socket
from dataclasses import dataclass

from torch.distributed import TCPStore

HERE = "127.0.0.1"
GRACE = 5.0  # seconds for a process to end by itself once it is known that the training has failed


@dataclass(frozen=True)
class Launched:
    """The processes that something else (`by`) started with one command line, and which of them this one is."""

    by: str = ""
    rank: int = 0
    size: int = 1
    node: int = 0
    nodes: int = 1
    address: str = HERE
    port: int = 0

    @property
    def per_node(self) -> int:
        return self.size // self.nodes


def put(store: TCPStore, key: str, value) -> None:
    """Say `value`, of anything that JSON has, under a key."""
    store.set(key, json.dumps(value))


def get(store: TCPStore, key: str):
    """What was said under a key; waits for it."""
    return json.loads(store.get(key))


def look(store: TCPStore, key: str):
    """What was said under a key; None if nothing was."""
    return get(store, key) if store.check([key]) else None


def where() -> str:
    """This process, to be found by a person."""
    return f"pid {os.getpid()} on {socket.gethostname()}"
