"""local_gradients among the hooks, parameters, copies and errors of other people's code."""

from __future__ import annotations

import copy
import threading
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Module
from torch.nn import functional as F

from torch_manualbp import local_gradients
from torch_manualbp.insight import NotReachedError


class Swish(Module):
    """Somebody's own activation, with one that is known inside of it."""

    def forward(self, z: Tensor) -> Tensor:
        return z * torch.sigmoid(z)


class Token(Module):
    """A view of a parameter, to which autograd gives a view of the gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.token = torch.nn.Parameter(torch.randn(3))

    def forward(self) -> Tensor:
        return self.token.unsqueeze(0)


class Tokens(Module):
    """Parameters, or views of them, that come out of layers or go into them."""

    def __init__(self) -> None:
        super().__init__()
        self.made, self.fc = Token(), torch.nn.Linear(3, 3)
        self.row, self.place = torch.nn.Parameter(torch.randn(3)), torch.nn.Parameter(torch.randn(1, 3))
        self.drop, self.same = torch.nn.Dropout(0.5), torch.nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x * self.made()) + self.same(self.row.unsqueeze(0)) + self.drop(self.place)


def test_clipping_does_not_reach_the_record() -> None:
    model = Tokens()
    with local_gradients(model) as record:
        model(torch.randn(1, 3)).square().sum().backward()
    before = {name: (record[name].delta.clone(), record[name].da.clone()) for name in record}
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    for name, (delta, da) in before.items():
        assert torch.equal(record[name].delta, delta), name
        assert torch.equal(record[name].da, da), name


def test_a_parameter_keeps_no_hook() -> None:
    model = Tokens()
    x = torch.randn(1, 3, requires_grad=True)
    with local_gradients(model) as record:
        model(x).sum().backward()
    assert all(not t._backward_hooks for t in (x, *model.parameters()))
    delta = record["drop"].delta.clone()
    model(x).sum().backward()
    assert torch.equal(record["drop"].delta, delta)


def test_each_forward_has_its_own_gradient_of_a_parameter() -> None:
    model = torch.nn.Sequential(torch.nn.Dropout(0.0))
    parameter = torch.nn.Parameter(torch.ones(3))
    with local_gradients(model) as record:
        for factor in (2.0, 3.0):
            (model(parameter) * factor).sum().backward()
    assert [call.delta.tolist() for call in record["0"]] == [[2.0] * 3, [3.0] * 3]


@pytest.mark.parametrize("shape", [(2, 3), (2, 4, 3)], ids=str)
@pytest.mark.parametrize("hook", ["register_full_backward_hook", "register_full_backward_pre_hook"])
def test_activations_are_seen_through_backward_hooks(hook: str, shape: tuple[int, ...]) -> None:
    model: Any = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Tanh(), torch.nn.Linear(3, 3), Swish())
    for module in model.modules():
        getattr(module, hook)(lambda *_: None)
    with local_gradients(model) as record:
        model(torch.randn(shape, requires_grad=True)).square().sum().backward()
    for layer, activation in (("0", "1"), ("2", "3")):
        assert torch.equal(record[layer].a, record[activation].a)
        assert torch.equal(record[layer].da, record[activation].da)
        assert not torch.equal(record[layer].da, record[layer].delta)


def test_what_takes_more_than_z_is_no_activation() -> None:
    class Sum(Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return a + b

    class Same(Module):
        def forward(self, z: Tensor) -> Tensor:
            return z

    class Residual(Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2, self.sum, self.same = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3), Sum(), Same()

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.same(self.fc2(self.sum(self.fc1(x), x))))

    model = Residual()
    with local_gradients(model) as record:
        a = model(torch.randn(5, 3))
        a.sum().backward()
    assert not record["fc1"][0].is_activated
    assert torch.equal(record["fc2"].a, a)  # and not what Same hands on


def test_an_error_in_an_activation_is_forgotten() -> None:
    class Failing(Swish):
        fails = True

        def forward(self, z: Tensor) -> Tensor:
            if self.fails:
                raise MemoryError
            return super().forward(z)

    class Network(Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.act, self.fc2 = torch.nn.Linear(3, 3), Failing(), torch.nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.fc2(self.act(self.fc1(x))))

    model: Any = Network()
    with local_gradients(model) as record:
        with pytest.raises(MemoryError):
            model(torch.randn(2, 3))
        model.act.fails = False
        a = model(torch.randn(2, 3))
        a.sum().backward()
    assert torch.equal(record["fc2"].a, a)
    assert torch.equal(record["fc1"][1].a, record["act"].a)


def test_weights_in_a_list() -> None:
    class Listed(Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = torch.nn.ParameterList([torch.randn(3, 3)])

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weights[0]

    model = torch.nn.Sequential(Listed(), torch.nn.Tanh())
    with local_gradients(model) as record:
        model(torch.randn(2, 3)).sum().backward()
    assert torch.equal(record["0"].z, record["1"].z)
    assert torch.equal(record["0"].a, record["1"].a)


def test_outputs_in_a_dataclass() -> None:
    @dataclass
    class Output:
        name: str
        logits: Tensor

    class Network(Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(3, 3))

        def forward(self, *, x: Tensor) -> Output:
            return Output("logits", x @ self.weight)

    model = Network()
    with local_gradients(model) as record:
        logits = model(x=torch.randn(2, 3)).logits
        logits.sum().backward()
    assert torch.equal(record[""].z, logits)
    assert torch.equal(record[""].delta, torch.ones(2, 3))


def test_a_copy_of_the_model_is_not_watched() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Tanh())
    with local_gradients(model) as record:
        twin = copy.deepcopy(model)
        twin(torch.randn(2, 3)).sum().backward()
        model(torch.randn(2, 3)).sum().backward()
    twin(torch.randn(2, 3)).sum().backward()
    assert len(record["0"]) == 1


def test_clipping_after_a_pass_that_failed() -> None:
    model = Tokens()
    x = torch.randn(1, 3)

    def fail(_: Tensor) -> None:
        raise MemoryError

    with local_gradients(model) as record:
        handle = model.fc.bias.register_hook(fail)
        with pytest.raises(MemoryError):
            model(x).sum().backward()
        handle.remove()
        model.zero_grad()
        model(x).square().sum().backward()
    before = record["made"][1].delta.clone()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    assert torch.equal(record["made"][1].delta, before)


def test_calls_of_other_threads_are_not_recorded() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    x = torch.randn(5, 3)
    errors: list[BaseException] = []

    def train() -> None:
        try:
            for _ in range(30):
                with local_gradients(model) as record:
                    model(x).sum().backward()
                assert [len(layer) for layer in record.values()] == [1, 1, 1]
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=train) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())


def test_a_thread_that_was_begun_inside_is_named() -> None:
    model = torch.nn.Linear(3, 4)

    def train() -> None:
        with local_gradients(model):
            thread = threading.Thread(target=lambda: model(torch.randn(5, 3)).sum().backward())
            thread.start()
            thread.join()

    refused = "^no layer of the model was called inside the with block by the thread that entered it$"
    with pytest.raises(NotReachedError, match=refused):
        train()
