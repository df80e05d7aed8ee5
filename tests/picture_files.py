"""Pictures as files of every kind, those that Pillow can't write too, and the ways to fit them into a square."""

import io
import struct
import zlib

import numpy as np

from opencoca.config import PixelConfig
from opencoca.data.pixels import open_picture

noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
CROP, PAD, SQUASH = PixelConfig(), PixelConfig(fit="pad"), PixelConfig(fit="squash")


def encoded(image, format="PNG", **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def opened(image, format="PNG", **options):
    return np.asarray(open_picture(encoded(image, format, **options)))


def png_with_header(width, height, *chunks, bits=8, colour=2):
    """A PNG that claims any size and holds the chunks given, none by default."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunk(*c) for c in chunks) + chunk(b"IEND", b"")


def png_of_16_bits(values):
    """A PNG of uint16 [H,W,C], which Pillow can't write."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[values.shape[2]]
    return png_with_header(values.shape[1], values.shape[0], (b"IDAT", zlib.compress(rows)), bits=16, colour=colour)
