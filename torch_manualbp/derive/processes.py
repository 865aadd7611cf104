"""Steps of several processes: each has batches of its own, and all make one update, by the mean of their gradients.

::

    dW = Σ_processes ∂C_p/∂W / n              n = the number of processes

as ``DistributedDataParallel`` has it: each process counts alike, whatever the size of its batch. Gradients go into
buckets as they are made, and of a bucket that is full the sum over the processes is begun, while the way back goes on;
all sums are there before the first parameter changes.

Before a program runs, the processes tell each other which one they have: of programs that exchange other gradients, or
where a process has failed, each raises an error, and none waits for what never comes.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn import Module
from torch.nn.parallel import DistributedDataParallel

from torch_manualbp._torch import pytree
from torch_manualbp.derive.effects import wrappers
from torch_manualbp.derive.program import MADE, Call, Formula, Memory, Program, Text, Value
from torch_manualbp.derive.refusals import NotDerivableError
from torch_manualbp.derive.textbook import define

__all__ = ["Processes", "ProcessesError", "Reduction", "mean_function", "refuse_empty", "unwrapped", "write_reduction"]

BUCKET = 25 << 20
"""Bytes of gradients that are exchanged at once, as DistributedDataParallel has it."""

FIRST_BUCKET = 1 << 20
"""Bytes of the first, so that the exchange begins early."""

MEAN = "mean_over_processes"
TITLE = ("the mean over the processes",)
NOBODY = -(1 << 60)
PATIENCE = timedelta(seconds=5)
"""How long a process that has failed waits for the others to hear of it."""

Learnt = Sequence[tuple[Value, Value]]


class ProcessesError(RuntimeError):
    """Another process cannot make the step, or would make another one."""


class Reduction:
    """The lines of a program that exchange gradients.

    Args:
        program: which ends with the way back.
        learnt: parameters and their gradients.
        count: the number of processes.
        before: what is in ``.grad`` and is to be added, if anything.
        flag: a number that is not finite where the step is to be left out.
    """

    def __init__(
        self, program: Program, learnt: Learnt, count: int, before: Sequence[Value] = (), flag: Value | None = None
    ) -> None:
        self._program, self._count = program, count
        ready = _last_writes(program.calls)
        order = sorted(range(len(learnt)), key=lambda i: ready.get(learnt[i][1].memory, 0))
        self._after: dict[int, list[Call]] = {}
        """What comes after a call, by its number."""

        self._ahead: list[Call] = []
        self._waits: list[tuple[Value, Value]] = []
        means: dict[int, Value] = {}
        self.finite: Value | None = None
        """A number that is not finite where the loss of any process is not."""

        self.buckets: list[str] = []
        """What each bucket has, in words."""

        self.rooms: list[tuple[int, torch.dtype, torch.device]] = []
        """The size, dtype and device of each."""

        for indices in _buckets([(i, learnt[i]) for i in order]):
            with_flag = flag if not self.buckets else None
            at = [ready.get(learnt[i][1].memory, 0) for i in indices]
            items = [(*learnt[i], before[i] if before else None) for i in indices]
            found = self._exchange(items, at, with_flag, ready)
            means.update(zip(indices, found, strict=True))
        self.learnt = tuple((W, means[i]) for i, (W, _) in enumerate(learnt))
        """The parameters with the means of their gradients."""

        calls = list(self._ahead)
        for i, call in enumerate(program.calls):
            calls += [call, *self._after.get(i, ())]
        program.calls = calls
        program.section, program.title = "processes", TITLE
        for reduced, bucket in self._waits:
            program.append(wait, reduced, writes=[bucket])

    def _exchange(
        self, items: Sequence[tuple[Value, Value, Value | None]], at: list[int], flag: Value | None, ready: Any
    ) -> list[Value]:
        """Record one bucket. Returns the means, which are views of it."""
        program, number, dtype = self._program, len(self.buckets) + 1, items[0][1].tensor.dtype
        device = items[0][1].tensor.device
        sizes = [W.tensor.numel() for W, _, _ in items]
        made: list[Call] = []
        with self._aside(made), torch.no_grad():
            total = sum(sizes) + (flag is not None)
            room = program.call(torch.empty, (total,), {"dtype": dtype, "device": device})
            bucket = program.value(room)
            self.rooms.append((total, dtype, device))
            bucket.name, bucket.is_named = f"bucket_{number}", True
            views, begin = [], 0
            for (W, _, _), size in zip(items, sizes, strict=True):
                views.append(self._view(room, W, begin))
                begin += size
            if flag is not None:
                last = program.call(torch.select, (room, 0, begin), {})
                self.finite = program.value(last)
                self.finite.name, self.finite.is_named = "all_finite", True
        self._ahead += made
        for (W, g, before), view, i in zip(items, views, at, strict=True):
            if before is None:
                self._put(i, torch.mul, g, 1 / self._count, out=view, writes=[view])
            else:
                self._put(i, torch.add, before, g, out=view, writes=[view])
                self._put(i, Tensor.mul_, view, 1 / self._count, writes=[view])
            view.name, view.is_named = f"d{W.name}_mean", True
        end = max(at)
        if flag is not None:
            end = max(end, ready.get(flag.memory, 0))
            self._put(end, torch.mul, flag, 0, out=self.finite, writes=[self.finite])
        reduced = Value(torch.empty(()), Memory(MADE), f"reduced_{number}", is_named=True)
        sum_begins = Call(
            distributed.all_reduce,
            (bucket,),
            {"group": Text("group"), "async_op": True},
            (reduced,),
            made=frozenset([reduced.memory]),
            written=frozenset([bucket.memory]),
        )
        self._insert(end, sum_begins)
        self._waits.append((reduced, bucket))
        names = [f"{W.name} {tuple(W.tensor.shape)}" for W, _, _ in items]
        self.buckets.append(f"{', '.join(names)} in {dtype}{' with a flag' if flag is not None else ''}")
        return views

    def _view(self, room: Tensor, W: Value, begin: int) -> Value:
        """The part of a bucket that a gradient lies in, in the layout of its parameter."""
        t, program = W.tensor, self._program
        like = torch.empty_like(t, device="meta")
        if like.is_contiguous():
            part = program.call(Tensor.narrow, (room, 0, begin, t.numel()), {})
            return program.value(program.call(Tensor.view, (part, tuple(t.shape)), {}))
        return program.value(program.call(torch.as_strided, (room, tuple(t.shape), like.stride(), begin), {}))

    def _put(self, at: int, function: Any, *args: Any, writes: list[Any], **kwargs: Any) -> None:
        made: list[Call] = []
        with self._aside(made):
            self._program.append(function, *args, writes=writes, **kwargs)
        for call in made:
            self._insert(at, call)

    def _insert(self, at: int, call: Call) -> None:
        """Have the call come after the one of this number, as a part of what that is a part of."""
        neighbour = self._program.calls[at] if self._program.calls else None
        if neighbour is not None:
            call.section, call.title, call.path = neighbour.section, neighbour.title, neighbour.path
        self._after.setdefault(at, []).append(call)

    @contextlib.contextmanager
    def _aside(self, made: list[Call]) -> Iterator[None]:
        """Take away what is recorded within, to be put elsewhere."""
        calls = self._program.calls
        count = len(calls)
        yield
        made += calls[count:]
        del calls[count:]


def wait(work: Any) -> None:
    """What the text has as a method of ``torch.distributed.Work``, which has no hash."""
    work.wait()


def _last_writes(calls: Sequence[Call]) -> dict[Memory, int]:
    """The number of the last call that makes or changes a memory."""
    return {memory: i for i, call in enumerate(calls) for memory in (*call.made, *call.written)}


def _buckets(items: Iterable[tuple[int, tuple[Value, Value]]]) -> Iterator[list[int]]:
    """The numbers of the parameters whose gradients are exchanged at once, in the order in which they are full."""
    open_: dict[Any, tuple[list[int], int]] = {}
    is_first = True
    for i, (_, g) in items:
        kind = g.tensor.dtype, g.tensor.device
        indices, size = open_.pop(kind, ([], 0))
        indices.append(i)
        size += g.tensor.numel() * g.tensor.element_size()
        if size >= (FIRST_BUCKET if is_first else BUCKET):
            is_first = False
            yield indices
        else:
            open_[kind] = indices, size
    yield from (indices for indices, _ in open_.values())


def write_reduction(
    program: Program, learnt: dict[Value, Value], befores: dict[Value, Value], flag: Value | None
) -> tuple[dict[Value, Value], Value | None]:
    """The same as formulas: the mean of each gradient, and of the flag."""
    program.section, program.title = "processes", TITLE
    means = {}
    for W, g in learnt.items():
        before = befores.get(W)
        text, values = ("{}", (g,)) if before is None else ("{} + {}", (before, g))
        means[W] = define(program, f"d{W.name}_mean", Formula(f"{MEAN}({text}, group)", values), W)
    if flag is None:
        return means, None
    return means, define(program, "all_finite", Formula(f"{MEAN}({{}} * 0, group)", (flag,)), flag)


def mean_function(count: int) -> list[str]:
    """The function that formulas call, as its lines."""
    return [
        f"def {MEAN}(g, group):",
        '    """Σ g / n over the n processes of a group."""',
        f"    g = g / {count}",
        "    torch.distributed.all_reduce(g, group=group)",
        "    return g",
    ]


class Processes:
    """The processes that make a step together, as one of them sees them.

    Args:
        group: the processes.
        broadcasts: whether the first one's buffers are everybody's before each step.
        reduces: says at each step whether gradients are exchanged.
        device: where they are.
    """

    def __init__(
        self, group: Any, broadcasts: bool = True, reduces: Callable[[], bool] = lambda: True, device: str = "cpu"
    ) -> None:
        self.group, self._broadcasts, self._device = group, broadcasts, device
        self.reduces = reduces
        self.count = distributed.get_world_size(group)
        self.rank = distributed.get_rank(group)
        self._have_agreed = False
        self.last = 0
        """The first of those that made the last step."""

    @classmethod
    def of(cls, group: Any, model: Module) -> Processes:
        """The processes of a group, with the first one's parameters and buffers for everybody's."""
        if spread := wrappers(model.named_modules()):
            raise NotDerivableError(spread)
        tensors = [*model.parameters(), *model.buffers()]
        processes = cls(group, device=str(tensors[0].device) if tensors else "cpu")
        processes.share(tensors)
        return processes

    def share(self, tensors: Iterable[Tensor], rank: int = 0) -> None:
        """Give everybody the numbers of the first process, or of another one."""
        with torch.no_grad():
            for t in tensors:
                distributed.broadcast(t.detach(), distributed.get_global_rank(self.group, rank), group=self.group)

    def begin(self, buckets: Sequence[str], buffers: Sequence[Tensor], is_done: bool = False) -> int:
        """Before a program runs: see that all have the same one, and take over the first process's buffers.

        Args:
            is_done: whether this process has no batch any more. The first one is the first that has, then.

        Returns:
            The number of the first process, or -1 where all are done.

        Raises:
            ProcessesError: another process has failed, or has another program.
        """
        self._have_agreed = False
        known = int.from_bytes(hashlib.sha256("\n".join(buckets).encode()).digest()[:7], "big")
        largest, least, failed, first = self._told([known, -known, -1, NOBODY if is_done else -self.rank])
        if failed >= 0:
            raise ProcessesError(
                f"process {failed} of {self.count} could not make this step; its own error says why, and nothing was "
                "changed here"
            )
        if largest != -least:
            raise ProcessesError(
                "the processes have derived different programs, which exchange other gradients; in this one, process "
                f"{self.rank} of {self.count}, there are {len(buckets)} buckets: {'; '.join(buckets)}"
            )
        self._have_agreed = True
        if first == NOBODY:
            return -1
        self.last = -first
        if self._broadcasts and buffers:
            self.share(buffers, -first)
        return -first

    def keep_up(self, buckets: Sequence[str], rooms: Sequence[tuple[int, Any, Any]], buffers: Sequence[Tensor]) -> None:
        """Add zeros to the gradients of the others, until they have no batch any more.

        Args:
            rooms: the size, dtype and device of each bucket.
        """
        while self.begin(buckets, buffers, is_done=True) >= 0:
            zeros = [torch.zeros(size, dtype=dtype, device=device) for size, dtype, device in rooms]
            works = [distributed.all_reduce(room, group=self.group, async_op=True) for room in zeros]
            for work in filter(None, works):
                work.wait()

    @contextlib.contextmanager
    def told(self) -> Iterator[None]:
        """A block whose exceptions the other processes hear of, where they come before all have agreed on a program."""
        self._have_agreed = False
        try:
            yield
        except BaseException as error:
            if not self._have_agreed and self.reduces() and not isinstance(error, ProcessesError):
                with contextlib.suppress(RuntimeError):
                    self._told([NOBODY, NOBODY, self.rank, NOBODY], PATIENCE)
            raise

    def _told(self, numbers: list[int], patience: timedelta | None = None) -> list[int]:
        """The largest of each number among the processes."""
        told = torch.tensor(numbers, dtype=torch.int64, device=self._device)
        work = distributed.all_reduce(told, distributed.ReduceOp.MAX, self.group, async_op=True)
        if work is not None:
            work.wait() if patience is None else work.wait(patience)
        found: list[int] = told.tolist()
        return found


def refuse_empty(inputs: Any, target: Any) -> None:
    """Refuse data without samples, of which a mean is not a number, and would be so in all processes.

    Raises:
        ValueError: there are none.
    """
    if any(t.dim() and not t.shape[0] for t in pytree.tree_leaves((inputs, target)) if isinstance(t, Tensor)):
        raise ValueError("the batch of this process is empty: the mean over the processes would be NaN in all of them")


def unwrapped(model: Module) -> tuple[Module, Processes | None]:
    """The module that DistributedDataParallel wraps, and the processes; or the model as it is.

    Raises:
        ValueError: it is wrapped with what no program does.
    """
    if not isinstance(model, DistributedDataParallel):
        return model, None
    ddp: Any = model
    problems = {
        "a communication hook": bool(getattr(ddp, "_comm_hooks", None)),
        "static_graph=True": bool(ddp.static_graph),
        "mixed_precision": getattr(ddp, "mixed_precision", None) is not None,
        "parameters that it ignores": bool(ddp.parameters_to_ignore),
        "gradients that are reduced later": bool(getattr(ddp, "_delay_all_reduce_params", None)),
        "hooks": bool(ddp._forward_hooks or ddp._forward_pre_hooks or ddp._backward_hooks or ddp._backward_pre_hooks),
    }
    found = [name for name, is_there in problems.items() if is_there]
    if found:
        raise ValueError(f"the DistributedDataParallel has {', '.join(found)}: wrap the model without, or use autograd")
    device = str(next(iter(ddp.module.parameters())).device)
    return ddp.module, Processes(
        ddp.process_group, ddp.broadcast_buffers, lambda: bool(ddp.require_backward_grad_sync), device
    )
