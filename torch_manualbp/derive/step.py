"""The derived training step."""

from __future__ import annotations

import inspect
import itertools
import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer
from torch.utils import _pytree as pytree

from torch_manualbp.derive.derived import Derived, How, KeptLayer
from torch_manualbp.derive.program import words
from torch_manualbp.derive.update import structure_of

__all__ = ["TrainStep"]

PROGRAMS = 32
"""How many programs are kept, each with memory of its own: those that were used last."""

SCALARS = bool | int | float | complex | str | bytes | torch.dtype | torch.device | None
"""What is all in its repr."""

_requires_grad = operator.attrgetter("requires_grad")
_address: Any = Tensor.data_ptr
_chain = itertools.chain.from_iterable
_values: Any = dict.values


class TrainStep:
    """A training step of a model without an autograd graph, derived from the rules.

    ::

        step = TrainStep(model, loss, optimizer)
        C = step(inputs, target)                  # zero_grad, forward, loss, backward, optimizer.step()
        print(step.source)                        # the program that did it

    A call with shapes, dtypes, training modes and frozen parameters that were not there before derives a program; later
    calls run it. Its numbers are those of stock PyTorch to rounding. Learning rates and the other hyperparameters are
    read from the optimizer at every step, and its state is where the optimizer keeps it.

    Under ``torch.optim.SGD`` the update is folded into the product: ∂C/∂W of a linear layer is never stored, and
    ``.grad`` is left alone. Under any other optimizer, and with clipping or accumulation, gradients go into ``.grad``
    and the optimizer makes its own step.

    A call also derives anew where a module is another one, or has other parameters, buffers or attributes, such as
    the probability of a dropout. After a change inside of what an attribute or a loss function holds, call ``reset()``.

    Args:
        model: of layers of ``torch_manualbp.nn``, or stock ones that have a twin there, and operations that have rules.
        loss: a function or module of (output, target) that returns one number.
        optimizer: of the model's parameters.
        keep_deltas: leave ∂C/∂z of every module's output z in ``deltas``, by module path, until the next step.
        keep_output: leave the model's output in ``output``.
        keep_layers: leave x, z, a, δ and ∂C/∂a of every linear layer in ``layers``, until the next step; it may be set
            for single steps, which have a program of their own.
        compile: hand the whole program to ``torch.compile`` as one graph.
        skip_nonfinite: update nothing where the loss is NaN or infinite, and count it in ``skipped``.
        accumulate: average the gradients of so many calls, and update at the last of them.
        clip_norm: scale the gradient to this norm where it is longer, as ``torch.nn.utils.clip_grad_norm_``.
        clip_value: clamp every entry of the gradient to ± this, as ``torch.nn.utils.clip_grad_value_``.

    Raises:
        NotDerivableError: when called, if the model does what cannot be written out; it lists every place.
        ValueError: an argument is out of its range, or a parameter that learns is not the optimizer's.
    """

    def __init__(
        self,
        model: Module,
        loss: Callable[..., Tensor],
        optimizer: Optimizer,
        *,
        keep_deltas: bool = False,
        keep_output: bool = False,
        keep_layers: bool = False,
        compile: bool = False,
        skip_nonfinite: bool = False,
        accumulate: int = 1,
        clip_norm: float | None = None,
        clip_value: float | None = None,
    ) -> None:
        _check("model", model, isinstance(model, Module), "a torch.nn.Module")
        _check("loss", loss, callable(loss) and not isinstance(loss, type), "a function of (output, target)")
        _check("optimizer", optimizer, isinstance(optimizer, Optimizer), "a torch.optim.Optimizer")
        closure = inspect.signature(optimizer.step).parameters.get("closure")
        calls_back = closure is not None and closure.default is inspect.Parameter.empty
        _check(
            "optimizer", optimizer, not calls_back, "one whose step needs no closure, which would call the step again"
        )
        whole = isinstance(accumulate, int) and accumulate >= 1
        _check("accumulate", accumulate, whole, "a whole number of at least 1")
        _check("clip_norm", clip_norm, clip_norm is None or clip_norm > 0, "a number above 0, or None")
        _check("clip_value", clip_value, clip_value is None or clip_value > 0, "a number above 0, or None")
        self.model = model
        self.loss = loss
        self.optimizer = optimizer
        self.keep_deltas = keep_deltas
        self.keep_output = keep_output
        self.keep_layers = keep_layers
        self.compile = compile
        self.skip_nonfinite = skip_nonfinite
        self.accumulate = accumulate
        self.clip_norm = clip_norm
        self.clip_value = clip_value
        self.deltas: dict[str, Tensor] = {}
        """∂C/∂(output) of every module, by its path, after a step with ``keep_deltas``."""

        self.output: Any = None
        """What the model returned, after a step with ``keep_output``: new tensors at each step, without a graph."""

        self.layers: list[KeptLayer] = []
        """The uses of linear layers in the order of the forward, after a step with ``keep_layers``."""

        self.skipped = 0
        """How many steps updated nothing because their loss was not finite."""

        self.reset()

    def reset(self) -> None:
        """Forget the programs, and derive them anew when they are called for."""
        self._look()
        self._gradients: dict[Tensor, Tensor] = {}
        self._done = 0  # calls since the last update

    def _look(self) -> None:
        """Take down which modules there are and what they hold, and forget the programs of others."""
        roots = [self.model, self.loss] if isinstance(self.loss, Module) else [self.model]
        modules = list(dict.fromkeys(module for root in roots for module in root.modules()))
        scripted = next((type(m).__name__ for m in modules if isinstance(m, torch.jit.ScriptModule)), None)
        if scripted is not None:
            raise ValueError(f"the model holds a {scripted}, whose forward is no Python: give the module that it is of")
        tensors = [d for m in modules for d in (m._parameters, m._buffers)]
        children = [m._modules for m in modules]
        hooks = [(m._forward_hooks, m._forward_pre_hooks, m._backward_hooks, m._backward_pre_hooks) for m in modules]
        self._of_tensors = [d for d in tensors if d]
        self._of_children = [d for d in children if d]
        self._empty = [d for d in (*tensors, *children, *itertools.chain(*hooks)) if not d]
        self._attributes = list(map(vars, modules))
        self._sizes = list(map(len, self._attributes))
        self._children = list(itertools.chain(*map(dict.values, children)))
        self._settings = [
            (operator.itemgetter("_parameters", "_modules", *_own(module)), vars(module)) for module in modules
        ]
        self._programs: dict[str, tuple[Derived, Any]] = {}
        self._last: Derived | None = None
        self._form_of_last: Any = None

    def __getstate__(self) -> dict[str, Any]:
        """All but the programs, which are derived anew when they are called for."""
        forgotten = words("_programs _last _form_of_last _gradients _settings")
        return {name: value for name, value in vars(self).items() if name not in forgotten}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _gradients={})
        self._look()

    @property
    def folds(self) -> bool:
        """Whether the update is part of the program; if not, the optimizer makes a step of its own."""
        return self._structure() is not None

    @property
    def source(self) -> str:
        """The program of the last step, as Python.

        Raises:
            RuntimeError: there was no step yet.
        """
        return self._program().source.text

    def save(self, path: str | Path) -> None:
        """Write the program as a module that imports torch alone.

        Raises:
            RuntimeError: there was no step yet.
        """
        Path(path).write_text(self.source, encoding="utf-8")

    def __call__(self, inputs: Any, target: Any) -> Tensor:
        """One step.

        Args:
            inputs: a tensor, or a tuple of the model's arguments, or a mapping of them by name.
            target: what the loss takes besides the output.

        Returns:
            The loss before the update, a tensor of no dimension.
        """
        structure = self._structure()
        if structure is None:
            return self._through_gradients(inputs, target)
        C = self._run(self._find(inputs, target, structure), inputs, target)
        if self.skip_nonfinite and not torch.isfinite(C):
            self.skipped += 1
        return C

    def backward(self, inputs: Any, target: Any, share: float = 1.0) -> Tensor:
        """Add the gradients, times ``share``, to ``.grad``, and update nothing. Returns the loss."""
        adds = any(p.grad is not None for group in self.optimizer.param_groups for p in group["params"])
        derived = self._find(inputs, target, None, adds, share)
        if adds:
            for p, ours in derived.gradients.items():
                if p.grad is not ours:
                    ours.zero_() if p.grad is None else ours.copy_(p.grad)
        C = self._run(derived, inputs, target)
        for p, gradient in derived.gradients.items():
            p.grad = gradient
        return C

    def derive(self, inputs: Any, target: Any) -> str:
        """The source of the step on such data, without doing it."""
        structure = self._structure()
        share = 1 / self.accumulate if structure is None else 1.0
        return self._find(inputs, target, structure, share=share).source.text

    def _through_gradients(self, inputs: Any, target: Any) -> Tensor:
        if self._done == 0:
            self.optimizer.zero_grad()
        done, self._done = self._done + 1, 0  # after an exception, which may leave a part, with the first again
        C = self.backward(inputs, target, 1 / self.accumulate)
        if self.skip_nonfinite and not torch.isfinite(C):
            self.skipped += 1
        elif done == self.accumulate:
            self.update()
        else:
            self._done = done
        return C

    def update(self) -> None:
        """Clip what is in ``.grad``, and have the optimizer make its step."""
        learnt = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        if self.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(learnt, self.clip_norm)
        if self.clip_value is not None:
            torch.nn.utils.clip_grad_value_(learnt, self.clip_value)
        self.optimizer.step()

    def _run(self, derived: Derived, inputs: Any, target: Any) -> Tensor:
        if isinstance(inputs, Tensor) and isinstance(target, Tensor):
            leaves = [inputs, target]
        else:
            leaves = [leaf for leaf in pytree.tree_leaves((inputs, target)) if isinstance(leaf, Tensor)]
        written = derived.addresses
        leaves = [t.clone() if t.untyped_storage().data_ptr() in written else t for t in leaves]
        result = derived.run(leaves)
        if self.layers:
            self.layers = []
        if isinstance(result, tuple):
            result, *more = result
            kept = iter(more)
            self.deltas = {path: next(kept) for path in derived.deltas}
            self.layers = [layer.of_step(kept) for layer in derived.layers]
            self.output = derived.output(kept)
        C: Tensor = result
        return C

    def _find(self, inputs: Any, target: Any, structure: Any, adds: bool = False, share: float = 1.0) -> Derived:
        """The program for this call, derived if there is none yet."""
        form = [*self._form_of_model(), _form(inputs), _form(target), structure, adds, share, self.keep_layers]
        if self._last is not None and _is_same(form, self._form_of_last):  # comparing takes 0.3 µs, hashing 2
            return self._last
        key = _key(form)
        derived, _ = self._programs.pop(key, (None, None))
        if derived is None:
            kept = {name: getattr(self, name) for name in ("keep_deltas", "keep_output", "keep_layers")}
            how = How(structure is not None, adds, share, self.compile, self.skip_nonfinite, **kept)
            model, loss, optimizer = self.model, self.loss, self.optimizer
            with torch.inference_mode(False):  # what is made here outlives the mode
                derived = Derived(model, loss, optimizer, inputs, target, how, self._gradients)
            while len(self._programs) >= PROGRAMS:
                del self._programs[next(iter(self._programs))]
        self._programs[key] = derived, form  # at the end, as used last; the form keeps what the key has the id of
        self._last, self._form_of_last = derived, form
        return derived

    def _form_of_model(self) -> list[Any]:
        """What of the model and its surroundings the program depends on."""
        if (
            any(self._empty)
            or list(_chain(map(_values, self._of_children))) != self._children
            or list(map(len, self._attributes)) != self._sizes
        ):
            self._look()
        tensors = [t for t in _chain(map(_values, self._of_tensors)) if t is not None]
        return [
            [settings(attributes) for settings, attributes in self._settings],
            list(map(_requires_grad, tensors)),
            list(map(_address, tensors)),
            torch.get_autocast_dtype("cpu") if torch._C._is_any_autocast_enabled() else None,
            [list(map(id, group["params"])) for group in self.optimizer.param_groups],
        ]

    def _structure(self) -> Any:
        """That of the update, if it is part of the program."""
        if self.accumulate != 1 or self.clip_norm is not None or self.clip_value is not None:
            return None
        if self.compile and self.skip_nonfinite:  # one graph, which takes no turns
            return None
        return structure_of(self.optimizer)

    def _program(self) -> Derived:
        if self._last is None:
            raise RuntimeError("there is no program yet: call the step, or derive(inputs, target)")
        return self._last


def _form(data: Any) -> Any:
    """What of data a program depends on: all but the numbers."""
    if isinstance(data, Tensor):
        return data.shape, data.stride(), data.dtype, data.requires_grad, data.device
    leaves, spec = pytree.tree_flatten(data)
    for leaf in leaves:
        if not isinstance(leaf, Tensor | SCALARS):
            raise ValueError(
                f"a {type(leaf).__name__} is among inputs and target: a step takes tensors, numbers and texts, in "
                "tuples, lists and dicts"
            )
    return spec, [_form(leaf) if isinstance(leaf, Tensor) else repr(leaf) for leaf in leaves]


def _own(module: Module) -> list[str]:
    """The names of the attributes that make the module what it is, beside what every module has."""
    return [name for name in vars(module) if name not in _OF_EVERY_MODULE]


_OF_EVERY_MODULE = frozenset(vars(Module())) - {"training"}


def _is_same(form: Any, other: Any) -> bool:
    try:
        return bool(form == other)
    except (RuntimeError, ValueError):  # tensors and arrays among the attributes of a module, which answer each by each
        return False


def _key(form: list[Any]) -> str:
    """The form as text: of attributes that are no numbers or texts which objects they are."""
    settings, *others = form
    by_value = [[repr(v) if isinstance(v, SCALARS) else id(v) for v in of_module] for of_module in settings]
    return repr([by_value, *others])


def _check(name: str, value: object, ok: bool, accepted: str) -> None:
    if not ok:
        raise ValueError(f"{name} is {value!r}: it takes {accepted}")
