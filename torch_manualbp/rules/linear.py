"""The rules of the linear layers."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from torch_manualbp._torch import unsafe_view
from torch_manualbp.rules.jacobian import Diagonal, Product
from torch_manualbp.rules.rule import Rule, formula, widened

__all__ = [
    "Bilinear",
    "Identity",
    "Linear",
    "bilinear_input_gradient",
    "bilinear_product",
    "bilinear_weight_gradient",
    "linear_bias_gradient",
    "linear_input_gradient",
    "linear_weight_gradient",
    "samples_as_rows",
]


class Identity(Rule):
    """The layer that passes its input on.

    ::

        a = z
        ⇒
        ∂C/∂z = ∂C/∂a

    Shapes: any. The output is a tensor of its own, so that it may be changed in place.
    """

    jacobian = Diagonal(slope="")

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return z.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        return da

    @staticmethod
    def jvp(ctx: Any, dz: Tensor) -> Tensor:
        return dz.clone()


class Linear(Rule):
    """The weighted input of a layer of neurons.

    ::

        z = a Wᵀ + b
        ⇒
        δ = ∂C/∂z                      the local gradient, which comes from above
        ∂C/∂a = δ W
        ∂C/∂W = δᵀ a
        ∂C/∂b = Σ_samples δ

    Shapes: a (*, in), W (out, in), b (out), z and δ (*, out), where * is any number of dimensions, of which every entry
    is a sample. A W of shape (in) without b gives z of shape (*). For complex numbers W and a are conjugated.
    Kept: a where ∂C/∂W is needed, W where ∂C/∂a is needed.
    """

    jacobian = Product()

    @staticmethod
    @formula(by="whole")
    def forward(a: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
        z = F.linear(a, W, b)
        # Of other than matrices z is a view of one, and what a Function returns as a view may not be changed in place.
        return z if a.dim() == W.dim() == 2 else unsafe_view(z, z.shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
        a, W, b = inputs
        needs_da, needs_dW, _ = ctx.needs_input_grad
        ctx.save_for_backward(a if needs_dW else None, W if needs_da else None)
        ctx.save_for_forward(a, W)
        ctx.is_usual = W.dim() == 2 and (b is None or (b.dim() == 1 and b.size(0) == W.size(0)))
        if not ctx.is_usual:
            ctx.bias_shape, ctx.weight_is_vector = None if b is None else b.shape, W.dim() == 1

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        a, W = ctx.saved_tensors
        needs_da, needs_dW, needs_db = ctx.needs_input_grad
        weight_is_vector = not ctx.is_usual and ctx.weight_is_vector
        if weight_is_vector:  # one neuron whose z has no dimension of its own
            delta = delta.unsqueeze(-1)
        da = linear_input_gradient(delta, W, a) if needs_da else None
        dW = linear_weight_gradient(delta, a) if needs_dW else None
        db = linear_bias_gradient(delta, None if ctx.is_usual else ctx.bias_shape) if needs_db else None
        if weight_is_vector and dW is not None:
            dW = dW.squeeze(0)
        return da, dW, db

    @staticmethod
    def jvp(ctx: Any, da: Tensor | None, dW: Tensor | None, db: Tensor | None) -> Tensor | None:
        a, W = ctx.saved_tensors
        dz: Tensor | None = None
        if da is not None:
            dz = F.linear(da, W)
        if dW is not None:
            dz = F.linear(a, dW) if dz is None else dz + F.linear(a, dW)
        if db is not None:
            db = db.expand(*a.shape[:-1], W.shape[0])
            dz = db.clone() if dz is None else dz + db
        return dz


@formula(by="whole")
def linear_input_gradient(delta: Tensor, W: Tensor, like: Tensor | None = None) -> Tensor:
    """∂C/∂a = δ W: (*, out), (out, in) → (*, in), its numbers in the order of ``like``."""
    W = W.conj() if W.is_complex() else W
    if delta.dim() == W.dim() == 2:
        if like is not None and not like.is_contiguous() and like.stride() == (1, like.shape[0]):
            return torch.mm(W.t(), delta.t()).t()  # as ATen does for a transposed input
        return torch.mm(delta, W)
    return torch.matmul(delta, W if W.dim() == 2 else W.unsqueeze(0))


@formula(by="whole")
def linear_weight_gradient(delta: Tensor, a: Tensor) -> Tensor:
    """∂C/∂W = δᵀ a, summed over the samples by the product: (*, out), (*, in) → (out, in)."""
    delta, a = samples_as_rows(delta), samples_as_rows(a.conj() if a.is_complex() else a)
    return torch.mm(delta.t(), a)


def linear_bias_gradient(delta: Tensor, shape: torch.Size | None = None) -> Tensor:
    """∂C/∂b = Σ_samples δ: (*, out) → (out), or → ``shape`` for a bias that was broadcast from it."""
    if shape is None or shape == delta.shape[-1:]:
        return samples_as_rows(delta).sum(0)
    return delta.sum_to_size(shape[-delta.dim() :]).reshape(shape)


def samples_as_rows(t: Tensor) -> Tensor:
    """(*, n) → (samples, n). The number of samples is written out: ``reshape(-1, n)`` fails for n = 0."""
    return t if t.dim() == 2 else t.reshape(math.prod(t.shape[:-1]), t.shape[-1])


class Bilinear(Rule):
    """The weighted inputs of a layer whose neurons see each product of an entry of x with one of y.

    ::

        z_k = Σ_ij x_i W_kij y_j + b_k
        ⇒
        ∂C/∂x_i = Σ_kj δ_k W_kij y_j
        ∂C/∂y_j = Σ_ki δ_k W_kij x_i
        ∂C/∂W_kij = Σ_samples δ_k x_i y_j
        ∂C/∂b = Σ_samples δ

    Shapes: x (*, in₁), y (*, in₂), W (out, in₁, in₂), b (out), z and δ (*, out). For complex numbers x, y and W are
    conjugated. Kept: of x, y and W what the needed gradients use.
    """

    @staticmethod
    def forward(x: Tensor, y: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
        z = F.bilinear(x, y, W, b)
        return z if b is not None else unsafe_view(z, z.shape)  # as in Linear

    @staticmethod
    def composite(x: Tensor, y: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
        z = bilinear_product(x, y, W)  # with vmap, which ATen's function lacks
        return z if b is None else z + b

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor | None], output: Tensor) -> None:
        x, y, W, _ = inputs
        needs_dx, needs_dy, needs_dW, _ = ctx.needs_input_grad
        ctx.save_for_backward(
            x if needs_dy or needs_dW else None,
            y if needs_dx or needs_dW else None,
            W if needs_dx or needs_dy else None,
        )
        ctx.save_for_forward(x, y, W)

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
        x, y, W = ctx.saved_tensors
        needs_dx, needs_dy, needs_dW, needs_db = ctx.needs_input_grad
        dx = bilinear_input_gradient(delta, y, W) if needs_dx else None
        dy = bilinear_input_gradient(delta, x, W.transpose(1, 2)) if needs_dy else None
        dW = bilinear_weight_gradient(delta, x, y) if needs_dW else None
        db = linear_bias_gradient(delta) if needs_db else None
        return dx, dy, dW, db

    @staticmethod
    def jvp(ctx: Any, dx: Tensor | None, dy: Tensor | None, dW: Tensor | None, db: Tensor | None) -> Tensor | None:
        x, y, W = ctx.saved_tensors
        terms = []
        if dx is not None:
            terms.append(bilinear_product(dx, y, W))
        if dy is not None:
            terms.append(bilinear_product(x, dy, W))
        if dW is not None:
            terms.append(bilinear_product(x, y, dW))
        if db is not None:
            terms.append(db.expand(*x.shape[:-1], W.shape[0]))
        return sum(terms[1:], start=terms[0].clone()) if terms else None


def bilinear_product(x: Tensor, y: Tensor, W: Tensor) -> Tensor:
    """z_k = Σ_ij x_i W_kij y_j: (*, in₁), (*, in₂), (out, in₁, in₂) → (*, out)."""
    return torch.matmul(_products(x, y), W.reshape(W.shape[0], W.shape[1] * W.shape[2]).t())


def bilinear_input_gradient(delta: Tensor, y: Tensor, W: Tensor) -> Tensor:
    """∂C/∂x_i = Σ_kj δ_k W_kij y_j: (*, out), (*, in₂), (out, in₁, in₂) → (*, in₁). That of y has W's last two
    dimensions swapped and x for y."""
    out, in1, in2 = W.shape
    seen = torch.matmul(widened(delta), widened(W).conj().reshape(out, in1 * in2))  # Σ_k δ_k W_kij of each sample
    dx = torch.matmul(seen.reshape(*delta.shape[:-1], in1, in2), widened(y).conj().unsqueeze(-1))
    return dx.squeeze(-1).to(y.dtype)


def bilinear_weight_gradient(delta: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """∂C/∂W_kij = Σ_samples δ_k x_i y_j: (*, out), (*, in₁), (*, in₂) → (out, in₁, in₂)."""
    dW = linear_weight_gradient(widened(delta), _products(widened(x), widened(y)))
    return dW.reshape(delta.shape[-1], x.shape[-1], y.shape[-1]).to(x.dtype)


def _products(x: Tensor, y: Tensor) -> Tensor:
    """x_i y_j: (*, in₁), (*, in₂) → (*, in₁ in₂)."""
    return (x.unsqueeze(-1) * y.unsqueeze(-2)).reshape(*x.shape[:-1], x.shape[-1] * y.shape[-1])
