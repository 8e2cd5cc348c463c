from dataclasses import replace

import numpy as np
import pytest
import torch

from dinov2.data.batch import MaskSpec, ViewSpec
from dinov2.data.collate import collate
from dinov2.data.views import Augment, draw

GLOBAL = ViewSpec("global", 2, 32, (0.3, 1.0), (4, 13), mask=MaskSpec("block", 8))
LOCAL = ViewSpec("local", 3, 16, (0.05, 0.3), (1, 4), distinct=False)


@pytest.fixture
def raws(samples, norm):
    return [draw(s, [GLOBAL, LOCAL], Augment(simulate=0.5), norm, (0, 0, 100 + i)) for i, s in enumerate(samples)]


def edit(raw, **changes):
    """The sample with its first global crop changed."""
    view = raw.views["global"]
    crops = (replace(view.crops[0], **changes), *view.crops[1:])
    return replace(raw, views={**raw.views, "global": replace(view, crops=crops)})


def test_rows_are_crop_major_and_pads_are_marked(raws):
    raw = collate(raws)
    assert raw.positions.tolist() == [100, 101, 102, 103, 104] and raw.keys[1] == "enmap0"
    for spec, width in [(GLOBAL, 13), (LOCAL, 4)]:
        view = raw.views[spec.name]
        assert view.chn_ids.shape == view.spec_masks.shape == (spec.count * len(raws), width)
        for i in range(spec.count):
            for b, sample in enumerate(raws):
                ids, padding = view.chn_ids[i * len(raws) + b], view.spec_masks[i * len(raws) + b]
                own = sample.views[spec.name].crops[i].chn_ids
                assert ids[: len(own)].tolist() == own.tolist() and set(ids[len(own) :].tolist()) <= {own[-1]}
                assert padding.tolist() == [False] * len(own) + [True] * (width - len(own))
    assert raw.views["global"].masks.shape == (10, 16) and raw.views["local"].masks is None


def test_pixels_travel_unchanged_in_one_buffer(raws):
    raw = collate(raws)
    n = 0
    for group in raw.views["global"].groups:
        assert group.start % 8 == 0
        count, h, w = group.shape
        stored = raw.buffer[group.start : group.start + count * h * w * group.dtype.itemsize].view(group.dtype)
        for plane, (target, _, _) in zip(
            stored.view(count, h, w).numpy(), raw.views["global"].planes[n : n + count].tolist(), strict=True
        ):
            row, slot = divmod(target, 13)
            crop = raws[row % len(raws)].views["global"].crops[row // len(raws)]
            (own,) = [p.planes[list(p.slots).index(slot)] for p in crop.pieces if slot in p.slots]
            assert plane.dtype == own.dtype
            assert np.array_equal(plane[: own.shape[0], : own.shape[1]], own, equal_nan=own.dtype.kind == "f")
        n += count
    assert n == len(raw.views["global"].planes)


def test_labels_are_integers_and_missing_ones_are_minus_one(raws):
    assert collate(raws).labels["class"].tolist() == [0, -1, 1, -1, 2]
    assert list(collate(raws).labels) == ["class"]  # "height" is not an integer
    assert collate(raws).labels["class"].dtype == torch.int64


@pytest.mark.parametrize(
    "ids,sentence",
    [
        (lambda ids: ids.astype(np.float32), "channel ids are float32; they must be integers"),
        (lambda ids: ids[:-1], "channel ids for"),
        (lambda ids: np.where(ids == ids[0], 0, ids), "channel id 0 is neither -14..-1 nor a wavelength"),
        (lambda ids: np.where(ids == ids[0], -15, ids), "channel id -15 is neither"),
        (lambda ids: np.where(ids == ids[0], 20001, ids), "channel id 20001 is neither"),
    ],
)
def test_wrong_ids_are_errors_that_name_the_sample(raws, ids, sentence):
    bad = edit(raws[0], chn_ids=ids(raws[0].views["global"].crops[0].chn_ids))
    with pytest.raises(ValueError, match=f"sample 'mixed0', view 'global'.*{sentence}"):
        collate([raws[1], bad])


def test_a_view_of_padding_only_is_an_error(raws):
    bad = edit(raws[0], chn_ids=np.empty(0, np.int64), pieces=())
    with pytest.raises(ValueError, match="sample 'mixed0', view 'global': 0 channels.*all would be padding"):
        collate([bad])


def test_views_that_differ_between_samples_are_an_error(raws, samples, norm):
    other = draw(samples[2], [GLOBAL], Augment(), norm, (0, 0, 7))
    with pytest.raises(ValueError, match="sample 'mixed1': its views differ in name or size from those of 'mixed0'"):
        collate([raws[0], other])


class Drawn(torch.utils.data.Dataset):
    """Raw samples drawn where they are asked for: in a loader's worker."""

    def __init__(self, samples, norm):
        self.samples, self.norm = samples, norm

    def __len__(self):
        return 4 * len(self.samples)

    def __getitem__(self, position):
        sample = self.samples[position % len(self.samples)]
        return draw(sample, [GLOBAL, LOCAL], Augment(simulate=0.5), self.norm, (5, 0, position))


def test_workers_change_nothing(samples, norm):
    def load(workers):
        loader = torch.utils.data.DataLoader(Drawn(samples, norm), 4, collate_fn=collate, num_workers=workers)
        return list(loader)

    for alone, shipped in zip(load(0), load(2), strict=True):
        assert torch.equal(alone.buffer, shipped.buffer) and alone.keys == shipped.keys
        for name in ("global", "local"):
            a, b = alone.views[name], shipped.views[name]
            assert a.groups == b.groups and torch.equal(a.planes, b.planes) and torch.equal(a.pieces, b.pieces)
            assert torch.equal(a.params.nan_to_num(-1), b.params.nan_to_num(-1)) and torch.equal(a.chn_ids, b.chn_ids)
