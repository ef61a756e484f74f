"""`shazam-fast slides`."""

from . import pictures as pictures  # adds its commands to `slides`
from .commands import slides

__all__ = ["slides"]
