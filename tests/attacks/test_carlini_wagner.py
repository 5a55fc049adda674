"""Carlini-Wagner: the contract, and what is its own."""

from calipers.attacks.base import Attack
from calipers.attacks.carlini_wagner import CarliniWagner
from calipers.testing.attack_contract import AttackContract


class TestCarliniWagner(AttackContract):
    ratio = 1.01

    def make(self) -> Attack:
        return CarliniWagner(steps=40)
