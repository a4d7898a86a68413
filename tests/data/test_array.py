import numpy as np
import pytest
import torch

from diffcli.data.array import Array
from diffcli.errors import UsageError


@pytest.fixture
def save(tmp_path):
    def write(name, x):
        np.save(tmp_path / name, x)
        return str(tmp_path / name)

    return write


def test_items_keep_order_values_and_units(save):
    x = np.random.default_rng(0).normal(50, 9, size=(7, 2, 3))
    data = Array(save("x.npy", x))
    assert data.shape == (2, 3) and data.classes == 0 and data.transform.log_jacobian == 0
    for name in ("train", "val", "test", "all"):
        got, y = data.split(name).__getitems__(range(7))
        np.testing.assert_array_equal(data.transform.encode(got).numpy(), x)
        assert (y == -1).all()
    assert not data.held_out


def test_own_files_for_val_and_test_are_held_out(save):
    a, b, c = (np.full((n, 2), n, dtype=np.float32) for n in (3, 4, 5))
    data = Array(save("a.npy", a), test_file=save("b.npy", b), val_file=save("c.npy", c))
    assert data.held_out
    assert [len(data.split(name)) for name in ("train", "val", "test", "all")] == [3, 5, 4, 12]
    assert data.split("test").x.unique().tolist() == [4.0]
    assert not Array(save("a.npy", a), val_file=save("c.npy", c)).held_out


@pytest.mark.parametrize(
    "dtype, held",
    [
        ("uint8", torch.float32),
        ("int16", torch.float32),
        ("int64", torch.float64),
        ("float16", torch.float32),
        (">f4", torch.float32),
        ("float64", torch.float64),
        (">f8", torch.float64),
    ],
)
def test_every_dtype_is_held_without_loss(save, dtype, held):
    x = np.array([[0, 1], [100, 127]]).astype(dtype)
    got = Array(save("x.npy", x)).split("train").x
    assert got.dtype == held
    np.testing.assert_array_equal(got.numpy(), x.astype(np.float64))


def test_fortran_order_is_read_by_its_indices(save):
    x = np.asfortranarray(np.arange(6.0).reshape(3, 2))
    np.testing.assert_array_equal(Array(save("x.npy", x)).split("train").x.numpy(), x)


def test_the_first_non_finite_item_is_named(save):
    x = np.ones((9, 2))
    x[4, 1], x[6, 0] = np.nan, np.inf
    with pytest.raises(UsageError, match=r"x.npy: item 4 is not finite \(2 of 9 are not\)"):
        Array(save("x.npy", x)).split("train")


@pytest.mark.parametrize(
    "x, sentence",
    [
        (np.ones(4), r"has shape \(4,\), not \(N, \*S\)"),
        (np.ones((0, 2)), r"has shape \(0, 2\)"),
        (np.ones((3, 2), dtype=complex), "dtype complex128"),
        (np.ones((3, 2), dtype=bool), "dtype bool"),
        (np.array([["a"]]), "dtype <U1"),
        (np.array([[{}]], dtype=object), "not a readable .npy file"),
    ],
)
def test_unfit_arrays_are_refused(save, x, sentence):
    with pytest.raises(UsageError, match=sentence):
        Array(save("x.npy", x)).split("train")


def test_unfit_files_are_named_when_loading_only(tmp_path, save):
    data = Array(str(tmp_path / "none.npy"))
    with pytest.raises(UsageError, match="none.npy cannot be loaded: there is no such file"):
        data.split("train")
    (tmp_path / "text.npy").write_text("1 2 3")
    with pytest.raises(UsageError, match="text.npy cannot be loaded: it is not a readable"):
        Array(str(tmp_path / "text.npy")).split("train")
    np.savez(tmp_path / "x.npz", x=np.ones((2, 2)))
    with pytest.raises(UsageError, match="x.npz is an .npz archive"):
        Array(str(tmp_path / "x.npz")).split("train")
    with pytest.raises(UsageError, match="needs data.file"):
        Array("")


def test_files_of_one_data_set_have_one_shape(save):
    data = Array(save("a.npy", np.ones((3, 2))), test_file=save("b.npy", np.ones((3, 1))))
    with pytest.raises(UsageError, match=r"b.npy have shape \(1,\), those of .*a.npy \(2,\)"):
        data.split("test")
