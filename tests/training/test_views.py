"""Every operation of a view against torchvision's, image by image, and what is drawn at random."""

import math
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from conr.models.siamese import to_pixels
from conr.observer import Observer
from conr.parameters import Views
from conr.training.views import ViewParameters, apply, draw, resample, two_views

NOTHING = Views(flip=0.0, rotation=0.0, jitter=0.0, grayscale=0.0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_pixels(batch: int, height: int = 12, width: int = 16) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=generator(batch))


def unchanged(pixels: Tensor) -> dict[str, Tensor]:
    """The geometry of a view that leaves its image unchanged."""
    batch, _, height, width = pixels.shape
    return {
        "crop": torch.tensor([[0.0, 0.0, height, width]]).repeat(batch, 1),
        "flipped": torch.zeros(batch, dtype=torch.bool),
        "angle": torch.zeros(batch),
    }


def images_of(values: Tensor) -> Tensor:
    return (values * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


BOXES = [(0, 0, 12, 16), (0, 0, 6, 8), (3, 5, 7, 9), (11, 15, 1, 1), (2, 0, 10, 3), (5, 4, 1, 12)]


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("flipped", [False, True])
def test_crop_and_flip_equal_torchvision(flipped: bool, antialias: bool) -> None:
    # Crops are never larger than the output, where antialiasing does nothing.
    pixels = random_pixels(len(BOXES))
    parameters = unchanged(pixels) | {"crop": torch.tensor(BOXES).float()}
    parameters["flipped"] = torch.full((len(BOXES),), flipped)
    views = resample(pixels, **parameters)
    for image, view, box in zip(pixels, views, BOXES, strict=True):
        expected = tv.resized_crop(image, *box, size=[12, 16], antialias=antialias)
        expected = tv.hflip(expected) if flipped else expected
        torch.testing.assert_close(view, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(12, 12), (12, 16), (9, 7)])
def test_rotation_equals_torchvision(height: int, width: int) -> None:
    angles = [0.0, 10.0, -37.5, 90.0, 180.0, 133.0]
    pixels = random_pixels(len(angles), height, width)
    views = resample(pixels, **(unchanged(pixels) | {"angle": torch.tensor(angles)}))
    for image, view, angle in zip(pixels, views, angles, strict=True):
        expected = tv.rotate(image, angle, interpolation=InterpolationMode.BILINEAR)
        torch.testing.assert_close(view, expected, rtol=0, atol=1e-4)


def test_rotation_comes_before_the_crop_and_the_flip_after() -> None:
    # On a ramp bilinear interpolation is exact, so one resampling equals torchvision's two.
    ramp = torch.arange(40.0).unsqueeze(1) * 0.015 + torch.arange(40.0) * 0.008
    pixels = ramp.expand(1, 3, 40, 40)
    box = (12, 14, 10, 14)
    parameters = {
        "crop": torch.tensor([box]).float(),
        "flipped": torch.tensor([True]),
        "angle": torch.tensor([25.0]),
    }
    rotated = tv.rotate(pixels, 25.0, interpolation=InterpolationMode.BILINEAR)
    expected = tv.hflip(tv.resized_crop(rotated, *box, size=[40, 40], antialias=False))
    torch.testing.assert_close(resample(pixels, **parameters), expected, rtol=0, atol=1e-4)


FACTORS = [0.0, 0.6, 1.0, 1.3, 2.0]


@pytest.mark.parametrize(
    ("name", "operation"),
    [
        ("brightness", tv.adjust_brightness),
        ("contrast", tv.adjust_contrast),
        ("saturation", tv.adjust_saturation),
    ],
)
def test_blending_operations_equal_torchvision(name: str, operation: object) -> None:
    pixels = random_pixels(len(FACTORS))
    views = apply(pixels, ViewParameters(**unchanged(pixels), **{name: torch.tensor(FACTORS)}))
    for image, view, factor in zip(pixels, views, FACTORS, strict=True):
        torch.testing.assert_close(view, operation(image, factor), rtol=0, atol=1e-5)


def test_hue_equals_torchvision() -> None:
    shifts = [-0.5, -0.21, 0.0, 0.1, 0.34, 0.5]
    pixels = random_pixels(len(shifts))
    pixels[:, :, 0, :4] = 0.5  # gray has no hue
    pixels[:, :, 1, :3] = torch.eye(3).unsqueeze(0)
    pixels[:, :, 2, :3] = 1 - torch.eye(3).unsqueeze(0)  # two channels share the maximum
    pixels[:, :, 3] = 0.0
    views = apply(pixels, ViewParameters(**unchanged(pixels), hue=torch.tensor(shifts)))
    for image, view, shift in zip(pixels, views, shifts, strict=True):
        torch.testing.assert_close(view, tv.adjust_hue(image, shift), rtol=0, atol=1e-5)


def test_grayscale_equals_torchvision_and_touches_only_its_samples() -> None:
    pixels = random_pixels(3)
    views = apply(pixels, ViewParameters(**unchanged(pixels), grayscale=torch.tensor([True, False, True])))
    for i in (0, 2):
        expected = tv.rgb_to_grayscale(pixels[i], num_output_channels=3)
        torch.testing.assert_close(views[i], expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(views[1], pixels[1], rtol=0, atol=1e-5)


def test_a_whole_view_equals_torchvision_operations_in_order() -> None:
    batch = 6
    pixels = random_pixels(batch)
    drawn = torch.rand(4, batch, generator=generator(1))
    brightness, contrast, saturation = 0.6 + 0.8 * drawn[:3]
    hue = drawn[3] * 0.2 - 0.1
    flipped, grayscale = torch.arange(batch) % 2 == 0, torch.arange(batch) % 3 == 0
    parameters = ViewParameters(
        crop=torch.tensor(BOXES).float(),
        flipped=flipped,
        angle=torch.zeros(batch),
        brightness=brightness,
        contrast=contrast,
        saturation=saturation,
        hue=hue,
        grayscale=grayscale,
    )
    views = apply(pixels, parameters)
    for i, box in enumerate(BOXES):
        expected = tv.resized_crop(pixels[i], *box, size=[12, 16], antialias=True)
        expected = tv.hflip(expected) if flipped[i] else expected
        expected = tv.adjust_brightness(expected, brightness[i].item())
        expected = tv.adjust_contrast(expected, contrast[i].item())
        expected = tv.adjust_saturation(expected, saturation[i].item())
        expected = tv.adjust_hue(expected, hue[i].item())
        expected = tv.rgb_to_grayscale(expected, num_output_channels=3) if grayscale[i] else expected
        torch.testing.assert_close(views[i], expected, rtol=0, atol=2e-5)


def test_pixels_are_scaled_and_turned_without_a_copy_of_the_layout() -> None:
    images = torch.tensor([[[[0, 51, 255], [102, 0, 0]]]], dtype=torch.uint8)
    pixels = to_pixels(images)
    assert pixels.shape == (1, 3, 1, 2)
    torch.testing.assert_close(pixels[0, :, 0, 0], torch.tensor([0.0, 0.2, 1.0]))
    torch.testing.assert_close(pixels[0, :, 0, 1], torch.tensor([0.4, 0.0, 0.0]))


EVERYTHING = Views(rotation=30.0, brightness=0.9, contrast=0.9, saturation=0.9, hue=0.5)


@pytest.mark.parametrize("fill", ["noise", "black", "white"])
def test_views_are_float32_pixels_between_zero_and_one(fill: str) -> None:
    pixels = {"noise": random_pixels(64), "black": torch.zeros(64, 3, 12, 16)}.get(fill, torch.ones(64, 3, 12, 16))
    for settings in (Views(), EVERYTHING, Views(jitter=0.0, rotation=30.0)):
        for view in two_views(images_of(pixels), settings, 0.08, generator()):
            assert view.shape == (64, 3, 12, 16)
            assert view.dtype == torch.float32
            assert view.min() >= 0
            assert view.max() <= 1


def test_equal_images_in_a_batch_get_different_views() -> None:
    images = images_of(random_pixels(1)).repeat(8, 1, 1, 1)
    views = torch.cat(two_views(images, Views(), 0.08, generator())).flatten(1)
    distances = torch.cdist(views, views) + torch.eye(16) * 1e9
    assert distances.min() > 0.1


def test_the_same_seed_gives_the_same_views_and_another_seed_others() -> None:
    images = images_of(random_pixels(8))
    first = torch.stack(two_views(images, EVERYTHING, 0.08, generator(5)))
    again = torch.stack(two_views(images, EVERYTHING, 0.08, generator(5)))
    other = torch.stack(two_views(images, EVERYTHING, 0.08, generator(6)))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("crop_scale", [0.08, 0.45, 0.9])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (20, 30)])
def test_crops_keep_to_their_scale_and_ratio_inside_the_image(height: int, width: int, crop_scale: float) -> None:
    crop = draw(2000, height, width, Views(), crop_scale, generator()).crop
    top, left, crop_height, crop_width = crop.unbind(1)
    share = crop_height * crop_width / (height * width)
    ratio = crop_width / crop_height
    whole = (crop_height == height) & (crop_width == width)
    assert (share >= crop_scale - 1e-5).all()
    assert (share <= 1 + 1e-5).all()
    assert (whole | ((ratio > 3 / 4 - 1e-5) & (ratio < 4 / 3 + 1e-5))).all()
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + crop_height <= height + 1e-4).all()
    assert (left + crop_width <= width + 1e-4).all()


def test_small_crop_areas_are_drawn_evenly() -> None:
    crop = draw(4000, 32, 32, Views(), 0.1, generator()).crop
    share = (crop[:, 2] * crop[:, 3] / 32**2).sort().values
    # Below 3/4 of the area every ratio fits, so there the density is that of the uniform draw.
    below = (share < 0.7).sum().item() / 4000
    assert (share < 0.4).sum().item() / 4000 == pytest.approx(below / 2, abs=0.02)
    assert below > 0.6


def test_ratios_of_small_crops_are_drawn_evenly_on_a_logarithmic_scale() -> None:
    crop = draw(4000, 32, 32, Views(), 0.08, generator()).crop
    logarithm = (crop[:, 3] / crop[:, 2])[crop[:, 2] * crop[:, 3] < 700].log()
    edge = math.log(4 / 3)
    assert logarithm.mean().item() == pytest.approx(0, abs=0.02)
    assert logarithm.std().item() == pytest.approx(2 * edge / math.sqrt(12), rel=0.03)


def test_positions_of_crops_are_uniform_and_independent() -> None:
    top, left, height, width = draw(4000, 32, 32, Views(), 0.08, generator()).crop.unbind(1)
    free = (height < 31) & (width < 31)
    positions = torch.stack((top / (32 - height), left / (32 - width)))[:, free]
    assert positions.mean(1).tolist() == pytest.approx([0.5, 0.5], abs=0.02)
    assert positions.std(1).tolist() == pytest.approx([1 / math.sqrt(12)] * 2, rel=0.03)
    assert torch.corrcoef(positions)[0, 1].item() == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize(("probability", "expected"), [(0.0, 0), (1.0, 500)])
def test_certain_and_impossible_flips(probability: float, expected: int) -> None:
    flipped = draw(500, 8, 8, Views(flip=probability), 1.0, generator()).flipped
    assert flipped.sum().item() == expected


def test_flip_of_one_mirrors_every_image() -> None:
    images = images_of(random_pixels(4))
    views = two_views(images, NOTHING.model_copy(update={"flip": 1.0}), 1.0, generator())
    for view in views:
        torch.testing.assert_close(view, to_pixels(images).flip(3), rtol=0, atol=1e-5)


def test_choices_come_with_their_probabilities() -> None:
    parameters = draw(10_000, 8, 8, Views(flip=0.5, jitter=0.8, grayscale=0.2), 1.0, generator())
    assert parameters.grayscale is not None
    assert parameters.brightness is not None
    assert parameters.hue is not None
    assert parameters.flipped.float().mean().item() == pytest.approx(0.5, abs=0.02)
    assert parameters.grayscale.float().mean().item() == pytest.approx(0.2, abs=0.02)
    assert (parameters.brightness != 1).float().mean().item() == pytest.approx(0.8, abs=0.02)
    assert torch.equal(parameters.brightness != 1, parameters.hue != 0)


def test_strengths_bound_what_is_drawn() -> None:
    settings = Views(jitter=1.0, rotation=20.0, brightness=0.4, contrast=0.2, saturation=3.0, hue=0.1)
    parameters = draw(5000, 8, 8, settings, 1.0, generator())
    bounds = [
        (parameters.angle, -20, 20),
        (parameters.brightness, 0.6, 1.4),
        (parameters.contrast, 0.8, 1.2),
        (parameters.saturation, 0, 4),
        (parameters.hue, -0.1, 0.1),
    ]
    for values, low, high in bounds:
        assert values is not None
        margin = (high - low) / 100
        assert low <= values.min().item() < low + margin
        assert high - margin < values.max().item() <= high


@pytest.mark.parametrize(
    "settings",
    [NOTHING, Views(flip=0.0, jitter=1.0, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0, grayscale=0.0)],
)
def test_zero_strength_leaves_whole_images_unchanged(settings: Views) -> None:
    # No other ratio than the image's own covers the whole area, so every crop is the whole image.
    images = images_of(random_pixels(16))
    for view in two_views(images, settings, 1.0, generator()):
        torch.testing.assert_close(view, to_pixels(images), rtol=0, atol=1e-5)


def test_jitter_of_zero_skips_the_color_operations() -> None:
    parameters = draw(4, 8, 8, NOTHING, 1.0, generator())
    skipped = (parameters.brightness, parameters.contrast, parameters.saturation, parameters.hue)
    assert (*skipped, parameters.grayscale) == (None,) * 5


def test_views_of_a_batch_do_not_depend_on_each_other() -> None:
    pixels = random_pixels(6)
    parameters = draw(6, 12, 16, EVERYTHING, 0.08, generator(3))
    at_once = apply(pixels, parameters)
    for i in range(6):
        row = ViewParameters(**{name: value[i : i + 1] for name, value in vars(parameters).items()})
        torch.testing.assert_close(apply(pixels[i : i + 1], row)[0], at_once[i], rtol=0, atol=1e-6)


def test_full_turn_is_no_turn() -> None:
    pixels = random_pixels(1)
    angle = torch.tensor([math.degrees(2 * math.pi)])
    torch.testing.assert_close(resample(pixels, **(unchanged(pixels) | {"angle": angle})), pixels, rtol=0, atol=1e-4)


def test_one_draw_gives_the_numbers_of_many() -> None:
    """Those of earlier versions, which drew every parameter by itself: runs can be repeated."""
    settings, one_by_one = Views(jitter=0.5, rotation=20.0), generator(7)

    def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        drawn = torch.rand(shape, generator=one_by_one)
        return drawn if (low, high) == (0.0, 1.0) else drawn * (high - low) + low

    jittered = uniform(6) < 0.5
    area, ratio = (
        uniform(6, 10, low=0.3) * (12 * 16),
        torch.exp(uniform(6, 10, low=math.log(3 / 4), high=math.log(4 / 3))),
    )
    heights, widths = (area / ratio).sqrt(), (area * ratio).sqrt()
    fits = (heights <= 12) & (widths <= 16)
    first = fits.to(torch.uint8).argmax(1, keepdim=True)
    found = fits.gather(1, first)
    height = torch.where(found, heights.gather(1, first), 12.0)
    width = torch.where(found, widths.gather(1, first), 16.0)
    offsets = uniform(6, 2)
    drawn = draw(6, 12, 16, settings, 0.3, generator(7))
    assert torch.equal(
        drawn.crop, torch.cat((offsets[:, :1] * (12 - height), offsets[:, 1:] * (16 - width), height, width), 1)
    )
    assert torch.equal(drawn.flipped, uniform(6) < settings.flip)
    assert torch.equal(drawn.angle, uniform(6, low=-20, high=20))
    for found, strength in ((drawn.brightness, 0.4), (drawn.contrast, 0.4), (drawn.saturation, settings.saturation)):
        assert found is not None
        assert torch.equal(found, torch.where(jittered, uniform(6, low=1 - strength, high=1 + strength), 1.0))
    assert drawn.hue is not None
    assert torch.equal(drawn.hue, torch.where(jittered, uniform(6, low=-settings.hue, high=settings.hue), 0.0))
    assert drawn.grayscale is not None
    assert torch.equal(drawn.grayscale, uniform(6) < settings.grayscale)


def test_the_observer_is_notified_of_what_is_drawn_and_of_both_views() -> None:
    class Tracer(Observer):
        traces: ClassVar[list[tuple[str, Any]]] = []

        def traced(self, name: str, value: Any) -> None:
            self.traces.append((name, value))

    images = images_of(random_pixels(4))
    views = two_views(images, EVERYTHING, 0.08, generator(), Tracer())
    assert [name for name, _ in Tracer.traces] == ["view 1", "view 2", "pixels"]
    first, second, pixels = (value for _, value in Tracer.traces)
    for drawn, view, seen in zip((first, second), views, pixels, strict=True):
        assert torch.equal(apply(to_pixels(images), drawn), view)
        assert torch.equal(seen, view)
