"""The documentation builds without a warning, its links lead somewhere, its code runs, and nothing is left out."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import pkgutil
import re
import subprocess
import sys
import zlib
from abc import ABC
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from test_public_names import LIST

import monai_smia
from monai_smia import attacks

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PLACES = ("*.md", "docs/**/*.md", "bundles/*/docs/README.md", "benchmarks/*.md", "tutorials/*.md")
MARKDOWN = sorted({path for place in PLACES for path in ROOT.glob(place) if "_build" not in path.parts})
RUNNING = [DOCS / "getting_started.md", DOCS / "by_hand.md", *sorted((DOCS / "how_to").glob("*.md"))]
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"^```(python|text)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(\s*([^()\s]*)\s*\)")
SPHINX = (
    "import sys; from torchvision_shim import load_torchvision; load_torchvision(); "
    "from sphinx.cmd.build import main; sys.exit(main(sys.argv[1:]))"
)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def slugs(path: Path) -> set[str]:
    """The names by which GitHub links a page's headings."""
    found: dict[str, int] = {}
    for heading in re.findall(r"^#{1,6} +(.+?) *$", FENCE.sub("", path.read_text(encoding="utf-8")), re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
        slug = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        found[slug] = found.get(slug, -1) + 1
        if found[slug]:
            found[f"{slug}-{found[slug]}"] = 0
    return set(found)


def dead_links(path: Path) -> list[str]:
    """Links of a Markdown file that lead nowhere; of those to other hosts only the form is looked at."""
    text = re.sub(r"`[^`\n]+`", "", FENCE.sub("", path.read_text(encoding="utf-8")))
    dead = []
    for link in [*LINK.findall(text), *re.findall(r"<(https?:[^>]*)>", text)]:
        parts = urlsplit(link)
        if parts.scheme or parts.netloc:
            if parts.scheme != "https" or not re.fullmatch(r"[\w-]+(\.[\w-]+)+", parts.netloc):
                dead.append(f"{link}: expected https://host/...")
            continue
        target = path.parent / unquote(parts.path) if parts.path else path
        if not link or not target.resolve().is_relative_to(ROOT) or not target.exists():
            dead.append(f"{link}: no such file")
        elif parts.fragment and (target.suffix != ".md" or parts.fragment not in slugs(target)):
            dead.append(f"{link}: no such heading")
    return dead


def test_dead_links_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path.resolve())
    page = tmp_path / "page.md"
    page.write_text(
        "# A `b`, c\n## Same\n## Same\n[x](#a-b-c) [x](page.md#same-1) [`x`](page.md) [a [b]](page.md)\n"
        "```\n[x](in_code.md)\n# no heading\n```\n`[x](also.md)` ![y](no.png) [x](page.md#no-heading)\n"
        "[x\ny](../page.md)\n"
        "[x](http://host.org) <https://nohost> [x](https://host.org/a?b#c)\n"
    )
    assert [text.split(":")[0] for text in dead_links(page)] == [
        "no.png",
        "page.md#no-heading",
        "../page.md",
        "http",
        "https",
    ]


@pytest.mark.parametrize("path", MARKDOWN, ids=name_of)
def test_no_link_is_dead(path: Path) -> None:
    assert dead_links(path) == []


class Page(HTMLParser):
    """What a built page links to, and what in it can be linked to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.ids |= {values[key] or "" for key in ("id", "name") if key in values}
        link = values.get({"a": "href", "link": "href", "img": "src", "script": "src"}.get(tag, ""))
        if link and not urlsplit(link).scheme and not urlsplit(link).netloc:
            self.links.append(link)


def test_the_site_builds_without_a_warning_and_is_whole(tmp_path: Path) -> None:
    """One test, so that processes that share the tests build it once."""
    for module in ("sphinx", "furo", "myst_parser", "sphinx_copybutton"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f'needs {module}, to build the documentation: pip install "monai-smia[docs]"')
    options = ["-b", "html", "-W", "--keep-going", "-q", "-j", "auto", "-d", str(tmp_path / "doctrees")]
    done = subprocess.run(
        [sys.executable, "-c", SPHINX, *options, str(DOCS), str(tmp_path / "html")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-8000:]
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in (tmp_path / "html").rglob("*.html")}
    assert len(pages) > 40
    assert dead_in_the_site(tmp_path / "html", pages) == []
    assert left_the_documentation(tmp_path / "html", pages) == []
    assert not_in_the_reference(tmp_path / "html") == []


def dead_in_the_site(site: Path, pages: dict[Path, Page]) -> list[str]:
    """Links of the built pages to files or headings that are not there."""
    dead = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            target = Path(os.path.normpath(path.parent / unquote(parts.path))) if parts.path else path
            exists = target in pages or target.is_file()
            if not exists or (parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].ids):
                dead.append(f"{path.relative_to(site)}: {link}")
    return dead


def left_the_documentation(site: Path, pages: dict[Path, Page]) -> list[str]:
    """Links to READMEs from elsewhere, and from them, that do not lead to the site's own pages."""
    names = [path.parents[1].name for path in ROOT.glob("bundles/*/docs/README.md")]
    wrong = [name for name in names if f"{name}.html" not in pages[site / "bundles" / "index.html"].links]
    fundus = pages[site / "bundles" / "fundus_dr_classification.html"].links
    wrong += [link for link in ("../robustness.html",) if link not in fundus]
    return wrong + [str(path) for path in site.glob("_downloads/*/*.md")]


def not_in_the_reference(site: Path) -> list[str]:
    """Public names, and modules, that have no page of the reference."""
    _, _, _, _, packed = (site / "objects.inv").read_bytes().split(b"\n", 4)
    entries = [line.split(" ") for line in zlib.decompress(packed).decode().splitlines()]
    there = {entry[0] for entry in entries if entry[1].startswith("py:") and entry[3].startswith("reference/")}
    names = LIST.read_text().split()
    missing = [name for name in names if name not in there]
    top = (site / "reference" / "monai_smia.html").read_text(encoding="utf-8")
    short = [name for name in monai_smia.__all__ if not inspect.ismodule(getattr(monai_smia, name))]
    missing += [name for name in short if f"monai_smia.{name}<" not in top]
    modules = {name.split(".")[1] for name in names}
    return missing + sorted(modules - {path.stem for path in (DOCS / "reference").glob("*.md")})


def numbers_and_words(text: str) -> tuple[list[float], list[str]]:
    number = r"-?\d+(?:\.\d+)?"
    return [float(found) for found in re.findall(number, text)], re.sub(number, "#", text).split()


@pytest.mark.parametrize("path", RUNNING, ids=name_of)
def test_the_code_of_a_page_runs_and_prints_what_it_says(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict = {"__name__": "page"}
    sys.modules["page"] = type(sys)("page")  # dataclasses look their module up
    try:
        for language, code in BLOCK.findall(path.read_text(encoding="utf-8")):
            if language == "python":
                capsys.readouterr()
                exec(compile(code, name_of(path), "exec"), names)
                continue
            (said, words), (printed, spoken) = numbers_and_words(code), numbers_and_words(capsys.readouterr().out)
            assert spoken == words
            assert printed == pytest.approx(said, rel=0.15, abs=0.05)
    finally:
        del sys.modules["page"]


def test_the_loop_by_hand_gives_the_bits_of_the_attacks(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict = {}
    said = []
    for code in re.findall(r"```python\n(.*?)```", (DOCS / "by_hand.md").read_text(encoding="utf-8"), re.S):
        exec(code, names)
        said += capsys.readouterr().out.splitlines()
    assert [line for line in said if line in ("True", "False")] == ["True", "True"]
    assert not names["adversarial"].equal(names["image"])


def test_every_attack_is_once_in_the_tables_of_which_attack() -> None:
    text = (DOCS / "which_attack.md").read_text(encoding="utf-8").split("## Every name")[1]
    listed = re.findall(r"^\| `(\w+)` \| \S.* \|$", text, re.MULTILINE)
    assert sorted(listed) == sorted(attacks.__all__)


def words_of(text: str) -> list[str]:
    return re.findall(r"\w+", re.sub(r":math:|[`$]", "", text))


def documented() -> dict[str, str]:
    """Every class and function of the package, to its docstring."""
    found = {}
    for info in pkgutil.walk_packages(monai_smia.__path__, "monai_smia."):
        if info.name.endswith("__main__"):
            continue
        module = importlib.import_module(info.name)
        for name, value in vars(module).items():
            if (inspect.isclass(value) or inspect.isfunction(value)) and value.__module__ == info.name:
                found[name] = inspect.cleandoc(value.__doc__ or "")
    return found


def test_deviations_are_those_of_the_docstrings() -> None:
    text = (DOCS / "deviations.md").read_text(encoding="utf-8")
    body, without = text.split("## Without deviations")
    sections = dict(re.findall(r"^### (\w+)\n(.*?)(?=^##|\Z)", body, re.MULTILINE | re.DOTALL))
    said = {
        name: re.split(r"\n\s*\n", docstring.split("Deviations:")[1])[0]
        for name, docstring in documented().items()
        if "Deviations:" in docstring
    }
    assert sorted(sections) == sorted(said)
    for name, deviations in said.items():
        items = " ".join(re.findall(r"^- (.*(?:\n  .*)*)", sections[name], re.MULTILINE))
        assert words_of(items) == words_of(deviations), f"docs/deviations.md, {name}: expected {deviations}"
    named = set(re.findall(r"`(\w+)`", without))
    for name in attacks.__all__:
        value = getattr(attacks, name)
        if inspect.isclass(value) and issubclass(value, attacks.Attack) and ABC not in value.__bases__:
            assert (name in sections) != (name in named), name
