"""FMN: the contract, and what is its own."""

from calipers.attacks.base import Attack
from calipers.attacks.fmn import FMN
from calipers.testing.attack_contract import AttackContract


class TestFMN(AttackContract):
    ratio = 1.01

    def make(self) -> Attack:
        return FMN()
