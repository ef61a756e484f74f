"""Whole-slide images that tests make for themselves, whose brown patches decide their class."""

import numpy as np
from pictures import tissue

import shazam_fast as sf

SIDE, PATCH = 1024, 64  # pixels of level 0


def make_slides(folder, count=12, seed=0):
    """Sections of tissue as pyramids of two levels. Those of class "b" have a brown spot of 4 x 4 patches.

    Returns the archive (colours of patches, and a teacher of noise), {slide: label}, and which rows are brown.
    """
    import tifffile

    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    plain = np.asarray(tissue().resize((SIDE, SIDE))).astype(np.float32)
    grid = np.stack(np.meshgrid(np.arange(0, SIDE, PATCH), np.arange(0, SIDE, PATCH), indexing="xy"), -1).reshape(-1, 2)
    colours, names, labels, brown = [], [], {}, []
    for number in range(count):
        name = f"case-{number:02d}"
        labels[name] = "ab"[number % 2]
        pixels = np.roll(plain, rng.integers(0, SIDE, 2), axis=(0, 1))
        corner = rng.integers(2, SIDE // PATCH - 6, 2) * PATCH
        inside = ((grid >= corner) & (grid < corner + 4 * PATCH)).all(axis=1) & (labels[name] == "b")
        if labels[name] == "b":
            spot = pixels[corner[1] : corner[1] + 4 * PATCH, corner[0] : corner[0] + 4 * PATCH]
            spot *= (0.55, 0.35, 0.2)
        blocks = pixels.reshape(SIDE // PATCH, PATCH, SIDE // PATCH, PATCH, 3)
        means, spread = blocks.mean(axis=(1, 3)), blocks.std(axis=(1, 3))
        colours.append(np.concatenate([means, spread], axis=2).reshape(-1, 6) / 50)
        with tifffile.TiffWriter(folder / f"{name}.tif") as file:
            options = {"tile": (128, 128), "photometric": "rgb"}
            file.write(pixels.astype(np.uint8), subifds=0, **options)
            file.write(pixels[::2, ::2].astype(np.uint8), subfiletype=1, **options)
        names += [name] * len(grid)
        brown.append(inside)
    features = {"colour": np.concatenate(colours), "noise": rng.normal(size=(len(names), 8))}
    path = sf.write_archive(
        folder / "features", features, slides=names, coords=np.tile(grid, (count, 1)), dtype="float32"
    )
    return sf.open(path), labels, np.concatenate(brown)
