"""`shazam-fast slides`."""

from .commands import slides

__all__ = ["slides"]
