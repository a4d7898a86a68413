"""`source=DATA`: a second data set as the starting side, checked before training and taken up again with the model."""

import inspect

from omegaconf import DictConfig, OmegaConf

from diffcli.commands.build import build, locate
from diffcli.commands.common import chosen, typed
from diffcli.commands.model import Model
from diffcli.data.base import Data
from diffcli.errors import UsageError
from diffcli.training.source import Source


def prepare_source(cfg: DictConfig, data: Data) -> None:
    """Make the model a free field where there is a source.  Raises UsageError where that does not go with the rest."""
    if cfg.get("source") is None:
        if cfg.source_noise:
            raise UsageError(
                f"source_noise={cfg.source_noise} is of the path between two data sets",
                f"source=NAME data={chosen('data')}",
            )
        return
    name = chosen("source")
    _check_loss(cfg, name)
    if "free" not in cfg.prediction:
        raise UsageError(
            f"source={name} trains a velocity, and prediction={chosen('prediction')} is none", "prediction=velocity"
        )
    if not typed("prediction.free="):
        cfg.prediction.free = True
    source = build(OmegaConf.to_container(cfg.source, resolve=True), "source")
    for split in ("train", "val"):
        source.split(split)
    if tuple(source.shape) != tuple(data.shape):
        raise UsageError(
            f"source={name} has items of shape {tuple(source.shape)}, data={chosen('data')} of {tuple(data.shape)}",
            "two data sets of one shape",
        )


def _check_loss(cfg: DictConfig, name: str) -> None:
    target = locate(cfg.loss["_target_"], "loss")
    if "source" not in inspect.signature(target).parameters:
        raise UsageError(
            f"source={name} goes with flow matching, and loss={chosen('loss')} starts from noise", "loss=flow|ot_flow"
        )
    if cfg.coupling["_target_"].endswith(".Reflow"):
        raise UsageError(
            f"coupling=reflow pairs samples with their noise, and source={name} has items instead", "coupling=ot"
        )


def side_of(config: dict) -> Data | None:
    """The data set that samples start from; None for noise."""
    return None if config.get("source") is None else build(config["source"], "source")


def source_of(config: dict, side: Data | None) -> dict[str, object]:
    """What a loss is given beside its own node: the source's items, and the noise of the way between."""
    if side is None:
        return {}
    return {"source": Source(side, config["dequantize"] == "uniform"), "noise": config["source_noise"]}


def refuse_source(model: Model, reason: str, instead: str = "") -> None:
    """Raise UsageError for a model that starts from items in the place of noise."""
    if model.side is not None:
        raise UsageError(f"{model.source} starts from the items of a source: {reason}", instead)


def starts_from(model: Model) -> dict[str, dict]:
    """What a card says of where samples start: nothing for noise."""
    if model.side is None:
        return {}
    node = model.config["source"]
    rest = {k: v for k, v in node.items() if k not in ("_target_", "root", "file", "test_file", "val_file", "download")}
    return {"source": {"set": node["_target_"].rpartition(".")[2], **rest, "split": "test"}}
