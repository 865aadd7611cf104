"""Random sequences of changes between steps: a derived step is held against stock at every one of them.

::

    python tests/sequences.py --count 5000 --seed 0           # random sequences; failures are shrunk and printed
    python tests/sequences.py --kinds                         # each kind of change alone, with four optimizers
    python tests/sequences.py --kinds --only "a list" AdamW   # those whose name has these words

A step must equal stock: the loss, every parameter and buffer, the state of the optimizer, ``.grad`` where the step
leaves it, and the state of torch's random numbers. Or it is refused in words of its own, and then nothing has changed.
Where stock raises, it must raise.
"""

from __future__ import annotations

import argparse
import linecache
import random
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from sequence_kinds import KINDS, Inapplicable, Undo
from sequence_models import FEATURES, FOLDED, LOSSES, OPTIMIZERS, Side, Spec, build, data, restore_globals
from torch import Tensor

from torch_manualbp.derive import NotDerivableError

OFTEN = sorted(
    set(FEATURES) - {f for kind in KINDS.values() if kind.is_rare for f in kind.features} | {"buffer", "gain"}
)
"""Features of which no change is mostly refused."""

TABLE_OPTIMIZERS = ("SGD", "momentum", "AdamW", "RMSprop")


@dataclass(frozen=True)
class Change:
    """A change of a kind, and the seed of what it draws."""

    kind: str
    seed: int


Plan = list[list[Change]]
"""The changes before each step."""


@dataclass
class Outcome:
    """What became of a sequence."""

    status: str = "equal"
    """equal, refused, stock raises, or failed."""

    message: str = ""
    step: int = 0
    steps: int = 0
    """How many were held against stock."""

    applied: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    raised: Counter[str] = field(default_factory=Counter)


class Different(Exception):
    """Ours is not what stock is."""


def is_own(error: BaseException) -> bool:
    """Whether somebody wrote this error for whoever reads it: raised by a line of ours that raises, with words."""
    if not isinstance(error, NotDerivableError | ValueError | RuntimeError) or len(str(error).split()) < 4:
        return False
    if isinstance(error, NotDerivableError):
        return True
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    if traceback is None:
        return False
    file = traceback.tb_frame.f_code.co_filename
    line = linecache.getline(file, traceback.tb_lineno)
    return "torch_manualbp" in file and ("raise" in line or "refuse" in line)


def said(error: BaseException) -> str:
    """An error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


# ------------------------------------------------------------------------------------------------- what is compared


def same(ours: Tensor, stock: Tensor, rtol: float) -> bool:
    """Equal to rounding."""
    bound = stock.abs().nan_to_num(0, 0, 0).max().item() if stock.numel() and stock.is_floating_point() else 1.0
    return torch.allclose(ours, stock, rtol=rtol, atol=rtol * max(1.0, bound), equal_nan=True)


def identical(a: Any, b: Any) -> bool:
    """Equal bit for bit."""
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return bool(a == b)
    return a.shape == b.shape and a.dtype == b.dtype and bytes(a.numpy().tobytes()) == bytes(b.numpy().tobytes())


def state_of(side: Side) -> dict[str, Any]:
    """The optimizer's state: by the place of the parameter and the name of the entry; which parameters have any."""
    found: dict[str, Any] = {}
    known: set[int] = set()
    for i, group in enumerate(side.groups):
        for j, p in enumerate(group["params"]):
            if p in side.optimizer.state:
                found[f"state[{i}, {j}]"] = None
                found |= {f"state[{i}, {j}][{name!r}]": x for name, x in side.optimizer.state[p].items()}
                known.add(id(p))
    found["state of others"] = sum(id(p) not in known for p in side.optimizer.state)
    return found


def numbers_of(side: Side) -> dict[str, Any]:
    """What a step changes."""
    return side.named() | state_of(side)


@dataclass
class Snapshot:
    """A side before a step."""

    numbers: dict[str, Any]
    held: list[tuple[Tensor, Tensor]]
    """Every tensor of the model and every parameter of the optimizer, with its numbers."""

    state: dict[Tensor, dict[str, Any]]
    gradients: list[tuple[Tensor, Tensor | None, Any]]
    frame: list[Any]
    is_new_window: bool
    skipped: int

    @classmethod
    def of(cls, side: Side, done: int) -> Snapshot:
        """What there is."""
        numbers = {name: _clone(x) for name, x in numbers_of(side).items()}
        state = {p: {k: (x, _clone(x)) for k, x in of_p.items()} for p, of_p in side.optimizer.state.items()}
        gradients: list[tuple[Tensor, Tensor | None, Any]] = [(p, p.grad, _clone(p.grad)) for p in side.parameters()]
        tensors = {id(t): t for t in (*side.named().values(), *(p for g in side.groups for p in g["params"]))}
        held = [(t, _clone(t)) for t in tensors.values()]
        return cls(numbers, held, state, gradients, frame_of(side), done == 0, side.step.skipped)

    def restore(self, side: Side) -> None:
        """Put back what a failed step of stock may have changed."""
        with torch.no_grad():
            for t, numbers in self.held:
                if not identical(_detached(t), numbers):
                    t.data.copy_(numbers)
            dictionaries = dict(side.optimizer.state)
            side.optimizer.state.clear()
            for p, of_p in self.state.items():
                for x, of_x in of_p.values():
                    if isinstance(x, Tensor):
                        x.copy_(of_x)
                side.optimizer.state[p] = dictionary = dictionaries.get(p, {})  # the one that is to be mended
                dictionary.clear()
                dictionary.update({name: x for name, (x, _) in of_p.items()})
            for p, gradient, of_gradient in self.gradients:
                p.grad = gradient
                if gradient is not None:
                    gradient.copy_(of_gradient)
        side.step.done, side.step.skipped = 0, self.skipped  # after an exception a window begins anew

    def is_changed(self, side: Side) -> bool:
        """Whether parameters or state are other than before."""
        try:
            self.hold_unchanged(side)
        except Different:
            return True
        return False

    def hold_unchanged(self, side: Side) -> None:
        """Raise if a refused step has changed anything."""
        now = numbers_of(side)
        if list(now) != list(self.numbers):
            raise Different(f"a refused step leaves other entries: {sorted(set(now) ^ set(self.numbers))}")
        for name, x in now.items():
            if not identical(_detached(x), self.numbers[name]):
                raise Different(f"a refused step has changed {name}")
        for p, of_p in self.state.items():
            if any(side.optimizer.state[p][k] is not x for k, (x, _) in of_p.items()):
                raise Different("a refused step has put other tensors into the optimizer's state")


def frame_of(side: Side) -> list[Any]:
    """What no step may change at all: names, hooks, modes, what learns, and which objects there are."""
    frame: list[Any] = []
    for root in side.roots():
        for path, module in root.named_modules():
            hooks = [len(x) for name, x in vars(module).items() if name.endswith("_hooks") and isinstance(x, dict)]
            frame.append((path, type(module), module.training, sorted(vars(module)), hooks))
        frame += [(name, id(p), p.requires_grad, p.is_leaf) for name, p in root.named_parameters()]
    frame.append([[*map(id, group["params"])] for group in side.groups])
    frame += [sys.getprofile() is None, torch.autograd.Function.apply.__qualname__, torch.is_grad_enabled()]
    return frame


def _clone(x: Any) -> Any:
    return x.detach().clone(memory_format=torch.contiguous_format) if isinstance(x, Tensor) else x


def _detached(x: Any) -> Any:
    return x.detach().contiguous() if isinstance(x, Tensor) else x


def compare(ours: Side, stock: Side, before: Snapshot) -> None:
    """Raise if the two differ."""
    mine, theirs = numbers_of(ours), numbers_of(stock)
    if set(mine) != set(theirs):
        extra, missing = sorted(set(mine) - set(theirs)), sorted(set(theirs) - set(mine))
        raise Different(f"entries: ours alone has {extra}, stock alone {missing}")
    for name, x in theirs.items():
        hold(name, mine[name], x, rounding(stock))
    if frame_of(ours) != before.frame:
        changed = next(
            ((a, b) for a, b in zip(before.frame, frame_of(ours), strict=False) if a != b), "its number of entries"
        )
        raise Different(f"the step changes modes, hooks, names or objects: {changed}")
    if ours.calls != stock.calls:
        raise Different(f"hooks are called {dict(ours.calls)} times, by stock {dict(stock.calls)}")
    for t, numbers in ours.left_behind:
        if not identical(_detached(t), _detached(numbers)):
            raise Different("a loss of before, or a tensor of a step that was copied, has changed")
    if before.is_new_window:
        for _, gradient, numbers in before.gradients:
            if gradient is not None and not identical(_detached(gradient), numbers):
                raise Different("a gradient of an earlier step is written over")
    if ours.folds and all(p.grad is gradient for p, gradient, _ in before.gradients):
        if any(g is not None and not identical(_detached(g), numbers) for _, g, numbers in before.gradients):
            raise Different("a step that folds its update writes over .grad")
        return
    held = {id(q) for group in stock.groups for q in group["params"]}
    held_names = {name for name, q in named(stock) if id(q) in held}
    for (name, p), (_, q) in zip(named(ours), named(stock), strict=True):
        if name not in held_names:
            continue
        if (p.grad is None) != (q.grad is None):
            raise Different(f"the gradient of {name} is {'None' if p.grad is None else 'there'}, unlike stock's")
        if p.grad is not None and q.grad is not None:
            hold(f"the gradient of {name}", p.grad, q.grad, rounding(stock))


def named(side: Side) -> list[tuple[str, Tensor]]:
    """The parameters by name."""
    return [(name, p) for root in side.roots() for name, p in root.named_parameters()]


def rounding(side: Side) -> float:
    """By how much two sides may differ."""
    is_exact = not side.is_rounded and all(p.dtype == torch.float64 for p in side.parameters())
    return 1e-11 if is_exact else 2e-4


def hold(name: str, ours: Any, stock: Any, rtol: float = 1e-11) -> None:
    """Raise if they differ."""
    if not isinstance(stock, Tensor) or not isinstance(ours, Tensor):
        if type(ours) is not type(stock) or ours != stock:
            raise Different(f"{name} is {ours!r}, stock's {stock!r}")
        return
    if ours.dtype != stock.dtype or ours.shape != stock.shape:
        raise Different(
            f"{name} is {ours.dtype} of shape {tuple(ours.shape)}, stock's {stock.dtype} of {tuple(stock.shape)}"
        )
    if not same(ours.detach(), stock.detach(), rtol):
        off = (ours.detach() - stock.detach()).abs().nan_to_num(float("inf")).max().item()
        raise Different(f"{name} is off by {off:.1e}")


# ------------------------------------------------------------------------------------------------- one sequence


def run(spec: Spec, plan: Plan) -> Outcome:
    """Train both sides with these changes."""
    outcome = Outcome()
    dtype, drawn = torch.get_default_dtype(), torch.get_rng_state()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _run(spec, plan, outcome)
    except Different as error:
        outcome.status, outcome.message = "failed", str(error)
    finally:
        torch.set_default_dtype(dtype)
        torch.set_rng_state(drawn)
        restore_globals()
    return outcome


def _run(spec: Spec, plan: Plan, outcome: Outcome) -> None:
    ours, stock = build(spec, True), build(spec, False)
    for i, changes in enumerate(plan):
        outcome.step = i
        for side in (ours, stock):
            side.once.clear()
            side.saved.update(done=stock.step.done, folds=ours.step.folds)
        undos: list[Undo] = []
        names: list[str] = []
        for change in changes:
            if _apply(change, ours, stock, undos, outcome):
                names.append(change.kind)
            if outcome.status != "equal":
                return
        if not _step(i, ours, stock, names, undos, outcome):
            return
        for side in (stock, ours):
            if side.scheduler is not None:
                try:
                    side.scheduler.step()
                except (KeyError, ValueError) as error:  # which does not know groups that were added later
                    outcome.status, outcome.message = "stock raises", said(error)
                    return
        if any(t.detach().abs().max() > 1e6 for t in stock.parameters() if t.numel()):
            return  # where rounding is all that is left


def _apply(change: Change, ours: Side, stock: Side, undos: list[Undo], outcome: Outcome) -> bool:
    """Make a change on both sides. Returns whether there was anything to change."""
    function = KINDS[change.kind].change
    drawn = torch.get_rng_state()
    try:
        undo = function(stock, random.Random(change.seed))
    except Inapplicable:
        return False
    except Exception as error:
        outcome.status, outcome.message = "stock raises", f"{change.kind}: {said(error)}"
        return False
    torch.set_rng_state(drawn)
    outcome.applied[change.kind] += 1
    try:
        undos += [undo, function(ours, random.Random(change.seed))]
    except Inapplicable as error:
        raise Different(f"{change.kind}: the sides differ in what it can change") from error
    except Exception as error:
        if not is_own(error):
            raise Different(f"{change.kind}, which stock allows: {said(error)}") from error
        outcome.status = "refused"
        _count(outcome, [change.kind], error)
    return True


def _step(i: int, ours: Side, stock: Side, names: list[str], undos: list[Undo], outcome: Outcome) -> bool:
    """One step of both. Returns whether there is to be another."""
    before, before_stock = (Snapshot.of(side, stock.step.done) for side in (ours, stock))
    norm_before = stock.step.grad_norm
    expected, theirs, drawn = _try(stock, i)
    C, mine, drawn_by_us = _try(ours, i)
    outcome.steps += 1
    if mine is None and theirs is None:
        assert expected is not None
        assert C is not None
        ours.left_behind.append((C, C.clone()))
        hold("the loss", C, expected, rounding(stock))
        if not torch.equal(drawn, drawn_by_us):
            raise Different("torch's random state is another after the step")
        compare(ours, stock, before)
        if stock.step.keep_output:
            hold("the output", ours.step.output, stock.step.output, rounding(stock))
        if (ours.step.grad_norm is None) != (stock.step.grad_norm is None):
            raise Different(f"the norm of the gradients is {ours.step.grad_norm}, of stock {stock.step.grad_norm}")
        if ours.step.grad_norm is not None:
            hold("the norm of the gradients", ours.step.grad_norm, stock.step.grad_norm, rounding(stock))
        if ours.step.skipped != stock.step.skipped:
            raise Different(f"{ours.step.skipped} steps skipped, of stock {stock.step.skipped}")
        return True
    if mine is None:
        raise Different(f"stock raises, the step runs: {said(theirs)}")
    if not is_own(mine) and (theirs is None or type(mine) is not type(theirs)):
        raise Different(f"{said(mine)}" + (f", where stock raises {said(theirs)}" if theirs is not None else ""))
    if theirs is not None and before_stock.is_changed(stock) and before.is_changed(ours):
        for name, x in numbers_of(stock).items():
            hold(f"after an error in the optimizer's own step {name}", numbers_of(ours)[name], x, rounding(stock))
        outcome.status, outcome.message = "stock raises", f"in the middle of the optimizer's own step: {said(theirs)}"
        return False
    before.hold_unchanged(ours)
    before_stock.restore(stock)
    stock.step.grad_norm = norm_before
    if theirs is None:
        _count(outcome, names or ["(no change)"], mine)
    else:
        outcome.raised.update(names)
    is_undone = any(undo is not None for undo in undos) or bool(stock.once)
    for undo in reversed(undos):
        if undo is not None:
            undo()
    if not is_undone:
        outcome.status = "refused" if theirs is None else "stock raises"
        outcome.message = said(mine if theirs is None else theirs)
        return False
    for side in (ours, stock):
        side.once.clear()
        side.calls.clear()
    return _step(i, ours, stock, names, [], outcome)


def _try(side: Side, i: int) -> tuple[Tensor | None, Any, Tensor]:
    """The loss or the error of a step, and the random state after it."""
    x, y = data(side, 1000 * side.spec.seed + i)
    given = [*(x.values() if isinstance(x, dict) else x if isinstance(x, tuple) else [x]), y]
    numbers = [t.detach().clone() for t in given]
    is_owned = "source" not in side.once
    torch.manual_seed(100 + i)
    try:
        C = side.advance(x, y)
    except Exception as error:
        # without its frames, which hold the graph, and so nodes that expect gradients of the shapes of now
        return None, error.with_traceback(None), torch.get_rng_state()
    if is_owned and not all(map(identical, map(_detached, given), map(_detached, numbers))):
        raise Different("the step changes its inputs")
    return C, None, torch.get_rng_state()


def _count(outcome: Outcome, names: list[str], error: BaseException) -> None:
    outcome.refused.update(names)
    outcome.refusals[said(error)[:160]] += 1
    outcome.message = said(error)


# ------------------------------------------------------------------------------------------------- many sequences


def sequence(seed: int) -> tuple[Spec, Plan]:
    """A random training and the changes in it, four to eight steps."""
    rng = random.Random(seed)
    common = [name for name, kind in KINDS.items() if not kind.is_rare]
    rare = [name for name, kind in KINDS.items() if kind.is_rare]
    plan: Plan = [[]] if rng.random() < 0.8 else []
    while len(plan) < rng.randrange(4, 9):
        names = [rng.choice(common if rng.random() < 0.97 else rare) for _ in range(rng.choice([0, 1, 1, 1, 2, 3]))]
        plan.append([Change(name, rng.randrange(1 << 30)) for name in names])
    kinds = [KINDS[change.kind] for changes in plan for change in changes]
    options: dict[str, Any] = rng.choice(
        [
            {},
            {},
            {},
            {"accumulate": 2},
            {"clip_norm": 0.3, "clip_value": 0.05},
            {"clip_norm": 0.3},
            {"clip_value": 0.05},
            {"keep_output": True},
        ]
    )
    for kind in kinds:
        options = {**options, **dict(kind.options)}
    features = frozenset().union(*(kind.features for kind in kinds))
    features |= frozenset(rng.sample(OFTEN, rng.choice([0, 0, 1, 2, 3])))
    spec = Spec(
        seed=seed,
        optimizer=rng.choice(FOLDED if rng.random() < 0.75 else list(OPTIMIZERS)),
        loss=rng.choice(list(LOSSES)),
        features=features,
        is_sequential=not features - {"dropout"} and rng.random() < 0.7,
        groups=rng.choice([1, 1, 2, 3]),
        options=tuple(options.items()),
    )
    return spec, plan


def single(name: str, optimizer: str, seed: int = 0) -> tuple[Spec, Plan]:
    """Two steps, a change of one kind, and three steps more."""
    kind = KINDS[name]
    loss = {
        "another reduction": "MSELoss",
        "settings of the loss": "SmoothL1Loss",
        "the weight of the loss": "Weighted",
    }
    groups = 2 if any(word in name for word in ("group", "joins")) else 1
    own = loss.get(name, "function" if name == "what a number in the loss is" else "MSELoss")
    is_sequential = kind.is_sequential or (not kind.features and bool(seed % 2))
    spec = Spec(seed, optimizer, own, kind.features, is_sequential, groups, kind.options)
    before = {
        "a frozen parameter joins in a group of its own": ["a parameter leaves the optimizer, frozen"],
        "all is unfrozen": ["a parameter is frozen"],
        "a tied weight is untied, the optimizer follows": ["two weights are tied, the optimizer follows"],
        "train": ["eval"],
    }.get(name, [])
    return spec, [[], [Change(b, seed) for b in before], [Change(name, seed)], [], []]


def find_seed(name: str, optimizer: str) -> tuple[Spec, Plan, Outcome]:
    """The first training in which there is something to change."""
    for seed in range(8):
        spec, plan = single(name, optimizer, seed)
        outcome = run(spec, plan)
        if outcome.applied[name] or outcome.step == 0:
            break
    return spec, plan, outcome


def shrink(spec: Spec, plan: Plan, budget: int = 150) -> tuple[Spec, Plan, Outcome]:
    """Leave out steps, changes, options and features for as long as the sequence still fails."""
    best = run(spec, plan)
    plan = plan[: best.step + 1]

    def fails(spec: Spec, plan: Plan) -> bool:
        nonlocal best, budget
        budget -= 1
        try:
            outcome = run(spec, plan) if budget > 0 else None
        except Exception:  # a smaller one that cannot even be built
            return False
        if outcome is None or outcome.status != "failed":
            return False
        best = outcome
        return True

    for candidates in (_shorter, _fewer, _shorter, _simpler, _fewer):
        is_smaller = True
        while is_smaller and budget > 0:
            is_smaller = False
            for candidate in candidates(spec, plan):
                if fails(*candidate):
                    spec, plan = candidate
                    is_smaller = True
                    break
    return spec, plan, best


def _shorter(spec: Spec, plan: Plan) -> Iterator[tuple[Spec, Plan]]:
    for i in range(len(plan)):
        yield spec, plan[:i] + plan[i + 1 :]
        if i + 1 < len(plan):
            yield spec, [*plan[:i], plan[i] + plan[i + 1], *plan[i + 2 :]]


def _fewer(spec: Spec, plan: Plan) -> Iterator[tuple[Spec, Plan]]:
    for i, changes in enumerate(plan):
        for j in range(len(changes)):
            yield spec, [*plan[:i], changes[:j] + changes[j + 1 :], *plan[i + 1 :]]


def _simpler(spec: Spec, plan: Plan) -> Iterator[tuple[Spec, Plan]]:
    if not spec.is_sequential:
        yield replace(spec, is_sequential=True, features=spec.features & {"dropout"}), plan
    for feature in sorted(spec.features):
        yield replace(spec, features=spec.features - {feature}), plan
    for i in range(len(spec.options)):
        yield replace(spec, options=spec.options[:i] + spec.options[i + 1 :]), plan
    plain: dict[str, Any] = {"groups": 1, "loss": "MSELoss", "optimizer": "SGD"}
    for key, value in plain.items():
        if getattr(spec, key) != value:
            yield replace(spec, **{key: value}), plan


def described(spec: Spec, plan: Plan, outcome: Outcome) -> str:
    """A failure as text, from which it can be run again."""
    lines = [f"{spec}: {outcome.message} at step {outcome.step + 1}"]
    for i, changes in enumerate(plan):
        lines.append(f"  {i + 1}. {'; '.join(change.kind for change in changes) or '-'}")
    return "\n".join([*lines, f"  run({spec!r}, {plan!r})"])


def failure(seed: int) -> str:
    """What is wrong with the sequence of this seed, shrunk; nothing if all is right."""
    spec, plan = sequence(seed)
    outcome = run(spec, plan)
    if outcome.status != "failed":
        return ""
    return f"seed {seed}: " + described(*shrink(spec, plan))


def _table(only: Sequence[str], say: Callable[..., None]) -> int:
    """Each kind alone, with four optimizers. Returns how many are wrong."""
    total: Counter[str] = Counter()
    for name in KINDS:
        optimizers = [o for o in TABLE_OPTIMIZERS if o in only] or TABLE_OPTIMIZERS
        words = [word for word in only if word not in TABLE_OPTIMIZERS]
        if words and not any(word in name for word in words):
            continue
        found: list[str] = []
        for optimizer in optimizers:
            _, _, outcome = find_seed(name, optimizer)
            status = outcome.status if outcome.applied[name] or outcome.status == "failed" else "-"
            if status == "equal" and outcome.refusals:
                status = "refused"
            total[status] += 1
            found.append(f"{optimizer}: {status}")
            if status == "failed":
                found[-1] += f", {outcome.message}"
            elif status == "refused" and len(found) == 1:
                found[-1] += f" ({next(iter(outcome.refusals), outcome.message)[:120]})"
        if len({text.partition(": ")[2] for text in found}) == 1:
            found = [found[0].partition(": ")[2]]
        say(f"{name:60} {'; '.join(found)}")
    say(f"{len(KINDS)} kinds: {dict(total)}")
    return total["failed"]


def _many(count: int, first: int, shrunk: int, say: Callable[..., None]) -> int:
    """Random sequences. Returns how many are wrong."""
    started = time.perf_counter()
    statuses: Counter[str] = Counter()
    total = Outcome()
    wrong_with: Counter[str] = Counter()
    for seed in range(first, first + count):
        spec, plan = sequence(seed)
        outcome = run(spec, plan)
        statuses[outcome.status] += 1
        total.steps += outcome.steps
        for name in ("applied", "refused", "refusals", "raised"):
            getattr(total, name).update(getattr(outcome, name))
        if outcome.status == "failed":
            if statuses["failed"] <= shrunk:
                spec, plan, outcome = shrink(spec, plan)
                say(f"seed {seed}: " + described(spec, plan, outcome))
            for change in {change.kind for changes in plan for change in changes}:
                wrong_with[change] += 1
    say(f"{'kind':60} applied refused  raised   wrong")
    for name in KINDS:
        say(f"{name:60} {total.applied[name]:7} {total.refused[name]:7} {total.raised[name]:7} {wrong_with[name]:7}")
    for text, n in total.refusals.most_common(40):
        say(f"{n:5}× {text}")
    seconds = time.perf_counter() - started
    say(f"{count} sequences of {total.steps} steps, {sum(total.applied.values())} changes in {seconds:.0f} s: ")
    say(", ".join(f"{n} {status}" for status, n in statuses.items()))
    return statuses["failed"]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=1000, help="how many sequences")
    parser.add_argument("--seed", type=int, default=0, help="the seed of the first")
    parser.add_argument("--shrink", type=int, default=20, help="how many failures are made as small as they get")
    parser.add_argument("--kinds", action="store_true", help="each kind of change alone, with four optimizers")
    parser.add_argument("--only", nargs="*", default=(), help="kinds whose names have these words, or optimizers")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)

    def say(text: str) -> None:
        print(text, flush=True)

    return _table(asked.only, say) if asked.kinds else _many(asked.count, asked.seed, asked.shrink, say)


if __name__ == "__main__":
    sys.exit(bool(main()))
