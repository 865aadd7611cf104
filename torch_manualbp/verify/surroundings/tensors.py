"""Tensors of other kinds, layouts and dtypes than the plain float tensor, and what watches the tensors of a layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import Module

from torch_manualbp import functional
from torch_manualbp._torch import pytree, reset_compiler
from torch_manualbp.verify.check import DoesNotApply
from torch_manualbp.verify.surroundings.layers import Layer, compare, of_torch, results

__all__ = [
    "dispatches_to_subclasses",
    "keeps_channels_last",
    "keeps_strides",
    "lets_subclasses_take_over",
    "works_in_place",
]


class Logging(Tensor):
    """A subclass that notes the functions it is asked for, and stays what it is through all of them."""

    called: ClassVar[list[Any]] = []

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        cls.called.append(func)
        return super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]


def lets_subclasses_take_over(layer: Layer) -> None:
    """A ``__torch_function__`` subclass is asked for our function wherever torch's layer asks it for torch's; its class
    is kept, and the numbers are torch's."""
    ours, theirs = layer.pair()
    expected, torchs_calls = of_torch(_logged, layer, theirs)
    got, calls = _logged(layer, ours)
    assert {name: type(t) for name, t in got.items()} == {name: type(t) for name, t in expected.items()}
    compare(got, expected, tolerance=layer.tolerance)
    asked = any(call is getattr(functional, getattr(call, "__name__", ""), None) for call in calls)
    assert asked or not torchs_calls, f"asked for {calls}, none a function of ours; torch's for {torchs_calls}"


def _logged(layer: Layer, module: Module) -> tuple[dict[str, Tensor], list[Any]]:
    inputs = [t.detach().as_subclass(Logging).requires_grad_(t.requires_grad) for t in layer.inputs()]
    upstream = torch.ones_like(module(*layer.inputs()).detach())
    Logging.called = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        output = module(*inputs)
    asked = list(Logging.called)
    leaves = [t for t in inputs if t.requires_grad] + list(module.parameters())
    gradients = torch.autograd.grad(output, leaves, upstream)
    found = {"output": output.detach(), **{f"gradient {i}": g for i, g in enumerate(gradients)}}
    return found, asked


class Two(Tensor):
    """A subclass of two tensors of one shape, on each of which every operation runs by ``__torch_dispatch__``."""

    a: Tensor
    b: Tensor

    @staticmethod
    def __new__(cls, a: Tensor, b: Tensor) -> Two:
        two: Two = Tensor._make_wrapper_subclass(cls, a.shape, a.stride(), dtype=a.dtype, device=a.device)
        two.a, two.b = a, b
        return two

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Two({self.a!r}, {self.b!r})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        firsts, seconds = (
            func(*pytree.tree_map_only(Two, part, args), **pytree.tree_map_only(Two, part, kwargs or {}))
            for part in (lambda t: t.a, lambda t: t.b)
        )
        if isinstance(firsts, tuple | list):
            return type(firsts)(_two_of(a, b) for a, b in zip(firsts, seconds, strict=True))
        return _two_of(firsts, seconds)


def _two_of(a: Any, b: Any) -> Any:
    return Two(a, b) if isinstance(a, Tensor) else a


def dispatches_to_subclasses(layer: Layer) -> None:
    """A ``__torch_dispatch__`` subclass that wraps two tensors gives for each torch's output and gradients."""
    ours, theirs = layer.pair()
    expected = of_torch(_doubled, layer, theirs)
    compare(_doubled(layer, ours), expected, tolerance=layer.tolerance)


def _doubled(layer: Layer, module: Module) -> dict[str, Tensor]:
    inputs = []
    for t in layer.inputs():
        other = t.detach() * 0.9 if t.requires_grad else t
        inputs.append(Two(t.detach(), other.detach()).requires_grad_(t.requires_grad))
    parameters = [(n, Two(p.detach(), p.detach() * 2).requires_grad_()) for n, p in module.named_parameters()]

    def run(*inputs: Tensor) -> Tensor:
        output: Tensor = torch.func.functional_call(module, dict(parameters), inputs)
        return output

    found = results(run, inputs, parameters)
    parts: dict[str, Tensor] = {}
    for name, t in found.items():
        assert isinstance(t, Two), f"{name} is a {type(t).__name__}"
        parts |= {f"{name}, first": t.a, f"{name}, second": t.b}
    return parts


def keeps_strides(layer: Layer) -> None:
    """On transposed and on sliced inputs output and gradients have torch's numbers, and each torch's strides or its
    input's."""
    for layout in (_transposed, _sliced):
        _keeps_layout(layer, layout, layer.shape)


def keeps_channels_last(layer: Layer) -> None:
    """The same on channels_last inputs."""
    if layer.image is None:
        raise DoesNotApply("takes no tensor of four dimensions")
    _keeps_layout(layer, _channels_last, layer.image)


LAID_OUT_PLAINLY = {"Linear", "LazyLinear", "RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell"}
"""Layers whose gradient for a transposed input is laid out row by row, where ATen's product imitates the input."""


def _keeps_layout(layer: Layer, layout: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> None:
    def laid_out() -> list[Tensor]:
        return [layout(t.detach()).requires_grad_(t.requires_grad) for t in layer.inputs(shape=shape)]

    ours, theirs = layer.pair()
    torchs = of_torch(results, theirs, laid_out())
    mine = results(ours, laid_out())
    compare(mine, torchs, tolerance=layer.tolerance)
    inputs = laid_out()
    for name, t in torchs.items():
        allowed = {t.stride()}
        # ATen's losses lay their gradients out row by row whatever the input is, and its RReLU the output, too. Ours
        # keep the input's layout.
        if name == "output" and t.shape == inputs[0].shape:
            allowed.add(torch.empty_like(inputs[0]).stride())
        if name.startswith("gradient of input"):
            allowed.add(torch.empty_like(inputs[int(name.split()[-1])]).stride())
            if layer.class_name in LAID_OUT_PLAINLY:
                allowed.add(torch.empty(t.shape, device="meta").stride())
        assert mine[name].stride() in allowed, f"{name}: strides {mine[name].stride()}, torch's {t.stride()}"


def _transposed(t: Tensor) -> Tensor:
    return t.permute(*reversed(range(t.dim()))).contiguous().permute(*reversed(range(t.dim())))


def _sliced(t: Tensor) -> Tensor:
    return torch.stack([t, t], -1)[..., 1]


def _channels_last(t: Tensor) -> Tensor:
    return t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t


def works_in_place(layer: Layer) -> None:
    """``inplace=True`` returns its very input, changed to torch's numbers, and refuses a leaf with torch's error; its
    gradients are torch's, eager, under vmap and compiled."""
    ours, theirs = layer.pair()
    if not hasattr(theirs, "inplace"):
        raise DoesNotApply("torch's class has no inplace")
    ours.inplace = theirs.inplace = True  # type: ignore[assignment]
    probe = layer.inputs()[0].detach()
    if theirs(probe) is not probe:
        raise DoesNotApply("torch's class has an inplace, and does nothing with it")
    z, z_of_torch = layer.inputs()[0].detach(), layer.inputs()[0].detach()
    for module, t in ((ours, z), (theirs, z_of_torch)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            assert module(t) is t, "returns another tensor"
    compare({"input": z}, {"input": z_of_torch}, tolerance=layer.tolerance)
    on_leaf, torchs_on_leaf = (_error_on_a_leaf(layer, module) for module in (ours, theirs))
    assert on_leaf == torchs_on_leaf, f"on a leaf: {on_leaf}, torch's {torchs_on_leaf}"
    refused = []
    for how in (_gradient, _mapped_gradient, _compiled_gradient):
        if how is _compiled_gradient and layer.is_random:
            refused.append("compiled code draws other random numbers")
            continue
        try:
            expected = of_torch(_mapped_gradient if how is _mapped_gradient else _gradient, layer, theirs)
            try:
                mine = how(layer, ours)
            except RuntimeError:
                of_torch(how, layer, theirs)
                raise
        except DoesNotApply as reason:
            refused.append(str(reason))
            continue
        compare(mine, expected, tolerance=layer.tolerance)
    if refused:
        raise DoesNotApply(*refused, partly=True)


def _gradient(layer: Layer, module: Callable[..., Tensor]) -> dict[str, Tensor]:
    x = layer.inputs()[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        (dx,) = torch.autograd.grad((module(x * 2) ** 2).sum(), x)
    return {"gradient": dx}


def _compiled_gradient(layer: Layer, module: Callable[..., Tensor]) -> dict[str, Tensor]:
    reset_compiler()
    return _gradient(layer, torch.compile(module, fullgraph=True, backend="aot_eager"))


def _mapped_gradient(layer: Layer, module: Callable[..., Tensor]) -> dict[str, Tensor]:
    per_sample = torch.func.vmap(torch.func.grad(lambda x: (module(x * 2) ** 2).sum()), randomness="different")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return {"gradient under vmap": per_sample(layer.inputs()[0].detach())}


def _error_on_a_leaf(layer: Layer, module: Module) -> str | None:
    try:
        module(*layer.inputs())
    except RuntimeError as error:
        return str(error)
    return None
