"""The ledger: what arrived, what was asked, decided, judged and promoted. The truth."""

from evergreen.ledger.database import Ledger

__all__ = ["Ledger"]
