"""FGSM: the contract, and its one step."""

from calipers.attacks.base import Attack
from calipers.attacks.fgsm import FGSM
from calipers.testing.attack_contract import AttackContract


class TestFGSM(AttackContract):
    ratio = 1.01

    def make(self) -> Attack:
        return FGSM()
