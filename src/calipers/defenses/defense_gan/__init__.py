"""Defense-GAN: images are replaced by the nearest output of a generator before they are classified."""

from calipers.defenses.defense_gan.defense import DefenseGAN
from calipers.defenses.defense_gan.latent import decode, encode

__all__ = ["DefenseGAN", "decode", "encode"]
