# SPDX-License-Identifier: Apache-2.0
"""The tutorials run from the first cell to the last, and are laid out as MONAI's are."""

from __future__ import annotations

import ast
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat", reason="the tutorials need nbformat, nbclient and ipykernel (extra `test`)")
nbclient = pytest.importorskip("nbclient", reason="the tutorials need nbformat, nbclient and ipykernel (extra `test`)")
pytest.importorskip("ipykernel", reason="the tutorials need nbformat, nbclient and ipykernel (extra `test`)")

from jupyter_client.manager import AsyncKernelManager  # noqa: E402  nbclient brings it along

ROOT = Path(__file__).parents[1]
BUNDLE = Path("bundles", "lung_ct_segmentation")
TUTORIALS = sorted((ROOT / "tutorials").glob("*.ipynb"))
HEADINGS = [
    "## Setup environment",
    "## Setup imports",
    "## Setup data directory",
    "## Cleanup data directory",
]
INSTALL = "install"
"""Id of the cell that installs the package, which tests do not run: the environment is theirs."""

SECONDS = 600
LINES = 100

every_tutorial = pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def code_of(notebook: Any) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def contents(folder: Path) -> dict[str, bytes]:
    files = [file for file in folder.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def without_magics(source: str) -> str:
    return re.sub(r"^\s*[%!].*$", "", source, flags=re.MULTILINE)


def test_there_are_six_and_the_table_names_them() -> None:
    assert [path.name[:3] for path in TUTORIALS] == [f"0{i}_" for i in range(1, 7)]
    for text in (ROOT / "tutorials" / "README.md", ROOT / "README.md"):
        for path in TUTORIALS:
            assert path.name in text.read_text(encoding="utf-8"), (text, path.name)


@every_tutorial
def test_the_source_is_clean(path: Path) -> None:
    notebook = read(path)
    nbformat.validate(notebook)
    ids = [cell["id"] for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    assert not [one for one in ids if re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f-]+)?", one)], "made by chance, not stable"
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None
        assert cell.metadata == {}
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec.name == "python3"


@every_tutorial
def test_the_layout_is_that_of_monai(path: Path) -> None:
    cells = read(path).cells
    first = cells[0].source
    assert first.startswith("Copyright (c) ")
    assert "&nbsp;&nbsp;&nbsp;&nbsp;http://www.apache.org/licenses/LICENSE-2.0  \n" in first
    assert len(re.findall(r"^# ", first, re.MULTILINE)) == 1
    found = {
        line: i for i, cell in enumerate(cells) if cell.cell_type == "markdown" for line in cell.source.split("\n")
    }
    places = [found[heading] for heading in HEADINGS]
    assert places == sorted(places)
    assert all(cells[place + 1].cell_type == "code" for place in places)
    environment, imports, directory, cleanup = (cells[place + 1].source for place in places)
    assert cells[places[0] + 1]["id"] == INSTALL
    assert re.match(r'!python -c "import monai_smia\b[^"]*" \|\| pip install -q ', environment)
    assert imports.rstrip().endswith("print_config()")
    assert 'os.environ.get("MONAI_DATA_DIRECTORY")' in directory
    assert "tempfile.mkdtemp(" in directory
    assert "shutil.rmtree(root_dir)" in cleanup
    assert places[-1] == len(cells) - 2


@every_tutorial
def test_all_imports_are_in_one_cell(path: Path) -> None:
    with_imports = []
    for i, source in enumerate(code_of(read(path))):
        tree = ast.parse(without_magics(source))
        if any(isinstance(node, (ast.Import, ast.ImportFrom)) for node in ast.walk(tree)):
            with_imports.append(i)
    assert with_imports == [1]


@every_tutorial
def test_paths_are_relative_and_links_lead_somewhere(path: Path) -> None:
    for cell in read(path).cells:
        assert not re.search(r"""(?<![\w.])(/(home|root|work|tmp|Users|mnt|data)\b|[A-Z]:\\)""", cell.source)
        if cell.cell_type == "markdown":
            for target in re.findall(r"\]\((?!https?://)([^)#]+)", cell.source):
                assert (path.parent / target).exists(), target


@every_tutorial
def test_it_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside a copy of the bundle, as in a clone; no file is left, and none of the bundle's is changed."""
    folder, bundle, temporary = (tmp_path / name for name in ("tutorials", BUNDLE, "temporary"))
    shutil.copytree(ROOT / BUNDLE, bundle, ignore=shutil.ignore_patterns("__pycache__", "eval", "runs"))
    before = contents(bundle)
    for made in (folder, temporary):
        made.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("MONAI_DATA_DIRECTORY", raising=False)
    notebook = read(path)
    notebook.cells = [cell for cell in notebook.cells if cell["id"] != INSTALL]

    kernel = AsyncKernelManager()
    kernel.kernel_spec.argv[0] = sys.executable
    place = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(notebook, km=kernel, timeout=SECONDS, resources=place).execute()

    figures = 0
    for cell in notebook.cells:
        if cell.cell_type == "code":
            texts = [output.text for output in cell.outputs if output.output_type == "stream"]
            assert sum(text.count("\n") for text in texts) < LINES, cell["id"]
            figures += sum("image/png" in output.get("data", {}) for output in cell.outputs)
    assert figures
    assert list(folder.iterdir()) == []
    assert not list(temporary.glob("tmp*"))
    assert contents(bundle) == before
