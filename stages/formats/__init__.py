"""The readers of the image formats, one module for each: from the bytes of a file to a picture.

A reader is a function from the bytes and the limit of pixels to a ``picture.Picture``. It raises
``picture.ImageError``.
``stages.decode`` has the table that gives each media type its reader.
"""
