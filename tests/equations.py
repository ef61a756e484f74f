"""The Shazam student in float64 NumPy, written from the equations: the oracle of the tests.

N teachers, D model width, K layers, C classes, B patches; row vectors, x W. Each patch is worked out
alone, over the rows of the teachers it has, so an absent teacher's numbers are never read. `present`
is a bool [B, N]; None means that every teacher is there. Whatever belongs to an absent teacher in a
result (its rows and columns of an attention, its weight) is exactly zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Labels = NDArray[np.integer]
Params = Mapping[str, Array]

LAYER_NORM_EPS = 1e-5


def project(features: Sequence[Array], weights: Sequence[Array], biases: Sequence[Array]) -> Array:
    """T_i = F_i W_i + b_i, stacked to [B, N, D] (1)."""
    tokens = [f @ w + b for f, w, b in zip(features, weights, biases, strict=True)]
    return np.stack(tokens, axis=1)


def standardise(x: Array, mean: Array, scale: Array) -> Array:
    """(x - mean) / scale, column by column."""
    return (x - mean) / scale


def softmax_rows(scores: Array) -> Array:
    """P_ij = exp(s_ij) / sum_k exp(s_ik), each row shifted by its maximum."""
    e = np.exp(scores - scores.max(axis=-1, keepdims=True))
    rows: Array = e / e.sum(axis=-1, keepdims=True)
    return rows


def layer_norm(x: Array, gain: Array, offset: Array) -> Array:
    """(x - mean) / sqrt(var + eps) * gain + offset over the last axis, var biased, eps 1e-5."""
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = (centred**2).mean(axis=-1, keepdims=True)
    normalised: Array = centred / np.sqrt(variance + LAYER_NORM_EPS)
    return normalised * gain + offset


def relu(x: Array) -> Array:
    """max(x, 0)."""
    return np.maximum(x, 0.0)


def present_teachers(present: Mask | None, patch: int, teachers: int) -> NDArray[np.intp]:
    """The teachers that a patch has, in order."""
    return np.arange(teachers) if present is None else np.flatnonzero(present[patch])


def bare_stack(tokens: Array, wq: Array, wk: Array, wv: Array, present: Mask | None = None) -> tuple[Array, Array]:
    """P = softmax(T Wq (T Wk)^T / sqrt(D)), T <- P (T Wv), K times; t = mean of the rows (2, 3, 4).

    Returns t [B, D] and the attentions P [B, K, N, N].
    """
    batch, teachers, width = tokens.shape
    fused = np.zeros((batch, width))
    attentions = np.zeros((batch, len(wq), teachers, teachers))
    for b in range(batch):
        here = present_teachers(present, b, teachers)
        t = tokens[b, here]  # [n, D]
        for layer in range(len(wq)):
            q, k, v = t @ wq[layer], t @ wk[layer], t @ wv[layer]
            p = softmax_rows(q @ k.T / np.sqrt(width))  # [n, n]
            t = p @ v
            attentions[b, layer][np.ix_(here, here)] = p
        fused[b] = t.mean(axis=0)
    return fused, attentions


def teacher_shares(attentions: Array, present: Mask | None = None) -> Array:
    """w = (1/n) 1^T M_K over the n present rows, M_l = P_l M_{l-1}, M_0 = I: w [B, N]."""
    batch, depth, teachers, _ = attentions.shape
    weights = np.zeros((batch, teachers))
    for b in range(batch):
        here = present_teachers(present, b, teachers)
        m = np.eye(len(here))
        for layer in range(depth):
            m = attentions[b, layer][np.ix_(here, here)] @ m
        weights[b, here] = m.mean(axis=0)
    return weights


def residual_projection(x: Array, params: Params) -> Array:
    """Linear -> LN -> ReLU -> Linear -> LN -> ReLU: the token of one teacher, [B, d] to [B, D]."""
    hidden = relu(layer_norm(x @ params["w1"] + params["b1"], params["g1"], params["h1"]))
    return relu(layer_norm(hidden @ params["w2"] + params["b2"], params["g2"], params["h2"]))


def residual_layer(t: Array, layer: Params) -> Array:
    """T <- LN(T + (P V) Wo + bo), P = softmax(Q K^T / sqrt(D)), for one patch's tokens [n, D]."""
    q = t @ layer["wq"] + layer["bq"]
    k = t @ layer["wk"] + layer["bk"]
    v = t @ layer["wv"] + layer["bv"]
    p = softmax_rows(q @ k.T / np.sqrt(t.shape[1]))
    return layer_norm(t + (p @ v) @ layer["wo"] + layer["bo"], layer["g"], layer["h"])


def residual_stack(tokens: Array, layers: Sequence[Params], present: Mask | None = None) -> Array:
    """Every residual layer in turn, then t = mean over the present rows: [B, N, D] to [B, D]."""
    batch, teachers, width = tokens.shape
    fused = np.zeros((batch, width))
    for b in range(batch):
        t = tokens[b, present_teachers(present, b, teachers)]
        for layer in layers:
            t = residual_layer(t, layer)
        fused[b] = t.mean(axis=0)
    return fused


def head(t: Array, w1: Array, b1: Array, g: Array, h: Array, w2: Array, b2: Array) -> Array:
    """logits = Linear(D, D) -> ReLU -> LayerNorm -> Linear(D, C)."""
    return layer_norm(relu(t @ w1 + b1), g, h) @ w2 + b2


def cross_entropy(logits: Array, labels: Labels) -> float:
    """CE = (1/B) sum_b (log sum_c exp(z_bc) - z_by)."""
    total = 0.0
    for z, y in zip(logits, labels, strict=True):
        shifted = z - z.max()
        total += float(np.log(np.exp(shifted).sum()) - shifted[y])
    return total / len(logits)


def cosine_loss(t: Array, targets: Array, present: Mask | None = None) -> float:
    """L_cos = (1/B) sum_b sum_i (1 - <t, T_i> / (|t| |T_i|)); the cosine is 0 where a norm is 0 (5)."""
    teachers = targets.shape[1]
    total = 0.0
    for b in range(len(t)):
        for i in present_teachers(present, b, teachers):
            norms = float(np.linalg.norm(t[b]) * np.linalg.norm(targets[b, i]))
            cosine = float(t[b] @ targets[b, i]) / norms if norms > 0 else 0.0
            total += 1.0 - cosine
    return total / len(t)


def huber(r: float, delta: float) -> float:
    """r^2 / 2 if r <= delta, else delta r - delta^2 / 2, for r >= 0 (7)."""
    return r * r / 2 if r <= delta else delta * r - delta * delta / 2


def huber_norm_loss(t: Array, targets: Array, delta: float, present: Mask | None = None) -> float:
    """L_huber = (1/B) sum_b sum_i huber(r_i), r_i = |t - T_i| (6, 7)."""
    teachers = targets.shape[1]
    total = 0.0
    for b in range(len(t)):
        for i in present_teachers(present, b, teachers):
            total += huber(float(np.linalg.norm(t[b] - targets[b, i])), delta)
    return total / len(t)


def huber_elementwise_loss(t: Array, targets: Array, delta: float, present: Mask | None = None) -> float:
    """sum_i (1 / (B D)) sum_b sum_d huber(|t_bd - T_bid|): an absent entry adds 0, the divisor stays."""
    teachers = targets.shape[1]
    total = 0.0
    for b in range(len(t)):
        for i in present_teachers(present, b, teachers):
            total += sum(huber(float(r), delta) for r in np.abs(t[b] - targets[b, i]))
    return total / t.size


def fold(wq: Array, wk: Array, wv: Array) -> tuple[Array, Array]:
    """B_l = C_{l-1} Wq_l Wk_l^T C_{l-1}^T / sqrt(D), C_l = C_{l-1} Wv_l, C_0 = I: (B [K, D, D], C_K)."""
    width = wq.shape[1]
    forms = np.zeros_like(wq)
    c = np.eye(width)
    for layer in range(len(wq)):
        forms[layer] = c @ wq[layer] @ wk[layer].T @ c.T / np.sqrt(width)
        c = c @ wv[layer]
    return forms, c


def folded_forward(tokens: Array, forms: Array, value_map: Array, present: Mask | None = None) -> tuple[Array, Array]:
    """M_l = softmax(M_{l-1} (T B_l T^T) M_{l-1}^T) M_{l-1}, w = (1/n) 1^T M_K, t = w T C_K.

    `forms` is B [K, D, D] and `value_map` C_K, as `fold` returns them. Returns t [B, D] and w [B, N].
    """
    batch, teachers, width = tokens.shape
    fused = np.zeros((batch, width))
    weights = np.zeros((batch, teachers))
    for b in range(batch):
        here = present_teachers(present, b, teachers)
        t = tokens[b, here]  # [n, D]
        m = np.eye(len(here))
        for form in forms:
            m = softmax_rows(m @ (t @ form @ t.T) @ m.T) @ m
        w = m.mean(axis=0)
        weights[b, here] = w
        fused[b] = w @ t @ value_map
    return fused, weights
