"""The closed world of layers: one file a family, each with its rules by module, function and method."""
