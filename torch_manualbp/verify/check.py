"""A claim by its name, and how it is held against a subject: a rule on a sample, a layer, or a user's target."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from torch_manualbp._text import one_line
from torch_manualbp.verify.report import DOES_NOT_APPLY, ERROR, FAILS, LEFT_OUT, OK, ROBUSTNESS, VALUE, Row

if TYPE_CHECKING:
    from torch_manualbp.verify.trial import Trial

__all__ = ["BudgetSpentError", "Check", "DoesNotApply", "finish", "named", "outcomes", "run"]


class DoesNotApply(Exception):
    """What a claim says of a subject to which it, or a part of it, does not apply, for these reasons."""

    def __init__(self, *reasons: str, partly: bool = False) -> None:
        self.reasons = tuple(dict.fromkeys(reasons))
        self.partly = partly
        """Whether the rest of the claim was looked at, and holds."""
        super().__init__("; ".join(self.reasons))


class BudgetSpentError(BaseException):
    """The time that a verification may take is over."""


SPENT = "the budget of time is spent"

UNSUPPORTED = (
    *("forward AD", "forward mode", "forward-mode", "jvp", "ForwardAD"),
    *("setup_context", "generate_vmap_rule", "does not have vmap support", "vmap staticmethod", "once_differentiable"),
)
"""What stands in the errors of a target that has no forward mode, no vmap or no second derivative, as it may."""


def finish(ran: int, reasons: Sequence[str]) -> None:
    """End a claim of several parts: say for what reasons some did not run."""
    if reasons:
        raise DoesNotApply(*reasons, partly=ran > 0)


@dataclass(frozen=True)
class Check:
    """A claim under the name that it has in a report or in a matrix.

    The claim is a function of a :class:`~torch_manualbp.verify.trial.Trial` that yields rows, or raises AssertionError
    where the subject breaks it, or :class:`DoesNotApply`.
    """

    name: str
    claim: Callable[[Any], Iterable[Row] | None]
    slow: bool = False
    """Whether it runs on a user's target only if asked for by its name, and in a matrix on the first sample of each
    rule alone."""
    on_all: bool = False
    """Whether it looks at all samples of a user's target; the others are content with the first few of many."""
    kind: str = VALUE
    """What it is where it fails."""
    error: str = ROBUSTNESS
    """The same, where the target raises in it."""
    varies: bool = False
    """Whether it looks at other calls than the given one: there is no need to where that is wrong."""
    compares: bool = False
    """Whether, where it holds, gradients were compared with right ones."""

    @classmethod
    def each(cls, name: str, claim: Callable[..., Any], dtypes: Mapping[str, torch.dtype]) -> tuple[Check, ...]:
        """A check of one claim for each of some dtypes."""
        return tuple(cls(f"{name}, {about}", partial(claim, dtype=dtype)) for about, dtype in dtypes.items())

    @property
    def about(self) -> str:
        """What is claimed, in a sentence or two."""
        claim = self.claim.func if isinstance(self.claim, partial) else self.claim
        return " ".join((claim.__doc__ or "").split())

    def __str__(self) -> str:
        return self.name

    def rows(self, trial: Trial) -> Iterator[Row]:
        """What is found. Whatever is raised is a row, too."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch's own, of prototypes and of shapes that broadcast
                if reason := trial.exempt(self.name):
                    raise DoesNotApply(reason)
                for row in self.claim(trial) or ():
                    yield replace(
                        row,
                        check=row.check or self.name,
                        kind=row.kind or self._kind_of(row),
                        compares=row.compares or (self.compares and row.verdict == OK and bool(row.name)),
                    )
        except BudgetSpentError:
            yield Row("", self.name, LEFT_OUT, hint=SPENT)
        except DoesNotApply as why:
            if why.partly:
                yield Row("", self.name, OK)
            yield from (Row("", self.name, DOES_NOT_APPLY, hint=reason) for reason in why.reasons)
        except AssertionError as error:
            yield Row("", self.name, FAILS, hint=one_line(error).removeprefix("AssertionError: "), kind=self.kind)
        except Exception as error:
            refuses = getattr(error, "of_the_forward", False) and self.error != VALUE
            may_refuse = not trial.has_twin and (refuses or any(words in str(error) for words in UNSUPPORTED))
            kind = "" if may_refuse else self.error
            yield Row("", self.name, DOES_NOT_APPLY if may_refuse else ERROR, hint=one_line(error), kind=kind)

    def _kind_of(self, row: Row) -> str:
        return "" if row.ok else self.kind if row.verdict == FAILS else self.error


def outcomes(check: Check, trial: Trial) -> tuple[Row, ...]:
    """What a check finds, in few rows, from the same random state every time: the first that is wrong; or that it
    holds, and each reason why it, or a part of it, does not apply."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        rows = list(check.rows(trial))
    subject, sample = trial.label
    about: Any = {"check": check.name, "subject": subject, "sample": sample}
    for row in rows:
        if not row.ok:
            return (replace(row, **about),)
    reasons = dict.fromkeys(row.hint for row in rows if row.verdict == DOES_NOT_APPLY)
    holds = [Row("", verdict=OK, **about)] if not rows or any(row.verdict == OK for row in rows) else []
    return (*holds, *(Row("", verdict=DOES_NOT_APPLY, hint=reason, **about) for reason in reasons))


def run(check: Check, trial: Trial) -> Row:
    """The first of these rows: what is wrong, if anything is."""
    return outcomes(check, trial)[0]


def named(checks: Sequence[Check], names: Sequence[str] | str) -> list[Check]:
    """The checks of these names; ``"values"`` is all whose name starts so.

    Raises:
        ValueError: no check has such a name.
    """
    found: list[Check] = []
    for name in [names] if isinstance(names, str) else names:
        of_name = [c for c in checks if c.name == name] or [c for c in checks if c.name.startswith(f"{name}, ")]
        if not of_name:
            all_names = [c.name for c in checks]
            words = dict.fromkeys([*all_names, *(n.split(",")[0] for n in all_names)])
            near = difflib.get_close_matches(name, words, 1)
            advice = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(all_names)}"
            raise ValueError(f"no check is named {name!r}: {advice}")
        found += of_name
    return found
