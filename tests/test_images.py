"""What an image file brings along is settled when it is read; what is no usable image is refused in one line."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from expr_lib.files import open_regular, replace_file
from expr_lib.images import FORMATS, read_image, square, write_png

QUADRANTS = ((220, 40, 40), (40, 200, 60), (40, 60, 210), (240, 230, 90))  # top left, top right, bottom left, ...


def quadrants(height: int = 48, width: int = 64) -> np.ndarray:
    """A picture in which up, down, left and right can be told apart, (H, W, 3) uint8."""
    image = np.zeros((height, width, 3), np.uint8)
    h, w = height // 2, width // 2
    image[:h, :w], image[:h, w:], image[h:, :w], image[h:, w:] = QUADRANTS
    return image


def close(found: np.ndarray, expected: np.ndarray, tolerance: int = 0) -> bool:
    return found.shape == expected.shape and bool((abs(found.astype(int) - expected.astype(int)) <= tolerance).all())


def save(path, image: Image.Image, **options):
    image.save(path, **options)
    return path


# -- what is read --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tiff", "a.gif", "a.webp"])
def test_lossless_formats_give_back_the_pixels(tmp_path, name):
    path = save(tmp_path / name, Image.fromarray(quadrants()), **({"lossless": True} if name == "a.webp" else {}))
    assert close(read_image(path), quadrants())


def test_the_format_is_read_from_the_file_and_not_from_its_name(tmp_path):
    path = save(tmp_path / "really-a.jpg", Image.fromarray(quadrants()), format="PNG")
    assert close(read_image(path), quadrants())


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    upright = Image.fromarray(quadrants())
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "turned.png", stored, exif=exif)
    assert close(read_image(path), quadrants())


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_laid_on_white(tmp_path, mode):
    image = Image.new("RGBA", (32, 32), (10, 10, 10, 255))
    image.paste((10, 10, 10, 0), (0, 0, 16, 32))  # the left half is clear
    path = save(tmp_path / "clear.png", image.quantize() if mode == "P" else image.convert(mode))
    found = read_image(path)
    assert (found[:, :16] == 255).all() and (found[:, 16:] == 10).all()


def test_half_transparency_mixes_with_white(tmp_path):
    path = save(tmp_path / "half.png", Image.new("RGBA", (16, 16), (0, 0, 0, 128)))
    assert close(read_image(path), np.full((16, 16, 3), 127, np.uint8), 1)


def test_sixteen_bits_keep_their_brightness(tmp_path):
    ramp = np.linspace(0, 65535, 64).round().astype(np.uint16)[None].repeat(32, 0)
    expected = np.repeat((ramp / 257).round().astype(np.uint8)[..., None], 3, -1)
    for name in ("deep.png", "deep.tiff"):
        assert close(read_image(save(tmp_path / name, Image.fromarray(ramp))), expected), name


def test_gray_palette_bilevel_and_cmyk_become_rgb(tmp_path):
    gray = Image.fromarray(quadrants()).convert("L")
    assert close(read_image(save(tmp_path / "gray.png", gray)), np.array(gray.convert("RGB")))
    assert close(read_image(save(tmp_path / "few.png", Image.fromarray(quadrants()).quantize(8))), quadrants(), 2)
    assert set(np.unique(read_image(save(tmp_path / "bits.png", gray.convert("1"))))) <= {0, 255}
    cmyk = Image.fromarray(quadrants()).convert("CMYK")
    assert close(read_image(save(tmp_path / "press.tiff", cmyk)), quadrants(), 2)
    jpeg = read_image(save(tmp_path / "press.jpg", cmyk, quality=98))
    assert close(jpeg[4:20, 4:28], quadrants()[4:20, 4:28], 12)


def test_the_first_frame_of_an_animation_is_read(tmp_path):
    first, second = Image.new("RGB", (20, 20), (255, 0, 0)), Image.new("RGB", (20, 20), (0, 0, 255))
    path = save(tmp_path / "moving.gif", first, save_all=True, append_images=[second])
    assert (read_image(path) == (255, 0, 0)).all()


def test_twenty_megapixels_are_fine(tmp_path):
    path = save(tmp_path / "large.jpg", Image.fromarray(quadrants(4000, 5000)), quality=60)
    small = square(read_image(path), 64)
    assert small.shape == (64, 64, 3) and close(small[8:24, 8:24], quadrants(64, 64)[8:24, 8:24], 6)


# -- what is refused -----------------------------------------------------------------------------------------------


def refused(path) -> str:
    """The message, which must be one line that starts with the file."""
    with pytest.raises((ValueError, OSError)) as caught:
        read_image(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    return message


def test_no_such_file_and_a_folder(tmp_path):
    assert "not found" in refused(tmp_path / "nobody.png")
    assert "found a folder" in refused(tmp_path)


def test_text_noise_and_emptiness_by_the_name_of_png(tmp_path):
    heic = b"\0\0\0\x18ftypheic" + bytes(40)
    tiff = b"II+\0\x08\0\0\0" + b"\xff" * 8  # whose directory would be beyond the end of any file
    known = [(b"hello\n", "found text"), (bytes(range(256)), "an unknown format"), (b"", "empty file"), (heic, "HEIC")]
    known += [(tiff, "damaged image")]
    for content, expected in known:
        (tmp_path / "not.png").write_bytes(content)
        assert expected in (told := refused(tmp_path / "not.png")) and "Errno" not in told


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_truncated_file(tmp_path, form, share):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(buffer, format=form)
    (tmp_path / "cut").write_bytes(buffer.getvalue()[: int(len(buffer.getvalue()) * share)])
    refused(tmp_path / "cut")


@pytest.mark.parametrize("size", [(1, 1), (15, 200), (200, 15)])
def test_too_small_for_a_face(tmp_path, size):
    path = save(tmp_path / "tiny.png", Image.new("RGB", size))
    assert f"found {size[0]} x {size[1]} pixels, expected at least 16 x 16" in refused(path)


@pytest.mark.parametrize("side", [12_000, 40_000])
def test_a_decompression_bomb_is_refused_before_it_unfolds(tmp_path, side):
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(bomb)
    assert "100,000,000" in refused(tmp_path / "bomb.png")


def test_floating_point_pixels_are_refused(tmp_path):
    path = save(tmp_path / "hdr.tiff", Image.fromarray(np.zeros((20, 20), np.float32)))
    assert "floating-point" in refused(path)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 3000), st.integers(0, 255))
def test_any_damage_to_a_file_ends_in_an_image_or_in_one_line(tmp_path_factory, where, byte):
    buffer = io.BytesIO()
    Image.fromarray(quadrants()).save(buffer, format="JPEG", quality=95)
    content = bytearray(buffer.getvalue())
    content[where % len(content)] = byte
    path = tmp_path_factory.mktemp("damaged") / "a.jpg"
    path.write_bytes(content)
    try:
        assert read_image(path).dtype == np.uint8
    except ValueError as error:
        assert str(error).startswith(f"{path}: ") and "\n" not in str(error)


# -- square, write -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(64, 64), (100, 64), (64, 301), (16, 17), (640, 480)])
def test_the_square_is_centred_and_of_the_size_asked_for(height, width):
    small = square(quadrants(height, width), 64)
    assert small.shape == (64, 64, 3) and small.dtype == np.uint8
    for (y, x), color in zip(((8, 8), (8, 56), (56, 8), (56, 56)), QUADRANTS, strict=True):
        assert abs(small[y, x].astype(int) - color).max() <= 3


def test_shrinking_does_not_alias():
    stripes = np.zeros((512, 512, 3), np.uint8)
    stripes[:, ::2] = 255  # one pixel black, one white: gray from afar
    assert abs(square(stripes, 64).astype(int) - 128).max() < 12


def test_png_is_written_whole_and_exactly(tmp_path):
    path = write_png(tmp_path / "new" / "folder" / "out.png", quadrants())
    assert close(read_image(path), quadrants())
    assert [p.name for p in path.parent.iterdir()] == ["out.png"]  # nothing temporary is left


def test_a_name_that_cannot_be_a_png_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"found the ending '.jpg', expected '.png'"):
        write_png(tmp_path / "out.jpg", quadrants())
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(IsADirectoryError, match="found a folder"):
        write_png(tmp_path / "folder.png", quadrants())


# -- what hostile files and names do -------------------------------------------------------------------------------


def test_postscript_by_the_name_of_png_starts_no_program(tmp_path, monkeypatch):
    Image.fromarray(quadrants()).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")

    def started(*arguments, **options):
        raise AssertionError(f"a program was started: {arguments}")

    for module, name in ((subprocess, "Popen"), (os, "system"), (os, "posix_spawn"), (os, "fork")):
        monkeypatch.setattr(module, name, started)
    assert "expected an image (PNG, JPEG" in refused(tmp_path / "a.png")


def test_only_the_formats_that_are_named_are_opened(tmp_path):
    picture = Image.fromarray(quadrants())
    for form in set(Image.registered_extensions().values()) - {*FORMATS, "MPO", "DIB", "IM", "HEIF"}:
        buffer = io.BytesIO()
        try:
            picture.save(buffer, format=form)
        except (OSError, ValueError, KeyError):
            continue  # cannot be written here
        (tmp_path / "a.png").write_bytes(buffer.getvalue())
        assert "expected an image" in refused(tmp_path / "a.png"), form
    picture.save(tmp_path / "phone.jpg", format="MPO", save_all=True, append_images=[picture], quality=95)
    assert close(read_image(tmp_path / "phone.jpg")[4:20, 4:28], quadrants()[4:20, 4:28], 4)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with a name")
def test_a_pipe_or_a_device_by_the_name_of_an_image_keeps_nobody_waiting(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to("/dev/zero")
    for name in ("a.png", "b.png"):
        assert "expected an image file" in refused(tmp_path / name)
    for name in ("a.png", "b.png"):
        with pytest.raises(ValueError, match="expected a regular file"):
            open_regular(tmp_path / name)
    (tmp_path / "c.png").symlink_to(__file__)
    open_regular(tmp_path / "c.png").close()
    with pytest.raises(ValueError, match="found a symbolic link"):
        open_regular(tmp_path / "c.png", follow=False)


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits", "group4"])
def test_a_damaged_tiff_is_one_line(tmp_path, capfd, compression):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    path = save(
        tmp_path / "a.tif", picture.convert("1") if compression == "group4" else picture, compression=compression
    )
    whole = path.read_bytes()
    for share in (0.1, 0.5, 0.9):
        scratched = bytearray(whole)
        scratched[int(len(whole) * share) : int(len(whole) * share) + 40] = b"\x55" * 40
        for damaged in (whole[: int(len(whole) * share)], scratched[: len(whole)]):
            path.write_bytes(damaged)
            try:
                read_image(path)
            except ValueError as error:
                assert "\n" not in str(error)
    os.write(2, b"still heard")
    assert capfd.readouterr().err == "still heard"


def test_a_link_under_the_temporary_name_is_not_followed_and_nothing_is_left_of_a_full_disk(tmp_path, monkeypatch):
    (tmp_path / "precious").write_text("mine")
    monkeypatch.setattr("secrets.token_hex", lambda n: "0" * 2 * n)
    (tmp_path / f".a.png.{os.getpid()}-{'0' * 16}.partial").symlink_to(tmp_path / "precious")
    with pytest.raises(FileExistsError):
        write_png(tmp_path / "a.png", quadrants())
    assert (tmp_path / "precious").read_text() == "mine"
    monkeypatch.undo()
    (tmp_path / "a.png.partial").symlink_to(tmp_path / "precious")
    write_png(tmp_path / "a.png", quadrants())
    assert (tmp_path / "precious").read_text() == "mine"

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    (tmp_path / "full").mkdir()
    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="No space"):
        write_png(tmp_path / "full" / "b.png", quadrants())
    assert not list((tmp_path / "full").iterdir())


@pytest.mark.skipif(os.name != "posix", reason="elsewhere it cannot be asked whether a process lives")
def test_what_a_killed_process_has_left_is_removed_by_the_next_and_nothing_else(tmp_path):
    dead = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True
    ).stdout
    left = tmp_path / f".a.json.{dead.strip()}-{'a' * 16}.partial"
    living = tmp_path / f".a.json.{os.getppid()}-{'a' * 16}.partial"
    other = tmp_path / f".b.json.{dead.strip()}-{'a' * 16}.partial"
    for file in (left, living, other):
        file.write_bytes(b"half")
    replace_file(tmp_path / "a.json", b"whole")
    assert {p.name for p in tmp_path.iterdir()} == {"a.json", living.name, other.name}


def test_a_photograph_of_a_phone_is_read_upright(tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif", reason="HEIC needs the extra photographs")
    picture = Image.fromarray(quadrants())
    turned = picture.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it back by 90 degrees
    for name, image, more in (("plain.heic", picture, {}), ("turned.HEIC", turned, {"exif": exif.tobytes()})):
        pillow_heif.from_pillow(image).save(tmp_path / name, quality=-1, chroma=444, **more)
        assert close(read_image(tmp_path / name)[4:20, 4:28], quadrants()[4:20, 4:28], 4)
    whole = (tmp_path / "plain.heic").read_bytes()
    for share in (0.3, 0.9):
        (tmp_path / "cut.heic").write_bytes(whole[: int(len(whole) * share)])
        refused(tmp_path / "cut.heic")


def test_without_pillow_heif_one_line_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    monkeypatch.setattr("expr_lib.images.find_spec", lambda name: None)
    assert 'pip install "expr-lib[photographs]"' in refused(tmp_path / "phone.heic")
