"""What becomes of a gradient: folded into the product that makes it, taken by Adam's kernel, or added to ``.grad``.

With s = −1 where the optimizer maximises and 1 otherwise, ``torch.optim.SGD`` is, for the learning rate η (``lr``),
weight decay λ, momentum μ and dampening d,

::

    g = s ∂C/∂W + λ W                                W ← W − η g
    with momentum:    v ← μ v + (1 − d) g            W ← W − η v
    with Nesterov's:  v ← μ v + g                    W ← W − η (g + μ v)

(on a parameter's first step v ← g). ∂C/∂W = δᵀ a of a linear layer enters each line as a term, so that the line is one
product that adds to what is there, and ∂C/∂W never is. Nesterov's g + μ v is (1 + μ) v − μ v_before.

A program for torch.compile gets the hyperparameters as tensors, since each number would be compiled in: where another
says alpha=lr, it says lr * g.

Adam and AdamW are not linear in the gradient: it is made, and torch's fused kernel takes it while it is in the cache.

oneDNN's product adds to nothing: of a large W it is made for some rows at a time, and the update finds them in the
cache.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import operator
import os
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim import optimizer as torch_optimizer

from torch_manualbp._torch import foreach_add_, fused_adam_, fused_adamw_, has_internal_overlap
from torch_manualbp.derive.plan import CASTS
from torch_manualbp.derive.program import Call, Formula, Program, Text, Value
from torch_manualbp.derive.reads import dict_of, is_trusted
from torch_manualbp.kernels.products import onednn_linear

__all__ = ["SGD", "Adam", "forms_of", "has_odd_state", "kind_of", "kind_of_zeros", "leave_gradient", "structure_of"]

Learnt = Sequence[tuple[Value, Value, dict[str, Value]]]
"""Parameters, their gradients, and the state that the optimizer has of each."""

BLOCK = 1 << 18
"""Numbers of ∂C/∂W at a time, 1 MB, where it is oneDNN's product: 1024×4096 of 64 samples takes 1.9 ms in blocks of
2 MB, 2.0 of 1 MB and 3.2 of 0.25 MB."""

ROWS = 256
"""Rows at a time, at least, or as many as there are samples, which oneDNN packs anew each time: 4096×1024 of 512
samples takes 10.4 ms in blocks of 256 rows, and 12.2 in blocks of 64, which are 1 MB."""

PRODUCT = 'onednn_linear({}, {}, None, "none", [], "")'
"""δᵀ a, of δᵀ and aᵀ."""

SMALL = 1 << 16
"""Numbers up to which a parameter is updated together with others: a call takes as long as its arithmetic."""


def structure_of(optimizer: Optimizer) -> list[tuple[Any, ...]] | None:
    """What of the hyperparameters of each group is part of the shape of the program that makes the update; None if the
    optimizer makes its own step."""
    family = _FAMILIES.get(type(optimizer))
    if family is None or _is_watched(optimizer):
        return None
    structure = [family.structure(optimizer, group) for group in optimizer.param_groups]
    return None if None in structure else [of_group for of_group in structure if of_group is not None]


def _structure_of_sgd(optimizer: Optimizer, group: dict[str, Any]) -> tuple[Any, ...] | None:
    numbers = _, momentum, dampening, decay, nesterov, maximize, differentiable = _of_sgd(group)
    if differentiable or (nesterov and dampening) or not _NUMBERS.issuperset(map(type, numbers)):
        return None  # torch's constructor refuses Nesterov's with dampening, and its step computes both
    if not math.isfinite(numbers[0]):  # by which a product, of which it is a factor, is NaN where the gradient is not
        return None
    if dampening and momentum and _are_at_different_steps(optimizer, group):
        return None
    return momentum != 0, dampening != 0, decay != 0, nesterov, maximize


def _structure_of_adam(optimizer: Optimizer, group: dict[str, Any]) -> tuple[Any, ...] | None:
    lr, betas, eps, decay, amsgrad, maximize, differentiable, capturable = _of_adam(group)
    is_plain = type(betas) is tuple and _NUMBERS.issuperset(map(type, (lr, *betas, eps, decay)))
    if differentiable or capturable or not is_plain or _is_forked:
        return None
    return _is_decoupled(optimizer, group), amsgrad, maximize, group.get("fused")


def _is_decoupled(optimizer: Optimizer, group: dict[str, Any]) -> bool:
    """Whether weights decay beside the gradient: AdamW's, before torch 2.7 a class of its own that does not say so."""
    return bool(group.get("decoupled_weight_decay", isinstance(optimizer, torch.optim.AdamW)))


_is_forked = False


def is_forked() -> bool:
    """Whether this is a forked child: OpenMP's threads, which torch's fused kernels wait for, stayed behind."""
    return _is_forked


def depends_on_state(optimizer: Optimizer) -> bool:
    """Whether the structure does: dampening leaves the first step out."""
    return any(group.get("dampening") for group in optimizer.param_groups)


def _note_fork() -> None:
    global _is_forked
    _is_forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)

_NUMBERS = frozenset({bool, int, float})
"""The types of plain hyperparameters: with a tensor, or a number of NumPy's, torch computes in its precision."""

_of_sgd = operator.itemgetter("lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize", "differentiable")
_of_adam = operator.itemgetter(
    *("lr", "betas", "eps", "weight_decay", "amsgrad", "maximize", "differentiable", "capturable")
)


def has_odd_state(optimizer: Optimizer) -> bool:
    """Whether the state of a parameter is of another kind than torch makes it, or shares memory with something, or the
    entries of a parameter do: then the optimizer's own step says what becomes of it."""
    memory = []
    seen = set()
    for group in optimizer.param_groups:
        form = _FAMILIES[type(optimizer)].with_all_state(group)
        for p in group["params"]:
            if not p.requires_grad or p in seen:
                continue
            if p.is_complex() and isinstance(form, Adam):
                return True  # torch's fused kernel takes none
            if has_internal_overlap(p):
                return True
            seen.add(p)
            memory.append(p)
            theirs = optimizer.state.get(p) or {}
            wanted = form.kinds(p)
            if theirs and isinstance(form, Adam) and not wanted.keys() <= theirs.keys():
                return True
            found = [(theirs[name], kind) for name, kind in wanted.items() if theirs.get(name) is not None]
            if any(not isinstance(t, Tensor) or t.requires_grad or kind_of(t) != kind for t, kind in found):
                return True
            memory += [t for t, _ in found]
    spans = sorted((t.data_ptr(), t.data_ptr() + _extent(t)) for t in memory if t.numel())
    return any(end > begin for (_, end), (begin, _) in itertools.pairwise(spans))


def kind_of_zeros(parameter: Tensor) -> tuple[Any, ...]:
    """The kind of ``torch.zeros_like(parameter)``."""
    return (*kind_of(torch.empty_like(parameter, device="meta"))[:3], parameter.device)


def kind_of(t: Tensor) -> tuple[Any, ...]:
    """What of a tensor of state a program depends on."""
    return t.shape, t.stride(), t.dtype, t.device


def _extent(t: Tensor) -> int:
    """The bytes from the first entry to the last."""
    last = sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
    return (last + 1) * t.element_size()


def _is_watched(optimizer: Optimizer) -> bool:
    """Whether somebody is called at the optimizer's own step, other than a learning rate scheduler, which counts."""
    own = vars(optimizer).get("step")
    is_own = own is not None and not hasattr(own, "_wrapped_by_lr_sched")
    return is_own or any(hooks_of(optimizer)) or not _is_torchs(type(optimizer))


def _is_torchs(cls: type) -> bool:
    """Whether the step of a class of torch's is torch's, and the functions of its file are."""
    steps, step = [], getattr(cls, "step", None)
    while step is not None:
        steps.append(step)
        step = getattr(step, "__wrapped__", None)
    functions = [f for f in vars(sys.modules[cls.__module__]).values() if isinstance(f, types.FunctionType)]
    return all(is_trusted(f.__code__) for f in (*steps, *functions))


def namespaces_of(optimizer: Optimizer) -> list[dict[str, Any]]:
    """What somebody would write into to have another step made than torch's."""
    cls = type(optimizer)
    return [dict_of(vars(cls)), vars(sys.modules[cls.__module__])]


def hooks_of(optimizer: Optimizer) -> list[dict[int, Any]]:
    """Those that are called at the optimizer's own step."""
    return [
        optimizer._optimizer_step_pre_hooks,
        optimizer._optimizer_step_post_hooks,
        torch_optimizer._global_optimizer_pre_hooks,
        torch_optimizer._global_optimizer_post_hooks,
    ]


def _are_at_different_steps(optimizer: Optimizer, group: dict[str, Any]) -> bool:
    """Whether some parameters take their first step, at which there is no dampening, when others do not."""
    buffers = [optimizer.state.get(p, {}).get("momentum_buffer") for p in group["params"] if p.requires_grad]
    return len({buffer is None for buffer in buffers}) > 1


def forms_of(optimizer: Optimizer, used: Sequence[int]) -> list[SGD | Adam]:
    """How the update of the groups with these numbers becomes part of the program."""
    structure = structure_of(optimizer)
    if structure is None:
        raise ValueError(f"{type(optimizer).__name__} makes its own step: its update is no part of a program")
    suffixes = [""] if len(used) == 1 else [f"_{i}" for i in used]
    form = _FAMILIES[type(optimizer)].form
    return [form(*map(bool, structure[i]), suffix) for i, suffix in zip(used, suffixes, strict=True)]


@dataclass(frozen=True)
class Adam:
    """Which terms of Adam there are: what of the hyperparameters is part of the program's shape."""

    decoupled: bool
    """Whether weight decay is AdamW's, apart from the gradient."""

    amsgrad: bool
    maximize: bool
    fused: bool
    suffix: str = ""

    settings: ClassVar[tuple[str, ...]] = ("lr", "beta1", "beta2", "eps", "weight_decay")
    """The hyperparameters that the step is given."""

    def numbers(self, group: dict[str, Any]) -> tuple[float, ...]:
        """The hyperparameters of a group, in this order."""
        return group["lr"], *group["betas"], group["eps"], group["weight_decay"]

    def kinds(self, parameter: Tensor) -> dict[str, tuple[Any, ...]]:
        """The names of what the optimizer keeps of a parameter, with shapes, strides, dtypes and devices."""
        names = ["exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if self.amsgrad else [])]
        # torch counts the steps in float64 where that is the default dtype, but for its fused kernel.
        is_double = torch.get_default_dtype() == torch.float64 and not self.fused
        step = torch.Size(()), (), torch.float64 if is_double else torch.float32, parameter.device
        return {"step": step, **dict.fromkeys(names, kind_of_zeros(parameter))}

    def fold(self, program: Program, learnt: Learnt, pure: bool) -> None:
        """Record the update of parameters from their gradients, with the state that belongs to each."""
        # torch's kernel goes through memory from end to end, whatever the strides are, and in full vectors of amsgrad's
        # maximum NaN is lost or not by the operands' order, unlike in torch.maximum.
        by_formula = pure or (self.amsgrad and not self.fused)
        odd = learnt if by_formula else [item for item in learnt if not _are_laid_out_alike(item)]
        for W, g, state in odd:
            self._fold_one(program, W, g, state)
        program.title = ("AdamW" if self.decoupled else "Adam",)
        done = {W for W, _, _ in odd}
        large: list[Any] = []
        small: list[Any] = []
        for item in learnt:
            if item[0] not in done:
                is_large = item[0].tensor.numel() > SMALL or _blocks(program, item[0], item[1])
                (large if is_large else small).append(item)
        for items in [*([item] for item in large), *([small] if small else [])]:
            steps = [state["step"] for _, _, state in items]
            program.append(foreach_add_, steps, 1, writes=steps)
            with _gradients(program, items[0][0], [g for _, g, _ in items]) as (gradients, of):
                self._fold_fused(program, items, gradients, of)

    def _fold_fused(self, program: Program, items: Learnt, gradients: list[Any], of: Part) -> None:
        kernel = fused_adamw_ if self.decoupled else fused_adam_
        weights, states = [W for W, _, _ in items], [state for _, _, state in items]
        m, v = [state["exp_avg"] for state in states], [state["exp_avg_sq"] for state in states]
        largest = [state["max_exp_avg_sq"] for state in states] if self.amsgrad else []
        weights_now, *state_now = ([of(value) for value in values] for values in (weights, m, v, largest))
        program.append(
            kernel,
            weights_now,
            gradients,
            *state_now,
            [state["step"] for state in states],
            amsgrad=self.amsgrad,
            maximize=self.maximize,
            **{name: Text(name + self.suffix) for name in self.settings},
            writes=[*weights, *m, *v, *largest],
        )

    def _fold_one(self, program: Program, W: Value, g: Value, state: dict[str, Value]) -> None:
        """The formula itself, which torch.compile makes one kernel of, where it takes no optimizer's kernel."""
        program.title = (f"{W.name}: {'AdamW' if self.decoupled else 'Adam'}",)
        x = self.suffix
        lr, beta1, beta2, eps, decay = (f"{name}{x}" for name in self.settings)
        step, m, v = state["step"], state["exp_avg"], state["exp_avg_sq"]
        terms: tuple[Value, ...] = (g,)
        signed = "(-{})" if self.maximize else "{}"
        if not self.decoupled:
            signed, terms = f"({signed} + {decay} * {{}})", (g, W)
        program.append(Tensor.add_, step, 1, writes=[step])
        program.append(Tensor.add_, m, Formula(f"(1 - {beta1}) * ({signed} - {{}})", (*terms, m)), writes=[m])
        program.append(Tensor.add_, v, Formula(f"(1 - {beta2}) * ({signed} ** 2 - {{}})", (*terms, v)), writes=[v])
        second = v
        if self.amsgrad:
            second = state["max_exp_avg_sq"]
            program.append(Tensor.copy_, second, Formula("torch.maximum({}, {})", (second, v)), writes=[second])
        if self.decoupled:
            program.append(Tensor.mul_, W, Text(f"1 - {lr} * {decay}"), writes=[W])
        # float32 counts the steps exactly, and is too short for their powers.
        corrected = (
            f"{lr} / (1 - {beta1} ** {{}}.double()) * {{}} / (({{}} / (1 - {beta2} ** {{}}.double())).sqrt() + {eps})"
        )
        program.append(Tensor.sub_, W, Formula(corrected, (step, m, second, step)), writes=[W])


@dataclass(frozen=True)
class SGD:
    """Which terms of SGD there are: what of the hyperparameters is part of the program's shape."""

    momentum: bool
    dampening: bool
    weight_decay: bool
    nesterov: bool
    maximize: bool
    suffix: str = ""
    """What the names of the hyperparameters end in, where parameter groups have their own."""

    @functools.cached_property
    def settings(self) -> tuple[str, ...]:
        """The hyperparameters that the step is given."""
        there = {"momentum": self.momentum, "dampening": self.dampening, "weight_decay": self.weight_decay}
        return ("lr", *(name for name, is_there in there.items() if is_there))

    def numbers(self, group: dict[str, Any]) -> list[float]:
        """The hyperparameters of a group, in this order."""
        return [group[name] for name in self.settings]

    def kinds(self, parameter: Tensor) -> dict[str, tuple[Any, ...]]:
        """The names of what the optimizer keeps of a parameter, with shapes, strides, dtypes and devices."""
        return {"momentum_buffer": kind_of_zeros(parameter)} if self.momentum else {}

    def fold(self, program: Program, learnt: Learnt, pure: bool) -> None:
        """Record the update of parameters from their gradients, with the state that belongs to each."""
        program.title = ("SGD",)
        x = self.suffix
        lr, decay = f"lr{x}", f"weight_decay{x}"
        large: list[Any] = []
        others: list[Any] = []
        for item in learnt:
            (large if _blocks(program, item[0], item[1]) else others).append(item)
        for items in [*([item] for item in large), *([others] if others else [])]:
            with _gradients(program, items[0][0], [g for _, g, _ in items]) as (gradients, of):
                if self.momentum:
                    states = [state["momentum_buffer"] for _, _, state in items]
                    self._fold_momentum(program, [W for W, _, _ in items], states, gradients, of, pure)
                else:
                    shrink = f"1 - {lr} * {decay}" if self.weight_decay else ""
                    rate = lr if self.maximize else f"-{lr}"
                    for (W, _, _), g in zip(items, gradients, strict=True):
                        _add_gradient(program, W, g, of, alpha=rate, beta=shrink, pure=pure)

    def _fold_momentum(
        self, program: Program, weights: list[Value], buffers: list[Value], gradients: list[Any], of: Part, pure: bool
    ) -> None:
        x = self.suffix
        lr, mu, decay = f"lr{x}", f"momentum{x}", f"weight_decay{x}"
        damped = f"1 - dampening{x}" if self.dampening else ""
        alpha, kept, decayed, rate = (f"-({damped})" if damped else "-1") if self.maximize else damped, mu, decay, lr
        if damped:
            decayed = f"({damped}) * {decay}"
        if self.nesterov:  # W runs ahead by η μ v_before, and λ W takes that back
            _add_each(program, weights, buffers, of, f"{lr} * {mu}", pure)
            rate = f"{lr} * (1 + {mu})"
            kept = f"{mu} * (1 - {lr} * {decay})" if self.weight_decay else mu
        for v, g in zip(buffers, gradients, strict=True):
            _add_gradient(program, v, g, of, alpha=alpha, beta=kept, pure=pure)
        if self.weight_decay:
            _add_each(program, buffers, weights, of, decayed, pure)
        _add_each(program, weights, buffers, of, f"-{rate}", pure)


def _are_laid_out_alike(item: tuple[Value, Value, dict[str, Value]]) -> bool:
    W, g, state = item
    return all(v.tensor.dim() == 0 or v.tensor.stride() == W.tensor.stride() for v in (g, *state.values()))


def _add_each(program: Program, targets: list[Value], others: list[Value], of: Part, alpha: str, pure: bool) -> None:
    """target ← target + alpha other of each two, in one call, which takes longer than a small parameter."""
    if pure:
        for target, other in zip(targets, others, strict=True):
            program.append(Tensor.add_, target, _times(alpha, other), writes=[target])
    elif program.blocks:
        for target, other in zip(targets, others, strict=True):
            program.append(Tensor.add_, of(target), of(other), alpha=Text(alpha), writes=[target])
    else:
        program.append(foreach_add_, targets, others, alpha=Text(alpha), writes=targets)


def leave_gradient(program: Program, grad: Value, g: Value) -> None:
    """Record how g is added to ``.grad``."""
    factors = _factors(program, g)
    if factors is not None and factors[1].tensor.dim() == 2:
        program.append(Tensor.addmm_, grad, *factors, writes=[grad])
    else:
        program.append(Tensor.add_, grad, g, writes=[grad])


def _add_gradient(program: Program, target: Value, g: Any, of: Part, alpha: str, beta: str, pure: bool) -> None:
    """target ← beta target + alpha g, as one product where g is one that nothing else reads."""
    if pure:
        if beta:
            program.append(Tensor.mul_, target, Text(beta), writes=[target])
        program.append(Tensor.add_, target, _times(alpha, g), writes=[target])
        return
    scales = ({"beta": Text(beta)} if beta else {}) | ({"alpha": Text(alpha)} if alpha else {})
    factors = _factors(program, g) if isinstance(g, Value) else None
    if factors is not None:
        method = Tensor.addmv_ if factors[1].tensor.dim() == 1 else Tensor.addmm_
        program.append(method, target, *factors, **scales, writes=[target])
        return
    if isinstance(g, Value):
        g = _without_cast(program, g)
    if beta and not alpha and _is_float(target):  # in low precision torch rounds twice
        program.append(torch.add, g, of(target), alpha=Text(beta), out=of(target), writes=[target])
        return
    if beta:
        program.append(Tensor.mul_, of(target), Text(beta), writes=[target])
    if alpha.startswith("-"):
        program.append(Tensor.sub_, of(target), g, writes=[target], **_alpha(alpha[1:]))
    else:
        program.append(Tensor.add_, of(target), g, writes=[target], **_alpha(alpha))


def _times(scale: str, value: Value) -> Formula:
    """scale value, where the scale may be a tensor."""
    return Formula(f"{scale} * {{}}" if scale else "{}", (value,))


def _without_cast(program: Program, g: Value) -> Value:
    """What g is a copy of in a wider dtype, which adding it makes anyway."""
    call = program.producer(g)
    if call is None or call.name not in CASTS or not call.made or program.is_read(g):
        return g
    narrow: Value = call.args[0]
    return narrow if narrow.tensor.dtype in (torch.float16, torch.bfloat16) else g


Part = Callable[[Value], Any]
"""What of a value the update is about: all of it, or the rows whose turn it is."""


@contextlib.contextmanager
def _gradients(program: Program, W: Value, gradients: list[Value]) -> Iterator[tuple[list[Any], Part]]:
    """The gradients as the update takes them, and the part of each value that it takes at once: oneDNN's products are
    made where they are taken, and of one of a large W, which is the only one then, some rows at a time."""
    products = [_product(program, g) for g in gradients]
    rows = _blocks(program, W, gradients[0])
    if not rows or products[0] is None:
        taken = [g if product is None else product for g, product in zip(gradients, products, strict=True)]
        yield taken, lambda value: value
        return
    delta_t, a_t = products[0].values
    view = program.producer(delta_t)
    with torch.no_grad():
        transposed = program.value(program.call(Tensor.contiguous, (delta_t.tensor,), {}))
    if transposed is not delta_t and view is not None:
        transposed.name = f"{view.args[0].name}_transposed"
    with program.loop(rows, W.tensor.shape[0]) as loop:
        yield [Formula(PRODUCT.replace("{}", f"{{}}[{loop.variable}]", 1), (transposed, a_t))], loop.block_of


def _blocks(program: Program, W: Value, g: Value) -> int:
    """How many rows of W are updated at a time, where they are not all."""
    product = _product(program, g)
    if W.tensor.numel() <= BLOCK or product is None:
        return 0
    samples = product.values[0].tensor.shape[1]
    return max(BLOCK // W.tensor.shape[1], min(samples, ROWS), 1)


def _product(program: Program, g: Value) -> Formula | None:
    """g as oneDNN's product δᵀ a, if it is one that nothing else reads."""
    call = program.producer(g)
    if call is None or call.function is not onednn_linear or call.args[2] is not None or program.is_read(g):
        return None
    return Formula(PRODUCT, (call.args[0], call.args[1]))


def _alpha(alpha: str) -> dict[str, Text]:
    return {} if alpha in ("", "1") else {"alpha": Text(alpha)}


def _factors(program: Program, g: Value) -> tuple[Value, Value] | None:
    """The two factors of which g is the product: of δᵀ a, or of Σ δ, which is δᵀ 1."""
    call = program.producer(g)
    if call is None or call.written or not call.made:
        return None
    if program.is_read(g):
        return None
    if call.name == "mm" and not call.kwargs and _is_float(g):
        return call.args[0], call.args[1]
    if call.name == "sum" and _is_float(g) and _sums_rows(call):
        delta = call.args[0]
        return _transposed(program, delta), _ones(program, delta)
    return None


def _sums_rows(call: Call) -> bool:
    delta, *dims = call.args
    return not call.kwargs and delta.tensor.dim() == 2 and dims in ([0], [(0,)], [[0]])


def _is_float(g: Value) -> bool:
    return g.tensor.dtype in (torch.float32, torch.float64)


def _transposed(program: Program, delta: Value) -> Value:
    with torch.no_grad():
        return program.value(program.call(torch.t, (delta.tensor,), {}))


def _ones(program: Program, delta: Value) -> Value:
    ones = program.value(program.call(torch.ones, (delta.tensor.shape[0],), _like(delta.tensor)))
    ones.name = "ones"
    return ones


def _like(t: Tensor) -> dict[str, object]:
    return {"dtype": t.dtype, "device": t.device}


@dataclass(frozen=True)
class _Family:
    """What of the optimizers of a class a program may make."""

    structure: Callable[[Optimizer, dict[str, Any]], tuple[Any, ...] | None]
    """What of the hyperparameters of a group is part of the program's shape; None if the optimizer makes its own
    step."""

    form: Callable[..., SGD | Adam]
    """The form of the update, of the structure and a suffix."""

    with_all_state: Callable[[dict[str, Any]], SGD | Adam]
    """A form that has all of the state that a parameter of a group may have."""


def _adam_of(group: dict[str, Any]) -> Adam:
    return Adam(False, group["amsgrad"], group["maximize"], bool(group.get("fused")))


_ADAM = _Family(_structure_of_adam, Adam, _adam_of)
_FAMILIES: dict[type[Optimizer], _Family] = {
    torch.optim.SGD: _Family(_structure_of_sgd, SGD, lambda group: SGD(True, True, True, True, True)),
    torch.optim.Adam: _ADAM,
    torch.optim.AdamW: _ADAM,
}
"""The optimizers whose update may be part of a program; every other makes its own step."""
