"""A table of hashes of what training gives, to the bit, in some hundred situations.

Run `python -m tests.hashes` before and after a change of the inside of the library: the table must
be equal.
"""
