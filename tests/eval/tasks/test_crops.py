import numpy as np
import pytest
import torch

from eval.datasets.base import IGNORE
from eval.tasks.crops import flips, focus, importance, labelled, random, training_crops

NOTHING = torch.empty(0)


def rng(seed=0):
    return np.random.default_rng(seed)


def test_random_windows_reach_every_corner_and_stay_inside():
    draw, found = rng(), set()
    for _ in range(400):
        found.add(random(torch.zeros(6, 4), 3, draw, NOTHING))
    assert found == {(y, x) for y in range(4) for x in range(2)}
    assert random(torch.zeros(2, 4), 3, draw, NOTHING)[0] == 0


def test_focus_holds_a_labelled_pixel_and_stays_inside():
    target = torch.full((10, 10), IGNORE)
    target[9, 0] = target[4, 5] = 1
    corners = {focus(target, 4, rng(seed), NOTHING) for seed in range(50)}
    assert corners == {(6, 0), (2, 3)}  # as central as the border allows
    values = torch.full((10, 10), torch.nan)
    values[0, 9] = 3.0
    assert focus(values, 4, rng(), NOTHING) == (0, 6)
    assert 0 <= focus(torch.full((10, 10), IGNORE), 4, rng(), NOTHING)[0] <= 6


def test_importance_finds_the_rare_class():
    target = torch.zeros(40, 40, dtype=torch.long)
    target[30:34, 30:34] = 1
    target[:8] = IGNORE
    worth = torch.tensor([1 / 0.99, 1 / 0.01])

    def share(crop):
        corners = [crop(target, 8, rng(seed), worth) for seed in range(300)]
        return np.mean([(target[y : y + 8, x : x + 8] == 1).any() for y, x in corners])

    assert share(importance) > 4 * share(random)


def test_pixels_and_targets_are_cut_alike_and_depend_on_epoch_and_position_alone():
    target = torch.arange(2 * 12 * 10).view(2, 12, 10)
    imgs = target[:, None].float().expand(2, 3, 12, 10)
    options = {"kind": "random", "size": 5, "worth": NOTHING}
    x, y = training_crops(imgs, target, torch.tensor([4, 9]), epoch=1, **options)
    assert x.shape == (2, 3, 5, 5) and torch.equal(x[:, 0].long(), y)
    (a, b), (c, d) = (
        training_crops(imgs[1:], target[1:], torch.tensor([9]), epoch=epoch, **options) for epoch in (1, 2)
    )
    assert torch.equal(b[0], y[1]) and torch.equal(a[0], x[1])  # whatever else is in the batch
    assert not torch.equal(d, b) and c.shape == a.shape


@pytest.mark.parametrize("values", [False, True])
def test_beyond_a_small_image_nothing_is_labelled(values):
    target = torch.ones(1, 3, 4) if values else torch.ones(1, 3, 4, dtype=torch.long)
    imgs = torch.arange(12.0).view(1, 1, 3, 4)
    x, y = training_crops(imgs, target, torch.tensor([0]), kind="random", size=5, worth=NOTHING, epoch=1)
    assert labelled(y).sum() == 12 and labelled(y)[0, :3, :4].all()
    assert torch.equal(x[0, 0, 3:, :4], imgs[0, 0, 2:].expand(2, 4))  # the last row goes on


def test_a_target_per_image_stays():
    labels = torch.tensor([[True, False], [False, False]])
    x, y = training_crops(
        torch.rand(2, 3, 8, 8), labels, torch.tensor([0, 1]), kind="random", size=4, worth=NOTHING, epoch=1
    )
    assert x.shape == (2, 3, 4, 4) and y is not labels and torch.equal(y, labels)


@pytest.mark.parametrize("dates", [(), (3,)])
def test_images_are_mirrored_with_their_maps_by_epoch_and_position_alone(dates):
    columns = torch.arange(5).expand(64, 4, 5)
    imgs = columns[:, None].float().expand(64, 2, 4, 5) if not dates else columns[:, None, None].expand(64, 3, 2, 4, 5)
    pixels, maps = flips(imgs, columns, torch.arange(64), epoch=1)
    assert torch.equal(pixels[..., 0, :, :].reshape(64, -1, 4, 5)[:, 0].long(), maps)
    mirrored = maps[:, 0, 0] == 4
    assert 20 < mirrored.sum() < 44 and torch.equal(maps[~mirrored], columns[~mirrored])
    assert torch.equal(flips(imgs[8:], columns[8:], torch.arange(8, 64), epoch=1)[1], maps[8:])
    assert not torch.equal(flips(imgs, columns, torch.arange(64), epoch=2)[1], maps)
    labels = torch.arange(64)
    assert torch.equal(flips(imgs, labels, labels, epoch=1)[1], labels)  # a label of an image stays
