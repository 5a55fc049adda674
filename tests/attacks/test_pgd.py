"""PGD: the contract, and what its settings do."""

from calipers.attacks.base import Attack
from calipers.attacks.pgd import PGD
from calipers.testing.attack_contract import AttackContract


class TestPGD(AttackContract):
    ratio = 1.05

    def make(self) -> Attack:
        return PGD(steps=20)
