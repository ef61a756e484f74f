"""The smallest files in each tool's layout, written as the tool writes them; one builder per tool.

Every builder writes the slides of `SLIDES` (features of `make`, corners of `corners`) below a directory and returns
what to open.
"""

import csv
import json
import struct

import numpy as np

SLIDES = {"a": 12, "b": 12, "c": 12, "d": 1}  # rows; "d" has one patch
LABELS = {"a": "normal", "b": "tumour", "c": "tumour", "d": "normal"}
SPLITS = {"a": "train", "b": "train", "c": "val", "d": "val"}
SIDE = 512  # of a patch, in level-0 pixels, where the tool says it


def make(slide, dim=8, dtype=np.float32):
    return np.random.default_rng([ord(slide), dim]).normal(size=(SLIDES[slide], dim)).astype(dtype)


def corners(slide):
    rows = np.arange(SLIDES[slide])
    return np.stack([rows % 4 * SIDE + 37, rows // 4 * SIDE], axis=1)


def _h5(path, datasets, attributes=None, **file_attributes):
    import h5py

    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, (values, chunks) in datasets.items():
            file.create_dataset(name, data=values, chunks=chunks, maxshape=chunks and (None, *values.shape[1:]))
            file[name].attrs.update((attributes or {}).get(name, {}))
        file.attrs.update(file_attributes)


def trident(root, encoder="uni_v1", side=SIDE, dim=8):
    for slide in SLIDES:
        _h5(
            root / "20x_256px_0px_overlap" / f"features_{encoder}" / f"{slide}.h5",
            {"features": (make(slide, dim), (1, dim)), "coords": (corners(slide), (1, 2))},
            {
                "features": {"encoder": encoder, "name": slide},
                "coords": {"patch_size": 256, "patch_size_level0": side, "name": slide},
            },
        )
    (root / "20x_256px_0px_overlap" / "patches").mkdir(exist_ok=True)
    return root


def trident_slide(root):
    for slide in SLIDES:
        _h5(root / "slide_features_titan" / f"{slide}.h5", {"features": (make(slide)[0], None)})
    return root / "slide_features_titan"


def trident_pt(root):
    import torch

    folder = root / "20x_256px_0px_overlap" / "features_uni_v1"
    folder.mkdir(parents=True)
    for slide in SLIDES:
        torch.save(make(slide), folder / f"{slide}.pt")
    return root


def clam(root, level=0, downsample=1.0):
    import torch

    for slide in SLIDES:
        xy = corners(slide).astype(np.int32)
        _h5(root / "h5_files" / f"{slide}.h5", {"features": (make(slide), (32, 8)), "coords": (xy, (32, 2))})
        told = {"patch_size": int(SIDE / downsample), "patch_level": level, "downsample": [downsample, downsample]}
        _h5(root / "patches" / f"{slide}.h5", {"coords": (corners(slide), (1, 2))}, {"coords": told})
        (root / "pt_files").mkdir(exist_ok=True)
        torch.save(torch.from_numpy(make(slide)), root / "pt_files" / f"{slide}.pt")
    return root


def stamp(root, extractor="uni2", dim=8):
    for slide in SLIDES:
        _h5(
            root / f"{extractor}-49b04e14" / f"{slide}.h5",
            {"feats": (make(slide, dim, np.float16), None), "coords": ((corners(slide) // 4).astype(np.float32), None)},
            None,
            extractor=extractor, tile_size_um=SIDE / 4, tile_size_px=224, unit="um", stamp_version="2.4.0",
            feat_type="tile",
        )  # fmt: skip
    return root / f"{extractor}-49b04e14"


def atlaspatch(root):
    for slide, n in SLIDES.items():
        boxes = np.concatenate([corners(slide), np.tile([SIDE, SIDE, 0], (n, 1))], axis=1).astype(np.int32)
        named = {f"features/{name}": (make(slide, dim), (12, dim)) for name, dim in (("uni", 8), ("virchow2", 6))}
        _h5(root / "patches" / f"{slide}.h5", {"coords": (boxes, (12, 5)), **named}, None, patch_size_level0=SIDE)
    return root


def slide2vec(root, kind="pt", encoder="virchow2", order=1):
    import torch

    for folder in ("tile_embeddings", "tiles"):
        (root / "run" / folder).mkdir(parents=True)
    for slide, n in SLIDES.items():
        file = root / "run" / "tile_embeddings" / f"{slide}.{kind}"
        if kind == "pt":
            torch.save(torch.from_numpy(make(slide)), file)
        else:
            np.savez_compressed(file, features=make(slide), tile_index=np.arange(n))
        file.with_suffix(".meta.json").write_text(json.dumps({"encoder_name": encoder, "tile_size_lv0": SIDE}))
        x, y = corners(slide)[::order].T
        tiles = root / "run" / "tiles" / f"{slide}.coordinates.npz"
        np.savez(tiles, x=x, y=y, tile_index=np.arange(n), tissue_fractions=np.ones(n))
        meta = {"slide": {"base_spacing_um": 0.25}, "tiling": {"tile_size_lv0": SIDE, "read_level": 1}}
        tiles.with_suffix(".meta.json").write_text(json.dumps(meta))
    return root / "run"


def slide2vec_npz(root):
    return slide2vec(root, "npz")


def shazam_tiles(root):
    import torch

    root.mkdir(exist_ok=True)
    levels = [torch.from_numpy(np.concatenate([make(slide, dim) for slide in SLIDES])) for dim in (8, 6, 4)]
    torch.save((*levels, torch.arange(len(levels[0])) % 2), root / "uni.pt")
    return root / "uni.pt"


def shazam_slides(root):
    import torch

    (root / "uni").mkdir(parents=True)
    for slide in SLIDES:
        torch.save(tuple(torch.from_numpy(make(slide, dim)) for dim in (8, 6, 4)), root / "uni" / f"{slide}.pt")
    return root / "uni"


def gpfm(root):
    import torch

    (root / "gpfm").mkdir(parents=True)
    for slide, n in SLIDES.items():
        content = {"feature": torch.from_numpy(make(slide)), "label": torch.arange(n) % 2, "paths": ["x.png"] * n}
        torch.save(content, root / "gpfm" / f"{slide}.pt")
    return root / "gpfm"


def eva(root):
    import torch

    (root / "uni").mkdir(parents=True)
    with (root / "uni" / "manifest.csv").open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["origin", "embeddings", "target", "split", "wsi_id"])
        for slide, n in SLIDES.items():
            for i, row in enumerate(make(slide)):
                torch.save([torch.from_numpy(row)], root / "uni" / f"{slide}-{i:02}.pt")
                label = int(LABELS[slide] == "tumour") if n == 1 else i % 2
                out.writerow([f"{slide}/{i:02}.png", f"{slide}-{i:02}.pt", label, SPLITS[slide], slide])
    return root / "uni"


def square(x, y, side=SIDE):
    """A polygon in WKB, in the order of shapely's box."""
    ring = [(x + side, y), (x + side, y + side), (x, y + side), (x, y), (x + side, y)]
    return struct.pack("<BIII", 1, 3, 1, 5) + b"".join(struct.pack("<2d", *point) for point in ring)


def lazyslide(root, key="tiles"):
    import pyarrow as pa
    import pyarrow.parquet as pq
    import zarr

    for slide, n in SLIDES.items():
        store = root / "stores" / f"{slide}.zarr"
        (store / "shapes" / key).mkdir(parents=True)
        polygons = [square(*corner) for corner in corners(slide).tolist()]
        pq.write_table(
            pa.table({"tile_id": np.arange(n), "geometry": polygons}), store / f"shapes/{key}/shapes.parquet"
        )
        zarr.save_array(str(store / "tables" / f"uni_{key}" / "X"), make(slide))
        zarr.save_array(str(store / "tables" / f"uni_{key}" / "obs" / "tile_id"), np.arange(n))
    return root / "stores"


def tiatoolbox(root):
    import zarr

    for slide in SLIDES:
        store = root / "stores" / f"{slide}.zarr"
        zarr.save_array(str(store / "features"), make(slide))
        zarr.save_array(str(store / "coordinates"), np.concatenate([corners(slide), corners(slide) + SIDE], axis=1))
    return root / "stores"


def thunder(root):
    import h5py

    for split, slides in (("train", "ab"), ("val", "c")):
        folder = root / "bach" / "uni" / split
        folder.mkdir(parents=True)
        with h5py.File(folder / "embeddings.h5", "w") as x, h5py.File(folder / "labels.h5", "w") as y:
            for i, row in enumerate(np.concatenate([make(slide) for slide in slides])):
                x[str(i)], y[str(i)] = row, i % 2
    return root / "bach"


def uni2(root):
    for slide in SLIDES:
        arrays = {"features": (make(slide)[None], None), "coords": (corners(slide)[None], None)}
        _h5(root / "uni2" / f"{slide}.h5", arrays)
    return root / "uni2"


def fusecpath(root):
    (root / "uni").mkdir(parents=True)
    for slide in SLIDES:
        pairs = zip(corners(slide).tolist(), make(slide).tolist(), strict=True)
        text = "\n".join(json.dumps({str(tuple(corner)): row}) for corner, row in pairs)
        (root / "uni" / f"{slide}.txt").write_text(text)
    return root / "uni"


def torchmil(root):
    for slide in SLIDES:
        for folder, values in (("features_UNI", make(slide)), ("coords", corners(slide))):
            (root / folder).mkdir(parents=True, exist_ok=True)
            np.save(root / folder / f"{slide}.npy", values)
    return root


def npy(root):
    (root / "uni").mkdir(parents=True)
    for slide in SLIDES:
        np.save(root / "uni" / f"{slide}.npy", make(slide))
    return root / "uni"


def native(root):
    import shazam_fast as sf

    rows = [np.full(n, slide) for slide, n in SLIDES.items()]
    sf.write_archive(
        root / "native",
        {"uni": np.concatenate([make(slide) for slide in SLIDES])},
        slides=np.concatenate(rows),
        coords=np.concatenate([corners(slide) for slide in SLIDES]),
        dtype="float32",
        geometry={slide: sf.Geometry("pixels", SIDE) for slide in SLIDES},
    )
    return root / "native"
