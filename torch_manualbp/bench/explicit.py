"""A GPT of one block as somebody would write it by hand in NumPy: forward, backward and AdamW, without a framework."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["ExplicitGPT"]

Array = Any


class ExplicitGPT:
    """The step of ``GPT(vocabulary, T, n, heads, 1)`` on one sequence under cross-entropy and AdamW.

    Args:
        weights: its parameters by name, which are changed in place.
    """

    def __init__(self, weights: dict[str, Array], heads: int, lr: float) -> None:
        self.w, self.heads, self.lr, self.t = weights, heads, lr, 0
        self.m, self.v = ({name: np.zeros_like(w) for name, w in weights.items()} for _ in range(2))

    def step(self, x: Array, y: Array) -> float:
        """Forward, backward, update; returns the loss before it."""
        w, H, T = self.w, self.heads, len(x)
        E, W_k, W_o = w["tokens.weight"], w["blocks.0.attention.qkv.weight"], w["blocks.0.attention.out.weight"]
        W_1, W_2 = w["blocks.0.mlp.0.weight"], w["blocks.0.mlp.2.weight"]
        w_1, w_2, w_3 = w["blocks.0.norm1.weight"], w["blocks.0.norm2.weight"], w["norm.weight"]
        n = E.shape[1]
        s = np.float32((n // H) ** -0.5)
        h0 = E[x] + w["places.weight"][:T]
        z1, r1 = _normalized(h0)
        a1 = z1 * w_1
        q, k, v = (a1 @ W_k.T).reshape(T, 3, H, n // H).transpose(1, 2, 0, 3)  # (H, T, E) each
        S = (q @ k.transpose(0, 2, 1)) * s
        S[:, _late(T)] = -np.inf
        P = _softmax(S)
        o = (P @ v).transpose(1, 0, 2).reshape(T, n)
        h1 = h0 + o @ W_o.T
        z2, r2 = _normalized(h1)
        a2 = z2 * w_2
        u = a2 @ W_1.T
        Phi = (1 + _erf(u * np.float32(0.70710678))) / 2
        g = u * Phi
        h2 = h1 + g @ W_2.T
        z3, r3 = _normalized(h2)
        a3 = z3 * w_3
        p = _softmax(a3 @ E.T)
        C = -np.log(p[np.arange(T), y]).mean()

        d = p / np.float32(T)
        d[np.arange(T), y] -= np.float32(1 / T)
        dE = d.T @ a3
        dh, dw_3 = _norm_gradients(d @ E, z3, r3, w_3)
        dW_2 = dh.T @ g
        du = (dh @ W_2) * (Phi + u * np.exp(-u * u / 2) * np.float32(0.39894228))
        dW_1 = du.T @ a2
        da, dw_2 = _norm_gradients(du @ W_1, z2, r2, w_2)
        dh = dh + da
        dW_o = dh.T @ o
        do = (dh @ W_o).reshape(T, H, n // H).transpose(1, 0, 2)
        dv = P.transpose(0, 2, 1) @ do
        dP = do @ v.transpose(0, 2, 1)
        dS = P * (dP - (dP * P).sum(-1, keepdims=True)) * s
        dqkv = np.stack((dS @ k, dS.transpose(0, 2, 1) @ q, dv)).transpose(2, 0, 1, 3).reshape(T, 3 * n)
        dW_k = dqkv.T @ a1
        da, dw_1 = _norm_gradients(dqkv @ W_k, z1, r1, w_1)
        dh = dh + da
        np.add.at(dE, x, dh)
        dplaces = np.zeros_like(w["places.weight"])
        dplaces[:T] = dh
        gradients = (dE, dplaces, dw_1, dW_k, dW_o, dw_2, dW_1, dW_2, dw_3)
        self._update(dict(zip(w, gradients, strict=True)))
        return float(C)

    def _update(self, gradients: dict[str, Array]) -> None:
        """AdamW with torch's other defaults."""
        self.t += 1
        rate = np.float32(self.lr / (1 - 0.9**self.t))
        root = np.float32((1 - 0.999**self.t) ** -0.5)
        for name, g in gradients.items():
            w, m, v = self.w[name], self.m[name], self.v[name]
            m += (g - m) * np.float32(0.1)
            v += (g * g - v) * np.float32(0.001)
            w *= np.float32(1 - self.lr * 0.01)
            w -= rate * m / (np.sqrt(v) * root + np.float32(1e-8))


def _late(T: int) -> Array:
    return np.arange(T)[:, None] < np.arange(T)


def _softmax(S: Array) -> Array:
    P = np.exp(S - S.max(-1, keepdims=True))
    return P / P.sum(-1, keepdims=True)


def _normalized(h: Array) -> tuple[Array, Array]:
    z = h - h.mean(-1, keepdims=True)
    r = 1 / np.sqrt((z * z).mean(-1, keepdims=True) + np.float32(1e-5))
    return z * r, r


def _norm_gradients(da: Array, z: Array, r: Array, w: Array) -> tuple[Array, Array]:
    """∂C/∂h and ∂C/∂w of a = w z, z = (h − mean) r."""
    dz = da * w
    return r * (dz - dz.mean(-1, keepdims=True) - z * (z * dz).mean(-1, keepdims=True)), (da * z).sum(0)


def _erf(x: Array) -> Array:
    """Abramowitz and Stegun's 7.1.26, within 1.5e-7: NumPy has none."""
    t = 1 / (1 + np.float32(0.3275911) * np.abs(x))
    powers = t * np.float32(1.061405429) + np.float32(-1.453152027)
    for c in (1.421413741, -0.284496736, 0.254829592):
        powers = powers * t + np.float32(c)
    return np.sign(x) * (1 - powers * t * np.exp(-x * x))
