"""The page in a real browser: no errors, no requests, and everything that moves."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import INSTALL, Browser, chromium
from page_samples import CASES, frame_view, sample_report, volume_view

from monai_smia.reports.page import write_page
from monai_smia.reports.views import CaseView
from monai_smia.reports.wording import shown, sized

BINARY = chromium()
pytestmark = [
    pytest.mark.skipif(BINARY is None, reason=INSTALL),
    pytest.mark.skipif(sys.platform == "win32", reason="drives the browser over POSIX pipes"),
]

READY = "document.readyState === 'complete' && !document.getElementById('viewer').hidden"
FRAMES = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))"
ROWS = "[...document.querySelectorAll('#case-table tbody tr')].map((row) => row.cells[0].firstChild.textContent)"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    path = tmp_path_factory.mktemp("page") / "page.html"
    text = volume_view("text.nii.gz")
    named = CaseView(text.case, text.image, text.adversarial, "healthy", {"PGD_5HU": "ill"}, "healthy")
    write_page(sample_report(), path, views=[volume_view(), frame_view(), named])
    assert BINARY is not None
    with Browser(BINARY) as browser:
        browser.open(path.as_uri(), READY)
        yield browser
        assert browser.problems == []
        assert [address for address in browser.requests if not address.startswith("blob:")] == [path.as_uri()]


def show(page: Browser, view: int) -> None:
    page.ask(f"document.dispatchEvent(new CustomEvent('show-case', {{ detail: {{ view: {view}, run: null }} }}))")
    page.ask("new Promise((done) => setTimeout(done, 200))")


def place(page: Browser) -> list[int]:
    page.ask(FRAMES)
    found: str = page.ask("document.getElementById('viewer').dataset.place")
    return [int(index) for index in found.split(",")]


def picture(page: Browser, plane: int = 0) -> str:
    page.ask(FRAMES)
    found: str = page.ask(f"document.getElementById('plane-{plane}-canvas').toDataURL()")
    return found


def choose(page: Browser, group: str, value: str) -> None:
    page.ask(f'document.querySelector(\'input[name="view-{group}"][value="{value}"]\').click()')


def test_the_table_sorts_and_says_so(page: Browser) -> None:
    assert page.ask(ROWS) == ["b.nii.gz", "a.nii.gz", "c.nii.gz", "d.nii.gz"]
    for expected, way in ((list(CASES), "ascending"), (list(reversed(CASES)), "descending")):
        page.ask("document.querySelector('#case-table button.sort').click()")
        assert page.ask(ROWS) == expected
        heads = "[...document.querySelectorAll('#case-table thead th')].map((head) => head.getAttribute('aria-sort'))"
        assert page.ask(heads) == [way, None, None, None, None, None]
        assert page.ask("document.getElementById('case-status').textContent") == f"Sorted by case, {way}."
    for _ in range(2):  # undefined values stay last both ways
        page.ask("document.querySelectorAll('#case-table button.sort')[2].click()")
        assert page.ask(ROWS)[-1] == "d.nii.gz"


def test_another_run_and_metric_are_shown(page: Browser) -> None:
    page.ask("document.getElementById('case-metric').value = '1'")
    page.ask("document.getElementById('case-run').value = '1'")  # SMIA_5HU: 9, 4, 7.5, 8.5
    page.ask("document.getElementById('case-run').dispatchEvent(new Event('change'))")
    assert page.ask(ROWS) == ["a.nii.gz", "d.nii.gz", "c.nii.gz", "b.nii.gz"]
    cells = "[...document.querySelector('#case-table tbody tr').cells].slice(1).map((cell) => cell.textContent)"
    assert page.ask(cells) == ["1.000", "9.000", "8.000", "5", "SMIA_5HU"]


def test_numbers_are_written_as_python_writes_them(page: Browser) -> None:
    for value in (0.0, 0.41234, -0.5, 12.34, 1234.6, 0.00012, -3e-7, 9.9996):
        assert page.ask(f"shownNumber({value!r})") == shown(value)
        assert page.ask(f"shownSize({value!r})") == sized(value)
    undefined = page.ask("[NaN, null, -Infinity].map((value) => shownNumber(value))")
    assert undefined == ["undefined", "undefined", "−∞"]


def test_sliders_keys_wheel_and_clicks_move_through_a_volume(page: Browser) -> None:
    show(page, 0)
    assert place(page) == [8, 7, 6]
    before = [picture(page, plane) for plane in range(3)]
    slider = "document.getElementById('plane-0-slice')"
    page.ask(f"{slider}.value = 9, {slider}.dispatchEvent(new Event('input'))")
    assert place(page) == [8, 7, 9]
    assert all(picture(page, plane) != before[plane] for plane in range(3))  # its slice, and the others' cross-hairs
    page.ask("document.getElementById('plane-1-canvas').focus()")
    page.press("ArrowUp")
    assert place(page) == [8, 8, 9]
    page.press("PageDown")
    assert place(page) == [8, 0, 9]
    page.ask("document.getElementById('plane-2-canvas').scrollIntoView({ block: 'center' })")
    x, y = page.ask(
        "(() => { const box = document.getElementById('plane-2-canvas').getBoundingClientRect();"
        " return [box.left + box.width / 2, box.top + box.height / 2]; })()"
    )
    page.wheel(x, y, -100)
    page.ask("new Promise((done) => setTimeout(done, 300))")
    assert place(page) == [9, 0, 9]
    page.ask(
        "(() => { const canvas = document.getElementById('plane-0-canvas');"
        " const box = canvas.getBoundingClientRect();"
        " canvas.setPointerCapture = () => {};"
        " const corner = { clientX: box.left + 1, clientY: box.bottom - 1 };"
        " canvas.dispatchEvent(new PointerEvent('pointerdown', corner)); })()"
    )
    assert place(page) == [0, 0, 9]
    assert page.ask("document.getElementById('plane-0-canvas').getAttribute('aria-label')") == (
        "a.nii.gz, axial, slice 9: picture without an attack"
    )


def test_values_are_those_of_the_arrays(page: Browser) -> None:
    show(page, 0)
    place(page)
    view = volume_view()
    found: dict[str, str] = page.ask(
        "Object.fromEntries([...document.querySelectorAll('#view-values > div')].map((pair) =>"
        " [pair.firstChild.textContent, pair.lastChild.textContent]))"
    )
    step = (view.image.max() - view.image.min()) / 255
    sizes = {name: text.removesuffix(" HU") for name, text in found.items() if text.endswith(" HU")}
    numbers = {name: float(text.replace("−", "-")) for name, text in sizes.items()}
    assert numbers["without an attack"] == pytest.approx(view.image[0, 8, 7, 6], abs=step / 2 + 0.05)
    change = view.adversarial["PGD_5HU"] - view.image
    assert numbers["change"] == pytest.approx(change[0, 8, 7, 6], abs=0.03)
    assert found["position"] == "8, 7, 6"
    assert (found["label"], found["prediction under attack"]) == ("lung", "background")


@pytest.mark.parametrize("view", [0, 1])
def test_layers_differ(page: Browser, view: int) -> None:
    show(page, view)
    choose(page, "prediction", "none")
    layers = {}
    for layer in ("image", "adversarial", "difference"):
        choose(page, "picture", layer)
        layers[layer] = picture(page)
    choose(page, "picture", "image")
    for layer in ("clean", "attacked"):
        choose(page, "prediction", layer)
        layers[layer] = picture(page)
    choose(page, "prediction", "none")
    assert picture(page) == layers["image"]
    same = {"attacked"} if view == 1 else set()  # no box under attack
    for layer in set(layers) - {"image"} - same:
        assert layers[layer] != layers["image"], layer
    assert (layers["attacked"] == layers["image"]) is bool(same)
    page.ask("document.getElementById('view-label').click()")
    assert picture(page) != layers["image"]
    page.ask("document.getElementById('view-label').click()")


def test_the_colours_of_pixels(page: Browser) -> None:
    """Changes of +5 and -5 have the colours of the scale's ends; the pixel itself is where the array has it."""
    show(page, 0)
    page.ask("document.getElementById('view-cross').click(), document.getElementById('view-label').click()")
    choose(page, "picture", "difference")
    page.ask(FRAMES)
    view = volume_view()
    change = (view.adversarial["PGD_5HU"] - view.image)[0, :, :, 6]
    for x, y in ((0, 0), (19, 0), (3, 15), (12, 9)):
        colour = page.ask(
            "(() => { const canvas = document.getElementById('plane-0-canvas');"
            f" const x = Math.floor(({x} + 0.5) / 20 * canvas.width);"
            f" const y = Math.floor((15 - {y} + 0.5) / 16 * canvas.height);"
            " const copy = document.createElement('canvas').getContext('2d', { willReadFrequently: true });"
            " copy.drawImage(canvas, x, y, 1, 1, 0, 0, 1, 1);"
            " return [...copy.getImageData(0, 0, 1, 1).data]; })()"
        )
        expected = [128, 10, 30, 255] if change[x, y] > 0 else [8, 64, 129, 255]
        assert colour == expected, (x, y)
    page.ask("document.getElementById('view-cross').click(), document.getElementById('view-label').click()")
    choose(page, "picture", "image")


def test_class_texts_are_shown_and_a_case_leads_to_its_images(page: Browser) -> None:
    show(page, 2)
    assert page.ask("document.getElementById('view-texts').innerText.includes('ill')")
    assert page.ask("document.getElementById('view-predictions').hidden")
    shows = "[...document.querySelectorAll('button.show')].map((one) => one.parentElement.firstChild.textContent)"
    for run, cases in (("1", []), ("0", ["a.nii.gz"])):  # SMIA_5HU, of which there are no images, and PGD_5HU
        page.ask(f"document.getElementById('case-run').value = '{run}'")
        page.ask("document.getElementById('case-run').dispatchEvent(new Event('change'))")
        assert [case for case in page.ask(shows) if case == "a.nii.gz"] == cases
    name = "[...document.querySelectorAll('button.show')].find((one) => one.parentElement.textContent.startsWith('a.'))"
    page.ask(f"{name}.click()")
    page.ask("new Promise((done) => setTimeout(done, 200))")
    assert page.ask("document.getElementById('view-case').selectedOptions[0].textContent") == "a.nii.gz"
    assert page.ask("document.getElementById('view-run').selectedOptions[0].textContent") == "PGD_5HU"


@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_a_narrow_window_in_light_and_dark(tmp_path: Path, dark: bool) -> None:
    path = write_page(sample_report(), tmp_path / "page.html", views=[volume_view()])
    assert BINARY is not None
    with Browser(BINARY, width=400, dark=dark) as page:
        page.open(path.as_uri(), READY)
        assert page.ask("document.documentElement.scrollWidth") <= 400
        colours = page.ask("[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]")
        ink, paper = (sum(map(int, colour[4:-1].split(","))) for colour in colours)
        assert (ink > paper) is dark
        assert page.problems == []
