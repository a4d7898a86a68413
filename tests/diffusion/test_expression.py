"""Expressions: the value that Python's own arithmetic gives, and a sentence for everything that is not of the grammar."""

import math

import pytest
import torch
from cases import f64
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from diffcli.diffusion.numeric import derivative
from diffcli.diffusion.sde.expression import Expression

PYTHON = {"t": None, "pi": math.pi} | {n: getattr(math, n) for n in ("exp", "log", "sin", "cos", "sqrt")}
numbers = st.one_of(st.integers(0, 9), st.floats(0.01, 9, allow_nan=False).map(lambda x: round(x, 3))).map(str)
leaves = st.one_of(st.just("t"), st.just("pi"), numbers, st.just("1e-3"), st.just(".5"))


def bigger(inner):
    """The grammar's rules; without parentheses where Python's own precedence decides."""
    operators = st.sampled_from(["+", "-", "*", "/", "**"])
    return st.one_of(
        st.tuples(inner, operators, inner).map(lambda p: f"({p[0]}) {p[1]} ({p[2]})"),
        st.tuples(inner, operators, inner).map(lambda p: f"{p[0]}{p[1]}{p[2]}"),
        st.tuples(st.sampled_from("+-"), inner).map("".join),
        st.tuples(st.sampled_from(["exp", "log", "sin", "cos", "sqrt"]), inner).map(lambda p: f"{p[0]}({p[1]})"),
        inner.map(lambda p: f" ( {p} ) "),
    )


trees = st.recursive(leaves, bigger, max_leaves=12)


def in_python(text, t):
    """Python's value, None where it is not an ordinary real number or where round-off decides it."""
    values = []
    for at in (t, t * (1 + 1e-13)):
        try:
            value = eval(text, {"__builtins__": {}}, PYTHON | {"t": at})
        except (ArithmeticError, ValueError):
            return None
        if isinstance(value, complex) or not abs(value) < 1e100:
            return None
        values.append(float(value))
    return values[0] if math.isclose(*values, rel_tol=1e-10, abs_tol=1e-300) else None


@settings(max_examples=250, deadline=None, derandomize=True)
@given(trees, st.floats(0.001, 1))
def test_value_is_pythons(text, t):
    expected = in_python(text, t)
    assume(expected is not None)
    found = Expression(text.strip())(f64(t))
    assert found.shape == (1,) and found.dtype == torch.float64
    assert found.item() == pytest.approx(expected, rel=1e-8, abs=1e-9)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("-t**2", -0.25),
        ("2**-1", 0.5),
        ("2**3**2", 512.0),
        ("1 - t - 2", -1.5),
        ("8/2/2", 2.0),
        ("--t", 0.5),
        ("-2*-t", 1.0),
        ("cos(pi*t)**2 + sin(pi*t)**2", 1.0),
        ("exp(log(3)*2)", 9.0),
        ("1e3*t", 500.0),
    ],
)
def test_precedence(text, expected):
    assert Expression(text)(f64(0.5)).item() == pytest.approx(expected, rel=1e-14)


def test_it_has_the_shape_of_t_and_a_derivative():
    t = torch.linspace(0.1, 0.9, 12, dtype=torch.float64).view(3, 4)
    assert Expression("2")(t).shape == (3, 4)
    assert Expression("2")(t[0, 0]).shape == ()
    found = derivative(Expression("sin(3*t)*t**2/(1+t) + 4"), t)
    u = 1 + t
    expected = 3 * torch.cos(3 * t) * t**2 / u + torch.sin(3 * t) * (2 * t * u - t**2) / u**2
    assert torch.allclose(found, expected, rtol=1e-13)
    assert torch.equal(derivative(Expression("2"), t), torch.zeros_like(t))


BAD = {
    "empty": ("", "must not be empty"),
    "blank": ("   ", "must not be empty"),
    "name": ("alpha", "has the name 'alpha'"),
    "x": ("1 - x", "has the name 'x'"),
    "import": ("__import__('os').system('true')", "not allowed (Call)"),
    "call": ("open(t)", "calls 'open'"),
    "tan": ("tan(t)", "calls 'tan', it may call exp, log, sin, cos, sqrt"),
    "call of a call": ("sin(t)(t)", "not allowed (Call)"),
    "attribute": ("t.grad", "not allowed (Attribute)"),
    "method": ("t.exp()", "not allowed (Call)"),
    "dunder": ("().__class__.__bases__", "not allowed (Attribute)"),
    "subscript": ("t[0]", "not allowed (Subscript)"),
    "comparison": ("t < 1", "not allowed (Compare)"),
    "conditional": ("1 if t else 2", "not allowed (IfExp)"),
    "and": ("t and 1", "not allowed (BoolOp)"),
    "not": ("not t", "not allowed (UnaryOp)"),
    "invert": ("~t", "not allowed (UnaryOp)"),
    "floor": ("t // 2", "not allowed (BinOp)"),
    "modulo": ("t % 2", "not allowed (BinOp)"),
    "matmul": ("t @ t", "not allowed (BinOp)"),
    "shift": ("1 << 9999999999", "not allowed (BinOp)"),
    "lambda": ("lambda: 1", "not allowed (Lambda)"),
    "walrus": ("(t := 1)", "not allowed (NamedExpr)"),
    "list": ("[t]", "not allowed (List)"),
    "tuple": ("t, t", "not allowed (Tuple)"),
    "comprehension": ("[t for t in t]", "not allowed (ListComp)"),
    "string": ("'t'", "not allowed (Constant)"),
    "f-string": ("f'{t}'", "not allowed (JoinedStr)"),
    "bytes": ("b't'", "not allowed (Constant)"),
    "true": ("True", "not allowed (Constant)"),
    "none": ("None", "not allowed (Constant)"),
    "ellipsis": ("...", "not allowed (Constant)"),
    "complex": ("1j", "not allowed (Constant)"),
    "no argument": ("sin()", "sin takes one argument"),
    "two arguments": ("log(t, 2)", "log takes one argument"),
    "keyword": ("exp(x=t)", "exp takes one argument"),
    "starred": ("exp(*t)", "not allowed (Starred)"),
    "function alone": ("sin", "has the name 'sin'"),
    "t called": ("t(1)", "calls 't'"),
    "statement": ("t = 1", "cannot be read"),
    "two": ("t; t", "cannot be read"),
    "return": ("return t", "cannot be read"),
    "unbalanced": ("sin(t", "cannot be read"),
    "unbalanced right": ("t)", "cannot be read"),
    "half": ("t +", "cannot be read"),
    "caret": ("t^2", "the expression 't^2' has a ^: a power is written **"),
    "two words": ("2 t", "cannot be read"),
    "lines": ("t\nt", "not plain ASCII"),
    "null": ("t\0", "not plain ASCII"),
    "full-width t": ("\uff54", "not plain ASCII"),  # which Python reads as t
    "superscript": ("t\u00b2", "not plain ASCII"),
    "arabic digit": ("\u0663", "not plain ASCII"),
    "minus sign": ("\u2212t", "not plain ASCII"),
    "right-to-left": ("t\u202e+1", "not plain ASCII"),
    "huge integer": ("9" * 400, "too large for float64"),
    "huge float": ("1e999", "too large for float64"),
    "long": ("+".join("t" * 300), "at most 500 are read"),
    "deep parentheses": ("(" * 240 + "t" + ")" * 240, ""),  # too many for Python's own parser
    "deep minus": ("-" * 200 + "t", "nested more than 40 deep"),
    "deep calls": ("sin(" * 60 + "t" + ")" * 60, "nested more than 40 deep"),
}


@pytest.mark.parametrize("name", BAD)
def test_refuses_with_one_sentence(name):
    text, sentence = BAD[name]
    with pytest.raises(ValueError) as caught:
        Expression(text)
    message = str(caught.value)
    assert sentence in message
    assert "expression" in message and "\n" not in message and len(message) < 250


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.text(max_size=60) | st.text(alphabet="t0123456789+-*/.()e sincogxplqr_[]<=,'\"", max_size=40))
def test_no_text_gives_anything_but_a_value_or_a_sentence(text):
    try:
        found = Expression(text)(f64(0.5))
    except ValueError as error:
        assert "expression" in str(error)
    else:
        assert found.dtype == torch.float64 and found.shape == (1,)


def test_towers_of_powers_are_not_computed_in_whole_numbers():
    """9**9**9 has 370 million digits; in float64 it is infinite."""
    assert Expression("9**9**9")(f64(0.5)).item() == math.inf
