"""The picture of a slide's scores: class, confidence and leading teacher side by side, each with its legend."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from .palette import CLASS_COLOURS, TEACHER_COLOURS, pick_colours
from .slide_scores import SlideScores

INK, MUTED, PAPER, EMPTY = (27, 31, 36), (92, 102, 112), (255, 255, 255), (241, 243, 245)
CONFIDENCE = (
    "#00224e",
    "#123570",
    "#3b496c",
    "#575d6d",
    "#707173",
    "#8a8678",
    "#a59c74",
    "#c3b369",
    "#e1cc55",
    "#fee838",
)

# Pixels. Drawn for displays of twice the density that web pages count in.
LONG_SIDE, MIN_PANEL = 1100, 420
EDGE, GAP, HEAD, CAPTION = 48, 40, 92, 52
LINE, SWATCH, BAR = 38, 22, 22
TITLE_SIZE, CAPTION_SIZE, SMALL_SIZE = 38, 28, 24

Colours = NDArray[np.uint8]


def draw_slide(slide: SlideScores) -> Image.Image:
    """An RGB picture; areas without patches are left grey."""
    covering = _cover(slide)  # [H, W], index of the patch that covers a pixel, -1 none
    classes = pick_colours(CLASS_COLOURS, len(slide.classes))
    ramp = _ramp()
    confidence = slide.probabilities.max(axis=1)
    chance = 1 / len(slide.classes)
    steps = np.clip((confidence - chance) / (1 - chance) * (len(ramp) - 1), 0, len(ramp) - 1).round().astype(np.int64)
    panels = [
        ("Class", classes[slide.prediction], _legend(slide.classes, classes, slide.prediction)),
        ("Confidence", ramp[steps], _scale(ramp, chance, float(np.median(confidence)))),
    ]
    if slide.shares is not None:
        leading = slide.shares.argmax(axis=1)
        teachers = pick_colours(TEACHER_COLOURS, len(slide.teachers))
        panels.append(("Leading teacher", teachers[leading], _legend(slide.teachers, teachers, leading)))
    return _compose(slide, covering, panels)


def _cover(slide: SlideScores) -> NDArray[np.int64]:
    origin = slide.coords.min(axis=0)
    extent = (slide.coords.max(axis=0) - origin + slide.size).astype(float)
    whole = max(1, int(LONG_SIDE * slide.size / extent.max()))  # a patch is a whole number of pixels if it can be
    scale = min(whole / slide.size, LONG_SIDE / extent.max())
    width, height = np.maximum(1, np.ceil(extent * scale)).astype(int)
    low = np.floor((slide.coords - origin) * scale).astype(int)
    high = np.maximum(low + 1, np.ceil((slide.coords - origin + slide.size) * scale - 1e-6).astype(int))
    covering = np.full((height, width), -1, dtype=np.int64)
    for index, ((left, top), (right, bottom)) in enumerate(zip(low.tolist(), high.tolist(), strict=True)):
        covering[top:bottom, left:right] = index
    return covering


def _ramp() -> Colours:
    anchors = pick_colours(CONFIDENCE, len(CONFIDENCE)).astype(float)
    at = np.linspace(0, len(anchors) - 1, 256)
    channels = [np.interp(at, np.arange(len(anchors)), channel) for channel in anchors.T]
    return np.stack(channels, axis=1).round().astype(np.uint8)


def _compose(
    slide: SlideScores, covering: NDArray[np.int64], panels: Sequence[tuple[str, Colours, Image.Image]]
) -> Image.Image:
    height, width = covering.shape
    column = max(width, MIN_PANEL)
    foot = max(legend.height for _, _, legend in panels)
    size = (2 * EDGE + len(panels) * column + (len(panels) - 1) * GAP, 2 * EDGE + HEAD + CAPTION + height + 24 + foot)
    picture = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((EDGE, EDGE), slide.name, INK, _font(TITLE_SIZE))
    about = f"{len(slide.coords):,} patches of {slide.size:,} x {slide.size:,} pixels"
    draw.text((size[0] - EDGE, EDGE + 12), about, MUTED, _font(SMALL_SIZE), anchor="ra")
    draw.line((EDGE, EDGE + 64, size[0] - EDGE, EDGE + 64), (222, 226, 230), 2)
    for index, (caption, colours, legend) in enumerate(panels):
        left, top = EDGE + index * (column + GAP), EDGE + HEAD
        draw.text((left, top), caption, INK, _font(CAPTION_SIZE))
        pixels = np.concatenate([colours, np.array([EMPTY], np.uint8)])[covering]  # -1 picks the last
        picture.paste(Image.fromarray(pixels), (left, top + CAPTION))
        picture.paste(legend, (left, top + CAPTION + height + 24))
    return picture


def _legend(names: Sequence[str], colours: Colours, codes: NDArray[np.int64]) -> Image.Image:
    """A line for every name that occurs, the most frequent first, with its share of the patches."""
    share = np.bincount(codes, minlength=len(names)) / len(codes)
    order = [code for code in np.argsort(-share, kind="stable").tolist() if share[code] > 0]
    picture = Image.new("RGB", (MIN_PANEL, LINE * len(order)), PAPER)
    draw = ImageDraw.Draw(picture)
    for line, code in enumerate(order):
        middle = LINE * line + LINE // 2
        swatch = (0, middle - SWATCH // 2, SWATCH, middle + SWATCH // 2)
        draw.rounded_rectangle(swatch, 4, tuple(colours[code].tolist()))
        draw.text((SWATCH + 14, middle), _shorten(draw, names[code]), INK, _font(SMALL_SIZE), anchor="lm")
        draw.text((MIN_PANEL, middle), f"{share[code]:.1%}", MUTED, _font(SMALL_SIZE), anchor="rm")
    return picture


def _shorten(draw: ImageDraw.ImageDraw, name: str) -> str:
    room = MIN_PANEL - SWATCH - 14 - 100
    shown = name
    while draw.textlength(shown, _font(SMALL_SIZE)) > room and len(shown) > 2:
        shown = shown[:-2].rstrip() + "\u2026"
    return shown


def _scale(ramp: Colours, chance: float, median: float) -> Image.Image:
    picture = Image.new("RGB", (MIN_PANEL, 2 * LINE), PAPER)
    bar = Image.fromarray(ramp[None, :, :]).resize((MIN_PANEL, BAR), Image.Resampling.BILINEAR)
    picture.paste(bar, (0, (LINE - BAR) // 2))
    draw = ImageDraw.Draw(picture)
    draw.text((0, LINE + LINE // 2), f"{chance:.0%} (chance)", MUTED, _font(SMALL_SIZE), anchor="lm")
    draw.text((MIN_PANEL, LINE + LINE // 2), "100%", MUTED, _font(SMALL_SIZE), anchor="rm")
    draw.text((MIN_PANEL * 0.64, LINE + LINE // 2), f"median {median:.0%}", INK, _font(SMALL_SIZE), anchor="mm")
    return picture


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
