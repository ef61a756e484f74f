"""Students and batches that tests make for themselves."""

import numpy as np
import torch
from synthetic import CLASSES, TEACHERS

import shazam_fast as sf
from shazam_fast.student.layers import Norm


def make_student(block="bare", teachers=TEACHERS, dim=16, depth=3, dtype=torch.float64, heads=False, **options):
    config = sf.StudentConfig(teachers, CLASSES, dim=dim, depth=depth, block=block, **options)
    generator = torch.Generator().manual_seed(1)
    student = sf.Student(config, generator)
    if heads:
        student.add_teacher_heads(generator)
    student = student.to(dtype)
    student.feature_mean.uniform_(-1, 1, generator=generator)
    student.feature_scale.uniform_(0.1, 10, generator=generator)
    with torch.no_grad():
        for norm in (m for m in student.modules() if isinstance(m, torch.nn.LayerNorm | Norm)):
            norm.weight.uniform_(0.5, 2, generator=generator)
            norm.bias.uniform_(-1, 1, generator=generator)
        student.qkv.mul_(3.0)  # well away from uniform attention
    return student


def make_batch(student, B=5, seed=0, missing=False):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(B, sum(student.dims), generator=generator, dtype=student.qkv.dtype)
    present = None
    if missing:
        present = torch.rand(B, len(student.dims), generator=generator) < 0.5
        present[torch.arange(B), torch.randint(len(student.dims), (B,), generator=generator)] = True
    return features, present


def array(tensor):
    return tensor.detach().numpy()


def layer_of(qkv, maps, k):
    """What `equations.residual_stack` takes of attention layer k; `maps` has the other parameters of all layers."""
    wq, wk, wv = np.split(array(qkv[k]), 3, axis=1)
    bq, bk, bv = np.split(array(maps.qkv_bias[k]), 3)
    return {
        "wq": wq, "wk": wk, "wv": wv, "bq": bq, "bk": bk, "bv": bv,
        "wo": array(maps.out_weight[k]), "bo": array(maps.out_bias[k]),
        "g": array(maps.norm.weight[k]), "h": array(maps.norm.bias[k]),
    }  # fmt: skip


def maps_of(student):
    return np.split(array(student.qkv), 3, axis=2)
