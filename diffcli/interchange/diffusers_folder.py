"""A folder of the diffusers library: a UNet2DModel and its scheduler, as it saves and loads them."""

import math
import os
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from diffcli.checkpoint import FORMAT
from diffcli.diffusion.denoiser import Denoiser
from diffcli.diffusion.prediction import X0, Eps, V
from diffcli.errors import CheckpointError, UsageError
from diffcli.interchange.files import (
    SCHEDULER_CONFIG,
    UNET_CONFIG,
    UNET_WEIGHTS,
    read_json,
    read_tensors,
    write_json,
)
from diffcli.networks.diffusers_unet import DiffusersUNet
from diffcli.writing import unwritten

PREDICTIONS = {"epsilon": Eps, "v_prediction": V, "sample": X0}
# the schedulers whose betas are DDPM's, whatever they do with them
SCHEDULERS = (
    "DDPM",
    "DDIM",
    "DDIMInverse",
    "DDPMParallel",
    "DDIMParallel",
    "PNDM",
    "DPMSolverMultistep",
    "UniPCMultistep",
)
SCHEDULERS += ("DPMSolverSinglestep", "DPMSolverSDE", "DEISMultistep", "LMSDiscrete", "EulerDiscrete", "HeunDiscrete")
SCHEDULERS += ("EulerAncestralDiscrete", "KDPM2Discrete", "KDPM2AncestralDiscrete")
# a scheduler's settings of how it samples, which are the sampler's and the grid's here; and their values without effect
SAMPLING = {
    "clip_sample": False,
    "thresholding": False,
    "steps_offset": 0,
    "timestep_spacing": None,
    "variance_type": "fixed_small",
}
OLD_NAMES = {
    "query": "to_q",
    "key": "to_k",
    "value": "to_v",
    "proj_attn": "to_out.0",
}  # of attention, before diffusers 0.17
MOST = 50_000  # levels of a chain
TARGET = "diffcli.diffusion.prediction.{}"


def read(folder: Path) -> dict:
    """The contents of a checkpoint, from a folder of UNet2DModel or of a pipeline with `unet` and `scheduler`.

    `notes` has a sentence for each thing that is left out.  Data is null: nothing in the folder says what it was.
    Raises UsageError where a file is missing, CheckpointError for a damaged one and for a model that cannot be represented.
    """
    home = folder / "unet" if (folder / "unet").is_dir() else folder
    if not (home / UNET_CONFIG).exists():
        raise UsageError(
            f"{folder} holds no model: no model.json of diffcli export, no config.json of diffusers", "path=DIR"
        )
    config = read_json(home / UNET_CONFIG)
    if config.get("_class_name") != "UNet2DModel":
        raise CheckpointError(f"{home / UNET_CONFIG} is of {config.get('_class_name')!r}, and only UNet2DModel is read")
    places = (folder / "scheduler", home, home.parent / "scheduler")
    found = [place / SCHEDULER_CONFIG for place in places if (place / SCHEDULER_CONFIG).exists()]
    if not found:
        raise UsageError(
            f"{folder} has no {SCHEDULER_CONFIG}, so its noise levels are not known", "scheduler.save_pretrained(DIR)"
        )
    scheduler, notes = read_scheduler(found[0])
    config = {name: value for name, value in config.items() if not name.startswith("_")}
    channels = config.get("in_channels", 3), config.get("out_channels", 3)
    if channels[0] != channels[1]:
        raise CheckpointError(
            f"{home / UNET_CONFIG}: {channels[1]} output channels for {channels[0]} (a learned variance) are not read"
        )
    state = {f"denoiser.network.model.{_renamed(k)}": v for k, v in read_tensors(home / UNET_WEIGHTS).items()}
    shape = _shape(config, home / UNET_CONFIG)
    config.pop("sample_size", None)
    network = {"_target_": f"{DiffusersUNet.__module__}.{DiffusersUNet.__name__}", "shape": shape, "config": config}
    network["timesteps"] = len(scheduler["betas"])
    sde = {"_target_": "diffcli.diffusion.sde.VP", "schedule": _schedule(scheduler["betas"])}
    prediction = PREDICTIONS[scheduler["prediction_type"]]
    denoiser = {"_target_": TARGET.format(prediction.__name__), "sde": sde, "network": network}
    parts = {"denoiser": denoiser, "data": None}
    classes = config.get("num_class_embeds")
    if type(classes) is int and classes > 0 and config.get("class_embed_type") is None:  # nothing says that one is none
        parts |= {"condition": "label", "class_names": [str(k) for k in range(classes)], "drop": 0.0}
        notes.append(f"conditioned on {classes} classes: diffcli sample label=0, or label=all")
    return {"format": FORMAT, "config": parts, "state_dict": state, "ema": {}, "shape": shape, "notes": notes}


def _renamed(name: str) -> str:
    words = name.split(".")
    return ".".join(OLD_NAMES.get(w, w) if "attentions" in words else w for w in words)


def _shape(config: dict, path: Path) -> list[int] | None:
    """(C, H, W); None where the model says no size, as it takes any."""
    size, channels = config.get("sample_size"), config.get("in_channels", 3)
    sides = size if isinstance(size, list) else [size, size]
    if size is None:
        sides = [1, 1]
    if len(sides) != 2 or not all(type(n) is int and n > 0 for n in [channels, *sides]):
        raise CheckpointError(f"{path}: sample_size={size!r} and in_channels={channels!r} are no shape of images")
    return None if size is None else [channels, *sides]


def _schedule(betas: list[float]) -> dict:
    return {"_target_": "diffcli.diffusion.schedule.DDPM", "T": len(betas), "betas": betas}


def read_scheduler(path: Path) -> tuple[dict, list[str]]:
    """betas and prediction_type of a scheduler_config.json, and a sentence for each setting that is left out.

    Raises CheckpointError for a scheduler that is no chain of DDPM's kind.
    """
    config = read_json(path)
    name = config.get("_class_name", "DDPMScheduler")
    if str(name).removesuffix("Scheduler") not in SCHEDULERS:
        raise CheckpointError(f"{path} is of {name!r}, whose noise levels are not DDPM's")
    kind = config.get("prediction_type", "epsilon")
    if kind not in PREDICTIONS:
        raise CheckpointError(f"{path}: prediction_type={kind!r} is none of {', '.join(PREDICTIONS)}")
    if config.get("rescale_betas_zero_snr"):
        raise CheckpointError(
            f"{path}: rescale_betas_zero_snr ends in pure noise, where eps says nothing; it is not read"
        )
    try:
        betas = scheduler_betas(config)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise CheckpointError(f"{path}: {str(error).splitlines()[0]}") from None
    usual = SAMPLING | ({"clip_sample": None} if "DDPM" in name or "DDIM" in name else {})
    said = {k: config.get(k, True if k == "clip_sample" and usual[k] is None else v) for k, v in usual.items()}
    left = [f"{k}={v}" for k, v in said.items() if v not in (None, SAMPLING[k])]
    notes = [f"left to the sampler, not imported: {', '.join(left)}"] if left else []
    return {"betas": betas.tolist(), "prediction_type": kind}, notes


def scheduler_betas(config: dict) -> Tensor:
    """The betas (T,) of a scheduler's config, float32 and to the bit what diffusers computes from it.

    Raises ValueError or TypeError for settings that give none.
    """
    T, rule = config.get("num_train_timesteps", 1000), config.get("beta_schedule", "linear")
    first, last = config.get("beta_start", 1e-4), config.get("beta_end", 0.02)
    if type(T) is not int or not 2 <= T <= MOST:
        raise ValueError(f"num_train_timesteps must be a whole number from 2 to {MOST}, got {T!r}")
    if config.get("trained_betas") is not None:
        betas = torch.tensor(config["trained_betas"], dtype=torch.float32)
        if betas.shape != (T,):
            raise ValueError(f"trained_betas must be {T} numbers (num_train_timesteps), got shape {tuple(betas.shape)}")
    elif rule == "linear":
        betas = torch.linspace(first, last, T, dtype=torch.float32)
    elif rule == "scaled_linear":  # Rombach et al. 2022
        betas = torch.linspace(first**0.5, last**0.5, T, dtype=torch.float32) ** 2
    elif rule == "squaredcos_cap_v2":  # Nichol & Dhariwal 2021, eq. 17
        bars = [math.cos((i / T + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(T + 1)]
        betas = torch.tensor([min(1 - bars[i + 1] / bars[i], 0.999) for i in range(T)], dtype=torch.float32)
    elif rule == "sigmoid":
        betas = torch.sigmoid(torch.linspace(-6, 6, T)) * (last - first) + first
    else:
        raise ValueError(f"beta_schedule={rule!r} is none of linear, scaled_linear, squaredcos_cap_v2, sigmoid")
    if not bool(((betas > 0) & (betas < 1)).all()):
        raise ValueError("every beta must lie between 0 and 1")
    return betas


def write(folder: Path, denoiser: Denoiser) -> list[Path]:
    """Write config.json, diffusion_pytorch_model.safetensors and scheduler_config.json, all in one folder.

    The betas are those of the levels `t = i/T` on the model's own clock, whatever the schedule: `1 - (alpha_i/alpha_{i-1})^2`,
    at most 0.999.  Raises ValueError with the reason where diffusers has no such model; nothing is written then.
    """
    network = getattr(denoiser, "network", None)
    if not isinstance(network, DiffusersUNet):
        raise ValueError("the network is no UNet2DModel (network=diffusers_unet)")
    names = [name for name, kind in PREDICTIONS.items() if type(denoiser) is kind]
    if not names or getattr(denoiser, "outputs", 1) > 1:
        raise ValueError("its schedulers know predictions eps, v and x0 with one output alone")
    betas = chain(denoiser, network.timesteps)
    temporary = folder / f".{os.getpid()}.tmp.diffusers"
    try:
        temporary.mkdir()
        network.save(temporary)
        for file in temporary.iterdir():
            os.replace(file, folder / file.name)
    except SafetensorError as error:  # its own for a full disk
        raise unwritten(folder, OSError(str(error))) from error
    except OSError as error:
        raise unwritten(folder, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    scheduler = {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": len(betas),
        "trained_betas": betas,
        "prediction_type": names[0],
        "variance_type": "fixed_small",
        "clip_sample": False,
    }
    write_json(folder / SCHEDULER_CONFIG, scheduler)
    return [folder / UNET_CONFIG, folder / UNET_WEIGHTS, folder / SCHEDULER_CONFIG]


def chain(denoiser: Denoiser, T: int) -> list[float]:
    """The betas of the model's path on the levels i/T, i = 1 ... T, as float32.  Raises ValueError where it is not VP."""
    t = torch.arange(1, T + 1, dtype=torch.float64) / T
    inside = t <= denoiser.sde.t_max
    log_alpha = denoiser.sde.log_alpha(t[inside])
    off = (torch.exp(2 * log_alpha) + denoiser.sde.sigma(t[inside]) ** 2 - 1).abs().max()
    if off > 1e-9:
        raise ValueError("its schedulers know variance preserving paths alone (sde=vp)")
    steps = torch.cat([log_alpha[:1], log_alpha.diff()])
    betas = torch.full((T,), 0.999, dtype=torch.float64)  # beyond t_max alpha is 0: the cap of Nichol & Dhariwal
    betas[inside] = (-torch.expm1(2 * steps)).clamp(max=0.999)
    return betas.float().tolist()
