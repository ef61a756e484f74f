"""The one place that chooses how an operation is computed."""

from .kernels.reference import (
    bare_stack,
    cosine_losses,
    folded_stack,
    huber_elementwise_losses,
    huber_norm_losses,
    mean_pool,
    residual_layer,
    teacher_weights,
)

__all__ = [
    "bare_stack",
    "cosine_losses",
    "folded_stack",
    "huber_elementwise_losses",
    "huber_norm_losses",
    "mean_pool",
    "residual_layer",
    "teacher_weights",
]
