"""What is wrong with an asset."""


class Fault(Exception):
    """Ends a command. `reason` is a value of `schemas.ledger.Reason`."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
