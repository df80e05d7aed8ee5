"""Sixty odd pictures, each with the pixels that must come out of it, or None where it must be refused; and bombs.

The pixels are known from how each was made, and not from any reader: four quarters of plain colour, 24 x 16, which
survive JPEG to a few levels and show every turn, swapped channel and clipped value.
"""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 24, 16
COLOURS = ((200, 30, 40), (30, 160, 60), (40, 60, 210), (230, 200, 90))  # of the quarters, as one reads
LEVELS = (20, 100, 170, 240)  # the same in grey


class Odd(NamedTuple):
    """A file, what must come out of it (uint8 [H,W,3], or None), and by how many levels each pixel may be off."""

    name: str
    content: bytes
    expected: np.ndarray | None
    tolerance: int = 0


def quarters(values: tuple[Any, ...]) -> np.ndarray:
    """[H,W,...] with a value in each quarter."""
    grid = np.array(values).reshape(2, 2, *np.shape(values)[1:])
    return grid.repeat(HEIGHT // 2, 0).repeat(WIDTH // 2, 1)


def as_file(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def odd_pictures() -> list[Odd]:
    """The pictures: 39 that must be read and 21 that must be refused."""
    return [*_modes(), *_formats(), *_turned(), *_damaged_but_whole(), *_refused()]


def _grey(levels: tuple[int, ...] = LEVELS) -> np.ndarray:
    return quarters(tuple((level,) * 3 for level in levels)).astype(np.uint8)


def _modes() -> list[Odd]:
    colour, grey = quarters(COLOURS).astype(np.uint8), quarters(LEVELS).astype(np.uint8)
    image, clear = Image.fromarray(colour), quarters((255, 0, 255, 0)).astype(np.uint8)
    on_white = np.where(clear[..., None] > 0, colour, 255)
    half = np.full_like(clear, 128)
    blended = colour * (128 / 255) + 255 * (127 / 255)
    palette = image.quantize(4)
    indexed = palette.copy()
    indexed.info["transparency"] = int(np.asarray(palette)[0, 0])
    see_through = np.where((np.asarray(palette) == indexed.info["transparency"])[..., None], 255, colour)
    keyed = np.where((colour == COLOURS[0]).all(-1)[..., None], 255, colour)
    wide = (grey.astype(np.uint16) << 8) | grey
    bits = quarters((0, 1, 1, 0)).astype(bool)
    rgba = Image.fromarray(np.dstack([colour, clear]))
    return [
        Odd("rgb.png", as_file(image, "PNG"), colour),
        Odd("rgba.png", as_file(rgba, "PNG"), on_white),
        Odd("rgba half.png", as_file(Image.fromarray(np.dstack([colour, half])), "PNG"), np.rint(blended), 1),
        Odd("grey.png", as_file(Image.fromarray(grey), "PNG"), _grey()),
        Odd("grey alpha.png", as_file(Image.fromarray(np.dstack([grey, clear])), "PNG"), _on_white(_grey(), clear)),
        Odd("grey 16 bits.png", as_file(Image.fromarray(wide), "PNG"), _grey()),
        Odd("grey 32 bits.tiff", as_file(Image.fromarray(wide.astype(np.int32)), "TIFF"), _grey()),
        Odd("float.tiff", as_file(Image.fromarray((grey / 255).astype(np.float32)), "TIFF"), _grey()),
        Odd("palette.png", as_file(palette, "PNG"), colour),
        Odd("palette with a hole.png", as_file(indexed, "PNG"), see_through),
        Odd("one transparent colour.png", as_file(image, "PNG", transparency=COLOURS[0]), keyed),
        Odd("one bit.png", as_file(Image.fromarray(bits), "PNG"), _grey((0, 255, 255, 0))),
        Odd("cmyk.jpg", as_file(_cmyk(), "JPEG", quality=100), _cmyk_as_rgb(), 6),
        Odd("rgba.webp", as_file(rgba, "WEBP", lossless=True, exact=True), on_white),
    ]


def _on_white(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return np.where(alpha[..., None] > 0, pixels, 255)


def _cmyk() -> Image.Image:
    inks = quarters(((255, 0, 0, 0), (0, 255, 0, 0), (0, 0, 255, 0), (0, 0, 0, 128))).astype(np.uint8)
    return Image.frombytes("CMYK", (WIDTH, HEIGHT), inks.tobytes())


def _cmyk_as_rgb() -> np.ndarray:
    return quarters(((0, 255, 255), (255, 0, 255), (255, 255, 0), (127, 127, 127))).astype(np.uint8)


def _formats() -> list[Odd]:
    colour = quarters(COLOURS).astype(np.uint8)
    image, grey = Image.fromarray(colour), Image.fromarray(quarters(LEVELS).astype(np.uint8))
    other = Image.new("RGB", image.size, (9, 9, 9))
    return [
        Odd("plain.jpg", as_file(image, "JPEG", quality=100, subsampling=0), colour, 6),
        Odd("progressive.jpg", as_file(image, "JPEG", quality=100, subsampling=0, progressive=True), colour, 6),
        Odd("optimised.jpg", as_file(image, "JPEG", quality=100, subsampling=0, optimize=True), colour, 6),
        Odd("grey.jpg", as_file(grey, "JPEG", quality=100), _grey(), 6),
        Odd("rgb inside.jpg", as_file(image, "JPEG", quality=100, keep_rgb=True), colour, 6),
        Odd("restarts.jpg", as_file(image, "JPEG", quality=100, subsampling=0, restart_marker_blocks=1), colour, 6),
        Odd("plain.webp", as_file(image, "WEBP", lossless=True), colour),
        Odd("plain.bmp", as_file(image, "BMP"), colour),
        Odd("plain.gif", as_file(image.quantize(4), "GIF"), colour),
        Odd("first of two.gif", as_file(image.quantize(4), "GIF", save_all=True, append_images=[other]), colour),
        Odd("first of two.png", as_file(image, "PNG", save_all=True, append_images=[other]), colour),
        Odd("first of two.webp", as_file(image, "WEBP", save_all=True, append_images=[other], lossless=True), colour),
        Odd("lzw.tiff", as_file(image, "TIFF", compression="tiff_lzw"), colour),
        Odd("first of two.tiff", as_file(image, "TIFF", save_all=True, append_images=[other]), colour),
    ]


def _turned() -> list[Odd]:
    colour = quarters(COLOURS).astype(np.uint8)
    lying = {3: colour[::-1, ::-1], 6: colour.swapaxes(0, 1)[::-1], 8: colour.swapaxes(0, 1)[:, ::-1]}
    made = []
    for orientation, stored in lying.items():  # so stored that turning it as the tag says shows `colour`
        exif = Image.Exif()
        exif[0x0112] = orientation
        image = Image.fromarray(np.ascontiguousarray(stored))
        options = {"quality": 100, "subsampling": 0, "exif": exif}
        made.append(Odd(f"turned {orientation}.jpg", as_file(image, "JPEG", **options), colour, 6))
        if orientation != 8:
            made.append(Odd(f"turned {orientation}.png", as_file(image, "PNG", exif=exif), colour))
    return made


def _damaged_but_whole() -> list[Odd]:
    colour = quarters(COLOURS).astype(np.uint8)
    image = Image.fromarray(colour)
    jpeg, png = as_file(image, "JPEG", quality=100, subsampling=0), as_file(image, "PNG")
    exif = b"\xff\xe1" + struct.pack(">H", 20) + b"Exif\0\0" + b"\x99" * 12
    return [
        Odd("junk behind.jpg", jpeg + b"junk" * 50, colour, 6),
        Odd("junk behind.png", png + b"junk" * 50, colour),
        Odd("broken exif.jpg", jpeg[:2] + exif + jpeg[2:], colour, 6),
        Odd("orientation 99.jpg", _with_orientation(image, 99), colour, 6),
        Odd("broken colour profile.png", as_file(image, "PNG", icc_profile=b"no profile"), colour),
        Odd("named wrongly.png", jpeg, colour, 6),
    ]


def _with_orientation(image: Image.Image, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return as_file(image, "JPEG", quality=100, subsampling=0, exif=exif)


def _refused() -> list[Odd]:
    image = Image.fromarray(quarters(COLOURS).astype(np.uint8))
    large = image.resize((240, 160))
    jpeg, png, webp = (as_file(large, kind) for kind in ("JPEG", "PNG", "WEBP"))
    gif, tiff, bmp = (as_file(large, kind) for kind in ("GIF", "TIFF", "BMP"))
    files = {
        "empty.jpg": b"",
        "one byte.jpg": b"\xff",
        "only the start.jpg": jpeg[:2],
        "header alone.jpg": jpeg[: jpeg.index(b"\xff\xda")],
        "half.jpg": jpeg[: len(jpeg) // 2],
        "half.png": png[: len(png) // 2],
        "header alone.png": png[:33],
        "half.webp": webp[: len(webp) // 2],
        "half.gif": gif[: len(gif) // 4],
        "half.tiff": tiff[: len(tiff) // 2],
        "half.bmp": bmp[: len(bmp) // 2],
        "zeros.jpg": bytes(4000),
        "noise.png": np.random.default_rng(0).bytes(4000),
        "no pixels.png": _png_header(0, 16),
        "a page.jpg": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        "drawing.svg": b'<svg xmlns="http://www.w3.org/2000/svg"><rect width="9" height="9"/></svg>',
        "document.pdf": as_file(large, "PDF"),
        "postscript.eps": as_file(large, "EPS"),
        "plain.ppm": as_file(large, "PPM"),
        "icon.ico": as_file(image.resize((16, 16)), "ICO"),
        "broken data.png": png[:41] + bytes([png[41] ^ 0xFF, png[42] ^ 0xFF]) + png[43:],
    }
    return [Odd(name, content, None) for name, content in files.items()]


# --- bombs: small files whose headers promise more pixels than are allowed ----------------------------------------


def bombs() -> dict[str, bytes]:
    """Each is below 300 kB and must be refused before anything is decoded."""
    image = Image.new("RGB", (64, 64))
    jpeg, gif, bmp = (bytearray(as_file(image, kind)) for kind in ("JPEG", "GIF", "BMP"))
    frame = jpeg.index(b"\xff\xc0") + 5
    jpeg[frame : frame + 4] = struct.pack(">HH", 65000, 65000)
    progressive = bytearray(as_file(image, "JPEG", progressive=True))
    frame = progressive.index(b"\xff\xc2") + 5
    progressive[frame : frame + 4] = struct.pack(">HH", 30000, 30000)
    lossless = bytearray(as_file(image, "WEBP", lossless=True))
    lossless[21:25] = struct.pack("<I", 16383 - 1 | (16383 - 1) << 14)
    gif[6:10] = struct.pack("<HH", 60000, 60000)
    bmp[18:26] = struct.pack("<ii", 50000, 50000)
    tiff = bytearray(as_file(image, "TIFF"))
    directory = struct.unpack_from("<I", tiff, 4)[0]
    for i in range(struct.unpack_from("<H", tiff, directory)[0]):
        entry = directory + 2 + 12 * i
        if struct.unpack_from("<H", tiff, entry)[0] in (256, 257):
            struct.pack_into("<HIHH", tiff, entry + 2, 3, 1, 60000, 0)
    return {
        "169 MP in full.png": _flat_png(13000, 13000),
        "4 GP by header.png": _png_header(65535, 65535),
        "2^31 wide.png": _png_header(2**31 - 1, 1),
        "4 GP.jpg": bytes(jpeg),
        "900 MP progressive.jpg": bytes(progressive),
        "268 MP.webp": bytes(lossless),
        "3.6 GP.gif": bytes(gif),
        "2.5 GP.bmp": bytes(bmp),
        "3.6 GP.tiff": bytes(tiff),
    }


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _png_header(width: int, height: int, *chunks: bytes, bits: int = 8) -> bytes:
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + _chunk(b"IEND", b"")


def _flat_png(width: int, height: int) -> bytes:
    packer = zlib.compressobj(9)
    row = bytes(1 + (width + 7) // 8)
    content = b"".join([*(packer.compress(row) for _ in range(height)), packer.flush()])
    return _png_header(width, height, _chunk(b"IDAT", content), bits=1)
