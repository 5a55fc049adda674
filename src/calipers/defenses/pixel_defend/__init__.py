"""PixelDefend: images are moved towards a learned density before they are classified."""

from calipers.defenses.pixel_defend.defense import PixelDefend

__all__ = ["PixelDefend"]
