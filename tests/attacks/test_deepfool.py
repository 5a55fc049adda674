"""DeepFool: the contract, and what is its own."""

from calipers.attacks.base import Attack
from calipers.attacks.deepfool import DeepFool
from calipers.testing.attack_contract import AttackContract


class TestDeepFool(AttackContract):
    ratio = 1.01

    def make(self) -> Attack:
        return DeepFool()
