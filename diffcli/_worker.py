"""The other processes of a run, started by its first: they train what that one says and never meet Hydra."""

import os
import signal
import sys
import warnings
from pathlib import Path

# run as a file, the package's own folder is on the path, where its module names would hide others
sys.path = [p for p in sys.path if Path(p or ".").resolve() != Path(__file__).resolve().parent]
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def main() -> int:
    from diffcli.sharing import die_with_parent

    die_with_parent()
    warnings.filterwarnings(
        "ignore", category=FutureWarning
    )  # between torch and lightning: nothing a user could act on
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # until it trains; Ctrl-C reaches rank 0, which ends this process
    from diffcli.commands.train import follow
    from diffcli.training.processes import Processes

    rank, size, local, node = (int(os.environ[key]) for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "NODE_RANK"))
    return follow(Processes(rank, size, local, node, os.environ["MASTER_ADDR"]), int(os.environ["MASTER_PORT"]))


if __name__ == "__main__":
    sys.exit(main())
