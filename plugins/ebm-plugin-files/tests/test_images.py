"""Folders of images."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ebm_plugin_files.images import Images
from ebmcore.errors import UsageError

LEVELS = np.random.default_rng(0).integers(0, 256, (6, 4, 5, 3), dtype=np.uint8)


def write(levels=LEVELS, folder="pictures", suffix="png"):
    """One image for each array, in a folder."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for i, one in enumerate(levels):
        Image.fromarray(one).save(Path(folder, f"{i}.{suffix}"))
    return Path(folder)


def rows(data):
    """Training and test images as a set of tuples."""
    return {tuple(x.flatten().tolist()) for x in torch.cat([data.train, data.test])}


def test_images_are_channels_height_width():
    data = Images(write(), scale="none")
    assert (data.shape, data.state_space, data.train.dtype) == ((3, 4, 5), "continuous", torch.float32)
    assert (len(data.train), len(data.test)) == (5, 1)
    assert data.train.is_contiguous()
    assert rows(data) == {tuple(x.transpose(2, 0, 1).flatten().tolist()) for x in LEVELS}


@pytest.mark.parametrize(("scale", "low", "high"), [("symmetric", -1, 1), ("unit", 0, 1), ("none", 0, 255)])
def test_scales_map_the_range_of_levels(scale, low, high):
    """The range is that of bytes, not of the images at hand."""
    data = Images(write(np.full((4, 2, 2), 51, np.uint8)), scale=scale)
    torch.testing.assert_close(data.train, torch.full((3, 1, 2, 2), low + (high - low) / 5))
    torch.testing.assert_close(data.shift + data.spread * data.train, torch.full((3, 1, 2, 2), 51.0))


def test_standard_scale_is_that_of_each_channel():
    data = Images(write(), scale="standard")
    torch.testing.assert_close(data.train.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(data.train.std((0, 2, 3), correction=0), torch.ones(3))


def test_subfolders_are_classes():
    """Classes are counted in sorted order, and each image has that of its folder."""
    for name, level in (("dog", 200), ("cat", 100)):
        write(np.full((5, 2, 2), level, np.uint8), f"pets/{name}")
    data = Images(Path("pets"), scale="none")
    assert (data.classes, data.n_classes, data.train_labels.dtype) == (("cat", "dog"), 2, torch.int64)
    for x, labels in ((data.train, data.train_labels), (data.test, data.test_labels)):
        assert torch.equal(x[:, 0, 0, 0], 100.0 * (1 + labels))


def test_labels_and_weights_come_from_files():
    """In the order of the sorted paths, in place of the subfolders."""
    for name in ("cat", "dog"):
        write(LEVELS[:2], f"pictures/{name}")
    np.save("labels.npy", [7, 3, 3, 7])
    np.save("weights.npy", [1.0, 2.0, 3.0, 4.0])
    data = Images("pictures", labels="labels.npy", weights="weights.npy", test_share=0)
    assert (data.classes, data.train_labels.tolist()) == ((3, 7), [1, 0, 0, 1])
    assert data.train_weights.tolist() == [1, 2, 3, 4]
    assert len(data.test) == 0


def test_labels_of_another_folder():
    data = Images(write())
    for name in ("dog", "none"):
        write(LEVELS[:1], f"others/{name}")
    assert data.labels_of("others") == ["dog", "none"]
    assert data.labels_of("pictures") is None
    assert data.labels_of("pictures/0.png") is None


def test_every_name_of_a_folder_is_a_class():
    for name in ("some", "none"):
        write(LEVELS[:2], f"pictures/{name}")
    assert Images("pictures").classes == ("none", "some")


def test_folder_without_subfolders_has_no_labels():
    assert not hasattr(Images(write()), "train_labels")


def test_mode_is_that_of_the_files():
    assert Images(write(LEVELS[..., 0])).shape == (1, 4, 5)
    assert Images(write()).shape == (3, 4, 5)


def test_mode_converts():
    expected = {tuple(np.asarray(Image.fromarray(x).convert("L")).flatten().tolist()) for x in LEVELS}
    assert rows(Images(write(), mode="grey", scale="none")) == expected
    assert Images(write(LEVELS[..., 0], "grey"), mode="rgb").shape == (3, 4, 5)


@pytest.mark.parametrize(("size", "shape"), [(2, (3, 2, 2)), ((8, 3), (3, 8, 3)), ([4, 5], (3, 4, 5))])
def test_size_resizes(size, shape):
    """Images of several sizes get one; a constant image stays as it is."""
    write(np.full((3, 4, 5, 3), 51, np.uint8))
    Image.new("RGB", (9, 7), (51, 51, 51)).save("pictures/other.png")
    data = Images(Path("pictures"), size=size, scale="unit")
    assert data.shape == shape
    torch.testing.assert_close(data.train, torch.full((3, *shape), 0.2))


def test_threshold_makes_bits():
    """0 is the middle of the symmetric range."""
    data = Images(write(LEVELS[..., 0]), threshold=0)
    assert data.state_space == "binary"
    assert rows(data) == {tuple((x[..., 0] > 127).astype(float).flatten().tolist()) for x in LEVELS}


def test_black_and_white_is_binary_in_unit_range():
    Path("bits").mkdir()
    for i in range(3):
        Image.fromarray(LEVELS[i, ..., 0] > 127).save(f"bits/{i}.png")
    assert Images(Path("bits"), scale="unit").state_space == "binary"


def test_other_files_are_passed_over(capsys):
    folder = write()
    (folder / "notes.txt").write_text("nothing")
    (folder / ".hidden.png").write_text("nothing")
    (folder / "empty").mkdir()
    assert len(Images(folder).train) == 5
    assert (
        capsys.readouterr().err
        == "ebmcore: pictures: 5 training and 1 test examples of shape (3, 4, 5), continuous (guessed)\n"
    )


def damage(name):
    """A folder in which something is wrong."""
    folder = write()
    if name == "size":
        Image.new("RGB", (6, 4)).save(folder / "9.png")
    elif name == "sixteen":
        Image.fromarray(np.zeros((4, 5), np.uint16)).save(folder / "0.png")
    elif name == "text":
        (folder / "0.png").write_text("nothing")
    elif name == "cut":
        content = (folder / "5.png").read_bytes()
        (folder / "5.png").write_bytes(content[: len(content) // 2])
    elif name == "mixed":
        write(folder="pictures/more")
    elif name == "none":
        folder = Path("empty")
        folder.mkdir()
    elif name == "one":
        folder = write(LEVELS[:1], "one")
    elif name == "missing":
        folder = Path("nowhere")
    return folder


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("size", {}, r"9\.png has 4x6 pixels, but .*0\.png has 4x5: set size to resize them"),
        ("sixteen", {}, r"0\.png has more than 8 bits in a channel \(I;16\): convert it"),
        ("text", {}, r"0\.png cannot be read \(cannot identify image file .*\): save it again, or move it away"),
        ("cut", {}, r"5\.png cannot be read \(.*\): save it again"),
        ("mixed", {}, r"pictures holds images \(0\.png\) and subfolders of images \(more\): separate them"),
        ("none", {}, r"empty and its subfolders hold no images: put files there that end in \.bmp"),
        ("one", {}, r"one holds 1 example: give at least 2"),
        ("missing", {}, r"nowhere is no folder"),
        ("", {"size": 0}, "size must be at least 1, got 0"),
        ("", {"size": (4, -1)}, r"size must be at least 1, got \(4, -1\)"),
        ("", {"size": 2**24}, "pictures does not fit into memory"),
        ("", {"mode": "cmyk"}, "mode must be one of grey, rgb, got 'cmyk'"),
        ("", {"scale": "log"}, "scale must be one of"),
        ("", {"threshold": 127}, "threshold 127 makes each bit of pictures 0: the scaled values lie in -"),
    ],
)
def test_bad_folders_raise_with_advice(name, options, message):
    folder = damage(name)
    with pytest.raises(UsageError, match=message) as caught:
        Images(folder, **options)
    assert "\n" not in str(caught.value)


def test_huge_image_raises(monkeypatch):
    """An image of more pixels than Pillow takes is refused before it is decoded."""
    folder = write()
    for limit in (15, 5):  # of which Pillow warns, or which it refuses
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        message = rf"0\.png has more than {limit} pixels: make it smaller"
        with warnings.catch_warnings(action="ignore"), pytest.raises(UsageError, match=message):
            Images(folder)


@pytest.mark.parametrize("options", [{}, {"scale": "standard"}, {"threshold": 0}, {"mode": "grey", "size": (3, 2)}])
def test_other_folder_is_on_the_scale(options):
    """Each image is what it is in the data set, in sorted order; a single one too."""
    data = Images(write(), **options)
    x = data.examples_of(Path("pictures"))
    assert {tuple(one.flatten().tolist()) for one in x} == rows(data)
    assert torch.equal(data.examples_of(Path("pictures/4.png")), x[4:5])


def test_other_folder_may_have_classes():
    data = Images(write(), scale="none")
    write(LEVELS[3:4], "more/b")
    write(LEVELS[:1], "more/a")
    assert torch.equal(data.examples_of(Path("more")), torch.from_numpy(LEVELS[[0, 3]].transpose(0, 3, 1, 2)).float())


def test_other_images_have_the_size():
    data = Images(write())
    write(LEVELS[:1, :2], "more")
    with pytest.raises(UsageError, match=r"0\.png has 2x5 pixels, but the training examples have 4x5: set size to resize"):
        data.examples_of(Path("more"))
    assert Images(write(), size=(4, 5)).examples_of(Path("more")).shape == (1, 3, 4, 5)


def test_reads_knows_folders():
    reads = Images.reads
    assert reads(write())
    assert not reads(Path("pictures/0.png"))
    assert not reads(Path("nowhere"))


@pytest.mark.parametrize("options", [{}, {"scale": "standard"}, {"threshold": 0}, {"mode": "grey", "size": (3, 2)}])
def test_record_reads_a_folder(options):
    """Without the examples, from JSON alone."""
    data = Images(write(), **options)
    reader = Images.from_record(json.loads(json.dumps(data.as_record())))
    assert torch.equal(reader.examples_of(Path("pictures")), data.examples_of(Path("pictures")))
    assert not hasattr(reader, "train")


def test_unscaled_are_levels():
    data = Images(write())
    torch.testing.assert_close(data.unscaled(data.train), (data.train.double() + 1) * 127.5)
    assert torch.equal(data.scaled(data.unscaled(data.train)), data.train)


def test_forged_mode_is_refused():
    with pytest.raises(ValueError, match="mode must be one of"):
        Images.from_record(Images(write()).as_record() | {"mode": "F"})
