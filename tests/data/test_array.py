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


def test_labels_are_the_sorted_values_of_their_file_and_minus_one_is_none(save):
    x = save("x.npy", np.zeros((6, 2)))
    words = Array(x, labels=save("w.npy", np.array(["b", "null", "b", "a", "a", "b"])))
    assert words.class_names == ["a", "b", "null"] and words.classes == 3
    assert words.split("train").__getitems__([0, 1, 3])[1].tolist() == [1, 2, 0]
    numbers = Array(x, labels=save("n.npy", np.array([10, -1, 5, 5, 10, 7])))
    assert numbers.class_names == ["5", "7", "10"]
    assert numbers.split("val").y.tolist() == [2, -1, 0, 0, 2, 1]
    more = dict(test_file=save("t.npy", np.ones((2, 2))), test_labels=save("tn.npy", np.array([7, -1])))
    whole = Array(x, labels=save("n.npy", np.array([10, -1, 5, 5, 10, 7])), **more)
    assert whole.split("test").y.tolist() == [1, -1]
    assert whole.split("all").y.tolist() == [2, -1, 0, 0, 2, 1, 1, -1]


def test_vectors_stay_with_their_items(save):
    v, w = np.arange(12.0).reshape(6, 2), 100 + np.arange(4.0).reshape(2, 2)
    data = Array(
        save("x.npy", np.zeros((6, 3))),
        test_file=save("t.npy", np.zeros((2, 3))),
        vectors=save("v.npy", v),
        test_vectors=save("w.npy", w),
    )
    assert data.vector == 2 and data.classes == 0
    assert data.split("train").given([4, 1], "vector").tolist() == v[[4, 1]].tolist()
    assert data.split("all").given([5, 6], "vector").tolist() == [v[5].tolist(), w[0].tolist()]
    for name, condition in (("x.npy", "vector"), ("v.npy", "image")):
        with pytest.raises(UsageError, match=f"no condition={condition}"):
            Array(str(save(name, np.zeros((6, 3))))).split("train").given([0], condition)


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (dict(labels=None, test_labels="y"), "no use for data.test_labels"),
        (dict(test_file="x"), "lacks data.test_labels"),
        (dict(val_file="x"), "lacks data.val_labels"),
        (dict(vectors="short"), "5 vectors for 6 items"),
        (dict(vectors="deep"), r"the shape \(N, k\)"),
        (dict(labels="short_y"), "5 labels for 6 items"),
        (dict(labels="floats"), "whole numbers or words"),
        (dict(labels="none"), "0 different labels"),
        (dict(labels="low"), "the label -2"),
        (dict(labels="short"), r"\.npy of shape \(N,\)"),
        (dict(labels="missing"), "no such file"),
        (dict(test_file="x", test_labels="other"), "has the label 9"),
        (dict(test_file="x", test_labels="words"), "of dtype"),
    ],
    ids=str,
)
def test_unfit_labels_and_vectors_are_refused(save, tmp_path, more, sentence):
    files = dict(
        x=np.zeros((6, 2)),
        y=np.arange(6) % 2,
        short=np.zeros((5, 2)),
        deep=np.zeros((6, 2, 2)),
        short_y=np.arange(5) % 2,
        floats=np.arange(6.0),
        none=np.full(6, -1),
        low=np.arange(6) - 2,
        other=np.full(6, 9),
        words=np.array(list("abcabc")),
    )
    for name, value in files.items():
        save(f"{name}.npy", value)
    options = {k: v and str(tmp_path / f"{v}.npy") for k, v in (dict(file="x", labels="y") | more).items()}
    with pytest.raises(UsageError, match=sentence):
        data = Array(**options)
        for split in ("train", "val", "test"):
            data.split(split)
