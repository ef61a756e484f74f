"""Every operation of the student in plain PyTorch: the definition that kernels and tests are held to.

Shapes: B patches, N teachers (tokens), D model width, K layers. Matrices multiply from the right (x W).
`present` is a bool mask [B, N] of the teachers a patch has, None when it has all of them; every patch has at
least one. What an absent teacher's token holds never reaches a result.
Equation numbers are those of Shazam, arXiv 2503.00736.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

EPSILON = 1e-8  # below this a norm counts as zero, as in torch.nn.functional.cosine_similarity


class TokenMaps(NamedTuple):
    """What turns the features of a patch into tokens, eq. (1): one standardisation and linear map per teacher."""

    weight: Tensor  # [sum of dims, D], all maps one below the other (x W)
    bias: Tensor  # [N, D]
    dims: Sequence[int]  # columns of each teacher
    standard: tuple[Tensor, Tensor] | None = None  # mean and scale [sum of dims]; None: features as they are


def project(features: Tensor, rows: Tensor | None, maps: TokenMaps, present: Tensor | None) -> Tensor:
    """Chosen rows of a table, standardised, every teacher's columns through its own linear map, eq. (1).

    features [R, sum of dims] in any float dtype, rows int [B] (None: all R, in order), present as above, an absent
    teacher's columns count as zero after standardisation -> tokens [B, N, D].
    """
    weight, bias, dims, standard = maps
    x = (features if rows is None else features[rows]).to(weight.dtype)
    if standard is not None:
        mean, scale = standard
        x = x.sub(mean).div_(scale)
    parts = x.split(list(dims), dim=1)
    if present is not None:
        parts = [part.masked_fill(~there[:, None], 0.0) for part, there in zip(parts, present.unbind(1), strict=True)]
    products = zip(parts, weight.split(list(dims)), bias, strict=True)
    return torch.stack([torch.addmm(b, part, W) for part, W, b in products], dim=1)


def attention_weights(scores: Tensor, present: Tensor | None) -> Tensor:
    """Row softmax of `scores` [..., N, N] over the teachers that are present."""
    if present is not None:
        scores = scores.masked_fill(~present[:, None, :], -math.inf)
    return scores.softmax(dim=-1)


def mean_weights(tokens: Tensor, present: Tensor | None) -> Tensor:
    """The row vector [B, 1, N] whose product with the tokens is their mean over the present teachers, eq. (4)."""
    B, N = tokens.shape[:2]
    if present is None:
        return tokens.new_full((B, 1, N), 1.0 / N)
    share = present.to(tokens.dtype)
    return (share / share.sum(dim=-1, keepdim=True))[:, None, :]


def mean_pool(tokens: Tensor, present: Tensor | None) -> Tensor:
    """Mean over the present teachers, eq. (4). [B, N, D] -> [B, D]."""
    if present is None:
        return tokens.mean(dim=1)
    tokens = tokens.masked_fill(~present[:, :, None], 0.0)
    return (mean_weights(tokens, present) @ tokens).squeeze(1)


def bare_stack(tokens: Tensor, qkv: Tensor, present: Tensor | None) -> tuple[Tensor, Tensor]:
    """K bare attention layers and the mean, eqs. (2)-(4).

    tokens [B, N, D], qkv [K, D, 3D] (query, key and value side by side)
    -> fused [B, D], attention [B, K, N, N].
    """
    D = tokens.shape[-1]
    if present is not None:
        tokens = tokens.masked_fill(~present[:, :, None], 0.0)
    attention = []
    for weight in qkv:
        q, k, v = (tokens @ weight).split(D, dim=-1)  # [B, N, D] each
        p = attention_weights(q @ k.mT / math.sqrt(D), present)  # [B, N, N]
        tokens = p @ v
        attention.append(p)
    return mean_pool(tokens, present), torch.stack(attention, dim=1)


class ResidualMaps(NamedTuple):
    """What K residual attention layers multiply and add, the layers one after another."""

    qkv: Tensor  # [K, D, 3D], query, key and value side by side
    qkv_bias: Tensor  # [K, 3D]
    out_weight: Tensor  # Wo [K, D, D] (x W, the transpose of `nn.Linear.weight`)
    out_bias: Tensor  # bo [K, D]
    norm_weight: Tensor  # [K, D], of a LayerNorm with eps 1e-5
    norm_bias: Tensor  # [K, D]


def residual_stack(tokens: Tensor, maps: ResidualMaps, present: Tensor | None) -> Tensor:
    """K residual attention layers T <- LN(T + (P V) Wo + bo) and the mean, the authors' released script.

    tokens [B, N, D] -> fused [B, D].
    """
    D = tokens.shape[-1]
    if present is not None:
        tokens = tokens.masked_fill(~present[:, :, None], 0.0)
    for weight, bias, out, offset, gain, shift in zip(*maps, strict=True):
        q, k, v = (tokens @ weight + bias).split(D, dim=-1)
        attended = attention_weights(q @ k.mT / math.sqrt(D), present) @ v
        tokens = F.layer_norm(tokens + attended @ out + offset, (D,), gain, shift)
    return mean_pool(tokens, present)


def teacher_shares(attention: Tensor, present: Tensor | None) -> Tensor:
    """Exact share w of each teacher's token in the fused feature of the bare student. [B, K, N, N] -> [B, N].

    The value path is linear, so t = (w T) C with w = mean P_K ... P_1; w lies on the simplex.
    """
    w = mean_weights(attention[:, 0], present)  # [B, 1, N]
    for layer in range(attention.shape[1] - 1, -1, -1):
        w = w @ attention[:, layer]
    return w.squeeze(1)


def folded_stack(tokens: Tensor, score_maps: Tensor, present: Tensor | None) -> tuple[Tensor, Tensor]:
    """The bare stack with every layer's maps folded into one score map; exact, three times fewer FLOPs.

    tokens [B, N, D], score_maps [D, K*D] (all B_l side by side) -> pooled w T [B, D], w [B, N].
    With M_0 = I: M_l = softmax(M_{l-1} (T B_l T^T) M_{l-1}^T) M_{l-1}, w = mean M_K.
    """
    B, N, D = tokens.shape
    if present is not None:
        tokens = tokens.masked_fill(~present[:, :, None], 0.0)
    K = score_maps.shape[1] // D
    left = (tokens.reshape(B * N, D) @ score_maps).reshape(B, N * K, D)
    raw = (left @ tokens.mT).reshape(B, N, K, N)  # T B_l T^T of all layers
    M = attention_weights(raw[:, :, 0], present)  # M_1, since M_0 = I
    for layer in range(1, K):
        M = attention_weights(M @ raw[:, :, layer] @ M.mT, present) @ M
    w = mean_weights(tokens, present) @ M  # [B, 1, N]
    return (w @ tokens).squeeze(1), w.squeeze(1)


def cosine_losses(fused: Tensor, targets: Tensor, present: Tensor | None) -> Tensor:
    """Cosine distillation of every teacher, averaged over the batch, eq. (5). [B, D], [B, N, D] -> [N].

    A zero norm gives a cosine of 0 with finite gradients.
    """
    floor = EPSILON**2
    t_norm = fused.square().sum(-1).clamp_min(floor).sqrt()  # [B]
    target_norm = targets.square().sum(-1).clamp_min(floor).sqrt()  # [B, N]
    cosine = (targets @ fused[:, :, None]).squeeze(-1) / (t_norm[:, None] * target_norm)
    return _batch_mean(1.0 - cosine, present)


def huber_norm_losses(fused: Tensor, targets: Tensor, delta: float, present: Tensor | None) -> Tensor:
    """Huber loss of the distance |t - T_i| of every teacher, eqs. (6) and (7). [B, D], [B, N, D] -> [N]."""
    square = (fused[:, None, :] - targets).square().sum(-1)  # r^2, [B, N]
    near = square <= delta * delta
    # sqrt has no gradient at 0: the branch that is not taken gets a harmless argument.
    r = torch.where(near, delta * delta, square).sqrt()
    return _batch_mean(torch.where(near, 0.5 * square, delta * r - 0.5 * delta * delta), present)


def huber_elementwise_losses(fused: Tensor, targets: Tensor, delta: float, present: Tensor | None) -> Tensor:
    """Huber loss of every element, averaged over B x D, as the authors' script has it. -> [N]."""
    student = fused[:, None, :].expand_as(targets)
    loss = F.huber_loss(student, targets, reduction="none", delta=delta)
    return _batch_mean(loss.mean(dim=-1), present)


def distillation_loss(
    fused: Tensor, targets: Tensor, lam: float, delta: float, huber: str, present: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """lam * sum over teachers (L_cos + L_huber), the second part of eq. (9), and its terms.

    fused [B, D], targets [B, N, D], huber "norm" or "elementwise" -> total scalar, cosine [N], huber [N].
    """
    distance = huber_norm_losses if huber == "norm" else huber_elementwise_losses
    cosine, far = cosine_losses(fused, targets, present), distance(fused, targets, delta, present)
    return lam * (cosine.sum() + far.sum()), cosine, far


def _batch_mean(per_patch: Tensor, present: Tensor | None) -> Tensor:
    if present is not None:
        per_patch = per_patch.masked_fill(~present, 0.0)
    return per_patch.mean(dim=0)  # [B, N] -> [N]
