"""Input transformations (Guo et al. 2018): crops, fewer bits, JPEG, total variation, quilting, and all of them."""

from calipers.defenses.input_transformations.defense import InputTransformations

__all__ = ["InputTransformations"]
