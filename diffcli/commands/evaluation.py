"""What `diffcli evaluate` measures for a model and its data, and the fields of its card."""

import json
from pathlib import Path

import torch

from diffcli.commands.build import build
from diffcli.commands.common import typed
from diffcli.commands.given import file_hash
from diffcli.commands.guidance import label_names
from diffcli.commands.model import Model
from diffcli.commands.source import starts_from
from diffcli.commands.walk import Walk
from diffcli.data.base import Items
from diffcli.data.pictures import is_image
from diffcli.metrics.card import Card
from diffcli.metrics.evaluation import Found
from diffcli.metrics.feature_measures import FeatureMeasures
from diffcli.metrics.features.base import FeatureNetwork
from diffcli.metrics.features.reference import fingerprint, reference
from diffcli.metrics.kept import kept as in_cache
from diffcli.metrics.measures import KnownDensity, Measure, TwoSample, some
from diffcli.metrics.taken import CLIPPED, COPIED, OFF, copies

OTHER = {
    "test": "train",
    "val": "train",
    "train": "test",
}  # the split that real items in the place of samples come from
PATHS = ("root", "file", "test_file", "val_file", "download")  # of a data node: no protocol
VERSIONS = ("diffcli", "torch", "numpy", "python")


def network_of(model: Model, device: torch.device) -> FeatureNetwork | None:
    """The feature network for images, and for other items where features= was typed; set up for the model's shape."""
    if not is_image(model.shape) and not typed("features"):
        return None
    network = build(model.config["features"], "features")
    network.setup(model.shape, model.data.transform.levels, device)
    return network


def measures_of(model: Model, items: Items, network: FeatureNetwork | None) -> list[Measure]:
    """What the data allow to be measured: features, two-sample distances, a known density."""
    config, data = model.config, model.data
    n, levels, split = config["n"], data.transform.levels, config["split"]
    found: list[Measure] = []
    if network is not None:
        kept = config["kept"]
        known = reference(items, network, levels, split)
        other = OTHER.get(split) if data.held_out and config["floor"] else None
        others = None if other is None else data.split(other)
        judged = judged_labels(model, network)
        found.append(FeatureMeasures(network, levels, known, others, other or "", n, kept, *judged, keep=in_cache))
    images = is_image(model.shape)
    found.append(TwoSample(items, data.transform, n, config["compared"], energy=not images, keep=in_cache))
    mixture = getattr(data, "mixture", None)
    if mixture is not None:
        found.append(KnownDensity(mixture, n, config["compared"]))
    return found


def judged_labels(model: Model, network: FeatureNetwork) -> tuple[torch.Tensor, torch.Tensor] | tuple[()]:
    """The labels that the samples are given, in the data's numbers, and the network's class for each label of the data.

    Nothing where no label is given, or where the network does not tell these labels apart.
    """
    table, _ = ({} if model.given is None else model.given.tables).get("label", (None, 1))
    names, classes = list(model.data.class_names), network.class_names or list(model.data.class_names)
    if table is None or not network.classes or network.classes != len(classes):
        return ()
    told = label_names(model)
    if set(names) != set(classes) or set(told) != set(names):
        return ()
    number = torch.tensor([names.index(name) for name in told])
    labels = torch.where(table < 0, -1, number[table])
    return labels, torch.tensor([classes.index(name) for name in names])


def card_of(model: Model, walk: Walk | None, items: Items, measures: list[Measure], found: Found, device) -> Card:
    """The card without its memorisation; walk None for samples that were given."""
    config, data = model.config, model.data
    levels, n = data.transform.levels, config["n"]
    of_features = (m for m in measures if isinstance(m, FeatureMeasures))
    protocol = {
        "data": {
            "set": data_name(config["data"]),
            **{k: v for k, v in config["data"].items() if k not in (*PATHS, "name", "_target_")},
            "split": config["split"],
            "held_out": data.held_out and config["split"] == "test",
            "reference_n": len(items),
            "reference_hash": next((m.reference.protocol["data"] for m in of_features), None) or fingerprint(items),
            "shape": list(model.shape),
            "samples": "as they are" if levels is None else f"rounded and clipped to {levels} levels",
        },
        "n": n,
    }
    for measure in measures:
        protocol |= measure.protocol()
    draw = {
        "repeats": config["repeats"],
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }
    if walk is not None:
        draw |= {
            "sampler": named(config["sampler"]),
            "grid": named(config["grid"]),
            "steps": len(walk.times) - 1 if walk.sampler.evaluations is not None else None,
            "nfe": found.nfe.summary(),
            "last": walk.last,
            "label": config["label"],
            "vector": config["vector"],
            "guidance": guidance_of(model),
            **starts_from(model),
            "seed": config["seed"],
            "dtype": config["dtype"],
            **({"precision": "bf16"} if config.get("precision") == "bf16" else {}),
        }
    warnings = [f"{found.labels[name]} is left out: {reason}" for name, reason in found.left_out.items()]
    if not protocol["data"]["held_out"]:
        warnings.append(f"the {config['split']} split of this data set is not held out from training")
    warnings += other_labels(model)
    if model.side is not None and n * config["repeats"] > len(model.starts):
        warnings.append(
            f"the samples start from {len(model.starts)} items of the source, each more than once: the same sample again"
        )
    first, real = found.first.first, some(items, len(found.first.first))
    again = copies(first)
    if again > COPIED * len(first) and again / len(first) > copies(real) / len(real):
        warnings.append(f"{again} of the first {len(first)} samples are copies of others")
    if found.off_range > CLIPPED * found.values:
        share = found.off_range / found.values
        warnings.append(
            f"{share:.1%} of the values lay over {OFF:.0%} of the range outside the levels 0..{levels - 1}, and were clipped"
        )
    # as they are read from a file: lists for tuples, text for what JSON has no word for
    protocol, who, draw = json.loads(json.dumps([protocol, _model(model), draw], default=str))
    title = f"{_title(model)} on {protocol['data']['set']} {config['split']}"
    return Card(protocol, who, draw, found.figures, warnings=warnings, title=title)


def data_name(node: dict) -> str:
    """The class of a data set, with its own name where it has one: MNIST, Points moons."""
    kind = node["_target_"].rpartition(".")[2]
    return f"{kind} {node['name']}" if node.get("name") else kind


def other_labels(model: Model) -> list[str]:
    """A warning where the samples are of some labels, and the data that they are compared with of all."""
    label = model.config.get("label")
    if label is None or label == "all":
        return []
    return [f"the samples are of label {label}, and the data that they are compared with of all labels"]


def guidance_of(model: Model) -> dict | None:
    """What the card says of it: its settings, the formula, and the file of what guides."""
    node = model.config.get("guidance")
    if not node:
        return None
    path = node.get("ckpt")
    return named(node) | {"formula": model.guidance} | ({"sha256": file_hash(path)} if path else {})


def named(node: dict) -> dict:
    """A node with the name of its class in the place of where that is."""
    rest = {k: named(v) if isinstance(v, dict) and "_target_" in v else v for k, v in node.items() if k != "_target_"}
    return {"name": node["_target_"].rpartition(".")[2], **rest}


def _model(model: Model) -> dict:
    config = model.config
    if config["samples"] is not None:
        return {"source": model.source, "sha256": file_hash(model.source)}
    ckpt = config["ckpt"]
    found = {"source": model.source, "weights": config["weights"] if ckpt else None}
    if ckpt:
        found["sha256"] = file_hash(ckpt)
    found |= {part: config[part]["_target_"].rpartition(".")[2] for part in ("denoiser", "sde") if config.get(part)}
    error = (config.get("network") or {}).get("error")
    return found | ({"error": error} if error else {})


def _title(model: Model) -> str:
    """The run's folder and the checkpoint's name, or what else the model is."""
    ckpt, error = model.config["ckpt"], (model.config.get("network") or {}).get("error")
    if model.config["samples"] is not None:
        return f"the samples of {Path(model.source).name}"
    if ckpt is None:
        return model.source + (f" with an error of {error:g}" if error else "")
    path = Path(ckpt)
    run = path.parent.parent if path.parent.name == "checkpoints" else path.parent
    return f"{run.resolve().name}/{path.name} ({model.config['weights']})"
