import io
from pathlib import Path

import numpy as np
import pydicom
import pytest
from astropy.io import fits
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import (
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
    SecondaryCaptureImageStorage,
    generate_uid,
)

from keepsight.core import UserError
from keepsight.data.files import FileImages, decode_image, read_image
from keepsight.data.load import load_dataset
from keepsight.data.options import DataConfig
from keepsight.data.pixels import PixelConfig

RNG = np.random.default_rng(0)


def grey(image: Image.Image) -> np.ndarray:
    return np.asarray(image)[:, :, 0]


def scaled(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.rint(255 * np.clip((values - low) / (high - low), 0, 1))


# FITS


def write_fits(path: Path, values: np.ndarray, **header: object) -> Path:
    unit = fits.PrimaryHDU(values)
    unit.header.update(header)
    unit.writeto(path)
    return path


def test_fits_is_percentiles_and_upside_down_by_default(tmp_path: Path) -> None:
    values = RNG.normal(100, 20, (12, 9)).astype(np.float32)
    image = read_image(write_fits(tmp_path / "a.fits", values))
    low, high = np.percentile(values, (0.5, 99.5))
    np.testing.assert_allclose(grey(image), scaled(values[::-1], low, high), atol=1)
    explicit = read_image(tmp_path / "a.fits", PixelConfig(value_range=(50, 150), stretch="asinh"))
    t = np.clip((values[::-1] - 50) / 100, 0, 1)
    np.testing.assert_allclose(grey(explicit), 255 * np.arcsinh(10 * t) / np.arcsinh(10), atol=0.6)


def test_fits_scaled_integers_extensions_and_cubes(tmp_path: Path) -> None:
    sixteen = RNG.integers(0, 65536, (6, 5)).astype(np.uint16)  # stored as int16 with BZERO
    image = read_image(write_fits(tmp_path / "u.fit", sixteen), PixelConfig(value_range=(0, 65535)))
    np.testing.assert_array_equal(grey(image), np.rint(sixteen[::-1] / 257.0))
    cube = RNG.normal(size=(1, 5, 4, 3)).astype(np.float32)
    units = [
        fits.PrimaryHDU(),
        fits.BinTableHDU.from_columns([fits.Column("x", "E", array=[1.0])]),
        fits.ImageHDU(cube),
    ]
    units.append(fits.CompImageHDU(sixteen.astype(np.int32)))
    fits.HDUList(units).writeto(tmp_path / "c.fits")
    config = PixelConfig(channels=(4, 0, 2), value_range=(-2, 2))
    np.testing.assert_allclose(
        np.asarray(read_image(tmp_path / "c.fits", config)),
        scaled(cube[0, [4, 0, 2], ::-1], -2, 2).transpose(1, 2, 0),
        atol=1,
    )
    packed = read_image(tmp_path / "c.fits", PixelConfig(hdu=3, value_range=(0, 65535)))
    np.testing.assert_array_equal(grey(packed), np.rint(sixteen[::-1] / 257.0))
    for config, words in [
        (PixelConfig(), "5 channels"),
        (PixelConfig(channels=(5,)), "no channel 5"),
        (PixelConfig(hdu=1), "unit 1 is no image"),
        (PixelConfig(hdu=9), "no unit 9"),
        (PixelConfig(channels=(0,), max_pixels=11), "more than 11 pixels"),
    ]:
        with pytest.raises(UserError, match=words) as error:
            read_image(tmp_path / "c.fits", config)
        assert "c.fits" in str(error.value)


def test_fits_blank_values(tmp_path: Path) -> None:
    values = np.array([[1.0, np.nan], [3.0, 2.0]])
    path = write_fits(tmp_path / "n.fits", values)
    with pytest.raises(UserError, match=r"n\.fits .*1 of its values .*NaN"):
        read_image(path)
    image = read_image(path, PixelConfig(fill=1, value_range=(1, 3)))
    np.testing.assert_array_equal(grey(image), [[255, 128], [0, 0]])


def test_bad_fits(tmp_path: Path) -> None:
    path = write_fits(tmp_path / "a.fits", np.zeros((40, 40)))
    whole = path.read_bytes()
    for damage, words in [
        (whole[:4000], "truncated"),
        (whole[:200], "truncated or damaged"),
        (b"SIMPLE  = nonsense" + bytes(400), "cannot be read"),
        (b"", "empty"),
        (b"text", "none of"),
    ]:
        path.write_bytes(damage)
        with pytest.raises(UserError, match=words) as error:
            read_image(path)
        assert "a.fits" in str(error.value)
        assert "\n" not in str(error.value)
    fits.HDUList([fits.PrimaryHDU()]).writeto(path, overwrite=True)
    with pytest.raises(UserError, match="none of its FITS units"):
        read_image(path)


# DICOM


def dicom(values: np.ndarray, path: Path, **elements: object) -> Path:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.PatientName, data.PatientID = "Secret^Person", "12345"
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    colour = values.shape[-1] == 3
    data.SamplesPerPixel = 3 if colour else 1
    data.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        data.PlanarConfiguration = 0
    data.Rows, data.Columns = values.shape[-3:-1] if colour else values.shape[-2:]
    data.BitsAllocated = data.BitsStored = values.dtype.itemsize * 8
    data.HighBit = data.BitsStored - 1
    data.PixelRepresentation = int(values.dtype.kind == "i")
    data.PixelData = values.tobytes()
    for key, value in elements.items():
        setattr(data, key, value)
    data.save_as(path, enforce_file_format=True)
    return path


def test_dicom_uses_the_files_window_after_rescaling(tmp_path: Path) -> None:
    values = RNG.integers(0, 4096, (7, 9)).astype(np.int16)
    path = dicom(
        values, tmp_path / "ct.dcm", RescaleSlope=2, RescaleIntercept=-1024, WindowCenter=[40, 1], WindowWidth=[400, 2]
    )
    units = 2.0 * values - 1024
    low = 40 - 0.5 - 399 / 2
    np.testing.assert_allclose(grey(read_image(path)), scaled(units, low, low + 399), atol=1)
    explicit = read_image(path, PixelConfig(value_range=(-1000, 1000)))
    np.testing.assert_allclose(grey(explicit), scaled(units, -1000, 1000), atol=1)
    by_percentile = read_image(path, PixelConfig(value_range="percentile"))
    np.testing.assert_allclose(grey(by_percentile), scaled(units, *np.percentile(units, (0.5, 99.5))), atol=1)
    dicom(values, path, WindowCenter=100, WindowWidth=50, VOILUTFunction="LINEAR_EXACT")
    np.testing.assert_allclose(grey(read_image(path)), scaled(values, 75, 125), atol=1)


def test_dicom_without_a_window_takes_its_stored_bits(tmp_path: Path) -> None:
    values = RNG.integers(0, 4096, (5, 4)).astype(np.uint16)
    path = dicom(values, tmp_path / "x.dcm", BitsStored=12, HighBit=11)
    np.testing.assert_array_equal(grey(read_image(path)), scaled(values, 0, 4095))
    dicom(values, path, BitsStored=12, HighBit=11, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(grey(read_image(path)), 255 - scaled(values, 0, 4095))
    eight = RNG.integers(0, 256, (5, 4)).astype(np.uint8)
    np.testing.assert_array_equal(grey(read_image(dicom(eight, path))), eight)


def test_dicom_colour_frames_and_compression(tmp_path: Path) -> None:
    colour = RNG.integers(0, 256, (6, 8, 3)).astype(np.uint8)
    path = dicom(colour, tmp_path / "rgb.dcm")
    np.testing.assert_array_equal(np.asarray(read_image(path)), colour)
    frames = RNG.integers(0, 256, (3, 6, 8)).astype(np.uint8)
    np.testing.assert_array_equal(grey(read_image(dicom(frames, path, NumberOfFrames=3))), frames[0])
    data = pydicom.dcmread(dicom(frames[0], path))
    data.compress(RLELossless, generate_instance_uid=False)
    data.save_as(path)
    np.testing.assert_array_equal(grey(read_image(path)), frames[0])


def test_dicom_without_a_decoder(tmp_path: Path) -> None:
    path = dicom(np.zeros((4, 4), np.uint8), tmp_path / "v.dcm")
    data = pydicom.dcmread(path)
    data.file_meta.TransferSyntaxUID = pydicom.uid.MPEG2MPML
    data.PixelData = pydicom.encaps.encapsulate([b"\0" * 10])
    data.save_as(path)
    with pytest.raises(UserError, match=r"v\.dcm .*no decoder .*MPEG2.*pip install"):
        read_image(path)


def test_bad_dicom_never_shows_the_patient(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    path = dicom(RNG.integers(0, 256, (20, 20)).astype(np.uint8), tmp_path / "p.dcm", PatientBirthDate="20000101")
    whole = path.read_bytes()
    image = pydicom.dcmread(path)
    del image.PixelData
    image.save_as(tmp_path / "no_image.dcm")
    damages = [
        whole[:-100],
        whole[:300],
        b"\0" * 128 + b"DICM" + bytes(50),
        b"no dicom, but Secret^Person",
        whole.replace(b"20000101", b"2000x1x1")[:-5],
    ]
    damages.append((tmp_path / "no_image.dcm").read_bytes())
    for damage in damages:
        path.write_bytes(damage)
        with pytest.raises(UserError, match=r"p\.dcm") as error:
            read_image(path)
        assert "Secret" not in str(error.value)
        assert "2000x" not in str(error.value)
        assert "\n" not in str(error.value)
    out = capfd.readouterr()
    assert "Secret" not in out.out + out.err + caplog.text
    path.write_bytes(whole)
    with pytest.raises(UserError, match="399 pixels"):
        read_image(path, PixelConfig(max_pixels=399))


def test_dicom_jpeg_2000_by_pillow(tmp_path: Path) -> None:
    values = RNG.integers(0, 256, (16, 16)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "JPEG2000", no_jp2=True)
    path = dicom(values, tmp_path / "j.dcm")
    data = pydicom.dcmread(path)
    data.file_meta.TransferSyntaxUID = JPEG2000Lossless
    data.PixelData = pydicom.encaps.encapsulate([buffer.getvalue()])
    data["PixelData"].VR = "OB"
    data.save_as(path)
    np.testing.assert_array_equal(grey(read_image(path)), values)


# .npy, and all of them together


def test_npy(tmp_path: Path) -> None:
    values = RNG.integers(0, 256, (5, 6, 7)).astype(np.uint8)
    np.save(tmp_path / "a.npy", values)
    image = read_image(tmp_path / "a.npy", PixelConfig(channels=(6, 1, 0)))
    np.testing.assert_array_equal(np.asarray(image), values[:, :, [6, 1, 0]])
    np.save(tmp_path / "o.npy", np.array([[{}]], dtype=object), allow_pickle=True)
    whole = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "t.npy").write_bytes(whole[:-1])
    (tmp_path / "h.npy").write_bytes(whole[:20])
    np.save(tmp_path / "huge.npy", np.zeros((1, 1), np.uint8))
    huge = (tmp_path / "huge.npy").read_bytes().replace(b"(1, 1), }          ", b"(9999999, 9999999)}")
    assert b"9999999" in huge
    (tmp_path / "huge.npy").write_bytes(huge)
    np.save(tmp_path / "four.npy", np.zeros((2, 2, 2, 2), np.uint8))
    for name, words in [
        ("o", "never unpickled"),
        ("t", "truncated"),
        ("h", "header is damaged"),
        ("huge", "more than 89,478,485 pixels"),
        ("four", "shape"),
        ("a", "7 channels"),
    ]:
        with pytest.raises(UserError, match=words) as error:
            read_image(tmp_path / f"{name}.npy", PixelConfig(channels=(0,) if name == "t" else None))
        assert f"{name}.npy" in str(error.value)


def test_scientific_files_stand_where_pictures_may(tmp_path: Path) -> None:
    for label, level in (("dark", 10), ("bright", 240)):
        (tmp_path / label).mkdir()
        values = np.full((4, 4), level, np.uint8)
        np.save(tmp_path / label / "1.npy", values)
        dicom(values, tmp_path / label / "2.dcm")
        write_fits(tmp_path / label / "3.fits", values)
        Image.fromarray(values).save(tmp_path / label / "4.png")
    data = load_dataset(tmp_path, DataConfig(pixels=PixelConfig(value_range=(0, 255))))
    assert [data.images.name(i) for i in range(4)] == [f"bright/{n}" for n in ("1.npy", "2.dcm", "3.fits", "4.png")]
    levels = [data.images.load(i).getpixel((2, 2)) for i in range(8)]
    assert levels == [(240,) * 3] * 4 + [(10,) * 3] * 4
    assert len({data.images.content_hash(i) for i in range(8)}) == 8
    table = tmp_path / "t.csv"
    table.write_text("path,label\nbright/2.dcm,b\ndark/1.npy,d\n")
    assert load_dataset(table).images.load(1).getpixel((0, 0)) == (10, 10, 10)
    assert FileImages(tmp_path, ["dark/2.dcm"]).load(0).getpixel((0, 0)) == (10, 10, 10)
    content = (tmp_path / "bright" / "2.dcm").read_bytes()
    assert decode_image(io.BytesIO(content), "a row").getpixel((0, 0)) == (240,) * 3
    in_memory = decode_image(
        io.BytesIO((tmp_path / "dark" / "3.fits").read_bytes()), "a row", PixelConfig(value_range=(0, 255))
    )
    assert in_memory.getpixel((0, 0)) == (10, 10, 10)


@pytest.mark.parametrize(
    ("package", "name", "extra"), [("astropy.io", "a.fits", "fits"), ("pydicom", "a.dcm", "dicom")]
)
def test_a_missing_package_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, name: str, extra: str
) -> None:
    if extra == "fits":
        write_fits(tmp_path / name, np.zeros((2, 2)))
    else:
        dicom(np.zeros((2, 2), np.uint8), tmp_path / name)
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(UserError, match=rf"pip install 'keepsight\[{extra}\]'"):
        read_image(tmp_path / name)
