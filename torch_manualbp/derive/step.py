"""The derived training step."""

from __future__ import annotations

import inspect
import itertools
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from operator import is_
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import torch
from torch import Tensor
from torch.amp import GradScaler
from torch.nn import Module, Parameter
from torch.optim import Optimizer

from torch_manualbp._files import write_text
from torch_manualbp._torch import (
    default_device,
    dispatch_modes,
    function_modes,
    is_autocast_enabled,
    modes_around,
    pytree,
    saved_tensors_hooks,
)
from torch_manualbp.derive.buffers import Kept
from torch_manualbp.derive.check import is_close, is_rounding, loss_by_autograd
from torch_manualbp.derive.derived import Derived, How, KeptLayer, OddStateError
from torch_manualbp.derive.deriving import derived_program, holds_at
from torch_manualbp.derive.draws import Draws, random_states
from torch_manualbp.derive.effects import is_accumulated_by_others, refuse_scripted
from torch_manualbp.derive.expected import OtherNumbersError
from torch_manualbp.derive.fused import Fusing, Making, NotMadeError
from torch_manualbp.derive.held_memory import HeldMemory
from torch_manualbp.derive.interruptions import Uninterrupted
from torch_manualbp.derive.processes import Processes, ProcessesError, refuse_empty, unwrapped
from torch_manualbp.derive.ranges import Range, Sizes, alike_but_for_sizes, sizes_of
from torch_manualbp.derive.reads import Reads, address_of, are_unchanged, bases_of, dict_version, have_hooks
from torch_manualbp.derive.scaling import ScaledLoss, scale_of
from torch_manualbp.derive.tape import NotDerivableError
from torch_manualbp.derive.update import (
    depends_on_state,
    has_odd_state,
    hooks_of,
    is_forked,
    kind_of,
    kind_of_zeros,
    namespaces_of,
    structure_of,
)

__all__ = ["TrainStep"]

PROGRAMS = 96
"""How many programs are kept: those that were used last."""

WITH_MEMORY = 3
"""How many of them have memory to compute in: as many as a loop with a last short batch and an evaluation takes turns
with. To make that of another one again takes as long as a few steps."""

SCALARS = bool | int | float | complex | str | bytes | torch.dtype | torch.device | None
"""What is all in its repr."""

OFTEN = 24
"""How many programs for other numbers are derived before the user hears of it."""

APART = 12
"""How many programs of other sizes are derived each for itself before the user hears of it."""

PAIRED = 4
"""How many programs are compared with each other, to find two that are one but for sizes."""

KEPT = ("keep_deltas", "keep_output", "keep_layers")


@dataclass
class _Entry:
    """A program, and what it was derived for."""

    form: list[Any]
    reads: Reads
    derived: Derived
    runs: int = 0
    next_look: int = 2
    """The run at which its loss is compared with the model's own again."""

    last: _Last | None = None
    """What its last call was keyed by."""

    sizes: Sizes | None = None
    """Of the data that it was derived for, where it may be one of a range."""

    range: Range | None = None
    """The range that it is of."""

    fusing: Fusing | None = None
    """What comes of its kernels in the background."""


class _Last:
    """All that the program of the last call is keyed by, compared as a whole, since one after another takes twice as
    long. It says no to much that has not changed."""

    def __init__(self, step: TrainStep, entry: _Entry, inputs: Any, target: Any, leaves: list[Tensor]) -> None:
        optimizer, reads = step.optimizer, entry.reads
        self._groups = groups = [*optimizer.param_groups]
        self._lists = [group["params"] for group in groups]
        self._parameters = [*chain.from_iterable(self._lists)]
        self._lengths = [len(groups), *map(len, self._lists)]
        self._hold = _always if reads.is_simple else reads.hold
        own = vars(step), vars(optimizer), *groups, *namespaces_of(optimizer)
        self._versioned = *own, *reads.versioned
        self._tensors, self._objects, self._derived = reads.tensors, (optimizer, *reads.objects), reads.derived
        self._empty = *hooks_of(optimizer), *reads.empty
        self._now = [*map(dict_version, own), *reads.versions, *reads.addresses, type(optimizer), *reads.classes]
        self._now += reads.bases
        self._around = _surroundings()
        self._are_such = are_unchanged((*leaves, *reads.tensors))
        self._together = _together(inputs, target, leaves)
        self._reduces = step._processes is None or step._processes.reduces()
        if not reads.hold():  # which another thread may have changed meanwhile
            self._now = []

    def serves(self, step: TrainStep, inputs: Any, target: Any, leaves: list[Tensor]) -> bool:
        """Whether it is the program of this call."""
        tensors, groups, processes = self._tensors, step.optimizer.param_groups, step._processes
        try:
            now = [*map(dict_version, self._versioned), *map(address_of, tensors), *map(type, self._objects)]
            now += map(bases_of, self._derived)
            return (
                now == self._now
                and [len(groups), *map(len, self._lists)] == self._lengths
                and all(map(is_, groups, self._groups))
                and all(map(is_, chain.from_iterable(self._lists), self._parameters))
                and not any(self._empty)
                and not have_hooks(tensors)
                and _together(inputs, target, leaves) == self._together
                and self._are_such(*leaves, *tensors)
                and not any(map(vars, leaves))
                and _surroundings() == self._around
                and (processes is None or processes.reduces() == self._reduces)
                and not is_autocast_enabled()
                and saved_tensors_hooks() is None
                and self._hold()
            )
        except (AttributeError, RuntimeError):  # of tensors that have no memory any more
            return False


def _surroundings() -> tuple[Any, ...]:
    of_dtype = torch.get_default_dtype()
    return is_forked(), of_dtype, default_device.CURRENT_DEVICE, function_modes(), dispatch_modes()


def _always() -> bool:
    return True


def _leaves(inputs: Any, target: Any) -> list[Tensor]:
    """The tensors of what a step is called with: tensors, and tuples of them; none if it is of something else, too."""
    if type(inputs) is type(target) is Tensor:  # in a third of the time
        return [inputs, target]
    leaves: list[Tensor] = []
    for tree in (inputs, target):
        leaves += tree if type(tree) is tuple else (tree,)
    return leaves if all(type(t) is Tensor for t in leaves) else []


def _together(inputs: Any, target: Any, leaves: list[Tensor]) -> tuple[Any, ...]:
    """How the tensors are put together, and which of them are one."""
    if type(inputs) is type(target) is Tensor:
        return (inputs is target,)
    ids = list(map(id, leaves))
    lengths = [len(tree) if type(tree) is tuple else None for tree in (inputs, target)]
    return *lengths, *map(ids.index, ids)


class TrainStep:
    """A training step of a model without an autograd graph, derived from the rules.

    ::

        step = TrainStep(model, loss, optimizer)
        C = step(inputs, target)                  # zero_grad, forward, loss, backward, optimizer.step()
        print(step.source)                        # what it does, in formulas
        print(step.program)                       # the program that did it

    A call with shapes, dtypes, training modes and frozen parameters that were not there before derives a program; later
    calls run it. Its numbers are those of stock PyTorch to rounding: before a program changes a parameter, its loss,
    output and gradients are compared with autograd's on the same batch. Learning rates and the other hyperparameters
    are read from the optimizer at every step, and its state is where the optimizer keeps it.

    Under ``torch.optim.SGD``, ``Adam`` and ``AdamW`` the update is part of the program, and ``.grad`` is left alone;
    SGD's is folded into the product, so that ∂C/∂W of a linear layer is never stored. Under any other optimizer, and
    with accumulation, gradients go into new tensors in ``.grad``, and the optimizer makes its own step.

    A call also derives anew where something is another that forward or loss read from Python: modules, parameters,
    buffers, attributes of any depth, globals, closures, arrays, functions and classes. A float of a module that
    changes is an input of the next program, if its code takes one. Tensors that they hold beside parameters and buffers
    are read at each call. What forward writes to buffers in place is done at each call, together with the update; what
    else it changes, besides making tensors, is refused.

    An interruption, such as Ctrl-C's, waits until the update is made wholly. Calls from several threads wait for one
    another.

    Args:
        model: of layers of ``torch_manualbp.nn``, or stock ones that have a twin there, and operations that have rules.
        loss: a function or module of (output, target) that returns one number.
        optimizer: of the model's parameters.
        keep_deltas: leave ∂C/∂z of every module's output z in ``deltas``, by module path, until the next step.
        keep_output: leave the model's output in ``output``.
        keep_grad_norm: leave the norm of the gradients in ``grad_norm``, where they are not clipped by it, too.
        keep_layers: leave x, z, a, δ and ∂C/∂a of every linear layer in ``layers``, until the next step; it may be set
            for single steps, which have a program of their own.
        compile: hand the whole program to ``torch.compile`` as one graph.
        skip_nonfinite: update nothing where the loss is NaN or infinite, and count it in ``skipped``.
        accumulate: average the gradients of so many calls, and update at the last of them.
        clip_norm: scale the gradient to this norm where it is longer, as ``torch.nn.utils.clip_grad_norm_``: lines of
            the program, which take the bound as they take learning rates. It may be set anew between two steps.
        freeze_others: take parameters that the optimizer does not hold for constants, such as a discriminator's in the
            step of its generator.
        process_group: the processes of torch.distributed that make each step together, by the mean of their gradients;
            the first one's parameters and buffers are everybody's from now on. A model in ``DistributedDataParallel``
            brings its own.
        fuse: run lines that go entry by entry, and reductions, in kernels that torch's compiler makes of them, one for
            all between two products. ``"auto"`` begins without, has them made by another process when a program has
            run for ten seconds, and goes on with them when they are there: numbers change by rounding then, so not
            where ``torch.use_deterministic_algorithms`` is set. True waits for them before the first step. Without a
            compiler the lines run as they are, and a warning says so; several processes run them as they are, too.
            ``fused`` says what has become of it.
        scaler: a ``torch.amp.GradScaler``, by whose scale the loss is multiplied on the way back: gradients are scaled
            in ``.grad`` after ``backward``, and ``update``, or the call itself, divides them by it, clips, leaves the
            update out where one is not finite, and has the scaler change its scale. ``deltas`` are scaled, too.
        clip_value: clamp every entry of the gradient to ± this, as ``torch.nn.utils.clip_grad_value_``.
        check: compare every program with autograd before it changes a parameter, and its loss with the model's own at
            its runs 2, 10, 100, 1,000, …; with ``"every"`` derive and compare it anew each ``check_every`` runs, too.
            False trusts the program.
        check_every: the runs between two comparisons with ``check="every"``.

    Raises:
        NotDerivableError: when called, if the model does what cannot be written out, with every place, or if the
            program's numbers are not autograd's.
        ValueError: an argument is out of its range, or a parameter that learns is not the optimizer's.
        ProcessesError: when called, if another process could not make the step, or has derived another program.
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
        keep_grad_norm: bool = False,
        freeze_others: bool = False,
        scaler: GradScaler | None = None,
        process_group: Any = None,
        fuse: bool | Literal["auto"] = "auto",
        check: bool | Literal["every"] = True,
        check_every: int = 100,
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
        for name, bound in (("clip_norm", clip_norm), ("clip_value", clip_value)):
            is_number = isinstance(bound, int | float) and bound > 0
            _check(name, bound, bound is None or is_number, "a number above 0, or None")
        _check("check", check, check in (True, False, "every"), 'True, False, or "every"')
        often = isinstance(check_every, int) and check_every >= 1
        _check("fuse", fuse, fuse in (True, False, "auto"), 'True, False, or "auto"')
        _check("check_every", check_every, often, "a whole number of at least 1")
        is_scaler = scaler is None or isinstance(scaler, GradScaler)
        _check("scaler", scaler, is_scaler, "a torch.amp.GradScaler, or None")
        self.model, self._processes = unwrapped(model)
        if process_group is not None:
            _check("process_group", process_group, self._processes is None, "nothing, where the model brings its own")
            is_known = isinstance(process_group, Processes)
            self._processes = process_group if is_known else Processes.of(process_group, self.model)
        _check("compile", compile, not (compile and self._processes), "False, where several processes make a step")
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
        self.keep_grad_norm = keep_grad_norm
        self.freeze_others = freeze_others
        self.scaler = scaler
        self._scaled: ScaledLoss | None = None
        self.fuse = fuse
        self.check = check
        self.check_every = check_every
        self.deltas: dict[str, Tensor] = {}
        """∂C/∂(output) of every module, by its path, after a step with ``keep_deltas``."""

        self.output: Any = None
        """What the model returned, after a step with ``keep_output``: new tensors at each step, without a graph; a
        parameter or an input that it returns is that tensor itself, as in torch."""

        self.layers: list[KeptLayer] = []
        """The uses of linear layers in the order of the forward, after a step with ``keep_layers``."""

        self.skipped = 0
        """How many steps updated nothing because their loss was not finite."""

        refuse_scripted([model, loss])
        self._norm: list[Tensor | None] = [None]  # in a list, since attributes say which program runs
        self._done = 0  # calls since the last update
        self._programs: list[_Entry] = []
        """The programs, the one that was used last at the end."""

        self._is_odd = False
        """Whether the optimizer's state was of a kind at the last call that its own step has to deal with."""

        self._constants: set[tuple[int, str]] = set()
        """Attributes, by the id of their dict, whose numbers forward or loss reads."""

        self._has_warned = False
        self._lock = threading.RLock()

    def reset(self) -> None:
        """Forget the programs, and derive them anew when they are called for. An accumulation begins anew."""
        with self._lock:
            self._programs = []
            self._done = 0

    def __getstate__(self) -> dict[str, Any]:
        """All but the programs, which are derived anew when they are called for; and the gradients that wait for an
        update, which copies of parameters leave behind."""
        if self._processes is not None:
            raise TypeError("the step of several processes cannot be copied: make another one of the copied model")
        state = {name: value for name, value in vars(self).items() if name not in ("_programs", "_lock", "_constants")}
        return {**state, "_waiting": [(p, p.grad) for p in self._parameters() if p.grad is not None]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for p, gradient in state.pop("_waiting"):
            p.grad = gradient
        vars(self).update(state, _programs=[], _constants=set(), _lock=threading.RLock())

    @property
    def folds(self) -> bool:
        """Whether the update is part of the program; if not, the optimizer makes a step of its own."""
        return self._structure() is not None

    @property
    def grad_norm(self) -> Tensor | None:
        """The norm of all gradients together at the last update, before they were clipped, as
        ``torch.nn.utils.clip_grad_norm_`` returns it: a new tensor of no dimension. None where there was no update yet,
        or nobody asked for the norm by ``clip_norm`` or ``keep_grad_norm``."""
        return self._norm[0]

    @property
    def source(self) -> str:
        """The last step as formulas to read, in Python that computes the same and knows nothing of memory.

        Raises:
            RuntimeError: there was no step yet.
            NotDerivableError: a rule of somebody's own asks for numbers, which the formulas are written without.
        """
        return self._program().article.source.text

    def memory(self) -> HeldMemory:
        """What memory the last program holds beside parameters and state, and what lives in it: printed a table,
        ``.svg()`` a picture.

        Raises:
            RuntimeError: there was no step yet.
        """
        memory = self._program().memory
        assert memory is not None
        return memory

    @property
    def fused(self) -> str:
        """What has become of ``fuse`` in the last program."""
        if not self._programs:
            return "there is no program yet"
        derived, fusing = self._programs[-1].derived, self._programs[-1].fusing
        if derived.count_of_kernels:
            return f"{derived.count_of_kernels} kernels in place of {derived.count_of_fused} calls"
        return "as it is written" if fusing is None else f"as it is written; {fusing.state}"

    @property
    def program(self) -> str:
        """The last step as it runs: the same with its memory planned, written in place, with kernels chosen.

        Raises:
            RuntimeError: there was no step yet.
        """
        return self._program().source.text

    def _repr_html_(self) -> str:
        """The source, highlighted; the program below it, to be opened."""
        from torch_manualbp import _html  # notebooks alone ask for it

        names = (type(self.model).__name__, getattr(self.loss, "__name__", type(self.loss).__name__))
        about = f"A training step of {names[0]} on {names[1]} with {type(self.optimizer).__name__}"
        if not self._programs:
            return _html.section(_html.paragraph(f"{about}: no program yet. Call it, or derive(inputs, target)."))
        try:
            source = _html.code(self.source)
        except NotDerivableError as error:
            source = _html.paragraph(str(error))
        program = _html.folded("The program that runs", _html.code(self.program))
        return _html.section(_html.paragraph(f"{about}:"), source, program)

    def save(self, path: str | Path, program: bool = False) -> None:
        """Write the source, or the program, as a module that imports torch and Python's library alone.

        ``build(parameters, state)`` of it takes the parameters and buffers by name. Other tensors that model and loss
        hold are in the file, unless they are among the parameters, too.

        Raises:
            RuntimeError: there was no step yet.
        """
        derived = self._program()
        write_text(path, derived.text_to_save() if program else derived.article.text_to_save())

    def __call__(self, inputs: Any, target: Any) -> Tensor:
        """One step.

        Args:
            inputs: a tensor, or a tuple of the model's arguments, or a mapping of them by name.
            target: what the loss takes besides the output.

        Returns:
            The loss before the update, a tensor of no dimension.
        """
        with self._together():
            try:
                leaves = _leaves(inputs, target)
                entry = self._programs[-1] if self._programs else None
                last = None if entry is None or not leaves else entry.last
                if entry is None or last is None or not last.serves(self, inputs, target, leaves):
                    entry = last = None  # which may hold what is gone
                    structure = self._structure()
                    if structure is None:
                        return self._through_gradients(inputs, target)
                    entry = self._find(inputs, target, structure)
                    is_plain = bool(leaves) and not depends_on_state(self.optimizer) and not modes_around()
                    entry.last = _Last(self, entry, inputs, target, leaves) if is_plain else None
                with Uninterrupted():
                    C = self._run(entry, inputs, target)
            except OddStateError:
                self._is_odd = True
                return self._through_gradients(inputs, target)
            if self._programs[-1].derived.skipped:  # what is assigned counts as changed, also the same number
                self.skipped += 1
            return C

    def backward(self, inputs: Any, target: Any, share: float = 1.0) -> Tensor:
        """Add the gradients, times ``share``, to ``.grad``, and update nothing. Returns the loss.

        With ``skip_nonfinite`` a loss that is not finite adds nothing, and counts in ``skipped``.
        """
        with self._together():
            adds = any(p.grad is not None for p in self._parameters())
            target = self._with_scale(target)
            entry = self._find(inputs, target, None, adds, share)
            with Uninterrupted():
                return self._unscaled(self._run(entry, inputs, target), target)

    def evaluate(self, inputs: Any, target: Any) -> Tensor:
        """The loss by the same rules, in the mode that the model is in, without gradients or an update.

        With ``keep_output`` the model's output is in ``output``. What forward writes to buffers is written: call
        ``model.eval()`` before it.
        """
        with self._lock:
            entry = self._find(inputs, target, None, evaluates=True)
            with Uninterrupted():
                return self._run(entry, inputs, target)

    def derive(self, inputs: Any, target: Any, program: bool = False) -> str:
        """The source, or the program, of the step on such data, without doing it."""
        with self._lock:
            structure = self._structure()
            if structure is not None and has_odd_state(self.optimizer):
                structure = None
            share = 1 / self.accumulate if structure is None else 1.0
            clips = self.accumulate == 1 and not self._scales()
            derived = self._find(inputs, self._with_scale(target), structure, share=share, clips=clips).derived
            return derived.source.text if program else derived.article.source.text

    def _through_gradients(self, inputs: Any, target: Any) -> Tensor:
        done, self._done = self._done, 0
        adds = done > 0 and any(p.grad is not None for p in self._parameters())
        is_last = done + 1 >= self.accumulate
        clips = self.accumulate == 1 and not self._scales()
        target = self._with_scale(target)
        entry = self._find(inputs, target, None, adds, 1 / self.accumulate, reduces=is_last, clips=clips)
        try:
            with Uninterrupted():
                if done == 0:
                    self.optimizer.zero_grad()
                skipped = self.skipped
                C = self._run(entry, inputs, target)
                self._done = done + (self.skipped == skipped)
                if self._done >= self.accumulate:
                    self._step_by_grad(is_clipped=entry.derived.how.clips)
        except BaseException:
            self._done = 0  # a window begins anew
            raise
        return self._unscaled(C, target)

    @contextmanager
    def join(self) -> Iterator[None]:
        """A block in which each of several processes makes as many steps as it has batches. One that has no batch any
        more adds zeros to the gradients of the others, which are divided by the number of all processes, as under
        ``DistributedDataParallel.join``; at the end parameters, buffers and the optimizer's state are those of the
        process that made the last step.

        Raises:
            ProcessesError: another process has failed, or this one had no batch at all.
        """
        yield
        processes, model = self._processes, self.model
        if processes is None:
            return
        reducing = [entry.derived for entry in self._programs if entry.derived.buckets]
        if not reducing:
            raise ProcessesError("this process had no batch, and knows no program whose gradients it can add zeros to")
        processes.keep_up(reducing[-1].buckets, reducing[-1].rooms, list(model.buffers()))
        state = (self.optimizer.state.get(p, {}) for p in self._parameters())
        of_optimizer = [t for of in state for t in of.values() if isinstance(t, Tensor)]
        processes.share([*model.parameters(), *model.buffers(), *of_optimizer], processes.last)

    @property
    def _group(self) -> Any:
        return None if self._processes is None else self._processes.group

    def _together(self) -> AbstractContextManager[Any]:
        """A block of this thread alone, in which other processes hear of an exception, if there are any."""
        return self._lock if self._processes is None else self._told(self._processes)

    @contextmanager
    def _told(self, processes: Processes) -> Iterator[None]:
        with self._lock, processes.told():
            yield

    def update(self) -> None:
        """Clip what is in ``.grad``, and have the optimizer make its step. The next call begins a new window."""
        with self._lock, Uninterrupted():
            self._step_by_grad()

    def _step_by_grad(self, is_clipped: bool = False) -> None:
        self._done = 0
        scaler = self.scaler if self._scales() else None
        if scaler is not None:
            scaler.unscale_(self.optimizer)
        if not is_clipped:
            learnt = [p for p in self._parameters() if p.grad is not None]
            self._norm[0] = None
            if self.clip_norm is not None:
                self._norm[0] = torch.nn.utils.clip_grad_norm_(learnt, self.clip_norm)
            elif self.keep_grad_norm:
                self._norm[0] = torch.nn.utils.get_total_norm([p.grad for p in learnt if p.grad is not None])
            if self.clip_value is not None:
                torch.nn.utils.clip_grad_value_(learnt, self.clip_value)
        if scaler is None:
            self.optimizer.step()
        else:
            scaler.step(self.optimizer)
            scaler.update()

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def _run(self, entry: _Entry, inputs: Any, target: Any) -> Tensor:
        """Run a program, or where it reads other numbers than it is for the one that is for these."""
        while True:
            drawn = random_states(entry.derived.device) if entry.derived.answers else []
            counts = entry.runs, entry.next_look
            try:
                return self._run_once(entry, inputs, target)
            except OtherNumbersError as error:
                entry.runs, entry.next_look = counts
                for put_back, state in drawn:
                    put_back(state)
                entry = self._for_numbers(entry, error.met, inputs, target)

    def _for_numbers(self, entry: _Entry, met: list[Any], inputs: Any, target: Any) -> _Entry:
        """The program of such data that reads these numbers first."""
        alike = [other for other in self._programs if other.form == entry.form and other.reads.hold()]
        for other in reversed(alike):
            if [answer.value for answer in other.derived.answers[: len(met)]] == met:
                self._programs.remove(other)
                self._programs.append(other)
                return self._with_memory(other)
        if len(alike) == OFTEN:
            where = entry.derived.answers[len(met) - 1].where
            warnings.warn(_OFTEN.format(OFTEN, where), stacklevel=4)
        derived, reads = self._derived(entry.form, inputs, target, entry.derived.how)
        if [answer.value for answer in derived.answers[: len(met)]] != met:
            raise NotDerivableError([("", *_UNSTEADY)])
        self._programs[: max(len(self._programs) - PROGRAMS + 1, 0)] = []
        self._programs.append(_Entry(entry.form, reads, derived))
        return self._with_memory(self._programs[-1])

    def _run_once(self, entry: _Entry, inputs: Any, target: Any) -> Tensor:
        derived, loss, expected = entry.derived, self.loss, None
        entry.runs += 1
        if self.check:
            if self.check == "every" and entry.runs % self.check_every == 0:
                self._derive_again(entry, inputs, target)
            if entry.runs == entry.next_look:
                entry.next_look *= 5 if entry.runs == 2 else 10
                if any(map(is_accumulated_by_others, derived.parameters)):
                    self._programs.remove(entry)
                    raise NotDerivableError([("", *_ACCUMULATED)])
                loss = self._loss_of(derived.how)
                with torch.inference_mode(False), Kept({str(i): t for i, t in enumerate(derived.buffers)}):
                    expected = loss_by_autograd(self.model, loss, inputs, target, Draws())[0].detach().clone()
        if type(inputs) is type(target) is Tensor:
            leaves = [inputs, target]
        else:
            leaves = [leaf for leaf in pytree.tree_leaves((inputs, target)) if isinstance(leaf, Tensor)]
        if derived.buckets and self._processes is not None:
            self._processes.begin(derived.buckets, list(self.model.buffers()))
        leaves = [t if t.data_ptr() in derived.apart else derived.apart_from_memory(t) for t in leaves]
        grads = self._taken_gradients(derived, leaves) if derived.how.adds else []
        for item in entry.reads.floats:
            item.fill()
        fusing = entry.fusing
        began = 0.0 if fusing is None else perf_counter()
        bounds = [getattr(self, name) for name in derived.bounds]
        result = derived.run([*leaves, *grads], bounds)
        if self.layers:
            self.layers = []
        if isinstance(result, tuple):
            result, *more = result
            if derived.has_norm:
                norm, *more = more
                self._norm[0] = self._norm[0] if derived.skipped else norm
            gradients = derived.gradients(more)
            kept = iter(more)
            self.deltas = {path: next(kept) for path in derived.deltas}
            self.layers = [layer.of_step(kept) for layer in derived.layers]
            self.output = derived.output(kept)
        else:
            gradients = []
        if derived.how.folds and not (derived.has_norm or derived.skipped):
            self._norm[0] = None
        C: Tensor = result
        if not derived.how.folds and not derived.how.evaluates:
            self._leave(derived, gradients or grads)
        if (
            expected is not None
            and not is_close(C, expected, derived.rounded)
            and not is_rounding(C, expected, self.model, loss, inputs, target, derived.rounded)
        ):
            self._programs.remove(entry)
            raise NotDerivableError([("", _STALE.format(C.item(), expected.item(), entry.runs), _STALE_TODO)])
        if fusing is not None and self.fuse == "auto":
            self._go_on_fusing(entry, fusing, perf_counter() - began, inputs, target)
        return C

    def _go_on_fusing(self, entry: _Entry, fusing: Fusing, seconds: float, inputs: Any, target: Any) -> None:
        """Have kernels made in the background once a program has run for long enough, and take them when they are."""
        if not fusing.is_time(seconds):
            return
        try:
            if fusing.derived is None:
                how = replace(entry.derived.how, fuse=True)
                floats = [(item.attributes, item.name, item.key) for item in entry.reads.floats]
                about = self.model, self._loss_of(how), self.optimizer, inputs, target, how, bool(self.check)
                again, _ = derived_program(*about, floats)
                if again.answers == entry.derived.answers:
                    fusing.begin(again)
                    return
            else:
                fused = fusing.taken()
                fused.bind()
                entry.derived.release()
                entry.derived = fused
        except NotMadeError as error:
            self._warn(str(error))
        except (NotDerivableError, RuntimeError, TypeError, ValueError):  # the program that runs is as good as ever
            pass
        entry.fusing = None

    def _taken_gradients(self, derived: Derived, leaves: list[Tensor]) -> list[Tensor]:
        """What is in ``.grad``, for the program to add to."""
        there = [p.grad for p in derived.parameters if p.grad is not None]
        if len({g.untyped_storage().data_ptr() for g in there}) < len(there):
            raise ValueError("the .grad of two parameters is one tensor: give each one of its own, or set them to None")
        taken = []
        for p in derived.parameters:
            g = p.grad
            if g is None:
                g = torch.zeros_like(p).detach()
            elif kind_of(g) != kind_of_zeros(p) or g.requires_grad:
                g = torch.empty_like(p).detach().copy_(g.detach())
            taken.append(g)
        memory = {g.untyped_storage().data_ptr() for g in taken}
        leaves[:] = [t.clone() if t.untyped_storage().data_ptr() in memory else t for t in leaves]
        return taken

    def _leave(self, derived: Derived, gradients: list[Tensor]) -> None:
        """Put the gradients into ``.grad``."""
        if derived.skipped:
            self.skipped += 1
            return
        for p, gradient in zip(derived.parameters, gradients, strict=True):
            p.grad = gradient

    def _derive_again(self, entry: _Entry, inputs: Any, target: Any) -> None:
        """Derive the program of an entry once more, compared with autograd, and compare the two.

        Raises:
            NotDerivableError: they are not the same.
        """
        floats = [(item.attributes, item.name, item.key) for item in entry.reads.floats]
        about = self.model, self._loss_of(entry.derived.how), self.optimizer, inputs, target, entry.derived.how
        again, _ = derived_program(*about, True, floats, self._group)
        if again.source.text != entry.derived.source.text:
            self._programs.remove(entry)
            pairs = zip(again.source.lines, entry.derived.source.lines, strict=False)
            line = next(
                (f"{now.strip()!r} for {before.strip()!r}" for now, before in pairs if now != before), "its end"
            )
            what = f"derived anew at run {entry.runs}, the program has {line}"
            raise NotDerivableError([("", what, "keep what forward reads in attributes, or in tensors")])

    def _find(
        self,
        inputs: Any,
        target: Any,
        structure: Any,
        adds: bool = False,
        share: float = 1.0,
        evaluates: bool = False,
        reduces: bool = True,
        clips: bool = False,
    ) -> _Entry:
        """The program for this call, derived if there is none yet."""
        clipping = self._clipping() if clips or structure is not None else {}
        processes = self._processes
        if processes is not None:
            refuse_empty(inputs, target)
        count = 1 if processes is None or not reduces or evaluates or not processes.reduces() else processes.count
        form = [
            _form(inputs),
            _form(target),
            _repeated(inputs, target),
            structure,
            adds,
            share,
            torch.get_autocast_dtype("cpu") if is_autocast_enabled() else None,
            torch.get_default_dtype(),
            default_device.CURRENT_DEVICE,
            saved_tensors_hooks(),
            modes_around(),
            [list(map(id, group["params"])) for group in self.optimizer.param_groups],
            (id(self.model), id(self.loss), id(self.optimizer), self._scales()),
            (self.keep_deltas, self.keep_output, self.keep_layers, self.compile, self.skip_nonfinite),
            (self.freeze_others, evaluates, count, id(processes), self.fuse is True, *clipping.values()),
        ]
        entries = self._programs
        for i in range(len(entries) - 1, -1, -1):
            entry = entries[i]
            if entry.form == form and entry.reads.hold():
                if i != len(entries) - 1:
                    entries.append(entries.pop(i))
                return self._with_memory(entry)
        if any(entry.reads.has_weak for entry in entries):  # what is gone is not to be there for forward
            self._programs = entries = [e for e in entries if not e.reads.has_weak or e.reads.hold()]
            del entry
        fuse = self.fuse is True and not self._has_warned and processes is None
        if evaluates:
            how = How(False, compile=self.compile, fuse=fuse, keep_output=self.keep_output, evaluates=True)
        else:
            kept = {name: getattr(self, name) for name in (*KEPT, "freeze_others")} | clipping
            how = How(
                structure is not None, adds, share, self.compile, fuse, self.skip_nonfinite, processes=count, **kept
            )
        if structure is not None and has_odd_state(self.optimizer):
            raise OddStateError
        sizes = sizes_of(inputs, target) if self.check is True and not how.compile and not how.fuse else None
        if sizes is not None and (of_range := self._of_range(form, sizes, inputs, target)) is not None:
            return self._with_memory(of_range)
        began = perf_counter()
        derived, reads = self._derived(form, inputs, target, how)
        if how.fuse and not self._is_fused(derived):
            derived, reads = self._derived(form, inputs, target, replace(how, fuse=False))
        entries[: max(len(entries) - PROGRAMS + 1, 0)] = []
        entries.append(_Entry(form, reads, derived, sizes=sizes))
        if self.fuse == "auto" and not self.compile and not how.evaluates and processes is None:
            entries[-1].fusing = Fusing(perf_counter() - began)
        return self._with_memory(entries[-1])

    def _of_range(self, form: list[Any], sizes: Sizes, inputs: Any, target: Any) -> _Entry | None:
        """The program of these sizes, from those of others that are the same but for them, and held against autograd;
        None where there is none."""
        alike = [
            entry
            for entry in reversed(self._programs)
            if entry.sizes is not None
            and entry.form[2:] == form[2:]
            and alike_but_for_sizes(entry.form[:2], form[:2])
            and not entry.reads.floats
            and entry.reads.hold()
        ]
        ranges = dict.fromkeys(entry.range for entry in alike if entry.range is not None)
        for first, second in itertools.combinations([entry for entry in alike if entry.range is None][:PAIRED], 2):
            assert first.sizes is not None
            assert second.sizes is not None
            made = Range.of(first.derived, second.derived, first.sizes, second.sizes)
            if made is not None:
                first.range = second.range = made
                ranges[made] = None
                break
        apart = [entry for entry in alike if entry.range is None]
        if len(apart) == APART:
            warnings.warn(_APART.format(APART, *(entry.sizes for entry in apart[:2])), stacklevel=5)
        for one in ranges:
            n = one.size_of(sizes)
            if n is None:
                continue
            derived = one.at(n)
            if not holds_at(self.model, self._loss_of(derived.how), inputs, target, derived):
                continue
            reads = next(entry.reads for entry in alike if entry.range is one)
            entry = _Entry(form, reads, derived, sizes=sizes, range=one)
            self._programs[: max(len(self._programs) - PROGRAMS + 1, 0)] = []
            self._programs.append(entry)
            return entry
        return None

    def _derived(self, form: list[Any], inputs: Any, target: Any, how: How) -> tuple[Derived, Reads]:
        """A new program; where nothing but floats of modules has changed since another one, with these for inputs."""
        about = self.model, self._loss_of(how), self.optimizer, inputs, target, how, bool(self.check)
        changed = (entry.reads.changed_floats() for entry in reversed(self._programs) if entry.form == form)
        floats = next(filter(None, changed), [])
        if floats and not any((id(at), name) in self._constants for at, name, _ in floats):
            try:
                return derived_program(*about, floats, self._group)
            except (NotDerivableError, RuntimeError, TypeError, ValueError):  # whatever a tensor in its place leads to
                self._constants.update((id(at), name) for at, name, _ in floats)
        return derived_program(*about, group=self._group)

    def _is_fused(self, derived: Derived) -> bool:
        """Make the kernels of a program, and wait for them; where there are none to be had, say so once."""
        making = None
        try:
            making = Making(derived.kernels)
            derived.take(making.result())
        except NotMadeError as error:
            self._warn(str(error))
            return False
        finally:
            if making is not None:
                making.stop()
        return True

    def _warn(self, reason: str) -> None:
        """Say that the step runs without kernels."""
        if not self._has_warned:
            self._has_warned = True
            warnings.warn(f"{_UNFUSED} ({reason})", RuntimeWarning, stacklevel=5)

    def _with_memory(self, entry: _Entry) -> _Entry:
        """The entry of the program that runs next. The memory of those that have not run for the longest goes, but for
        that which all sizes of a range have together."""
        for other in self._programs[:-WITH_MEMORY]:
            if not other.derived.shares_memory:
                other.derived.release()
        entry.derived.bind()
        return entry

    def _structure(self) -> list[Any] | None:
        if self.accumulate > 1 or self._scales():
            return None
        if self.compile and self.skip_nonfinite:  # one graph, which takes no turns
            return None
        structure = structure_of(self.optimizer)
        if self._is_odd and structure is not None:
            self._is_odd = has_odd_state(self.optimizer)
            return None if self._is_odd else structure
        return structure

    def _scales(self) -> bool:
        return self.scaler is not None and self.scaler.is_enabled()

    def _with_scale(self, target: Any) -> Any:
        """The target, and the scale of the loss where there is one."""
        return (target, scale_of(self.scaler)) if self.scaler is not None and self._scales() else target

    def _unscaled(self, C: Tensor, target: Any) -> Tensor:
        """The loss itself, of one with this target."""
        return C / target[1] if self._scales() else C

    def _loss_of(self, how: How) -> Callable[..., Tensor]:
        """The loss that a program is of."""
        if how.evaluates or not self._scales():
            return self.loss
        if self._scaled is None or self._scaled.loss is not self.loss:
            self._scaled = ScaledLoss(self.loss)
        return self._scaled

    def _clipping(self) -> dict[str, bool]:
        """What of the gradients comes before an update."""
        return {
            "clip_norm": self.clip_norm is not None,
            "clip_value": self.clip_value is not None,
            "keep_grad_norm": self.keep_grad_norm,
        }

    def _program(self) -> Derived:
        if not self._programs:
            raise RuntimeError("there is no program yet: call the step, or derive(inputs, target)")
        return self._programs[-1].derived


_UNSTEADY = (
    "forward reads numbers, and finds others on the same batch",
    "have it read what follows from the batch alone",
)
_OFTEN = (
    "{} programs are derived of one step, for the numbers that forward reads at {}: where they are others at nearly "
    "each batch, have its course follow from shapes alone"
)
_UNFUSED = "the derived step runs as it is written, without kernels: there is no compiler that makes them"

_APART = (
    "{} programs were derived for data that differ in sizes alone ({}, {}, …), each for itself, since they are not one "
    "program with other numbers: deriving may take longer than it saves. Pad the data to a few sizes, or have forward "
    "do the same at all of them"
)
_ACCUMULATED = (
    "a hook of the node that accumulates the gradient of a parameter",
    "remove it: a derived step would never call it, and has not where it came after the first",
)
_STALE = (
    "the program's loss is {:.9g}, and the model's own {:.9g}, at run {}: forward or loss read what changes and cannot "
    "be seen, and steps before this one may be wrong"
)
_STALE_TODO = "keep it in an attribute of the model, or in a tensor"


def _repeated(inputs: Any, target: Any) -> Any:
    """Which tensors of the data are one: by each the number of the first that it is."""
    if isinstance(inputs, Tensor) and isinstance(target, Tensor):
        return inputs is target
    ids = [id(leaf) for leaf in pytree.tree_leaves((inputs, target)) if isinstance(leaf, Tensor)]
    return [ids.index(i) for i in ids]


def _form(data: Any) -> Any:
    """What of data a program depends on: all but the numbers."""
    if isinstance(data, Tensor):
        if data.layout is not torch.strided or data.is_nested:
            raise ValueError(f"a {data.layout} tensor is among inputs and target; make it dense")
        is_plain = type(data) is Tensor and not data.__dict__  # since isinstance of Parameter takes 0.3 µs
        if not is_plain and (isinstance(data, Parameter) or data.__dict__):
            what = "a Parameter" if isinstance(data, Parameter) else f"a tensor with the attributes {[*data.__dict__]}"
            raise ValueError(f"{what} is among inputs and target, where a step takes plain tensors: give data.detach()")
        return data.shape, data.stride(), data.dtype, data.requires_grad, data.device, type(data)
    leaves, spec = pytree.tree_flatten(data)
    for leaf in leaves:
        if not isinstance(leaf, Tensor | SCALARS):
            raise ValueError(
                f"a {type(leaf).__name__} is among inputs and target: a step takes tensors, numbers and texts, in "
                "tuples, lists and dicts"
            )
    return spec, [_form(leaf) if isinstance(leaf, Tensor) else (type(leaf), repr(leaf)) for leaf in leaves]


def _check(name: str, value: object, ok: bool, accepted: str) -> None:
    if not ok:
        raise ValueError(f"{name} is {value!r}: it takes {accepted}")
