"""The exponential moving average of the weights."""

import contextlib

import lightning as L
import torch

from diffcli.training.ema_profile import Profile


class EMA(L.Callback):
    """`average <- d_n average + (1 - d_n) weight` after each optimiser step n = 1, 2, …, d_n of the profile.

    Raw weights stay in the module; averages of the trainable parameters are kept apart in float32, saved under "ema".
    Validation and previews use the averages.
    """

    def __init__(self, profile: Profile):
        self.profile, self.updates, self.average = profile, 0, {}
        self._raw, self._live = None, ()

    def on_fit_start(self, trainer, module) -> None:
        if not self.average:
            self.average = {name: p.detach().float().clone() for name, p in _weights(module)}
        names, self._live = zip(*_weights(module), strict=True)
        self.average = {name: self.average[name].to(module.device) for name in names}

    def on_train_batch_end(self, trainer, module, *_) -> None:
        if trainer.global_step > self.updates:  # not after every batch of an accumulation
            self.updates = trainer.global_step
            decay = self.profile(self.updates)
            live = [p.detach().float() for p in self._live]
            torch._foreach_lerp_(list(self.average.values()), live, 1 - decay)

    @contextlib.contextmanager
    def applied(self, module):
        """The averages in the place of the weights."""
        self._swap_in(module)
        try:
            yield
        finally:
            self._swap_out(module)

    def _swap_in(self, module) -> None:
        self._raw = {name: p.detach().clone() for name, p in _weights(module)}
        _copy(self.average, module)

    def _swap_out(self, module) -> None:
        if self._raw is not None:
            _copy(self._raw, module)
            self._raw = None

    def on_validation_start(self, trainer, module) -> None:
        self._swap_in(module)

    def on_validation_end(self, trainer, module) -> None:
        self._swap_out(module)

    def on_exception(self, trainer, module, exception) -> None:
        self._swap_out(module)

    def on_save_checkpoint(self, trainer, module, checkpoint: dict) -> None:
        checkpoint["ema"] = {name: a.clone() for name, a in self.average.items()}
        checkpoint["ema_updates"] = self.updates

    def on_load_checkpoint(self, trainer, module, checkpoint: dict) -> None:
        self.average, self.updates = dict(checkpoint["ema"]), checkpoint["ema_updates"]


def _weights(module):
    return [(name, p) for name, p in module.named_parameters() if p.requires_grad]


def _copy(values: dict, module) -> None:
    with torch.no_grad():
        for name, p in _weights(module):
            p.copy_(values[name])
