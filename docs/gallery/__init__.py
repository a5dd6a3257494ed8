"""Draws the pictures of the documentation: `python -m docs.gallery` writes docs/pictures.

`measured` draws numbers of the record, `computed` lets the library run for a few seconds, and
`schemes` holds drawings. Every picture is an SVG whose colours follow the reader's light or dark
mode.
"""
