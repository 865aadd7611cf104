"""A Function of your own, from wrong to right by reading what verification says of it.

    python examples/verify_your_function.py

The root-mean-square norm (Zhang, Sennrich 2019, https://arxiv.org/abs/1910.07467) with a learned weight, written as an
``autograd.Function`` three times. The first try has the two errors that everybody makes; the second passes
``torch.autograd.gradcheck`` and is still wrong; the third is right. The program prints what is wrong with each, and the
whole report of the last.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, gradcheck

from torch_manualbp.verify import verify

EPSILON = 1e-6


class FirstTry(Function):
    """a = w ⊙ z / ρ,  ρ = √(mean(z²) + ε) of each row."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, w: Tensor) -> Tensor:
        rho = root_mean_square(z)
        ctx.save_for_backward(z, w, rho)
        return w * z / rho

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor, Tensor]:
        z, w, rho = ctx.saved_tensors
        dz = da * w / rho
        dw = da * z / rho
        return dz, dw


class SecondTry(FirstTry):
    """The report of the first said: the gradient of z is wrong, for ρ depends on z; that of w has the shape of z."""

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor, Tensor]:
        z, w, rho = ctx.saved_tensors
        g = da * w
        dz = g / rho - z * (g * z).mean(-1, keepdim=True) / rho**3
        dw = (da * z / rho).sum(0)
        return dz, dw


class RMSNorm(Function):
    """The report of the second said: second derivatives are wrong. ρ was saved, which is neither input nor output, so
    that autograd takes it for a constant: it is computed again. And vmap and torch.func did not apply: they ask for
    ``setup_context``.

    ::

        ∂C/∂z = g / ρ − z mean(g ⊙ z) / ρ³,  g = ∂C/∂a ⊙ w
        ∂C/∂w = Σ_samples ∂C/∂a ⊙ z / ρ
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor, w: Tensor) -> Tensor:
        return w * z / root_mean_square(z)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor, Tensor]:
        z, w = ctx.saved_tensors
        rho = root_mean_square(z)
        g = da * w
        dz = g / rho - z * (g * z).mean(-1, keepdim=True) / rho**3
        dw = (da * z / rho).sum(0)
        return dz, dw


def root_mean_square(z: Tensor) -> Tensor:
    """ρ of each row."""
    return (z.square().mean(-1, keepdim=True) + EPSILON).sqrt()


def inputs() -> tuple[Tensor, Tensor]:
    """Eight samples of sixteen features, and the weight."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(8, 16, dtype=torch.float64, generator=generator)
    w = torch.randn(16, dtype=torch.float64, generator=generator)
    return z.requires_grad_(), w.requires_grad_()


def main() -> int:
    for function in (FirstTry, SecondTry, RMSNorm):
        passes = gradcheck(function.apply, inputs(), raise_exception=False)
        print(f"\n{function.__name__}: torch.autograd.gradcheck {'passes' if passes else 'fails'}; verify says:")
        report = verify(function, *inputs())
        for row in report.failures:
            print(f"  {row}")
        print(report.summary())
    print(f"\n{report}")
    return 0 if report.ok else 1


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    sys.exit(main())
