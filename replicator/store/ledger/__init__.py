"""Where each block lies: a table of blocks by id, and notes on the broken and the condemned."""

from replicator.store.ledger.errors import LedgerDamaged
from replicator.store.ledger.ledger import Ledger

__all__ = ["Ledger", "LedgerDamaged"]
