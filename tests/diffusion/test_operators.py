"""Measurements and their transposes, each against its definition, and the solver against dense algebra."""

import math

import pytest
import torch
from cases import f64, normal

from diffcli.diffusion.inverse import Blur, Custom, Downsample, Grey, Identity, Mask, Matrix, Operator, solve

SHAPE = (3, 8, 12)


class Shuffle(Operator):
    """Linear, without a transpose of its own."""

    def forward(self, x0):
        return x0.flip(-1).cumsum(-2)[:, :2] * 0.5


MAKE = {
    "identity": Identity,
    "mask": Mask,
    "mask-own": lambda: Mask(normal(3, 8, 12) > 0),
    "grey": Grey,
    "downsample": lambda: Downsample(4),
    "blur": lambda: Blur(1.3),
    "blur-wide": lambda: Blur(5.0),
    "blur-circular": lambda: Blur(1.3, "circular"),
    "matrix": lambda: Matrix(normal(1, 5, math.prod(SHAPE))),
    "own": Shuffle,
    "custom": lambda: Custom(torch.nn.Conv2d(3, 2, 3, bias=False).double()),
}
every_operator = pytest.mark.parametrize("operator", [pytest.param(make(), id=name) for name, make in MAKE.items()])


@every_operator
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_adjoint_is_the_transpose(operator, dtype):
    operator.setup(SHAPE)
    x, y = normal(1, 4, *SHAPE).to(dtype), normal(2, 4, *operator.measured).to(dtype)
    image, back = operator(x), operator.adjoint(y)
    assert image.shape == y.shape and back.shape == x.shape and image.dtype == back.dtype == dtype
    tol = 1e-12 if dtype == torch.float64 else 1e-4
    a, b = ((u * v).flatten(1).sum(1) for u, v in ((image, y), (x, back)))
    assert torch.allclose(a, b, rtol=tol, atol=10 * tol)
    # the same by differentiation, and what is known of the image is not lost on the way
    assert torch.allclose(back, Operator.adjoint(operator, y).to(dtype), atol=10 * tol)
    assert torch.allclose(operator.residual(operator(x), torch.zeros_like(x)), operator(x))


def test_means():
    x = normal(1, 2, *SHAPE)
    for operator, picture in ((Grey(), x.mean(1, keepdim=True)), (Downsample(2), None)):
        operator.setup(SHAPE)
        if picture is None:
            picture = (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4
        assert torch.allclose(operator(x), picture)


@pytest.mark.parametrize("boundary", ["reflect", "circular"])
def test_blurs_compose_and_keep_the_mean(boundary):
    x = normal(1, 2, *SHAPE)
    once, twice = Blur(1.5, boundary), Blur(1.5 * math.sqrt(2), boundary)
    for blur in (once, twice):
        blur.setup(SHAPE)
        assert torch.allclose(blur(torch.ones_like(x)), torch.ones_like(x))
        assert torch.allclose(blur(x).mean((-2, -1)), x.mean((-2, -1)))
    assert torch.allclose(
        once(once(x)), twice(x), atol=1e-5
    )  # a sampled Gaussian of std 1.5 is one to 1e-9, its cut to 1e-8
    assert not torch.allclose(once(x), twice(x), atol=1e-2)


def test_a_circular_blur_damps_waves_as_its_gaussian_does():
    n, std = 12, 1.5
    blur = Blur(std, "circular")
    blur.setup((1, n, n))
    for k in range(4):
        wave = torch.cos(2 * math.pi * k * torch.arange(n).double() / n).expand(1, 1, n, n)
        assert torch.allclose(blur(wave), math.exp(-2 * (math.pi * k * std / n) ** 2) * wave, atol=1e-6)


def test_masks():
    mask = Mask()
    mask.setup((1, 8, 8))
    unknown = ~mask.known[0]
    assert unknown.sum() == 16 and unknown[2:6, 2:6].all()
    mask.setup((5,))
    assert mask.known.tolist() == [True, True, False, False, False]
    own = Mask(f64(0, 1, 0, 1, 0))
    own.setup((5,))
    y = f64([9.0, 1.0, math.nan, 2.0, math.inf])  # what is not known may hold anything
    assert own.residual(y, f64([1.0, 1.0, 1.0, 1.0, 1.0])).tolist() == [[0, 0, 0, 1, 0]]
    assert [b.dtype for b in own.to(torch.float64).buffers()] == [torch.bool]


def test_a_function_is_linear_or_not():
    for fn, linear in (
        (lambda x: 2 * x[:, :1] - x[:, 1:2], True),
        (lambda x: x + 1, False),
        (lambda x: x.abs(), False),
        (torch.tanh, False),
        (torch.nn.Linear(4, 2, bias=False), True),
        (torch.nn.Linear(4, 2), False),
    ):
        operator = Custom(fn)
        operator.setup((4,))
        assert operator.linear is linear


def test_derivatives_of_a_function():
    operator = Custom(lambda x: torch.stack([x[:, 0] * x[:, 1], x[:, 2].exp()], 1))
    operator.setup((3,))
    x, y, v = normal(1, 2, 3), normal(2, 2, 2), normal(3, 2, 3)
    zero = torch.zeros(2)
    jacobian = torch.stack(
        [torch.stack([x[:, 1], x[:, 0], zero], 1), torch.stack([zero, zero, x[:, 2].exp()], 1)], 1
    ).double()
    assert torch.allclose(operator.pull(x, y), torch.einsum("bmd,bm->bd", jacobian, y))
    assert torch.allclose(operator.push(x, v), torch.einsum("bmd,bd->bm", jacobian, v))


@pytest.mark.parametrize(
    ("make", "shape", "words"),
    [
        (lambda: Mask(torch.ones(3, 3)), (1, 4, 4), "has shape"),
        (lambda: Mask(torch.full((4, 4), 0.5)), (1, 4, 4), "holds 1 where"),
        (lambda: Mask(torch.zeros(4, 4)), (1, 4, 4), "nothing known"),
        (lambda: Mask(square=1.0), (1, 4, 4), "square"),
        (Grey, (1, 4, 4), "grey as they are"),
        (Grey, (4,), "pictures"),
        (lambda: Downsample(5), (1, 4, 4), "2, 4 would"),
        (lambda: Downsample(1), (1, 4, 4), "at least 2"),
        (lambda: Blur(0.0), (1, 4, 4), "std"),
        (lambda: Blur(1.0, "zero"), (1, 4, 4), "boundary"),
        (lambda: Matrix(torch.ones(2, 3)), (4,), "takes 3 numbers, an item has 4"),
        (lambda: Custom(lambda x: x.sum()), (4,), "must map"),
        (lambda: Custom(lambda x: [x]), (4,), "must return a tensor"),
        (lambda: Custom(lambda x: x.detach()), (4,), "differentiated"),
        (lambda: Custom(lambda x: x / 0), (4,), "not finite"),
        (lambda: Custom(lambda x: x + torch.randn_like(x)), (4,), "two answers"),
        (lambda: Custom(lambda x: x - x.mean(0)), (4,), "mixes the items"),
    ],
)
def test_refusals(make, shape, words):
    with pytest.raises(ValueError, match=words):
        make().setup(shape)


def test_it_says_that_it_has_no_shape():
    with pytest.raises(ValueError, match="set up"):
        Shuffle().adjoint(torch.ones(1, 2))


def systems():
    a = normal(1, 3, 6, 8)
    gram, b = a @ a.mT, normal(2, 3, 6)
    skew = gram + 0.5 * (normal(3, 3, 6, 6) - normal(3, 3, 6, 6).mT)
    return a, gram, skew, b


def test_the_solver_is_a_dense_solve():
    a, gram, _, b = systems()
    for shift in (0.0, 0.3):
        u = torch.linalg.solve(gram + shift * torch.eye(6).double(), b)

        def forth(x):
            return torch.einsum("bij,bj->bi", a, x)

        def back(y):
            return torch.einsum("bij,bi->bj", a, y)

        w = solve(forth, back, shift, b, 12)
        assert torch.allclose(w, back(u), rtol=1e-8, atol=1e-8)
        each = torch.cat([  # as alone
            solve(lambda x, i=i: x @ a[i].T, lambda y, i=i: y @ a[i], shift, b[i : i + 1], 12) for i in range(3)
        ])  # fmt: skip
        assert torch.allclose(w, each, rtol=1e-8, atol=1e-10)


def test_with_memory_it_solves_what_is_not_symmetric():
    _, _, skew, b = systems()

    def run(iterations):
        w = solve(lambda x: torch.einsum("bij,bj->bi", skew, x), lambda y: y, 0.0, b, iterations, memory=iterations)
        return (b - torch.einsum("bij,bj->bi", skew, w)).norm(dim=1), w

    norms = torch.stack([b.norm(dim=1)] + [run(k)[0] for k in range(1, 7)])
    assert (norms.diff(dim=0) <= 1e-12).all()  # the residual never grows
    assert torch.allclose(run(6)[1], torch.linalg.solve(skew, b), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_what_cannot_be_solved_is_solved_by_least_squares(dtype):
    a = torch.diag(f64(2.0, 1.0, 0.0)).to(dtype)  # b has a part that no u reaches
    w = solve(lambda x: x @ a, lambda y: y @ a, 0.0, f64([4.0, 3.0, 5.0]).to(dtype), 50)
    assert torch.allclose(w, f64([2.0, 3.0, 0.0]).to(dtype), atol=1e-5)
    # neither is a matrix that is nothing, nor an item that asks for nothing, a division by zero
    assert solve(torch.zeros_like, lambda y: y, 0.0, torch.ones(1, 3, dtype=dtype), 5).isfinite().all()
    assert solve(lambda x: x @ a, lambda y: y @ a, 0.1, torch.zeros(1, 3, dtype=dtype), 5).abs().max() == 0


def test_an_item_rests_when_it_is_done_whatever_its_neighbours_need():
    scales = torch.logspace(0, 2, 6, dtype=torch.float64)
    b = torch.cat(
        [torch.full((1, 6), 1.0).double() * f64(1, 0, 0, 0, 1, 0), normal(3, 1, 6)]
    )  # two scales, and all six

    def run(b):
        return solve(lambda x: x, lambda y: y * scales, 0.1, b, 40)

    assert torch.equal(run(b), torch.cat([run(b[:1]), run(b[1:])]))
    assert torch.allclose(run(b), b * scales / (scales + 0.1), rtol=1e-10)
