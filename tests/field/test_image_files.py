"""Image files that people have: odd ranges, bands, pages, metadata and endings; and those that were made to do harm."""

import io
import os
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from conr.data import opening
from conr.data.decode import decode, page_count
from conr.data.opening import MAX_SCANS, UnreadableImageError

GDAL_NO_DATA = 42113


def smooth(height: int = 48, width: int = 48, seed: int = 0) -> NDArray[np.uint8]:
    """(H, W, 3) colors that change slowly."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def png(width: int, height: int, bits: int, color: int, rows: bytes, *chunks: bytes) -> bytes:
    """A PNG of raw rows (each with its filter byte), with more chunks after the header."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + data + chunk(b"IEND", b"")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png16(values: NDArray[np.integer]) -> bytes:
    """A PNG of 16 bits: (H, W) gray, or (H, W, C) with 2 channels for gray and alpha, 3 for RGB, 4 for RGBA."""
    height, width, channels = (*values.shape, 1)[:3]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return png(width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], rows)


def tiff(values: NDArray[np.generic], *tags: tuple[int, int, int, bytes], planes: int = 1) -> bytes:
    """A little-endian TIFF of one strip, with more (tag, type, count, value of 4 bytes) entries."""
    height, width, channels = (*values.shape, 1)[:3]
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    after = 8 + values.nbytes
    bits = struct.pack(f"<{channels}H", *[8 * values.dtype.itemsize] * channels)
    formats = struct.pack(f"<{channels}H", *[kind] * channels)

    def short(tag: int, value: int) -> tuple[int, int, int, bytes]:
        return tag, 3, 1, struct.pack("<HH", value, 0)

    def shorts(tag: int, data: bytes, offset: int) -> tuple[int, int, int, bytes]:
        return tag, 3, channels, data.ljust(4, b"\0") if len(data) <= 4 else struct.pack("<I", offset)

    entries = [
        short(256, width),
        short(257, height),
        shorts(258, bits, after),
        short(259, 1),
        short(262, 2 if channels >= 3 else 1),
        (273, 4, 1, struct.pack("<I", 8)),
        short(277, channels),
        short(278, height),
        (279, 4, 1, struct.pack("<I", values.nbytes)),
        short(284, planes),
        shorts(339, formats, after + len(bits)),
        *tags,
    ]
    start = after + len(bits) + len(formats)
    directory = struct.pack("<H", len(entries))
    directory += b"".join(struct.pack("<HHI", *entry[:3]) + entry[3] for entry in sorted(entries)) + bytes(4)
    body = np.ascontiguousarray(values).astype(values.dtype.newbyteorder("<")).tobytes() + bits + formats
    return b"II*\0" + struct.pack("<I", start) + body + directory


def read(folder: Path, content: bytes, size: int = 48, page: int | None = 0) -> NDArray[np.uint8]:
    path = folder / "file.bin"
    path.write_bytes(content)
    return decode(path, size, "stretch", page)


def reason(folder: Path, content: bytes, size: int = 8) -> str:
    with pytest.raises(UnreadableImageError) as caught:
        read(folder, content, size)
    return str(caught.value)


# What is opened, and by what


PROGRAM = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n{} loop\n"


@pytest.mark.timeout(20)
@pytest.mark.skipif(shutil.which("true") is None, reason="needs a program to stand in for Ghostscript")
def test_a_postscript_program_is_never_run_whatever_its_name_says(tmp_path: Path) -> None:
    gs, ran = tmp_path / "gs", tmp_path / "ran"
    gs.write_text(f"#!/bin/sh\ntouch {ran}\nsleep 60\n")
    gs.chmod(0o755)
    (tmp_path / "innocent.jpg").write_bytes(PROGRAM)
    script = (
        f"from conr.data.decode import decode\ntry: decode({str(tmp_path / 'innocent.jpg')!r}, 8, 'crop')\n"
        "except Exception as error: print(error)"
    )
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert "PostScript program, which is never run" in done.stdout
    assert not ran.exists()


@pytest.mark.parametrize(
    ("head", "what"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n", "a Git LFS pointer.*git lfs pull"),
        (b"%PDF-1.7\n" + bytes(99), "PDF"),
        (b"\n<!DOCTYPE html><title>404</title>", "web page"),
        (b"<svg xmlns='x'/>", "SVG"),
        (bytes(999), "all zero"),
        (b"\0\0\0\x18ftypisom\0\0\2\0isomiso2" + bytes(99), "film"),
        (b"RIFF\0\0\0\0AVI LIST" + bytes(99), "film"),
        (b"PK\x03\x04" + bytes(99), "archive"),
        (b"Dear reader", "not an image file"),
    ],
)
def test_what_is_no_image_is_called_what_it_is(tmp_path: Path, head: bytes, what: str) -> None:
    with pytest.raises(UnreadableImageError, match=what):
        read(tmp_path, head)


def test_a_heic_picture_is_read_by_its_package_or_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200)
    monkeypatch.setattr(opening, "heif_is_read", lambda: False)
    assert "conr[heic]" in reason(tmp_path, broken)
    monkeypatch.undo()
    heif = pytest.importorskip("pillow_heif")
    assert reason(tmp_path, broken).startswith("broken")
    heif.from_pillow(Image.fromarray(smooth())).save(tmp_path / "photo.heic", quality=95)
    found = decode(tmp_path / "photo.heic", 48, "stretch")
    assert np.abs(found.astype(int) - smooth()).mean() < 6


# Bounds


@pytest.mark.timeout(20)
def test_a_jpeg_of_thousands_of_scans_is_refused_with_the_numbers(tmp_path: Path) -> None:
    content = encoded(Image.new("L", (640, 640), 128), "JPEG", progressive=True)
    scan = content[content.rindex(b"\xff\xda") : -2]
    assert reason(tmp_path, content[:-2] + 3000 * scan + content[-2:]).startswith(
        f"a JPEG of 3,006 scans, more than the limit of {MAX_SCANS}"
    )
    assert read(tmp_path, content[:-2] + 20 * scan + content[-2:], 8).min() > 120


MEMORY = """
import resource, sys, warnings
from conr.data.decode import decode
warnings.simplefilter("ignore")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
decode(sys.argv[1], 8, "crop")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.parametrize("color", [False, True])
def test_a_small_file_of_many_pixels_takes_little_more_memory_than_its_pixels(tmp_path: Path, color: bool) -> None:
    side = 6000
    compressor = zlib.compressobj(1)
    rows = (
        b"".join(compressor.compress(bytes((6 if color else 2) * side + 1)) for _ in range(side)) + compressor.flush()
    )
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 16, 2 if color else 0, 0, 0, 0))
    path = tmp_path / "image.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", rows) + chunk(b"IEND", b""))
    done = subprocess.run([sys.executable, "-c", MEMORY, str(path)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < (8 if color else 2) * side**2 + 2**28


@pytest.mark.filterwarnings("ignore:Image size")
def test_an_image_beyond_the_limits_is_refused_with_its_numbers_and_the_way_out(tmp_path: Path) -> None:
    too_many = png(20_000, 20_000, 8, 0, b"")
    assert (
        reason(tmp_path, too_many) == "400,000,000 pixels are more than the limit of 178,956,970; save a smaller copy"
    )
    too_large = png(12_000, 12_000, 16, 2, b"")
    assert "take 1,099 MiB of memory, more than 1,024 MiB; save a smaller copy" in reason(tmp_path, too_large)


def test_a_large_image_has_the_colors_of_a_small_copy(tmp_path: Path) -> None:
    large = Image.fromarray(smooth()).resize((4200, 4200), Image.Resampling.BICUBIC)
    expected = np.asarray(large.resize((16, 16), Image.Resampling.BICUBIC)).astype(int)
    for content in (encoded(large, "BMP"), encoded(large.convert("RGBA"), "TIFF")):
        assert np.abs(read(tmp_path, content, 16) - expected).mean() < 3


@pytest.mark.parametrize("side", [333, 600, 1000])
def test_a_jpeg_2000_is_decoded_only_as_far_as_needed(tmp_path: Path, side: int) -> None:
    image = Image.fromarray(smooth(side, side + 24))
    found = read(tmp_path, encoded(image, "JPEG2000"), 16)
    expected = np.asarray(image.resize((16, 16), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(found - expected).mean() < 8


# Metadata


@pytest.mark.parametrize(
    "extra",
    [
        chunk(b"iCCP", b"ICC\0\0" + zlib.compress(bytes(2_000_000))),
        chunk(b"zTXt", b"text\0\0" + zlib.compress(bytes(2_000_000))),
        chunk(b"iTXt", b"text\0\1\0\0\0" + zlib.compress(bytes(2_000_000))),
        b"".join(chunk(b"zTXt", b"text\0\0" + zlib.compress(bytes(1_000_000))) for _ in range(70)),
    ],
)
def test_metadata_of_a_png_never_cost_its_pixels(tmp_path: Path, extra: bytes) -> None:
    pixels = smooth()
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    np.testing.assert_array_equal(read(tmp_path, png(48, 48, 8, 2, rows, extra)), pixels)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_a_jpeg_without_its_end_is_read_and_a_truncated_one_is_not(tmp_path: Path, options: dict[str, object]) -> None:
    content = encoded(Image.fromarray(smooth(90, 130)), "JPEG", **options)
    whole = read(tmp_path, content)
    for missing in (1, 2):
        np.testing.assert_array_equal(read(tmp_path, content[:-missing]), whole)
    for missing in (8, 50, 500, len(content) // 2):
        assert reason(tmp_path, content[:-missing]) == "broken: the file ends too early (truncated)"


def test_libraries_write_nothing_to_the_console(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    damaged = bytearray(encoded(Image.fromarray(smooth()), "TIFF", compression="tiff_lzw"))
    damaged[600:700] = b"\xff" * 100
    assert reason(tmp_path, bytes(damaged)).startswith("broken")
    assert capfd.readouterr() == ("", "")


# Ranges


def gray(values: NDArray[np.generic], kind: str) -> bytes:
    return tiff(values) if kind == "tiff" else png16(values.astype(np.uint16))


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_one_hot_pixel_does_not_blacken_the_rest(tmp_path: Path, kind: str) -> None:
    values = (1000 + 8 * smooth()[:, :, 0].astype(np.uint16)).astype(np.uint16)
    plain = read(tmp_path, gray(values, kind)).astype(int)
    values[7, 9] = 65535
    hot = read(tmp_path, gray(values, kind))
    assert hot[7, 9].min() == 255
    assert (
        np.abs(np.delete(hot.reshape(-1, 3), 7 * 48 + 9, 0) - np.delete(plain.reshape(-1, 3), 7 * 48 + 9, 0)).max() <= 3
    )
    assert plain.min() == 0
    assert plain.max() == 255


@pytest.mark.parametrize(
    ("kind", "channels"), [("png", 2), *((kind, count) for kind in ("png", "tiff", "compressed") for count in (3, 4))]
)
def test_twelve_bits_in_sixteen_fill_the_range_in_gray_and_in_color(tmp_path: Path, kind: str, channels: int) -> None:
    values = smooth().astype(np.uint16) * 16
    if channels == 4:
        values = np.concatenate([values, np.full((48, 48, 1), 65535, np.uint16)], axis=2)
    if channels == 2:
        values = np.stack([values[:, :, 0], np.full((48, 48), 65535, np.uint16)], axis=2)
    if kind == "png":
        content = png16(values)
    else:
        content = tiff(values, *([(338, 3, 1, struct.pack("<HH", 2, 0))] if channels == 4 else []))
        if kind == "compressed":
            content = compressed(content, values)
    found = read(tmp_path, content).astype(float)
    expected = (values if channels != 2 else np.repeat(values[:, :, :1], 3, 2))[:, :, :3].astype(float)
    low, high = np.percentile(expected, (0.1, 99.9), method="nearest")
    np.testing.assert_allclose(found, ((expected - low) / (high - low) * 255).clip(0, 255), atol=1)


def compressed(content: bytes, values: NDArray[np.uint16]) -> bytes:
    """The same TIFF with its strip compressed by Deflate."""
    data = zlib.compress(values.astype("<u2").tobytes())
    assert len(data) <= values.nbytes
    changed = bytearray(content)
    changed[8 : 8 + len(data)] = data
    start = int.from_bytes(content[4:8], "little")
    for entry in range(start + 2, start + 2 + 12 * int.from_bytes(content[start : start + 2], "little"), 12):
        tag = int.from_bytes(content[entry : entry + 2], "little")
        if tag == 259:
            changed[entry + 8 : entry + 10] = (8).to_bytes(2, "little")
        if tag == 279:
            changed[entry + 8 : entry + 12] = len(data).to_bytes(4, "little")
    return bytes(changed)


def test_eight_bits_are_never_stretched(tmp_path: Path) -> None:
    values = (100 + smooth() // 16).astype(np.uint8)
    np.testing.assert_array_equal(read(tmp_path, tiff(values)), values)


def test_pixels_without_data_do_not_count(tmp_path: Path) -> None:
    heights = (1080 + smooth()[:, :, 0].astype(np.float32)).astype(np.float32)
    heights[:8] = -9999
    tag = GDAL_NO_DATA, 2, 4, b"-9e3"  # four characters stand in the entry itself
    heights[:8] = -9e3
    found = read(tmp_path, tiff(heights, tag))[:, :, 0]
    assert found[:8].max() == 0
    assert found[8:].std() > 40
    assert read(tmp_path, tiff(heights))[8:, :, 0].std() < 10, "the tag makes the difference"


# Bands


def test_near_infrared_is_no_transparency(tmp_path: Path) -> None:
    pixels = np.concatenate([smooth(), smooth(seed=1)[:, :, :1]], axis=2)
    content = tiff(pixels, (338, 3, 1, struct.pack("<HH", 2, 0)))
    with Image.open(io.BytesIO(content)) as image:
        assert image.mode == "RGBA"
    np.testing.assert_array_equal(read(tmp_path, content), smooth())


@pytest.mark.parametrize(
    "values",
    [
        np.repeat(smooth().astype(np.uint16) * 16, 5, axis=2)[:, :, [0, 5, 10, *range(10)]],
        smooth().astype(np.float32) / 255,
        smooth().astype(np.float64),
    ],
)
def test_tiffs_of_many_bands_or_of_floats_are_read_by_a_package(tmp_path: Path, values: NDArray[np.generic]) -> None:
    pytest.importorskip("tifffile")
    found = read(tmp_path, tiff(values)).astype(float)
    low, high = np.percentile(smooth(), (0.1, 99.9), method="nearest")
    np.testing.assert_allclose(found, ((smooth() - low) / (high - low) * 255).clip(0, 255), atol=1.5)


def test_without_the_package_the_reason_says_what_the_file_is_and_what_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tifffile", None)
    thirteen = tiff(np.zeros((6, 6, 13), np.uint16))
    assert (
        reason(tmp_path, thirteen) == "a TIFF of 13 bands of 16-bit whole numbers; pip install 'conr[tiff]' to read it"
    )
    floats = tiff(np.zeros((6, 6, 3), np.float32))
    assert reason(tmp_path, floats) == "a TIFF of 3 bands of 32-bit floats; pip install 'conr[tiff]' to read it"


# Pages


def stack() -> list[NDArray[np.uint16]]:
    return [np.where(np.arange(64).reshape(8, 8) % 4 == page, 1000 + page, 0).astype(np.uint16) for page in range(4)]


def test_of_a_stack_the_first_any_or_the_maximum_counts(tmp_path: Path) -> None:
    pages = [Image.fromarray(page) for page in stack()]
    content = encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    for page, values in enumerate(stack()):
        np.testing.assert_array_equal(read(tmp_path, content, 8, page)[:, :, 0], np.where(values > 0, 255, 0))
    highest = read(tmp_path, content, 8, None)[:, :, 0].reshape(16, 4)
    assert highest.min() == 0
    assert (np.diff(highest.astype(int), axis=1) > 50).all()
    assert page_count(tmp_path / "file.bin") == 4


def test_frames_of_animations_are_counted(tmp_path: Path) -> None:
    frames = [Image.fromarray(smooth(seed=seed)) for seed in range(3)]
    for kind in ("GIF", "WEBP"):
        (tmp_path / kind).write_bytes(encoded(frames[0], kind, save_all=True, append_images=frames[1:]))
        assert page_count(tmp_path / kind) == 3
        (tmp_path / kind).write_bytes(encoded(frames[0], kind))
        assert page_count(tmp_path / kind) == 1
    (tmp_path / "text").write_text("GIF89a")
    assert page_count(tmp_path / "text") == 1


# Transparency


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_white_shapes_on_transparency_stay_visible(tmp_path: Path, kind: str) -> None:
    glyph = np.zeros((48, 48, 4), np.uint8)
    glyph[:, :, :3] = 255
    glyph[10:30, 15:20, 3] = 255
    options = {"lossless": True} if kind == "WEBP" else {}
    light = read(tmp_path, encoded(Image.fromarray(glyph), kind, **options))
    assert (light[10:30, 15:20].min(), light[40, 40].max()) == (255, 0)
    glyph[:, :, :3] = 20
    dark = read(tmp_path, encoded(Image.fromarray(glyph), kind, **options))
    assert (dark[10:30, 15:20].max(), dark[40, 40].min()) == (20, 255)
