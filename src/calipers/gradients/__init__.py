"""How a gradient is had: values that compose, each with its text form. The parts are imported by name."""
