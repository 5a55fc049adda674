"""Thermometer encoding (Buckman et al. 2018): images as discrete codes, LS-PGA, and the ramps that get through."""

from calipers.defenses.thermometer.defense import Thermometer
from calipers.defenses.thermometer.encoding import ThermometerEncoder
from calipers.defenses.thermometer.logit_space import LogitSpacePGA

__all__ = ["LogitSpacePGA", "Thermometer", "ThermometerEncoder"]
