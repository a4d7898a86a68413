"""The other processes of a run, started by Lightning: they load the config that rank 0 resolved and never meet Hydra."""

import os
import sys
from pathlib import Path

# run as a file, the package's own folder is on the path, where its module names would hide others
sys.path = [p for p in sys.path if Path(p or ".").resolve() != Path(__file__).resolve().parent]
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def main() -> int:
    from omegaconf import OmegaConf

    from diffcli.cli import report
    from diffcli.commands.launch import build_trainer
    from diffcli.commands.prepare import build_parts
    from diffcli.commands.train import fit
    from diffcli.sharing import die_with_parent

    die_with_parent()
    folder = Path(os.environ["DIFFCLI_RUN_DIR"])
    try:
        config = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
        resume = os.environ.get("DIFFCLI_RESUME")
        return fit(build_parts(config), build_trainer(config, folder), folder, Path(resume) if resume else None)
    except Exception as error:  # noqa: BLE001 - the outermost boundary of this process
        return report(error, debug=True)


if __name__ == "__main__":
    sys.exit(main())
