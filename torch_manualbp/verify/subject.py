"""What is verified, as a function of the tensors whose gradients are looked at, in any dtype."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.parameter import is_lazy

from torch_manualbp._text import one_line, visible
from torch_manualbp._torch import pytree
from torch_manualbp.verify.check import DoesNotApply
from torch_manualbp.verify.functions import applied_in_forward, in_plain_autograd, is_custom_operator, is_function
from torch_manualbp.verify.precision import POINTS, SPACING, WIDE, Widening, around, eps_of, noise_of, widened

__all__ = [
    "Leaf",
    "Results",
    "Setting",
    "Subject",
    "as_function",
    "gradients_of",
    "is_number",
    "name_of_dtype",
    "seed_all",
    "tensors_in",
    "with_zeros",
]

SEED = 7
"""Of the upstream gradient."""

EPS = torch.finfo(torch.float64).eps

GARBAGE = 0.05
"""Relative difference of outputs in float64 and in the user's dtype from which the one is no call of the target."""

MANY, FEW = 1024, 4
"""Where there are more numbers than the one among all inputs, the first few samples are enough for most checks."""


@dataclass(frozen=True)
class Leaf:
    """A tensor whose gradient is verified: a parameter by its name in the module, or an input by its position."""

    name: str
    tensor: Tensor
    parameter: str | None = None
    position: int | None = None


class Subject:
    """A target and its inputs.

    Args:
        target: a module, an ``autograd.Function``, or a callable.
        inputs: what it is called with; tensors may stand in lists and dictionaries.
        kwargs: the same by keyword.
        params: for a module the names of the parameters to verify (default: all that need a gradient); for a callable a
            dictionary of further tensors that it takes by keyword.
        reference: what takes the same arguments and is differentiated by autograd in place of the target's forward.
        seed: where random numbers start from in every run.
        prefix: of the names of tensors: the path of a layer in its model.
        only_parameters: whether inputs are taken for constants.
        upstream: the gradients of the outputs; by default random numbers.

    Raises:
        TypeError: the target is nothing that can be called.
        ValueError: nothing needs a gradient, tensors are on several devices, or the forward fails.
    """

    wide = torch.float64
    """The dtype in which gradients are compared to all digits: that of the inputs, of a target that takes no other."""
    widens = False
    """Whether casts to float32 inside are left out where all else is float64."""
    swaps = False
    """Whether the target is a module whose backward runs its forward again, with the parameters that it has then."""
    constants: tuple[Leaf, ...] = ()
    """Inputs for which a Function's backward returns None."""
    narrows = False
    """Whether backward has casts to float32, and forward none."""
    eps = EPS
    """The ε of the digits that the target has, given :attr:`wide`."""
    digits = ""
    """What was found about them."""

    def __init__(
        self,
        target: Any,
        inputs: Sequence[Any],
        kwargs: Mapping[str, Any] | None = None,
        params: Sequence[str] | Mapping[str, Tensor] | None = None,
        reference: Callable[..., Any] | None = None,
        seed: int = 0,
        prefix: str = "",
        only_parameters: bool = False,
        upstream: Sequence[Tensor | None] | None = None,
    ) -> None:
        if not callable(target):
            raise TypeError(
                f"target is {type(target).__name__}: it must be a module, an autograd.Function or a callable"
            )
        self.name = visible(name_of(target))
        self.seed, self.prefix = seed, prefix
        self.only_parameters, self.upstream = only_parameters, upstream
        self._settings: dict[Any, Setting] = {}
        self.is_function = is_function(target)
        self.target = _copy(target) if isinstance(target, Module) else target
        self.reference = _copy(reference) if isinstance(reference, Module) else reference
        keywords = dict(kwargs or {})
        if isinstance(params, Mapping):
            if isinstance(target, Module):
                raise TypeError("params of a module are names of its parameters; its tensors are verified as they are")
            keywords |= params
        self.values, self._form = pytree.tree_flatten((tuple(inputs), keywords))
        self.value_names = _names(tuple(inputs), keywords)
        if isinstance(self.target, Module):
            _initialize(self.target, tuple(inputs), keywords)
        self.state = _state(self.target) if isinstance(self.target, Module) else []
        """The module's own, whatever is put in their place later."""
        self.leaves = self._leaves(None if isinstance(params, Mapping) else params)
        self.makes_copies = False
        self._check_devices()
        self._check_leaves()
        self._check_forward()
        self.dtype = _real(self.leaves[0].tensor.dtype)
        self.is_complex = any(leaf.tensor.is_complex() for leaf in self.leaves)
        at = self.setting(self.dtype)
        try:
            self.functions = applied_in_forward(lambda: at.run(at.leaves()))
        except Exception:  # the forward needs what only the engine gives it
            self.functions = [target] if self.is_function else []

    def _leaves(self, names: Sequence[str] | None) -> tuple[Leaf, ...]:
        numbers = [i for i, value in enumerate(self.values) if is_number(value) and not self.only_parameters]
        asked = [i for i in numbers if self.values[i].requires_grad]
        leaves = [Leaf(self.prefix + self.value_names[i], self.values[i], position=i) for i in asked or numbers]
        if isinstance(self.target, Module):
            parameters = dict(self.target.named_parameters())
            for name in names if names is not None else [n for n, p in parameters.items() if p.requires_grad]:
                if name not in parameters:
                    raise ValueError(f"params: {self.name} has no parameter {name!r}; it has {', '.join(parameters)}")
                leaves.append(Leaf(self.prefix + name, parameters[name], parameter=name))
        return tuple(leaves)

    def _check_leaves(self) -> None:
        if self.leaves:
            return
        kinds = ", ".join(
            f"{name} is {name_of_dtype(value.dtype)}"
            for name, value in zip(self.value_names, self.values, strict=True)
            if isinstance(value, Tensor)
        )
        raise ValueError(
            f"{self.name} has no tensor that needs a gradient ({kinds or 'no tensor among its inputs'}): pass an input "
            "of a floating-point dtype, or a module with parameters that require a gradient"
        )

    def _check_devices(self) -> None:
        named = [(name, v) for name, v in zip(self.value_names, self.values, strict=True) if isinstance(v, Tensor)]
        named += [(leaf.name, leaf.tensor) for leaf in self.leaves if leaf.parameter]
        if not named:
            return
        first, tensor = named[0]
        for name, other in named:
            if other.device.type == "meta":
                raise ValueError(f"{name} is on the meta device, where there are no numbers: pass it on a real one")
            if other.device != tensor.device and other.dim():
                raise ValueError(f"{first} is on {tensor.device} and {name} on {other.device}: move them to one device")

    def _check_forward(self) -> None:
        at = self.setting(_real(self.leaves[0].tensor.dtype))
        try:
            try:
                outputs = at.run(at.leaves())
            except RuntimeError as error:
                if "leaf Variable that requires grad" not in str(error):
                    raise
                self.makes_copies = True  # it works in place, which a leaf does not allow
                outputs = at.run(at.leaves())
        except Exception as error:
            shapes = ", ".join(
                f"{name} {tuple(v.shape)} {name_of_dtype(v.dtype)}"
                for name, v in zip(self.value_names, self.values, strict=True)
                if isinstance(v, Tensor)
            )
            raise ValueError(f"the forward of {self.name} fails on {shapes}: {one_line(error)}") from error
        if not outputs:
            raise ValueError(
                f"{self.name} returns no tensor of a floating-point dtype: there is nothing to differentiate"
            )

    def find_digits(self, dtype: torch.dtype | None = None) -> None:
        """Find out in how many digits the target computes, whatever it is given; or take the user's word for it."""
        if dtype is not None:
            self._without_constants()
            self._has_digits_of(dtype, f"it computes in {name_of_dtype(dtype)}, as dtype= says")
            return
        self._without_constants()
        at = self.setting(torch.float64)
        if isinstance(self.target, Module) and self.functions:
            self.swaps = self._runs_forward_again(self.target)
        try:
            with Widening() as mode:
                leaves = at.leaves()
                outputs = at.run(leaves)
                in_forward = mode.count + mode.made
                gradients_of(outputs, leaves, at.upstream(outputs))
            self.widens = mode.count > 0 or (mode.made > 0 and any(o.dtype in WIDE for o in at.run(at.leaves([]))))
            self.narrows = self.widens and not in_forward
        except DoesNotApply:
            return
        except Exception:  # it mixes what was widened with what cannot be
            try:
                at.results()
            except Exception as error:
                if self.dtype != torch.float64 and self._takes_its_own():
                    self._has_digits_of(self.dtype, f"it takes no float64 ({one_line(error)[:120]})")
                return
        with widened(self.widens):
            if self.widens:
                self.digits = "it computes in float32 inside, which is left out where all else is float64"
            if not self.functions and self.is_torchs_own():
                return
            if self.dtype != torch.float64 and self._is_garbage(at):
                self._has_digits_of(self.dtype, "what it returns in float64 is another function's: it is not run in it")
                return
            self.eps = eps_of(self._noise(at))
        if self.eps > EPS:
            self.digits = f"it computes in fewer digits than float64's, of ε {self.eps:.2g}, and is held to those"

    def _without_constants(self) -> None:
        """Leave out those inputs of a Function for which its backward returns None, where its user asks for no
        gradient by name: a target or a mask in floating point."""
        if not self.is_function or any(isinstance(v, Tensor) and v.requires_grad for v in self.values):
            return
        at = self.setting(self.dtype)
        leaves = at.leaves()
        try:
            outputs = at.run(leaves)
            found = gradients_of(outputs, leaves, at.upstream(outputs))
        except Exception:  # which the checks report
            return
        self.constants = tuple(leaf for leaf, g in zip(self.leaves, found, strict=True) if g is None)
        if len(self.constants) == len(self.leaves):
            self.constants = ()
        self.leaves = tuple(leaf for leaf in self.leaves if leaf not in self.constants)

    def _runs_forward_again(self, module: Module) -> bool:
        """Whether gradients reach the module's own parameters, and not those that it was called with; or are other ones
        where its own are those of the call."""
        at = self.setting(self.dtype).halved()
        own = [p for p in module.parameters() if p.requires_grad and p.grad is None]
        if not own:
            return False
        try:
            apart = at.results()
            found = any(p.grad is not None for p in own)
            if not found:
                self.swaps = True
                found = not all(map(torch.equal, apart.gradients, at.results().gradients))
        except Exception:
            return False
        finally:
            self.swaps = False
            for p in own:
                p.grad = None
        return found

    def _has_digits_of(self, dtype: torch.dtype, digits: str) -> None:
        self.wide, self.eps, self.digits = dtype, torch.finfo(dtype).eps, digits

    def _takes_its_own(self) -> bool:
        try:
            self.setting(self.dtype).results()
        except Exception:
            return False
        return True

    def is_torchs_own(self) -> bool:
        """Whether nothing in it is a kernel that torch does not bring."""
        return not is_custom_operator(self.target)

    def _is_garbage(self, at: Setting) -> bool:
        """Whether float64 gives outputs that have nothing to do with those of the user's dtype."""
        here = self.setting(self.dtype)
        with torch.no_grad():
            wide, same = (at.run(at.leaves([]), seed=self.seed + n) for n in (0, 1))
            own = here.run(here.leaves([]))
        for a, b, c in zip(wide, same, own, strict=True):
            if a.shape != c.shape or not torch.equal(a.nan_to_num(), b.nan_to_num()):
                return False  # it draws random numbers, others in every dtype
            a, c = a.nan_to_num(0, 0, 0), c.to(a.dtype).nan_to_num(0, 0, 0)
            if (a - c).norm() > GARBAGE * c.norm():
                return True
        return False

    def _noise(self, at: Setting) -> float:
        generator = torch.Generator().manual_seed(0)
        start = at.leaves([])
        along = [(torch.rand(t.shape, generator=generator) + 0.5).to(t) * SPACING for t in start]
        found = []
        for k in range(POINTS):
            leaves = [(t * (1 + k * v)).detach().requires_grad_() for t, v in zip(start, along, strict=True)]
            outputs = at.run(leaves)
            gradients = gradients_of(outputs, leaves, at.upstream(outputs))
            found.append([o.detach() for o in outputs] + with_zeros(gradients, leaves))
        return noise_of(found)

    def size(self) -> int:
        """How many numbers all leaves have."""
        return sum(leaf.tensor.numel() for leaf in self.leaves)

    def shrunk(self) -> Subject:
        """The same with the first few samples of many, if the target takes these, for what all samples show alike."""
        tensors = [v for v in self.values if isinstance(v, Tensor) and v.dim()]
        if sum(v.numel() for v in tensors) <= MANY or not tensors or tensors[0].shape[0] <= FEW:
            return self
        size = tensors[0].shape[0]

        def few(v: Any) -> Any:
            if not isinstance(v, Tensor) or not v.dim() or v.shape[0] != size:
                return v
            return v.detach()[:FEW].clone().requires_grad_(v.requires_grad)

        args, kwargs = pytree.tree_unflatten([few(v) for v in self.values], self._form)
        names = [leaf.parameter for leaf in self.leaves if leaf.parameter]
        params = names if isinstance(self.target, Module) else None
        try:
            rest = params, self.reference, self.seed, self.prefix, self.only_parameters
            small = Subject(self.target, args, kwargs, *rest)
        except ValueError:  # it takes no fewer
            return self
        small.wide, small.widens, small.eps, small.digits = self.wide, self.widens, self.eps, self.digits
        small.swaps, small.narrows, small.constants = self.swaps, self.narrows, self.constants
        small.leaves = tuple(f for f in small.leaves if f.name not in {c.name for c in self.constants})
        small.name = self.name
        return small

    def real_dtypes(self) -> set[torch.dtype]:
        """The dtypes of all tensors of numbers, of complex ones that of their parts."""
        tensors = [*self.values, *(leaf.tensor for leaf in self.leaves)]
        if isinstance(self.target, Module):
            tensors += [t for _, t in _state(self.target)]
        return {_real(t.dtype) for t in tensors if is_number(t)}

    def setting(self, dtype: torch.dtype, rounded: torch.dtype | None = None) -> Setting:
        """The call in ``dtype``, on numbers that were first rounded to the dtype ``rounded``."""
        key = dtype, rounded
        if key not in self._settings:
            self._settings[key] = Setting(self, dtype, rounded)
        return self._settings[key]


class Results(NamedTuple):
    """What a forward and its backward gave: the outputs, and the gradient of each leaf, 0 where there is none."""

    outputs: list[Tensor]
    gradients: list[Tensor]


class Setting:
    """The call of a subject in one dtype, on numbers that may have been rounded to another before.

    ``values`` are the flat inputs and ``state`` the parameters and buffers, some of which are leaves: these are
    replaced by what ``run`` is given.
    """

    def __init__(self, subject: Subject, dtype: torch.dtype, rounded: torch.dtype | None = None) -> None:
        self.subject, self.dtype, self.rounded = subject, dtype, rounded
        self.target, self.plain = subject.target, subject.reference or subject.target
        self.values = [self.cast(value) for value in subject.values]
        self.state: dict[str, Tensor] = {}
        if isinstance(subject.target, Module):
            self.state = {name: self.cast(t) for name, t in subject.state}

    def cast(self, value: Any) -> Any:
        """The value in this dtype, if it is a tensor of numbers that are rounded at all."""
        if not is_number(value):
            return value
        value = value.detach()
        for dtype in (self.rounded, self.dtype):
            if dtype is not None:
                value = value.to(_complex(dtype) if value.is_complex() else dtype)
        return value

    def leaves(self, needed: Sequence[int] | None = None) -> list[Tensor]:
        """Fresh leaves with the subject's numbers; those at ``needed`` positions alone require a gradient."""
        return [
            (self.state[leaf.parameter] if leaf.position is None else self.values[leaf.position])  # type: ignore[index]
            .detach()
            .clone(memory_format=torch.preserve_format)
            .requires_grad_(needed is None or i in needed)
            for i, leaf in enumerate(self.subject.leaves)
            if self.has(leaf)
        ]

    def has(self, leaf: Leaf) -> bool:
        """Whether the tensor is there: a variation of the call may be without it."""
        return leaf.position is None or isinstance(self.values[leaf.position], Tensor)

    @property
    def present(self) -> list[Leaf]:
        """The leaves that are there."""
        return [leaf for leaf in self.subject.leaves if self.has(leaf)]

    def tensors(self) -> list[int]:
        """Where in ``values`` tensors stand."""
        return [i for i, value in enumerate(self.values) if isinstance(value, Tensor)]

    def with_values(self, values: Sequence[Any]) -> Setting:
        """The same with other inputs."""
        changed = copy.copy(self)
        changed.values = list(values)
        return changed

    def mapped(self, change: Callable[[Tensor], Tensor], *, parameters: bool = False) -> Setting:
        """The same with each tensor of the inputs, and of the parameters if asked, changed."""
        changed = self.with_values([change(v) if isinstance(v, Tensor) else v for v in self.values])
        if parameters:
            changed.state = {name: change(t) for name, t in self.state.items()}
        return changed

    def halved(self) -> Setting:
        """The same with parameters and buffers of half the size."""
        changed = copy.copy(self)
        changed.state = {name: t * 0.5 if is_number(t) else t for name, t in self.state.items()}
        return changed

    def with_target(self, target: Any) -> Setting:
        """The call of something else in the place of the target."""
        changed = copy.copy(self)
        changed.target = target
        return changed

    def run(self, leaves: Sequence[Tensor], seed: int | None = None) -> tuple[Tensor, ...]:
        """The outputs of the target, all that can have a gradient."""
        seed_all(self.subject.seed if seed is None else seed)
        return self.call(self.target, leaves)

    def run_plain(self, leaves: Sequence[Tensor], seed: int | None = None) -> tuple[Tensor, ...]:
        """The outputs of the reference, or of the target with no Function between its forward and autograd."""
        seed_all(self.subject.seed if seed is None else seed)
        with in_plain_autograd():
            return self.call(self.plain, leaves)

    def call(self, target: Any, leaves: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The outputs of anything that takes the same, whatever the state of random numbers."""
        subject = self.subject
        values, state = list(self.values), {}
        for leaf, tensor in zip(self.present, leaves, strict=True):
            tensor = tensor.clone() if subject.makes_copies else tensor
            if leaf.position is not None:
                values[leaf.position] = tensor
            else:
                state[leaf.parameter or ""] = tensor
        if subject.makes_copies:
            values = [v.clone() if isinstance(v, Tensor) and not v.requires_grad else v for v in values]
        values = [_started_again(v) if isinstance(v, torch.Generator) else v for v in values]
        args, kwargs = pytree.tree_unflatten(values, subject._form)
        try:
            with around(self.dtype) if subject.widens else contextlib.nullcontext():
                if isinstance(target, Module) and subject.swaps and target is self.target:
                    result = _swapped(target, {**self.state, **state})(*args, **kwargs)
                elif isinstance(target, Module):
                    rest = {
                        n: t.clone() if _is_buffer(target, n) else t for n, t in self.state.items() if n not in state
                    }
                    result = torch.func.functional_call(target, {**rest, **state}, args, kwargs, strict=False)
                elif is_function(target):
                    result = target.apply(*args, **kwargs)
                else:
                    result = target(*args, **kwargs)
        except AssertionError as error:
            refused: Any = ValueError(f"it asserts {one_line(error).removeprefix('AssertionError: ')}")
            refused.of_the_forward = True
            raise refused from error
        except Exception as error:
            if not subject.makes_copies:
                error.of_the_forward = True  # type: ignore[attr-defined]
            raise
        parts = [t for t in pytree.tree_leaves(result) if isinstance(t, Tensor)] or tensors_in(result)
        return tuple(t for t in parts if is_number(t))

    def results(
        self,
        run: Callable[[Sequence[Tensor]], Sequence[Tensor]] | None = None,
        leaves: Sequence[Tensor] | None = None,
        upstream: Sequence[Tensor] | None = None,
    ) -> Results:
        """The outputs of a run, by default the target's, and the gradients of fresh leaves on the upstream gradient."""
        leaves = self.leaves() if leaves is None else leaves
        outputs = (run or self.run)(leaves)
        found = gradients_of(outputs, leaves, self.upstream(outputs) if upstream is None else upstream)
        return Results([o.detach() for o in outputs], with_zeros(found, leaves))

    def upstream(self, outputs: Sequence[Tensor], seed: int = SEED) -> list[Tensor]:
        """∂C/∂(each output): random numbers that every dtype has, so that all are asked the same; or what was given."""
        if self.subject.upstream is not None and seed == SEED:
            given = zip(self.subject.upstream, outputs, strict=True)
            return [torch.zeros_like(o) if u is None else self.cast(u).to(o.dtype) for u, o in given]
        generator = torch.Generator().manual_seed(seed)
        drawn = []
        for output in outputs:
            wide = torch.complex128 if output.is_complex() else torch.float64
            numbers = torch.randn(output.shape, dtype=wide, generator=generator)
            parts = torch.view_as_real(numbers) if numbers.is_complex() else numbers
            parts.copy_(parts.bfloat16())
            drawn.append(numbers.to(output.device, output.dtype))
        return drawn


def as_function(at: Setting) -> Callable[..., Any]:
    """The target as a function of its leaves alone, of as few steps as there may be, for a compiler to look into."""
    places = [leaf.position for leaf in at.present]
    args, kwargs = pytree.tree_unflatten(list(at.values), at.subject._form)
    is_plain = not kwargs and len(args) == len(at.values) and None not in places
    if isinstance(at.target, Module) or not is_plain:
        return lambda *leaves: at.call(at.target, leaves)
    call: Any = at.target.apply if is_function(at.target) else at.target
    of_leaf = [places.index(i) if i in places else None for i in range(len(args))]

    def function(*leaves: Tensor) -> Any:
        result = call(*[args[i] if n is None else leaves[n] for i, n in enumerate(of_leaf)])
        return tuple(t for t in pytree.tree_leaves(result) if isinstance(t, Tensor) and t.is_floating_point())

    return function


def _swapped(module: Module, state: Mapping[str, Tensor]) -> Module:
    """The module with these tensors for its own, until others take their place: its backward may run its forward."""
    for name, tensor in state.items():
        path, _, last = name.rpartition(".")
        owner = module.get_submodule(path)
        if last in owner._buffers:
            owner._buffers[last] = tensor.clone()
        elif last in owner._parameters:
            owner._parameters[last] = tensor  # type: ignore[assignment]
    return module


def gradients_of(
    outputs: Sequence[Tensor],
    leaves: Sequence[Tensor],
    upstream: Sequence[Tensor],
    *,
    create_graph: bool = False,
    retain_graph: bool | None = None,
) -> list[Tensor | None]:
    """The gradients of the leaves; None where there is none, or where the leaf needs none."""
    pairs = [(o, u) for o, u in zip(outputs, upstream, strict=True) if o.requires_grad]
    needed = [leaf for leaf in leaves if leaf.requires_grad]
    if not pairs or not needed:
        return [None for _ in leaves]
    both = [o for o, _ in pairs], [u for _, u in pairs]
    with around(needed[0].dtype):
        try:
            found = torch.autograd.grad(
                both[0], needed, both[1], create_graph=create_graph, retain_graph=retain_graph, allow_unused=True
            )
        except RuntimeError as error:
            if ".grad()" not in str(error) or create_graph:
                raise
            found = _by_backward(*both, needed, retain_graph)  # such as of reentrant checkpointing
    of_needed = iter(found)
    result = [next(of_needed) if leaf.requires_grad else None for leaf in leaves]
    return [g.to_dense() if g is not None and g.is_sparse else g for g in result]


def _by_backward(
    outputs: Sequence[Tensor], upstream: Sequence[Tensor], leaves: Sequence[Tensor], retain_graph: bool | None
) -> tuple[Any, ...]:
    for leaf in leaves:
        leaf.grad = None
    torch.autograd.backward(outputs, upstream, retain_graph=retain_graph)
    found = tuple(leaf.grad for leaf in leaves)
    for leaf in leaves:
        leaf.grad = None
    return found


def _started_again(generator: torch.Generator) -> torch.Generator:
    """A generator in the state in which it was given."""
    return torch.Generator(generator.device).set_state(generator.get_state())


def tensors_in(result: Any) -> Iterator[Tensor]:
    """The tensors in what a target returns: in tuples, lists and dictionaries, dataclasses, and the attributes of any
    other object, such as ``.logits``."""
    seen: set[int] = set()

    def of(value: Any, depth: int) -> Iterator[Tensor]:
        for part in pytree.tree_leaves(value):
            if isinstance(part, Tensor):
                yield part
            elif depth and id(part) not in seen and not isinstance(part, Module | type) and hasattr(part, "__dict__"):
                seen.add(id(part))
                yield from of(list(vars(part).values()), depth - 1)

    return of(result, 3)


def with_zeros(gradients: Sequence[Tensor | None], leaves: Sequence[Tensor]) -> list[Tensor]:
    """The gradients, 0 where there is none."""
    dense = [g.to_dense() if g is not None and g.is_sparse else g for g in gradients]
    return [torch.zeros_like(t) if g is None else g.detach() for g, t in zip(dense, leaves, strict=True)]


def seed_all(seed: int) -> None:
    """Start the random numbers of the CPU, and of CUDA where it is in use, from a seed."""
    torch.default_generator.manual_seed(seed)  # torch.manual_seed takes 1 ms on what kinds of device are absent
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


def is_number(value: Any) -> bool:
    """Whether it is a tensor of real or complex numbers."""
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


def name_of(target: Any) -> str:
    """What to call a target."""
    if isinstance(target, Module):
        return type(target).__name__
    if is_custom_operator(target):
        return getattr(target, "_qualname", None) or str(target).replace(".", "::", 1)
    owner: Any = getattr(target, "__self__", None)
    if is_function(owner):
        return f"{owner.__name__}.apply"
    return getattr(target, "__name__", None) or type(target).__name__


def name_of_dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _copy(module: Module) -> Module:
    try:
        return copy.deepcopy(module)
    except Exception:  # it holds what cannot be copied, such as tensors with a history
        return module


def _initialize(module: Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Give lazy parameters their shapes."""
    if any(is_lazy(t) for _, t in _state(module)):
        with torch.no_grad():
            module(*args, **kwargs)


def _state(module: Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]


def _is_buffer(module: Module, name: str) -> bool:
    path, _, last = name.rpartition(".")
    return last in module.get_submodule(path)._buffers


def _names(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[str]:
    """``input[0]`` for the first positional input, ``input[0][1]`` for a part of it, the keyword for one by keyword."""
    paths, _ = pytree.tree_flatten_with_path((args, dict(kwargs)))
    names = []
    for path, _ in paths:
        keys: tuple[Any, ...] = path
        of_args, first, *rest = keys
        is_positional = getattr(of_args, "idx", 0) == 0
        parts = [getattr(key, "idx", getattr(key, "key", key)) for key in rest]
        head = f"input[{first.idx}]" if is_positional else str(first.key)
        names.append(head + "".join(f"[{part!r}]" for part in parts))
    return names


def _real(dtype: torch.dtype) -> torch.dtype:
    return dtype.to_real() if dtype.is_complex else dtype


def _complex(dtype: torch.dtype) -> torch.dtype:
    if dtype == torch.bfloat16:
        raise DoesNotApply("torch has no complex numbers of bfloat16")
    return dtype.to_complex()
