"""One job of a sweep in a process of its own: what to run comes from its parent, by pickle."""

import pickle
import sys
from pathlib import Path

# run as a file, the package's own folder is on the path, where its module names would hide others
sys.path = [p for p in sys.path if Path(p or ".").resolve() != Path(__file__).resolve().parent]
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def main() -> int:
    sys.path[:] = pickle.load(sys.stdin.buffer)
    from diffcli.commands.launchers import run_alone

    return run_alone(*pickle.load(sys.stdin.buffer))


if __name__ == "__main__":
    sys.exit(main())
