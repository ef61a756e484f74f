"""The residual student's attention stack, through the kernels of the bare one: see `student_stack`."""

import torch
from torch import Tensor

from .launch import require_rows
from .reference import ResidualMaps
from .student_stack import Maps, require_stack, run_stack


def residual_stack(
    tokens: Tensor, maps: ResidualMaps, present: Tensor | None = None, precision: str = "ieee"
) -> Tensor:
    """K residual attention layers T <- LN(T + (P V) Wo + bo) and the mean: fused [B, D].

    Args:
        tokens: [B, N, D], float32 (float64 with "ieee"), N at most 16, D one of 16, 32, 64, 128, 256.
        maps: of the K layers, see `reference.ResidualMaps`.
        present: as for `bare_stack`.
        precision: as for `bare_stack`.
    """
    qkv, qkv_bias, out_weight, out_bias, norm_weight, norm_bias = maps
    K, D = require_stack(tokens, qkv, present, precision)
    require_rows("qkv_bias", qkv_bias, (K, 3 * D), tokens)
    require_rows("out_weight", out_weight, (K, D, D), tokens)
    vectors = {"out_bias": out_bias, "norm_weight": norm_weight, "norm_bias": norm_bias}
    for name, vector in vectors.items():
        require_rows(name, vector, (K, D), tokens)
    with torch.autocast(tokens.device.type, enabled=False):
        wq, wk, wv = qkv.split(D, dim=-1)
        bq, _, bv = qkv_bias[:, None].split(D, dim=-1)  # [K, 1, D]; the softmax does not see the key bias
        products = torch.cat([wq @ wk.mT, wv @ out_weight], dim=-1)  # [A | E]
        offsets = torch.cat([bq @ wk.mT, torch.baddbmm(out_bias[:, None], bv, out_weight)], dim=-1)  # [a | e]
    folded = Maps(products, offsets.squeeze(1), norm_weight, norm_bias)
    fused, _ = run_stack(tokens, folded, present, precision)
    return fused
