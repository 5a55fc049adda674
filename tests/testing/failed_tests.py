"""Which tests of a contract fail."""


def failed_tests(contract: object, *, by: tuple[type[Exception], ...] = (AssertionError,)) -> set[str]:
    """Run every test of a contract and name those that raise one of the exceptions, without their ``test_``."""
    failed = set()
    for name in dir(contract):
        if name.startswith("test_"):
            try:
                getattr(contract, name)()
            except by:
                failed.add(name.removeprefix("test_"))
    return failed
