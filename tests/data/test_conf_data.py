"""Each data option of the command line says what its class takes."""

import importlib
import inspect
from pathlib import Path

import pytest
import yaml

FILES = sorted((Path(__file__).parents[2] / "conf" / "data").glob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_yaml_spells_the_arguments_of_its_class(file):
    text = file.read_text()
    assert text.startswith("# ")
    node = yaml.safe_load(text)
    node.pop("defaults", None)
    module, name = node.pop("_target_").rsplit(".", 1)
    parameters = inspect.signature(getattr(importlib.import_module(module), name)).parameters
    assert list(node) == list(parameters)
    if name == "Points":  # one class, four options
        return
    for key, parameter in parameters.items():
        required = parameter.default is inspect.Parameter.empty
        assert node[key] == ("???" if required else parameter.default)
