"""Functions of t written as text: parsed by a closed grammar, never run as code, as they travel in checkpoints."""

import ast
import math
import operator

import torch
from torch import Tensor, nn

from diffcli.diffusion.numeric import require

LENGTH, DEPTH = 500, 40  # most characters, most levels of nesting
BINARY = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: torch.pow,
}
UNARY = {ast.UAdd: operator.pos, ast.USub: operator.neg}
FUNCTIONS = {"exp": torch.exp, "log": torch.log, "sin": torch.sin, "cos": torch.cos, "sqrt": torch.sqrt}
ALLOWED = f"t, pi, numbers, + - * / **, parentheses and {', '.join(FUNCTIONS)}"


class Expression(nn.Module):
    """t -> value, both float64 of any one shape, from text such as `"cos(pi/2 * t)"`; all arithmetic is torch's, in float64.

    Raises ValueError with one sentence for anything else than t, pi, numbers, + - * / **, parentheses and exp log sin cos sqrt.
    """

    def __init__(self, text: str):
        super().__init__()
        self.text = text
        self.tree = parse(text)

    def forward(self, t: Tensor) -> Tensor:
        return _value(self.tree, t).expand(t.shape)

    def extra_repr(self) -> str:
        return repr(self.text)


def parse(text: str) -> ast.expr:
    """The syntax tree of an expression, every node of which is allowed.  Raises ValueError with one sentence."""
    shown = repr(text if len(text) <= 60 else text[:57] + "...")
    require(text.strip() != "", f"an expression must not be empty: {ALLOWED}")
    require(len(text) <= LENGTH, f"the expression {shown} has {len(text)} characters, at most {LENGTH} are read")
    # Python reads other alphabets' letters and digits as the ASCII ones that they look like
    require(text.isascii() and text.isprintable(), f"the expression {shown} has characters that are not plain ASCII")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise ValueError(f"the expression {shown} cannot be read: it is made of {ALLOWED}") from None
    _check(tree, shown, DEPTH)
    return tree


def _check(node: ast.expr, shown: str, depth: int) -> None:
    """Raise ValueError unless a node and those inside it belong to the grammar."""
    require(depth > 0, f"the expression {shown} is nested more than {DEPTH} deep")
    kind = type(node)
    if kind is ast.BinOp and type(node.op) in BINARY:
        inside = [node.left, node.right]
    elif kind is ast.UnaryOp and type(node.op) in UNARY:
        inside = [node.operand]
    elif kind is ast.Call and type(node.func) is ast.Name:
        name = node.func.id
        require(name in FUNCTIONS, f"the expression {shown} calls {name!r}, it may call {', '.join(FUNCTIONS)}")
        plain = len(node.args) == 1 and not node.keywords
        require(plain, f"in the expression {shown}, {name} takes one argument")
        inside = node.args
    elif kind is ast.Name:
        require(node.id in ("t", "pi"), f"the expression {shown} has the name {node.id!r}: it is made of {ALLOWED}")
        inside = []
    else:
        power = kind is ast.BinOp and type(node.op) is ast.BitXor
        require(not power, f"the expression {shown} has a ^: a power is written **")
        number = kind is ast.Constant and type(node.value) in (int, float)
        # only the node's kind is named: unparsing what is refused could be long
        require(
            number, f"the expression {shown} has a part that is not allowed ({kind.__name__}): it is made of {ALLOWED}"
        )
        try:
            finite = math.isfinite(float(node.value))
        except OverflowError:
            finite = False
        require(finite, f"the expression {shown} has a number that is too large for float64")
        inside = []
    for part in inside:
        _check(part, shown, depth - 1)


def _value(node: ast.expr, t: Tensor) -> Tensor:
    if isinstance(node, ast.BinOp):
        return BINARY[type(node.op)](_value(node.left, t), _value(node.right, t))
    if isinstance(node, ast.UnaryOp):
        return UNARY[type(node.op)](_value(node.operand, t))
    if isinstance(node, ast.Call):
        return FUNCTIONS[node.func.id](_value(node.args[0], t))
    if isinstance(node, ast.Name):
        return {"t": t, "pi": t.new_tensor(math.pi)}[node.id]
    return t.new_tensor(float(node.value))
