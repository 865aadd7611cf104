"""What cannot be derived is refused at once and by name, and an exception leaves nothing half-updated."""

from __future__ import annotations

import copy
import itertools
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
import torch
from step_cases import CLASSES, FEATURES, data, mlp
from torch import Tensor
from torch.nn import Module

from torch_manualbp import TrainStep, nn
from torch_manualbp.derive import NotDerivableError


def step_of(model: Module, **options: Any) -> TrainStep:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    return TrainStep(model.double(), nn.CrossEntropyLoss(), optimizer, **options)


def model_of(forward: Callable[[Module, Tensor], Tensor]) -> Module:
    class Model(Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(FEATURES, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return forward(self.fc, x)

    return Model()


REFUSED: dict[str, tuple[Callable[[Any, Tensor], Tensor], str]] = {
    "an operation without a rule": (lambda fc, x: torch.renorm(fc(x), 2, 0, 1.0), "torch.renorm has no rule"),
    "item": (lambda fc, x: fc(x) * fc(x).sum().item(), "torch.Tensor.item reads numbers"),
    "a real number": (lambda fc, x: fc(x) if float(x.sum()) > 0 else -fc(x), "torch.Tensor.__float__ reads numbers"),
    "a list of real numbers": (lambda fc, x: fc(x) * x.tolist()[0][0], "torch.Tensor.tolist reads numbers"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_derived_is_named(case: str) -> None:
    forward, message = REFUSED[case]
    model = model_of(forward)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(NotDerivableError, match=message.replace(".", r"\.")):
        step_of(model)(*data(0))
    torch.testing.assert_close(dict(model.double().state_dict()), {k: v.double() for k, v in before.items()})


def test_every_place_is_listed_by_its_module() -> None:
    class Bad(Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.renorm(x, 2, 0, 1.0) + torch.linalg.svdvals(x).max()

    model = mlp()
    model.add_module("bad", Bad())
    with pytest.raises(NotDerivableError) as caught:
        step_of(model)(*data(0))
    assert [path for path, _, _ in caught.value.problems] == ["bad", "bad"]
    assert "2 places" in str(caught.value)


def test_a_parameter_that_the_optimizer_does_not_hold_is_named() -> None:
    model = mlp().double()
    step = TrainStep(model, nn.CrossEntropyLoss(), torch.optim.SGD(model.get_submodule("fc1").parameters(), lr=0.1))
    with pytest.raises(ValueError, match=r"does not hold fc2\.weight, fc2\.bias, fc3\.weight, fc3\.bias"):
        step(*data(0))


def test_a_loss_of_many_numbers_is_refused() -> None:
    model = mlp().double()
    step = TrainStep(model, nn.CrossEntropyLoss(reduction="none"), torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(ValueError, match=r"a tensor of shape \(9,\): a step takes one number"):
        step(*data(0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accumulate": 0}, "accumulate is 0"),
        ({"clip_norm": -1.0}, "clip_norm is -1.0"),
        ({"clip_value": 0.0}, "clip_value is 0.0"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        step_of(mlp(), **options)


def test_a_wrong_shape_fails_and_changes_nothing() -> None:
    step = step_of(mlp())
    x, y = data(0)
    step(x, y)
    before = copy.deepcopy([*step.model.parameters()])
    with pytest.raises(RuntimeError):
        step(x[:, :3], y)
    torch.testing.assert_close([*step.model.parameters()], before, rtol=0, atol=0)


def _interrupted(step: TrainStep, line: int, x: Tensor, y: Tensor) -> None:
    """Do a step, with an exception before this line of its program."""

    def tracer(frame: FrameType, event: str, arg: Any) -> Any:
        if frame.f_code.co_name != "step" or not frame.f_code.co_filename.startswith("<derived step"):
            return None

        def lines(frame: FrameType, event: str, arg: Any) -> Any:
            if event == "line" and frame.f_lineno == line:
                raise KeyboardInterrupt
            return lines

        return lines

    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        step(x, y)
    finally:
        sys.settrace(before)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_an_exception_at_any_line_leaves_no_parameter_half_updated(optimizer: Any) -> None:
    settings = {"momentum": 0.9, "weight_decay": 0.01} if optimizer is torch.optim.SGD else {}
    model = mlp().double()
    step = TrainStep(model, nn.CrossEntropyLoss(), optimizer(model.parameters(), lr=0.05, **settings))
    x, y = data(0)
    step(x, y)
    source = step.program.splitlines()
    first = next(i for i, text in enumerate(source, 1) if "---- forward" in text)
    update = next(i for i, text in enumerate(source, 1) if "---- update" in text)
    last = next(i for i, text in enumerate(source, 1) if text.strip().startswith("return C"))
    numbers = [n for n in range(first, last + 1) if source[n - 1].strip() and not source[n - 1].strip().startswith("#")]
    seen = set()
    for n in numbers:
        before = copy.deepcopy((model.state_dict(), step.optimizer.state_dict()))
        with pytest.raises(KeyboardInterrupt):
            _interrupted(step, n, x, y)
        after = copy.deepcopy((model.state_dict(), step.optimizer.state_dict()))
        model.load_state_dict(before[0])
        step.optimizer.load_state_dict(copy.deepcopy(before[1]))  # whose tensors it takes
        if n > update:  # what has begun is finished before the exception goes on
            step(x, y)
            before = copy.deepcopy((model.state_dict(), step.optimizer.state_dict()))
        torch.testing.assert_close(after, before, rtol=0, atol=0)
        seen.add(n > update)
    assert seen == {False, True}


def test_a_step_that_is_not_finite_is_left_out_and_counted() -> None:
    step = step_of(mlp(), skip_nonfinite=True)
    x, y = data(0)
    step(x, y)
    before = copy.deepcopy((step.model.state_dict(), step.optimizer.state_dict()))
    assert torch.isnan(step(x * torch.nan, y))
    torch.testing.assert_close((step.model.state_dict(), step.optimizer.state_dict()), before, rtol=0, atol=0)
    assert step.skipped == 1
    assert torch.isfinite(step(x, y))
    assert step.skipped == 1


def test_an_empty_batch_is_what_stock_makes_of_it() -> None:
    step = step_of(mlp())
    x, y = data(0)
    assert torch.isnan(step(x[:0], y[:0]))
    assert all(torch.isfinite(p).all() for p in step.model.parameters())


SETTINGS: tuple[tuple[Any, dict[str, Any], tuple[str, ...]], ...] = (
    (torch.optim.SGD, {}, ("addmm_", "addmv_")),
    (torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.1}, ("addmm_", "addmv_", "_foreach_add_")),
    (torch.optim.SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}, ("addmm_", "addmv_", "_foreach_add_")),
    (torch.optim.AdamW, {}, ("_foreach_add_",)),
    (torch.optim.AdamW, {}, ("_fused_adamw_",)),
)
UNSEEN = pytest.mark.xfail(
    reason="torch's fused kernel counts no versions: that it has run cannot be seen, and it runs twice"
)
INTERRUPTIONS = [
    pytest.param(*case, when, marks=[UNSEEN] if when == "after" and case[2] == ("_fused_adamw_",) else [])
    for case in SETTINGS
    for when in ("before", "after")
]


@pytest.mark.parametrize(("optimizer", "settings", "calls", "when"), INTERRUPTIONS)
def test_an_exception_out_of_any_call_of_the_update_leaves_it_whole(
    optimizer: Any, settings: dict[str, Any], calls: tuple[str, ...], when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = mlp().double()
    step = TrainStep(model, nn.CrossEntropyLoss(), optimizer(model.parameters(), lr=0.05, **settings))
    x, y = data(0)
    step(x, y)
    state = copy.deepcopy((model.state_dict(), step.optimizer.state_dict()))
    step(x, y)
    done = copy.deepcopy((model.state_dict(), step.optimizer.state_dict()))
    for name in calls:
        for nth in itertools.count():
            model.load_state_dict(state[0])
            step.optimizer.load_state_dict(copy.deepcopy(state[1]))  # whose tensors it takes
            with monkeypatch.context() as patch:
                host = torch if name.startswith("_") else Tensor
                failing = _Failing(getattr(host, name), nth, when)
                patch.setattr(host, name, failing if host is torch else lambda *args, _f=failing, **kw: _f(*args, **kw))
                if failing.runs(step, x, y):
                    break
            after = copy.deepcopy((model.state_dict(), step.optimizer.state_dict()))
            torch.testing.assert_close(after, done, rtol=1e-12, atol=1e-14, msg=f"{name}, call {nth}")
        assert nth > 0, f"{name} is not called"


class _Failing:
    """A function whose nth call is interrupted, before or after it has done its work."""

    def __init__(self, function: Any, nth: int, when: str) -> None:
        self.function, self.nth, self.when = function, nth, when
        self.count = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.count += 1
        if self.count == self.nth + 1 and self.when == "before":
            raise KeyboardInterrupt
        result = self.function(*args, **kwargs)
        if self.count == self.nth + 1:
            raise KeyboardInterrupt
        return result

    def runs(self, step: TrainStep, x: Tensor, y: Tensor) -> bool:
        """Do a step. Returns whether it came to its end."""
        try:
            step(x, y)
        except KeyboardInterrupt:
            return False
        return True


def test_after_an_exception_the_gradients_of_a_step_are_gathered_anew() -> None:
    model = mlp().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step = TrainStep(model, nn.CrossEntropyLoss(), optimizer, accumulate=2)
    (x, y), before = data(0), copy.deepcopy(model.state_dict())
    step(x, y)
    step(x, y)
    expected = copy.deepcopy(model.state_dict())
    source = step.program.splitlines()
    section = next(i for i, text in enumerate(source, 1) if "---- gradients" in text)
    for line in (section + 2, section + 3, section + 4):
        model.load_state_dict(before)
        step(x, y)
        with pytest.raises(KeyboardInterrupt):
            _interrupted(step, line, x, y)
        torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
        step(x, y)
        step(x, y)
        torch.testing.assert_close(model.state_dict(), expected, rtol=1e-12, atol=1e-14)
