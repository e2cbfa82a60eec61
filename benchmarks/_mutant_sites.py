# SPDX-License-Identifier: Apache-2.0
"""Small changes to Python sources, one at a time: where they can be made, and the text with one of them made."""

from __future__ import annotations

import ast
import copy
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
COMPARISONS |= {ast.In: ast.NotIn, ast.NotIn: ast.In}  # codespell:ignore notin
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Add,
    ast.Pow: ast.Mult,
}
NAMES = {"all": "any", "any": "all", "min": "max", "max": "min", "amin": "amax", "amax": "amin", "minimum": "maximum"}
NAMES |= {"maximum": "minimum", "argmax": "argmin", "argmin": "argmax", "floor": "ceil", "ceil": "floor"}


@dataclass(frozen=True)
class Site:
    """One small change.

    Attributes:
        file: relative to the repository.
        place: name of the function or class around it, dotted.
        first, last: lines of the statement.
        span: start and end of what is replaced, in characters.
        old, new: its text, and the other one.
        nth: the how-manieth change of these words in its place, from 0.
    """

    file: str
    place: str
    first: int
    last: int
    span: tuple[int, int]
    old: str
    new: str
    nth: int = 0

    @property
    def name(self) -> str:
        """The same for as long as the function has this code, wherever it moves in its file."""
        digest = hashlib.sha256(f"{self.file} {self.place} {self.old} {self.new} {self.nth}".encode()).hexdigest()
        return digest[:12]

    def applied(self, text: str) -> str:
        """The source with the change in it; raises `ValueError` when it is another source."""
        start, end = self.span
        if text[start:end] != self.old:
            raise ValueError(f"{self.file}: expected {self.old!r} at {start}, got {text[start:end]!r}")
        return text[:start] + self.new + text[end:]


def changes_of(node: ast.AST) -> Iterator[ast.AST]:
    """Each change that can be made at this very node."""
    if isinstance(node, ast.Compare):
        for number, operator in enumerate(node.ops):
            if type(operator) in COMPARISONS:
                other = copy.deepcopy(node)
                other.ops[number] = COMPARISONS[type(operator)]()
                yield other
    elif isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        if not any(isinstance(side, ast.Constant) and isinstance(side.value, str) for side in (node.left, node.right)):
            yield ast.BinOp(node.left, OPERATORS[type(node.op)](), node.right)
    elif isinstance(node, ast.BoolOp):
        yield ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
        for number in range(len(node.values)):  # a clause is dropped
            rest = node.values[:number] + node.values[number + 1 :]
            yield rest[0] if len(rest) == 1 else ast.BoolOp(node.op, rest)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub)):
        yield node.operand
    elif isinstance(node, ast.Constant) and type(node.value) is bool:
        yield ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and type(node.value) is int:
        yield ast.Constant(node.value + 1)
    elif isinstance(node, ast.Constant) and type(node.value) is float:
        yield ast.Constant(node.value * 2 if node.value else 1.0)
    elif isinstance(node, ast.IfExp):
        yield ast.IfExp(node.test, node.orelse, node.body)
    elif isinstance(node, ast.Call):
        yield from _calls(node)


def _calls(node: ast.Call) -> Iterator[ast.Call]:
    """Another function of the same kind, and the first two arguments the other way round."""
    function = node.func
    if isinstance(function, ast.Name) and function.id in NAMES:
        yield ast.Call(ast.Name(NAMES[function.id]), node.args, node.keywords)
    elif isinstance(function, ast.Attribute) and function.attr in NAMES:
        yield ast.Call(ast.Attribute(function.value, NAMES[function.attr]), node.args, node.keywords)
    named = function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")
    if len(node.args) > 1 and named not in ("isinstance", "getattr", "cast", "field") and named not in NAMES:
        first, second, *rest = node.args
        if not any(isinstance(one, ast.Starred) for one in (first, second)):
            yield ast.Call(function, [second, first, *rest], node.keywords)


def sites_of(text: str, file: str) -> list[Site]:
    """All changes to a source. Annotations, messages of errors, docstrings and texts are left alone."""
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    lines = text.splitlines()
    found: list[Site] = []
    counts: dict[tuple[str, str, str], int] = {}

    def offset(line: int, column: int) -> int:  # columns count bytes
        return starts[line - 1] + len(lines[line - 1].encode()[:column].decode())

    def visit(node: ast.AST, place: str, first: int, last: int) -> None:
        if isinstance(node, (ast.Raise, ast.JoinedStr, ast.Import, ast.ImportFrom)):
            return
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            place = f"{place}.{node.name}" if place else node.name
        if isinstance(node, ast.stmt):
            first = node.lineno
            body = getattr(node, "body", None)
            last = body[0].lineno - 1 if isinstance(body, list) and body else (node.end_lineno or first)
            last = max(first, last)
        if isinstance(node, ast.expr):
            for changed in changes_of(node):
                start = offset(node.lineno, node.col_offset)
                end = offset(node.end_lineno or node.lineno, node.end_col_offset or 0)
                old, new = text[start:end], f"({ast.unparse(ast.fix_missing_locations(changed))})"
                key = (place, old, new)
                counts[key] = counts.get(key, -1) + 1
                found.append(Site(file, place, first, last, (start, end), old, new, counts[key]))
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list", "type_params"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    visit(child, place, first, last)

    visit(ast.parse(text), "", 1, 1)
    return found


def all_sites(root: Path) -> list[Site]:
    """Of the whole package."""
    found: list[Site] = []
    for path in sorted((root / "monai_smia").rglob("*.py")):
        found += sites_of(path.read_text(encoding="utf-8"), str(path.relative_to(root)))
    return found
