# SPDX-License-Identifier: Apache-2.0
"""Reading a bundle's configuration as text: items, references and components, with nothing built."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from monai.bundle import ReferenceResolver

_REFERENCE = re.compile(r"@\w+(?:(?:::|#)\w+)*")
_JOIN: dict[str, Callable[..., str]] = {"os.path.join": os.path.join, "str": str}
_TESTS: dict[str, Callable[[Path], bool]] = {
    "os.path.exists": Path.exists,
    "os.path.isfile": Path.is_file,
    "os.path.isdir": Path.is_dir,
}

LONGEST = 10_000
"""Characters of a string that is put together from a configuration's text."""


def normal(name: str) -> str:
    """An id as MONAI's command line takes it: ``validate#evaluator``."""
    return str(name).replace("::", "#")


def get(config: Any, name: str) -> Any:
    """The text at an id; None where there is none.

    Example:
        >>> get({"a": [{"b": 1}]}, "a#0#b")
        1
    """
    for key in normal(name).split("#") if name else []:
        if isinstance(config, Mapping) and key in config:
            config = config[key]
        elif isinstance(config, list) and key.isdigit() and int(key) < len(config):
            config = config[int(key)]
        else:
            return None
    return config


def children(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield from ((str(key), child) for key, child in value.items())
    elif isinstance(value, list):
        yield from ((str(key), child) for key, child in enumerate(value))


def is_component(value: Any) -> bool:
    return isinstance(value, Mapping) and "_target_" in value


def switched_off(component: Mapping[str, Any]) -> bool | None:
    """Whether MONAI leaves a component out, as it reads ``_disabled_``; None where an expression or a reference says.

    Example:
        >>> [switched_off({"_disabled_": value}) for value in (True, " TRUE", "no", "$not @save")], switched_off({})
        ([True, True, False, None], False)
    """
    value = component.get("_disabled_", False)
    if isinstance(value, str):
        return None if value.startswith(("$", "@")) else value.lower().strip() == "true"
    return bool(value)


def components(value: Any, name: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every component at and below a value, with its id; not those behind references."""
    if is_component(value):
        yield name, value
    for key, child in children(value):
        yield from components(child, f"{name}#{key}" if name else key)


def references(value: Any) -> list[str]:
    """The ids that a value refers to, in the order in which they are written.

    Example:
        >>> references({"a": "$@train#first + @second", "b": "@third", "c": "me@home"})
        ['train#first', 'second', 'third']
    """
    if isinstance(value, str):
        return [normal(name) for name in ReferenceResolver.match_refs_pattern(value) if name]
    return list(dict.fromkeys(name for _, child in children(value) for name in references(child)))


def reached(config: Mapping[str, Any], name: str, *, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """The item of an id and every item that it needs, in the order of need.

    Args:
        config: macros resolved.
        name: where to start.
        without: arguments of the first item that are left out.
    """
    first = get(config, name)
    if without and isinstance(first, Mapping):
        first = {key: value for key, value in first.items() if key not in without}
    found = {normal(name): first}
    todo = references(first)[::-1]
    while todo:
        following = todo.pop()
        if following not in found:
            found[following] = get(config, following)
            todo += references(found[following])[::-1]
    return found


def reached_components(config: Mapping[str, Any], name: str, **kwargs: Any) -> dict[str, dict[str, Any]]:
    """The components in what is `reached`, by id, those that are switched off left out."""
    return {
        found: component
        for start, value in reached(config, name, **kwargs).items()
        for found, component in components(value, start)
        if switched_off(component) is not True
    }


def class_name(value: Any) -> str:
    """The last part of a component's ``_target_``; empty for what is no component."""
    return str(value["_target_"]).rsplit(".", 1)[-1] if is_component(value) else ""


def argument_id(config: Mapping[str, Any], component: str | None, key: str) -> str | None:
    """The id of what a component is given as an argument: that of the reference, else its place in the component.

    Example:
        >>> text = {"net": 1, "evaluator": {"network": "@net", "inferer": {"_target_": "SimpleInferer"}}}
        >>> argument_id(text, "evaluator", "network"), argument_id(text, "evaluator", "inferer")
        ('net', 'evaluator#inferer')
    """
    value = None if component is None else get(config, f"{component}#{key}")
    if component is None or value is None:
        return None
    if isinstance(value, str) and _REFERENCE.fullmatch(value):
        return normal(value[1:])
    return f"{component}#{key}"


def static_value(config: Mapping[str, Any], name: str) -> str | None:
    """The string at an id where it can be told without running anything: literals, ``+`` and `os.path.join`.

    References that lead back to themselves have no value, and none is longer than `LONGEST`.

    Example:
        >>> static_value({"root": "/b", "file": "$@root + '/models/model.pt'"}, "file")
        '/b/models/model.pt'
        >>> static_value({"a": "@b", "b": "$@a + 'x'"}, "a") is None
        True
    """
    return _told(config, normal(name), {})


def static_truth(config: Mapping[str, Any], name: str, root: Path) -> bool | None:
    """Whether the value at an id is true where that can be told without running anything; else None.

    Read are literals, references to them, ``not``, and `os.path.exists`, `isfile` and `isdir` of a `static_value`.

    Args:
        config: macros resolved.
        name: of the value; nothing there is false.
        root: what relative paths are relative to.

    Example:
        >>> text = {"file": "no/such/file", "a": "$not os.path.exists(@file)", "b": "$print()", "c": "true"}
        >>> [static_truth(text, name, Path("/")) for name in ("a", "b", "c", "missing")]
        [True, None, True, False]
    """
    value, seen = get(config, name), {normal(name)}
    while isinstance(value, str) and _REFERENCE.fullmatch(value):
        name = normal(value[1:])
        if name in seen:
            return None
        seen.add(name)
        value = get(config, name)
    if not isinstance(value, str):
        return bool(value)
    if not value.startswith("$"):
        return value.lower().strip() == "true"
    try:
        tree, parts = _parsed(config, name, value, {})
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return _truth(tree, parts, root)


def _truth(node: ast.expr, names: Mapping[str, str | None], root: Path) -> bool | None:
    if isinstance(node, ast.Constant):
        return bool(node.value)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        inner = _truth(node.operand, names, root)
        return None if inner is None else not inner
    if isinstance(node, ast.Call) and len(node.args) == 1 and not node.keywords:
        test, path = _TESTS.get(ast.unparse(node.func)), _constant(node.args[0], names)
        return None if test is None or path is None else test(root / path)
    return None


def _told(config: Mapping[str, Any], name: str, known: dict[str, str | None]) -> str | None:
    """The string at an id; `known` holds every id asked before, and None for one that is being told."""
    if name in known:
        return known[name]
    known[name] = None
    value = get(config, name)
    if not isinstance(value, str):
        return None
    if _REFERENCE.fullmatch(value):
        known[name] = _told(config, normal(value[1:]), known)
    elif not value.startswith("$"):
        known[name] = value
    else:
        try:
            known[name] = _constant(*_parsed(config, name, value, known))
        except (SyntaxError, ValueError, RecursionError, MemoryError):  # of ast.parse
            return None
    return known[name]


def _parsed(
    config: Mapping[str, Any], name: str, value: str, known: dict[str, str | None]
) -> tuple[ast.expr, dict[str, str | None]]:
    """The tree of a ``$`` expression, its references as names, and the strings that these names stand for."""
    parts: dict[str, str | None] = {}

    def stand_in(match: re.Match[str]) -> str:
        key = f"_reference_{len(parts)}"
        parts[key] = _told(config, normal(match[0][1:]), known)
        return key

    return ast.parse(_REFERENCE.sub(stand_in, value[1:]).strip(), mode="eval").body, parts


def _constant(node: ast.expr, names: Mapping[str, str | None]) -> str | None:
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = _constant(node.left, names), _constant(node.right, names)
        return None if left is None or right is None or len(left) + len(right) > LONGEST else left + right
    if isinstance(node, ast.Call) and not node.keywords and ast.unparse(node.func) in _JOIN:
        given = [_constant(argument, names) for argument in node.args]
        return None if None in given or not given else _JOIN[ast.unparse(node.func)](*given)
    return None
