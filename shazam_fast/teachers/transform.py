"""How an image becomes the input of a teacher."""

from dataclasses import asdict, dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from ..errors import MismatchError, ShazamError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image
    from torch import Tensor, device

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
INTERPOLATIONS = ("bilinear", "bicubic")  # of Pillow, whose filters grow with the reduction (no aliasing)


@dataclass(frozen=True)
class Transform:
    """How an image becomes a model's input.

    Args:
        size: side of the square input, in pixels.
        resize: length that the shorter side is resized to before the centre crop of `size`; None resizes both sides
            straight to `size`, whatever the proportions.
        mean, std: mean and standard deviation of each channel (R, G, B), for values in 0..1.
        interpolation: "bilinear" or "bicubic", with a filter that grows with the reduction.

    Raises ShazamError naming the first field that is out of range or unknown.

    >>> from PIL import Image
    >>> Transform(size=224, resize=256)(Image.new("RGB", (512, 512))).shape
    torch.Size([3, 224, 224])
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

        mean, std = (_per_channel(values, pixels.device) for values in (self.mean, self.std))
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


@cache
def _per_channel(values: tuple[float, ...], where: "device") -> "Tensor":
    """[3, 1, 1], copied to the device once: the host would wait for the models of the batch before."""
    import torch

    return torch.tensor(values, device=where).view(3, 1, 1)


DEFAULT_TRANSFORM = Transform()
