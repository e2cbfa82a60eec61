# SPDX-License-Identifier: Apache-2.0
"""Transforms as a configuration's text lists them, and stand-ins for them that run none of a bundle's code."""

from __future__ import annotations

import ast
import pydoc
import re
from collections.abc import Mapping, Sequence
from typing import Any

import monai.transforms
from monai.bundle import ComponentLocator
from monai.transforms import Compose, ConcatItemsd, CopyItemsd, Lambdad, MapTransform, OneOf, RandomOrder, SomeOf
from monai.transforms.transform import Transform
from monai.utils import ensure_tuple, ensure_tuple_rep

from monai_smia.bundle.errors import BundleError, reason
from monai_smia.bundle.intensity_walk import READ, Unread
from monai_smia.bundle.text import class_name, get, is_component, normal, switched_off

MOST = 1000
"""Transforms in one list; more are a circle, or no preprocessing."""

_REFERENCE = re.compile(r"@(\w+(?:(?:::|#)\w+)*)")
_NAME = re.compile(r"[A-Za-z]\w*(\.[A-Za-z]\w*)*")
_ALLOWED = ("monai.transforms.", "monai.apps.")
_LONGEST = 1000  # characters of an expression that is read


def listed(config: Mapping[str, Any], value: Any) -> list[Mapping[str, Any] | Unread]:
    """The transforms of a composition in their order, as text; `Unread` for what only running the bundle would tell.

    Read are lists, references, sums of references (``$@a + @b``) and MONAI's `Compose`; what ``_disabled_`` switches
    off is left out.

    Raises:
        BundleError: for more than `MOST`.

    Example:
        >>> config = {"a": [{"_target_": "Flipd"}], "b": [{"_target_": "Zoomd"}, "$lambda x: x"]}
        >>> [getattr(item, "name", None) or item["_target_"] for item in listed(config, "$@a + @b")]
        ['Flipd', 'Zoomd', '$lambda x: x']
    """
    found: list[Mapping[str, Any] | Unread] = []
    _collect(config, value, (), found)
    return found


def stand_ins(config: Mapping[str, Any], value: Any) -> list[Any]:
    """What `read_intensity` needs of a preprocessing, from its text alone.

    Transforms whose formula is read are MONAI's objects, made of literals and references to literals. Of every other
    transform of MONAI's there is an object of its class that was never initialized, with its keys. All else is
    `Unread`: a bundle's own classes, expressions, and what is switched off by an expression.
    """
    return [item if isinstance(item, Unread) else _stand_in(config, item) for item in listed(config, value)]


def _collect(
    config: Mapping[str, Any], value: Any, seen: tuple[str, ...], found: list[Mapping[str, Any] | Unread]
) -> None:
    if len(found) >= MOST:
        raise BundleError(f"configs: expected at most {MOST} transforms in one composition; {value!r:.80} adds more")
    if value is None:
        return
    if isinstance(value, list):
        for entry in value:
            _collect(config, entry, seen, found)
        return
    names = _summands(value) if isinstance(value, str) else None
    if names is not None:
        for name in names:
            if name in seen:
                found.append(Unread(f"@{name}, which refers to itself"))
            else:
                _collect(config, get(config, name), (*seen, name), found)
        return
    if not is_component(value):
        found.append(Unread(value if isinstance(value, str) else f"a {type(value).__name__}"))
        return
    off = switched_off(value)
    if off is None or value.get("_mode_", "default") != "default":
        found.append(Unread(class_name(value)))
    elif off is False and class_name(value) == "Compose" and _kind(value) is Compose:
        _collect(config, value.get("transforms"), seen, found)
    elif off is False:
        found.append(value)


def _summands(value: str) -> list[str] | None:
    """Ids of ``@a``, ``$@a``, ``$@a + @b`` and ``$[@a, @b]``; None for anything else."""
    if _REFERENCE.fullmatch(value):
        return [normal(value[1:])]
    if not value.startswith("$") or len(value) > _LONGEST:
        return None
    names: list[str] = []

    def stand_in(match: re.Match[str]) -> str:
        names.append(normal(match[1]))
        return f"_reference_{len(names) - 1}"

    try:
        tree = ast.parse(_REFERENCE.sub(stand_in, value[1:]).strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    found = _names_of(tree)
    return None if found is None else [names[int(name.rpartition("_")[2])] for name in found]


def _names_of(node: ast.expr) -> list[str] | None:
    if isinstance(node, ast.Name) and node.id.startswith("_reference_"):
        return [node.id]
    parts: Sequence[ast.expr]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        parts = (node.left, node.right)
    elif isinstance(node, (ast.List, ast.Tuple)):
        parts = node.elts
    else:
        return None
    found = [_names_of(part) for part in parts]
    return None if None in found else [name for names in found for name in names or ()]


def _stand_in(config: Mapping[str, Any], item: Mapping[str, Any]) -> Any:
    kind, name = _kind(item), class_name(item)
    if kind is None:
        return Unread(str(item["_target_"]), _literal_keys(config, item))
    given = {key: value for key, value in item.items() if not (key.startswith("_") and key.endswith("_"))}
    try:
        if kind in READ:
            return kind(**{key: literal(config, value) for key, value in given.items()})
        made = object.__new__(kind)
        if kind in (OneOf, RandomOrder, SomeOf):
            made.transforms = stand_ins(config, given.get("transforms"))
        if issubclass(kind, MapTransform):
            made.keys = ensure_tuple(literal(config, given["keys"]))
        if kind is ConcatItemsd:
            made.name = literal(config, given["name"])
        if kind is CopyItemsd:
            made.names = ensure_tuple(literal(config, given["names"]))
        if kind is Lambdad:
            made.overwrite = ensure_tuple_rep(literal(config, given.get("overwrite", True)), len(made.keys))
        return made
    except NotToldError:
        return Unread(name)
    except Exception as error:  # whatever MONAI's constructors raise at arguments that do not fit
        return Unread(f"{name} ({reason(error)[:200]})")


def _literal_keys(config: Mapping[str, Any], item: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The ``keys`` of a dictionary transform that is the bundle's own."""
    try:
        keys = ensure_tuple(literal(config, item.get("keys")))
    except NotToldError:
        return None
    return keys if keys and all(isinstance(key, str) for key in keys) else None


def _kind(item: Mapping[str, Any]) -> type[Any] | None:
    """MONAI's own transform of a ``_target_``; None for anything else, which is not imported."""
    target = item["_target_"]
    if not isinstance(target, str) or not _NAME.fullmatch(target):
        return None
    if "." not in target:
        found = getattr(monai.transforms, target, None)
        if found is None:
            module = ComponentLocator().get_component_module_name(target)
            target = f"{module}.{target}" if isinstance(module, str) else ""
    if "." in target:
        found = pydoc.locate(target) if target.startswith(_ALLOWED) else None
    elif not target:
        return None
    own = isinstance(found, type) and issubclass(found, Transform) and found.__module__.startswith("monai.")
    return found if own else None


class NotToldError(Exception):
    """Only running the bundle would tell."""


def literal(config: Mapping[str, Any], value: Any, seen: tuple[str, ...] = ()) -> Any:
    """An argument that is a literal, or made of references to literals.

    Raises:
        NotToldError: for a component, and for an expression that is more than a literal or a reference.

    Example:
        >>> literal({"low": -1000, "ends": ["@low", "$(400, 3)"]}, "@ends")
        [-1000, (400, 3)]
    """
    if isinstance(value, Mapping):
        if "_target_" in value:
            raise NotToldError
        return {key: literal(config, child, seen) for key, child in value.items()}
    if isinstance(value, list):
        return [literal(config, child, seen) for child in value]
    if not isinstance(value, str):
        return value
    text = value[1:].strip() if value.startswith("$") else value
    if _REFERENCE.fullmatch(text):
        name = normal(text[1:])
        if name in seen or len(seen) > MOST // 10:
            raise NotToldError
        return literal(config, get(config, name), (*seen, name))
    if not value.startswith("$"):
        return value
    try:
        return ast.literal_eval(text[:_LONGEST])
    except (SyntaxError, TypeError, ValueError, RecursionError, MemoryError):
        raise NotToldError from None
