"""What a checkpoint smuggles in: code in its pickle, and a config that names programs, modules, variables or files of others."""

import copy
import json
import shutil
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from diffcli import checkpoint
from diffcli.cli import main
from diffcli.errors import CheckpointError

TINY = ("data=moons", "trainer.max_steps=2", "batch_size=16", "network.width=8", "network.blocks=1", "optim.warmup=0")
VALUE = "the-value-of-a-variable"
REFUSED = "a sentence, exit 3, nothing ran"

_watched = threading.local()


def _hear(event, arguments):
    if event == "open" and getattr(_watched, "paths", None) is not None:
        _watched.paths.append(str(arguments[0]))


sys.addaudithook(_hear)  # cannot be taken away again, only left idle


@pytest.fixture
def opened():
    """The paths of files that this thread has opened since."""
    _watched.paths = []
    yield _watched.paths
    _watched.paths = None


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert main(["train", *TINY, "preview.every=0", "checkpoint.every=1", f"out={folder}"]) == 0
    return folder / "checkpoints" / "last.ckpt"


@pytest.fixture(scope="module")
def content(trained):
    return torch.load(trained, weights_only=True)


class Payload:
    """Unpickled, it makes a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (Path(self.marker),)


def refused(result, code=3):
    """One sentence, at most one piece of advice, and no trace."""
    assert result.code == code, result.err
    lines = result.err.strip().splitlines()
    assert lines[0].startswith("error: "), result.err
    assert len(lines) == 1 or (len(lines) == 2 and lines[1].startswith("try: ")), result.err
    return lines[0]


# every way in which a checkpoint is taken up; good is one that is whole, bad the other
CONSUMERS = {
    "sample": "sample ckpt={bad}",
    "sample raw": "sample ckpt={bad} weights=raw trust=torch",
    "nll": "nll ckpt={bad} n=2",
    "evaluate": "evaluate ckpt={bad} n=4",
    "encode": "encode ckpt={bad} n=2",
    "decode": "decode ckpt={bad} input={npy}",
    "decode to": "encode ckpt={good} to={bad} n=2",
    "interpolate": "interpolate ckpt={bad}",
    "compare": "compare ckpt={bad} samplers=[ddim] nfe=[2] n=4",
    "explain": "explain ckpt={bad}",
    "diagnose": "diagnose ckpt={bad}",
    "export": "export ckpt={bad}",
    "resume": "train {tiny} resume={bad}",
    "guidance": "sample ckpt={good} guidance=autoguidance guidance.ckpt={bad} n=2 steps=2",
    "classifier": "sample ckpt={good} guidance=classifier guidance.ckpt={bad} n=2 steps=2 label=0",
    "features": "evaluate ckpt={good} features=classifier features.ckpt={bad} n=4",
    "reflow": "train {tiny} loss=flow sde=flow prediction=velocity coupling=reflow ckpt={bad}",
}


def words(line, bad, good, folder):
    npy = folder / "z.npy"
    np.save(npy, np.zeros((2, 2)))
    return [w.format(bad=bad, good=good, npy=npy) for w in line.replace("{tiny}", " ".join(TINY)).split()]


@pytest.mark.slow
@pytest.mark.parametrize("consumer", CONSUMERS)
def test_no_command_runs_what_a_pickle_names(cli, trained, content, tmp_path, injected, consumer):
    marker, bad = tmp_path / "marker", tmp_path / "bad.ckpt"
    torch.save(content | {"optimizer_states": [Payload(marker)]}, bad)
    said = refused(cli(*words(CONSUMERS[consumer], bad, trained, tmp_path), "out=here"))
    assert "may run code" in said
    assert not marker.exists()
    assert not (tmp_path / "here").exists()
    injected(
        "a pickle that would run a program, in every command that takes a checkpoint",
        REFUSED,
        stock="torch.load(weights_only=False) runs it",
    )


def places(content, payload):
    """The contents with a payload in each place that a checkpoint has."""
    yield payload
    yield [payload]
    for key, value in content.items():
        yield content | {key: payload}
        if isinstance(value, dict):
            yield content | {key: value | {"more": payload}}
    yield content | {payload: 1}
    config = copy.deepcopy(content["config"])
    config["denoiser"]["network"]["width"] = payload
    yield content | {"config": config}


def test_a_payload_hides_nowhere(content, tmp_path, injected):
    marker, path, count = tmp_path / "marker", tmp_path / "x.ckpt", 0
    for forged in places(content, Payload(marker)):
        torch.save(forged, path)
        with pytest.raises(CheckpointError, match="may run code"):
            checkpoint.read(path, None)
        assert not marker.exists()
        torch.load(path, weights_only=False)  # the control: it is live
        assert marker.exists()
        marker.unlink()
        count += 1
    assert count > 15
    injected("a pickle that would run a program, at every place of a checkpoint", REFUSED, n=count, survived=count)


# --- configs


def node(target, **values):
    return {"_target_": target, **values}


def configs(tmp_path):
    """Values that would do something if the config were resolved, built or imported as Hydra does it."""
    ran = f"touch {tmp_path / 'ran'}"
    yield from (
        node(target, command=ran) for target in ("os.system", "posix.system", "subprocess.getoutput", "nt.system")
    )
    yield node("subprocess.Popen", args=["touch", str(tmp_path / "ran")])
    yield node("builtins.open", file=str(tmp_path / "ran"), mode="w")
    yield node("builtins.eval", _args_=["__import__('os').system('" + ran + "')"])
    yield node("builtins.exec", _args_=["open('" + str(tmp_path / "ran") + "', 'w')"])
    yield node("builtins.__import__", name="forgedmodule")
    yield node("importlib.import_module", name="forgedmodule")
    yield node("forgedmodule.Net")
    yield node("diffcli.networks.mlp.forgedmodule.Net")
    yield node("torch.load", f=str(tmp_path / "live.ckpt"), weights_only=False)
    yield node("torch.hub.load", repo_or_dir=str(tmp_path), model="Net", source="local")
    yield node("hydra.utils.instantiate", config=node("os.system", command=ran))
    yield node("hydra.utils.get_method", path="os.system")
    yield node("hydra._internal.utils._locate", path="forgedmodule.Net")
    yield node("omegaconf.OmegaConf.load", file_=str(tmp_path / "secret.npy"))
    yield node("diffcli.commands.build.build", node=node("os.system", command=ran), where="x")
    yield node("diffcli.untrusted.config.built", node=node("os.system", command=ran))
    yield node("diffcli.checkpoint.read", path=str(tmp_path / "live.ckpt"))
    yield node("diffcli.checkpoint.write", content={}, path=str(tmp_path / "ran"))
    yield node("diffcli.networks.mlp.MLP", _partial_=True)
    yield [node("os.system", command=ran)]
    yield {"deeper": [[node("os.system", command=ran)]]}
    yield from (
        "${oc.env:SMUGGLED}",
        "x${oc.env:SMUGGLED,none}y",
        "${oc.decode:${oc.env:SMUGGLED}}",
        "${hydra:runtime.cwd}",
    )
    yield from ("${denoiser}", "${oc.create:{a: 1}}", ["${oc.env:SMUGGLED}"], {"a": {"b": "\\${oc.env:SMUGGLED}"}})


def put(content, path, value):
    config = copy.deepcopy(content["config"])
    *parents, last = path.split(".")
    at = config
    for key in parents:
        at = at[key]
    at[last] = value
    return content | {"config": config}


PLACES = (
    "denoiser.network",
    "denoiser.sde.schedule",
    "data",
    "data.noise",
)


@pytest.fixture
def traps(tmp_path, monkeypatch, content):
    """A module, a variable and files that a forged config could reach for."""
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "forgedmodule.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Net:\n    pass\n")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("SMUGGLED", VALUE)
    torch.save({"x": Payload(tmp_path / "ran")}, tmp_path / "live.ckpt")
    np.save(tmp_path / "secret.npy", np.zeros((4, 2)))
    yield
    assert not (tmp_path / "ran").exists()
    assert "forgedmodule" not in sys.modules


def test_forged_configs_reach_for_nothing(content, tmp_path, traps, opened, injected):
    path, count = tmp_path / "forged.ckpt", 0
    for place in PLACES:
        for value in configs(tmp_path):
            torch.save(put(content, place, value), path)
            del opened[:]
            with pytest.raises(CheckpointError) as refusal:
                found = checkpoint.read(path)["config"]
                checkpoint.load_denoiser(path)
                checkpoint.built(found["data"], (checkpoint.Data,), None, "data", "data set")
            assert refusal.value.message.isprintable()
            assert VALUE not in str(refusal.value.args)
            assert {p for p in opened if p.startswith(str(tmp_path))} <= {str(path)}
            count += 1
    injected(
        "a config that would run, import, read or resolve something",
        "refused by a sentence, exit 3; nothing ran",
        n=count,
        survived=count,
        stock="hydra.utils.instantiate runs it",
    )


def test_stock_instantiate_runs_them(tmp_path):
    """The control: Hydra's own block list lets these through."""
    from hydra.utils import instantiate

    torch.save({"x": Payload(tmp_path / "ran")}, tmp_path / "live.ckpt")
    instantiate(node("torch.load", f=str(tmp_path / "live.ckpt"), weights_only=False))
    assert (tmp_path / "ran").exists()


DATA = {
    "array": lambda t: node("diffcli.data.array.Array", file=f"{t}/secret.npy", test_file=f"{t}/secret.npy"),
    "mixture": lambda t: node("diffcli.data.mixture.Mixture", file=f"{t}/secret.npz"),
    "pictures": lambda t: node("diffcli.data.image_folder.ImageFolder", root=f"{t}/pictures"),
    "mnist": lambda t: node("diffcli.data.torchvision_sets.MNIST", root=f"{t}/fetched", download=True),
    "cifar10": lambda t: node("diffcli.data.torchvision_sets.CIFAR10", root=f"{t}/fetched", download=True),
}


def reached(opened, folder):
    """Of the files that were opened, those that DATA name."""
    names = [str(folder / name) for name in ("secret", "pictures", "fetched")]
    return {path for path in opened if path.startswith(tuple(names))}


@pytest.mark.slow
def test_sampling_reads_no_file_that_a_checkpoint_names(cli, trained, content, tmp_path, traps, opened, injected):
    """Its data are built for their transform and their units alone: no file of theirs is opened, nothing is fetched."""
    (tmp_path / "pictures").mkdir()
    for name, forged in DATA.items():
        torch.save(put(content, "data", forged(tmp_path)), tmp_path / "forged.ckpt")
        del opened[:]
        checkpoint.load_denoiser(tmp_path / "forged.ckpt")
        found = cli("sample", "ckpt=forged.ckpt", "n=2", "steps=2", f"out=run-{name}")
        touched = reached(opened, tmp_path)
        assert touched == set(), (name, found.err)
        assert found.code == 0, found.err
        assert not (tmp_path / "fetched").exists()
    injected(
        "a checkpoint whose data are another file, sampled from",
        "no file of theirs is opened",
        n=len(DATA),
        survived=len(DATA),
    )


@pytest.mark.slow
def test_an_import_reads_no_file_that_its_folder_names(cli, trained, tmp_path, traps, opened, injected):
    exported = cli("export", f"ckpt={trained}", "out=exported")
    assert exported.code == 0, exported.err
    config = json.loads((tmp_path / "exported/model.json").read_text())
    shutil.copytree(tmp_path / "exported", tmp_path / "forged")
    for name, forged in DATA.items():
        config["config"]["data"] = forged(tmp_path)
        (tmp_path / "forged/model.json").write_text(json.dumps(config))
        del opened[:]
        found = cli("import", "path=forged", f"out=imported-{name}")
        assert reached(opened, tmp_path) == set(), (name, found.err)
        # data that know their shape without a file are of another one than the model
        assert found.code == (0 if name in ("array", "mixture") else 2), found.err
    config["config"]["data"] = node("os.system", command=f"touch {tmp_path / 'ran'}")
    (tmp_path / "forged/model.json").write_text(json.dumps(config))
    refused(cli("import", "path=forged", "out=imported"))
    injected(
        "an imported folder whose data are another file", "no file of theirs is opened", n=len(DATA), survived=len(DATA)
    )
