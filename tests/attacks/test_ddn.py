"""DDN: the contract, and what is its own."""

from calipers.attacks.base import Attack
from calipers.attacks.ddn import DDN
from calipers.testing.attack_contract import AttackContract


class TestDDN(AttackContract):
    ratio = 1.01

    def make(self) -> Attack:
        return DDN()
