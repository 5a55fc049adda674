"""Whether a gradient can be believed: findings, and the adaptive attack that follows from them."""
