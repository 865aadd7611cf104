"""What ``explain`` does not take, in one clear line each; and the model is then as it was."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from explained import Article, article
from torch import Tensor, nn
from torch.nn import functional as F

from torch_manualbp import explain
from torch_manualbp.derive.tape import NotDerivableError


def refusal(name: Any, index: Any, model: Any = None, error: type[Exception] = ValueError) -> str:
    of_article, x, y = article()
    with pytest.raises(error) as raised:
        explain(of_article if model is None else model, nn.MSELoss(), x, y, name, index)
    message = str(raised.value)
    assert "\n" not in message
    return message


def test_a_name_that_is_not_there() -> None:
    message = refusal("fc2.wieght", (1, 1))
    assert message.startswith("there is no parameter 'fc2.wieght': did you mean 'fc2.weight' of shape (2, 2)")
    assert "there is 'fc1.weight' of shape (2, 4) or" in refusal("zzz", (1,))
    assert refusal("zzz", (1,), model=nn.Tanh()) == "there is no parameter 'zzz': the model has none"


def test_what_is_no_name() -> None:
    model, _, _ = article()
    assert "the weight is a NoneType: give a parameter's name" in refusal(None, (0, 0))
    parameter: Any = dict(model.named_parameters())["fc2.weight"]
    assert "the weight is a Parameter: give the name of it, 'fc2.weight'" in refusal(parameter, (0, 0), model)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ((2, 0), "fc1.weight has the shape (2, 4), and no entry (2, 0): from (0, 0) to (1, 3), negative from the end"),
        (
            (0, -5),
            "fc1.weight has the shape (2, 4), and no entry (0, -5): from (0, 0) to (1, 3), negative from the end",
        ),
        ((1,), "fc1.weight has the shape (2, 4): its index is 2 numbers, such as (0, 0), and not (1,)"),
        (1, "fc1.weight has the shape (2, 4): its index is 2 numbers, such as (0, 0), and not 1"),
        ((0, 1, 2), "fc1.weight has the shape (2, 4): its index is 2 numbers, such as (0, 0), and not (0, 1, 2)"),
        ((0, 1.0), "(0, 1.0) is no index: for fc1.weight of shape (2, 4) give (0, 0)"),
        (slice(1), "slice(None, 1, None) is no index: for fc1.weight of shape (2, 4) give (0, 0)"),
    ],
)
def test_an_index_that_is_not_there(index: Any, message: str) -> None:
    assert refusal("fc1.weight", index, error=IndexError) == message


def test_negative_indices_count_from_the_end() -> None:
    model, x, y = article()
    e = explain(model, nn.MSELoss(), x, y, "fc1.weight", (-1, -4))
    assert e.index == (1, 0)
    assert e.symbol.text == "w_21⁽¹⁾"
    assert explain(model, nn.MSELoss(), x, y, "fc1.bias", torch.tensor(1).item()).index == (1,)  # type: ignore[arg-type]


def test_a_scalar_parameter_has_an_empty_index() -> None:
    class Scaled(Article):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(2.0))

        def forward(self, x: Tensor) -> Any:
            return super().forward(x) * self.scale

    _, x, y = article()
    e = explain(Scaled().double(), nn.MSELoss(), x, y, "scale", ())
    assert abs(e.difference) < 1e-15


def test_what_is_not_learnt() -> None:
    model, _, _ = article()
    model.register_buffer("seen", torch.zeros(3))
    assert refusal("seen", (1,), model) == "seen is a buffer of shape (3,): nothing is learnt of it"
    model.get_parameter("fc2.weight").requires_grad_(False)
    assert "fc2.weight is frozen" in refusal("fc2.weight", (1, 1), model)


def test_a_frozen_layer_on_the_way_is_no_obstacle() -> None:
    model, x, y = article()
    model.get_parameter("fc2.weight").requires_grad_(False)
    assert abs(explain(model, nn.MSELoss(), x, y, "fc1.weight", (1, 3)).value - 0.233779696717) < 1e-12


def test_a_weight_that_C_does_not_depend_on() -> None:
    class Unused(Article):
        def __init__(self) -> None:
            super().__init__()
            self.spare = nn.Linear(2, 2)

    assert "C does not depend on spare.weight[0, 0]" in refusal("spare.weight", (0, 0), Unused().double())

    class Detached(Article):
        def forward(self, x: Tensor) -> Any:
            return self.fc3(self.fc2(torch.sigmoid(self.fc1(x)).detach()))

    assert "or detaches what it makes of it" in refusal("fc1.weight", (0, 0), Detached().double())
    _, x, y = article()
    assert abs(explain(Detached().double(), nn.MSELoss(), x, y, "fc2.weight", (0, 0)).difference) < 1e-14


def test_a_forward_under_no_grad() -> None:
    class Silent(Article):
        def forward(self, x: Tensor) -> Any:
            with torch.no_grad():
                return super().forward(x)

    assert "or runs under no_grad" in refusal("fc2.weight", (1, 1), Silent().double())


def no_tensor(s: Tensor, y: Tensor) -> Any:
    return 1.0


def test_a_loss_that_is_not_one_number() -> None:
    model, x, y = nn.Sequential(nn.Linear(4, 3)).double(), torch.randn(2, 4).double(), torch.randn(2, 3).double()
    with pytest.raises(ValueError, match="the loss returns a tensor of shape"):
        explain(model, nn.MSELoss(reduction="none"), x, y, "0.weight", (0, 0))
    with pytest.raises(ValueError, match="the loss returns a float"):
        explain(model, no_tensor, x, y, "0.weight", (0, 0))


def test_a_compiled_model() -> None:
    model, _, _ = article()
    compiled = torch.compile(model)
    assert "is compiled" in refusal("fc2.weight", (1, 1), compiled)


def test_what_has_no_rule() -> None:
    class Renormalised(Article):
        def forward(self, x: Tensor) -> Any:
            a = torch.renorm(self.fc1(x), 2, 0, 1.0)
            return self.fc3(torch.renorm(self.fc2(a), 2, 0, 1.0))

    _, x, y = article()
    with pytest.raises(NotDerivableError, match="2 places") as raised:
        explain(Renormalised().double(), nn.MSELoss(), x, y, "fc2.weight", (1, 1))
    assert [what for _, what, _ in raised.value.problems] == ["torch.renorm has no rule"]


class Beside(nn.Module):
    """What has no rule, beside the way of the first layer, and behind the second."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 2)
        self.shared = nn.Parameter(torch.tensor(0.7))

    def forward(self, x: Tensor) -> Any:
        scale = torch.renorm(self.second(x) * self.shared.exp(), 2, 0, 1.0).sum()
        return self.last(torch.tanh(self.first(x)) * scale) * self.shared


@pytest.mark.parametrize(("name", "index"), [("first.weight", (1, 2)), ("last.bias", (0,))])
def test_rules_are_needed_for_what_the_chain_meets_alone(name: str, index: Any) -> None:
    torch.manual_seed(0)
    model, x, y = Beside().double(), torch.randn(2, 3).double(), torch.randn(2, 2).double()
    e = explain(model, nn.MSELoss(), x, y, name, index)
    assert e.value
    assert abs(e.difference) <= 1e-14 * float(e.products.abs().sum())


@pytest.mark.parametrize(("name", "index"), [("second.weight", (1, 2)), ("second.bias", (0,)), ("shared", ())])
def test_a_weight_whose_way_meets_what_has_no_rule(name: str, index: Any) -> None:
    model, x, y = Beside().double(), torch.randn(2, 3).double(), torch.randn(2, 2).double()
    with pytest.raises(NotDerivableError, match="renorm has no rule"):
        explain(model, nn.MSELoss(), x, y, name, index)


def test_a_batch_norm_keeps_its_buffers() -> None:
    model = nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2), nn.Linear(2, 1)).double()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    x, y = torch.randn(3, 4).double(), torch.randn(3, 1).double()
    explained = explain(model, nn.MSELoss(), x, y, "0.weight", (0, 0))
    assert abs(explained.difference) <= 1e-15
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_nothing_is_left_after_an_exception() -> None:
    class Failing(Article):
        def forward(self, x: Tensor) -> Any:
            F.dropout(super().forward(x))
            raise KeyError("mine")

    _, x, y = article()
    model = Failing().double()
    state = torch.get_rng_state()
    with pytest.raises(KeyError, match="mine"):
        explain(model, nn.MSELoss(), x, y, "fc2.weight", (1, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(p.grad is None for p in model.parameters())


def test_NaN_is_shown() -> None:
    model, x, y = article()
    x[0, 1] = math.nan
    e = explain(model, nn.MSELoss(), x, y, "fc1.weight", (1, 1))
    assert math.isnan(e.value)
    assert math.isnan(e.autograd)
    for form in (str(e), e.to_markdown(), e.to_html(), e.to_json()):
        assert "nan" in form.lower()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_an_empty_batch_is_a_sum_over_nothing(reduction: str) -> None:
    model, _, _ = article()
    x, y = torch.zeros(0, 4).double(), torch.zeros(0, 1).double()
    e = explain(model, nn.MSELoss(reduction=reduction), x, y, "fc2.weight", (1, 1))
    assert (e.value, e.autograd, e.count, e.factors) == (0, 0, 0, ())
    for form in (str(e), e.to_markdown(), e.to_html()):
        assert "A sum over none is 0." in form


def test_numbers_that_make_no_sense() -> None:
    model, x, y = article()
    with pytest.raises(ValueError, match="samples=0"):
        explain(model, nn.MSELoss(), x, y, "fc2.weight", (1, 1), samples=0)
    assert explain(model, nn.MSELoss(), x, y, "fc2.weight", (1, 1), paths=0).paths == ()


def test_a_lazy_and_a_complex_parameter() -> None:
    assert "run the model once" in refusal("0.weight", (0, 0), nn.Sequential(nn.LazyLinear(3)))
    assert "complex" in refusal("0.weight", (0, 0), nn.Sequential(nn.Linear(4, 1, dtype=torch.complex128)))
