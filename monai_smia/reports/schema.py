# SPDX-License-Identifier: Apache-2.0
"""What saved files must look like: one pydantic model a kind of file, checked whenever one is read."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    ValidationError,
    model_validator,
)
from typing_extensions import TypeAliasType

_CLASS = re.compile(r"_\d+$")
_OF_RESULTS = {"loss", "clean_loss", "success", "clean_success", "largest_change", "forward_passes", "backward_passes"}
_SHOWN = 80  # characters of a value in a message

Number = StrictBool | StrictInt | StrictFloat | None
"""A JSON number, true or false; null stands for what is not finite."""

Values = TypeAliasType("Values", "Number | list[Values] | dict[str, Values]")
"""A metric's value: a number, or numbers by class, case or threshold."""

Cell = TypeAliasType("Cell", "Number | str | list[Cell] | dict[str, Cell]")
"""What a row of the cases has in a column."""


def inside(name: str) -> str:
    """A relative path that stays in its folder, as text alone can tell; parts are separated by ``/``.

    Raises:
        ValueError: for an absolute path, one with ``..``, a backslash, a drive, or nothing in it.

    Example:
        >>> inside("images/a.nii.gz")
        'images/a.nii.gz'
    """
    path = PurePosixPath(name)
    other = PureWindowsPath(name)
    if not path.parts or path.is_absolute() or other.drive or "\\" in name or "\0" in name or ".." in path.parts:
        raise ValueError("expected a path inside of its folder, relative and without '..'")
    return name


def plain_name(name: str) -> str:
    """The name of a file, with no folder before it.

    Raises:
        ValueError: for anything else.
    """
    if inside(name) != name or len(PurePosixPath(name).parts) != 1 or "/" in name:
        raise ValueError("expected the name of a file, with no folder before it")
    return name


def file_in(folder: str | Path, name: str) -> Path:
    """A file by a name that a saved file gives, where it truly lies in the folder: links that lead out are refused.

    Raises:
        ValueError: for a name that leaves the folder, by its text or through a symbolic link.

    Example:
        >>> file_in("/reports", "../secret.npz")
        Traceback (most recent call last):
            ...
        ValueError: '../secret.npz': expected a path inside of its folder, relative and without '..'
    """
    try:
        path = Path(folder) / inside(name)
    except ValueError as error:
        raise ValueError(f"{name!r}: {error}") from None
    if not path.resolve().is_relative_to(Path(folder).resolve()):
        raise ValueError(f"{name!r}: expected a file in {folder}; a link leads to {path.resolve()}")
    return path


PathInside = Annotated[str, AfterValidator(inside)]
FileName = Annotated[str, AfterValidator(plain_name)]


class SavedFile(BaseModel):
    """A saved file of any kind.

    Attributes:
        VERSION: the newest version of this kind that is understood, and the one that is written.
        version: of the file; 0 in files from before there were versions.
    """

    model_config = ConfigDict(extra="allow", frozen=True)
    VERSION: ClassVar[int] = 1

    version: Annotated[StrictInt, Field(ge=0)] = 0

    @model_validator(mode="before")
    @classmethod
    def _not_newer(cls, content: Any) -> Any:
        found = content.get("version", 0) if isinstance(content, dict) else 0
        if isinstance(found, int) and found > cls.VERSION:
            raise NewerError(
                f"it has version {found}, and this monai_smia reads versions up to {cls.VERSION}; a newer one is needed"
            )
        return content


class NewerError(Exception):
    """A file of a version from after this package."""


class FindingRow(BaseModel):
    """A `Finding`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    check: str
    seen: str
    why: str
    advice: str
    severity: Literal["error", "warning", "note"]


class CaseRow(BaseModel):
    """One case under one run: names, and a column for each metric and each number of the attack's result."""

    model_config = ConfigDict(extra="allow", frozen=True)
    __pydantic_extra__: dict[str, Cell] = Field(init=False)

    attack: str
    case: str


class CertificateRow(BaseModel):
    """One case at one radius."""

    model_config = ConfigDict(extra="allow", frozen=True)
    __pydantic_extra__: dict[str, Cell] = Field(init=False)

    radius: StrictFloat | StrictInt


class ReportFile(SavedFile):
    """``report.json`` and ``robustness.json``: a `RobustnessReport`."""

    metrics: dict[str, dict[str, Values]]
    attacks: dict[str, str]
    unit: str
    cases: list[CaseRow]
    findings: list[FindingRow] | None = None
    certificates: list[CertificateRow] = []

    @model_validator(mode="after")
    def _columns_hold_numbers(self) -> ReportFile:
        """A metric is a number in every row; any other column holds numbers or texts, not both."""
        metrics = {name for run in self.metrics.values() for name in run} | _OF_RESULTS
        kinds: dict[str, bool] = {}
        for number, row in enumerate(self.cases):
            for name, value in (row.model_extra or {}).items():
                if value is None:
                    continue
                is_text = isinstance(value, str)
                known = name in metrics or _CLASS.sub("", name) in metrics
                if is_text and (known or not kinds.setdefault(name, is_text)):
                    raise ValueError(f"cases.{number}.{name}: expected a number; got {value!r:.{_SHOWN}}")
                if not is_text and kinds.setdefault(name, is_text):
                    raise ValueError(f"cases.{number}.{name}: expected a text, as before; got {value!r:.{_SHOWN}}")
        return self


class FailureRow(BaseModel):
    """A case that could not be evaluated."""

    model_config = ConfigDict(extra="allow", frozen=True)

    case: str
    stage: str
    error: str


class AboutFile(SavedFile):
    """``about.json``: what a report's folder has beside its numbers."""

    title: str = "Robustness to adversarial attacks"
    about: dict[str, str] = {}
    findings: list[str] | None = None
    failures: list[FailureRow] = []
    views: list[FileName] = []
    names: dict[str, str] = {}


class ViewEntry(BaseModel):
    """A view that is kept: its file beside the index, and how much its case suffered."""

    model_config = ConfigDict(extra="allow", frozen=True)

    file: FileName
    score: StrictFloat | StrictInt


class ViewIndexFile(SavedFile):
    """``index.json`` of the views that are kept while an evaluation runs; version 0 is `cases` alone."""

    cases: dict[str, ViewEntry]

    @model_validator(mode="before")
    @classmethod
    def _of_version_0(cls, content: Any) -> Any:
        versioned = isinstance(content, dict) and isinstance(content.get("version"), int)
        return content if versioned or not isinstance(content, dict) else {"cases": content}


class CaseViewFile(SavedFile):
    """The JSON text in the file of a `CaseView`; arrays and their names are checked where it is read."""

    format: Literal["monai_smia case view 1"]
    case: str
    runs: list[str]
    label: dict[str, Any] | None
    clean: dict[str, Any] | None
    predictions: list[tuple[str, dict[str, Any] | None]]
    spacing: list[StrictFloat | StrictInt] | None
    orientation: str
    classes: list[str]


class MadeRow(BaseModel):
    """How an adversarial file was made; one without its source tells a `case`, a name that says nothing about it."""

    model_config = ConfigDict(extra="allow", frozen=True)

    source: str | None = None
    case: str | None = None
    source_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None

    @model_validator(mode="after")
    def _told(self) -> MadeRow:
        if self.source is None and self.case is None:
            raise ValueError("expected where it came from, under source or case")
        return self


class ManifestRow(BaseModel):
    """An item of a data list, under the keys of the data, and how its image was made."""

    model_config = ConfigDict(extra="allow", frozen=True)

    made: MadeRow


class ManifestFile(SavedFile):
    """``manifest.json`` of a cohort of adversarial files."""

    adversarial: list[ManifestRow]

    def rows(self, image_key: str | None = None) -> list[dict[str, Any]]:
        """The entries as they stand in the file.

        Args:
            image_key: of the image in every item, whose path must stay inside of the manifest's folder; ``None`` does
                not look.

        Raises:
            ValueError: for a path that leaves the folder.
        """
        rows = [row.model_dump(exclude_unset=True) for row in self.adversarial]
        for number, row in enumerate(rows):
            name = row.get(image_key) if image_key is not None else None
            if name is None:
                continue
            try:
                inside(name if isinstance(name, str) else "")
            except ValueError as error:
                raise ValueError(f"adversarial.{number}.{image_key}: {error}; got {name!r:.{_SHOWN}}") from None
        return rows


_SAID = {
    "bool_type": "expected a number, or numbers in lists",  # the first member of the union `Number`
    "dict_type": "expected an object of names and values",
    "model_type": "expected an object of names and values",
    "list_type": "expected a list",
    "string_type": "expected a text",
    "string_pattern_mismatch": "expected a SHA-256 in hexadecimal digits",
}

File = TypeVar("File", bound=SavedFile)


def validated(kind: type[File], content: Any, where: str | Path) -> File:
    """The content of a file as its model.

    Args:
        kind: of file.
        content: parsed JSON.
        where: the file, for the message.

    Raises:
        ValueError: in one line that names the file, the first item that does not fit, what was expected and what came.

    Example:
        >>> validated(AboutFile, {"version": 1, "views": ["../a.npz"]}, "about.json")
        Traceback (most recent call last):
            ...
        ValueError: about.json: views.0: expected a path inside of its folder, relative and without '..'; got '../a.npz'
    """
    try:
        return kind.model_validate(content)
    except NewerError as error:
        raise ValueError(f"{where}: {error}") from None
    except ValidationError as error:
        raise ValueError(f"{where}: {_first(error)}") from None


def _first(error: ValidationError) -> str:
    """The first fault in our words."""
    fault = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in fault["loc"] if not _is_of_a_union(part)) or "the file"
    said = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "missing":
        return f"{place}: expected it to be there; got nothing"
    if fault["type"] == "value_error" and not fault["loc"]:
        return said
    if not said.startswith("expected"):
        said = _SAID.get(fault["type"]) or "expected " + said.removeprefix("Input should be ")
    return f"{place}: {said}; got {fault['input']!r:.{_SHOWN}}"


def _is_of_a_union(part: Any) -> bool:
    """Whether a part of a place is pydantic's name of a member of a union, and no key or number."""
    return isinstance(part, str) and bool(re.fullmatch(r"(bool|int|float|str|none|list|dict)(\[.*\])?|.*\[.*\]", part))
