"""An append-only log of a run, from which the weights of every step are rebuilt bit for bit.

    weights after step t = weights before it, scaled, plus sum_k coefficient_k z(seed, t, k)

It holds seeds and coefficients. A direction z is a function of counters, so a step is no more than
its coefficients. For a model of any size these are tens of bytes.
"""

from dopaminergic.journal.format import JournalError
from dopaminergic.journal.merging import merge
from dopaminergic.journal.reading import Contents, Header, JournalDamage, Snapshot, read
from dopaminergic.journal.recording import Journal
from dopaminergic.journal.replaying import replay, revert
from dopaminergic.journal.tensors import digest

__all__ = [
    "Contents",
    "Header",
    "Journal",
    "JournalDamage",
    "JournalError",
    "Snapshot",
    "digest",
    "merge",
    "read",
    "replay",
    "revert",
]
