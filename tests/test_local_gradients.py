"""local_gradients: z, a, δ and ∂C/∂a of every layer, out of ordinary training code."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Module
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import torch_manualbp
from torch_manualbp import insight, local_gradients
from torch_manualbp.insight import NotReachedError


class Residual(Module):
    """A layer that is called twice, activations in place, as functions and as methods, and a sum in place."""

    def __init__(self, nn: Any) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.fc1(x))
        h = h + torch.tanh(self.fc2(h))
        h = F.gelu(self.fc2(h)) + h
        h += x.sum(-1, keepdim=True)
        return self.fc3(h).sigmoid()


class Convolutional(Module):
    def __init__(self, nn: Any) -> None:
        super().__init__()
        self.conv, self.norm = torch.nn.Conv2d(1, 3, 2), torch.nn.BatchNorm2d(3)
        self.drop, self.fc = torch.nn.Dropout(0.4), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm(self.conv(x.reshape(-1, 1, 2, 2))), inplace=True)
        return self.fc(self.drop(h.flatten(1)))


class Sequences(Module):
    """Outputs that are tuples, and a layer that has both modules and parameters of its own."""

    def __init__(self, nn: Any) -> None:
        super().__init__()
        self.lstm = torch.nn.LSTM(4, 6, batch_first=True)
        self.attention = torch.nn.MultiheadAttention(6, 2, batch_first=True)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h, _ = self.lstm(x.unsqueeze(1).expand(-1, 5, -1))
        h, _ = self.attention(h, h, h)
        return self.fc(h).mean(1)


NETWORKS = (Residual, Convolutional, Sequences)
LIBRARIES = {"ours": torch_manualbp.nn, "torch's": torch.nn}


@pytest.fixture(params=[(n, lib) for n in NETWORKS for lib in LIBRARIES], ids=lambda p: f"{p[0].__name__}, {p[1]}")
def network(request: pytest.FixtureRequest) -> Module:
    cls, library = request.param
    torch.manual_seed(0)
    return cls(LIBRARIES[library]).double()


def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(5, 4, dtype=torch.float64), torch.randint(3, (5,))


def train(model: Module) -> dict[str, Tensor]:
    """The gradients of one pass."""
    x, y = batch()
    F.cross_entropy(model(x), y).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def retained(model: Module) -> dict[str, list[tuple[Tensor, Tensor]]]:
    """(output, its gradient) of each call of each leaf module, by autograd's own retain_grad."""
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def keep(name: str) -> Callable[..., Any]:
        def hook(module: Module, args: Any, output: Any) -> Any:
            first = output[0] if isinstance(output, tuple) else output
            first.retain_grad()
            seen.setdefault(name, []).append((first.detach().clone(), first))
            # The next layer gets another tensor, since an activation in place would write over the retained one.
            return (first.clone(), *output[1:]) if isinstance(output, tuple) else first.clone()

        return hook

    handles = [m.register_forward_hook(keep(name)) for name, m in model.named_modules() if not list(m.children())]
    train(model)
    for handle in handles:
        handle.remove()
    return {name: [(z, first.grad) for z, first in calls if first.grad is not None] for name, calls in seen.items()}


def test_a_gradient_does_not_change_by_a_bit(network: Module) -> None:
    plain = train(copy.deepcopy(network))
    with local_gradients(network) as record:
        watched = train(network)
    assert len(record) >= 3
    assert plain.keys() == watched.keys()
    assert all(torch.equal(plain[name], watched[name]) for name in plain)


def test_what_is_recorded_is_what_autograd_retains(network: Module) -> None:
    expected = retained(copy.deepcopy(network))
    with local_gradients(network) as record:
        train(network)
    compared = 0
    for name, calls in expected.items():
        for (out, gradient), call in zip(calls, record[name], strict=True):
            is_activation = isinstance(network.get_submodule(name), torch.nn.ReLU | torch.nn.Dropout)
            # The clones above may have a sum round once more.
            torch.testing.assert_close(call.a if is_activation else call.z, out, rtol=0, atol=0)
            torch.testing.assert_close(call.da if is_activation else call.delta, gradient, rtol=1e-12, atol=1e-15)
            compared += 1
    assert compared >= 2


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_activation_of_a_layer(library: str) -> None:
    """a = f(z) and δ = ∂C/∂a ⊙ f'(z), whether f is a module, a function or a method, in place or not."""
    model = Residual(LIBRARIES[library]).double()
    with local_gradients(model) as record:
        train(model)
    calls = [*record["fc1"], *record["fc2"], *record["fc3"]]
    assert len(calls) == 4
    for call in calls:
        assert call.is_activated
        z = call.z.clone().requires_grad_()
        a = call.f(z)
        torch.testing.assert_close(a, call.a)
        (slope,) = torch.autograd.grad(a.sum(), z)
        torch.testing.assert_close(call.delta, call.da * slope)
    assert torch.equal(record["fc1"].a, record["act"].a)
    assert torch.equal(record["fc1"].delta, record["act"].delta)
    assert torch.equal(record["fc1"].x, batch()[0])


ACTIVATIONS = [name for name in torch_manualbp.nn.activation.__all__ if name != "Softmax2d"]


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_is_recognised(name: str, library: str) -> None:
    cls = getattr(LIBRARIES[library], name)
    activation = {"Threshold": lambda: cls(0.1, 20.0), **dict.fromkeys(ALONG, lambda: cls(-1))}.get(name, cls)()
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), activation).double()
    with local_gradients(model) as record:
        F.cross_entropy(model(batch()[0]), batch()[1]).backward()
    assert record["0"][0].is_activated
    assert torch.equal(record["0"].a, record["1"].a)
    assert torch.equal(record["0"].da, record["1"].da)
    assert torch.equal(record["0"].delta, record["1"].delta)
    assert (record["0"][0].f is None) == (name in ("GLU", "RReLU", *ALONG))


ALONG = ("LogSoftmax", "Softmax", "Softmin")


def test_without_an_activation_a_is_z() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 3)).double()
    with local_gradients(model) as record:
        train(model)
    assert record["0"].a is record["0"].z
    assert record["0"].da is record["0"].delta
    assert not record["0"][0].is_activated


def test_somebodys_own_activation() -> None:
    class Swish(Module):
        def forward(self, z: Tensor) -> Tensor:
            return z * torch.sigmoid(z)  # whose sigmoid is not the layer's activation

    model = torch.nn.Sequential(torch.nn.Linear(4, 3), Swish()).double()
    with local_gradients(model) as record:
        train(model)
    assert torch.equal(record["0"].a, record["1"].a)
    torch.testing.assert_close(record["0"].a, F.silu(record["0"].z))


def test_an_activation_after_a_change_in_place_is_of_something_else() -> None:
    class Shifted(Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = torch.nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            z = self.fc(x)
            z += 1
            return torch.relu(z)

    model = Shifted().double()
    with local_gradients(model) as record:
        train(model)
    assert record["fc"].a is record["fc"].z
    assert torch.equal(record["fc"].z, model.fc(batch()[0]))


def test_the_articles_numbers(article: ModuleType) -> None:
    network = article.NETWORK
    nn = torch_manualbp.nn
    model = nn.Sequential(
        nn.Linear(4, 2), nn.Sigmoid(), nn.Linear(2, 2), nn.Sigmoid(), nn.Linear(2, 1, bias=False)
    ).double()
    model.load_state_dict(dict(zip(model.state_dict(), network, strict=True)))
    with local_gradients(model) as record:
        nn.MSELoss()(model(article.X), article.Y).backward()
    shown = {
        "z2": record["0"].z, "a2": record["0"].a, "delta2": record["0"].delta,
        "z3": record["2"].z, "a3": record["2"].a, "delta3": record["2"].delta, "s": record["4"].a,
    }  # fmt: skip
    for name, value in shown.items():
        known = torch.tensor(article.KNOWN[name], dtype=torch.float64)
        torch.testing.assert_close(value.flatten(), known, rtol=1e-11, atol=0)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_calls_once(reentrant: bool) -> None:
    class Checkpointed(Residual):
        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(super().forward, x.requires_grad_(), use_reentrant=reentrant)

    plain, checkpointed = Residual(torch.nn).double(), Checkpointed(torch.nn).double()
    checkpointed.load_state_dict(plain.state_dict())
    with local_gradients(plain) as expected:
        train(plain)
    with local_gradients(checkpointed) as record:
        train(checkpointed)
    assert {name: len(layer) for name, layer in record.items()} == {"fc1": 1, "act": 1, "fc2": 2, "fc3": 1}
    for name, layer in expected.items():
        for call, other in zip(layer, record[name], strict=True):
            torch.testing.assert_close(call.delta, other.delta)
            torch.testing.assert_close(call.z, other.z)


def test_several_backward_passes_add_up() -> None:
    model = Residual(torch.nn).double()
    x, y = batch()
    with local_gradients(model) as once:
        train(model)
    with local_gradients(model) as twice:
        C = F.cross_entropy(model(x), y)
        C.backward(retain_graph=True)
        C.backward()
    torch.testing.assert_close(twice["fc1"].delta, 2 * once["fc1"].delta)


def test_a_second_derivative_leaves_no_graph_behind() -> None:
    model = Residual(torch.nn).double()
    x, y = batch()
    with local_gradients(model) as record:
        C = F.cross_entropy(model(x), y)
        gradients = torch.autograd.grad(C, list(model.parameters()), create_graph=True)
    assert all(g.requires_grad for g in gradients)
    assert not record["fc1"].delta.requires_grad
    assert not record["fc1"].z.requires_grad


def test_later_changes_do_not_reach_the_record() -> None:
    """Without a batch, δ of the layer and ∂C/∂b are one tensor, which .grad might take for its own."""
    model = torch.nn.Linear(4, 3).double()
    with local_gradients(model) as record:
        s = model(torch.ones(4, dtype=torch.float64))
        s.square().sum().backward()
        delta = record[""].delta.clone()
        with torch.no_grad():
            s.zero_()
            assert model.bias.grad is not None
            model.bias.grad.zero_()
    assert torch.equal(record[""].delta, delta)
    assert delta.abs().min() > 0
    torch.testing.assert_close(record[""].delta, 2 * record[""].z)


def test_reduce_keeps_no_tensor_alive() -> None:
    model = Residual(torch.nn).double()
    with local_gradients(model) as full:
        train(model)
    shapes = []

    def norm(t: Tensor) -> float:
        shapes.append(t.shape)
        assert not t.requires_grad
        return t.norm().item()

    with local_gradients(model, reduce=norm) as record:
        train(model)
    for name, layer in full.items():
        for call, reduced in zip(layer, record[name], strict=True):
            assert reduced.delta == pytest.approx(call.delta.norm().item())
            assert reduced.z == pytest.approx(call.z.norm().item())
            assert reduced.shape == call.shape
    assert len(shapes) > 10
    outputs = []
    handle = model.fc1.register_forward_hook(lambda m, args, out: outputs.append(weakref.ref(out)))
    with local_gradients(model, reduce=norm):
        train(model)
    handle.remove()
    gc.collect()
    assert [ref() for ref in outputs] == [None]


def test_summary_is_a_reduce() -> None:
    model = Residual(torch.nn).double()
    with local_gradients(model, reduce=insight.summary) as record, local_gradients(model) as full:
        train(model)
    assert record["fc1"].delta.norm == pytest.approx(full["fc1"].delta.norm().item())
    assert "‖" in str(record)


def test_a_module_with_two_paths_is_found_by_both() -> None:
    shared = torch.nn.Linear(3, 3)
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(4, 3), "b": shared, "c": shared}).double()
    x, y = batch()
    with local_gradients(model) as record:
        F.cross_entropy(model["c"](model["b"](model["a"](x))), y).backward()
    assert list(record) == ["a", "b"]
    assert record["c"] is record["b"]
    assert len(record["b"]) == 2


def _stopped(network: Module, error: type[BaseException]) -> None:
    network(batch()[0])
    raise error("in the middle")


def test_none_left_hooked(network: Module) -> None:
    def hooks() -> int:
        return sum(
            len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in network.modules()
        )

    for error in (KeyboardInterrupt, RuntimeError):
        with pytest.raises(error, match="in the middle"), local_gradients(network):
            _stopped(network, error)
        assert hooks() == 0
    with local_gradients(network) as outer, local_gradients(network) as inner:
        train(network)
    assert hooks() == 0
    for name in outer:
        for one, other in zip(outer[name], inner[name], strict=True):
            if one.is_reached:
                assert torch.equal(one.delta, other.delta)


# Bad input


def test_a_loss_that_was_never_backpropagated() -> None:
    model = Residual(torch.nn).double()
    with pytest.raises(NotReachedError, match=r"came back to fc3: call backward\(\) inside the with block"):  # noqa: SIM117
        with local_gradients(model):
            model(batch()[0])


def test_a_layer_that_the_loss_does_not_depend_on() -> None:
    model = torch.nn.ModuleDict({"used": torch.nn.Linear(4, 3), "unused": torch.nn.Linear(4, 3)}).double()
    x, y = batch()
    with local_gradients(model) as record:
        model["unused"](x)
        F.cross_entropy(model["used"](x), y).backward()
    assert record["unused"].z.shape == (5, 3)
    with pytest.raises(NotReachedError, match="nothing came back to unused"):
        _ = record["unused"].delta
    assert "–" in str(record)


def test_under_no_grad() -> None:
    model = Residual(torch.nn).double()
    with pytest.raises(NotReachedError, match=r"fc3 was called under torch.no_grad\(\)"):  # noqa: SIM117
        with local_gradients(model), torch.no_grad():
            model(batch()[0])
    with pytest.raises(NotReachedError, match=r"under torch.no_grad\(\)"):  # noqa: SIM117
        with local_gradients(model), torch.inference_mode():
            model(batch()[0])


def test_a_part_under_no_grad_has_no_delta() -> None:
    model = torch.nn.ModuleDict({"frozen": torch.nn.Linear(4, 4), "head": torch.nn.Linear(4, 3)}).double()
    x, y = batch()
    with local_gradients(model) as record:
        with torch.no_grad():
            h = model["frozen"](x)
        F.cross_entropy(model["head"](h), y).backward()
    assert record["head"].delta.shape == (5, 3)
    with pytest.raises(NotReachedError, match=r"frozen was called under torch.no_grad\(\)"):
        _ = record["frozen"].delta


def test_frozen_layers() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 3)).double()
    model[0].requires_grad_(False)
    with local_gradients(model) as record:
        train(model)
    with pytest.raises(NotReachedError, match="nothing comes back to 0: neither what goes in nor a parameter"):
        _ = record["0"].delta


def test_nothing_was_called() -> None:
    with pytest.raises(NotReachedError, match="no layer of the model was called"):  # noqa: SIM117
        with local_gradients(Residual(torch.nn)):
            pass


def test_a_compiled_model() -> None:
    compiled: list[Any] = [torch.compile(Residual(torch.nn)), torch.compile(torch.nn.Linear(4, 3))]
    for model in (compiled[0], torch.nn.Sequential(compiled[1])):
        with pytest.raises(ValueError, match="is compiled, and its layers do not run one by one"):  # noqa: SIM117
            with local_gradients(model):
                pass
    inner = Residual(torch.nn)
    inner.fc1.compile()
    with pytest.raises(ValueError, match="module fc1 is compiled by its method compile"):  # noqa: SIM117
        with local_gradients(inner):
            pass


@pytest.mark.filterwarnings("ignore:`torch.jit.(script|trace|trace_method)` is deprecated:DeprecationWarning")
def test_a_scripted_model() -> None:
    traced: Any = torch.jit.trace(torch.nn.Linear(4, 3), torch.ones(1, 4))
    with pytest.raises(ValueError, match=r"whose forward is no Python"), local_gradients(traced):
        pass


def test_several_calls_want_an_index() -> None:
    model = Residual(torch.nn).double()
    with local_gradients(model) as record:
        train(model)
    with pytest.raises(RuntimeError, match=r"fc2 was called 2 times: choose one of the calls, as \['fc2'\]\[0\]"):
        _ = record["fc2"].z
    with pytest.raises(KeyError, match="no call of a layer 'fc9'; those called: 'fc1', 'act'"):
        _ = record["fc9"]


def test_empty_batches_and_nan() -> None:
    model = Residual(torch.nn).double()
    with local_gradients(model) as record:
        model(torch.zeros(0, 4, dtype=torch.float64)).sum().backward()
    assert record["fc1"].delta.shape == (0, 6)
    with local_gradients(model) as record:
        model(torch.full((2, 4), torch.nan, dtype=torch.float64)).sum().backward()
    assert record["fc3"].delta.isnan().all()
