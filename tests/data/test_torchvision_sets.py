import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from diffcli.data.torchvision_sets import CIFAR10, MNIST, FashionMNIST
from diffcli.errors import UsageError

SHARED = Path(__file__).parents[2].parent / "shared" / "data"


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    if not (SHARED / "unpack.py").is_file():
        pytest.skip("the shared data folder (../shared/data beside the checkout) is missing")
    out = tmp_path_factory.mktemp("images")
    subprocess.run([sys.executable, str(SHARED / "unpack.py"), "--out", str(out)], check=True, capture_output=True)
    return str(out)


@pytest.fixture(scope="session")
def mnist(root):
    return MNIST(root)


@pytest.fixture(scope="session")
def cifar(root):
    return CIFAR10(root, batches=1)


def test_mnist_has_the_published_mean_and_deviation(mnist):
    x = torch.cat([mnist.split("train").x, mnist.split("val").x])
    assert x.shape == (60000, 1, 28, 28) and x.dtype == torch.uint8
    assert x.numpy().mean() / 255 == pytest.approx(0.1307, abs=5e-5)
    assert (x.float().std() / 255).item() == pytest.approx(0.3081, abs=5e-5)


def test_cifar_batch_has_the_published_channel_means(cifar):
    x = torch.cat([cifar.split("train").x, cifar.split("val").x])
    assert x.shape == (10000, 3, 32, 32)
    means = x.sum(dim=(0, 2, 3), dtype=torch.float64) / (10000 * 1024 * 255)
    np.testing.assert_allclose(means, [0.4935, 0.4834, 0.4472], atol=5e-5)


def test_cifar_pixels_and_labels_are_those_of_the_source(cifar):
    sys.path.insert(0, str(SHARED))
    try:
        from unpack import CIFAR_CLASSES, read_cifar
    finally:
        sys.path.remove(str(SHARED))
    x, y, _ = read_cifar(SHARED / "cifar10" / "test_batch")
    items = cifar.split("test")
    np.testing.assert_array_equal(items.x.permute(0, 2, 3, 1).numpy(), x)
    np.testing.assert_array_equal(items.y.numpy(), y)
    assert cifar.class_names == CIFAR_CLASSES


def test_splits_cover_and_val_is_the_end_of_the_training_set(mnist, root):
    train, val, test, everything = (mnist.split(name) for name in ("train", "val", "test", "all"))
    assert [len(items) for items in (train, val, test)] == [55000, 5000, 10000]
    assert torch.equal(torch.cat([train.x, val.x, test.x]), everything.x)
    assert torch.equal(torch.cat([train.y, val.y, test.y]), everything.y)


def test_val_of_zero_is_the_test_set(root):
    data = CIFAR10(root, val=0, batches=1)
    assert torch.equal(data.split("val").x, data.split("test").x)
    assert len(data.split("train")) == 10000


def test_val_must_leave_training_items(root):
    with pytest.raises(UsageError, match="data.val=10000 leaves no training items: there are 10000"):
        CIFAR10(root, val=10000, batches=1).split("train")


def test_missing_batches_are_refused_with_the_fix(root):
    with pytest.raises(UsageError, match="CIFAR-10 is missing, incomplete or damaged in data.root=") as error:
        CIFAR10(root).split("train")
    assert "data.batches" in error.value.hint


@pytest.mark.parametrize("kind", [MNIST, FashionMNIST, CIFAR10])
def test_missing_files_name_the_root_and_the_fix(kind, tmp_path):
    data = kind(str(tmp_path))
    assert data.classes == 10 and len(data.class_names) == 10
    with pytest.raises(UsageError, match=f"data.root={tmp_path}") as error:
        data.split("train")
    assert "data.download=true" in error.value.hint


@pytest.mark.parametrize("length", [0, 3, 10, 5000])
def test_a_truncated_file_is_a_sentence(tmp_path, root, length):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for file in (Path(root) / "MNIST" / "raw").iterdir():
        (raw / file.name).write_bytes(file.read_bytes()[: length if "t10k-images" in file.name else None])
    with pytest.raises(UsageError, match="MNIST is missing, incomplete or damaged"):
        MNIST(str(tmp_path)).split("test")


def test_bad_arguments_are_refused():
    with pytest.raises(UsageError, match="data.val=-1 is below 0"):
        MNIST(val=-1)
    with pytest.raises(UsageError, match="data.batches=6 is outside 1..5"):
        CIFAR10(batches=6)
