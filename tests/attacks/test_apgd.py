"""APGD: the contract, and what its settings do."""

from calipers.attacks.apgd import APGD
from calipers.attacks.base import Attack
from calipers.testing.attack_contract import AttackContract


class TestAPGD(AttackContract):
    ratio = 1.01

    def make(self) -> Attack:
        return APGD(steps=20)
