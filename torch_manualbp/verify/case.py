"""A rule on one of its samples, as a subject of claims."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from torch_manualbp import functional
from torch_manualbp._torch import pytree
from torch_manualbp.catalogue import CATALOGUE, Make, Operation
from torch_manualbp.rules import Rule
from torch_manualbp.verify.functions import applied_in_forward
from torch_manualbp.verify.outputs import of_one_output
from torch_manualbp.verify.subject import Leaf, Setting, Subject
from torch_manualbp.verify.trial import Trial

__all__ = ["Case", "case_of", "cases", "gradients", "leaves", "refusal", "upstream_for"]


@dataclass(frozen=True)
class Case(Trial):
    """A rule and the name of one of its samples."""

    entry: Operation
    sample: str

    def __str__(self) -> str:
        return f"{self.entry.name}-{self.sample}"

    @property
    def label(self) -> tuple[str, str]:
        return self.entry.name, self.sample

    @property
    def rule(self) -> type[Rule]:
        return self.entry.rule

    @property
    def apply(self) -> Callable[..., Tensor]:
        """The rule, its outputs joined where there are several."""
        return of_one_output(self.rule.apply)

    def with_rule(self, rule: type[Rule]) -> Case:
        return Case(replace(self.entry, rule=rule), self.sample)

    def args(self, make: Make | None = None) -> list[Any]:
        """Fresh arguments; those that can take a gradient are leaves that do."""
        (sample,) = (s for s in self.entry.samples(make or Make()) if s.name == self.sample)
        positions = self.entry.differentiable(sample)
        return [a.requires_grad_(i in positions) if isinstance(a, Tensor) else a for i, a in enumerate(sample.args)]

    @cached_property
    def subject(self) -> Subject:  # type: ignore[override]
        return _Call(self)

    def versions(self, at: Setting, count: int) -> list[Setting]:
        return [at.with_values([at.cast(a) for a in self.args(Make(seed=seed))]) for seed in range(count)]

    def run_for_second(self, leaves: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return self.exact.call(self.entry.twin_for_second or self.entry.twin, leaves)

    def exempt(self, check: str) -> str | None:
        return self.entry.exempt.get(check) or self.entry.exempt.get(f"{check}, {self.sample}")

    def under_autocast(self, dtype: torch.dtype) -> list[Setting]:
        """Through the function of ``torch_manualbp.functional`` that runs the rule; the rule itself if none does, which
        takes what its caller casts."""

        def ours(*args: Any) -> Any:
            with _Ours():
                return self.entry.twin(*args)

        applied = applied_in_forward(lambda: ours(*self.args()))
        if not applied or applied[-1] is not self.rule:
            return [self.subject.setting(torch.float32)]
        return [self.subject.setting(given).with_target(ours) for given in (torch.float32, dtype)]


class _Call(Subject):
    """The call of a rule: whatever is no tensor among its arguments stays as it is."""

    def __init__(self, case: Case) -> None:
        self.name, self.seed, self.prefix = case.entry.name, 0, ""
        self.only_parameters, self.upstream, self.makes_copies = False, None, False
        self._settings = {}
        self.target, self.is_function = case.rule.apply, True
        self.reference = case.entry.twin
        self.functions = [case.rule]
        self.values = case.args()
        _, self._form = pytree.tree_flatten((tuple(range(len(self.values))), {}))
        self.value_names = [f"argument {i}" for i in range(len(self.values))]
        positions = [i for i, a in enumerate(self.values) if isinstance(a, Tensor) and a.requires_grad]
        self.leaves = tuple(Leaf(f"argument {i}", self.values[i], position=i) for i in positions)
        self.dtype = torch.float64
        self.is_complex = any(leaf.tensor.is_complex() for leaf in self.leaves)


class _Ours(TorchFunctionMode):
    """Calls ``torch_manualbp.functional.x`` for every call of ``torch.nn.functional.x``, ``torch.x`` or a method x."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in functional.__all__ and any(getattr(p, name, None) is func for p in (F, torch, Tensor)):
            func = getattr(functional, name)
        return func(*args, **(kwargs or {}))


def cases(entries: Sequence[Operation] = CATALOGUE) -> Iterator[Case]:
    """Every sample of every rule."""
    for entry in entries:
        for sample in entry.samples(Make()):
            yield Case(entry, sample.name)


def case_of(rule: type[Rule], sample: str, entries: Sequence[Operation] = CATALOGUE) -> Case:
    (entry,) = (e for e in entries if e.rule is rule)
    return Case(entry, sample)


REFUSALS = RuntimeError, ValueError, IndexError, ZeroDivisionError, NotImplementedError
"""What torch's own functions raise of what they do not take."""


def refusal(function: Callable[..., Any], *args: Any, errors: tuple[type[Exception], ...] = REFUSALS) -> str | None:
    """The reason to give where torch's own function does not do what is asked, in its words."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, of slow or deprecated ways
            function(*args)
    except errors as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0][:160]
        return f"torch's own function refuses: {said}"
    return None


def leaves(args: Sequence[Any]) -> list[Tensor]:
    return [a for a in args if isinstance(a, Tensor) and a.requires_grad]


def upstream_for(output: Tensor, seed: int = 7) -> Tensor:
    """∂C/∂(output): random numbers of its shape and dtype."""
    return Make(output.dtype, output.device, seed)(*output.shape)


def gradients(
    function: Callable[..., Tensor], args: Sequence[Any], upstream: Tensor | None = None
) -> tuple[Tensor, ...]:
    output = function(*args)
    return torch.autograd.grad(output, leaves(args), upstream_for(output) if upstream is None else upstream)
