"""What `diffcli nll` tells the model of each item: nothing, the same of all, or `label=own` what the data say of it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffcli.commands.conditions import check_own_labels, conditions, labels, own_labels, vectors
from diffcli.commands.model import Model
from diffcli.commands.pairs import check_images
from diffcli.data.base import Items
from diffcli.errors import UsageError
from diffcli.sampling import Conditions


@dataclass
class Told:
    """What the model is told of each item: its `own` label, vector or image, else what is `given`, if anything."""

    model: Model
    own: bool
    given: Conditions | None

    def __call__(
        self, items: Items, indices: Sequence[int], y: Tensor, dtype: torch.dtype, device: torch.device
    ) -> dict[str, Tensor]:
        """The keywords of a batch of the items, of labels y (B,), a row an item."""
        if not self.own:
            return {} if self.given is None else self.given(indices, dtype, device)
        name = self.model.condition
        mine = own_labels(self.model, y) if name == "label" else items.given(indices, name)
        if name == "image":
            mine = self.model.data.transform.encode(mine)
        return {name: mine.to(device=device, dtype=None if name == "label" else dtype)}


def told(model: Model) -> Told:
    """What the settings `label` and `vector` tell.

    Raises UsageError for what the model does not take or the data do not have, and for likelihoods of unlike numbers of points.
    """
    config, name = model.config, model.condition
    wish = "own" if name == "image" else config.get(name) if name in ("label", "vector") else None
    for key, refuse in {"label": labels, "vector": vectors}.items():
        if key != name and config.get(key) is not None:
            refuse(config[key], model)
    if wish == "own":
        _check_own(model)
    elif wish == "all" or (name == "label" and isinstance(wish, list)):
        raise UsageError(f"label={wish}: nll tells the model one label of an item", "label=own, or label=NAME")
    elif wish is None and name in ("label", "vector") and not model.drop:
        raise UsageError(
            f"{model.always_told} and knows no {name} as nothing",
            f"{name}=own, the density of each item given its own",
        )
    given = conditions(model) if wish != "own" else None
    if (wish is not None or given is not None) and not config["likelihood"]["_target_"].endswith(".Likelihood"):
        raise UsageError(
            f"this likelihood asks the model at points that are no items, which have no {name}", "likelihood=ode"
        )
    return Told(model, wish == "own", given)


def _check_own(model: Model) -> None:
    data, name = model.data, model.condition
    if name == "image":
        check_images(model)
    elif name == "label":
        check_own_labels(model)
    elif data.vector != model.vector:
        has = f"vectors of {data.vector}" if data.vector else "no vectors"
        raise UsageError(f"vector=own: the data have {has}, the model takes {model.vector} numbers", "vector=[…]")
