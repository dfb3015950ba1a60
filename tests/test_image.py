"""r1ov.data.image against transformers' Qwen2VLImageProcessorPil, and against pictures that are broken or
hostile.
"""

import base64
import io
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.image_transforms import convert_to_rgb
from transformers.models.qwen2_vl import image_processing_pil_qwen2_vl as hf

from r1ov.data.formats.open_image import lazy_image
from r1ov.data.image import ImageProcessor, LazyImage, smart_resize
from r1ov.errors import UserError
from r1ov.folder.pretrained import image_processor_from_dict

SIZES = [
    (1, 1), (1, 200), (200, 1), (5, 7), (13, 300), (14, 14), (27, 29), (28, 28), (28, 300),
    (42, 70), (55, 57), (56, 56), (63, 131),
    (98, 98), (100, 31), (112, 112), (113, 111), (127, 640), (150, 150), (224, 224), (255, 3),
    (300, 200), (331, 77), (412, 333),
    (500, 499), (640, 480),
]  # fmt: skip
MODES = [
    "RGB",
    "L",
    "1",
    "P",
    "CMYK",
    "RGBA",
    "LA",
    "PA",
    "YCbCr",
    "HSV",
    "P with transparency",
    "L with transparency",
]


def open_image(source: object, name: str = "the picture") -> Image.Image:
    return lazy_image(source, name).load()


def processed(
    processor: ImageProcessor, images: list[Image.Image], name: str = "x"
) -> tuple[torch.Tensor, torch.Tensor]:
    """(pixel_values, image_grid_thw) of a batch, as `Processor` makes them."""
    grids = [processor.grid(image.size, name) for image in images]
    patches = [processor.patches(image, grid) for image, grid in zip(images, grids, strict=True)]
    return torch.from_numpy(np.concatenate(patches)), torch.tensor(grids)


def noise(width: int, height: int, seed: int, mode: str = "RGB") -> Image.Image:
    """Smooth colours with noise on top, so that both kinds of rounding show."""
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(np.linspace(0, 5, width), np.linspace(0, 3, height))
    smooth = np.stack([127 + 120 * np.sin(x + k) * np.cos(y - k) for k in range(4)], axis=-1)
    pixels = np.clip(smooth + rng.normal(0, 25, smooth.shape), 0, 255).astype(np.uint8)
    rgba = Image.fromarray(pixels)
    match mode:
        case "P with transparency":
            image = rgba.convert("RGB").quantize(16)
            image.info["transparency"] = bytes(range(0, 256, 16))
        case "L with transparency":
            image = rgba.convert("RGB").convert("L")
            image.info["transparency"] = int(np.asarray(image)[0, 0])
        case "PA":
            image = rgba.convert("P").convert("PA")
        case "CMYK":
            image = Image.fromarray(pixels, "CMYK")
        case "RGBA":
            image = rgba
        case "LA":
            image = rgba.convert("LA")
        case _:
            image = rgba.convert("RGB").convert(mode)
    return image


def pictures() -> list[Image.Image]:
    return [
        noise(*size, seed, MODES[(seed + shift) % len(MODES)])
        for shift in (0, 5)
        for seed, size in enumerate(SIZES)
    ]


def width_then_height(image: Image.Image, min_pixels: int, max_pixels: int) -> Image.Image:
    height, width = hf.smart_resize(image.height, image.width, 28, min_pixels, max_pixels)
    return image.resize((width, image.height), Image.Resampling.BICUBIC).resize(
        (width, height), Image.Resampling.BICUBIC
    )


@pytest.mark.parametrize(("min_pixels", "max_pixels"), [(3136, 12544), (3136, 12845056), (50176, 100352)])
def test_pixel_values_and_grids_equal_transformers_over_52_pictures_of_odd_sizes_and_modes(
    min_pixels: int, max_pixels: int
) -> None:
    # transformers is handed the picture already resized, width first: what Pillow up to 12 does, and Pillow
    # 13 not always.
    images = [open_image(picture) for picture in pictures()]
    assert len(images) >= 50
    values, grids = processed(ImageProcessor(min_pixels=min_pixels, max_pixels=max_pixels), images)
    judge = hf.Qwen2VLImageProcessorPil(min_pixels=min_pixels, max_pixels=max_pixels)
    expected = judge(
        [width_then_height(image, min_pixels, max_pixels) for image in images],
        do_resize=False,
        return_tensors="pt",
    )
    assert torch.equal(grids, expected["image_grid_thw"])
    # Exact: the same float64 and float32 operations in the same order, only tabulated.
    assert torch.equal(values, expected["pixel_values"])
    assert (values.dtype, grids.dtype) == (torch.float32, torch.int64)


def test_resizing_is_transformers_own_wherever_pillow_takes_the_width_first() -> None:
    judge, processor, compared = hf.Qwen2VLImageProcessorPil(), ImageProcessor(), 0
    for image in map(open_image, pictures()):
        upright = width_then_height(image, 3136, 28 * 28 * 1280)
        if np.array_equal(
            np.asarray(image.resize(upright.size, Image.Resampling.BICUBIC)), np.asarray(upright)
        ):
            assert torch.equal(
                processed(processor, [image])[0], judge([image], return_tensors="pt")["pixel_values"]
            )
            compared += 1
    assert compared >= 10


@pytest.mark.parametrize("mode", MODES)
def test_conversion_to_rgb_equals_transformers(mode: str) -> None:
    picture = noise(31, 47, 3, mode)
    before = picture.tobytes()
    # transformers 5's own rule: any alpha on white. PIL keeps the flag of a colour key, so both see the same
    # picture.
    assert np.array_equal(np.asarray(open_image(picture)), convert_to_rgb(picture, return_numpy=True))
    assert picture.tobytes() == before


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (1, 1, (56, 56)), (14, 14, (56, 56)), (42, 42, (56, 56)), (70, 70, (56, 56)),
        (98, 98, (112, 112)), (20, 56, (56, 112)),
        (480, 640, (476, 644)), (1000, 300, (1008, 308)), (5000, 5000, (3556, 3556)),
        (27, 5400, (28, 5404)), (10, 2000, (28, 812)),
    ],
)  # fmt: skip
def test_smart_resize_gives_the_known_sizes(height: int, width: int, expected: tuple[int, int]) -> None:
    assert smart_resize(height, width, 28, 3136, 12845056) == expected


def test_smart_resize_equals_transformers_on_random_sizes() -> None:
    rng = np.random.default_rng(0)
    for height, width in np.exp(rng.uniform(0, 8.5, (5000, 2))).astype(int).tolist():
        if max(height, width) <= 200 * min(height, width):
            assert smart_resize(height, width, 28, 3136, 200704) == hf.smart_resize(
                height, width, 28, 3136, 200704
            )


def test_a_row_of_pixel_values_is_one_patch_in_the_order_block_row_column_channel_time() -> None:
    image = noise(112, 56, 1)
    processor = ImageProcessor(rescale_factor=1.0, image_mean=(0, 0, 0), image_std=(1, 1, 1))
    values, grid = processed(processor, [image])
    assert grid.tolist() == [[1, 4, 8]]
    pixels = np.asarray(image)
    # Patches go through 2x2 blocks: 0 1 4 5 ... / 2 3 6 7 ...
    order = [(2 * r + i, 2 * c + j) for r in range(2) for c in range(4) for i in range(2) for j in range(2)]
    for row, (i, j) in enumerate(order):
        patch = pixels[14 * i : 14 * i + 14, 14 * j : 14 * j + 14].transpose(2, 0, 1)  # (3, 14, 14)
        assert np.array_equal(values[row].numpy().reshape(3, 2, 14, 14), np.stack([patch, patch], axis=1))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_turned_upright_by_its_exif_orientation(orientation: int) -> None:
    upright = Image.new("RGB", (48, 32), "white")
    upright.paste("red", (0, 0, 16, 16))
    back = [None, 0, 3, 1, 5, 2, 6, 4][
        orientation - 1
    ]  # Pillow's Transpose method that undoes each orientation's own
    stored = upright if back is None else upright.transpose(Image.Transpose(back))
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    stored.save(file, "PNG", exif=exif)
    assert np.array_equal(np.asarray(open_image(file.getvalue())), np.asarray(upright))


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_16_bit_grey_is_divided_by_257_where_pillow_would_clip_it_to_white(mode: str) -> None:
    levels = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    if mode == "I":
        image = Image.fromarray(levels.astype(np.int32))
    else:
        image = Image.frombytes(mode, (16, 16), levels.astype(">u2" if mode == "I;16B" else "<u2").tobytes())
    assert np.array_equal(np.asarray(open_image(image))[..., 0].ravel(), np.arange(256))


def test_16_bit_png_files_of_every_colour_type_open() -> None:
    for colour_type, channels in ((0, 1), (2, 3), (4, 2), (6, 4)):
        row = b"\0" + struct.pack(">H", 65535) * channels * 32
        png = png_file(32, 32, 16, colour_type, zlib.compress(row * 32))
        assert np.asarray(open_image(png)).min() == 255


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0, 0.5, 1], [0, 128, 255]), ([0, 100, 255], [0, 100, 255]), ([-100, 0, 300], [0, 64, 255])],
)
def test_float_pictures_are_scaled_by_the_range_they_use(values: list[float], expected: list[int]) -> None:
    image = Image.fromarray(np.array([values], dtype=np.float32))
    assert np.asarray(open_image(image))[0, :, 0].tolist() == expected


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_an_animation_shows_its_first_frame(format: str) -> None:
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue")]
    file = io.BytesIO()
    frames[0].save(
        file,
        format,
        save_all=True,
        append_images=frames[1:],
        **({"lossless": True} if format == "WEBP" else {}),
    )
    assert open_image(file.getvalue()).getpixel((5, 5)) == (255, 0, 0)


def png_file(width: int, height: int, bits: int, colour_type: int, data: bytes) -> bytes:
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)),
        (b"IDAT", data),
        (b"IEND", b""),
    ]
    body = b"".join(
        struct.pack(">I", len(d)) + name + d + struct.pack(">I", zlib.crc32(name + d)) for name, d in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def saved(format: str, **options: object) -> bytes:
    file = io.BytesIO()
    noise(64, 64, 0).save(file, format, **options)
    return file.getvalue()


BROKEN = {
    "empty file": b"",
    "text": b"hello, I am not a picture",
    "html": b"<!doctype html><html><body>404</body></html>",
    "zeros": bytes(1000),
    "truncated png": saved("PNG")[:900],
    "truncated jpeg": saved("JPEG")[:700],
    "truncated webp": saved("WEBP")[:300],
    "truncated tiff": saved("TIFF")[:5000],
    "png header alone": saved("PNG")[:8],
    "png with broken data": png_file(64, 64, 8, 2, b"no zlib stream at all"),
    "decompression bomb": png_file(60000, 60000, 8, 2, zlib.compress(bytes(1000))),
    "zero wide": png_file(0, 10, 8, 2, zlib.compress(b"")),
    "eps program": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
    "pdf": b"%PDF-1.4\n1 0 obj\n",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_is_refused_in_one_line_that_names_it(kind: str, tmp_path, capfd) -> None:
    path = tmp_path / "drawing.png"
    path.write_bytes(BROKEN[kind])
    for source, name in ((path, str(path)), (str(path), str(path)), (BROKEN[kind], "picture 7")):
        with pytest.raises(UserError) as caught:
            open_image(source, name)
        assert str(caught.value).startswith(name)
        assert "\n" not in str(caught.value)
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(
    "source",
    [
        "no/such/file.png", "", ".", "/dev/null", "a\0b.png", "x" * 5000, "file:///etc/hostname", "ftp://example.org/x.png",
        "data:image/png;base64,????", "data:image/png,hello",
        "data:image/png;base64,", None, 7, ["x.png"], Image.new("RGB", (0, 5)),
        Image.fromarray(np.array([[0.0, math.nan]], dtype=np.float32)),
    ],
    ids=lambda source: repr(source)[:20],
)  # fmt: skip
def test_a_source_that_is_no_picture_is_refused_in_one_line(source: object) -> None:
    with pytest.raises(UserError) as caught:
        open_image(source)
    assert "\n" not in str(caught.value)
    assert "\0" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_data_url_and_bytes_and_a_path_give_the_same_picture(tmp_path) -> None:
    data = saved("PNG")
    (tmp_path / "x.png").write_bytes(data)
    sources = [
        data,
        tmp_path / "x.png",
        str(tmp_path / "x.png"),
        "data:image/png;base64," + base64.b64encode(data).decode(),
    ]
    assert {open_image(source).tobytes() for source in sources} == {noise(64, 64, 0).tobytes()}


def test_an_aspect_ratio_beyond_200_is_refused_by_the_pictures_name() -> None:
    with pytest.raises(
        UserError, match=r"^long.png: one side of a 201x1 picture is more than 200 times the other"
    ):
        ImageProcessor().grid((201, 1), "long.png")
    assert ImageProcessor().grid((200, 1)) == (1, 2, 58)


@pytest.mark.parametrize(
    "config",
    [
        {"min_pixels": 784, "max_pixels": 7840},
        {"size": {"shortest_edge": 784, "longest_edge": 7840}},
        {"size": {"min_pixels": 784, "max_pixels": 7840}},
        {"size": {"shortest_edge": 1, "longest_edge": 9}, "min_pixels": 784, "max_pixels": 7840},
        {"min_pixels": 784, "size": {"longest_edge": 7840}, "max_pixels": None},
    ],
)
def test_the_pixel_limits_are_read_in_every_spelling(config: dict) -> None:
    processor = image_processor_from_dict(config)
    assert (processor.min_pixels, processor.max_pixels) == (784, 7840)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("do_resize", False), ("do_rescale", False), ("do_normalize", False),
        ("do_convert_rgb", False), ("resample", 2), ("size", 448),
        ("size", {"height": 2, "width": 2}), ("min_pixels", 0), ("min_pixels", "4"),
        ("max_pixels", 3), ("patch_size", 14.0),
        ("merge_size", True),
        ("image_mean", 0.5), ("image_mean", [0.5, 0.5]), ("image_std", [1, 1, 0]),
        ("image_std", ["a", 1, 1]), ("rescale_factor", math.nan),
    ],
)  # fmt: skip
def test_a_setting_that_is_not_supported_is_refused_by_its_name(field: str, value: object) -> None:
    with pytest.raises(UserError, match=field):
        image_processor_from_dict({field: value})


def oriented(format: str, orientation: int) -> bytes:
    """A file of 48 x 32 stored pixels that says how it is to be turned."""
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    noise(48, 32, 1).save(file, format, exif=exif)
    return file.getvalue()


def moved_to_the_end(png: bytes, kind: bytes) -> bytes:
    """The PNG file with its chunk of this kind after the pixels, as the standard allows."""
    begin = png.index(kind) - 4
    end = begin + 12 + struct.unpack(">I", png[begin : begin + 4])[0]
    return png[:begin] + png[end:-12] + png[begin:end] + png[-12:]


@pytest.mark.parametrize("orientation", [None, *range(1, 9)])
@pytest.mark.parametrize(
    "format", ["PNG", "PNG, told at the end", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "ICO"]
)
def test_a_picture_is_measured_as_it_is_decoded(format: str, orientation: int | None, tmp_path) -> None:
    name, _, at_the_end = format.partition(",")
    if orientation is None or name in ("GIF", "BMP", "ICO"):
        data = saved(name) if name != "ICO" else saved(name, sizes=[(16, 16), (48, 48)])
    else:
        data = oriented(name, orientation)
        data = moved_to_the_end(data, b"eXIf") if at_the_end else data
    (tmp_path / "x").write_bytes(data)
    expected = open_image(data)
    for source in (
        data,
        tmp_path / "x",
        "data:x;base64," + base64.b64encode(data).decode(),
        Image.open(io.BytesIO(data)),
    ):
        picture = lazy_image(source)
        assert picture.size == expected.size
        assert picture.load().tobytes() == expected.tobytes()
    if orientation in (5, 6, 7, 8) and name in ("PNG", "JPEG", "WEBP", "TIFF"):
        assert expected.size == (32, 48)


@pytest.mark.parametrize("mode", MODES)
def test_a_picture_in_memory_is_measured_as_it_is(mode: str) -> None:
    image = noise(31, 47, 3, mode)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.info["exif"] = exif.tobytes()
    picture = lazy_image(image)
    assert picture.size == picture.load().size == open_image(image).size == (47, 31)


DAMAGED_BEHIND_THE_HEADER = ["truncated png", "truncated jpeg", "png with broken data"]


@pytest.mark.parametrize("kind", DAMAGED_BEHIND_THE_HEADER)
def test_measuring_reads_the_header_alone_and_what_cannot_be_decoded_is_told_when_it_is(
    kind: str, tmp_path
) -> None:
    path = tmp_path / "drawing.png"
    path.write_bytes(BROKEN[kind])
    for source, name in ((path, str(path)), (BROKEN[kind], "picture 7")):
        picture = lazy_image(source, name)
        assert picture.size == (64, 64)
        with pytest.raises(UserError, match="cannot be decoded") as caught:
            picture.load()
        assert str(caught.value).startswith(f"{name}: ")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [kind for kind in BROKEN if kind not in DAMAGED_BEHIND_THE_HEADER])
def test_what_is_no_picture_is_told_at_once(kind: str) -> None:
    with pytest.raises(UserError, match=r"^picture 7: "):
        lazy_image(BROKEN[kind], "picture 7")


def test_a_lazy_picture_stays_what_it_is() -> None:
    picture = LazyImage((3, 4), lambda: Image.new("RGB", (3, 4)))
    assert lazy_image(picture, "other") is picture


def test_a_grid_is_known_before_the_pixels_and_they_fill_it() -> None:
    processor, image = ImageProcessor(), noise(100, 31, 5)
    grid = processor.grid(image.size)
    values, grids = processed(processor, [image])
    assert grids.tolist() == [list(grid)]
    assert np.array_equal(processor.patches(image, grid), values.numpy())
    assert processor.patches(image, (1, 2, 2)).shape == (
        4,
        1176,
    )  # smaller than any picture of its own would become
    with pytest.raises(UserError, match=r"^x: at 112x28 pixels it is 4 tokens, above 3"):
        processor.grid(image.size, "x", 3)


def ifd(*entries: tuple[int, int, bytes], data: bytes = b"") -> bytes:
    """An EXIF block: (tag, type, value or its place) each, and what lies behind the table."""
    table = b"".join(
        struct.pack("<HHI", tag, kind, 1) + value.ljust(4, b"\0") for tag, kind, value in entries
    )
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + table + bytes(4) + data


TURNED = (0x0112, 3, struct.pack("<H", 6))  # on its side
BEHIND = struct.pack("<I", 8 + 2 + 2 * 12 + 4)  # where the data of a table of two entries lies
EXIF = {  # EXIF of phones and editors -> is it turned?
    "a unit as a fraction": (ifd(TURNED, (0x0128, 5, BEHIND), data=struct.pack("<II", 5, 2)), True),
    "a height as text": (ifd((0x0101, 2, b"abc"), TURNED), True),
    "a negative width": (ifd((0x0100, 9, struct.pack("<i", -5)), TURNED), True),
    "a fraction by zero": (ifd(TURNED, (0x011A, 5, BEHIND), data=struct.pack("<II", 72, 0)), True),
    "an orientation as text": (ifd((0x0112, 2, b"6")), False),
    "an orientation of nine": (ifd((0x0112, 3, struct.pack("<H", 9))), False),
    "a place beyond the end": (b"II*\0" + struct.pack("<I", 99999), False),
    "a head alone": (b"II*\0", False),
    "nothing": (b"", False),
    "garbage": (b"\xef\xbb\xbf" * 9, False),
}


def with_chunks(*chunks: tuple[bytes, bytes], at_the_end: bool, spoil: int = 0) -> bytes:
    """A red PNG file of 60 x 40 pixels with more chunks before its pixels or after them."""
    file = io.BytesIO()
    Image.new("RGB", (60, 40), (200, 30, 30)).save(file, "PNG")
    png = file.getvalue()
    place = len(png) - 12 if at_the_end else png.index(b"IDAT") - 4
    more = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) ^ spoil)
        for kind, data in chunks
    )
    return png[:place] + more + png[place:]


def assert_opens(data: bytes, is_turned: bool, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(data)
    for source in (data, tmp_path / "x"):
        image = lazy_image(source)
        assert image.size == image.load().size == ((40, 60) if is_turned else (60, 40))
        red, green, blue = image.load().getpixel((20, 20))
        assert abs(red - 200) + abs(green - 30) + abs(blue - 30) < 9  # as a JPEG file keeps it


@pytest.mark.parametrize("case", EXIF)
@pytest.mark.parametrize("format", ["JPEG", "PNG", "PNG, told at the end", "WEBP"])
def test_exif_that_is_odd_or_broken_never_costs_an_image(
    format: str, case: str, tmp_path, recwarn: pytest.WarningsRecorder
) -> None:
    exif, is_turned = EXIF[case]
    if format.startswith("PNG"):
        data = with_chunks((b"eXIf", exif), at_the_end=format != "PNG")
    else:
        file = io.BytesIO()
        Image.new("RGB", (60, 40), (200, 30, 30)).save(file, format, exif=b"Exif\0\0" + exif)
        data = file.getvalue()
    assert_opens(data, is_turned, tmp_path)
    assert not list(recwarn)


LONG = b"a" * 2_000_000
NOTES = {
    "long text": (b"tEXt", b"Comment\0" + LONG),
    "text beyond Pillow's memory for it": (b"tEXt", b"Comment\0" + LONG * 35),
    "packed text": (b"zTXt", b"Comment\0\0" + zlib.compress(LONG)),
    "packed international text": (b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(LONG)),
    "a profile that is no hex": (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n 9\nzz")),
    "a broken colour profile": (b"iCCP", b"x\0\0" + zlib.compress(LONG)),
    "a resolution cut short": (b"pHYs", b"x"),
    "a gamma cut short": (b"gAMA", b"x"),
    "a broken animation": (b"acTL", b"x"),
}


@pytest.mark.parametrize("at_the_end", [False, True])
@pytest.mark.parametrize("case", NOTES)
def test_a_png_files_notes_never_cost_an_image(case: str, at_the_end: bool, tmp_path) -> None:
    assert_opens(with_chunks(NOTES[case], at_the_end=at_the_end), False, tmp_path)
    turned = (b"eXIf", ifd(TURNED))
    assert_opens(with_chunks(turned, NOTES[case], at_the_end=at_the_end), True, tmp_path)


@pytest.mark.parametrize("note", [(b"tEXt", b"Comment\0a"), (b"eXIf", ifd(TURNED))])
def test_a_png_files_note_with_a_wrong_checksum_costs_no_image(note, tmp_path) -> None:
    for at_the_end in (False, True):
        assert_opens(with_chunks(note, at_the_end=at_the_end, spoil=1), False, tmp_path)


@pytest.mark.parametrize(
    "url",
    [
        "data:image/png;base64,{}", "DATA:image/png;BASE64,{}", "data:;base64,{}",
        "data:image/png;charset=utf-8;base64,{}",
        "data:image/png;base64;name=x.png,{}", "data:image/png; base64, {}", "{}",
    ],
)  # fmt: skip
@pytest.mark.parametrize("fold", ["", "\n", "\r\n ", " "])
def test_a_data_url_and_base64_may_have_parameters_and_be_folded(url: str, fold: str) -> None:
    data = saved("PNG")
    text = base64.b64encode(data).decode()
    folded = fold.join(text[place : place + 76] for place in range(0, len(text), 76))
    for body in (folded, folded.rstrip("="), text.replace("+", "%2B").replace("=", "%3D")):
        assert open_image(url.format(body)).tobytes() == noise(64, 64, 0).tobytes()


def test_a_file_url_is_a_path(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a b").mkdir()
    (tmp_path / "a b" / "x#1.png").write_bytes(saved("PNG"))
    place = str(tmp_path / "a b" / "x#1.png")
    for url in (
        f"file://{place}",
        f"file://{place.replace(' ', '%20')}",
        f"file:{place}",
        f"FILE://localhost{place}",
    ):
        assert open_image(url).tobytes() == noise(64, 64, 0).tobytes()
    assert open_image("file://a%20b/x%231.png").size == (
        64,
        64,
    )  # as qwen_vl_utils reads it: what follows file://
    with pytest.raises(UserError, match=r"^file:///no/such.png: no such file"):
        open_image("file:///no/such.png")


def test_what_datasets_writes_is_an_image(tmp_path) -> None:
    (tmp_path / "x.png").write_bytes(saved("PNG"))
    for source in (
        {"bytes": saved("PNG"), "path": None},
        {"bytes": None, "path": str(tmp_path / "x.png")},
        bytearray(saved("PNG")),
    ):
        assert open_image(source).tobytes() == noise(64, 64, 0).tobytes()
    for source in ({"bytes": None, "path": None}, np.zeros((4, 4, 3), np.uint8), torch.zeros(3, 4, 4), ""):
        with pytest.raises(UserError, match="path is empty, or in no form that is known"):
            open_image(source)
