"""The layers and the house rules that a machine can check, read from the source."""

from __future__ import annotations

import ast
import graphlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "monai_smia"
FILES = sorted(ROOT.rglob("*.py"))
ATTACKS = sorted((ROOT / "attacks").rglob("*.py"))
PACKAGE = "monai_smia"
LAYERS = [
    "attacks",
    "inferers",
    "losses",
    "transforms",
    "intensity",
    "metrics",
    "certificates",
    "reports",
    "doctor",
    "handlers",
    "engines",
    "export",
    "data",
    "bundle",
]


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(path: Path) -> Iterator[tuple[str, str | None]]:
    """Every (module, name) that a file imports, also inside functions; relative ones made absolute."""
    here = name_of(path).split(".")
    package = here if path.name == "__init__.py" else here[:-1]
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, None
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield module, alias.name


def part(module: str, name: str | None) -> str | None:
    """Which part of the package a module belongs to: a sub-package, or a module beside them."""
    steps = module.split(".") + ([name] if name else [])
    return steps[1] if steps[0] == PACKAGE and len(steps) > 1 else None


def graph() -> dict[str, set[str]]:
    """Part to the parts that it imports."""
    parts = {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in FILES} - {"__init__"}
    edges: dict[str, set[str]] = {name: set() for name in parts}
    for path in FILES:
        own = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if own != "__init__":
            found = {part(*imported) for imported in imports(path)}
            edges[own] |= {name for name in found if name in parts and name != own}
    return edges


def test_the_reader_of_imports_sees_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / PACKAGE / "handlers").mkdir(parents=True)
    path = tmp_path / PACKAGE / "handlers" / "one.py"
    path.write_text("import a.b\nfrom . import two\nfrom ..attacks.loop import _x\ndef f():\n    from c import d\n")
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path / PACKAGE)
    assert list(imports(path)) == [
        ("a.b", None),
        (f"{PACKAGE}.handlers", "two"),
        (f"{PACKAGE}.attacks.loop", "_x"),
        ("c", "d"),
    ]


def test_the_core_imports_torch_monai_and_nothing_else() -> None:
    for path in ATTACKS:
        for module, name in imports(path):
            top = module.split(".")[0]
            assert top in {"torch", "monai", PACKAGE} or top in sys.stdlib_module_names, f"{path.name}: {module}"
            assert top != PACKAGE or part(module, name) == "attacks", f"{path.name}: {module} {name}"


def test_no_package_uses_anothers_private_names() -> None:
    for path in FILES:
        own = path.relative_to(ROOT).parts[0]
        for module, name in imports(path):
            if module.split(".")[0] != PACKAGE or part(module, name) == own.removesuffix(".py"):
                continue
            private = [step for step in [*module.split("."), name or ""] if step.startswith("_")]
            assert not private, f"{path.relative_to(ROOT)}: {module} {name}"


def test_the_layers_point_one_way() -> None:
    edges = graph()
    assert edges["attacks"] == set()
    assert set(LAYERS) <= set(edges)
    list(graphlib.TopologicalSorter(edges).static_order())  # raises CycleError where two import each other
    for i, name in enumerate(LAYERS):
        assert not edges[name] & set(LAYERS[i + 1 :]), f"{name} imports {edges[name]}"
    assert "handlers" in edges["engines"]  # the reader is not blind


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_house_rules(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    assert len(lines) <= 400
    assert lines[0] == "# SPDX-License-Identifier: Apache-2.0"
    assert ast.get_docstring(tree(path)), "a module says in one line what it is"
    calls = [node.func for node in ast.walk(tree(path)) if isinstance(node, ast.Call)]
    if not path.name.startswith("command"):  # what a command has to say, it prints
        assert not [function for function in calls if isinstance(function, ast.Name) and function.id == "print"]
    if path in ATTACKS:
        assert not [
            function for function in calls if isinstance(function, ast.Attribute) and function.attr == "backward"
        ]
