"""From above: searches for adversarial examples, judged in one place on the real classifier."""
