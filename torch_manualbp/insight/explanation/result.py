"""What an explanation consists of."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from torch_manualbp._text import as_json
from torch_manualbp.insight.explanation.markdown import to_markdown
from torch_manualbp.insight.explanation.text import to_text
from torch_manualbp.insight.symbols import Notation

__all__ = ["Explanation", "Factor", "MatrixChain", "MatrixFactor", "Path", "Sample"]


@dataclass(frozen=True)
class Factor:
    """One factor of a chain."""

    symbol: Notation
    value: float
    origin: Notation
    """Where it comes from: the formula of the forward or backward, with its numbers."""


@dataclass(frozen=True)
class Sample:
    """One term of the sum over the samples: a chain of factors."""

    place: str
    """``"sample 3"``, or ``"sample 3, position 2"``; of a weight that is used more than once also where. Empty where
    there is one term alone."""

    factors: tuple[Factor, ...]
    value: float
    """Their product."""


@dataclass(frozen=True)
class MatrixFactor:
    """One factor of a chain of matrices."""

    symbol: Notation
    shape: tuple[int, ...]
    numbers: Tensor | None
    """In ``shape``, of a diagonal matrix its diagonal; None where they are many."""

    origin: Notation
    up_to_here: Tensor | None
    """The product of the chain up to this factor; None where it has many numbers."""


@dataclass(frozen=True)
class MatrixChain:
    """The sum over all paths through the same rules, for one sample, as a product of matrices."""

    factors: tuple[MatrixFactor, ...]
    value: float


@dataclass(frozen=True)
class Path:
    """One path from the weight to C."""

    place: str
    neurons: tuple[Notation, ...]
    """From the weight's input to C."""

    factors: tuple[Factor, ...]
    """From C to the weight's input, without those that are 1 because a rule passes an entry on as it is."""

    value: float
    """The product of the factors."""


@dataclass(frozen=True, eq=False, repr=False)
class Explanation:
    """Why ∂C/∂w is what it is. Made by :func:`torch_manualbp.explain`; ``print`` it to read it."""

    name: str
    index: tuple[int, ...]
    symbol: Notation
    weight: float
    cost: float
    significant: int
    """How many digits numbers of the model's dtype have."""

    value: float
    """∂C/∂w as the sum of products."""

    autograd: float
    """The same of autograd."""

    count: int
    """How many terms ``value`` is the sum of."""

    products: Tensor
    """All of them, in the order of the samples."""

    samples: tuple[Sample, ...]
    """Those that are shown: all, in their order, or the strongest, the strongest first."""

    chains: tuple[MatrixChain, ...]
    """For the strongest sample; there are several where the network has several ways."""

    count_chains: int
    paths: tuple[Path, ...]
    """The strongest paths, the strongest first."""

    count_paths: float
    """How many there are, exactly up to 2⁵³, of the samples that were searched."""

    count_nonzero_paths: float
    searched: tuple[str, ...]
    """The places of the samples whose paths were looked at, the strongest."""

    searched_value: float
    """What their terms sum up to."""

    notes: tuple[str, ...]
    legend: tuple[tuple[Notation, str], ...] = field(default=())

    @property
    def difference(self) -> float:
        """``value − autograd``."""
        return self.value - self.autograd

    @property
    def factors(self) -> tuple[Factor, ...]:
        """The chain of the strongest sample; of no sample there is none."""
        if not self.samples:
            return ()
        return max(self.samples, key=lambda sample: math.inf if math.isnan(sample.value) else abs(sample.value)).factors

    @property
    def rest(self) -> float:
        """What the samples that are not shown sum up to."""
        return self.value - math.fsum(sample.value for sample in self.samples) if self.count_hidden else 0.0

    @property
    def count_hidden(self) -> int:
        """How many samples are not shown."""
        return self.count - len(self.samples)

    def share(self, value: float) -> float:
        """The share of the whole; NaN where that is 0."""
        return value / self.value if self.value else math.nan

    def __repr__(self) -> str:
        return f"<Explanation: ∂C/∂{self.symbol} = {self.value:.{self.significant}g}>"

    def __str__(self) -> str:
        return to_text(self)

    def to_markdown(self, dollars: bool = False) -> str:
        """In Markdown, with formulas in LaTeX.

        Args:
            dollars: put them between $ or $$, as notebooks and pandoc read them; otherwise they are as GitHub and
                GitLab have them, which between dollars alone take backslashes away.
        """
        return to_markdown(self, dollars)

    def to_html(self, page: bool = True) -> str:
        """In HTML without outside resources: a page, or a snippet to be put into one."""
        from torch_manualbp.insight.explanation.webpage import to_html  # it loads markupsafe

        return to_html(self, page)

    def _repr_markdown_(self) -> str:
        return self.to_markdown(dollars=True)

    def _repr_html_(self) -> str:
        return self.to_html(page=False)

    def to_json(self) -> str:
        """As JSON; numbers that are not finite are the words ``"nan"``, ``"inf"`` and ``"-inf"``."""
        return as_json(self.as_dict())

    def as_dict(self) -> dict[str, Any]:
        """Names, numbers and the texts of the formulas."""
        return {
            "name": self.name,
            "index": list(self.index),
            "symbol": self.symbol.text,
            "weight": self.weight,
            "cost": self.cost,
            "value": self.value,
            "autograd": self.autograd,
            "difference": self.difference,
            "count": self.count,
            "samples": [
                {"place": sample.place, "value": sample.value, "factors": _factors(sample.factors)}
                for sample in self.samples
            ],
            "rest": {"count": self.count_hidden, "value": self.rest},
            "count_chains": self.count_chains,
            "chains": [
                {"value": chain.value, "factors": [_matrix(factor) for factor in chain.factors]}
                for chain in self.chains
            ],
            "paths": [
                {
                    "place": path.place,
                    "neurons": [neuron.text for neuron in path.neurons],
                    "factors": _factors(path.factors),
                    "value": path.value,
                    "share": self.share(path.value),
                }
                for path in self.paths
            ],
            "count_paths": self.count_paths,
            "count_nonzero_paths": self.count_nonzero_paths,
            "searched": list(self.searched),
            "searched_value": self.searched_value,
            "notes": list(self.notes),
            "legend": {notation.text: what for notation, what in self.legend},
        }


def _factors(factors: tuple[Factor, ...]) -> list[dict[str, Any]]:
    return [{"symbol": f.symbol.text, "value": f.value, "origin": f.origin.text} for f in factors]


def _matrix(factor: MatrixFactor) -> dict[str, Any]:
    return {
        "symbol": factor.symbol.text,
        "shape": list(factor.shape),
        "numbers": None if factor.numbers is None else factor.numbers.tolist(),
        "origin": factor.origin.text,
        "up_to_here": None if factor.up_to_here is None else factor.up_to_here.tolist(),
    }
