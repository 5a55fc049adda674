"""Defense-GAN: images are replaced by the nearest output of a generator before they are classified."""
