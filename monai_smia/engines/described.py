# SPDX-License-Identifier: Apache-2.0
"""`described`: what an object does, as a text that is the same in every process."""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import inspect
import logging
import random
import re
import types
import weakref
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine
from ignite.metrics import Metric
from monai.data import ImageReader, MetaTensor
from monai.metrics import Cumulative
from monai.transforms import Randomizable, Transform
from torch.nn.parameter import is_lazy
from torch.utils.data import DataLoader

LIBRARIES = ("monai", "torch", "ignite", "numpy", "monai_smia", "torchvision", "scipy", "builtins", "functools", "abc",
             "typing", "collections", "enum")  # fmt: skip
"""Their classes are told by name: their code changes with their version, which `fingerprint.versions` has."""

VOLATILE = (np.random.RandomState, np.random.Generator, torch.Generator, random.Random, Engine, DataLoader,
            logging.Logger, weakref.ReferenceType)  # fmt: skip
"""Told by their class alone: random states, and what a part is used by."""

CHANGING = (torch.nn.Module, Randomizable, Metric, Cumulative, ImageReader)
"""They keep what they compute beside what they are made of."""

_ADDRESS = re.compile(r"0x[0-9a-fA-F]{6,}")


def digest(text: str | bytes) -> str:
    """SHA-256, in hexadecimal."""
    return hashlib.sha256(text.encode() if isinstance(text, str) else text).hexdigest()


def described(value: Any) -> str:
    """A text that says what a value is made of, without addresses: equal for equal values, in every process.

    An object is its class and its state, all the way down; arrays and tensors are their type, shape and SHA-256; a
    function is its name, its code and what it closes over. Classes that belong to none of the usual libraries come with
    their code. Of modules, metrics, readers and random transforms only the arguments of their constructors and the
    parts that they are made of count, because the rest changes while they work; random states never count.

    Args:
        value: transforms, inferers, losses, attacks, configurations.

    Example:
        >>> described({"roi": (2, 3), "mode": None})
        "{'mode': None, 'roi': (2, 3)}"
        >>> from monai.inferers import SlidingWindowInferer as Windows
        >>> described(Windows(8, overlap=0.25)) == described(Windows(8, overlap=0.25))
        True
        >>> described(Windows(8, overlap=0.25)) == described(Windows(8, overlap=0.5))
        False
    """
    return _Describing().text(value)


def tensor_digest(tensor: torch.Tensor) -> str:
    """Type, shape and SHA-256 of the numbers of a tensor, wherever it lies."""
    if is_lazy(tensor):
        return "uninitialized"
    plain = tensor.detach().as_subclass(torch.Tensor)
    plain = plain.int_repr() if plain.is_quantized else plain.to_dense() if plain.layout != torch.strided else plain
    plain = plain.resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
    content = plain.view(torch.uint8).numpy().tobytes() if plain.numel() else b""
    return f"{tensor.dtype} {tuple(tensor.shape)} {digest(content)}"


class _Describing:
    """One walk through a value, which may hold itself; what is met twice is looked at once."""

    def __init__(self) -> None:
        self._told: dict[int, tuple[str, Any]] = {}  # with the value, so that no two have one address

    def text(self, value: Any) -> str:
        """Of any value."""
        if value is None or (
            isinstance(value, (bool, int, float, complex, str, bytes)) and not isinstance(value, enum.Enum)
        ):
            return repr(value)
        if isinstance(value, enum.Enum):
            return f"{_name(type(value))}.{value.name}"
        if isinstance(value, (torch.dtype, torch.device, torch.Size, np.dtype, range, slice, re.Pattern)):
            return repr(value)
        if isinstance(value, PurePath):
            return f"Path({value.as_posix()!r})"
        if isinstance(value, np.generic):
            return f"{value.dtype}({value.item()!r})"
        if isinstance(value, VOLATILE):
            return type(value).__name__
        if isinstance(value, torch.Tensor):
            affine = f" at {tensor_digest(value.affine)}" if isinstance(value, MetaTensor) else ""
            return f"tensor({tensor_digest(value)}{affine})"
        if id(value) not in self._told:
            self._told[id(value)] = "<itself>", value  # until it is known
            self._told[id(value)] = self._of_parts(value), value
        return self._told[id(value)][0]

    def _of_parts(self, value: Any) -> str:
        if isinstance(value, np.ndarray):
            if value.dtype.hasobject:
                return f"array({value.shape}, {self.text(value.tolist())})"
            return f"array({value.dtype} {value.shape} {digest(np.ascontiguousarray(value).tobytes())})"
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, functools.partial):
            return f"partial({self.text(value.func)}, {self.text(value.args)}, {self.text(value.keywords)})"
        if isinstance(value, types.MethodType):
            return f"{self.text(value.__self__)}.{value.__func__.__qualname__}"
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, types.ModuleType):
            return f"module {value.__name__}"
        if isinstance(value, types.CodeType):
            return self._code(value)
        if type(value) in (dict, list, tuple, set, frozenset) or isinstance(value, types.MappingProxyType):
            return self._plain(value)
        return self._object(value)

    def _plain(self, value: Any) -> str:
        if isinstance(value, Mapping):
            pairs = sorted((self.text(key), item) for key, item in value.items()) if _sortable(value) else [
                (self.text(key), item) for key, item in value.items()]  # fmt: skip
            return "{" + ", ".join(f"{key}: {self.text(item)}" for key, item in pairs) + "}"
        if isinstance(value, Set):
            return "{" + ", ".join(sorted(described(item) for item in value)) + "}"
        inside = ", ".join(self.text(item) for item in value)
        return f"({inside})" if isinstance(value, tuple) else f"[{inside}]"

    def _object(self, value: Any) -> str:
        state = dict(_state(value))
        parts = []
        if isinstance(value, Mapping):
            parts.append(self._plain(dict(value)))
        elif isinstance(value, (Sequence, Set)):
            parts.append(self._plain(list(value) if isinstance(value, Sequence) else set(value)))
        if isinstance(value, torch.nn.Module):
            parts += self._own_tensors(value)
        parts += [f"{name}={self.text(state[name])}" for name in sorted(state)]
        if not parts:
            shown = repr(value)
            if not _ADDRESS.search(shown):
                return f"{self._class(type(value))}:{shown}"
        return f"{self._class(type(value))}({', '.join(parts)})"

    def _own_tensors(self, module: torch.nn.Module) -> Iterator[str]:
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            yield f"{name}={self.text(tensor)}"
        for name, child in module.named_children():
            yield f"{name}={self.text(child)}"
        if extra := module.extra_repr():
            yield f"<{extra}>"

    def _class(self, kind: type) -> str:
        own = [base for base in kind.__mro__ if base.__module__.split(".")[0] not in LIBRARIES]
        if not own:
            return _name(kind)
        code = [
            f"{name}:{self._code(function.__code__)}" for base in own for name, function in sorted(_functions(base))
        ]
        return f"{_name(kind)}<{digest(' '.join(code))[:16]}>"

    def _function(self, function: types.FunctionType) -> str:
        name = f"{function.__module__}.{function.__qualname__}"
        if (function.__module__ or "").split(".")[0] in LIBRARIES and function.__closure__ is None:
            return name
        used = set(_names(function.__code__))
        # plain numbers and functions of its own module that it uses are a part of what it does
        around = {
            key: item
            for key, item in function.__globals__.items()
            if key in used
            and (
                isinstance(item, (bool, int, float, str, bytes, tuple))
                or (isinstance(item, types.FunctionType) and item.__module__ == function.__module__)
            )
        }
        cells = [cell.cell_contents for cell in function.__closure__ or () if not _is_empty(cell)]
        inside = [function.__defaults__, function.__kwdefaults__, cells, around]
        return f"{name}<{self._code(function.__code__)[:16]} {', '.join(self.text(item) for item in inside if item)}>"

    def _code(self, code: types.CodeType) -> str:
        constants = [
            self._code(item) if isinstance(item, types.CodeType) else described(item) for item in code.co_consts
        ]
        return digest(repr((code.co_code.hex(), constants, code.co_names, code.co_varnames, code.co_freevars)))


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _sortable(value: Mapping[Any, Any]) -> bool:
    return all(isinstance(key, (str, int, float, bytes, tuple, enum.Enum)) or key is None for key in value)


def _state(value: Any) -> Iterator[tuple[str, Any]]:
    """Name to value of what makes an object what it is."""
    kind = type(value)
    cached = {name for base in kind.__mro__ for name, item in vars(base).items()
              if isinstance(item, functools.cached_property)}  # fmt: skip
    found = dict(getattr(value, "__dict__", {}))
    for base in kind.__mro__:
        slots = vars(base).get("__slots__", ())
        for name in [slots] if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                found[name] = getattr(value, name)
    if dataclasses.is_dataclass(value):
        found |= {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    changes = isinstance(value, CHANGING) and not dataclasses.is_dataclass(value)
    asked = set(_arguments(kind)) if changes else set()
    for name, item in found.items():
        if name in cached or isinstance(item, (*VOLATILE, types.ModuleType)) or (name == "training" and changes):
            continue
        if isinstance(value, torch.nn.Module) and name in torch.nn.Module().__dict__:
            continue
        if not changes or name.lstrip("_") in asked or _is_part(item):
            yield name, item


def _arguments(kind: type) -> Iterator[str]:
    """Names of the arguments of a class's constructors, its bases' included."""
    for base in kind.__mro__:
        if "__init__" in vars(base) and base is not object:
            try:
                yield from inspect.signature(vars(base)["__init__"]).parameters
            except (TypeError, ValueError):  # of C, or of no signature
                continue


def _is_part(item: Any) -> bool:
    """Whether something is made of settings of its own, not a number that is computed."""
    return isinstance(item, (Transform, Randomizable, torch.nn.Module)) or (
        hasattr(item, "__dict__")
        and not isinstance(item, (torch.Tensor, np.ndarray, type))
        and type(item).__module__.split(".")[0] != "builtins"
    )


def _functions(kind: type) -> Iterator[tuple[str, types.FunctionType]]:
    for name, item in vars(kind).items():
        if isinstance(item, property):
            item = item.fget
        item = getattr(item, "__func__", item)
        if isinstance(item, types.FunctionType):
            yield name, item


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for item in code.co_consts:
        if isinstance(item, types.CodeType):
            yield from _names(item)


def _is_empty(cell: types.CellType) -> bool:
    try:
        return bool(cell.cell_contents is cell)
    except ValueError:  # not filled yet
        return True
