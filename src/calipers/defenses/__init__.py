"""The nine defenses of ICLR 2018, each with its claim, its mechanism, its flaw, and the attack that shows it."""
