"""Image files of every kind become square RGB arrays; damaged ones are refused with a reason, never a crash."""

import io
import os
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps

from conr.data.decode import decode
from conr.data.formats import SUFFIXES_OF
from conr.data.opening import UnreadableImageError

FORMATS = {suffix: kind for kind, suffixes in SUFFIXES_OF.items() for suffix in suffixes if kind != "HEIF"}
ORIENTATION = 0x0112
FEW_PIXELS = 64 * 64  # so that damaged files that claim to be huge cost no time


def noise(height: int = 12, width: int = 12, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def flat(color: tuple[int, int, int], size: int = 16) -> Image.Image:
    return Image.new("RGB", (size, size), color)


def saved(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, FORMATS[path.suffix.lower()], **options)  # type: ignore[arg-type]
    return path


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


# Kinds of files


@pytest.mark.parametrize("suffix", [*FORMATS, *(suffix.upper() for suffix in FORMATS)])
def test_every_suffix_is_read(tmp_path: Path, suffix: str) -> None:
    path = saved(tmp_path / f"image{suffix}", flat((200, 100, 50)))
    pixels = decode(path, 8, "crop")
    assert pixels.shape == (8, 8, 3)
    assert pixels.dtype == np.uint8
    np.testing.assert_allclose(pixels, np.broadcast_to([200, 100, 50], (8, 8, 3)), atol=3)


@pytest.mark.parametrize(("suffix", "options"), [(".png", {}), (".bmp", {}), (".tif", {}), (".webp", {"lossless": 1})])
@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_pixels_of_the_right_size_are_untouched(
    tmp_path: Path, suffix: str, options: dict[str, object], fit: str
) -> None:
    pixels = noise()
    path = saved(tmp_path / f"image{suffix}", Image.fromarray(pixels), **options)
    np.testing.assert_array_equal(decode(path, 12, fit), pixels)


def test_a_file_may_hold_another_format_than_its_name_says(tmp_path: Path) -> None:
    pixels = noise()
    path = tmp_path / "really-a-png.jpg"
    path.write_bytes(encoded(Image.fromarray(pixels), "PNG"))
    np.testing.assert_array_equal(decode(path, 12, "crop"), pixels)


def test_a_large_jpeg_is_shrunk_to_its_own_colors(tmp_path: Path) -> None:
    left_right = Image.new("RGB", (512, 512), (250, 10, 10))
    left_right.paste((10, 10, 250), (256, 0, 512, 512))
    pixels = decode(saved(tmp_path / "image.jpg", left_right), 8, "crop")
    np.testing.assert_allclose(pixels[:, :3], np.broadcast_to([250, 10, 10], (8, 3, 3)), atol=12)
    np.testing.assert_allclose(pixels[:, 5:], np.broadcast_to([10, 10, 250], (8, 3, 3)), atol=12)


@pytest.mark.parametrize("quality", [30, 75, 100])
@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"subsampling": 0}, {"optimize": True}, {"comment": "!"}]
)
@pytest.mark.parametrize("shape", [(32, 32), (50, 33), (127, 200), (256, 256), (257, 256), (8, 900)])
def test_a_small_jpeg_has_the_pixels_that_pillow_gives(
    tmp_path: Path, shape: tuple[int, int], options: dict[str, object], quality: int
) -> None:
    smooth = Image.fromarray(noise(8, 8)).resize(shape, Image.Resampling.BICUBIC)
    path = saved(tmp_path / "image.jpg", smooth, quality=quality, **options)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.fit(image, (70, 70), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(decode(path, 70, "crop"), expected)


def test_small_jpegs_are_not_opened_by_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "image.jpg", flat((200, 100, 50)))
    monkeypatch.setattr(Image, "open", None)
    np.testing.assert_allclose(decode(path, 16, "crop"), np.broadcast_to([200, 100, 50], (16, 16, 3)), atol=3)


# Modes


@pytest.mark.parametrize("mode", ["L", "LA"])
def test_gray_becomes_three_equal_channels(tmp_path: Path, mode: str) -> None:
    gray = noise()[:, :, 0]
    path = saved(tmp_path / "image.png", Image.fromarray(gray).convert(mode))
    np.testing.assert_array_equal(decode(path, 12, "crop"), np.repeat(gray[:, :, None], 3, axis=2))


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
def test_transparency_is_laid_on_white(tmp_path: Path, suffix: str) -> None:
    pixels = np.zeros((8, 8, 4), dtype=np.uint8)
    pixels[:, :4] = (10, 20, 30, 255)
    pixels[:4, 4:] = (0, 0, 0, 0)
    pixels[4:, 4:] = (0, 0, 0, 51)  # a fifth of black on four fifths of white
    options = {"lossless": True} if suffix == ".webp" else {}
    found = decode(saved(tmp_path / f"image{suffix}", Image.fromarray(pixels, "RGBA"), **options), 8, "crop")
    expected = np.empty((8, 8, 3), dtype=np.uint8)
    expected[:, :4], expected[:4, 4:], expected[4:, 4:] = (10, 20, 30), 255, 204
    np.testing.assert_array_equal(found, expected)


def test_transparent_gray_is_laid_on_white(tmp_path: Path) -> None:
    image = Image.merge("LA", (Image.new("L", (8, 8), 40), Image.new("L", (8, 8), 0)))
    assert decode(saved(tmp_path / "image.png", image), 8, "crop").min() == 255


def test_a_palette_gives_its_colors_and_its_transparent_entry_white(tmp_path: Path) -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.paste(0, (0, 0, 4, 8))
    expected = np.empty((8, 8, 3), dtype=np.uint8)
    expected[:, :4], expected[:, 4:] = (255, 0, 0), (0, 255, 0)
    np.testing.assert_array_equal(decode(saved(tmp_path / "plain.png", image), 8, "crop"), expected)
    expected[:, :4] = 255
    path = saved(tmp_path / "transparent.png", image, transparency=0)
    np.testing.assert_array_equal(decode(path, 8, "crop"), expected)


def test_a_cmyk_jpeg_keeps_its_colors(tmp_path: Path) -> None:
    path = saved(tmp_path / "image.jpg", flat((200, 100, 50)).convert("CMYK"), quality=95)
    with Image.open(path) as image:
        assert image.mode == "CMYK"
    np.testing.assert_allclose(decode(path, 8, "crop"), np.broadcast_to([200, 100, 50], (8, 8, 3)), atol=4)


def test_bilevel_images_become_black_and_white(tmp_path: Path) -> None:
    bits = noise()[:, :, 0] > 127
    path = saved(tmp_path / "image.tif", Image.fromarray(bits))
    with Image.open(path) as image:
        assert image.mode == "1"
    np.testing.assert_array_equal(decode(path, 12, "crop"), np.repeat(bits[:, :, None], 3, axis=2) * np.uint8(255))


@pytest.mark.parametrize("suffix", [".tif", ".png"])
def test_sixteen_bits_are_stretched_between_minimum_and_maximum(tmp_path: Path, suffix: str) -> None:
    values = np.arange(1000, 1000 + 4 * 16, 4, dtype=np.uint16).reshape(4, 4)
    path = saved(tmp_path / f"image{suffix}", Image.fromarray(values))
    with Image.open(path) as image:
        assert image.mode == "I;16"
    expected = (np.arange(16) * 17).reshape(4, 4)  # 255 / 15 = 17
    np.testing.assert_array_equal(decode(path, 4, "crop"), np.repeat(expected[:, :, None], 3, axis=2))


def test_floats_are_stretched_between_minimum_and_maximum(tmp_path: Path) -> None:
    values = np.linspace(-1, 1, 16, dtype=np.float32).reshape(4, 4)
    path = saved(tmp_path / "image.tif", Image.fromarray(values))
    np.testing.assert_array_equal(decode(path, 4, "crop")[:, :, 1], (np.arange(16) * 17).reshape(4, 4))


def test_values_that_are_not_finite_do_not_spoil_the_others(tmp_path: Path) -> None:
    values = np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4)
    values[0] = (np.nan, -np.inf, np.inf, 0)
    pixels = decode(saved(tmp_path / "image.tif", Image.fromarray(values)), 4, "crop")[:, :, 0]
    assert pixels[0].tolist() == [0, 0, 255, 0]
    np.testing.assert_array_equal(pixels[1:], (np.arange(4, 16) * 17).reshape(3, 4))


def test_an_image_of_nothing_but_nan_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "image.tif", Image.fromarray(np.full((4, 4), np.nan, dtype=np.float32)))
    with pytest.raises(UnreadableImageError, match="no finite value"):
        decode(path, 4, "crop")


def test_sixteen_bits_of_one_value_are_black(tmp_path: Path) -> None:
    path = saved(tmp_path / "image.tif", Image.fromarray(np.full((4, 4), 700, dtype=np.uint16)))
    assert decode(path, 4, "crop").max() == 0


def test_of_several_frames_the_first_counts(tmp_path: Path) -> None:
    frames = [Image.fromarray(noise(seed=seed)) for seed in range(3)]
    path = saved(tmp_path / "image.tif", frames[0], save_all=True, append_images=frames[1:])
    with Image.open(path) as image:
        assert image.n_frames == 3
    np.testing.assert_array_equal(decode(path, 12, "crop"), noise(seed=0))


# Orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
def test_orientation_is_undone_as_numpy_would(tmp_path: Path, suffix: str, orientation: int) -> None:
    upright = np.zeros((16, 16, 3), dtype=np.uint8)
    upright[:8, :8], upright[:8, 8:], upright[8:, :8] = (240, 0, 0), (0, 240, 0), (0, 0, 240)
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image = Image.fromarray(np.ascontiguousarray(stored))
    found = decode(saved(tmp_path / f"image{suffix}", image, exif=exif), 16, "crop")
    for y in (2, 13):
        for x in (2, 13):
            np.testing.assert_allclose(found[y, x], upright[y, x], atol=40)


def exif_of(*entries: tuple[int, int, int, bytes]) -> bytes:
    """An EXIF block of raw (tag, type, count, value) entries, as an odd camera may write them."""
    body = b"".join(struct.pack("<HHI", tag, kind, count) + value for tag, kind, count, value in entries)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + body + bytes(4)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_odd_tags_beside_the_orientation_do_no_harm(tmp_path: Path, suffix: str) -> None:
    image = Image.new("RGB", (16, 16), (240, 0, 0))
    image.paste((0, 0, 240), (0, 8, 16, 16))
    # XResolution should be a rational number; here it is the text "abc", which Pillow cannot write back.
    odd = exif_of((ORIENTATION, 3, 1, struct.pack("<HH", 3, 0)), (0x011A, 2, 4, b"abc\0"))
    pixels = decode(saved(tmp_path / f"image{suffix}", image, exif=odd), 16, "crop")
    np.testing.assert_allclose(pixels[2, 8], (0, 0, 240), atol=40)
    np.testing.assert_allclose(pixels[13, 8], (240, 0, 0), atol=40)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_damaged_metadata_do_not_cost_the_pixels(tmp_path: Path, suffix: str) -> None:
    path = saved(tmp_path / f"image{suffix}", flat((200, 100, 50)), exif=b"Exif\0\0garbage!")
    np.testing.assert_allclose(decode(path, 8, "crop"), np.broadcast_to([200, 100, 50], (8, 8, 3)), atol=3)


# Fit


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    """24 × 8 pixels: a red, a green and a blue square."""
    pixels = np.zeros((8, 24, 3), dtype=np.uint8)
    for third in range(3):
        pixels[:, 8 * third : 8 * third + 8, third] = 255
    return saved(tmp_path / "wide.png", Image.fromarray(pixels))


def test_crop_cuts_the_middle_square(wide: Path) -> None:
    np.testing.assert_array_equal(decode(wide, 8, "crop"), np.broadcast_to([0, 255, 0], (8, 8, 3)))


def test_pad_adds_black_above_and_below(wide: Path) -> None:
    pixels = decode(wide, 24, "pad")
    assert pixels[:8].max() == 0
    assert pixels[16:].max() == 0
    with Image.open(wide) as image:
        np.testing.assert_array_equal(pixels[8:16], np.asarray(image))


def test_stretch_keeps_all_three_squares(wide: Path) -> None:
    pixels = decode(wide, 24, "stretch")
    for third in range(3):
        color = [255 if channel == third else 0 for channel in range(3)]
        np.testing.assert_array_equal(pixels[:, 8 * third + 3 : 8 * third + 5], np.broadcast_to(color, (24, 2, 3)))


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("shape", [(1, 500), (500, 1)])
def test_the_thinnest_image_leaves_a_trace(tmp_path: Path, shape: tuple[int, int], fit: str) -> None:
    path = saved(tmp_path / "thin.png", Image.new("RGB", shape, (255, 255, 255)))
    pixels = decode(path, 8, fit)
    assert pixels.shape == (8, 8, 3)
    assert pixels.max() == 255


# Damage


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    path.touch()
    with pytest.raises(UnreadableImageError, match=r"^empty file$"):
        decode(path, 8, "crop")


@pytest.mark.timeout(20)
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    os.mkfifo(path)
    with pytest.raises(UnreadableImageError, match=r"^not a regular file$"):
        decode(path, 8, "crop")


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp", ".tif"])
def test_half_a_file_is_refused_as_broken(tmp_path: Path, suffix: str) -> None:
    path = saved(tmp_path / f"image{suffix}", Image.fromarray(noise(64, 64)))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UnreadableImageError, match=r"broken: \w+|not an image"):
        decode(path, 8, "crop")


def test_text_is_no_image(tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    path.write_text("Dear reader, this is not a picture.\n" * 20)
    with pytest.raises(UnreadableImageError, match="not an image"):
        decode(path, 8, "crop")


def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "image.png", flat((0, 0, 0), size=64))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UnreadableImageError, match=r"^4,096 pixels are more than the limit of 178,956,970; save"):
        decode(path, 8, "crop")


def test_a_file_that_has_gone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImageError, match=r"broken: .*No such file"):
        decode(tmp_path / "image.png", 8, "crop")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "image.png", flat((0, 0, 0)))
    path.chmod(0)
    with pytest.raises(UnreadableImageError, match="Permission denied"):
        decode(path, 8, "crop")


def test_a_link_to_nowhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    path.symlink_to(tmp_path / "gone.png")
    with pytest.raises(UnreadableImageError, match="No such file"):
        decode(path, 8, "crop")


def with_float_strip_offset(tiff: bytes) -> bytes:
    """Change the type of the StripOffsets (tag 273) of a little-endian TIFF to float."""
    start = int.from_bytes(tiff[4:8], "little")
    count = int.from_bytes(tiff[start : start + 2], "little")
    changed = bytearray(tiff)
    for entry in range(start + 2, start + 2 + 12 * count, 12):
        if int.from_bytes(tiff[entry : entry + 2], "little") == 273:
            changed[entry + 2 : entry + 4] = (11).to_bytes(2, "little")
    assert changed != tiff
    return bytes(changed)


TIFF = encoded(Image.fromarray(noise()), "TIFF")
ROTATED = Image.Exif()
ROTATED[ORIENTATION] = 6
WHOLE = [
    encoded(Image.fromarray(noise()), "JPEG", exif=ROTATED),
    encoded(Image.fromarray(noise()[:, :, 0]), "JPEG", progressive=True),
    encoded(Image.fromarray(noise()), "PNG", exif=ROTATED),
    encoded(Image.fromarray(noise()).convert("P"), "PNG", transparency=3),
    encoded(Image.fromarray(noise()), "PNG", save_all=True, append_images=[Image.fromarray(noise(seed=1))]),
    encoded(Image.fromarray(noise()), "WEBP", exif=ROTATED),
    encoded(Image.fromarray(noise()), "BMP"),
    encoded(Image.fromarray(noise()).convert("P"), "BMP"),
    TIFF,
    encoded(Image.fromarray(noise()), "TIFF", compression="tiff_lzw"),
    encoded(Image.fromarray(noise()), "TIFF", compression="tiff_adobe_deflate"),
    encoded(Image.fromarray(noise().astype(np.float32)[:, :, 0]), "TIFF"),
]


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damaged") / "image.bin"


def outcome(path: Path, fit: str) -> NDArray[np.uint8] | str:
    """The pixels, or the reason why there are none; any other exception passes through."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr(Image, "MAX_IMAGE_PIXELS", FEW_PIXELS)
        try:
            return decode(path, 8, fit)
        except UnreadableImageError as error:
            return str(error)


def decodes_or_is_refused(scratch: Path, content: bytes, fit: str = "crop") -> None:
    """What packing relies on: nothing but an array or a reason comes out of any bytes."""
    scratch.write_bytes(content)
    found = outcome(scratch, fit)
    if isinstance(found, str):
        assert found.removeprefix("broken: ").strip()
    else:
        assert found.shape == (8, 8, 3)
        assert found.dtype == np.uint8


@settings(max_examples=200, deadline=None, derandomize=True)
@given(content=st.binary(max_size=400))
@example(content=b"II*\0" + bytes(60))
@example(content=b"\x89PNG\r\n\x1a\n" + bytes(60))
def test_random_bytes_decode_or_are_refused(scratch: Path, content: bytes) -> None:
    decodes_or_is_refused(scratch, content)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(whole=st.sampled_from(WHOLE), share=st.floats(0, 1))
def test_truncated_files_decode_or_are_refused(scratch: Path, whole: bytes, share: float) -> None:
    decodes_or_is_refused(scratch, whole[: int(share * len(whole))])


FLIP = st.tuples(
    st.floats(0, 1, exclude_max=True),
    st.sampled_from(["anywhere", "head", "tail"]),
    st.one_of(st.sampled_from([0, 1, 127, 128, 255]), st.integers(0, 255)),
)


@settings(max_examples=600, deadline=None, derandomize=True)
@given(
    whole=st.sampled_from(WHOLE),
    flips=st.lists(FLIP, min_size=1, max_size=8),
    fit=st.sampled_from(["crop", "pad", "stretch"]),
)
@example(whole=with_float_strip_offset(TIFF), flips=[], fit="crop")
def test_files_with_wrong_bytes_decode_or_are_refused(
    scratch: Path, whole: bytes, flips: list[tuple[float, str, int]], fit: str
) -> None:
    damaged = bytearray(whole)
    for share, where, value in flips:
        reach = len(whole) if where == "anywhere" else min(len(whole), 160)
        damaged[int(share * reach) + (len(whole) - reach if where == "tail" else 0)] = value
    decodes_or_is_refused(scratch, bytes(damaged), fit)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    whole=st.sampled_from(["JPEG", "PNG", "WEBP"]),
    orientation=st.integers(0, 10),
    odd=st.lists(
        st.tuples(
            st.sampled_from([ORIENTATION, 0x010E, 0x011A, 0x0132, 0x8769, 0x8825, 0xA005, 0x927C, 0x0111]),
            st.integers(0, 17),
            st.sampled_from([0, 1, 2, 4, 8]),
            st.binary(min_size=4, max_size=4),
        ),
        max_size=4,
    ),
)
def test_no_metadata_make_a_good_image_unreadable(
    scratch: Path, whole: str, orientation: int, odd: list[tuple[int, int, int, bytes]]
) -> None:
    exif = exif_of((ORIENTATION, 3, 1, struct.pack("<HH", orientation, 0)), *odd)
    scratch.write_bytes(encoded(flat((200, 100, 50)), whole, exif=exif))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pixels = decode(scratch, 8, "crop")
    np.testing.assert_allclose(pixels, np.broadcast_to([200, 100, 50], (8, 8, 3)), atol=3)
