"""Every option of every group composes and builds, alone and with those it meets."""

import importlib.util
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf, open_dict

from diffcli.commands.build import build, check, locate
from diffcli.commands.classify import fill_in
from diffcli.commands.prepare import build_parts, prepare
from diffcli.commands.train import build_trainer
from diffcli.commands.walk import build_sampler
from diffcli.data.measure import MEASURES
from diffcli.data.pictures import write_pngs
from diffcli.diffusion.denoiser import Denoiser
from diffcli.errors import UsageError
from diffcli.help import commands_of
from diffcli.paths import conf_dir

CONF = conf_dir()
OPTIONS = sorted(path for path in CONF.glob("*/*.yaml"))
NEEDS = {  # what stands as ??? in a yaml
    "data/array": lambda folder: f"data.file={_array(folder)}",
    "data/image_folder": lambda folder: f"data.root={folder}",
    "data/blank": lambda folder: "data.shape=[3,8,8]",
    "data/image_pairs": lambda folder: f"data.root={_pairs(folder)}",
    "task/paired": lambda folder: f"data.root={_pairs(folder)}",
}
BARE = ("mnist", "data=", "trainer=")  # not prepared: they may need files or devices that are not here
ALONE = {"sde=one": ["levels=one"], "schedule=none": ["levels=one"]}  # options that go with another group's
EXACT = ("network=exact", "sde=vp", "data=mixture")


def _array(folder: Path) -> Path:
    np.save(folder / "points.npy", np.random.default_rng(0).normal(size=(30, 2)))
    return folder / "points.npy"


def _pairs(folder: Path) -> Path:
    for side in ("input", "target"):
        write_pngs(np.zeros((20, 3, 8, 8)), folder / side, 256)
    return folder


def composed(command: str, *overrides: str) -> dict:
    """The resolved config of a command; of train prepared as it does itself, where the data's files are there."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(command, list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    try:
        with open_dict(cfg):
            del cfg.hydra
        bare = any(o.removeprefix("experiment=").startswith(BARE) for o in overrides)
        if command == "train" and not bare:
            prepare(cfg)
        elif command == "train":
            data = build(OmegaConf.to_container(cfg.data, resolve=True), "data")
            if "network" in cfg.task:
                with open_dict(cfg):
                    cfg.task.noise = False
                    fill_in(cfg, data)
                return OmegaConf.to_container(cfg, resolve=True)
            cfg.network.shape = list(data.shape)
            for group, key in itertools.product(("schedule", "prediction", "loss"), MEASURES):
                if cfg[group].get(key) == "auto":
                    cfg[group][key] = {"sigma_data": 0.6, "sigma_max": 40.0}[key]
        return OmegaConf.to_container(cfg, resolve=True)
    finally:
        HydraConfig.instance().cfg = None


def build_data(node):
    data = build(node, "data")
    assert data.transform is not None
    if not any(
        kind in node["_target_"] for kind in ("torchvision", "ImageFolder", "Blank")
    ):  # whose items are not there
        assert data.split("test")[0][0].shape == tuple(data.shape)
    else:
        assert len(data.shape) == 3


def build_grid(node):
    sde = build(composed("train", "schedule=ddpm")["sde"], "sde")  # levels: some grids need them, none minds
    grid = build(node, "grid")
    if node["_target_"].endswith(".TunedGrid"):  # its times come with a checkpoint
        with pytest.raises(ValueError, match="not been tuned"):
            grid(sde, 5)
        return
    times = grid(sde, 5)
    assert len(times) == 6
    assert (times.diff() < 0).all()


def check_trainer(config, folder):
    check(config["trainer"], "trainer")
    refused = config["trainer"]["strategy"] == "fsdp"  # with a sentence
    if refused or (config["trainer"]["accelerator"] == "gpu" and not torch.cuda.is_available()):
        with pytest.raises(UsageError, match=r"(?i)gpu|cuda"):
            build_trainer(config, folder)
    else:
        assert build_trainer(config, folder).max_steps == config["trainer"]["max_steps"]


def build_logger(node, folder):
    if not node:
        return
    if "tensorboard" in node["_target_"] and importlib.util.find_spec("tensorboard") is None:
        with pytest.raises(UsageError, match="needs the extra"):
            build(node | {"save_dir": str(folder)}, "logger")
    else:
        assert build(node | {"save_dir": str(folder)}, "logger").folder == folder


@pytest.mark.parametrize("path", OPTIONS, ids=lambda p: f"{p.parent.name}={p.stem}")
def test_every_option_builds(path, tmp_path):
    group, name = path.parent.name, path.stem
    more = [NEEDS[f"{group}/{name}"](tmp_path)] if f"{group}/{name}" in NEEDS else []
    if name == "exact":
        assert isinstance(build(composed("sample", *EXACT)["denoiser"], "network"), Denoiser)
        return
    if commands_of(path) == ["sample"]:  # a measurement, which tests/commands/test_inverse.py makes
        assert composed("sample", f"{group}={name}", *more)["guidance"]["_target_"].endswith(".Posterior")
        return
    if group == "guidance":  # each is built around a model in tests/commands/test_guidance.py and test_inverse.py
        node = composed("sample", *EXACT, f"guidance={name}")[group]
        assert not node or issubclass(locate(node["_target_"], group), Denoiser)
        return
    command = {"likelihood": "nll", "features": "evaluate"}.get(group, "train")
    if f"{group}={name}" in ALONE:
        config = composed(command, *ALONE[f"{group}={name}"])
        assert config[group].get("_target_") == OmegaConf.load(path).get("_target_")
    else:
        config = composed(command, f"{group}={name}", *more)
    if group in ("experiment", "sweep", "network", "levels", "schedule", "task"):
        assert build_parts(config)
    elif group == "data":
        build_data(config["data"])
    elif group == "grid":
        build_grid(config["grid"])
    elif group == "sampler":
        assert type(build_sampler(config[group])).__name__ == config[group]["_target_"].rpartition(".")[2]
    elif group == "trainer":
        check_trainer(config, tmp_path)
    elif group == "logger":
        build_logger(config["logger"], tmp_path)
    else:
        assert type(build(config[group], group)).__name__ == config[group]["_target_"].rpartition(".")[2]


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def processes() -> list[tuple[str, ...]]:
    """Every SDE with every schedule that it takes, as words of the command line."""
    found = []
    for sde in options("sde"):
        node = OmegaConf.load(CONF / "sde" / f"{sde}.yaml")
        schedules = [s for s in options("schedule") if s != "none"] if "schedule" in node else [None]
        found += [(f"sde={sde}", *([f"schedule={s}"] if s else [])) for s in schedules if sde != "one"]
    return found


@pytest.mark.parametrize("process", processes(), ids="-".join)
def test_every_process_takes_every_prediction(process):
    config = composed("train", *process, "data=moons", "data.n=50", "network.width=8")["denoiser"]
    if len(process) > 1:
        chosen = OmegaConf.load(CONF / "schedule" / f"{process[1].removeprefix('schedule=')}.yaml")["_target_"]
        assert config["sde"]["schedule"]["_target_"] == chosen  # and not the SDE's usual one
    for prediction in options("prediction"):
        node = OmegaConf.load(CONF / "prediction" / f"{prediction}.yaml")
        more = {"sigma_data": 0.7} if "sigma_data" in node else {}
        parts = {"sde": config["sde"], "network": config["network"]}
        denoiser = build({"_target_": node["_target_"], **parts, **more}, "prediction")
        torch.manual_seed(0)
        for p in denoiser.parameters():
            torch.nn.init.normal_(p, std=0.3)
        with torch.no_grad():
            for t in torch.linspace(denoiser.sde.t_min, denoiser.sde.t_max, 7, dtype=torch.float64):
                x0, eps = torch.randn(2, 16, 2)
                xt = denoiser.sde.perturb(x0, t, eps)
                for reading in (denoiser, denoiser.eps, denoiser.score, denoiser.v, denoiser.velocity):
                    found = reading(xt, t)
                    assert found.shape == xt.shape
                    assert torch.isfinite(found).all(), (prediction, t, reading)


@pytest.mark.parametrize("command", sorted(p.stem for p in CONF.glob("*.yaml") if "  - sde: null" in p.read_text()))
def test_every_command_takes_every_process(command):
    """With what that prefers, a schedule and a prediction: of a trained model they are its own."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for option in (CONF / "sde").glob("*.yaml"):
            assert compose(command, [f"sde={option.stem}"]).sde._target_


@pytest.mark.parametrize(
    "words, prediction",
    [("", "Eps"), ("sde=ve", "Eps"), ("sde=flow", "Velocity"), ("levels=one level.sigma=0.1", "Score"),
     ("loss=cnf", "Velocity"), ("prediction=eps", "Eps"), ("experiment=mnist_vp", "Eps"), ("experiment=mnist_edm", "EDM")],
)  # fmt: skip
def test_a_process_prefers_a_prediction_that_the_user_may_change(words, prediction):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        assert compose("train", words.split()).prediction._target_.rpartition(".")[2] == prediction


def test_the_users_schedule_wins_wherever_it_stands():
    usual = {"vp": "Linear", "subvp": "Linear", "ve": "Geometric", "flow": "Logit", "edm": "EDM"}
    for sde in {process[0].removeprefix("sde=") for process in processes() if len(process) > 1}:
        assert composed("train", f"sde={sde}")["sde"]["schedule"]["_target_"].endswith(f".{usual[sde]}")
        for words in ((f"sde={sde}", "schedule=cosine"), ("schedule=cosine", f"sde={sde}")):
            config = composed("train", *words, "schedule.s=0.01")
            for node in (config["schedule"], config["sde"]["schedule"], config["denoiser"]["sde"]["schedule"]):
                assert node == {"_target_": "diffcli.diffusion.schedule.Cosine", "s": 0.01}


def test_a_sweep_makes_its_runs_in_one_folder(cli, tmp_path):
    tiny = (
        "data=moons",
        "trainer.max_steps=1",
        "batch_size=8",
        "network.width=8",
        "network.blocks=1",
        "preview.every=0",
    )
    done = cli("train", "-m", "sweep=sde_x_loss", *tiny)
    assert done.code == 0, done.err
    (sweep,) = (tmp_path / "outputs/train").iterdir()
    records = [json.loads(path.read_text()) for path in tmp_path.rglob("run.json")]
    assert sorted(path.name for path in sweep.glob("*/")) == list("012345")
    assert all((sweep / job / "run.json").is_file() for job in "012345")
    assert len(records) == 6
    assert all(r["status"] == "finished" and r["steps"] == 1 for r in records)
    configs = {
        (r["config"]["denoiser"]["sde"]["_target_"].rpartition(".")[2], r["config"]["loss"]["weight"]) for r in records
    }
    assert configs == {(sde, weight) for sde in ("VP", "VE", "SubVP") for weight in ("simple", "likelihood")}
