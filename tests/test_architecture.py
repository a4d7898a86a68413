"""Imports point downwards, and the heavy libraries stay where they are needed: DESIGN, Layout."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import diffcli.diffusion.prediction
import diffcli.diffusion.schedule
import diffcli.diffusion.sde

PACKAGE = Path(diffcli.__file__).parent
CONF = PACKAGE.parent / "conf"

# part -> layer: a part imports itself, lower layers, and its neighbours as long as there is no way back
LAYERS = {
    "_worker": 5, "_sweep_job": 5, "__main__": 5,
    "cli": 4,
    "commands": 3,
    "checkpoint": 2, "untrusted": 2, "training": 2, "data": 2, "interchange": 2, "metrics": 2, "sampling": 2, "sharing": 2,
    "randomness": 2, "explain": 2, "diagnosis": 2,
    "diffusion": 1, "networks": 1,
    "advice": 0, "help": 0, "memory": 0, "paths": 0, "errors": 0, "signals": 0, "writing": 0, "__init__": 0,
}  # fmt: skip
TALK = {"advice", "help", "paths"}  # for what meets the user: cli, commands, and each other
LIBRARIES = {  # library -> parts or modules that may import it; those that are not named here go anywhere
    "hydra": {"cli", "commands", "untrusted"},
    "omegaconf": {"cli", "commands", "checkpoint", "_worker"},
    "lightning": {"training", "commands.train", "commands.launch"},
    "wandb": {"training.log_process"},
    "torchdiffeq": {"training"},  # the mathematics takes the solver as an object
    "sklearn": {"data"},
    "torchvision": {"data"},
    "safetensors": {"interchange"},
    "diffusers": {"networks.diffusers_unet"},
    "torch_fidelity": {"metrics"},
    "timm": {"metrics"},
    "matplotlib": {"data", "explain"},
}
# inside functions only
LATE = {"torchvision", "matplotlib", "wandb", "sklearn", "PIL", "tensorboard", "diffusers", "torch_fidelity", "timm"}


def sources():
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path.read_text() for path in PACKAGE.rglob("*.py")
    }


def imports(text):
    """(module or name imported, whether inside a function)."""
    tree = ast.parse(text)
    inner = {n for f in ast.walk(tree) if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef) for n in ast.walk(f)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node in inner
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node in inner


def part_of(name):
    """The part of diffcli that a dotted name belongs to, None if it is not of diffcli."""
    first, _, rest = name.partition(".")
    if first != "diffcli":
        return None
    return rest.partition(".")[0] if rest.partition(".")[0] in LAYERS else "__init__"


def violations(modules):
    """Sentences, one for each import that should not be."""
    found, edges = [], set()
    for module, text in modules.items():
        part = module.partition(".")[0]
        if part not in LAYERS:
            found.append(f"{module} has no place in LAYERS")
            continue
        for name, late in imports(text):
            library, other = name.partition(".")[0], part_of(name)
            if other is not None and other != part:
                edges.add((part, other))
                if LAYERS[other] > LAYERS[part]:
                    found.append(f"{module} imports {name}, which is above it")
                if other in TALK and part not in {"cli", "commands"} | TALK:
                    found.append(f"{module} imports {name}, which is for cli and commands")
            if library in LIBRARIES and not {part, module} & LIBRARIES[library]:
                found.append(f"{module} imports {name}")
            if library in LATE and not late:
                found.append(f"{module} imports {name} when it is itself imported")
            allowed = {"torch", "diffcli", "diffusers"} if part in ("diffusion", "networks") else None
            if part in ("cli", "errors", "help", "advice", "paths", "__init__") and not late:
                allowed = {"diffcli"}
            if allowed is not None and library not in allowed | sys.stdlib_module_names:
                found.append(f"{module} imports {name}, not {' or '.join(sorted(allowed))}")
    return found + [
        f"{a} and {b} import each other"
        for a, b in edges
        if a < b and b in _reached(a, edges) and a in _reached(b, edges)
    ]


def _reached(start, edges):
    seen, todo = set(), [start]
    while todo:
        at = todo.pop()
        new = {b for a, b in edges if a == at} - seen
        seen |= new
        todo += new
    return seen


def test_imports_point_downwards():
    assert violations(sources()) == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("diffusion.sde", "import hydra"),
        ("diffusion.sde", "import numpy"),
        ("diffusion.sde", "def f():\n    from diffcli.networks.mlp import MLP\n    import lightning"),
        ("diffusion.sde", "from diffcli import checkpoint"),
        ("diffusion.sde", "from diffcli.data.base import Data"),
        ("diffusion.sde", "from diffcli.advice import nearest"),
        ("networks.mlp", "import numpy as np"),
        ("networks.mlp", "def f():\n    import diffusers"),
        ("networks.diffusers_unet", "import diffusers"),
        ("data.base", "import safetensors"),
        ("networks.mlp", "from diffcli.training.ema import EMA"),
        ("data.base", "from diffcli.commands.common import plain"),
        ("data.base", "import torchvision"),
        ("data.base", "from diffcli.sampling import draw_samples\nfrom diffcli.training.ema import EMA"),
        ("data.base", "from omegaconf import OmegaConf"),
        ("training.loggers", "def f():\n    import wandb"),
        ("commands.train", "import torchdiffeq"),
        ("commands.sample", "def f():\n    import lightning"),
        ("commands.train", "from diffcli import cli"),
        ("commands.train", "from matplotlib import pyplot"),
        ("cli", "import torch"),
        ("help", "import yaml"),
        ("errors", "from diffcli.help import ABOUT"),
        ("checkpoint", "import lightning"),
        ("new", "import os"),
    ],
)
def test_the_walk_sees(module, line):
    modules = sources()
    assert violations(modules | {module: modules.get(module, "") + "\n" + line})


def subclasses(base):
    return {base.__name__}.union(*(subclasses(c) for c in base.__subclasses__()))


def branches(text):
    """Places that ask which SDE, schedule or prediction something is."""
    of = diffcli.diffusion
    classes = set().union(*map(subclasses, (of.sde.SDE, of.schedule.Schedule, of.prediction.Prediction)))
    options = {path.stem for group in ("sde", "schedule", "prediction") for path in (CONF / group).glob("*.yaml")}
    for node in ast.walk(ast.parse(text)):
        words = ast.walk(node)
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("isinstance", "issubclass")
        ):
            if {getattr(w, "id", getattr(w, "attr", None)) for w in words} & classes:
                yield ast.unparse(node)
        elif isinstance(node, ast.Compare):
            words = list(words)
            constants = {w.value for w in words if isinstance(w, ast.Constant) and isinstance(w.value, str)}
            if constants & (options | classes) or {w.id for w in words if isinstance(w, ast.Name)} & classes:
                yield ast.unparse(node)
        elif isinstance(node, ast.MatchValue | ast.MatchClass):
            yield ast.unparse(node)


def test_no_branch_asks_for_the_sde_or_the_prediction():
    found = {m: list(branches(text)) for m, text in sources().items() if m.startswith("diffusion.")}
    assert len(found) > 10
    assert {m: b for m, b in found.items() if b} == {}


@pytest.mark.parametrize(
    "line",
    ["isinstance(x, VE)", "isinstance(x, (int, sde.VP))", "kind == 'eps'", "n in ('v', 'x0')", "type(sde) is SubVP"],
)
def test_the_branches_are_seen(line):
    assert list(branches(line))


def loaded_after(code):
    script = f"import sys; {code}; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    return {name.partition(".")[0] for name in found.stdout.split()}


def test_the_dispatch_loads_the_standard_library_alone():
    loaded = loaded_after("from diffcli.cli import main; main(['--help'])")
    assert not loaded & {"torch", "hydra", "omegaconf", "numpy", "yaml", "lightning"}


def test_commands_that_do_not_train_leave_lightning_alone():
    loaded = loaded_after("import diffcli.commands.sample, diffcli.commands.nll, diffcli.commands.evaluate")
    assert {"torch", "diffcli"} <= loaded
    assert not loaded & {"lightning", "pytorch_lightning", "torchvision", "matplotlib", "wandb", "sklearn"}


def test_every_module_of_the_mathematics_can_be_imported_first():
    """Whichever module or package a stranger's script names first: none is needed by what it needs itself."""
    code = """
import importlib, pkgutil, sys
import diffcli.diffusion
names = [m.name for m in pkgutil.iter_modules(diffcli.diffusion.__path__, "diffcli.diffusion.")]
for name in names:
    for loaded in [m for m in sys.modules if m.startswith("diffcli.")]:
        del sys.modules[loaded]
    importlib.import_module(name)
print(len(names))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 25
