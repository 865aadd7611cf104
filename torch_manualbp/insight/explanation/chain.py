"""The chain of one weight: ∂C/∂w as a sum of products, one for each entry that a rule made of the weight.

::

    ∂C/∂w = Σ_t  ∂C/∂a_t · f'(z_t) · ∂z_t/∂w          of a linear layer or a convolution ∂z_t/∂w = an a, ∂z_t/∂b = 1

The sum is over the samples, positions of sequences among them, and over the uses of a weight that is used more than
once. All products are in float64, of factors that have the precision of the model.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from torch_manualbp.insight.explanation.local import column, diagonal, has_slope, product_of, wide
from torch_manualbp.insight.network import is_of_loss
from torch_manualbp.insight.trace import Quantity, Stage, Trace

__all__ = ["Use", "uses_of"]


@dataclass(eq=False)
class Use:
    """What a rule made of the weight, and the products that lead from there to C. Each tensor has an entry for each
    term."""

    stage: Stage
    output: Quantity
    position: Tensor
    """The entry z_t of ``output``, counted off."""

    local: Tensor
    """∂z_t/∂w."""

    elementwise: tuple[tuple[Stage, Tensor], ...]
    """The elementwise rules that alone take z, one after another, each with its f'(z_t)."""

    head: Quantity
    """What these end in: a_t, or z_t where there is none."""

    upstream: Tensor
    """∂C/∂(head_t)."""

    @property
    def products(self) -> Tensor:
        """The terms."""
        product = self.upstream
        for _, factor in reversed(self.elementwise):
            product = product * factor
        return product * self.local


def uses_of(trace: Trace, weight: Quantity, entry: int) -> list[Use]:
    """All uses of a weight that C depends on; ``entry`` is counted off in its tensor."""
    uses = []
    for stage in weight.used_by:
        for output, position, local in _locals(stage, weight, entry):
            if output.gradient is not None:
                uses.append(_use(trace, stage, output, position, local))
    return uses


def _locals(stage: Stage, weight: Quantity, entry: int) -> list[tuple[Quantity, Tensor, Tensor]]:
    """The entries of the stage's outputs that depend on the weight, and their derivatives by it."""
    at = [i for i, arg in enumerate(stage.args) if arg is weight]
    if (product := product_of(stage)) is not None:
        jacobian = product.jacobian
        by = {jacobian.weight: product.by_weight, jacobian.bias: product.by_bias}
        is_shared = at == [jacobian.bias] and weight.tensor.shape != product.weight.tensor.shape[:1]
        if len(at) == 1 and at[0] in by and not is_shared:
            position, local = by[at[0]](entry)
            return [(stage.output, position, wide(local))]
    found = []
    for output, local in zip(stage.outputs, column(stage, weight, entry), strict=True):
        position = local.ne(0).nonzero().view(-1)
        found.append((output, position, local[position]))
    return found


def _use(trace: Trace, stage: Stage, output: Quantity, position: Tensor, local: Tensor) -> Use:
    elementwise = []
    head = output
    while len(head.used_by) == 1 and _is_part_of_the_chain(trace, stage, head.used_by[0], head):
        (after,) = head.used_by
        elementwise.append((after, wide(diagonal(after))[position]))
        head = after.output
    assert head.gradient is not None  # since that of the output is there
    return Use(stage, output, position, local, tuple(elementwise), head, wide(head.gradient)[position])


def _is_part_of_the_chain(trace: Trace, stage: Stage, after: Stage, z: Quantity) -> bool:
    if not has_slope(after) or after.args[0] is not z or after.output.gradient is None:
        return False
    return is_of_loss(trace, stage) or not is_of_loss(trace, after)
