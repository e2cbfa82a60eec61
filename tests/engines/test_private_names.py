"""Private names of ignite, MONAI and torch: one module uses them, and each test says what a new release would break."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import pytest
import torch
from evaluators import CPU, Task
from ignite.engine import Engine, Events
from ignite.metrics import Accuracy, Average
from monai.engines import SupervisedEvaluator
from monai.engines.utils import IterationEvents
from monai.metrics import DiceMetric
from monai.transforms import Compose, LoadImage, LoadImaged
from torch.utils.data.distributed import DistributedSampler

from monai_smia.engines.ignite import private

ROOT = Path(private.__file__).parents[2]
NAMES = {
    "_event_handlers",
    "_fire_event",
    "_internal_run_generator",
    "_process_function",
    "_allowed_events",
    "_parent",
    "_SerialModel",
    "_need_to_sync",
    "_synced_tensors",
    "_register_metrics",
    "_register_handlers",
    "_iteration",
    "__closure__",
    "cell_contents",
    "total_size",
    "num_samples",
    "_version",
}
"""What the issue lists, and what the module uses beside it."""

CELLS = {
    "guards.py": {"cell_contents"},  # of what `captured` gives
    "described.py": {"__closure__", "cell_contents"},  # Python's own, of any function
    "stateful.py": {"__closure__", "cell_contents"},
}
OF_OUR_OWN = {"_iteration"}  # MONAI asks subclasses to write it; calling the parent's is a part of that


def uses(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that touch one of the names, as an attribute, in an import or as the text of a getattr."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and node.attr in NAMES:
            parents = isinstance(node.value, ast.Call) and getattr(node.value.func, "id", "") == "super"
            if not (parents and node.attr in OF_OUR_OWN):
                yield node.lineno, node.attr
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, alias.name) for alias in node.names if alias.name in NAMES)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "setattr", "hasattr"):
            texts = [item.value for item in node.args if isinstance(item, ast.Constant)]
            yield from ((node.lineno, text) for text in texts if text in NAMES)


def test_one_module_uses_them() -> None:
    used = {}
    for path in sorted(ROOT.rglob("*.py")):
        if path == Path(private.__file__):
            continue
        found = [(line, name) for line, name in uses(path) if name not in CELLS.get(path.name, set())]
        if found:
            used[str(path.relative_to(ROOT))] = found
    assert used == {}
    assert len(list(uses(Path(private.__file__)))) > 10  # the reader is not blind


def test_handlers_of_an_engine_and_their_owners() -> None:
    """ignite keeps ``(function, arguments, keywords)`` by event; a filtered handler is wrapped."""
    engine, metric = Engine(lambda engine, batch: batch), Average()

    def plain(engine: Any) -> None:
        pass

    engine.add_event_handler(Events.STARTED, plain)
    metric.attach(engine, "mean")
    engine.add_event_handler(Events.ITERATION_STARTED(every=2), metric.started)
    handlers = private.handlers_of(engine)
    assert [entry[0] for entry in handlers[Events.STARTED]] == [plain]
    assert private.owner_of(plain) is plain
    assert private.owner_of(handlers[Events.EPOCH_COMPLETED][0][0]) is metric
    assert private.owner_of(handlers[Events.ITERATION_STARTED][0][0]) is metric  # its weak reference is dead


def test_a_wrapper_is_found_and_removed_as_the_handler() -> None:
    engine = Engine(lambda engine, batch: batch)

    def handler(engine: Any) -> None:
        pass

    engine.add_event_handler(Events.STARTED, handler)
    entries = private.handlers_of(engine)[Events.STARTED]
    entries[0] = (private.stands_for(lambda *_: None, entries[0][0]), *entries[0][1:])
    assert engine.has_event_handler(handler, Events.STARTED)
    engine.remove_event_handler(handler, Events.STARTED)
    assert not private.handlers_of(engine)[Events.STARTED]


def test_a_handler_before_all_others() -> None:
    engine, seen = Engine(lambda engine, batch: batch), list[str]()
    engine.add_event_handler(Events.STARTED, lambda: seen.append("second"))
    private.add_first(engine, Events.STARTED, lambda: seen.append("first"))
    engine.fire_event(Events.STARTED)
    assert seen == ["first", "second"]


def test_events_are_fired_with_arguments_and_handlers_called_with_theirs() -> None:
    """ignite keeps the engine as a weak reference among the arguments of a handler that takes it."""
    engine, seen = Engine(lambda engine, batch: batch), list[Any]()
    engine.add_event_handler(Events.EXCEPTION_RAISED, lambda engine, error: seen.append((engine, error)))
    engine.add_event_handler(Events.STARTED, lambda engine, name, more: seen.append((engine, name, more)), "a", more=2)
    engine.add_event_handler(Events.COMPLETED, lambda name: seen.append(name), "b")
    error = ValueError("x")
    private.fire(engine, Events.EXCEPTION_RAISED, error)
    for event in (Events.STARTED, Events.COMPLETED):
        private.call(engine, private.handlers_of(engine)[event][0])
    assert seen == [(engine, error), (engine, "a", 2), "b"]


def test_a_run_that_failed_is_forgotten() -> None:
    """Else ignite goes on with the generator of that run, and the next does nothing."""
    done: list[int] = []

    def step(engine: Any, batch: int) -> None:
        if batch < 0:
            raise ValueError("no")
        done.append(batch)

    engine = Engine(step)
    with pytest.raises(ValueError, match="no"):
        engine.run([-1])
    private.forget_run(engine)
    engine.run([1, 2])
    assert done == [1, 2]


def test_an_iteration_without_the_events_around_it() -> None:
    evaluator, seen = Task().evaluator(), list[str]()
    for event in (Events.ITERATION_COMPLETED, IterationEvents.MODEL_COMPLETED):
        evaluator.add_event_handler(event, lambda engine, name: seen.append(name), event.name)
    batch = next(iter(evaluator.data_loader))
    image = evaluator.network.eval()(batch["image"])
    for way in (private.process, private.iteration):
        seen.clear()
        output = way(evaluator, batch)
        assert seen == ["MODEL_COMPLETED"]
        assert torch.equal(torch.stack([item["pred"].argmax(0) for item in output]), image.argmax(1))


def test_events_that_an_engine_knows() -> None:
    evaluator = Task().evaluator()
    assert private.knows_event(evaluator, IterationEvents.FORWARD_COMPLETED)
    assert not private.knows_event(Engine(lambda engine, batch: None), IterationEvents.FORWARD_COMPLETED)


def test_attributes_of_metrics_are_their_counts() -> None:
    metric = Accuracy()
    metric.update((torch.tensor([[0.1, 0.9], [0.9, 0.1]]), torch.tensor([1, 1])))
    attributes = private.attributes_of(metric)
    assert (int(attributes["_num_correct"]), attributes["_num_examples"]) == (1, 2)
    assert {"_device", "_output_transform"} <= private.WIRING & set(attributes)


def test_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    from ignite.distributed import utils

    class Three(type(utils._model)):  # type: ignore[misc]
        def get_world_size(self) -> int:
            return 3

    monkeypatch.setattr(utils, "_model", Three())
    monkeypatch.setattr(utils, "_need_to_sync", False)
    assert idist.get_world_size() == 3
    with private.one_process():
        assert idist.get_world_size() == 1
    assert idist.get_world_size() == 3


def test_what_a_metric_gathered_is_what_it_computes_from() -> None:
    metric = DiceMetric(reduction="none")
    one = torch.tensor([[[[1.0, 0.0]]], [[[1.0, 1.0]]]])
    metric(one, one.flip(0))
    metric.aggregate()
    gathered = private.gathered(metric)
    assert len(gathered[0]) == 2
    private.put_gathered(metric, [torch.tensor([[0.25], [0.5]])])
    assert metric.aggregate().flatten().tolist() == [0.25, 0.5]


def test_the_loader_inside_a_loader() -> None:
    transform = LoadImaged("image", ensure_channel_first=True)
    assert isinstance(private.image_loader(transform), LoadImage)
    assert private.image_loader(transform).ensure_channel_first
    assert private.image_loader("no transform") == "no transform"


def test_postprocessing_is_in_a_closure() -> None:
    post = Task().postprocessing()
    evaluator: SupervisedEvaluator = Task().evaluator(postprocessing=post)
    cells = [
        cell.cell_contents
        for function, _, _ in private.handlers_of(evaluator)[IterationEvents.MODEL_COMPLETED]
        for cell in private.captured(function)
    ]
    assert any(content is post for content in cells)
    assert isinstance(post, Compose)


def test_a_sampler_without_padding() -> None:
    data = list(range(5))
    samplers = [DistributedSampler(data, num_replicas=2, rank=rank, shuffle=False) for rank in range(2)]
    assert [list(sampler) for sampler in samplers] == [[0, 2, 4], [1, 3, 0]]
    assert all(private.is_padded(sampler, 5) for sampler in samplers)
    with private.unpadded(samplers[1], 5):
        assert (list(samplers[1]), len(samplers[1])) == ([1, 3], 2)
        assert not private.is_padded(samplers[1], 5)
    assert list(samplers[1]) == [1, 3, 0]


def test_writes_to_a_tensor_are_counted() -> None:
    tensor = torch.zeros(2, device=CPU)
    before = private.version_of(tensor)
    tensor.add_(1)
    assert private.version_of(tensor) != before
    with torch.inference_mode():
        assert private.version_of(torch.zeros(2)) is None
