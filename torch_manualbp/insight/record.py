"""What was recorded of the layers of a model on the way forward and back."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from torch_manualbp._text import visible

RAISED = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")

__all__ = ["Call", "Layer", "LocalGradients", "NotReachedError"]


class NotReachedError(RuntimeError):
    """No gradient came back to where it was asked for; the message says why."""


@dataclass(eq=False, repr=False)
class Call:
    """One call of a layer.

    ::

        z = x Wᵀ + b         what the weights of the layer make of what goes in
        a = f(z)             f the activation that takes z; a = z where there is none
        δ  = ∂C/∂z
        da = ∂C/∂a

    Of a module without weights, such as an activation, z is what goes in and a what comes out. Each is a tensor of the
    layer's own shape, or what ``reduce`` made of it.
    """

    layer: str
    """The path of the module."""

    x: Any = None
    """What goes in: a⁽ˡ⁻¹⁾, the activations of the layer before."""

    z: Any = None
    a: Any = None
    f: Callable[[Tensor], Tensor] | None = None
    """The activation that made a of z, if it acts on each entry alone and draws no random numbers. Of a module of
    somebody's own this is not known."""

    is_activated: bool = False
    """Whether a is another tensor than z."""

    shape: tuple[int, ...] = ()
    """The shape of z."""

    asks: bool = False
    """Whether z asks for a gradient, so that δ can come."""

    is_under_no_grad: bool = False
    is_recomputed: bool = False
    """Whether the call was made on the way back, as checkpointing does."""

    is_transformed: bool = False
    """Whether it was called inside of a transform of ``torch.func``."""

    is_of_func: bool = False
    """Whether ``torch.func`` takes the gradients, or autograd those of many C at a time."""

    is_differentiated: bool = False
    """Whether gradients of it were taken that are part of C, so that C depends on its weights in other ways as well."""

    batch: int = 0
    """Which forward it is part of: one that begins after gradients have come is another."""

    _delta: Any = None
    _da: Any = None

    def __repr__(self) -> str:
        return f"<call of {visible(self.layer) or 'the model'}: z of shape {self.shape}, ‖δ‖ = {_norm(self)}>"

    def _repr_html_(self) -> str:
        from torch_manualbp.insight.display import of_calls  # notebooks alone ask for it

        return of_calls([self])

    @property
    def is_reached(self) -> bool:
        """Whether a gradient has come back to z."""
        return self._delta is not None

    @property
    def delta(self) -> Any:
        """δ = ∂C/∂z; of several backward passes the sum, or of what ``reduce`` made the last.

        Raises:
            NotReachedError: there is none.
        """
        if self._delta is None:
            raise NotReachedError(self.why_not_reached())
        return self._delta

    @property
    def da(self) -> Any:
        """∂C/∂a, as δ.

        Raises:
            NotReachedError: there is none.
        """
        da = self._da if self.is_activated else self._delta
        if da is None:
            raise NotReachedError(self.why_not_reached())
        return da

    def why_not_reached(self) -> str:
        """Why no gradient came back, in one line."""
        name = visible(self.layer) or "the model"
        if self.is_under_no_grad:
            return f"{name} was called under torch.no_grad(), so nothing comes back to it: call it with gradients on"
        if self.is_of_func:
            return f"gradients of {name} are taken by torch.func or in batches, of no single C: take them by backward()"
        if not self.asks:
            return f"nothing comes back to {name}: neither what goes in nor a parameter of it requires a gradient"
        return f"nothing came back to {name}: call backward() inside the with block, on a loss that depends on it"


class Layer(Sequence[Call]):
    """The calls of one module, in order. ``x``, ``z``, ``a``, ``delta`` and ``da`` are those of its only call.

    Each raises ``RuntimeError`` where there were several calls, or none.
    """

    def __init__(self, name: str, kind: str, is_linear: bool = False) -> None:
        self.name = name
        self.kind = kind
        """The name of the module's class."""

        self.is_linear = is_linear
        """Whether it is a layer of neurons that take all of what comes in, as the article's are."""

        self.all_calls: list[Call] = []

    def __getitem__(self, index: Any) -> Any:
        return self._calls()[index]

    def __len__(self) -> int:
        return len(self._calls())

    def __repr__(self) -> str:
        return f"<{visible(self.name) or 'the model'}: {visible(self.kind)}, called {len(self)} times>"

    def _repr_html_(self) -> str:
        from torch_manualbp.insight.display import of_calls  # notebooks alone ask for it

        return of_calls(self)

    @property
    def x(self) -> Any:
        """What goes in."""
        return self._only().x

    @property
    def z(self) -> Any:
        """What the weights make of it."""
        return self._only().z

    @property
    def a(self) -> Any:
        """a = f(z)."""
        return self._only().a

    @property
    def delta(self) -> Any:
        """δ = ∂C/∂z."""
        return self._only().delta

    @property
    def da(self) -> Any:
        """∂C/∂a."""
        return self._only().da

    def _only(self) -> Call:
        calls = self._calls()
        if len(calls) != 1:
            name = visible(self.name) or "the model"
            todo = f": choose one of the calls, as [{self.name!r}][0]" if calls else ""
            raise RuntimeError(f"{name} was called {len(calls)} times{todo}")
        return calls[0]

    def _calls(self) -> list[Call]:
        """Checkpointing makes a call again on the way back. The second counts if the first was under no_grad (its
        reentrant form), and else the first."""
        again = [call for call in self.all_calls if call.is_recomputed and call.is_reached]
        if again:
            return [call for call in self.all_calls if call.is_reached]
        return [call for call in self.all_calls if not call.is_recomputed]


class LocalGradients(Mapping[str, Layer]):
    """The layers of a model by the paths of their modules, in the order in which they were first called.

    ``print`` shows a table of the norms of δ. A module that has several paths is found by each of them.
    """

    def __init__(self, aliases: Mapping[str, str] | None = None) -> None:
        self._layers: dict[str, Layer] = {}
        self._aliases = dict(aliases or {})

    def add(self, call: Call, kind: str, is_linear: bool = False) -> None:
        """Take a call down."""
        if call.layer not in self._layers:
            self._layers[call.layer] = Layer(call.layer, kind, is_linear)
        self._layers[call.layer].all_calls.append(call)

    def calls(self) -> Iterator[Call]:
        """The calls of all layers."""
        return (call for layer in self._layers.values() for call in layer)

    def __getitem__(self, name: str) -> Layer:
        found = self._layers.get(self._aliases.get(name, name))
        if found is None:
            called = ", ".join(repr(layer) for layer in self._layers) or "none"
            raise KeyError(f"there was no call of a layer {name!r}; those called: {called}")
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    def table(self) -> tuple[list[str], list[list[str]]]:
        """The columns, and a row for each call: layer, class, shape of z, its symbol in a chain of layers, and ‖δ‖."""
        symbols = self.symbols()
        rows = [
            [
                visible(layer.name) or "the model",
                visible(layer.kind),
                str(call.shape),
                symbols.get(id(call.z), "δ"),
                _norm(call),
            ]
            for layer in self._layers.values()
            for call in layer
        ]
        return ["layer", "class", "shape of z", "δ", "‖δ‖"], rows

    def symbols(self) -> dict[int, str]:
        """δ⁽²⁾, δ⁽³⁾ and so on by the ids of their z, where the layers with weights are linear and form a chain:
        layer 1 is the input, as in the article. Empty where they do not, or one is called twice; an explanation has
        names there."""
        weighted = [call for call in self.calls() if call.z is not call.x]
        names = [call.layer for call in weighted]
        is_chain = all(after.x is before.a for before, after in itertools.pairwise(weighted))
        is_chain = is_chain and all(self._layers[name].is_linear for name in names)
        if not is_chain or len(set(names)) < len(names):
            return {}
        return {id(call.z): f"δ⁽{str(n).translate(RAISED)}⁾" for n, call in enumerate(weighted, 2)}

    def __str__(self) -> str:
        columns, rows = self.table()
        widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
        lines = ("  ".join(f"{c:{w}}" for c, w in zip(line, widths, strict=True)) for line in (columns, *rows))
        return "\n".join(line.rstrip() for line in lines)

    def __repr__(self) -> str:
        return f"<LocalGradients: {len(self)} layers, {sum(call.is_reached for call in self.calls())} reached>"

    def _repr_html_(self) -> str:
        from torch_manualbp.insight.display import of_layers  # notebooks alone ask for it

        return of_layers(self)


def _norm(call: Call) -> str:
    if not call.is_reached:
        return "–"
    return f"{call.delta.norm().item():.4g}" if isinstance(call.delta, Tensor) else str(call.delta)
