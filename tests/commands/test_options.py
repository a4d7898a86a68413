"""An option by its name with settings is what the command line composes of the same words."""

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from diffcli.commands.options import changed, filled, names, option
from diffcli.errors import UsageError
from diffcli.paths import conf_dir


@pytest.mark.parametrize(
    "text",
    ["ddim", "deis order=4 variable=x0", "rk45 tol=1e-3", "dpmpp_3m released=true final=null", "  heun   variable=t "],
)
def test_it_is_what_hydra_composes(text):
    name, *settings = text.split()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("sample", [f"sampler={name}", *(f"sampler.{s}" for s in settings)])
    assert option("sampler", text) == OmegaConf.to_container(cfg.sampler)


def test_the_users_folder_comes_first_and_builds_on_diffclis(tmp_path):
    (tmp_path / "sampler").mkdir()
    (tmp_path / "sampler/mine.yaml").write_text("# mine\ndefaults:\n  - deis\n  - _self_\norder: 2\n")
    (tmp_path / "sampler/deis.yaml").write_text("defaults:\n  - deis\n  - _self_\nvariable: x0\n")
    (tmp_path / "sampler/ddim.yaml").write_text("_target_: mypackage.DDIM\nkeep: [1, 2]\ntol: 1e-3\n")
    ours = yaml.safe_load((conf_dir() / "sampler/deis.yaml").read_text())
    assert option("sampler", "deis", user=str(tmp_path)) == ours | {"variable": "x0"}
    assert option("sampler", "mine starter=rk", user=str(tmp_path)) == ours | {
        "variable": "x0", "order": 2, "starter": "rk",
    }  # fmt: skip
    assert option("sampler", "ddim keep=[3]", user=str(tmp_path)) == {
        "_target_": "mypackage.DDIM",
        "keep": [3],
        "tol": 1e-3,
    }
    assert option("sampler", "ddim")["eta"] == 0
    assert set(names("sampler", str(tmp_path))) == {*names("sampler"), "mine"}


def test_a_setting_reaches_into_a_node_and_names_become_nodes():
    node = {"_target_": "A", "inner": {"_target_": "B", "order": 1}, "predictor": "ddim eta=1", "free": 2}
    found = changed(node, {"inner.order": 3}, "sampler=a")
    assert found["inner"] == {"_target_": "B", "order": 3}
    assert node["inner"]["order"] == 1
    assert filled(node, predictor="sampler", inner="sampler")["predictor"] == option("sampler", "ddim eta=1")
    assert filled(node, predictor="sampler", inner="sampler")["inner"] is node["inner"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("dim", "no sampler named 'dim', did you mean 'ddim'?"),
        ("deis ordr=3", "sampler=deis has no setting 'ordr', did you mean 'order'?"),
        ("deis order", "sampler: cannot read 'order' in 'deis order': settings are written key=value"),
        ("deis order=", "sampler: cannot read 'order=' in 'deis order=': settings are written key=value"),
        ("deis order=[", "sampler: cannot read 'order=[' in 'deis order=[': settings are written key=value"),
        ("deis order=1,2", "sampler: cannot read 'order=1,2' in 'deis order=1,2': settings are written key=value"),
        ("deis order.p=3", "sampler=deis has no setting 'order.p', did you mean 'order'?"),
        ("ddim _target_=os.system", "sampler=ddim has no setting '_target_'"),
        ("order=3", "sampler: 'order=3' does not begin with a name"),
        (5, "sampler: 5 does not begin with a name"),
        ("", "sampler: '' does not begin with a name"),
    ],
)
def test_what_is_not_there_is_refused_with_the_nearest(text, sentence):
    with pytest.raises(UsageError) as error:
        option("sampler", text)
    assert error.value.message == sentence
