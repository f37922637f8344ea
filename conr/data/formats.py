"""Formats of image files: which are read, how their first bytes tell them, and what other files are."""

import re
from importlib.util import find_spec

HEAD = 64  # bytes that tell the format
# Pillow's names. None of these decoders starts another program, as that of PostScript does.
SUFFIXES_OF = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp", ".dib"),
    "GIF": (".gif",),
    "AVIF": (".avif", ".avifs"),
    "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "HEIF": (".heic", ".heif", ".hif"),  # by pillow-heif
}
SUFFIXES = tuple(suffix for suffixes in SUFFIXES_OF.values() for suffix in suffixes)
SUFFIXES_OF_HEIF = SUFFIXES_OF["HEIF"]
NAMES = "JPEG, PNG, WebP, TIFF, BMP, GIF, AVIF, JPEG 2000, PPM/PGM, HEIC"
NEEDS_HEIF = "a HEIC picture; pip install 'conr[heic]' to read it"

SIGNATURES = (
    ("JPEG", rb"\xff\xd8\xff"),
    ("PNG", rb"\x89PNG\r\n\x1a\n"),
    ("WEBP", rb"RIFF....WEBP"),
    ("TIFF", rb"II[*+]\0|MM\0[*+]"),
    ("BMP", rb"BM"),
    ("GIF", rb"GIF8[79]a"),
    ("AVIF", rb"....ftyp(?:....){0,12}avi[fs]"),
    ("HEIF", rb"....ftyp(?:....){0,12}(?:hei[cxms]|hev[cxms]|mif1|msf1)"),
    ("JPEG2000", rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  \r\n\x87\n"),
    ("PPM", rb"P[1-6fF][\s#]"),
)
OTHERS = (
    ("a Git LFS pointer, not the image; run git lfs pull", rb"version https://git-lfs"),
    ("not an image but a PostScript program, which is never run", rb"%!PS|\xc5\xd0\xd3\xc6"),
    ("not an image but a PDF document", rb"%PDF"),
    ("not an image but a web page", rb"\s*(?i:<!doctype html|<html)"),
    ("not an image of pixels but an SVG drawing", rb"\s*(?i:<svg|<\?xml)"),
    ("not an image but a film", rb"....ftyp|RIFF....AVI |\x1aE\xdf\xa3"),
    ("not an image but an archive", rb"PK\x03\x04|\x1f\x8b|7z\xbc\xaf|Rar!"),
    ("a Photoshop file, which is not read; save it as PNG", rb"8BPS"),
    ("not an image: its first bytes are all zero", rb"\0{16}"),
)
FORMAT_OF = tuple((name, re.compile(pattern, re.DOTALL)) for name, pattern in SIGNATURES)
OTHER_OF = tuple((what, re.compile(pattern, re.DOTALL)) for what, pattern in OTHERS)


def format_of(head: bytes) -> str | None:
    """The format of a file, by its first `HEAD` bytes; None for one that is not read."""
    return next((name for name, pattern in FORMAT_OF if pattern.match(head)), None)


def described(head: bytes) -> str:
    """What a file is that is no image, by its first `HEAD` bytes."""
    return next((what for what, pattern in OTHER_OF if pattern.match(head)), "not an image file")


def heif_is_read() -> bool:
    """Whether the package is installed that reads HEIC."""
    return find_spec("pillow_heif") is not None
