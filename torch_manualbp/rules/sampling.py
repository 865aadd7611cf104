"""Images and volumes read at places that are numbers themselves."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from torch_manualbp._torch import unsafe_view
from torch_manualbp.rules.rule import Rule, formula, widened

__all__ = ["AffineGrid", "GridSample", "grid_sample_gradients", "grid_samples"]

A = -0.75
"""The slope of the cubic at its neighbours, torch's."""


class GridSample(Rule):
    """The input at the places that a grid names, in between its own entries.

    ::

        u_d = ((x_d + 1) n_d − 1) / 2              or (x_d + 1) (n_d − 1) / 2, where −1 and 1 are the outer centres
        a_c(x) = Σ_y Π_d w(u_d, y_d) z_c(y)
        ⇒
        ∂C/∂z_c(y) = Σ_x Π_d w(u_d, y_d) ∂C/∂a_c(x)
        ∂C/∂x_d = Σ_c ∂C/∂a_c(x) Σ_y w'(u_d, y_d) Π_e≠d w(u_e, y_e) z_c(y) · ∂u_d/∂x_d

    w is 1 for the nearest y alone, 1 − |u − y| of two neighbours, or a cubic of four. A y beyond the border counts 0,
    or u is moved to the border (w' is 0 there), or reflected (w' changes its sign); with cubics y is, and not u.

    Shapes: z (N, n, H, W) with x (N, *, *, 2), z (N, n, D, H, W) with x (N, *, *, *, 3): x_0 is for the last dimension.
    Kept: x, z. torch has no second derivative.
    """

    @staticmethod
    def forward(z: Tensor, x: Tensor, mode: str, padding: str, align_corners: bool) -> Tensor:
        return F.grid_sample(widened(z), widened(x), mode, padding, align_corners).to(z.dtype)

    @staticmethod
    def composite(z: Tensor, x: Tensor, mode: str, padding: str, align_corners: bool) -> Tensor:
        return grid_samples(z, x, mode, padding, align_corners)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        z, x, *ctx.options = inputs
        ctx.shape, ctx.dtype = z.shape, z.dtype
        ctx.save_for_backward(z if ctx.needs_input_grad[1] else None, x)
        ctx.save_for_forward(z, x)

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor | None, ...]:
        z, x = ctx.saved_tensors
        mode, padding, align_corners = ctx.options
        needs = ctx.needs_input_grad[:2]
        dz, dx = grid_sample_gradients(da, z, x, ctx.shape, mode, padding, align_corners, needs)
        return None if dz is None else dz.to(ctx.dtype), dx, None, None, None

    @staticmethod
    def jvp(ctx: Any, dz: Tensor | None, dx: Tensor | None, *_: Any) -> Tensor:
        z, x = ctx.saved_tensors
        flat_z = _flat(z)
        da = flat_z.new_zeros(*z.shape[:2], x.shape[1:-1].numel())
        for place, w, slopes in _neighbours(x, z.shape, *ctx.options):
            if dz is not None:
                da = da + _at(_flat(dz), place) * w
            for d, slope in enumerate(slopes):
                if dx is None:
                    continue
                da = da + _at(flat_z, place) * (slope * samples_apart(widened(dx[..., d]))).unsqueeze(1)
        return da.reshape(*z.shape[:2], *x.shape[1:-1]).to(z.dtype)


@formula(by="whole")
def grid_samples(z: Tensor, x: Tensor, mode: str, padding: str, align_corners: bool) -> Tensor:
    """a."""
    terms = [_at(_flat(z), place) * w for place, w, _ in _neighbours(x, z.shape, mode, padding, align_corners)]
    return sum(terms[1:], start=terms[0]).reshape(*z.shape[:2], *x.shape[1:-1]).to(z.dtype)


@formula(by="whole")
def grid_sample_gradients(
    da: Tensor,
    z: Tensor | None,
    x: Tensor,
    shape: torch.Size,
    mode: str,
    padding: str,
    align_corners: bool,
    needs: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """∂C/∂z and ∂C/∂x, those that are needed."""
    needs_dz, needs_dx = needs
    da = _flat(da)
    dz = da.new_zeros(*shape[:2], shape[2:].numel()) if needs_dz else None
    dx: list[Tensor] = [da.new_zeros(da.shape[0], da.shape[2])] * x.shape[-1]
    for place, w, slopes in _neighbours(x, shape, mode, padding, align_corners):
        if dz is not None:
            dz = dz.scatter_add(2, place.unsqueeze(1).expand(-1, shape[1], -1), da * w)
        if needs_dx and z is not None:
            by_weight = (da * _at(_flat(z), place)).sum(1)
            dx = [sum_d + slope * by_weight for sum_d, slope in zip(dx, slopes, strict=True)]
    by_x = torch.stack(dx, -1).reshape(x.shape).to(x.dtype) if needs_dx else None
    return None if dz is None else dz.reshape(shape), by_x


def _flat(z: Tensor) -> Tensor:
    return widened(z).reshape(*z.shape[:2], z.shape[2:].numel())


def samples_apart(t: Tensor) -> Tensor:
    """(N, *) → (N, places)."""
    return t.reshape(t.shape[0], t.shape[1:].numel())


def _at(z: Tensor, place: Tensor) -> Tensor:
    """z_c(y): (N, n, entries), (N, places) → (N, n, places)."""
    return z.gather(2, place.unsqueeze(1).expand(-1, z.shape[1], -1))


def _neighbours(
    x: Tensor, shape: torch.Size, mode: str, padding: str, align_corners: bool
) -> Iterator[tuple[Tensor, Tensor, list[Tensor]]]:
    """For each combination of neighbours: which entry it is, flat, its weight, (N, 1, places), and ∂(weight)/∂x_d."""
    sizes = shape[2:]
    x = widened(x)
    along = [
        _along(samples_apart(x[..., len(sizes) - 1 - k]), n, mode, padding, align_corners) for k, n in enumerate(sizes)
    ]
    for chosen in itertools.product(*along):
        place, w = torch.zeros_like(chosen[0][0]), torch.ones_like(chosen[0][1])
        for (y, w_d, _), n in zip(chosen, sizes, strict=True):
            place, w = place * n + y, w * w_d
        slopes = []
        for k in reversed(range(len(sizes))):
            slope = chosen[k][2]
            for other in (*chosen[:k], *chosen[k + 1 :]):
                slope = slope * other[1]
            slopes.append(slope)
        yield place, w.unsqueeze(1), slopes


def _along(x: Tensor, n: int, mode: str, padding: str, align_corners: bool) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Along one dimension the neighbours y, w(u, y) and ∂w/∂x."""
    du_dx = (n - 1) / 2 if align_corners else n / 2
    u = (x + 1) * du_dx - (0 if align_corners else 0.5)
    if mode == "bicubic":
        first = u.detach().floor()
        t = u - first
        found = []
        for k, (w, slope) in enumerate(_cubic(t)):
            y, _ = _moved(first + (k - 1), n, padding, align_corners)
            found.append((y, w, slope * du_dx))
    else:
        u, turned = _moved(u, n, padding, align_corners)
        du = turned * du_dx
        first = u.detach().floor()
        if mode == "nearest":
            found = [(u.detach().round(), torch.sign(u) * 0 + 1, torch.zeros_like(u))]
        else:
            found = [(first, 1 - (u - first), -du), (first + 1, u - first, du)]
    inside = [(y >= 0) & (y <= n - 1) for y, _, _ in found]
    return [
        (torch.where(is_in, y, 0).long(), torch.where(is_in, w, 0), torch.where(is_in, slope, 0))
        for (y, w, slope), is_in in zip(found, inside, strict=True)
    ]


def _cubic(t: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The weights of the four neighbours of a number, t behind the second, and their derivatives."""

    def near(s: Tensor) -> tuple[Tensor, Tensor]:
        return ((A + 2) * s - (A + 3)) * s * s + 1, (3 * (A + 2) * s - 2 * (A + 3)) * s

    def far(s: Tensor) -> tuple[Tensor, Tensor]:
        return ((A * s - 5 * A) * s + 8 * A) * s - 4 * A, (3 * A * s - 10 * A) * s + 8 * A

    (w0, s0), (w1, s1), (w2, s2), (w3, s3) = far(t + 1), near(t), near(1 - t), far(2 - t)
    return [(w0, s0), (w1, s1), (w2, -s2), (w3, -s3)]


def _moved(u: Tensor, n: int, padding: str, align_corners: bool) -> tuple[Tensor, Tensor]:
    """Where what lies beyond the border is read, and the derivative: 1, 0 or −1."""
    one = torch.ones_like(u)
    if padding == "zeros":
        return u, one
    if padding == "reflection":
        low, high = (0.0, n - 1.0) if align_corners else (-0.5, n - 0.5)
        if low == high:
            return u * 0, one * 0
        span, from_low = high - low, u - low
        sign = torch.where(from_low.detach() < 0, -one, one)
        from_low = from_low * sign
        turns = (from_low.detach() / span).floor()
        is_even = turns.remainder(2) == 0
        within = from_low - turns * span
        u = torch.where(is_even, within, span - within) + low
        one = torch.where(is_even, sign, -sign)
    passes = (u.detach() > 0) & (u.detach() < n - 1)
    return torch.where(passes, u, u.detach().clamp(0, n - 1)), torch.where(passes, one, 0)


class AffineGrid(Rule):
    """The places of an image or volume under an affine map.

    ::

        x_i(y) = Σ_j θ_ij y_j + θ_i,n+1
        ⇒
        ∂C/∂θ_ij = Σ_y ∂C/∂x_i(y) y_j,  y_n+1 = 1

    y are the centres of the entries, in −1 … 1: with ``align_corners`` −1 and 1 are the outer ones.

    Shapes: θ (N, 2, 3) with size (N, n, H, W), x (N, H, W, 2); θ (N, 3, 4) with size (N, n, D, H, W). Kept: nothing.
    """

    @staticmethod
    def forward(theta: Tensor, size: tuple[int, ...], align_corners: bool) -> Tensor:
        x = torch.affine_grid_generator(theta, size, align_corners)
        return unsafe_view(x, x.shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        theta, ctx.size, ctx.align_corners = inputs
        ctx.like = theta.shape, theta.dtype, theta.device

    @staticmethod
    def backward(ctx: Any, dx: Tensor) -> tuple[Tensor, None, None]:
        shape, dtype, _ = ctx.like
        dx = widened(dx)
        y = centres(ctx.size[2:], ctx.align_corners, dx)
        return (
            torch.matmul(dx.reshape(dx.shape[0], dx.shape[1:-1].numel(), dx.shape[-1]).mT, y).reshape(shape).to(dtype),
            None,
            None,
        )

    @staticmethod
    def jvp(ctx: Any, dtheta: Tensor, *_: Any) -> Tensor:
        y = centres(ctx.size[2:], ctx.align_corners, widened(dtheta))
        dx = torch.matmul(y, widened(dtheta).mT)
        return dx.reshape(dtheta.shape[0], *ctx.size[2:], len(ctx.size) - 2).to(dtheta.dtype)


def centres(sizes: tuple[int, ...], align_corners: bool, like: Tensor) -> Tensor:
    """y, and 1, of each entry: (entries, dimensions + 1), the last dimension first."""
    along = []
    for n in reversed(sizes):
        y = torch.linspace(-1, 1, n, dtype=like.dtype, device=like.device) if n > 1 else like.new_zeros(n)
        along.append(y if align_corners else y * ((n - 1) / n))
    places = torch.meshgrid(*reversed(along), indexing="ij")
    return torch.stack([t.reshape(t.numel()) for t in (*reversed(places), torch.ones_like(places[0]))], -1)
