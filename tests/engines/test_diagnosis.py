"""Evaluations say what the doctor finds, on the network and in the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import masked_networks as masked
import pytest
import torch
from doctor_networks import BOUNDS, classifier
from evaluators import CPU
from ignite.metrics import Accuracy
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.handlers import from_engine

from monai_smia.attacks import BIM, PGD, Attack, GaussianNoise
from monai_smia.bundle import evaluate_under_attack
from monai_smia.engines import CaseByCase, evaluate_robustness
from monai_smia.engines.diagnosis import doubted
from monai_smia.reports import RobustnessReport

PATIENT = classifier(0)
TOP = "The numbers under attack must not be taken for robustness"


def evaluator(network: torch.nn.Module, batch_size: int = 3) -> SupervisedEvaluator:
    pairs = zip(PATIENT.image, PATIENT.target, strict=True)
    loader = DataLoader(Dataset([{"image": x, "label": y} for x, y in pairs]), batch_size=batch_size)
    accuracy = {"accuracy": Accuracy(output_transform=from_engine(["pred", "label"]))}
    return SupervisedEvaluator(CPU, loader, network, key_val_metric=accuracy, decollate=False)


def named() -> dict[str, Attack]:
    return {"pgd": PGD(PATIENT.loss, eps=PATIENT.eps, bounds=BOUNDS)}


def test_a_sound_network_raises_nothing() -> None:
    report = evaluate_robustness(evaluator(PATIENT.network), named(), progress=False)
    assert report.findings == ()
    assert report.to_markdown().startswith("| attack |")
    assert evaluate_robustness(evaluator(PATIENT.network), named(), diagnose=False, progress=False).findings is None


def test_a_masked_network_is_named_at_the_top_of_every_file(tmp_path: Path) -> None:
    network = masked.Confident(PATIENT.network).eval()
    report = evaluate_robustness(evaluator(network), named(), progress=False)
    assert report.findings is not None
    assert {"zero_gradient", "loss_unmoved"} <= {finding.check for finding in report.findings}
    report.save(tmp_path)
    assert RobustnessReport.load(tmp_path).findings == report.findings
    assert (tmp_path / "robustness.md").read_text().startswith(f"**{TOP}")
    seen = [finding["seen"] for finding in json.loads((tmp_path / "robustness.json").read_text())["findings"]]
    assert seen == [finding.seen for finding in report.findings]


def test_an_evaluation_in_a_folder_shows_it_and_a_resumed_one_does_not_look_again(tmp_path: Path) -> None:
    network = masked.Confident(PATIENT.network).eval()
    shared: dict[str, Any] = {"loss_function": PATIENT.loss, "progress": False, "views": 0}
    outcome = evaluate_under_attack(evaluator(network), named(), out=tmp_path / "a", **shared)
    page = outcome.page.read_text()
    assert page.index(TOP) < page.index("Without an attack the")
    assert page.index("zero_gradient): The gradient") > page.index('id="findings"')
    assert TOP in (tmp_path / "a" / "report.md").read_text().splitlines()[2]
    again = evaluate_under_attack(evaluator(network), named(), out=tmp_path / "a", resume=True, **shared)
    assert again.report.findings == outcome.report.findings != ()
    silent = evaluate_under_attack(evaluator(network), named(), out=tmp_path / "b", diagnose=False, **shared)
    assert silent.report.findings is None
    assert "No check of the strength of the attacks was run" in silent.page.read_text()


def test_an_interrupted_run_finds_what_a_whole_one_does(tmp_path: Path) -> None:
    network = masked.Noisy(PATIENT.network).eval()  # whose draws depend on the global random state
    torch.manual_seed(0)
    whole = CaseByCase(evaluator(network), named(), progress=False).run()
    torch.manual_seed(1)
    first = CaseByCase(evaluator(network), named(), folder=tmp_path, progress=False)
    attacked, calls = first._attacked, list[str]()

    def attack(run: str, engine: Any) -> Any:
        calls.append(run)
        if len(calls) == 2:
            raise KeyboardInterrupt("planted")
        return attacked(run, engine)

    first._attacked = attack  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt, match="planted"):
        first.run()
    resumed = CaseByCase(evaluator(network), named(), folder=tmp_path, resume=True, progress=False).run()
    assert whole.findings is not None
    assert resumed.findings is not None
    assert "random_forward" in {finding.check for finding in whole.findings}
    assert "random_forward" in {finding.check for finding in resumed.findings}
    assert resumed.findings[: len(first.state.findings or ())] == tuple(first.state.findings or ())


def test_what_cannot_be_examined_is_a_note_and_not_an_error() -> None:
    class OnlyForward(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            if image.requires_grad:
                raise NotImplementedError("no gradient")
            output: torch.Tensor = PATIENT.network(image)
            return output

    noise = {"noise": GaussianNoise(PATIENT.loss, eps=0.02, bounds=BOUNDS)}
    (finding,) = evaluate_robustness(evaluator(OnlyForward()), noise, progress=False).findings or ()
    assert (finding.check, finding.severity) == ("not_examined", "note")
    assert finding.seen == "The network was not examined: NotImplementedError: no gradient."


def test_the_plainest_attack_at_the_smallest_budget_is_examined() -> None:
    loss = PATIENT.loss
    many = {
        "a": BIM(loss, eps=0.2),
        "b": PGD(loss, eps=[0.1]),
        "c": BIM(loss, eps=0.1),
        "n": GaussianNoise(loss, eps=0.01),
    }
    assert doubted(many) == "b"
    assert doubted({"n": many["n"]}) == "n"
    assert doubted({"z": BIM(loss, eps=0.0)}) is None
