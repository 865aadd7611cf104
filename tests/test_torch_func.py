"""Models with torch.func, or with gradients of autograd's, inside: recorded and verified rightly, or refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from ordinary import one_of_each
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call, functionalize, grad, hessian, jacfwd, jacrev, jvp, linearize, vjp, vmap
from torch.nn import Linear, Module
from torch.nn import functional as F

from torch_manualbp import local_gradients
from torch_manualbp.insight import NotReachedError, RunStatistics
from torch_manualbp.verify import verify_model


class Net(Module):
    """What the models below have in common; ``inside`` is their forward."""

    def __init__(self, inside: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.fc2, self.head = Linear(3, 5), Linear(5, 2), Linear(2, 1)
        self.drop, self.norm = torch.nn.Dropout(0.3), torch.nn.LayerNorm(5)
        self.inside = inside
        self.double()

    def net(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(torch.tanh(self.fc1(x)))
        return out

    def u(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.net(x))
        return out

    def total(self, x: Tensor) -> Tensor:
        return self.u(x).sum()

    def forward(self, x: Tensor) -> Tensor:
        return self.inside(self, x)


def ones(t: Tensor) -> Tensor:
    return torch.ones_like(t)


def of_vjp(m: Net, x: Tensor) -> Tensor:
    pair: Any = vjp(m.net, x)
    out: Tensor = pair[1](ones(pair[0]))[0].square()
    return out


def physics_informed(m: Net, x: Tensor) -> Tensor:
    """u + ∂u/∂x + ∂²u/∂x², by torch.func."""
    du = vmap(grad(lambda v: m.u(v).squeeze()))
    d2u = vmap(grad(lambda v: du(v[None]).sum()))
    return m.u(x) + du(x) + d2u(x)


def physics_informed_by_autograd(m: Net, x: Tensor) -> Tensor:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        u = m.u(x)
        (du,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        (d2u,) = torch.autograd.grad(du.sum(), x, ones(du.sum()), None, True)
    return u + du + d2u


def per_sample_gradients(m: Net, x: Tensor) -> Tensor:
    def C(weights: Any, v: Tensor) -> Tensor:
        return functional_call(m.fc1, weights, (v,)).square().sum()

    gradients = vmap(grad(C), (None, 0))(dict(m.fc1.named_parameters()), x)
    return gradients["weight"].flatten(1) + gradients["bias"].sum(1, keepdim=True) + m.u(x)


def forward_mode(m: Net, x: Tensor) -> Tensor:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(m.net(forward_ad.make_dual(x, ones(x)))).tangent


def other_dimensions(m: Net, x: Tensor) -> Tensor:
    """Samples that are not the first dimension, and a map inside of a map."""
    h = vmap(m.net, 1)(x.t())
    twice = vmap(vmap(m.net, 1), 1)(x.t()[:, :, None].expand(3, 4, 2))
    return h + twice.sum(1)


INSIDE: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "vmap": lambda m, x: vmap(m.net)(x),
    "vmap of a map": other_dimensions,
    "vmap, random": lambda m, x: vmap(lambda v: m.drop(m.net(v)), randomness="different")(x),
    "vmap(jacrev)": lambda m, x: vmap(jacrev(m.net))(x),
    "vmap(jacfwd)": lambda m, x: vmap(jacfwd(m.net))(x),
    "vmap(grad)": lambda m, x: vmap(grad(lambda v: m.net(v).sum()))(x).square(),
    "vmap(hessian)": lambda m, x: vmap(hessian(lambda v: m.net(v).sum()))(x),
    "vmap(jacrev(grad))": lambda m, x: vmap(jacrev(grad(m.total)))(x),
    "jacrev": lambda m, x: jacrev(m.net)(x).sum((1, 2)),
    "jvp": lambda m, x: jvp(m.net, (x,), (ones(x),))[1],
    "jvp, then a layer": lambda m, x: m.head(torch.tanh(jvp(m.net, (x,), (ones(x),))[1])),
    "jvp(grad)": lambda m, x: jvp(grad(m.total), (x,), (ones(x),))[1],
    "vjp": of_vjp,
    "functionalize": lambda m, x: functionalize(m.net)(x),
    "functional_call": lambda m, x: functional_call(m.fc1, dict(m.fc1.named_parameters()), (x,)).tanh(),
    "physics-informed": physics_informed,
    "physics-informed, by autograd": physics_informed_by_autograd,
    "per-sample gradients": per_sample_gradients,
    "forward_ad": forward_mode,
    "jacobian": lambda m, x: torch.autograd.functional.jacobian(lambda v: m.net(v).sum(0), x, create_graph=True),
    "vectorized jacobian": lambda m, x: torch.autograd.functional.jacobian(
        lambda v: m.net(v).sum(0), x, create_graph=True, vectorize=True
    ),
    "hvp": lambda m, x: torch.autograd.functional.hvp(lambda v: m.net(v).sum(), x, ones(x), create_graph=True)[1],
    "vmap of a norm": lambda m, x: vmap(grad(lambda v: m.norm(m.fc1(v)).square().sum()))(x) + vmap(m.u)(x),
}


def batch(model: Module) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    x = torch.randn(4, 3, dtype=torch.float64)
    return x, torch.randn_like(model(x).detach())


def gradients(model: Module, x: Tensor, y: Tensor) -> list[Tensor | None]:
    model.zero_grad()
    torch.manual_seed(2)
    F.mse_loss(model(x), y).backward()
    return [p.grad for p in model.parameters()]


def same(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b if a is None or b is None else torch.equal(a, b)


@pytest.mark.parametrize("name", INSIDE)
def test_the_record_has_the_gradients_of_the_loss(name: str) -> None:
    """b has a part in C by z alone, so ∂C/∂b is the sum of δ over the samples, and over the calls of the layer."""
    model = Net(INSIDE[name])
    x, y = batch(model)
    expected = gradients(model, x, y)
    with local_gradients(model) as record:
        found = gradients(model, x, y)
    assert all(map(same, found, expected))
    assert len(str(record).splitlines()) == 1 + sum(map(len, record.values()))
    for layer, calls in record.items():
        module = model.get_submodule(layer)
        numbers = [t for call in calls for t in (call.x, call.z, call.a, call._delta, call._da) if t is not None]
        assert not any(torch._C._functorch.is_functorch_wrapped_tensor(t) or t.requires_grad for t in numbers)
        assert all(call.z.shape == call.shape == call.delta.shape for call in calls if call.is_reached)
        if isinstance(module, Linear):
            of_calls = [call.delta.sum(tuple(range(call.delta.dim() - 1))) for call in calls if call.is_reached]
            total = sum(of_calls, torch.zeros_like(module.bias))
            torch.testing.assert_close(total, torch.zeros_like(total) if module.bias.grad is None else module.bias.grad)
    assert any(call.is_reached and call.delta.abs().max() > 0 for call in record.calls())


@pytest.mark.parametrize("name", INSIDE)
def test_the_whole_model_is_verified(name: str) -> None:
    model = Net(INSIDE[name])
    report = verify_model(model, *batch(model), torch.nn.MSELoss())
    assert report.ok, report
    whole = [row for row in report.rows if row.check == "whole model: values, float64"]
    assert {row.verdict for row in whole} == {"ok"}
    json.loads(report.to_json())
    print(report)


FAR_APART = ["vmap(jacrev)", "physics-informed", "physics-informed, by autograd", "jvp"]


@pytest.mark.parametrize("name", one_of_each(FAR_APART, lambda name: ["by autograd" in name]))
def test_a_mistake_inside_is_found(name: str) -> None:
    class Tanh(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(z: Tensor) -> Tensor:
            return torch.tanh(z)

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
            ctx.save_for_backward(output)
            ctx.save_for_forward(output)

        @staticmethod
        def backward(ctx: Any, da: Tensor) -> Tensor:
            (a,) = ctx.saved_tensors
            return da * (1 - a.square() * 1.001)

        @staticmethod
        def jvp(ctx: Any, t: Tensor) -> Tensor:
            (a,) = ctx.saved_tensors
            return t * (1 - a.square())

    class Wrong(Net):
        def net(self, x: Tensor) -> Tensor:
            apply: Any = Tanh.apply
            out: Tensor = self.fc2(apply(self.fc1(x)))
            return out

    model = Wrong(INSIDE[name])
    report = verify_model(model, *batch(model), torch.nn.MSELoss())
    assert not report.ok
    assert any(row.check == "whole model: values, float64" for row in report.failures)


def test_layers_inside_of_a_transform_are_not_verified_by_themselves() -> None:
    model = Net(INSIDE["physics-informed"])
    rows = verify_model(model, *batch(model), torch.nn.MSELoss()).rows
    of_layer = [row for row in rows if row.name.startswith("fc1") and not row.check.startswith("whole")]
    hint = "it is called inside of torch.func, whose tensors are of no size outside: see the whole model"
    inside = [row for row in of_layer if row.hint == hint]
    assert [row.name for row in inside] == ["fc1#2", "fc1#3"]  # the first is outside
    assert {row.verdict for row in inside} == {"does not apply"}
    assert any(row.verdict == "ok" and row.name == "fc1.weight" for row in of_layer)


class Ensemble(Module):
    """Three networks whose parameters are stacked."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        made = (torch.nn.Sequential(Linear(3, 4), torch.nn.Tanh(), Linear(4, 2)) for _ in range(3))
        self.members = torch.nn.ModuleList(made).double()

    def forward(self, x: Tensor) -> Tensor:
        base, states = self.members[0], [dict(m.named_parameters()) for m in self.members]
        stacked = {name: torch.stack([state[name] for state in states]) for name in states[0]}
        out: Tensor = vmap(lambda weights: functional_call(base, weights, (x,)))(stacked)
        return out


def test_an_ensemble_has_the_delta_of_each_member() -> None:
    model = Ensemble()
    x, y = batch(model)
    with local_gradients(model) as record:
        gradients(model, x, y)
    for layer in ("0", "2"):
        delta = record[f"members.0.{layer}"].delta
        assert delta.shape[:2] == (3, 4)
        for i in range(3):
            torch.testing.assert_close(delta[i].sum(0), model.get_submodule(f"members.{i}.{layer}").bias.grad)
    assert verify_model(model, x, y, torch.nn.MSELoss()).ok


@pytest.mark.parametrize("by_func", [False, True])
def test_an_inner_step_is_part_of_the_loss(by_func: bool) -> None:
    """As in model-agnostic meta-learning: δ of either call of fc1 is that of the loss after the inner step."""

    def adapted(m: Any, x: Tensor, shift: Any = (0, 0)) -> Tensor:
        weights = dict(m.fc1.named_parameters())

        def C(w: Any) -> Tensor:
            return (functional_call(m.fc1, w, (x,)) + shift[0]).square().mean()

        if by_func:
            slope = grad(C)(weights)
        else:
            slope = dict(
                zip(weights, torch.autograd.grad(C(weights), list(weights.values()), create_graph=True), strict=True)
            )
        step = {name: w - 0.1 * slope[name] for name, w in weights.items()}
        out: Tensor = m.fc2(torch.tanh(functional_call(m.fc1, step, (x,)) + shift[1]))
        return out

    model = Net(adapted)
    x, y = batch(model)
    shift = [torch.zeros(4, 5, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    expected = torch.autograd.grad(F.mse_loss(adapted(model, x, shift), y), shift)
    with local_gradients(model) as record:
        gradients(model, x, y)
    for call, of_shift in zip(record["fc1"], expected, strict=True):
        torch.testing.assert_close(call.delta, of_shift)
    assert verify_model(model, x, y, torch.nn.MSELoss()).ok


def test_delta_of_each_sample_inside_of_a_map() -> None:
    def inside(m: Any, x: Tensor, shift: Tensor) -> Tensor:
        def u(v: Tensor, e: Tensor) -> Tensor:
            out: Tensor = m.head(torch.tanh(m.fc2(torch.tanh(m.fc1(v) + e)))).squeeze()
            return out

        return vmap(grad(u))(x, shift)

    zeros = torch.zeros(4, 5, dtype=torch.float64, requires_grad=True)
    model = Net(lambda m, x: inside(m, x, zeros))
    x, y = batch(model)
    with local_gradients(model) as record:
        gradients(model, x, y)
    assert zeros.grad is not None
    torch.testing.assert_close(record["fc1"].delta, zeros.grad)


def test_a_gradient_penalty_counts_once() -> None:
    model = Net(lambda m, x: m.u(x))
    x, y = batch(model)
    x.requires_grad_()
    with local_gradients(model) as record:
        u = model(x)
        (du,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        (F.mse_loss(u, y) + du.norm(dim=1).sub(1).square().mean()).backward()
    bias: Any = model.fc1.bias
    torch.testing.assert_close(record["fc1"].delta.sum(0), bias.grad)


def test_reduced_records_are_of_the_last_pass() -> None:
    model = Net(INSIDE["physics-informed, by autograd"])
    x, y = batch(model)
    with local_gradients(model) as whole:
        gradients(model, x, y)
    with local_gradients(model, reduce=torch.linalg.vector_norm) as record:
        gradients(model, x, y)
    for layer in whole:
        torch.testing.assert_close(record[layer].delta, whole[layer].delta.norm())


def test_statistics_leave_the_noise_out() -> None:
    """The gradient of a sample is not δᵀ x where C holds derivatives of the layer."""
    for name in ("physics-informed", "physics-informed, by autograd", "vmap(grad)", "forward_ad"):
        model = Net(INSIDE[name])
        x, y = batch(model)
        statistics = RunStatistics(model, every=1)
        with statistics.step():
            found = gradients(model, x, y)
        (entry,) = statistics.history
        assert entry["noise_scale"] is None
        assert found[0] is not None
        assert entry["layers"]["fc1"]["grad_norm"] == pytest.approx(found[0].norm().item())


def per_sample_only(model: Net, x: Tensor, y: Tensor) -> None:
    def C(weights: Any, x: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(functional_call(model, weights, (x[None],)), y[None])

    weights = {name: p.detach() for name, p in model.named_parameters()}
    vmap(grad(C), (None, 0, 0))(weights, x, y)


def by_linearize(model: Net, x: Tensor, y: Tensor) -> None:
    _, push = linearize(model.net, x)
    F.mse_loss(push(ones(x)), y).backward()


def batched_backward(model: Net, x: Tensor, y: Tensor) -> None:
    out = model(x).sum(0)
    torch.autograd.grad(out, list(model.fc1.parameters()), torch.eye(len(out), dtype=out.dtype), is_grads_batched=True)


@pytest.mark.parametrize(
    ("code", "error", "message"),
    [
        (per_sample_only, NotReachedError, "gradients of fc2 are taken by torch.func or in batches, "),
        (batched_backward, NotReachedError, "gradients of fc2 are taken by torch.func or in batches, "),
        (by_linearize, ValueError, "fc1 is called while make_fx traces it, as torch.func.linearize does, "),
    ],
)
def test_what_has_no_delta_is_refused_by_name(code: Any, error: Any, message: str) -> None:
    model = Net(lambda m, x: m.net(x))
    x, y = batch(model)
    with pytest.raises(error) as caught, local_gradients(model):
        code(model, x, y)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert all(not m._forward_hooks for m in model.modules())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node")
def test_linearize_is_verified() -> None:
    """Its layers are right; the model is not: what linearize returns holds parameters as numbers, so that their
    gradients lack a part, which finite differences of the whole find."""

    def inside(m: Any, x: Tensor) -> Tensor:
        out, push = linearize(m.net, x)
        return push(ones(x)) + out

    model = Net(inside)
    report = verify_model(model, *batch(model), torch.nn.MSELoss(), budget_s=300)
    assert {row.check for row in report.failures} == {"whole model: finite differences"}
