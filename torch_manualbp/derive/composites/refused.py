"""Differentiable functions of torch that no rule computes, and what to write instead."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["REFUSED"]

_CALL = "write a Rule for it"
_DECOMPOSED = f"it decomposes a matrix; {_CALL}"
_COMPLEX = f"it makes or takes complex numbers; keep real and imaginary parts in two tensors, or {_CALL}"
_DEPENDS = "the shape of its result depends on numbers; choose by torch.where, or multiply by a mask"
_OF_MEMORY = "it asks how numbers lie in memory; write reshape, unfold or an index"

REFUSED: Mapping[str, str] = {
    "cholesky linalg.cholesky linalg.cholesky_ex cholesky_inverse cholesky_solve lu_solve linalg.lu_solve": _DECOMPOSED,
    "linalg.lu linalg.lu_factor linalg.lu_factor_ex lu_unpack linalg.ldl_factor qr linalg.qr ormqr": _DECOMPOSED,
    "linalg.householder_product triangular_solve linalg.solve_triangular svd linalg.svd linalg.svdvals": _DECOMPOSED,
    "svd_lowrank pca_lowrank linalg.eig linalg.eigvals linalg.eigh linalg.eigvalsh linalg.cond": _DECOMPOSED,
    "linalg.lstsq linalg.inv inverse linalg.inv_ex linalg.pinv pinverse linalg.solve linalg.solve_ex": _DECOMPOSED,
    "linalg.tensorinv linalg.tensorsolve linalg.det det linalg.slogdet slogdet logdet matrix_exp": _DECOMPOSED,
    "linalg.matrix_exp linalg.matrix_rank lobpcg": _DECOMPOSED,
    "complex polar angle view_as_complex view_as_real imag sgn cfloat cdouble chalf stft istft": _COMPLEX,
    "fft.fft fft.fft2 fft.fftn fft.ifft fft.ifft2 fft.ifftn fft.rfft fft.rfft2 fft.rfftn": _COMPLEX,
    "fft.irfft fft.irfft2 fft.irfftn fft.hfft fft.hfft2 fft.hfftn fft.ihfft fft.ihfft2 fft.ihfftn": _COMPLEX,
    "fft.fftshift fft.ifftshift": "write torch.roll",
    "frexp nextafter copysign": f"a part of it has no derivative; {_CALL}",
    "remainder fmod __mod__ __rmod__": "write input - other * torch.floor(input / other).detach()",
    "sinc special.sinc": f"write torch.sin(math.pi * input) / (math.pi * input) if no entry is 0, or {_CALL}",
    "lu fill to_sparse": _CALL,
    "combinations": _DEPENDS,
    "as_strided_scatter": _OF_MEMORY,
    "cartesian_prod cov corrcoef gradient cumulative_trapezoid renorm linalg.vander": "write it in sums and products",
    "quantile nanquantile": "write torch.sort, and a mean of two of its values",
    "mvlgamma": "write a sum of torch.lgamma",
    "polygamma special.i0e special.i1 special.i1e special.erfcx special.ndtri special.zeta": _CALL,
    "special.ndtr": "write torch.erfc(-input / 2**0.5) / 2",
    "special.log_ndtr": "where input is not far below 0, write the logarithm of torch.erfc(-input / 2**0.5) / 2",
    "special.entr": "write -torch.xlogy(input, input)",
    "special.xlog1py": "write input * torch.log1p(other)",
    "index_reduce put": "write scatter_reduce, or an index",
    "hsplit vsplit dsplit atleast_1d atleast_2d atleast_3d unsafe_split unsafe_chunk narrow_copy": (
        "write split, narrow or reshape"
    ),
}
"""By the names of functions of torch, of its linalg, special and fft, and of methods."""
