"""Any UNet2DModel of the diffusers library, an optional extra, as a network."""

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from diffcli.networks.embedding import Given, check_label, check_vector, zeroed


class DiffusersUNet(nn.Module):
    """(x (B, C, H, W), c_noise (B,), label (B,), vector (B, k)) -> (B, C, H, W): diffusers' `UNet2DModel(**config)`.

    That model counts its levels from zero: c_noise = 1000 t becomes the timestep `t timesteps - 1`, whole at `t = i/timesteps`.
    config: its arguments; sample_size, in_channels and out_channels follow from shape and outputs.
    classes: without class_embed_type in config, an embedding of that many labels and of none, inside the model.  A config with
    num_class_embeds of its own takes that many labels and needs one, or one less where classes says so: the last is then none.
    vector: a condition vector of that dimension, embedded beside the model.  With class_embed_type=identity the model takes the
    embedding itself (None adds nothing), with timestep a number as the label.
    Raises ValueError for a config that does not fit the shape, and where diffusers is not installed.
    """

    def __init__(
        self,
        shape: list[int],
        config: dict | None = None,
        timesteps: int = 1000,
        classes: int = 0,
        outputs: int = 1,
        vector: int = 0,
    ):
        super().__init__()
        if len(shape) != 3:
            raise ValueError(f"it takes images (C, H, W), the data has shape {tuple(shape)}")
        for name, value, least in (
            ("timesteps", timesteps, 1),
            ("outputs", outputs, 1),
            ("classes", classes, 0),
            ("vector", vector, 0),
        ):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        config = {k: v for k, v in (config or {}).items() if not k.startswith("_")}
        config = _fitted(config, shape, outputs)
        kind, count = config.get("class_embed_type"), config.get("num_class_embeds")
        if (classes or vector) and kind is not None:
            raise ValueError(f"config.class_embed_type={kind} leaves no place for classes or vector")
        if vector and count is not None:
            raise ValueError("config.num_class_embeds leaves no place for vector: say classes instead")
        if count is not None and classes not in (0, count, count - 1):
            raise ValueError(f"config.num_class_embeds={count} is for classes={count}, or {count - 1} and none")
        if vector:
            config["class_embed_type"] = kind = "identity"
        elif classes and count is None:
            config["num_class_embeds"] = count = classes + 1
        self.model = _model(config)
        if any(getattr(module, "heads", 1) < 1 for module in self.model.modules()):
            raise ValueError(f"config.attention_head_dim={config['attention_head_dim']} is more than the channels")
        zeroed(self.model.conv_out)
        width = config.get("time_embedding_dim") or 4 * self.model.config.block_out_channels[0]
        self.timesteps, self.kind, self.width = timesteps, kind, width
        self.classes = count if count is not None and classes == 0 else classes
        self.none = self.classes if count is not None and self.classes < count else None  # the index of no label
        self.given = Given(width, classes, vector) if vector else None

    def timestep(self, c_noise: Tensor) -> Tensor:
        """`t timesteps - 1` from c_noise = 1000 t, free of c_noise's round-off where it is a whole number."""
        step = c_noise.double() * (self.timesteps / 1000) - 1
        near = step.detach().round()
        whole = (step.detach() - near).abs() < 2e-7 * self.timesteps  # three times float32's
        return torch.where(whole, step + (near - step).detach(), step).to(
            torch.promote_types(c_noise.dtype, torch.float32)
        )

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None, vector: Tensor | None = None) -> Tensor:
        step = self.timestep(c_noise)
        if self.model.config.time_embedding_type == "learned":
            step = step.round().long().clamp(0, self.timesteps - 1)
        return self.model(x, step, self._class_labels(x, label, vector), return_dict=False)[0]

    def _class_labels(self, x: Tensor, label: Tensor | None, vector: Tensor | None) -> Tensor | None:
        """What the model calls class_labels: an index, a number or the embedding itself, as class_embed_type says."""
        n = x.shape[0]
        if self.given is not None:
            return self.given.add_to(x.new_zeros(n, self.width), label, vector)
        if self.kind == "identity":
            check_label(label, n, 0)
            check_vector(vector, n, self.width)
            return x.new_zeros(n, self.width) if vector is None else vector.to(x.dtype)
        check_vector(vector, n, 0)
        if self.kind == "timestep":
            if label is None or label.shape != (n,):
                raise ValueError(f"the model is conditioned on a number: it needs a label of shape ({n},)")
            return label
        if label is None and self.classes and self.none is None:
            raise ValueError(f"the model is conditioned on {self.classes} classes and needs a label")
        check_label(label, n, self.classes, none=self.none is not None)
        if self.none is None:
            return label
        label = torch.full((n,), -1, device=x.device) if label is None else label
        return torch.where(label < 0, self.none, label)

    def save(self, folder: Path) -> None:
        """Write config.json and diffusion_pytorch_model.safetensors, what `UNet2DModel.from_pretrained` reads.

        Raises ValueError for a model with embeddings of its own beside the library's.
        """
        if self.given is not None:
            raise ValueError("its condition vector is no part of a UNet2DModel")
        self.model.save_pretrained(folder, safe_serialization=True)


def _fitted(config: dict, shape: list[int], outputs: int) -> dict:
    """The config with the sizes of the data.  Raises ValueError where it names others."""
    image, height, width = shape
    for name, value in dict(in_channels=image, out_channels=outputs * image).items():
        if config.get(name, value) != value:
            raise ValueError(f"config.{name}={config[name]} does not fit the data, which needs {value}")
        config[name] = value
    config.setdefault("sample_size", height if height == width else [height, width])
    levels = len(config.get("block_out_channels", (224, 448, 672, 896)))
    if height % 2 ** (levels - 1) or width % 2 ** (levels - 1):
        raise ValueError(
            f"{levels} levels need a height and width divisible by {2 ** (levels - 1)}, the data has {height}x{width}"
        )
    if config.get("time_embedding_type") == "fourier":
        raise ValueError("config.time_embedding_type=fourier takes a noise level sigma, not a timestep")
    return config


def _model(config: dict) -> nn.Module:
    try:
        from diffusers import UNet2DModel
    except ImportError as error:
        raise ValueError(
            'network=diffusers_unet needs the diffusers library: pip install "diffcli[diffusers]"'
        ) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of layers without elements, which are refused next
            return UNet2DModel(**config)
    except (TypeError, ValueError, KeyError, AttributeError, AssertionError, ZeroDivisionError, IndexError) as error:
        raise ValueError(
            f"diffusers refuses this config: {str(error).splitlines()[0] if str(error) else error!r}"
        ) from error
