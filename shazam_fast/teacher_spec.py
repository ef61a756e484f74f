"""What describes a teacher: how an image becomes its input, how it is created, what its output means. Data only."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import MismatchError, ShazamError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image
    from torch import Tensor

    from .teacher_models import Teacher

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
INTERPOLATIONS = ("bilinear", "bicubic")  # of Pillow, whose filters grow with the reduction (no aliasing)
LIBRARIES = ("timm", "transformers", "torch")
POOLINGS = ("cls", "cls+mean", "model")
PRECISIONS = ("float16", "bfloat16", "float32")
TRANSFORMS = ("own", "imagenet")


@dataclass(frozen=True)
class Transform:
    """How an image becomes a model's input.

    Args:
        size: side of the square input, in pixels.
        resize: length that the shorter side is resized to before the centre crop of `size`; None resizes both sides
            straight to `size`, whatever the proportions.
        mean, std: of each channel (R, G, B), for values in 0..1.
        interpolation: "bilinear" or "bicubic".
    """

    size: int = 224
    resize: int | None = 224
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        if self.size < 1 or (self.resize is not None and self.resize < self.size):
            raise ShazamError(f"0 < size <= resize expected, found size {self.size} and resize {self.resize}")
        if self.interpolation not in INTERPOLATIONS:
            raise ShazamError(f"interpolation: one of {INTERPOLATIONS} expected, found {self.interpolation!r}")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ShazamError(f"three means and three positive stds expected, found {self.mean} and {self.std}")

    @property
    def geometry(self) -> tuple[int, int | None, str]:
        """What decides `pixels`: teachers whose transforms agree in it share the resized image."""
        return self.size, self.resize, self.interpolation

    def pixels(self, image: "Image") -> "NDArray[np.uint8]":
        """Resize and crop an RGB image: uint8 [3, size, size]. Raises MismatchError for another mode."""
        import numpy as np

        if image.mode != "RGB":
            raise MismatchError(f"an RGB image expected, found mode {image.mode!r}; convert it first")
        if image.size != (scaled := self._scaled(*image.size)):
            from PIL.Image import Resampling

            image = image.resize(scaled, Resampling[self.interpolation.upper()])
        left, top = (round((side - self.size) / 2) for side in image.size)
        image = image.crop((left, top, left + self.size, top + self.size))
        return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))

    def normalize(self, pixels: "Tensor") -> "Tensor":
        """uint8 pixels [..., 3, H, W] on any device -> float32: (pixels / 255 - mean) / std."""
        import torch

        mean, std = (torch.tensor(v, device=pixels.device).view(3, 1, 1) for v in (self.mean, self.std))
        return pixels.float().div_(255.0).sub_(mean).div_(std)

    def __call__(self, image: "Image") -> "Tensor":
        """RGB image -> float32 [3, size, size], bit for bit what torchvision's transforms of this recipe give."""
        import torch

        return self.normalize(torch.from_numpy(self.pixels(image)))

    def to_dict(self) -> dict[str, Any]:
        """Plain values: what an archive records."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}

    def _scaled(self, width: int, height: int) -> tuple[int, int]:
        if self.resize is None:
            return self.size, self.size
        short, long = sorted((width, height))
        other = int(self.resize * long / short)  # truncated, as torchvision does
        return (self.resize, other) if width <= height else (other, self.resize)


@dataclass(frozen=True)
class TeacherSpec:
    """One teacher: any timm model, any transformers vision model, or any callable that makes a torch module.

        sf.register_teacher(sf.TeacherSpec("tiny", dim=192, arguments={"model_name": "vit_tiny_patch16_224"}))
        sf.register_teacher(sf.TeacherSpec("mine", dim=512, library="torch", pooling="model",
                                           arguments={"create": make_my_model}))

    Args:
        name: of the teacher in archives and students; says the pooling rule where tools disagree.
        dim: columns of its feature.
        hub: "owner/name" on the Hugging Face hub, where its weights are.
        library: "timm" (arguments of `timm.create_model`, layers by their name in timm.layers or torch.nn),
            "transformers" (arguments of `AutoConfig.for_model`) or "torch" (`create`, called without arguments).
        arguments: the arguments of whatever creates the model, architecture included.
        transform: how an image becomes its input.
        pooling: "cls" (first token after the final norm), "cls+mean" (with the mean of the patch tokens beside it) or
            "model" (the module's own output [B, dim]).
        prefix_tokens: CLS and registers, which are no patches.
        precision: of autocast on a GPU, as its authors recommend.
        blocks: transformer blocks, checked when it is built. 0: unknown.
        levels: 0-indexed blocks whose CLS token is the early ("low") and middle ("mid") feature.
        gated: the hub asks for an accepted licence and a token.
        licence: of the weights.
        covers_derivatives: the terms also cover models trained on the teacher's outputs, such as a student. False:
            no such clause is known. Read the terms before you share a student.
        files: names of the weights' file on the hub, the first that exists is taken.

    Raises ShazamError for a field that cannot be.
    """

    name: str
    dim: int
    hub: str | None = None
    library: str = "timm"
    arguments: Mapping[str, Any] = field(default_factory=dict)
    transform: Transform = Transform()
    pooling: str = "cls"
    prefix_tokens: int = 1
    precision: str = "float32"
    blocks: int = 0
    levels: tuple[int, int] | None = None
    gated: bool = False
    licence: str = "unknown"
    covers_derivatives: bool = False
    files: tuple[str, ...] = ("model.safetensors", "pytorch_model.bin")

    def __post_init__(self) -> None:
        for what, allowed in (("library", LIBRARIES), ("pooling", POOLINGS), ("precision", PRECISIONS)):
            if (found := getattr(self, what)) not in allowed:
                raise ShazamError(f"teacher {self.name!r}: {what}: one of {allowed} expected, found {found!r}")
        if not self.name or ":" in self.name or self.dim < 1 or self.prefix_tokens < 0:
            raise ShazamError(
                f"teacher {self.name!r}: a name without ':' (kept for levels), dim >= 1 and prefix_tokens >= 0 "
                f"expected, found dim {self.dim} and prefix_tokens {self.prefix_tokens}"
            )
        if self.levels is not None and not 0 <= self.levels[0] < self.levels[1] < self.blocks:
            raise ShazamError(
                f"teacher {self.name!r}: levels 0 <= early < middle < blocks expected, "
                f"found {self.levels} of {self.blocks} blocks"
            )

    def chosen_transform(self, choice: str = "own") -> Transform:
        """The teacher's own transform, or "imagenet": what the released Shazam scripts apply to every model.

        That is ImageNet statistics and a plain, bilinear resize of both sides to the input size.
        """
        if choice not in TRANSFORMS:
            raise ShazamError(f"transform: one of {TRANSFORMS} expected, found {choice!r}")
        return self.transform if choice == "own" else Transform(self.transform.size, None, interpolation="bilinear")

    def build(self, weights: str | Path = "hub", token: str | None = None, transform: str = "own") -> "Teacher":
        """Create the model, load its weights, freeze it; on the CPU, in float32.

        Args:
            weights: "hub" downloads them (or takes them from the hub's cache), "random" draws them, the same on every
                call; else a local file (safetensors or torch.save) or, for transformers, its directory.
            token: of the Hugging Face hub; by default the one that `hf auth login` left.
            transform: "own" or "imagenet", see `chosen_transform`.

        Raises:
            ShazamError: a missing package; weights that the hub does not hand out (the message names gate, licence
                and what to do); a "torch" teacher without its callable. The code of conch-v1.5 lies in the hub's
                repository, and nothing from there is run unless you do it yourself:

                    titan = transformers.AutoModel.from_pretrained("MahmoodLab/TITAN", trust_remote_code=True)
                    arguments = {"create": lambda: titan.return_conch()[0]}
                    sf.register_teacher(dataclasses.replace(sf.teacher("conch-v1.5"), arguments=arguments))
            ArchiveError: a weights file that is missing, corrupt, or would execute code.
            MismatchError: weights whose names or shapes do not fit; a model that is not what the spec says.
        """
        from .teacher_models import build

        return build(self, weights, token, self.chosen_transform(transform))
