"""A checkpoint is plain data; a damaged or forged one is refused by a sentence, and reading it runs nothing."""

import copy
import pickle
import random
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from diffcli import checkpoint
from diffcli.cli import main
from diffcli.data.base import Data
from diffcli.errors import CheckpointError

TINY = ("data=moons", "trainer.max_steps=2", "batch_size=16", "network.width=8", "network.blocks=1", "optim.warmup=0")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """last.ckpt of a training of two steps."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert main(["train", *TINY, "preview.every=0", "checkpoint.every=1", f"out={folder}"]) == 0
    return folder / "checkpoints" / "last.ckpt"


@pytest.fixture(scope="module")
def content(trained):
    return torch.load(trained, weights_only=True)


def plain_leaves(node, where=""):
    if type(node) in (dict, OrderedDict, list, tuple):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            assert type(key) in (str, int), where
            yield from plain_leaves(value, f"{where}.{key}")
    else:
        yield where, node


def test_a_checkpoint_is_plain_data(content):
    kinds = {type(leaf) for _, leaf in plain_leaves(content)}
    assert kinds <= {str, int, float, bool, type(None), torch.Tensor}
    assert {"denoiser", "data", "seed", "optim"} <= content["config"].keys()


@pytest.mark.parametrize("weights", ["raw", "ema"])
def test_load_denoiser_is_the_trained_model(trained, content, weights):
    stored = content["state_dict"] if weights == "raw" else content["ema"]
    denoiser = checkpoint.load_denoiser(trained, weights)
    for name, value in denoiser.named_parameters():
        assert torch.equal(value, stored[f"denoiser.{name}"])
        assert not value.requires_grad
    by_hand = checkpoint.build_denoiser(content["config"]["denoiser"]).eval()
    by_hand.load_state_dict({k.removeprefix("denoiser."): v for k, v in stored.items()})
    x, t = torch.randn(5, 2), torch.tensor(0.4, dtype=torch.float64)
    assert not denoiser.training
    assert torch.equal(denoiser(x, t), by_hand(x, t))


def test_raw_and_averaged_weights_differ(trained):
    x, t = torch.randn(5, 2), torch.tensor(0.4, dtype=torch.float64)
    assert not torch.equal(*(checkpoint.load_denoiser(trained, w)(x, t) for w in ("raw", "ema")))


# --- damaged files


def same(a, b):
    if torch.is_tensor(a):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return all(map(same, a, b)) if isinstance(a, (list, tuple)) else a == b


@pytest.mark.parametrize("share", [0.0001, 0.1, 0.5, 0.9, 0.99, 0.9999])
def test_a_truncated_file_is_refused(trained, tmp_path, share):
    data = trained.read_bytes()
    path = tmp_path / "cut.ckpt"
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(CheckpointError):
        checkpoint.read(path)


def test_a_flipped_bit_is_refused_or_harmless(trained, content, tmp_path):
    data, path, rng = bytearray(trained.read_bytes()), tmp_path / "flipped.ckpt", random.Random(0)
    weight = data.index(content["state_dict"]["denoiser.network.first.weight"].numpy().tobytes())
    directory = data.index(b"PK\x01\x02")  # of the zip archive, at its end
    spots = [weight, weight + 5, directory + 8, directory + 10, len(data) - 10, len(data) - 20]
    spots += [rng.randrange(len(data)) for _ in range(30)] + [rng.randrange(directory, len(data)) for _ in range(10)]
    refused = {}
    for spot in spots:
        flipped = bytearray(data)
        flipped[spot] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        try:
            found = checkpoint.read(path)
        except CheckpointError:
            refused[spot] = True
        else:
            assert same(found, content), spot
    assert refused[weight]
    assert refused[weight + 5]


def save(content, path):
    torch.save(content, path)
    return path


def with_weight(content, value, group="state_dict", name="denoiser.network.first.weight"):
    return content | {group: content[group] | {name: value}}


WEIGHT = "denoiser.network.first.weight"
FORGED_CONTENTS = {
    "foreign": lambda c: {"model": c["state_dict"]},
    "a list": lambda c: [1, 2],
    "a tensor": lambda c: torch.zeros(3),
    "future format": lambda c: c | {"format": 2},
    "tensor for format": lambda c: c | {"format": torch.ones(2)},
    "no config": lambda c: {k: v for k, v in c.items() if k != "config"},
    "config a list": lambda c: c | {"config": [1]},
    "config empty": lambda c: c | {"config": {}},
    "denoiser null": lambda c: c | {"config": c["config"] | {"denoiser": None}},
    "data a list": lambda c: c | {"config": c["config"] | {"data": []}},
    "shape a number": lambda c: c | {"shape": 2},
    "shape negative": lambda c: c | {"shape": [-2]},
    "weights a list": lambda c: c | {"state_dict": []},
    "averages null": lambda c: c | {"ema": None},
    "a key that is a number": lambda c: c | {"state_dict": c["state_dict"] | {3: torch.zeros(1)}},
    "wrong shape": lambda c: with_weight(with_weight(c, torch.zeros(8, 3)), torch.zeros(8, 3), "ema"),
    "complex": lambda c: with_weight(with_weight(c, torch.zeros(8, 2) + 1j), torch.zeros(8, 2) + 1j, "ema"),
    "missing key": lambda c: c | {g: {k: v for k, v in c[g].items() if k != WEIGHT} for g in ("state_dict", "ema")},
    "extra key": lambda c: with_weight(c, torch.zeros(1), name="denoiser.network.more"),
    "extra average": lambda c: with_weight(c, torch.zeros(1), "ema", "denoiser.network.more"),
    "nan": lambda c: with_weight(c, torch.full((8, 2), float("nan"))),
    "inf average": lambda c: with_weight(c, torch.full((8, 2), float("inf")), "ema"),
    "eight bits": lambda c: with_weight(c, torch.ones(8, 2).to(torch.float8_e4m3fn)),
    "sparse": lambda c: with_weight(c, torch.ones(8, 2).to_sparse(), "ema"),
    "no storage": lambda c: with_weight(c, torch.ones(8, 2, device="meta"), "ema"),
    "one element for many": lambda c: with_weight(c, torch.ones(1, 1).expand(10**6, 10**8), "ema"),
    "text for a weight": lambda c: with_weight(c, "weights"),
}


@pytest.mark.parametrize("fault", FORGED_CONTENTS)
def test_wrong_contents_are_refused(content, tmp_path, fault):
    path = save(FORGED_CONTENTS[fault](content), tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError) as refusal:
        checkpoint.load_denoiser(path)
    assert "\n" not in refusal.value.message


def test_the_last_nan_hides_nowhere(content, tmp_path):
    for group in ("state_dict", "ema"):
        for name, value in content[group].items():
            bad = value.clone()
            bad.view(-1)[-1] = float("nan")
            with pytest.raises(CheckpointError, match="not finite"):
                checkpoint.read(save(with_weight(content, bad, group, name), tmp_path / "x.ckpt"))


class Payload:
    """Unpickled, it makes a file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def refused(result, code=3):
    """Exit code, one sentence with at most one piece of advice, and no traceback."""
    assert result.code == code, result.err
    lines = result.err.strip().splitlines()
    assert lines[0].startswith("error: ")
    assert len(lines) == 1 or (len(lines) == 2 and lines[1].startswith("try: ")), result.err
    assert "Traceback" not in result.out + result.err
    return lines[0]


@pytest.mark.parametrize("command", ["sample", "nll"])
def test_the_command_line_refuses_files_that_are_no_checkpoint(cli, trained, content, tmp_path, command):
    marker = tmp_path / "marker"
    files = {
        name: tmp_path / f"{name}.ckpt" for name in ("empty", "text", "folder", "cut", "pickle", "payload", "foreign")
    }
    files["empty"].touch()
    files["text"].write_text("weights")
    files["folder"].mkdir()
    files["cut"].write_bytes(trained.read_bytes()[:-50])
    files["pickle"].write_bytes(pickle.dumps(Payload(marker)))
    save(content | {"state_dict": content["state_dict"] | {"x": Payload(marker)}}, files["payload"])
    save({"model": {}}, files["foreign"])
    for path in files.values():
        assert str(path) in refused(cli(command, f"ckpt={path}"))
    assert not marker.exists()
    assert "may run code" in cli(command, f"ckpt={files['payload']}").err
    torch.load(files["payload"], weights_only=False)  # the payload is live
    assert marker.exists()
    refused(cli(command, f"ckpt={tmp_path / 'none.ckpt'}"), code=2)
    refused(cli(command), code=2)
    assert not (tmp_path / "outputs").exists()


# --- forged configs


def put(config, path, value):
    """A copy of the config with the value at the dotted path."""
    config = copy.deepcopy(config)
    *parents, last = path.split(".")
    node = config
    for key in parents:
        node = node[key]
    node[last] = value
    return config


def cyclic():
    node = [2]
    node.append({"again": node})
    return node


def doubled():
    node = []
    for _ in range(60):
        node = [node, node]
    return node


TARGETS = {
    "os.system": "not part of diffcli",
    "posix.system": "not part of diffcli",
    "builtins.eval": "not part of diffcli",
    "torch.load": "not part of diffcli",
    "torch.nn.Linear": "not part of diffcli",
    "diffcliforged.Net": "not part of diffcli",
    "forgedmarker.Net": "not part of diffcli",
    "diffcli.forgedmarker.Net": "not a model part",
    "diffcli.checkpoint.Path": "not a model part",
    "diffcli.cli.os.system": "not a model part",
    "diffcli.cli.main": "not a model part",
    "diffcli.__main__.main": "not a model part",
    "diffcli._worker.main": "not a model part",
    "diffcli.training.ema.EMA": "not a model part",
    "diffcli.commands.run_folder.RunFolder": "not a model part",
    "diffcli.data.base.Dataset": "not a model part",  # defined elsewhere
    "diffcli.data.transform.Levels": "not a model part",
    "diffcli.data.array.Path": "not a model part",
    "diffcli.networks.embedding.nn": "not a model part",
    "diffcli.networks.embedding.nn.Linear": "cannot be imported",
    "diffcli.networks.mlp.math.prod": "cannot be imported",
    "diffcli.networks.mlp.Nothing": "cannot be imported",
    "diffcli.networks.embedding.zeroed": "not a model part",  # a function
    "diffcli.diffusion.samplers.sample": "not a model part",
    "diffcli.data.mixture.exact": "not a model part",
    "diffcli.networks.mlp.MLP.forward": "cannot be imported",
    "diffcli.networks.": "no name of a class",
    "": "no name of a class",
    "diffcli.networks.mlp.MLP ": "no name of a class",
    "..networks.mlp.MLP": "no name of a class",
}
ODD_VALUES = {
    "a number": 3,
    "a list": ["diffcli.networks.mlp.MLP"],
    "null": None,
    "a dict": {"_target_": "os.system"},
}
DENOISER_ONLY = {
    "data in the model": ("network", {"_target_": "diffcli.data.points.Points"}, "not a model part"),
    "a network for the model": ("_target_", "diffcli.networks.mlp.MLP", "cannot be built"),
    "an sde for the model": ("", {"_target_": "diffcli.diffusion.schedule.Linear"}, "no model"),
    "no class": ("", {}, "names no class"),
    "a wrong argument": ("network.width", "wide", "cannot be built"),
    "more weights than the file": ("network.width", 1000, "more weights than the file"),
    "no sde": ("sde", None, "no model"),
}
NESTED = {
    "deep": ([{"a": [{"_target_": "os.system", "command": "true"}]}], "not part of diffcli"),
    "in a tuple": (({"_target_": "os.system", "command": "true"},), "not plain data"),
    "bytes": (b"\0", "not plain data"),
    "a tensor": (torch.zeros(2), "not plain data"),
    "interpolation": ("${oc.env:HOME}", "interpolation"),
    "deep interpolation": ([["a ${oc.env:HOME}"]], "interpolation"),
    "arguments": ({"_args_": [1]}, "_args_"),
    "partial": ({"_target_": "diffcli.networks.mlp.MLP", "_partial_": True}, "_partial_"),
    "not recursive": ({"_recursive_": False}, "_recursive_"),
    "converted": ({"_convert_": "none"}, "_convert_"),
    "key a number": ({1: 2}, "has the key 1"),
    "key of two lines": ({"a\nb": 2}, "has the key"),
    "without end": (cyclic(), "too deeply"),
    "doubled": (doubled(), "too deeply"),
}


def forge(content, part, where, value):
    config = content["config"]
    config = config | {part: value} if where == "" else put(config, f"{part}.{where}", value)
    return content | {"config": config}


def cases():
    for part, key in (("denoiser", "network._target_"), ("data", "_target_")):
        for target, why in TARGETS.items():
            yield pytest.param(part, key, target, why, id=f"{part} {target}")
        for name, value in ODD_VALUES.items():
            yield pytest.param(part, key, value, "no name of a class", id=f"{part} target {name}")
        for name, (value, why) in NESTED.items():
            yield pytest.param(part, "network.shape" if part == "denoiser" else "seed", value, why, id=f"{part} {name}")
    for name, (where, value, why) in DENOISER_ONLY.items():
        yield pytest.param("denoiser", where, value, why, id=name)
    yield pytest.param("data", "", {}, "names no class", id="data of no class")
    yield pytest.param("data", "_target_", "diffcli.networks.mlp.MLP", "not a model part", id="a network for the data")


@pytest.fixture
def marked(tmp_path, monkeypatch):
    """Modules on the path that would leave a mark if they were imported, and no shell to call."""
    folder = tmp_path / "forged"
    folder.mkdir()
    for name in ("forgedmarker", "diffcliforged"):
        (folder / f"{name}.py").write_text("from torch import nn\n\nclass Net(nn.Module):\n    pass\n")
    monkeypatch.syspath_prepend(str(folder))
    before = set(sys.modules)
    yield
    new = set(sys.modules) - before
    assert not {name for name in new if "forged" in name}
    assert not {"diffcli.__main__", "diffcli._worker"} & new  # they act when imported


def use(path):
    """What the commands do with a checkpoint, where diffcli itself is trusted."""
    node = checkpoint.read(path)["config"]["data"]
    checkpoint.load_denoiser(path, trust="diffcli")
    checkpoint.check_node(node, (Data,), "diffcli", "data")


@pytest.mark.parametrize(("part", "where", "value", "why"), list(cases()))
def test_forged_configs_are_refused(content, tmp_path, marked, part, where, value, why):
    torch.save(forge(content, part, where, value), tmp_path / "forged.ckpt")
    with pytest.raises(CheckpointError) as refusal:
        use(tmp_path / "forged.ckpt")
    assert why in refusal.value.message
    assert "\n" not in refusal.value.message


CLI_CASES = [
    ("denoiser", "network._target_", "os.system"),
    ("denoiser", "network._target_", "diffcli.__main__.main"),
    ("denoiser", "network._target_", "forgedmarker.Net"),
    ("denoiser", "network.shape", ({"_target_": "os.system", "command": "touch ran"},)),
    ("denoiser", "network.shape", [{"_target_": "os.system", "command": "touch ran"}]),
    ("denoiser", "network.shape", "${oc.env:HOME}"),
    ("denoiser", "", {"_target_": "diffcli.diffusion.schedule.Linear"}),
    ("denoiser", "", {"_target_": "os.system", "command": "touch ran"}),
    ("data", "", {"_target_": "os.system", "command": "touch ran"}),
    ("data", "_target_", "builtins.eval"),
    ("data", "seed", {"_target_": "os.system", "command": "touch ran"}),
    ("data", "", {}),
]


@pytest.mark.parametrize(
    "command", ["sample", *(pytest.param(c, marks=pytest.mark.heavy) for c in ("nll", "evaluate"))]
)
def test_the_command_line_refuses_forged_configs(cli, content, tmp_path, marked, command):
    for part, where, value in CLI_CASES:
        torch.save(forge(content, part, where, value), tmp_path / "forged.ckpt")
        refused(cli(command, "ckpt=forged.ckpt", "out=here"))
        if where:  # the sde is one whose keys can be changed
            refused(cli(command, "ckpt=forged.ckpt", "out=here", "sde.t_min=0.001", "trust=torch"))
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "here").exists()


SIDES = {
    "source of no class": {"source": 5},
    "source that runs": {"source": {"_target_": "os.system", "command": "touch ran"}},
    "source that is no data": {"source": {"_target_": "diffcli.diffusion.schedule.Linear"}},
    "condition of no name": {"condition": ["label"]},
    "condition that there is not": {"condition": "colour"},
    "label without names": {"condition": "label"},
    "names without label": {"class_names": ["a", "b"]},
    "names of no list": {"condition": "label", "class_names": "ab"},
    "names of no words": {"condition": "label", "class_names": [0, 1]},
    "drop of no number": {"condition": "label", "class_names": ["a", "b"], "drop": "x"},
    "drop beyond 1": {"condition": "label", "class_names": ["a", "b"], "drop": 2},
}


@pytest.mark.parametrize("row", SIDES)
def test_forged_sources_and_conditions_are_refused(cli, content, tmp_path, row):
    """Of the model itself, and of a second one that guides it or decodes its latents."""
    torch.save(content, tmp_path / "good.ckpt")
    torch.save(content | {"config": content["config"] | SIDES[row]}, tmp_path / "forged.ckpt")
    beside = ("sample", "ckpt=good.ckpt", "guidance=autoguidance", "guidance.ckpt=forged.ckpt")
    for words in (("sample", "ckpt=forged.ckpt"), beside, ("encode", "ckpt=good.ckpt", "to=forged.ckpt")):
        refused(cli(*words, "out=here"))
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "here").exists()


def test_as_many_names_as_the_network_has_classes(tmp_path):
    config = {"denoiser": {"network": {"classes": 2}}, "condition": "label", "drop": 0.1}
    assert checkpoint.conditioning(config | {"class_names": ["a", "b"]}, tmp_path) == ("label", ["a", "b"], 0.1, 0)
    with pytest.raises(CheckpointError, match="does not say"):
        checkpoint.conditioning(config | {"class_names": ["a", "b", "c"]}, tmp_path)


def test_trust_is_for_what_the_package_defines(content, tmp_path, monkeypatch):
    (tmp_path / "trustedforge.py").write_text(
        "from os import system\nfrom torch.nn import Linear\nfrom diffcli.networks.mlp import MLP\n"
        "class Net(MLP):\n    pass\ndef make(**options):\n    return Net(**options)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("Net", "make"):
        found = forge(content, "denoiser", "network._target_", f"trustedforge.{name}")
        assert checkpoint.load_denoiser(save(found, tmp_path / "x.ckpt"), trust="trustedforge")
        with pytest.raises(CheckpointError) as refusal:
            checkpoint.load_denoiser(tmp_path / "x.ckpt")
        assert "trust=trustedforge" in refusal.value.hint
    for name in ("system", "Linear", "MLP"):
        node = {"_target_": f"trustedforge.{name}", "command": f"touch {tmp_path / 'ran'}"}
        with pytest.raises(CheckpointError, match="not defined in trustedforge"):
            checkpoint.build_denoiser(node, trust="trustedforge")
    assert not (tmp_path / "ran").exists()
    sys.modules.pop("trustedforge")
