"""What a derived step would do otherwise than stock PyTorch, it refuses."""

from __future__ import annotations

import random
import re
from collections import UserDict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from step_cases import CLASSES, FEATURES, Pair, data, mlp
from torch import Tensor
from torch.nn import Module
from torch.nn import functional as F
from torch.nn.modules.module import register_module_forward_hook
from torch.optim import SGD

from torch_manualbp import Rule, TrainStep, nn
from torch_manualbp.derive import NotDerivableError
from torch_manualbp.rules.recording import recorder

Forward = Callable[[Any, Tensor, Tensor], Any]


class Through(Module):
    """fc, then a function of (the module, its output, the input)."""

    last: Any = None
    counter: Tensor

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.fc = nn.Linear(FEATURES, CLASSES)
        self.function = forward
        self.count, self.seen = 0, [0]
        self.held = torch.ones(CLASSES)
        self.generator = torch.Generator()
        self.register_buffer("counter", torch.zeros(()))

    def forward(self, x: Tensor) -> Any:
        return self.function(self, self.fc(x), x)


class Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        return z.sign()

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        return da


def straight(z: Tensor) -> Tensor:
    a: Tensor = Straight.apply(z)  # type: ignore[no-untyped-call]
    return a


class Choosing(Rule):
    """a = z, whose backward depends on a number."""

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return z.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        return da if da.abs().sum().item() > 1 else 2 * da


@torch.jit.script
def scripted(z: Tensor) -> Tensor:
    return z * z.sigmoid()


foreign = torch.nn.Parameter(torch.ones(CLASSES))


def _counts(m: Any, h: Tensor, x: Tensor) -> Tensor:
    m.count += 1
    return h * m.count


def _remembers(m: Any, h: Tensor, x: Tensor) -> Tensor:
    m.last = h.detach()
    return h


def _collects(m: Any, h: Tensor, x: Tensor) -> Tensor:
    m.seen.append(1)
    return h * len(m.seen)


def _replaces(m: Any, h: Tensor, x: Tensor) -> Tensor:
    m.counter = m.counter + 1
    return h


def _assigns(m: Any, h: Tensor, x: Tensor) -> Tensor:
    m.counter.data = m.counter + 1
    return h


def _learns_a_buffer(m: Any, h: Tensor, x: Tensor) -> Tensor:
    m.counter[...] = h.mean()
    return h


def _differentiates_at_once(m: Any, h: Tensor, x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    z = m.fc(x)
    upstream = torch.eye(z.numel(), dtype=z.dtype).reshape(-1, *z.shape)
    (g,) = torch.autograd.grad(z, x, upstream, create_graph=True, is_grads_batched=True)
    return h + g.sum()


def _by_data(m: Any, h: Tensor, x: Tensor) -> Tensor:
    part = h[:, :2]
    with torch.no_grad():
        part.mul_(2)
    return h


REFUSED: dict[str, tuple[Forward, str]] = {
    # what a program would not do again
    "an attribute": (_counts, "forward changes self.count"),
    "an attribute, remembered": (_remembers, "forward changes self.last"),
    "a list": (_collects, "forward changes self.seen"),
    "a buffer, another one": (_replaces, "forward changes self._buffers"),
    "a buffer, its data": (_assigns, "sets the data of a tensor"),
    "a buffer, by what learns": (_learns_a_buffer, "changes a buffer by what learns"),
    "a held tensor": (lambda m, h, x: h * m.held.mul_(2), "a tensor that is neither a buffer"),
    "a parameter": (lambda m, h, x: h * m.fc.bias.data.clamp_(-1, 1), "a tensor that is neither a buffer"),
    "an input": (lambda m, h, x: h * x.mul_(2)[:, :1], "changes an input in place"),
    "Python's random numbers": (lambda m, h, x: h * random.random(), "draws Python's or NumPy's random numbers"),
    "NumPy's random numbers": (lambda m, h, x: h * float(np.random.rand()), "draws Python's or NumPy's random numbers"),
    "a seed": (lambda m, h, x: h * torch.rand(1) if torch.manual_seed(3) else h, "sets torch's seed"),
    "a generator": (lambda m, h, x: h * torch.rand(1, generator=m.generator), "a generator of its own"),
    # what the tape cannot follow
    "a Function": (lambda m, h, x: straight(h), "the Function Straight is autograd's"),
    "a rule that reads numbers": (lambda m, h, x: Choosing.apply(h), r"its rule calls torch\.Tensor\.item"),
    "TorchScript": (lambda m, h, x: scripted(h), "sigmoid"),
    "vmap": (lambda m, h, x: torch.vmap(m.fc)(x), r"under a transform of torch\.func"),
    "backward inside": (lambda m, h, x: h * (h.sum().backward() is None), "is autograd's"),
    "several gradients at once": (_differentiates_at_once, "is_grads_batched"),
    "a foreign parameter": (lambda m, h, x: h * foreign, "a parameter that is not the model's"),
    "a view that is written without a gradient": (_by_data, "the program's numbers are not autograd's"),
    "complex numbers": (lambda m, h, x: torch.view_as_complex(h[:, :4].reshape(-1, 2, 2)).real.sum(), "has no rule"),
    # real numbers
    "float": (lambda m, h, x: h * float(x.mean()), "reads numbers"),
    "numpy": (lambda m, h, x: h * x.numpy()[0, 0], "reads numbers"),
}


def step_of(model: Module, **options: Any) -> TrainStep:
    return TrainStep(model, nn.CrossEntropyLoss(), SGD(model.parameters(), lr=0.05), **options)


@pytest.mark.parametrize("case", REFUSED)
def test_a_model_is_refused(case: str) -> None:
    forward, message = REFUSED[case]
    model = Through(forward)
    x, y = data(0, torch.float32)
    random_state = torch.get_rng_state(), random.getstate()
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(NotDerivableError, match=message):
        step_of(model)(x, y)
    torch.testing.assert_close([p.detach() for p in model.parameters()], before, rtol=0, atol=0)
    assert recorder() is None
    assert not model._forward_hooks
    torch.testing.assert_close(straight(x), x.sign())  # whose apply is autograd's again
    torch.set_rng_state(random_state[0])
    random.setstate(random_state[1])


class Block(Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(FEATURES, FEATURES)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.special.i1(self.fc(x))
        return torch.special.i1e(out) + torch.special.i0e(x)


def test_all_is_listed_also_what_stands_behind_a_refused_call() -> None:
    model = torch.nn.Sequential(Block(), Block())
    with pytest.raises(NotDerivableError) as caught:
        TrainStep(model, lambda h, y: torch.special.i1e(h).mean(), SGD(model.parameters(), lr=0.1))(
            *data(0, torch.float32)
        )
    here = r"\(test_train_step_refused\.py:\d+\)"
    first, *lines = str(caught.value).splitlines()
    assert first == "no step can be derived, because of 6 places:"
    assert len(lines) == 3
    for line, said in zip(
        lines, (rf"0, 1 {here}: torch.*i1 has", rf"0, 1 {here}, loss {here}: torch.*i1e", "1 "), strict=True
    ):
        assert re.match(f"  {said}", line)


def test_forward_hooks_are_part_of_forward() -> None:
    def looks(module: Module, args: Any, output: Tensor) -> None:
        assert output.shape[-1] > 1

    pair: Any = Pair(mlp())
    for model in (pair.ours, pair.stock):
        model.fc1.register_forward_hook(looks)
        model.fc2.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    for i in range(3):
        if i == 2:
            for model in (pair.ours, pair.stock):
                model.fc2.register_forward_hook(lambda module, args, output: output.tanh())
        ours, expected = pair.advance(*data(i))
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
        pair.check()


def test_a_forward_hook_that_collects_is_refused() -> None:
    seen: list[Tensor] = []
    model: Any = mlp()
    model.fc1.register_forward_hook(lambda module, args, output: seen.append(output.detach()))
    with pytest.raises(NotDerivableError, match="forward changes"):
        step_of(model)(*data(0, torch.float32))


def _hook(*_: Any) -> None:
    """Nothing."""


HOOKS: dict[str, Callable[[Any], Any]] = {
    "backward": lambda m: m.fc1.register_full_backward_hook(_hook),
    "backward pre": lambda m: m.fc1.register_full_backward_pre_hook(_hook),
    "gradient": lambda m: m.fc1.weight.register_hook(_hook),
    "accumulated gradient": lambda m: m.fc1.weight.register_post_accumulate_grad_hook(_hook),
    "of all modules": lambda m: register_module_forward_hook(_hook),
}


@pytest.mark.parametrize("case", HOOKS)
@pytest.mark.parametrize("late", [False, True], ids=["before", "between steps"])
def test_hooks_are_refused(case: str, late: bool) -> None:
    model = mlp()
    step = step_of(model)
    x, y = data(0, torch.float32)
    if late:
        step(x, y)
    handle = HOOKS[case](model)
    try:
        with pytest.raises(NotDerivableError, match=r"a (forward|backward|hook).*remove it"):
            step(x, y)
    finally:
        handle.remove()
    step(x, y)


class Holder:
    def __init__(self, y: Tensor) -> None:
        self.y = y


BATCHES: dict[str, tuple[Callable[[Tensor, Tensor], tuple[Any, Any]], str]] = {
    "an object": (lambda x, y: (x, Holder(y)), "a Holder is among inputs and target"),
    "a mapping that is no dict": (lambda x, y: (UserDict(input=x), y), "a UserDict is among inputs and target"),
    "an array": (lambda x, y: ((x, np.ones(5000)), y), "a ndarray is among inputs and target"),
    "a tensor that learns": (lambda x, y: (x.requires_grad_(), y), "asks for a gradient"),
    "a sparse tensor": (lambda x, y: (x.to_sparse(), y), "make it dense"),
}


@pytest.mark.parametrize("case", BATCHES)
def test_a_batch_is_refused(case: str) -> None:
    make, message = BATCHES[case]
    with pytest.raises(ValueError, match=message):
        step_of(mlp())(*make(*data(0, torch.float32)))


def test_an_optimizer_that_calls_the_loss_again_is_refused() -> None:
    model = mlp()
    with pytest.raises(ValueError, match="one whose step needs no closure"):
        TrainStep(model, nn.CrossEntropyLoss(), torch.optim.LBFGS(model.parameters()))


def test_an_optimizer_with_a_parameter_twice_is_refused() -> None:
    model = mlp()
    with pytest.warns(UserWarning, match="duplicate"):
        optimizer = SGD([*model.parameters(), *model.parameters()], lr=0.1)
    with pytest.raises(ValueError, match=r"holds fc1\.weight, .* more than once"):
        TrainStep(model, nn.CrossEntropyLoss(), optimizer)(*data(0, torch.float32))


def test_a_scripted_module_is_refused() -> None:
    model = torch.nn.Sequential(torch.jit.script(torch.nn.Linear(FEATURES, CLASSES)))
    with pytest.raises(ValueError, match="RecursiveScriptModule"):
        step_of(model)


def test_an_exception_of_the_user_s_comes_through_and_leaves_no_trace() -> None:
    def fails(m: Any, h: Tensor, x: Tensor) -> Tensor:
        if m.count == 0:
            raise KeyError("mine")
        return h

    model = Through(fails)
    step = step_of(model)
    x, y = data(0, torch.float32)
    with pytest.raises(KeyError, match="mine"):
        step(x, y)
    assert recorder() is None
    assert not model._forward_hooks
    model.count = 1
    step(x, y)


def test_the_model_s_own_module_may_be_called_loss() -> None:
    class Model(Module):
        def __init__(self) -> None:
            super().__init__()
            self.loss = nn.Linear(FEATURES, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.loss(x)
            return out

    class Weighted(Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(CLASSES))

        def forward(self, output: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(output * self.weight, y)

    model, loss = Model(), Weighted()
    step = TrainStep(model, loss, SGD([*model.parameters(), *loss.parameters()], lr=0.1), keep_deltas=True)
    x, y = data(0, torch.float32)
    expected = loss(model(x), y)
    expected.backward()
    assert loss.weight.grad is not None
    weight = loss.weight.detach() - 0.1 * loss.weight.grad
    torch.testing.assert_close(step(x, y), expected.detach())
    torch.testing.assert_close(loss.weight.detach(), weight)
    assert list(step.deltas) == ["loss"]


NAMES = [
    *("lr", "x", "y", "C", "torch", "step", "momentum", "eps", "beta1", "state", "F", "ones", "lambda"),
    *("W_fc", "z_fc", "delta_fc", "t1", "one", "lr_0"),
]


@pytest.mark.parametrize("optimizer", [SGD, torch.optim.AdamW])
def test_any_name_will_do(optimizer: Any) -> None:
    class Named(Module):
        def __init__(self) -> None:
            super().__init__()
            for name in NAMES:
                self.register_parameter(name, torch.nn.Parameter(torch.rand(CLASSES)))
            keys = ("fc", "it's", "ä ö", "½", "²", "two\nlines", '"""')
            self.layers = torch.nn.ModuleDict({key: nn.Linear(CLASSES, CLASSES) for key in keys})
            self.fc = nn.Linear(FEATURES, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            h: Tensor = self.fc(x)
            for layer in self.layers.values():
                h = layer(h)
            for name in NAMES:
                h = h + self.get_parameter(name)
            return h

    model = Named()
    first, *others = model.parameters()
    step = TrainStep(model, nn.CrossEntropyLoss(), optimizer([{"params": [first]}, {"params": others}], lr=0.1))
    x, y = data(0, torch.float32)
    expected = F.cross_entropy(model(x), y)
    torch.testing.assert_close(step(x, y), expected.detach())


def test_numbers_of_numpy_are_numbers() -> None:
    model = Through(lambda m, h, x: h * np.float64(1.5) / np.sqrt(2.0) + np.float32(0.5) * np.int64(2))
    step = step_of(model)
    x, y = data(0, torch.float32)
    expected = F.cross_entropy(model.fc(x) * 1.5 / 2**0.5 + 1, y)
    torch.testing.assert_close(step(x, y), expected.detach())


class InPlace(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.mark_dirty(z)
        return z.mul_(2)

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        return 2 * da


class InPlaceInTwoParts(InPlace):
    @staticmethod
    def forward(z: Tensor) -> Tensor:  # type: ignore[override]
        return z.mul_(2)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.mark_dirty(*inputs)


@pytest.mark.parametrize("function", [InPlace, InPlaceInTwoParts])
def test_a_function_that_marks_its_argument_dirty_is_refused_by_name(function: Any) -> None:
    class Doubling(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.l = torch.nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Any:
            return function.apply(self.l(x))

    model = Doubling()
    step = TrainStep(model, torch.nn.MSELoss(), torch.optim.SGD(model.parameters(), 0.1))
    with pytest.raises(NotDerivableError, match=rf"{function.__name__} is autograd's: it changes .* \(mark_dirty\)"):
        step(torch.randn(4, 3), torch.randn(4, 2))
