"""Bugs in references and argument checks, one change of the syntax tree each.

Not mutmut: it replaces each function by a trampoline, which is neither what torch.library has registered nor what
Triton's JIT can read, and the fates of three layers would come from two tools.
"""

import ast
import copy
from collections.abc import Iterator
from pathlib import Path

from .bug import Bug

COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.Pow: ast.Mult,
}  # fmt: skip


def changes(node: ast.AST) -> Iterator[tuple[str, ast.AST | None]]:
    """(what, replacement) for one node; None removes a statement."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in COMPARISONS:
        other = copy.copy(node)
        other.ops = [COMPARISONS[type(node.ops[0])]()]
        yield f"{ast.unparse(node)} -> {ast.unparse(other)}", other
    elif isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
        other = ast.BinOp(node.left, ARITHMETIC[type(node.op)](), node.right)
        yield f"{ast.unparse(node)} -> {ast.unparse(other)}", other
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield f"{node.value} -> {not node.value}", ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield f"{node.value} -> {node.value + 1}", ast.Constant(node.value + 1)
    elif isinstance(node, ast.BoolOp):
        other_op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield f"{ast.unparse(node)}: and <-> or", ast.BoolOp(other_op, node.values)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
        yield f"{ast.unparse(node)} -> 0", ast.Constant(0)  # 1 and -1 are the same dimension of [B, N]
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.Invert | ast.USub):
        yield f"{ast.unparse(node)} -> {ast.unparse(node.operand)}", node.operand
    elif isinstance(node, ast.IfExp):
        yield f"{ast.unparse(node)}: branches swapped", ast.IfExp(node.test, node.orelse, node.body)
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield f"without {ast.unparse(node)}", None


class _Replace(ast.NodeTransformer):
    def __init__(self, target: ast.AST, by: ast.AST | None) -> None:
        self.target, self.by = target, by

    def visit(self, node: ast.AST) -> ast.AST:
        if node is self.target:
            return ast.Pass() if self.by is None else self.by
        return self.generic_visit(node)


def _functions(tree: ast.Module, names: tuple[str, ...] | None) -> Iterator[ast.FunctionDef]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and (names is None or node.name.startswith(names)):
            yield node


def _bugs_of(path: Path, root: Path, op: str, layer: str, names: tuple[str, ...] | None) -> Iterator[Bug]:
    text = path.read_text()
    tree = ast.parse(text)
    for function in _functions(tree, names):
        docstring = function.body[0] if ast.get_docstring(function) else None
        for statement in function.body:
            if statement is docstring:
                continue
            for node in ast.walk(statement):
                for what, by in changes(node):
                    mutated = _Replace(node, by).visit(copy.deepcopy(tree, {id(node): node}))
                    place = f"{function.name}:{getattr(node, 'lineno', function.lineno)}"
                    yield Bug(op, layer, str(path.relative_to(root)), text, ast.unparse(mutated), f"{place}: {what}")


def bugs(root: Path) -> Iterator[Bug]:
    """All of them, in order."""
    for folder in sorted((root / "vitcop_kernels" / "ops").iterdir()):
        if (folder / "reference.py").exists():
            yield from _bugs_of(folder / "reference.py", root, folder.name, "reference", None)
            yield from _bugs_of(folder / "op.py", root, folder.name, "checks", ("check", "_fake"))
