"""Standard: the contract, and what it brings down."""

from calipers.attacks.base import Attack
from calipers.attacks.standard import Standard
from calipers.testing.attack_contract import AttackContract


class TestStandard(AttackContract):
    ratio = 1.01

    def make(self) -> Attack:
        return Standard()
