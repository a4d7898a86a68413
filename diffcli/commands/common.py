"""What every command does around its own work: resolve the config, choose a device, keep a record of failures."""

import contextlib
import inspect
import os
import sys

import torch
from omegaconf import DictConfig, OmegaConf

from diffcli.commands.run_folder import RunFolder
from diffcli.diffusion.denoiser import Denoiser
from diffcli.diffusion.sde import SDE
from diffcli.errors import DiffcliError, UsageError
from diffcli.signals import received
from diffcli.writing import as_sentence

SCHEDULED = {  # a schedule's setting -> what gives more noise at its end
    "betas": "larger schedule.betas, or a larger schedule.beta_max where they are a rule",
    "beta_max": "a larger schedule.beta_max",
    "beta": "a larger schedule.beta",
    "sigma_max": "a larger schedule.sigma_max",
}
# the same of a process without a schedule, where alpha is too large and where sigma is too small
LESS_DATA = {
    "theta": "a larger sde.theta or sde.horizon",
    "alpha": "an sde.alpha that falls further",
    "f": "a lower sde.f",
}
MORE_NOISE = {"s": "a larger sde.s", "sigma": "a larger sde.sigma", "g": "a larger sde.g"}


def typed(prefix: str) -> bool:
    """Whether the user set this group or key on the command line."""
    from hydra.core.hydra_config import HydraConfig

    overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    return any(o.lstrip("+").removeprefix("data@").startswith(prefix) for o in overrides)


def chosen(group: str) -> str | None:
    """The option of a config group that this command was composed with."""
    from hydra.core.hydra_config import HydraConfig

    choices = HydraConfig.get().runtime.choices if HydraConfig.initialized() else {}
    names = (group, f"{group}@_global_.{group}", f"data@{group}")  # source is a data set by another name
    return next((choices[name] for name in names if name in choices), None)


def plain(cfg: DictConfig) -> dict:
    """The config as plain nested containers with every interpolation resolved."""
    return OmegaConf.to_container(cfg, resolve=True)


def pick_device(name: str | None) -> torch.device:
    """The device by its name; auto is CUDA where there is one.  Raises UsageError if it is not there."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("device=cuda: no CUDA device was found here", "device=cpu")
    return torch.device("cuda" if name == "cuda" or (name != "cpu" and torch.cuda.is_available()) else "cpu")


def several(count: int | None, device: torch.device) -> list[torch.device]:
    """The devices that `devices=count` asks for.  Raises UsageError for more than there are GPUs, or CPU cores."""
    there = torch.cuda.device_count() if device.type == "cuda" else max(2, os.cpu_count() or 1)
    if (count or 1) > there:
        kind = "GPUs" if device.type == "cuda" else "CPU cores"
        raise UsageError(f"devices={count}: this machine has {there} {kind}", f"devices={there}")
    if count in (None, 1):
        return [device]
    return [torch.device(device.type, i) if device.type == "cuda" else device for i in range(count)]


def check_prior(sde: SDE, warn: bool = True) -> None:
    """Refuse to sample where the path ends with the data still in it, `warn` where the prior is only roughly right.

    A path whose alpha falls must fall below 0.05.  VE keeps alpha = 1 and drowns the data in noise instead.
    """
    t = torch.tensor(sde.t_max, dtype=torch.float64)
    alpha, sigma = sde.alpha(t).item(), sde.sigma(t).item()
    if alpha > 0.05 and alpha < 0.999:
        raise UsageError(
            f"at t_max = {sde.t_max:g} the path still holds {alpha:.2f} of the data (alpha > 0.05), so its prior is wrong",
            _remedy(sde, LESS_DATA),
        )
    if warn and 0.1 < alpha / sigma <= 0.5:
        print(
            f"warning: at t_max the data are {alpha / sigma:.2f} of the noise, the prior is only roughly right",
            file=sys.stderr,
        )
    if alpha / sigma > 0.5:
        raise UsageError(
            f"at t_max the noise ({sigma:.3g}) is too small to hide the data ({alpha:.3g} of them)",
            _remedy(sde, MORE_NOISE),
        )


def _remedy(sde: SDE, own: dict[str, str]) -> str:
    """What to change for more noise at t_max: a setting of the schedule, or one of `own` in a process without a schedule."""
    schedule = getattr(sde, "schedule", None)
    known = own if schedule is None else SCHEDULED
    there = inspect.signature(type(sde if schedule is None else schedule)).parameters
    return next((advice for name, advice in known.items() if name in there), "the SDE's usual schedule")


def check_walk(denoiser: Denoiser, kind: str, last: str, warn: bool = True) -> None:
    """Refuse what the model has no prior or no meaning for: a free field is the velocity of an ODE and nothing else.

    A sampler that asks the score alone may start anywhere.
    """
    if denoiser.posterior_mean:
        if kind != "score":
            check_prior(denoiser.sde, warn)
    elif kind != "ode":
        raise UsageError(
            f"the model is a free field (cnf, source), which has no score for this {'SDE ' * (kind == 'sde')}sampler",
            "sampler=dpm2|heun|ddim|rk45",
        )
    elif last == "denoise":
        raise UsageError("the model is a free field (cnf, source), whose x0_hat is no posterior mean", "last=stop")


@contextlib.contextmanager
def recorded(folder: RunFolder):
    """A failure inside goes to error.log with its trace, and into run.json, before it is passed on; then others may write there.

    A file that cannot be written or read becomes a DiffcliError that names it; so does a UsageError, which stands for a run
    that did not start, where the run had come to something.
    """
    try:
        yield
    except UsageError as error:
        if folder.refused(error):
            raise
        raise DiffcliError(error.message, error.hint) from error
    except OSError as error:
        folder.failed(error)
        if isinstance(error, BrokenPipeError):
            raise
        raise as_sentence(error, folder.path) from error
    except BaseException as error:
        # what Lightning and others make of a signal that they did not expect is still the signal
        folder.interrupted() if isinstance(error, KeyboardInterrupt) or received() else folder.failed(error)
        raise
    finally:
        folder.release()
