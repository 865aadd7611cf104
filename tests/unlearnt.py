"""One training step whose forward calls an operation of torch on tensors of which nothing is learnt, against stock."""

from __future__ import annotations

import functools
import itertools
import warnings
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from torch_manualbp import TrainStep
from torch_manualbp.derive import NotDerivableError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of what torch's own tests would like to import
    from torch.testing._internal.common_methods_invocations import op_db

__all__ = ["Case", "cases", "outcome"]

UNDEFINED = ("empty", "new_empty", "resize")
"""Operations whose numbers torch leaves to chance begin with these."""

DTYPES = (torch.float64, torch.float32, torch.complex128, torch.int64, torch.bool)
CASES_OF_OPERATION = 5


class Case:
    """A call of an operation: its function, and arguments of which the tensors come from outside."""

    def __init__(self, name: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.name = name
        self.function = function
        leaves, self.spec = pytree.tree_flatten((args, kwargs))
        self.is_tensor = [isinstance(leaf, Tensor) for leaf in leaves]
        self.tensors = [leaf.detach() for leaf in leaves if isinstance(leaf, Tensor)]
        self.others = [leaf for leaf in leaves if not isinstance(leaf, Tensor)]

    def call(self, tensors: tuple[Tensor, ...]) -> Any:
        given, others = iter(tensors), iter(self.others)
        leaves = [next(given) if is_tensor else next(others) for is_tensor in self.is_tensor]
        args, kwargs = pytree.tree_unflatten(leaves, self.spec)
        return self.function(*args, **kwargs)


class Uses(Module):
    """A layer that learns, next to the call."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 3, dtype=torch.float64)
        self.call = case.call

    def forward(self, x: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        s = torch.zeros((), dtype=torch.float64)
        for t in pytree.tree_leaves(self.call(tensors)):
            if isinstance(t, Tensor) and t.layout is torch.strided and not t.is_quantized:
                numbers = torch.view_as_real(t.resolve_conj()) if t.is_complex() else t
                numbers = numbers.double().reshape(-1).nan_to_num(0.3, 1.7, -2.9)
                s = s + (numbers * torch.linspace(1, 2, numbers.numel(), dtype=torch.float64)).sum()
        return self.layer(x) * (1 + s / (1 + s.abs())), s


def loss(output: tuple[Tensor, Tensor], y: Tensor) -> Tensor:
    return F.mse_loss(output[0], y) + output[1]


def outcome(case: Case) -> str:
    """``equal``, ``refused``, ``torch raises``, or what is wrong."""
    torch.manual_seed(0)
    stock = Uses(case)
    ours = Uses(case)
    ours.load_state_dict(stock.state_dict())
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (stock, ours)]
    step = TrainStep(ours, loss, optimizers[1])
    for i in range(3):
        torch.manual_seed(100 + i)
        x, y = torch.randn(6, 4, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64)
        tensors = [t * 0.5 if i == 1 and t.is_floating_point() else t for t in case.tensors]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                torch.manual_seed(i)
                optimizers[0].zero_grad()
                expected = loss(stock(x, *[t.clone() for t in tensors]), y)
                expected.backward()
                drawn = torch.rand(1)
            except Exception:
                if i == 1:
                    continue
                return "torch raises"
            optimizers[0].step()
            try:
                torch.manual_seed(i)
                C = step((x, *[t.clone() for t in tensors]), y)
                if not torch.equal(drawn, torch.rand(1)):
                    return f"draws other random numbers at step {i + 1}"
            except NotDerivableError as error:
                return "refused" if i == 0 else f"refused at step {i + 1}: {error}"
            except ValueError as error:
                return "refused" if i == 0 and "make it dense" in str(error) else f"{type(error).__name__}: {error}"
            except Exception as error:
                return f"{type(error).__name__}: {str(error)[:150]}"
        for a, b in [(expected, C), *zip(stock.parameters(), ours.parameters(), strict=True)]:
            if not torch.allclose(a.detach(), b.detach(), rtol=1e-10, atol=1e-12):
                return f"off by {(a - b).abs().max().item():.1e} at step {i + 1}"
    return "equal"


def cases(part: int, parts: int, per_operation: int = CASES_OF_OPERATION) -> Iterator[Case]:
    """Samples of each entry of a part of torch's own list of operations: as a function, and of the first sample also as
    a method, in place and with ``out=``."""
    for op in op_db[part::parts]:
        dtype = next((d for d in DTYPES if d in op.supported_dtypes("cpu")), None)
        if dtype is None or op.name.startswith(UNDEFINED):
            continue
        name = f"{op.name}{'.' + op.variant_test_name if op.variant_test_name else ''}"
        function = _without_seed(op.op, torch, op.name)
        torch.manual_seed(0)
        samples = op.sample_inputs("cpu", dtype, requires_grad=False)
        for i, sample in enumerate(itertools.islice(samples, per_operation)):
            args = (sample.input, *sample.args)
            if any(leaf.layout is not torch.strided for leaf in pytree.tree_leaves(args) if isinstance(leaf, Tensor)):
                continue  # no input of a step
            yield Case(f"{name} {i}", function, args, sample.kwargs)
            if i:
                continue
            if op.method_variant is not None:
                method = _without_seed(op.method_variant, Tensor, op.name)
                yield Case(f"{name} method", method, args, sample.kwargs)
            if op.inplace_variant is not None:
                in_place = _without_seed(op.inplace_variant, Tensor, f"{op.name}_")

                def on_clone(t: Tensor, *args: Any, in_place: Any = in_place, **kwargs: Any) -> Any:
                    return in_place(t.clone(), *args, **kwargs)

                yield Case(f"{name} in place", on_clone, args, sample.kwargs)
            if op.supports_out:

                def into(*args: Any, function: Any = function, **kwargs: Any) -> Any:
                    with torch.no_grad():
                        expected = function(*args, **kwargs)
                        out = pytree.tree_map_only(Tensor, torch.empty_like, expected)
                    return function(*args, **kwargs, out=out)

                yield Case(f"{name} out", into, args, sample.kwargs)


def _without_seed(function: Any, host: Any, name: str) -> Any:
    """The function itself where the list has one that sets a seed of its own before it."""
    is_wrapper = isinstance(function, FunctionType) and "wrapper_set_seed" in function.__code__.co_names
    if not is_wrapper:
        return function
    host = torch if name.startswith("nn.") else host
    return functools.reduce(lambda at, part: getattr(at, part, None), name.split("."), host) or function
