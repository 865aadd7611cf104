"""The losses that ask for a margin between scores: nothing is owed where the right score leads by it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from torch_manualbp.rules.loss.reduction import reduced, share_of_each
from torch_manualbp.rules.rule import Rule, RuleWithByproducts, formula, widened

__all__ = [
    "MarginRanking",
    "MultiLabelMargin",
    "MultiLabelSoftMargin",
    "MultiMargin",
    "logistic_costs",
    "logistic_gradient",
    "margin_rows",
    "multi_label_margin_counts",
    "multi_margin_gradient",
    "ranking_cost",
    "ranking_gradient",
]


class MarginRanking(RuleWithByproducts):
    """The hinge of the difference d = s₁ − s₂ of two scores, of which the first should be the larger, y = 1, or the
    smaller, y = −1.

    ::

        r_i = margin − y_i d_i
        C_i = max(0, r_i)                  C = Σ C_i / n,  n = the number of entries
        ⇒
        ∂C/∂d_i = −y_i [r_i ≥ 0] g / n
        ∂C/∂y_i = −d_i [r_i ≥ 0] g / n

    At the kink r = 0 the gradient passes, as in torch.
    Shapes: d and y broadcast against each other; d comes from :class:`Difference`. ``"sum"`` and ``"none"`` have n = 1.
    Kept: −y, where r ≥ 0 (a byte each), and d where ∂C/∂y is needed.
    """

    @staticmethod
    def forward(d: Tensor, y: Tensor, margin: float, reduction: str) -> tuple[Tensor, Tensor]:
        return ranking_cost(d, y, margin, reduction), -y  # ATen, too, keeps −y, so that y may be changed

    @staticmethod
    def alone(d: Tensor, y: Tensor, margin: float, reduction: str) -> Tensor:
        return ranking_cost(d, y, margin, reduction)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        d, y, margin, ctx.reduction = inputs
        ctx.keeps_minus_y = isinstance(output, tuple)
        kept_y = output[1] if ctx.keeps_minus_y else y
        ctx.shapes, ctx.dtypes = (d.shape, y.shape), (d.dtype, y.dtype)
        passes = _ranking_rest(d.detach(), y.detach(), margin) >= 0
        needs_dd, needs_dy, *_ = ctx.needs_input_grad
        ctx.save_for_backward(d if needs_dy else None, kept_y if needs_dd else None, passes)
        ctx.save_for_forward(d, kept_y, passes)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(
        ctx: Any, g: Tensor | None, dminus_y: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor | None, None, None]:
        d, y, passes = ctx.saved_tensors
        needs_dd, needs_dy, *_ = ctx.needs_input_grad
        dd = None
        dy = -dminus_y if needs_dy and dminus_y is not None else None
        if g is None:
            return dd, dy, None, None
        g = share_of_each(widened(g), ctx.reduction, passes.numel())
        if needs_dy:
            by_loss = ranking_gradient(passes, d, -g).sum_to_size(ctx.shapes[1]).to(ctx.dtypes[1])
            dy = by_loss if dy is None else dy + by_loss
        if needs_dd:
            dd = ranking_gradient(passes, y, g if ctx.keeps_minus_y else -g)
            dd = dd.sum_to_size(ctx.shapes[0]).to(ctx.dtypes[0])
        return dd, dy, None, None

    @staticmethod
    def jvp(ctx: Any, dd: Tensor | None, dy: Tensor | None, *_: None) -> Any:
        d, y, passes = ctx.saved_tensors
        wide_d, wide_y = _in_one_dtype(d, y)
        dr: Any = 0
        if dd is not None:
            dr = wide_y * dd if ctx.keeps_minus_y else -wide_y * dd
        if dy is not None:
            dr = dr - wide_d * dy
        dC = reduced(torch.where(passes, dr, 0), ctx.reduction).to(torch.promote_types(d.dtype, y.dtype))
        if not ctx.keeps_minus_y:
            return dC
        return dC, None if not y.is_floating_point() else torch.zeros_like(y) if dy is None else -dy


@formula(by="sums")
def ranking_cost(d: Tensor, y: Tensor, margin: float, reduction: str) -> Tensor:
    """C of C_i = max(0, r)."""
    dtype = torch.promote_types(d.dtype, y.dtype)
    return reduced(_ranking_rest(d, y, margin).clamp_min(0), reduction).to(dtype)


@formula(by="entries")
def ranking_gradient(passes: Tensor, x: Tensor, g: Tensor) -> Tensor:
    """[r ≥ 0] g x, with one g for all or one for each entry."""
    return torch.where(passes, g, 0) * x.to(g.dtype)


def _ranking_rest(d: Tensor, y: Tensor, margin: float) -> Tensor:
    """r = margin − y d."""
    d, y = _in_one_dtype(d, y)
    return margin - y * d


def _in_one_dtype(d: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(d.dtype, y.dtype)
    return widened(d.to(dtype)), widened(y.to(dtype))


class MultiMargin(Rule):
    """The hinge of the lead of the true class over each of the other K − 1.

    With class weights w (1 where there are none)::

        r_k = margin − s_y + s_k           for k ≠ y
        C_i = w_y Σ_{k≠y} max(0, r_k)^p / K
        C = Σ C_i / n,                     n = the number of samples
        ⇒
        ∂C/∂s_k = w_y p r_k^(p−1) [r_k > 0] g / (K n)    for k ≠ y
        ∂C/∂s_y = −Σ_{k≠y} ∂C/∂s_k

    for p = 1 or 2. At the kink r = 0 the gradient is 0, as in torch, and so it is where r is NaN.

    Shapes: s (K) with y () or (1), or s (samples, K) with y (samples) of integers; s of shape () is one class.
    ``"sum"`` and ``"none"`` have n = 1.
    Kept: s, y, w. As in torch, w takes no gradient; forward mode holds it constant.
    """

    @staticmethod
    def forward(s: Tensor, y: Tensor, p: int, margin: float, w: Tensor | None, reduction: str) -> Tensor:
        C = F.multi_margin_loss(s, y, p, margin, w, reduction=reduction)
        return C if y.numel() else reduced(s.sum(-1), reduction)  # ATen leaves the sum of nothing unwritten

    @staticmethod
    def composite(s: Tensor, y: Tensor, p: int, margin: float, w: Tensor | None, reduction: str) -> Tensor:
        rows, y_column = _rows(s), y.reshape(y.numel(), 1)
        r = (rows + (margin - rows.gather(1, y_column))).scatter(1, y_column, 0).relu()  # ATen's has no vmap
        C = (r if p == 1 else r * r).sum(1) / rows.shape[1]
        return reduced((C if w is None else C * _weight_of(y, w).flatten()).reshape(y.shape), reduction)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        s, y, ctx.p, ctx.margin, w, ctx.reduction = inputs
        ctx.save_for_backward(s, y, w)
        ctx.save_for_forward(s, y, w)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        s, y, w = ctx.saved_tensors
        g = share_of_each(g, ctx.reduction, y.numel())
        return multi_margin_gradient(s, y, g, ctx.p, ctx.margin, w), None, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, ds: Tensor, *_: Any) -> Tensor:
        s, y, w = ctx.saved_tensors
        gradient = multi_margin_gradient(s, y, torch.ones_like(_rows(s)[:, 0]), ctx.p, ctx.margin, w)
        return reduced((_rows(gradient) * _rows(ds)).sum(1).reshape(y.shape), ctx.reduction)


def multi_margin_gradient(
    s: Tensor, y: Tensor, g: Tensor, p: int = 1, margin: float = 1.0, w: Tensor | None = None
) -> Tensor:
    """∂C/∂s of the shape of s, for one g for all samples or one for each."""
    rows = _rows(s)
    if g.numel() != 1 or y.numel() == 1:
        g = g.reshape(y.numel(), 1)
    g = g * (p / rows.shape[1])
    if w is not None:
        g = g * _weight_of(y, w).reshape(y.numel(), 1)
    return margin_rows(rows, y.reshape(y.numel(), 1), g, p, margin).reshape(s.shape)


@formula(by="rows")
def margin_rows(s: Tensor, y: Tensor, g: Tensor, p: int, margin: float) -> Tensor:
    """r^(p−1) [r > 0] g of each k ≠ y, and at y minus their sum: (samples, K), (samples, 1) and g (samples, 1) or ().

    r > 0 exactly where s_k − (s_y − margin) > 0, rounding included.
    """
    r = s - (s.gather(1, y) - margin)
    h = (r.sign() if p == 1 else r.nan_to_num(0, math.inf)).clamp_min(0) * g
    h = h.scatter(1, y, 0)
    return h.scatter(1, y, -h.sum(1, keepdim=True))


def _weight_of(y: Tensor, w: Tensor) -> Tensor:
    """w_y of each sample. As an index_select, since ``w[y]`` makes torch.compile read a y of ()."""
    return w.index_select(0, y.reshape(y.numel())).reshape(y.shape)


class MultiLabelMargin(Rule):
    """The hinge of the lead of each true class over each that is not.

    y lists the true classes of a sample from its first place on; −1 ends the list. With T the list and K classes::

        r_tk = 1 − s_t + s_k               for t in T and k not in T
        C_i = Σ_t Σ_k max(0, r_tk) / K     C = Σ C_i / n,  n = the number of samples
        ⇒
        ∂C/∂s_k = (the number of t with r_tk > 0) g / (K n)      for k not in T
        ∂C/∂s_t = −(the number of k with r_tk > 0) g / (K n)     for each t in T

    A class that is listed twice counts twice. At the kink r = 0 the gradient is 0, as in torch, and so it is where r is
    NaN. The second derivative by s is 0.

    Shapes: s and y (K), or (samples, K), y of integers. ``"sum"`` and ``"none"`` have n = 1. Kept: s, y.
    """

    @staticmethod
    def forward(s: Tensor, y: Tensor, reduction: str) -> Tensor:
        C = F.multilabel_margin_loss(s, y, reduction=reduction)
        if not s.numel():
            return reduced(s.sum(-1), reduction)  # ATen leaves the sum of nothing unwritten
        return C if reduction != "none" or C.dim() < s.dim() else C.reshape(())  # on the meta device it is (1)

    @staticmethod
    def composite(s: Tensor, y: Tensor, reduction: str) -> Tensor:
        # ATen's has no vmap. The pairs with r > 0 add up to 1 each and c_k s_k.
        rows = _rows(s)
        c = multi_label_margin_counts(rows.detach(), _rows(y))
        C = (c.clamp_min(0) + torch.where(c == 0, 0, c * rows)).sum(1) / rows.shape[1]
        return reduced(C.reshape(s.shape[:-1]), reduction)

    compiles_composite = True  # which (2.13) counts s_0 for each place after the list in ATen's function

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        s, y, ctx.reduction = inputs
        ctx.save_for_backward(s, y)
        ctx.save_for_forward(s, y)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        s, y = ctx.saved_tensors
        c = multi_label_margin_counts(_rows(s).detach(), _rows(y))
        g = share_of_each(g, ctx.reduction, c.shape[0]) / max(c.shape[1], 1)
        return (c * (g.reshape(c.shape[0], 1) if g.dim() else g)).reshape(s.shape), None, None

    @staticmethod
    def jvp(ctx: Any, ds: Tensor, *_: None) -> Tensor:
        s, y = ctx.saved_tensors
        c = multi_label_margin_counts(_rows(s).detach(), _rows(y))
        return reduced(((c * _rows(ds)).sum(1) / max(c.shape[1], 1)).reshape(s.shape[:-1]), ctx.reduction)


@formula(by="whole")
def multi_label_margin_counts(s: Tensor, y: Tensor) -> Tensor:
    """c = ∂(Σ_t Σ_k max(0, r_tk))/∂s: the number of t with r_tk > 0 for each k not in T, minus the number of such k for
    each t in T; (samples, K) of s and y (samples, K).

    r_tk > 0 exactly where s_k > s_t − 1, rounding included.
    """
    listed = (y < 0).cumsum(1) == 0
    y = torch.where(listed, y, 0)
    is_label = torch.zeros_like(s).scatter_add(1, y, listed.to(s.dtype)) > 0
    bound = torch.where(listed, s.gather(1, y) - 1, math.inf).nan_to_num(math.inf, math.inf, -math.inf)  # s_t − 1
    others = torch.where(is_label | s.isnan(), -math.inf, s)
    # Counted in sorted order, without a number for each pair (t, k).
    of_others = torch.searchsorted(bound.sort(1).values, others)  # the bounds that s_k is above
    of_labels = s.shape[1] - torch.searchsorted(others.sort(1).values, bound, right=True)  # the s_k above the bound
    return of_others.to(s.dtype).scatter_add(1, y, -of_labels.to(s.dtype))


class MultiLabelSoftMargin(Rule):
    """A logistic regression for each of K classes, each of which is true, y = 1, or is not, y = 0.

    With class weights w (1 where there are none)::

        C_i = −Σ_k w_k (y_k log σ(s_k) + (1 − y_k) log σ(−s_k)) / K
        C = Σ C_i / n,                     n = the number of samples
        ⇒
        ∂C/∂s_k = w_k ((1 − y_k) σ(s_k) − y_k σ(−s_k)) g / (K n)
        ∂C/∂y_k = −w_k s_k g / (K n)
        ∂C/∂w_k = −(y_k log σ(s_k) + (1 − y_k) log σ(−s_k)) g / (K n)

    The textbook's σ(s) − y, with no digits lost where σ(s) is near y.
    Shapes: s (*, K); y and w broadcast against it. ``"sum"`` and ``"none"`` have n = 1. Kept: of s, y and w what
    the needed gradients use.
    """

    @staticmethod
    def forward(s: Tensor, y: Tensor, w: Tensor | None, reduction: str) -> Tensor:
        k = s.dim() - 1
        C = logistic_costs(widened(s), widened(y))
        C = (C if w is None else C * widened(w)).sum(k) / s.size(k)
        return reduced(C, reduction).to(_common_dtype(s, y, w))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        s, y, w, ctx.reduction = inputs
        needs_ds, needs_dy, needs_dw, _ = ctx.needs_input_grad
        ctx.save_for_backward(s, y if needs_ds or needs_dw else None, w if needs_ds or needs_dy else None)
        ctx.save_for_forward(s, y, w)
        ctx.shapes = s.shape, y.shape, None if w is None else w.shape
        ctx.dtypes = s.dtype, y.dtype, None if w is None else w.dtype

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        kept: list[Any] = [None if t is None else widened(t) for t in ctx.saved_tensors]
        s, y, w = kept
        needs_ds, needs_dy, needs_dw, _ = ctx.needs_input_grad
        k = s.dim() - 1
        shape = _broadcast([shape for shape in ctx.shapes if shape is not None])
        samples = math.prod(shape[:k] + shape[k + 1 :])
        g = share_of_each(widened(g), ctx.reduction, samples) / max(s.shape[k], 1)
        g = g.unsqueeze(k) if g.dim() else g
        g_w = g if w is None else g * w
        ds = dy = dw = None
        if needs_ds:
            ds = logistic_gradient(s, y, g_w)
            ds = ds.expand(shape).sum_to_size(ctx.shapes[0]).to(ctx.dtypes[0])
        if needs_dy:
            dy = (s * -g_w).expand(shape).sum_to_size(ctx.shapes[1]).to(ctx.dtypes[1])
        if needs_dw:
            dw = (logistic_costs(s, y) * g).expand(shape).sum_to_size(ctx.shapes[2]).to(ctx.dtypes[2])
        return ds, dy, dw, None

    @staticmethod
    def jvp(ctx: Any, ds: Tensor | None, dy: Tensor | None, dw: Tensor | None, _: None) -> Tensor:
        s, y, w = ctx.saved_tensors
        k, dtype = s.dim() - 1, _common_dtype(s, y, w)
        s, y, w = widened(s), widened(y), None if w is None else widened(w)
        dC = torch.zeros_like(s * y)
        if ds is not None:
            dC = dC + logistic_gradient(s, y, ds)
        if dy is not None:
            dC = dC - s * dy
        if w is not None:
            dC = dC * w
        if dw is not None:
            dC = dC + logistic_costs(s, y) * dw
        return reduced(dC.sum(k) / max(s.shape[k], 1), ctx.reduction).to(dtype)


@formula(by="entries")
def logistic_costs(s: Tensor, y: Tensor) -> Tensor:
    """−(y log σ(s) + (1 − y) log σ(−s))."""
    return -(y * F.logsigmoid(s) + (1 - y) * F.logsigmoid(-s))


@formula(by="entries")
def logistic_gradient(s: Tensor, y: Tensor, g: Tensor) -> Tensor:
    """((1 − y) σ(s) − y σ(−s)) g, with σ(s) = exp(s) / (1 + exp(s)) and, where s > 0, 1 / (1 + exp(−s))."""
    below, above = s.clamp(max=0).exp(), (-s.relu()).exp()
    return torch.addcmul((1 - y) * below, y, above, value=-1) / (1 + below * above) * g


def _broadcast(shapes: list[torch.Size]) -> tuple[int, ...]:
    """As ``torch.broadcast_shapes``, which torch.compile does not trace, of shapes that do broadcast."""
    dims = max([len(shape) for shape in shapes])
    padded = [(1,) * (dims - len(shape)) + tuple(shape) for shape in shapes]
    return tuple([([size for size in sizes if size != 1] or [1])[0] for sizes in zip(*padded, strict=True)])


def _common_dtype(s: Tensor, y: Tensor, w: Tensor | None) -> torch.dtype:
    dtype = torch.promote_types(s.dtype, y.dtype)
    return dtype if w is None else torch.promote_types(dtype, w.dtype)


def _rows(t: Tensor) -> Tensor:
    """(samples, K) of (samples, K), (K) or ()."""
    return t if t.dim() == 2 else t.reshape(1, t.numel())
