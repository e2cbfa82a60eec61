"""The page against the report it is of, read back with Python's own parser."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from page_samples import CASES, DICE, DISTANCE, frame_view, sample_report, volume_view

from monai_smia.reports import CLEAN, RobustnessReport, bootstrap_interval
from monai_smia.reports.packing import unpack
from monai_smia.reports.page import SECTIONS, write_page
from monai_smia.reports.readout import Reading
from monai_smia.reports.views import CaseView

VOID = {"meta", "input", "br", "hr", "img", "link"}
HOSTILE = '</script><script>alert(1)</script><img src=x onerror="alert(2)">&amp;{{data}}'


class Page(HTMLParser):
    """Tags, tables by caption, and scripts; fails where tags do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.scripts: dict[str, str] = {}
        self.texts: list[tuple[str, str]] = []
        self._rows: list[list[str]] = []
        self._caption = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID and not (self.open and self.open[0] == "svg"):
            self.open.append(tag)
        if tag == "table":
            self._rows, self._caption = [], ""
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, tag
        assert self.open.pop() == tag
        if tag == "table":
            self.tables[self._caption] = self._rows

    def handle_data(self, data: str) -> None:
        where = self.open[-1] if self.open else ""
        self.texts.append((where, data))
        if where == "script":
            self.scripts[self.tags[-1][1].get("id") or f"script {len(self.scripts)}"] = data
        elif where == "caption":
            self._caption += data
        elif {"td", "th"} & set(self.open[-4:]):
            self._rows[-1][-1] += data


def written(folder: Path, report: RobustnessReport | None = None, **arguments: Any) -> tuple[str, Page]:
    path = write_page(sample_report() if report is None else report, folder / "page.html", **arguments)
    text = path.read_text(encoding="utf-8")
    return text, Page(text)


def test_sections_stand_in_this_order_under_landmarks(tmp_path: Path) -> None:
    _, page = written(tmp_path, views=[volume_view()])
    assert [attributes["id"] for tag, attributes in page.tags if tag == "section"] == list(SECTIONS)
    for tag in ("html", "header", "nav", "main", "footer", "h1"):
        assert [name for name, _ in page.tags].count(tag) == 1
    names = {attributes.get("id") for _, attributes in page.tags}
    for tag, attributes in page.tags:
        if tag == "section":
            assert attributes["aria-labelledby"] in names
        if tag == "a":
            assert str(attributes["href"]).removeprefix("#") in names
    assert dict(page.tags)["html"]["lang"] == "en"


def test_worst_values_are_those_of_numpy(tmp_path: Path) -> None:
    _, page = written(tmp_path)
    rows = page.tables["Without an attack and at worst, for each budget"]
    assert rows[0] == ["metric", "without an attack", "worst at 5 HU", "worst at 20 HU"]
    dice = np.array([DICE[run] for run in ("PGD_5HU", "SMIA_5HU")])[:, :3]
    worst = np.nanmin(dice, 0)
    low, high = bootstrap_interval(worst)
    cell = f"{worst.mean():.3f} {low:.3f} to {high:.3f} 1 case undefined worst attack: SMIA, {dice[1].mean():.3f}"
    assert rows[1][2] == cell
    low, high = bootstrap_interval(DICE[CLEAN][:3])
    assert rows[1][1] == f"0.930 {low:.3f} to {high:.3f} 1 case undefined"
    distance = np.max([DISTANCE[run] for run in ("PGD_5HU", "SMIA_5HU")], 0)
    assert rows[2][2].startswith(f"{distance.mean():.3f} ")
    assert rows[2][3].startswith("∞")
    assert rows[3][:2] == ["AUC higher is better, over all cases at once", "0.900"]
    assert rows[3][2:] == ["0.700 worst attack: SMIA, 0.700", "0.600 worst attack: PGD, 0.600"]


def test_the_table_by_case_has_the_worst_first_and_undefined_last(tmp_path: Path) -> None:
    _, page = written(tmp_path)
    rows = page.tables["Dice of each case, the worst cases first"]
    assert [row[0] for row in rows[1:]] == ["b.nii.gz", "a.nii.gz", "c.nii.gz", "d.nii.gz"]
    assert rows[1] == ["b.nii.gz", "0.930", "0.050", "−0.880", "20", "PGD_20HU"]
    assert rows[4] == ["d.nii.gz", *["undefined"] * 5]


def test_the_scripts_data_are_the_reports_values(tmp_path: Path) -> None:
    _, page = written(tmp_path)

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    data = json.loads(page.scripts["case-data"], parse_constant=refuse)
    assert data["cases"] == list(CASES)
    assert data["runs"] == list(DICE)[1:]
    dice, distance = data["measures"][:2]
    for values, own in zip(list(DICE.values())[1:], dice["values"], strict=True):
        assert own == [None if math.isnan(value) else value for value in values]
    assert distance["values"][2] == [20.0, 30.0, "Infinity", 10.0]
    assert (dice["lower"], distance["lower"]) == (False, True)
    assert data["changes"][0] == [5.0] * 4


def test_charts_and_their_tables_have_the_same_numbers(tmp_path: Path) -> None:
    text, page = written(tmp_path)
    rows = page.tables["Dice over the largest change [HU]"]
    assert rows[0] == ["attack", "0", "5", "20"]
    assert [row[0] for row in rows[1:]] == ["PGD", "SMIA"]
    assert [row[2].split()[0] for row in rows[1:]] == ["0.550", "0.517"]
    titles = re.findall(r"<title>(PGD, 5: [^<]*)</title>", text)
    low, high = bootstrap_interval([0.60, 0.50])
    assert titles[0] == f"PGD, 5: 0.550 ({low:.3f} to {high:.3f})"


def test_embedded_arrays_decode_to_the_views(tmp_path: Path) -> None:
    view = volume_view()
    _, page = written(tmp_path, views=[view, frame_view()])
    data = json.loads(page.scripts["view-data"])
    assert data["unit"] == "HU"
    image, change = data["views"][0]["image"], data["views"][0]["runs"][0]["difference"]
    for described, values in ((image, view.image), (change, view.adversarial["PGD_5HU"] - view.image)):
        numbers = {name: described[name] for name in ("low", "step", "bits")}
        again = unpack(page.scripts[f"payload-{described['payload']}"], **numbers).reshape(values.shape)
        assert np.abs(again - values).max() <= described["step"] / 2 * 1.0001


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    attack = f"PGD_{HOSTILE}_5HU"
    rows = [{"attack": run, "case": HOSTILE, f"dice{HOSTILE}": 0.5} for run in (CLEAN, attack)]
    report = RobustnessReport({CLEAN: {HOSTILE: 0.5}}, tuple(rows), {attack: HOSTILE}, "HU" + HOSTILE)
    image = np.zeros((1, 4, 4))
    view = CaseView(HOSTILE, image, {attack: image}, HOSTILE, {attack: HOSTILE}, HOSTILE, classes=(HOSTILE,))
    text, page = written(
        tmp_path, report, views=[view], about={HOSTILE: HOSTILE}, title=HOSTILE, findings=[HOSTILE], reading=Reading()
    )
    ordinary, plain = written(tmp_path, views=[CaseView("a", image, {"PGD": image})], overwrite=True)
    assert sum(tag == "script" for tag, _ in page.tags) == sum(tag == "script" for tag, _ in plain.tags)
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert "img" not in {tag for tag, _ in page.tags}
    assert text.count("alert(1)") > 10
    assert "<script>alert" not in text
    assert json.loads(page.scripts["view-data"])["views"][0]["case"] == HOSTILE
    assert ordinary.count("{{") == 0


def test_nothing_is_loaded_and_only_the_pages_own_scripts_run(tmp_path: Path) -> None:
    text, page = written(tmp_path, views=[volume_view()])
    assert not re.search(r"https?://|//[a-z]+\.", text)
    for _, attributes in page.tags:
        assert not {"src", "srcset", "action", "data", "style"} & set(attributes)
        assert str(attributes.get("href", "#")).startswith("#")
    assert "url(" not in text
    assert "@import" not in text
    policy = next(attributes["content"] for _, attributes in page.tags if attributes.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert len(scripts) == 3
    for script in scripts:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy


def test_undefined_is_never_a_zero(tmp_path: Path) -> None:
    report = RobustnessReport({CLEAN: {"dice": math.nan}, "PGD_5HU": {"dice": None}}, (), {"PGD_5HU": ""}, "HU")
    text, page = written(tmp_path, report)
    assert page.tables["Without an attack and at worst, for each budget"][1][1:] == ["undefined", "undefined"]
    assert "Without an attack the Dice is undefined. Changes of at most 5 HU make it undefined." in text
    assert "nan" not in re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL).lower()


def test_controls_have_names_and_tables_captions(tmp_path: Path) -> None:
    text, page = written(tmp_path, views=[volume_view()])
    assert text.count("<table") == text.count("<caption>") > 5
    heads = [attributes for tag, attributes in page.tags if tag == "th"]
    assert all(attributes.get("scope") in ("col", "row") for attributes in heads)
    assert all(attributes["type"] == "button" for tag, attributes in page.tags if tag == "button")
    assert text.count('class="sort"') == 6
    for element in re.findall(r"<(?:input|select)\b[^>]*>", text):
        before = text[: text.index(element)]
        assert before.count("<label") > before.count("</label"), element
    for tag, attributes in page.tags:
        if attributes.get("role") in ("region", "img") and tag != "canvas":
            assert attributes["aria-label"]


def test_how_it_was_made(tmp_path: Path) -> None:
    _, page = written(tmp_path, about={"seed": "7"})
    rows = page.tables["Attacks, with the mean number of passes through the network for each case"]
    assert rows[1][:5] == ["PGD_5HU", "5 HU", "12", "10", "5"]
    assert rows[1][5] == sample_report().attacks["PGD_5HU"]
    assert ("dt", "seed") in page.texts
    assert ("dd", "7") in page.texts
    assert ("dt", "torch") in page.texts


@pytest.mark.parametrize(
    ("findings", "expected"),
    [
        (None, "No check of the strength of the attacks was run"),
        ([], "The checks that were run found nothing to object to."),
        (["gradients vanish"], "<li>gradients vanish</li>"),
    ],
)
def test_findings(tmp_path: Path, findings: list[str] | None, expected: str) -> None:
    text, _ = written(tmp_path, findings=findings)
    assert expected in text


def test_a_report_without_anything_is_a_page(tmp_path: Path) -> None:
    text, _ = written(tmp_path, RobustnessReport({}, (), {}, "HU"))
    assert "The report holds no metric." in text
    assert "No images were given for this page." in text


def test_a_whole_volume_stays_below_the_limit(tmp_path: Path) -> None:
    """256 voxels along every axis, empty but for noise in one part, where the label is."""
    image = np.zeros((1, 256, 256, 256), np.float32)
    image[:, 100:180, 100:180, 100:180] = np.random.default_rng(0).normal(size=(1, 80, 80, 80))
    label = np.zeros((256, 256, 256), np.uint8)
    label[120:160, 120:160, 120:160] = 1
    adversarial = image.copy()
    adversarial[:, 100:180, 100:180, 100:180] += 0.1
    path = write_page(
        sample_report(),
        tmp_path / "page.html",
        views=[CaseView("a", image, {"PGD": adversarial}, label=label)],
        limit=500_000,
    )
    assert path.stat().st_size < 500_000
    assert "of 256" in path.read_text(encoding="utf-8")


def test_files_and_limits(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("old")
    with pytest.raises(FileExistsError, match="file: .*page.html exists"):
        write_page(sample_report(), path)
    assert path.read_text() == "old"
    assert write_page(sample_report(), str(path), overwrite=True) == path
    with pytest.raises(ValueError, match="limit: expected room for the tables, .* bytes; got 1000"):
        write_page(sample_report(), tmp_path / "other.html", limit=1000)
    assert not (tmp_path / "other.html").exists()
