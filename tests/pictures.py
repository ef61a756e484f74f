"""Images and teachers that tests make for themselves."""

from pathlib import Path

import numpy as np
from PIL import Image

import shazam_fast as sf

VIT = {
    "model_name": "vit_tiny_patch16_224",
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 24,
    "num_heads": 2,
    "depth": 4,
}
H_OPTIMUS = {"mean": (0.707223, 0.578729, 0.703617), "std": (0.211883, 0.230117, 0.177517)}

HELPERS = str(Path(__file__).parent)  # for processes that tests start


def tissue():
    """scikit-image's stained section of colon, 512 x 512."""
    import skimage.data

    return Image.fromarray(skimage.data.immunohistochemistry())


def write_patches(folder, count, size=48, suffix=".png"):
    """Patches cut from the section at fixed places; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    section, rng = tissue(), np.random.default_rng(len(folder.name))
    paths = [folder / f"{i:03d}{suffix}" for i in range(count)]
    for path in paths:
        x, y = rng.integers(0, 512 - size, 2).tolist()
        section.crop((x, y, x + size, y + size)).save(path)
    return paths


def small_teachers():
    """Three small ViTs with random weights: two share a transform, two a geometry; one is wider than its CLS token."""
    common = {"blocks": 4, "levels": (1, 2)}
    geometry = sf.Transform(32, 40)
    return [
        sf.TeacherSpec("plain", 24, arguments=VIT, transform=geometry, **common),
        sf.TeacherSpec("wide", 48, arguments={**VIT, "num_heads": 3}, transform=geometry, pooling="cls+mean", **common),
        sf.TeacherSpec("stained", 24, arguments=VIT, transform=sf.Transform(32, 40, **H_OPTIMUS), **common),
    ]
