# SPDX-License-Identifier: Apache-2.0
"""The viewer of the page: its controls as HTML; the script fills them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from monai_smia.reports.readout import Readout
from monai_smia.reports.views import CaseView

_PLANES = 3
_PICTURES = (("image", "without an attack"), ("adversarial", "under attack"), ("difference", "change"))
_PREDICTIONS = (("none", "none"), ("clean", "without an attack"), ("attacked", "under attack"))


def within(views: Sequence[CaseView], readout: Readout, room: int) -> list[CaseView]:
    """Views with fewer runs where all of them would not fit into so many bytes one by one.

    Those that stay are the runs that the table by case names: for each metric, the worst of each budget and of all.
    """
    least = sum(math.prod(view.spatial) * (1 + len(view.adversarial)) for view in views)
    if least <= room:
        return list(views)
    place = {case: i for i, case in enumerate(readout.cases)}
    found = []
    for view in views:
        i = place.get(view.case)
        wanted = {
            worst.runs[i]
            for measure in readout.measures
            for worst in (*measure.worst, measure.overall)
            if i is not None and worst.runs
        }
        kept = [run for run in view.adversarial if run in wanted] or list(view.adversarial)
        adversarial = {run: view.adversarial[run] for run in kept}
        predictions = {run: shown for run, shown in view.predictions.items() if run in adversarial}
        found.append(dataclasses.replace(view, adversarial=adversarial, predictions=predictions))
    return found


def images_section(views: Sequence[Mapping[str, Any]], unit: str) -> str:
    """Controls, canvases and the texts beside them."""
    if not views:
        return "<p>No images were given for this page.</p>"
    cases = "".join(f'<option value="{i}">{escape(view["case"])}</option>' for i, view in enumerate(views))
    pictures = _radios("picture", _PICTURES)
    predictions = _radios("prediction", _PREDICTIONS)
    planes = "".join(_plane(i) for i in range(_PLANES))
    return f"""<p id="viewer-error" class="note" role="alert" hidden></p>
<div id="viewer" hidden>
<div class="controls">
<label>Case <select id="view-case">{cases}</select></label>
<label>Attack <select id="view-run"></select></label>
<fieldset><legend>Picture</legend>{pictures}</fieldset>
<fieldset id="view-predictions"><legend>Prediction</legend>{predictions}</fieldset>
<fieldset><legend>Also show</legend>
<label id="view-label-choice"><input type="checkbox" id="view-label" checked> label</label>
<label><input type="checkbox" id="view-cross" checked> cross-hair</label>
</fieldset>
<label>Level [{escape(unit)}] <input type="range" id="view-level"><output id="view-level-value"></output></label>
<label>Window [{escape(unit)}] <input type="range" id="view-window"><output id="view-window-value"></output></label>
</div>
<p class="hint" id="view-hint"></p>
<dl id="view-texts"></dl>
<div class="planes">{planes}</div>
<div class="scales">
<div id="view-scale" class="scale" role="img" aria-label="Colours of the change">
<canvas id="view-bar" width="256" height="1" aria-hidden="true"></canvas>
<div class="ends"><span id="view-scale-low"></span><span>0</span><span id="view-scale-high"></span></div>
<div>change of the image [{escape(unit)}]</div>
</div>
<ul id="view-classes" class="classes" aria-label="Colours of the structures"></ul>
</div>
<p id="view-status" class="visually-hidden" role="status"></p>
<dl id="view-values"></dl>
<ul id="view-notes" class="notes" aria-label="What differs from the original images"></ul>
</div>"""


def _radios(name: str, choices: Sequence[tuple[str, str]]) -> str:
    return "".join(
        f'<label><input type="radio" name="view-{name}" value="{value}"{" checked" if i == 0 else ""}> {text}</label>'
        for i, (value, text) in enumerate(choices)
    )


def _plane(i: int) -> str:
    return (
        f'<figure class="plane" id="plane-{i}"><figcaption id="plane-{i}-title"></figcaption>'
        f'<canvas id="plane-{i}-canvas" tabindex="0" role="img" aria-describedby="view-hint"></canvas>'
        f'<label><span class="visually-hidden" id="plane-{i}-name"></span>'
        f'<input type="range" id="plane-{i}-slice" min="0" step="1"></label>'
        f'<output id="plane-{i}-number"></output></figure>'
    )
