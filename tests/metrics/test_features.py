"""Feature networks: what they read, that they name themselves, and one sentence for everything that does not fit."""

import math
import sys

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from diffcli.commands.build import build
from diffcli.errors import CheckpointError, DiffcliError, NumericalError, UsageError
from diffcli.metrics.features.base import FeatureNetwork
from diffcli.metrics.features.classifier import ClassifierFeatures
from diffcli.metrics.features.dinov2 import DINOv2
from diffcli.metrics.features.inception import Inception
from diffcli.metrics.features.module import ModuleFeatures
from diffcli.metrics.features.pixels import Pixels
from diffcli.metrics.features.statistics import collect
from diffcli.paths import conf_dir


def images(n, shape=(1, 6, 6), levels=256, seed=0):
    return torch.randint(0, levels, (n, *shape), generator=torch.Generator().manual_seed(seed))


class Net(nn.Module):
    """Features of two dimensions, logits of three classes."""

    def __init__(self, gain: float = 1.0):
        super().__init__()
        torch.manual_seed(0)
        self.gain, self.inner, self.last = gain, nn.Linear(36, 2), nn.Linear(2, 3)

    def features(self, x):
        assert x.dtype == torch.float32
        return self.gain * self.inner(x.flatten(1))

    def forward(self, x):
        return self.last(self.features(x))


def ready(network, shape=(1, 6, 6), levels=256) -> FeatureNetwork:
    network.setup(shape, levels)
    return network


def test_pixels_are_the_levels_in_0_to_1_and_continuous_items_as_they_are():
    x = images(5, levels=17)
    found = ready(Pixels(), levels=17)
    assert (found.dim, found.classes) == (36, 0)
    assert torch.equal(found.features(x, 17), x.flatten(1).double() / 16)
    points = torch.randn(4, 2, dtype=torch.float64)
    assert torch.equal(Pixels().features(points, None), points)
    assert found.logits(x, 17) is None


@pytest.mark.parametrize("network", [Pixels(), ModuleFeatures(Net())])
def test_items_that_are_not_finite_or_off_their_levels_are_refused_by_number(network):
    network = ready(network)
    x = images(4).float()
    x[2, 0, 0, 0] = math.nan
    with pytest.raises(NumericalError, match="item 2 is not finite"):
        network.read(x, 256)
    x[2, 0, 0, 0], x[3, 0, 1, 1] = 300, -9
    with pytest.raises(UsageError, match=r"item 2 .* to 300, outside the levels 0\.\.255"):
        network.read(x, 256)
    # as data, item 200 of a stream; as samples they are saved clipped
    many = torch.cat([images(198).float(), x])
    with pytest.raises(UsageError, match="item 200 "):
        collect(many.split(50), network, 256, samples=False)
    clipped = collect(many.split(50), network, 256, samples=True)
    assert torch.equal(clipped.gathered.features[-2:], network.features(many[-2:].clamp(0, 255), 256))
    many[199] = math.inf
    with pytest.raises(NumericalError, match="item 199 "):
        collect(many.split(50), network, 256, samples=True)


def test_a_module_of_the_user_gives_features_and_logits():
    net, x = Net(), images(7)
    network = ready(ModuleFeatures(net, logits=True))
    features, logits = network.read(x, 256)
    assert (network.dim, network.classes, network.name) == (2, 3, "Net")
    assert network.distance_name == "Frechet distance (Net)"
    assert torch.equal(features, net.features(x / 255).double())
    assert torch.equal(logits, net(x / 255).double())
    assert features.dtype == torch.float64
    assert not features.requires_grad
    assert ready(ModuleFeatures(net, method="forward")).features(x, 256).shape == (7, 3)
    flat = ready(ModuleFeatures(lambda x: x.flatten(1), label="mine"))
    assert flat.name == "mine"
    assert torch.equal(flat.features(x, 256), (x / 255).flatten(1).double())


def test_weights_come_from_a_file_and_make_another_identity(tmp_path):
    from safetensors.torch import save_file

    other = Net()
    with torch.no_grad():
        other.inner.weight.add_(1)
    save_file(other.state_dict(), tmp_path / "w.safetensors")
    torch.save({"state_dict": other.state_dict()}, tmp_path / "w.pt")
    plain, x = ready(ModuleFeatures(Net())), images(3)
    for name in ("w.safetensors", "w.pt"):
        loaded = ready(ModuleFeatures(Net(), weights=str(tmp_path / name)))
        assert torch.equal(loaded.features(x, 256), other.features(x / 255).double())
        assert loaded.identity() != plain.identity()
        assert loaded.identity() == ready(ModuleFeatures(other)).identity()
    assert ready(ModuleFeatures(Net())).identity() == plain.identity()
    others = [Pixels(), ModuleFeatures(Net(gain=2.0)), ModuleFeatures(Net(), logits=True)]
    assert len({n.identity() for n in [plain, *map(ready, others)]}) == 4


class Unsafe:
    def __reduce__(self):
        return print, ("run",)


def test_weights_that_do_not_fit_are_refused(tmp_path, capsys):
    torch.save(Unsafe(), tmp_path / "code.pt")
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "other.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "other.pt").read_bytes()[:300])
    torch.save({"inner.weight": torch.tensor([math.nan])}, tmp_path / "nan.pt")
    for name, kind, words in (
        ("none.pt", UsageError, "no such file"),
        ("code.pt", CheckpointError, "may run code"),
        ("other.pt", CheckpointError, "another network"),
        ("cut.pt", CheckpointError, "refused|cannot be read"),
        ("nan.pt", CheckpointError, "not finite"),
    ):
        with pytest.raises(kind, match=words):
            ready(ModuleFeatures(Net(), weights=str(tmp_path / name)))
    for network in (Inception(str(tmp_path / "other.pt")), DINOv2(str(tmp_path / "other.pt"), size="small")):
        with pytest.raises(CheckpointError, match=r"other\.pt (holds no weights|is no DINOv2)"):
            ready(network)
    assert "run" not in capsys.readouterr().out


def test_a_module_that_does_not_fit_is_refused_in_words():
    class Two(nn.Module):
        def forward(self, x):
            return x, x

    for network, words in (
        (ModuleFeatures(), "needs your own module"),
        (ModuleFeatures(Net(), method="feats"), "no such method"),
        (ModuleFeatures(Two()), r"\(B, D\) was expected for 1 items, not tuple"),
        (ModuleFeatures(lambda x: x.mean()), r"\(B, D\) was expected"),
        (ModuleFeatures(lambda x: x[:, 0, 0, 0]), r"\(B, D\) was expected"),
        (ModuleFeatures(lambda x: x, weights="w.pt"), "no nn.Module"),
    ):
        with pytest.raises(UsageError, match=words):
            ready(network)
    with pytest.raises(UsageError, match=r"Net cannot read items of shape \(3, 6, 6\)"):
        ready(ModuleFeatures(Net()), shape=(3, 6, 6))
    with pytest.raises(NumericalError, match="features that are not finite"):
        ready(ModuleFeatures(lambda x: x.flatten(1) / 0))
    with pytest.raises(UsageError, match="12288 dimensions is too large"):
        ready(Pixels(), shape=(3, 64, 64))


def test_a_module_is_named_on_the_command_line():
    node = OmegaConf.to_container(OmegaConf.load(conf_dir() / "features/module.yaml"))
    with pytest.raises(UsageError, match="needs your own module"):
        ready(build(node, "features"))
    node["module"] = {"_target_": "torch.nn.Unflatten", "dim": 1, "unflattened_size": [1, 1]}
    network = ready(build(node | {"method": "forward", "label": "mine"}, "features"))
    assert (network.name, network.dim) == ("mine", 36)


@pytest.mark.parametrize("kind", [Inception, DINOv2])
def test_absent_weights_libraries_and_images_are_one_sentence(kind, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(UsageError, match="has no weights") as refusal:
        ready(kind())
    assert "download=true" in refusal.value.hint
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UsageError, match="needs the library") as refusal:
        ready(kind())
    assert "diffcli[metrics]" in refusal.value.hint
    for shape, levels in (((2,), None), ((1, 8, 8), None), ((4, 8, 8), 256)):
        with pytest.raises(UsageError, match="reads images"):
            kind().compute(torch.zeros(1, *shape), levels)


def test_a_download_that_fails_is_a_sentence_and_one_that_is_another_file_is_not_kept(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "fake.pth").write_bytes(b"not the weights")
    from diffcli.metrics.features import inception

    for url in ((tmp_path / "fake.pth").as_uri(), (tmp_path / "none.pth").as_uri()):
        monkeypatch.setattr(inception, "URL", url)
        with pytest.raises(UsageError, match="could not be downloaded"):
            ready(Inception(download=True))
    assert not list((tmp_path / "checkpoints").iterdir())


def test_inception_is_torch_fidelitys_on_bytes_and_is_called_fid_by_its_hash_alone(tmp_path, monkeypatch):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Fresh(FeatureExtractorInceptionV3):
        def load_state_dict(self, state_dict):
            torch.manual_seed(0)
            for p in self.parameters():
                if p.ndim > 1:
                    nn.init.kaiming_normal_(p)

    torch.save({}, tmp_path / "empty.pth")
    theirs = Fresh("inception-v3-compat", ["2048", "logits_unbiased"], tmp_path / "empty.pth")
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    network, x = ready(Inception(str(tmp_path / "w.pth")), levels=17), images(2, levels=17)
    assert (network.dim, network.classes) == (2048, 1008)
    features, logits = network.read(x, 17)
    expected = theirs((x * 255 / 16).round().to(torch.uint8).repeat(1, 3, 1, 1))
    assert features.std() > 0.01  # not all at one value
    assert torch.equal(features, expected[0].double())
    assert torch.equal(logits, expected[1].double())
    assert "FID" not in network.distance_name
    from diffcli.metrics.features import inception

    monkeypatch.setattr(inception, "SHA256", inception.sha256(tmp_path / "w.pth"))
    network.load()
    assert network.distance_name == "FID"


def test_dinov2_is_the_class_token_of_timms_model_on_imagenets_scale(tmp_path):
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(0)
    theirs = timm.create_model("vit_small_patch14_dinov2", num_classes=0, img_size=224).eval()
    save_file(theirs.state_dict(), tmp_path / "w.safetensors")
    network = ready(DINOv2(str(tmp_path / "w.safetensors"), size="small"), shape=(3, 224, 224))
    assert network.dim == 384
    x = images(2, shape=(3, 224, 224))  # of their size already: nothing is resized
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    inputs = (x / 255 - mean[:, None, None]) / std[:, None, None]
    with torch.no_grad():
        token = theirs.forward_features(inputs)[:, 0]
    assert torch.allclose(network.features(x, 256), token.double(), atol=1e-5)
    assert "FID" not in network.distance_name


def test_every_network_says_its_preprocessing_and_none_but_inception_can_say_fid():
    for network in (Pixels(), ClassifierFeatures(), Inception(), DINOv2(), ModuleFeatures(Net())):
        assert network.preprocessing().keys() == {"range", "resize", "channels"}
        assert "FID" not in network.distance_name


@pytest.mark.parametrize("ckpt", [None, "none.ckpt"])
def test_a_classifier_that_is_missing_is_a_sentence(ckpt):
    with pytest.raises(DiffcliError, match=r"needs the checkpoint|no checkpoint none\.ckpt"):
        ready(ClassifierFeatures(ckpt))


def test_classifier_features_are_what_its_last_layer_reads(monkeypatch):
    from diffcli import checkpoint
    from diffcli.data.transform import Levels
    from diffcli.diffusion.classifier import Classifier

    class Body(Net):
        def forward(self, x, c_noise):
            return self.features(x), self.last(self.features(x))

    own = Classifier(Body(), [1, 6, 6], ["a", "b", "c"])
    own.transform = Levels(17)
    monkeypatch.setattr(checkpoint, "load_classifier", lambda *args: own)
    network, x = ready(ClassifierFeatures("c.ckpt"), levels=17), images(4, levels=17)
    features, logits = network.read(x + 0.3, 17)
    assert torch.allclose(features, own.network.features(2 * (x + 0.5) / 17 - 1).double(), atol=1e-6)
    assert torch.equal(logits, own(Levels(17).encode(x)).double())
    with pytest.raises(UsageError, match="trained on items of 17 levels, these are items of 256 levels"):
        ready(ClassifierFeatures("c.ckpt"))
    with pytest.raises(UsageError, match=r"takes items of shape \(1, 6, 6\), these have \(1, 28, 28\)"):
        ready(ClassifierFeatures("c.ckpt"), shape=(1, 28, 28), levels=17)
