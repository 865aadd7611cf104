"""One derived program, bound to a model and an optimizer, and how it runs."""

from __future__ import annotations

import copy
import functools
import itertools
import linecache
import math
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from torch_manualbp._torch import is_autocast_enabled, pytree
from torch_manualbp.derive.assembled import Assembled, How, OddStateError, heading_of, state_for
from torch_manualbp.derive.check import rounding
from torch_manualbp.derive.expected import OtherNumbersError
from torch_manualbp.derive.finishing import Update
from torch_manualbp.derive.fused import bound, held
from torch_manualbp.derive.program import Value
from torch_manualbp.derive.reads import are_unchanged, dict_version
from torch_manualbp.derive.recording import KeptLayer, Recording, called, named_tensors, path_of_loss
from torch_manualbp.derive.update import has_odd_state, kind_of

__all__ = ["Derived", "How", "KeptLayer", "OddStateError", "called", "heading_of", "named_tensors", "path_of_loss"]

_is_autocast_enabled = is_autocast_enabled
_numbers = itertools.count(1)

MANY = 1024
"""Addresses of data that are remembered: where each batch has memory of its own, as in a long run, no more are."""


class Derived:
    """A program, bound to the parameters of a model and the state of an optimizer.

    Args:
        recording: of the model and the loss; it is planned, and so of no use afterwards.
        named: the parameters and buffers by name.
        held: other tensors that the model and the loss hold, by name.
        uneven: which of the data have entries that share memory, or gaps.
        heading: what the program is.
        is_looked_at: whether Python's parser is to find in the text what was written.
        group: the processes that make the step together.
    """

    def __init__(
        self,
        recording: Recording,
        optimizer: Optimizer,
        how: How,
        named: Mapping[str, Tensor],
        held: Mapping[str, Tensor],
        uneven: list[int],
        heading: list[str],
        is_looked_at: bool = True,
        group: Any = None,
    ) -> None:
        self.how = how
        self.skipped = False
        """Whether the last run updated nothing, since its loss was not finite."""

        self.optimizer = optimizer
        self.device = recording.device
        self.uneven = uneven
        """Which of the data the program gets copies of, since it knows nothing of gaps and shared entries."""

        self.rounded = rounding(recording.program.dtypes(), recording.rules)
        """The part of itself that a number may be off by in rounding."""

        assembled = Assembled(recording, optimizer, how, named, held, heading, is_looked_at)
        self._tensors, _ = _given(assembled)
        self.parameters, self.deltas, self.layers = assembled.parameters, assembled.deltas, assembled.layers
        self.groups, self.forms = assembled.groups, assembled.forms
        self.buffers = assembled.buffers
        self.source = assembled.source
        self.answers = assembled.answers
        """What the program reads of the numbers, and has to find: where it finds another, it ends by
        :class:`~torch_manualbp.derive.expected.OtherNumbersError`, and has changed nothing."""

        self._met: list[Any] = []
        self.buckets, self.rooms = assembled.buckets, assembled.rooms
        """What it exchanges with other processes, in words, in order; and the size, dtype and device of each bucket."""

        self.group = group if self.buckets else None
        self._has_flag = assembled.finite is not None
        self.bounds = how.bounds
        """The bounds of gradients that it is given, by name."""

        self.has_norm = assembled.norm is not None
        """Whether it returns the norm of the gradients, second."""

        self._assembled = assembled
        self.memory = assembled.memory
        """What memory it holds."""

        self.kernels = assembled.kernels
        """The functions of the program that a compiler may make, by name."""

        self.unlike: set[str] = set()
        """Those of them whose kernels have computed something else, at the first step: their lines stay."""

        self._compiled_kernels: dict[str, Any] = {}
        """Kernels that no step has called yet."""

        self.fused: set[str] = set()
        """The functions in whose place there are kernels."""

        self.twin: Derived | None = None
        """The program that was held against autograd in its place, up to the gradients."""

        self.codes: frozenset[Any] = frozenset()
        """The code that forward and loss ran."""

        self._given: tuple[Any, ...] = ()
        self._article_of_size: Callable[[], list[str] | None] | None = None
        self._build = self._compiled()
        self._compiled_settings: tuple[list[float], list[Tensor]] = ([], [])
        self._bind()

    def _compiled(self) -> Callable[..., Callable[..., Any]]:
        """``build`` of the program, whose lines tracebacks show."""
        self.filename = f"<derived step {next(_numbers)}>"
        text = self.source.text
        linecache.cache[self.filename] = (len(text), None, text.splitlines(True), self.filename)
        weakref.finalize(self, linecache.cache.pop, self.filename, None)
        namespace: dict[str, Any] = {}
        tree, self.source.tree = self.source.tree, None
        exec(compile(text if tree is None else tree, self.filename, "exec"), namespace)
        self._namespace = namespace
        if self.answers:
            namespace["expect"] = self._expect
        build: Callable[..., Callable[..., Any]] = namespace["build"]
        return build

    @property
    def shares_memory(self) -> bool:
        """Whether it computes in memory that it has together with programs of other sizes."""
        return self._article_of_size is not None

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Those that the program is built of, by name."""
        return self._tensors

    @property
    def leaves_of_output(self) -> list[Any]:
        """What the model returns, with values for tensors."""
        return self._assembled.output

    def without_numbers(self) -> Derived:
        """Itself, without memory and without the tensors that it was recorded on."""
        self.release()
        for i, leaf in enumerate(self._assembled.output):
            if isinstance(leaf, Value):
                self._assembled.output[i] = Value(leaf.tensor.to("meta"), leaf.memory)
        return self

    def build_of(self, text: str) -> tuple[Callable[..., Callable[..., Any]], str]:
        """``build`` of another text, and the file that tracebacks say it is in."""
        filename = f"<derived step {next(_numbers)}>"
        namespace: dict[str, Any] = {}
        exec(compile(text, filename, "exec"), namespace)
        build: Callable[..., Callable[..., Any]] = namespace["build"]
        return build, filename

    def of_size(
        self, lines: list[str], build: tuple[Callable[..., Any], str], given: tuple[Any, ...], article: Any
    ) -> Derived:
        """The same program for data of another size.

        Args:
            lines: its text.
            build: that of all sizes, and its file.
            given: what it takes ahead of the parameters.
            article: makes the lines of its formulas.
        """
        other = copy.copy(self)
        other.source = copy.copy(self.source)
        other.source.lines = lines
        (other._build, other.filename), other._given, other._article_of_size = build, given, article
        other.state, other.step, other.addresses, other.apart = {}, None, set(), set()
        linecache.cache[other.filename] = (0, None, [f"{line}\n" for line in lines], other.filename)
        return other

    def _expect(self, found: Any, wanted: Any) -> None:
        self._met.append(found)
        if found != wanted:
            raise OtherNumbersError(self._met)

    def take(self, made: Mapping[str, Any]) -> None:
        """Call kernels from now on, which the first step holds against their lines.

        Raises:
            NotMadeError: one of them is not to be loaded.
        """
        kernels = {name: bound(item) for name, item in made.items()}
        for name, kernel in kernels.items():
            plain, outputs = self._namespace[name], self.kernels[name].count_of_outputs
            self._namespace[name] = held(plain, kernel, outputs, functools.partial(self.unlike.add, name))
            self._compiled_kernels[name] = plain, kernel
        self.fused = set(kernels)

    @property
    def count_of_kernels(self) -> int:
        """How many calls of kernels there are in a step."""
        return sum(count for name, (count, _) in self._assembled.fused.items() if name in self.fused)

    @property
    def count_of_fused(self) -> int:
        """The calls in whose place these are."""
        return sum(calls for name, (_, calls) in self._assembled.fused.items() if name in self.fused)

    def _trust(self) -> None:
        """Call the kernels without their lines, as the first step is done; those that differ, not at all."""
        for name, (plain, kernel) in self._compiled_kernels.items():
            self._namespace[name] = plain if name in self.unlike else kernel
        self._compiled_kernels = {}
        self.fused -= self.unlike
        if self.unlike:
            warnings.warn(f"{len(self.unlike)} of {len(self.kernels)} {_UNLIKE}", RuntimeWarning, stacklevel=5)

    def _bind(self) -> None:
        """Bind the program to the state that the optimizer has, or to a new one."""
        self.state = {
            parameter: state_for(form, parameter, self.optimizer.state.get(parameter) or {})
            for parameter, (_, form, _) in self.forms.items()
        }
        given = {keys[key]: t for p, (_, _, keys) in self.forms.items() for key, t in self.state[p].items()}
        with torch.device(self.device):  # not on the device that somebody has made the default
            with_group = {} if self.group is None else {"group": self.group}
            self.step: Any = self._build(*self._given, self._tensors, given, **with_group)
        self.written = [*self.parameters, *self.buffers, *given.values()]
        self._update = Update(self.source, self.filename, self._assembled.changes, given)
        self._stateful = [(p, ours) for p, ours in self.state.items() if ours]
        self._kept = [t for _, ours in self._stateful for name, t in ours.items() if name != "step"]
        self._kinds = list(map(kind_of, self._kept))
        self._is_laid_out = are_unchanged(self._kept)
        self._was_there = False
        """Whether the optimizer had our state when the run began."""

        self._state_of_optimizer: Any = None
        self._dicts_of_state: list[dict[Any, Any]] = []
        self._versions_of_state: list[int] = []
        self._is_new = not any(map(self.optimizer.state.get, self.state))
        """Whether its state is that of a first step."""

        cells = [cell.cell_contents for cell in self.step.__closure__ or ()]
        self.addresses = {t.untyped_storage().data_ptr() for t in (*cells, *self.written) if isinstance(t, Tensor)}
        """The memory that the program reads and writes while it runs."""

        self.apart: set[int] = set()
        """Addresses of data that are known not to be in it."""

        if self.how.compile:
            self.step = torch.compile(self.step, fullgraph=True)

    def release(self) -> None:
        """Give the memory back in which the program computes; it is made again when the program runs."""
        if not self.how.compile:  # of which torch's compiler holds the memory
            self.step = None
            self.addresses, self.apart = set(), set()

    def apart_from_memory(self, t: Tensor) -> Tensor:
        """The tensor, or a copy where it is in memory that the program writes to."""
        if t.untyped_storage().data_ptr() in self.addresses:
            return t.clone()
        if len(self.apart) < MANY:
            self.apart.add(t.data_ptr())
        return t

    def bind(self) -> None:
        """Have memory to run in."""
        if self.step is None:
            self._bind()

    def run(self, leaves: list[Tensor], bounds: Sequence[float] = ()) -> Any:
        """What the program returns, with these bounds of gradients. An exception leaves everything as it was before;
        one that comes once parameters have begun to change is raised when all have. Signals are to wait meanwhile."""
        self._met = []
        for i in self.uneven:
            leaves[i] = leaves[i].clone()
        self.skipped = False
        if not self.how.folds:
            return self._looked_at(self._run(leaves, [*bounds]))
        firsts = self._take_state()
        groups = self.optimizer.param_groups  # which load_state_dict replaces
        settings: list[Any] = [x for i, form in self.groups for x in form.numbers(groups[i])]
        if firsts:  # where v ← g and not (1 − d) g
            at = zip(((i, name) for i, form in self.groups for name in form.settings), settings, strict=True)
            settings = [0.0 if name == "dampening" and i in firsts else x for (i, name), x in at]
        settings += bounds
        if self.how.compile:
            settings = self._as_tensors(settings)
        versions = self._update.versions()
        try:
            result = self._run(leaves, settings)
        except BaseException as error:
            if self._update.finish(error.__traceback__, versions):
                self._commit()
            raise
        result = self._looked_at(result)
        if not self.skipped:
            self._commit()
        return result

    def _looked_at(self, result: Any) -> Any:
        """The result, without what the processes tell each other of their losses."""
        if not self.how.skip_nonfinite:
            return result
        finite = result[0] if isinstance(result, tuple) else result
        if self._has_flag:
            C, finite, *more = result
            result = (C, *more) if more else C
        self.skipped = not math.isfinite(finite.item())  # torch.isfinite takes 5 µs
        return result

    def _run(self, leaves: list[Tensor], settings: list[Any]) -> Any:
        if not _is_autocast_enabled():
            result = self.step(*leaves, *settings)
        else:
            with torch.autocast(self.device, enabled=False):  # the casts are in the program
                result = self.step(*leaves, *settings)
        if self._compiled_kernels:
            self._trust()
        return result

    def gradients(self, result: Any) -> list[Tensor]:
        """The gradients among what the program returned, in the order of ``parameters``."""
        count = self._assembled.count_of_gradients
        return list(result[-count:]) if count else []

    @property
    def article(self) -> Any:
        """The step as formulas."""
        if self._article_of_size is not None:
            return _ArticleOfSize(self._assembled.article, self._article_of_size)
        if self._assembled.article is None:
            raise RuntimeError("a program that is only held against autograd has no article")
        return self._assembled.article

    def text_to_save(self) -> str:
        """The source, with the numbers of the tensors in it that are neither parameters nor buffers."""
        return self.source.text_with(self._tensors)

    def _as_tensors(self, settings: list[float]) -> list[Tensor]:
        """The hyperparameters as torch.compile takes them without compiling a program for each of their values."""
        if settings != self._compiled_settings[0]:
            self._compiled_settings = settings, [torch.tensor(x, dtype=torch.float64) for x in settings]
        return self._compiled_settings[1]

    def output(self, tensors: Iterable[Tensor]) -> Any:
        """The model's output, from the tensors that the program returns for it."""
        rest = iter(tensors)
        leaves = [next(rest) if isinstance(leaf, Value) else leaf for leaf in self._assembled.output]
        return pytree.tree_unflatten(leaves, self._assembled.output_spec)

    def _take_state(self) -> set[int]:
        """Work on the state that the optimizer has: its own, or what somebody loaded into it. Returns the groups whose
        parameters have none yet."""
        self._was_there = not self._stateful or self._is_there()
        if self._was_there:
            return set()
        theirs = self.optimizer.state
        if list(map(kind_of, self._kept)) != self._kinds and has_odd_state(self.optimizer):
            raise OddStateError
        if not all(self._has_state_of(p) for p, _ in self._stateful):
            if not self._is_new or any(map(theirs.get, self.state)):
                if has_odd_state(self.optimizer):
                    raise OddStateError
                self._bind()
            lacks = (p for p, ours in self._stateful if any((theirs.get(p) or {}).get(name) is None for name in ours))
            return {self.forms[p][0] for p in lacks}
        return set()

    def _is_there(self) -> bool:
        """Whether the optimizer has our state, as at the end of the last step."""
        return (
            self.optimizer.state is self._state_of_optimizer
            and list(map(dict_version, self._dicts_of_state)) == self._versions_of_state
            and self._is_laid_out(*self._kept)
        )

    def _has_state_of(self, parameter: Tensor) -> bool:
        theirs = self.optimizer.state.get(parameter) or {}
        return all(theirs.get(name) is tensor for name, tensor in self.state[parameter].items())

    def _commit(self) -> None:
        self._is_new = False
        if not self._was_there:  # another thread's changes meanwhile are seen at the next step
            theirs = self.optimizer.state
            for parameter, ours in self._stateful:
                if not self._has_state_of(parameter):
                    theirs[parameter].update(ours)
            self._state_of_optimizer = theirs
            self._dicts_of_state = [theirs, *(theirs[p] for p, _ in self._stateful)]
            self._versions_of_state = list(map(dict_version, self._dicts_of_state))
        self.optimizer._opt_called = True  # type: ignore[attr-defined] # which learning rate schedulers look at


_UNLIKE = "kernels of the derived step compute other numbers than their lines, which are taken in their place"


class _ArticleOfSize:
    """The formulas of a program that was derived for other sizes.

    Args:
        article: the formulas of one of these.
        lines: makes those of this size.
    """

    def __init__(self, article: Any, lines: Callable[[], list[str] | None]) -> None:
        self._article, self._lines = article, lines

    @property
    def source(self) -> Any:
        """The text.

        Raises:
            RuntimeError: its lines follow from the sizes in another way than the program's.
        """
        lines = self._lines()
        if lines is None:
            raise RuntimeError(
                "the formulas of this size follow from those of no others: read program, which runs, or "
                "reset() and derive(inputs, target)"
            )
        source = copy.copy(self._article.source)
        source.lines = lines
        return source

    def text_to_save(self) -> str:
        """The text, with the numbers of the tensors in it that are neither parameters nor buffers."""
        text: str = self.source.text_with(self._article.tensors)
        return text


def _given(assembled: Assembled) -> tuple[dict[str, Tensor], list[str]]:
    """What ``build`` is given: tensors by name, and which of them are constants of the program's own."""
    return assembled.tensors, [name for name in assembled.tensors if name.startswith("constant ")]
