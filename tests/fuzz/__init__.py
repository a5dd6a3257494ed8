"""Thousands of damaged and forged files, each of which must be read, or refused in words.

    python -m tests.fuzz --count 5000 --seed 0

Journals, checkpoints, states of optimizers, CSV files and records are changed at random: bits,
cuts, doubled parts, and under checksums that fit, values of any kind. Whatever comes out must be an
error that the library documents, of at most 300 characters, within seconds and within 1 GiB; what
was there before must be there still.
"""
