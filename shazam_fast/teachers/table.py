"""The table of teachers: what is needed to run each one as its authors meant it, as data. Imports no torch.

Sources: the models' cards on the Hugging Face hub; the loaders of TRIDENT (`patch_encoder_models/load.py`) and
slide2vec (`encoders/models`), whose arguments load the published weights strictly; TRIDENT's README for licences; the
released scripts of Shazam (arXiv 2503.00736) for the early and middle blocks. Where tools disagree:

- Virchow and Virchow2 are CLS + mean of the patch tokens (2560) in TRIDENT and slide2vec, CLS alone (1280) in STAMP,
  eva and the Shazam scripts. Both are here, under names of their own.
- timm's packaged transform of GigaPath resizes the whole tile; its authors resize to 256 and crop 224.
- GPFM and CONCH v1.5 are not in the Shazam scripts. GPFM's early and middle blocks are those of the other ViT-L.
- Interpolation matters only where an image is not of the input size already: what the card or slide2vec say is here.
"""

from collections.abc import Mapping
from typing import Any

from .spec import TeacherSpec
from .transform import Transform

_BILINEAR_224 = Transform(224, 224, interpolation="bilinear")
_BICUBIC_224 = Transform(224, 224)
_GIGAPATH = Transform(224, 256)
_GPFM = Transform(224, None)
_H_OPTIMUS = Transform(224, 224, mean=(0.707223, 0.578729, 0.703617), std=(0.211883, 0.230117, 0.177517))

_NC_ND = "CC-BY-NC-ND-4.0"
_SWIGLU = {"mlp_layer": "SwiGLUPacked", "act_layer": "SiLU"}
_UNI = {"init_values": 1e-5, "dynamic_img_size": True}
_UNI2 = {
    "img_size": 224, "patch_size": 14, "depth": 24, "num_heads": 24, "init_values": 1e-5, "embed_dim": 1536,
    "mlp_ratio": 2.66667 * 2, "no_embed_class": True, "reg_tokens": 8, "dynamic_img_size": True, **_SWIGLU,
}  # fmt: skip
_VIRCHOW = {
    "img_size": 224, "init_values": 1e-5, "mlp_ratio": 5.3375, "global_pool": "", "dynamic_img_size": True, **_SWIGLU
}  # fmt: skip
_VIRCHOW_1: Mapping[str, Any] = {"licence": "Apache-2.0", "gflops": 334.8}
_VIRCHOW_2: Mapping[str, Any] = {"licence": _NC_ND, "covers_derivatives": True, "gflops": 340.1}
_GIGAPATH_VIT = {
    "img_size": 224, "patch_size": 16, "embed_dim": 1536, "depth": 40, "num_heads": 24, "mlp_ratio": 5.33334,
    "init_values": 1e-5, **_SWIGLU,
}  # fmt: skip
_H_OPTIMUS_VIT = {"img_size": 224, "global_pool": "token", "init_values": 1e-5, "dynamic_img_size": False}
_PHIKON = {
    "model_type": "dinov2", "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "patch_size": 16,
    "image_size": 224,
}  # fmt: skip


def _vit(name: str, hub: str, architecture: str, arguments: Mapping[str, Any], **fields: Any) -> TeacherSpec:
    return TeacherSpec(
        name, hub=hub, library="timm", arguments={"model_name": architecture, "num_classes": 0, **arguments}, **fields
    )


def _virchow(name: str, hub: str, arguments: Mapping[str, Any], prefix_tokens: int, **terms: Any) -> TeacherSpec:
    short = name.endswith("-cls")
    return _vit(
        name, hub, "vit_huge_patch14_224", {**_VIRCHOW, **arguments}, transform=_BICUBIC_224, blocks=32,
        levels=(10, 20), precision="float16", gated=True, prefix_tokens=prefix_tokens,
        pooling="cls" if short else "cls+mean", dim=1280 if short else 2560, **terms,
    )  # fmt: skip


def _h_optimus(name: str, hub: str, licence: str) -> TeacherSpec:
    return _vit(
        name, hub, "vit_giant_patch14_reg4_dinov2", _H_OPTIMUS_VIT, transform=_H_OPTIMUS, prefix_tokens=5, dim=1536,
        precision="float16", blocks=40, levels=(13, 26), gated=True, licence=licence, gflops=608.3,
    )  # fmt: skip


BUILT_IN: tuple[TeacherSpec, ...] = (
    _vit(
        "uni", "MahmoodLab/UNI", "vit_large_patch16_224", _UNI, transform=_BILINEAR_224, dim=1024,
        precision="float16", blocks=24, levels=(7, 15), gated=True, licence=_NC_ND, covers_derivatives=True,
        gflops=123.1,
    ),
    _vit(
        "uni2", "MahmoodLab/UNI2-h", "vit_giant_patch14_224", _UNI2, transform=_BILINEAR_224, prefix_tokens=9,
        dim=1536, precision="bfloat16", blocks=24, levels=(7, 15), gated=True, licence=_NC_ND, covers_derivatives=True,
        gflops=370.9,
    ),
    _virchow("virchow", "paige-ai/Virchow", {}, 1, **_VIRCHOW_1),
    _virchow("virchow-cls", "paige-ai/Virchow", {}, 1, **_VIRCHOW_1),
    _virchow("virchow2", "paige-ai/Virchow2", {"reg_tokens": 4}, 5, **_VIRCHOW_2),
    _virchow("virchow2-cls", "paige-ai/Virchow2", {"reg_tokens": 4}, 5, **_VIRCHOW_2),
    TeacherSpec(
        "phikon-v2", hub="owkin/phikon-v2", library="transformers", arguments=_PHIKON, transform=_BICUBIC_224,
        dim=1024, blocks=24, levels=(7, 15), licence="Owkin non-commercial", gflops=123.1,
    ),
    _vit(
        "gigapath", "prov-gigapath/prov-gigapath", "vit_giant_patch14_dinov2", _GIGAPATH_VIT, transform=_GIGAPATH,
        dim=1536, precision="float16", blocks=40, levels=(13, 26), gated=True, licence="Apache-2.0", gflops=456.2,
    ),
    _h_optimus("h-optimus-0", "bioptimus/H-optimus-0", "Apache-2.0"),
    _h_optimus("h-optimus-1", "bioptimus/H-optimus-1", _NC_ND),
    # Its model code lies in the hub's repository. Running that is the user's decision: see `load_teacher`.
    TeacherSpec(
        "conch-v1.5", hub="MahmoodLab/conchv1_5", library="torch",
        transform=Transform(448, 448, interpolation="bilinear"), pooling="model", dim=768, precision="float16",
        gated=True, licence=_NC_ND, covers_derivatives=True,
    ),
    _vit(
        "gpfm", "majiabo/GPFM", "vit_large_patch14_dinov2", {"img_size": 224, "init_values": 1e-5}, transform=_GPFM,
        dim=1024, precision="float16", blocks=24, levels=(7, 15), licence="MIT (elsewhere CC-BY-NC-ND)",
        files=("GPFM.pth",), gflops=162.0,
    ),
)  # fmt: skip
