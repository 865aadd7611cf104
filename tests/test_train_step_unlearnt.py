"""What learns nothing inside of a model that learns: each call of torch's is written down as it is, or refused."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from step_cases import Pair
from torch import Tensor, nn
from torch.nn import Module
from torch.nn import functional as F
from unlearnt import cases, outcome

from torch_manualbp import TrainStep
from torch_manualbp.derive import NotDerivableError

pytestmark = pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")

BUILT_IN: Any = (float, int)
"""Types of Python that torch takes for dtypes."""

INF, NAN = float("inf"), float("nan")


class Uses(Module):
    """A layer that learns, times what a function makes of an input of which nothing is learnt."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * (1 + self.function(x).double().sum(-1, keepdim=True).nan_to_num(0.5, 0.25, -0.75) / 8)


class Learns(Module):
    """A function of what learns."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(4, 5), nn.Linear(5, 3)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.function(self.layer(x)))


def assert_trains(model: Module, loss: Any = None, optimizer: Any = None) -> TrainStep:
    pair = Pair(model, loss or nn.MSELoss(), optimizer or (lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9)))
    for i in range(3):
        torch.manual_seed(i)
        x, y = torch.randn(6, 4, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64)
        ours, expected = pair.advance(x, y)
        torch.testing.assert_close(ours, expected, rtol=1e-11, atol=1e-12)
    pair.check()
    return pair.step


class Mode(enum.IntEnum):
    LAST = -1


class Kind(str, enum.Enum):
    TANH = "tanh"


UNLEARNT: Mapping[str, Callable[[Tensor], Any]] = {
    "relu": torch.relu,
    "F.relu": F.relu,
    "F.relu, out of place": lambda x: F.relu(x, inplace=False),
    "nn.ReLU": nn.ReLU(),
    "method relu": lambda x: x.relu(),
    "F.softmax": lambda x: F.softmax(x, -1),
    "F.softmax, dim": lambda x: F.softmax(x, dim=-1),
    "torch.softmax": lambda x: torch.softmax(x, -1),
    "softmax of float32": lambda x: torch.softmax(x, -1, dtype=torch.float32),
    "F.log_softmax": lambda x: F.log_softmax(x, -1),
    "F.softmin": lambda x: F.softmin(x, dim=-1),
    "masked.softmax": lambda x: torch.masked.softmax(x, -1, mask=x > 0),
    "masked.softmax and softmax": lambda x: torch.masked.softmax(x, -1) + 2 * torch.softmax(x, -1),
    **{
        name: getattr(F, name)
        for name in ("gelu", "silu", "elu", "selu", "mish", "hardtanh", "softplus", "leaky_relu", "glu", "relu6")
    },
    "gelu by tanh": lambda x: F.gelu(x, approximate=Kind.TANH.value),
    "softmax over an enumeration's dimension": lambda x: F.softmax(x, Mode.LAST),
    "/ inf": lambda x: x / INF,
    "threshold at −inf": lambda x: F.threshold(x, -INF, 0.0),
    "where, inf and NaN": lambda x: torch.where(x > 0, INF, NAN),
    "masked_fill(-inf)": lambda x: x.masked_fill(x > 0, -INF).softmax(-1),
    "full of NaN": lambda x: torch.full((6, 1), NAN) + x,
    "clamp(-inf, inf)": lambda x: x.clamp(-INF, INF),
    "nan_to_num(NaN)": lambda x: (x / 0).nan_to_num(NAN, INF, -INF),
    "division by 0.0 and by −0.0": lambda x: (1 / (x / INF * 0 - 0.0)) + (x.abs() / 0.0 + 1) + 2 * (x.abs() / -0.0),
    "two numbers of six equal digits": lambda x: x * 0.12345678 + x * 0.12345679 + x * 2 + x * 2.0,
    "NumPy numbers": lambda x: x * np.float32(0.5) + x * np.float64(0.1) + x * np.int64(2) + x.sum(np.int64(1), True),
    "complex numbers": lambda x: (x * complex(0.5, -0.0) * complex(1, 2)).real + (x * 1j).abs(),
    "complex infinity": lambda x: (x + complex(INF, NAN)).imag,
    "dtypes": lambda x: x.to(torch.float32).to(BUILT_IN[0]) + x.to(dtype=BUILT_IN[1]) + x.type(torch.float16),
    "device and layout": lambda x: x + torch.ones(4, device=torch.device("cpu"), layout=torch.strided),
    "memory format": lambda x: x[:, :, None, None].contiguous(memory_format=torch.channels_last).flatten(1),
    "Size": lambda x: x.reshape(x.shape) + torch.zeros(torch.Size((6, 1))),
    "texts": lambda x: torch.einsum("bi, bi -> b", x, x)[:, None] + torch.meshgrid(x[0], x[0], indexing="ij")[0][:1],
    "range, list, tuple": lambda x: x[:, range(2)] + x[:, [0, 1]] + x[:, (1, 2)],
    "index by arrays": lambda x: x[:, np.array([2, 3])] + x[:, np.array([2])],
    "index by an array of booleans": lambda x: x[:, np.array([True, False, True, False])],
    "index by a list of lists": lambda x: x[[[0, 1], [1, 1]]].sum() + x,
    "tensor of an array": lambda x: x * torch.tensor(np.array([1.0, INF, 2.0, 3.0])) + torch.as_tensor(np.arange(4)),
    "tensor of a list": lambda x: x * torch.tensor([1, 2.5, -INF, NAN]),
    "large integers": lambda x: (x * 1000).long().bitwise_xor(0x7FFF_FFFF_FFFF),
    "slices": lambda x: x[::2].repeat(2, 1) + x[-3:, :2].sum(),
    "several results": lambda x: x.max(-1)[0][:, None] + x.sort(dim=-1)[0] + torch.topk(x, 2).values.sum(),
    "nested results": lambda x: torch.histogramdd(x, [2, 2, 2, 2])[1][0] + x[:, :3],
    "statistics of a batch": lambda x: F.batch_norm(x, x.mean(0), x.var(0), training=False),
    "operator of torch.ops": lambda x: torch.ops.aten.slice.Tensor(x, dim=1, start=0, end=2),
    "in place on a clone": lambda x: x.clone().relu_().add_(1).mul_(x),
    "out= of a function that counts no version up": lambda x: torch.kron(x, x, out=_new(36, 16))[:6, :4],
    "out=, written twice": lambda x: torch.mul(x, 2, out=torch.full((6, 4), 3.0, dtype=torch.float64)),
    "full with out=": lambda x: x + torch.full((4,), 3.0, out=_new(4)) + torch.ones(4, out=_new(4)),
}


def _new(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float64)


@pytest.mark.parametrize("name", UNLEARNT)
def test_functions_of_an_input(name: str) -> None:
    assert_trains(Uses(UNLEARNT[name]))


LEARNT: Mapping[str, Callable[[Tensor], Any]] = {
    "/ inf": lambda h: h / INF + h,
    "threshold at −inf": lambda h: F.threshold(h, -INF, 0.0),
    "* 0.0 and * -0.0": lambda h: h * 0.0 + h * -0.0 + h,
    "view_as what learns": lambda h: (h * 2).view_as(h),
    "reshape_as what learns": lambda h: h.reshape_as(h * 2),
    "expand_as and type_as what learns": lambda h: h[:1].expand_as(h).type_as(h) * h,
    "index by arrays": lambda h: h + h[:, np.array([2, 3])].sum() + h[:, np.array([2])],
    "index by a list of lists": lambda h: h + h[[[0, 1], [1, 1]]].sum(),
    "index by what is an input": lambda h: h[torch.arange(6), torch.arange(6) % 5][:, None] + h,
    "sum over a NumPy dimension": lambda h: h + h.sum(np.int64(1), keepdim=True),
    "NumPy numbers": lambda h: h * np.float32(0.5) + np.float64(0.25) * h,
}


@pytest.mark.parametrize("name", LEARNT)
def test_functions_of_what_learns(name: str) -> None:
    assert_trains(Learns(LEARNT[name]))


class Unknown:
    """torch calls it, and nobody can write it down."""

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        return (a - b).abs().sum(-1)


class Foreign(Tensor):
    pass


REFUSED: Mapping[str, tuple[Callable[[Tensor], Any], str]] = {
    "a module": (
        lambda x: F.triplet_margin_with_distance_loss(x, x + 1, x - 1, distance_function=nn.PairwiseDistance()),
        "an argument that is a PairwiseDistance",
    ),
    "an object": (
        lambda x: F.triplet_margin_with_distance_loss(x, x + 1, x - 1, distance_function=Unknown()),
        "an argument that is a Unknown",
    ),
    "a generator": (lambda x: x + torch.rand(4, generator=torch.Generator().manual_seed(0)), "generator"),
    "a long array": (lambda x: x[:, np.arange(40_000) % 4], "a NumPy array of 40000 numbers: too long"),
    "a sparse tensor": (lambda x: x.to_sparse().to_dense(), "sparse"),
    "another shape in place": (lambda x: x.clone().unsqueeze_(0)[0], "changes the shape of a tensor in place"),
    "transposed in place": (lambda x: x.clone().t_().T, "changes the shape of a tensor in place"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_program_can_hold_is_refused_by_name(name: str) -> None:
    function, message = REFUSED[name]
    model = Uses(function)
    step = TrainStep(model.double(), nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=0.1))
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(NotDerivableError, match=message):
        step(torch.randn(6, 4, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64))
    assert all(map(torch.equal, before, model.parameters()))


class Distillation(Module):
    """A frozen teacher inside of the loss."""

    def __init__(self, T: float = 2.0, alpha: float = 0.3, form: str = "F") -> None:
        super().__init__()
        self.teacher = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 3)).requires_grad_(False).double()
        self.T, self.alpha, self.form = T, alpha, form

    def forward(self, s: Tensor, y: Tensor) -> Tensor:
        T = self.T
        if self.form == "no_grad":
            with torch.no_grad():
                soft = F.softmax(self.teacher(y) / T, dim=-1)
        else:
            soft = F.softmax(self.teacher(y) / T, -1) if self.form == "F" else torch.softmax(self.teacher(y) / T, 1)
        if self.form == "log":
            divergence = F.kl_div(F.log_softmax(s / T, -1), soft.log(), reduction="batchmean", log_target=True)
        else:
            divergence = F.kl_div(F.log_softmax(s / T, -1), soft, reduction="batchmean")
        return self.alpha * F.cross_entropy(s, y.argmax(-1)) + (1 - self.alpha) * T**2 * divergence


@pytest.mark.parametrize("form", ["F", "torch", "no_grad", "log"])
@pytest.mark.parametrize("T", [1, 2.0, 4.5])
def test_distillation(T: float, form: str) -> None:
    torch.manual_seed(1)
    assert_trains(nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 3)), Distillation(T, form=form))


class Student(Module):
    """A teacher inside of the model."""

    def __init__(self) -> None:
        super().__init__()
        self.student = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
        self.teacher = nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.LayerNorm(9), nn.Linear(9, 3), nn.Softmax(-1))
        self.teacher.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.student(x) * self.teacher(x)


def test_a_frozen_teacher_inside_of_the_model() -> None:
    torch.manual_seed(1)
    assert_trains(Student())


class TemporalDifference(Module):
    """Huber's loss of Q(s, a) against r + γ max_a' Q⁻(s', a'), with a target network Q⁻; ``double`` chooses a' by Q."""

    def __init__(self, network: Module, double: bool, huber: bool) -> None:
        super().__init__()
        self.target = network
        self.double_q, self.huber = double, huber

    def forward(self, output: tuple[Tensor, Tensor], y: tuple[Tensor, ...]) -> Tensor:
        q, q_next = output
        following, actions, rewards, done = y
        with torch.no_grad():
            of_target = self.target(following)
            if self.double_q:
                best = of_target.gather(1, q_next.argmax(1, keepdim=True)).squeeze(1)
            else:
                best = of_target.max(1)[0]
            wanted = rewards + 0.9 * best * (1 - done)
        taken = q[torch.arange(len(q)), actions]
        return F.smooth_l1_loss(taken, wanted) if self.huber else F.mse_loss(taken, wanted.detach())


class Agent(Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, x: Tensor, following: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            q_next = self.net(following)
        return self.net(x), q_next


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("huber", [False, True])
def test_the_target_of_a_deep_q_network(double: bool, huber: bool) -> None:
    torch.manual_seed(0)
    agent, target = Agent().double(), nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    stock = Agent().double()
    stock.load_state_dict(agent.state_dict())
    loss = TemporalDifference(target.requires_grad_(False), double, huber)
    optimizers = [torch.optim.Adam(m.parameters(), lr=0.01) for m in (agent, stock)]
    step = TrainStep(agent, loss, optimizers[0])
    for i in range(6):
        if i == 3:
            target.load_state_dict(agent.net.state_dict())
        torch.manual_seed(i)
        x, following, rewards = torch.randn(6, 4).double(), torch.randn(6, 4).double(), torch.randn(6).double()
        y = (following, torch.randint(3, (6,)), rewards, (torch.rand(6) < 0.3).double())
        optimizers[1].zero_grad()
        expected = loss(stock(x, following), y)
        expected.backward()
        optimizers[1].step()
        torch.testing.assert_close(step((x, following), y), expected.detach(), rtol=1e-11, atol=1e-12)
    for p, q in zip(agent.parameters(), stock.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-11, atol=1e-12)


def assert_all_right(chosen: Any) -> None:
    wrong = {case.name: said for case in chosen if (said := outcome(case)) not in ("equal", "refused", "torch raises")}
    assert not wrong, "\n".join(f"{name}: {said}" for name, said in wrong.items())


@pytest.mark.filterwarnings("ignore")
def test_some_of_all_operations() -> None:
    assert_all_right(cases(3, 40, per_operation=1))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("part", range(16))
def test_all_operations(part: int) -> None:
    assert_all_right(cases(part, 16))
