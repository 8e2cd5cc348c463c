import pytest
import torch

from eval.encoders import load_model
from eval.features import Trial
from eval.networks import Model, Network
from eval.reading import VIEW
from eval.tasks.encoding import Encoded, Store, encode, look
from eval.tiling import slide
from tests.dense import dataset

CPU = torch.device("cpu")


class Pixels(Network):
    """The pixels, and four times as coarse ones."""

    def maps(self, x):
        return [x["imgs"], torch.nn.functional.avg_pool2d(x["imgs"], 4)]


MODEL = Model("pixels", "floor", "0", Pixels())


def first_band(features, size, days=None, padding=None):
    return torch.nn.functional.interpolate(features[0][:, :1], size)


def view_of(*shape):
    draw = torch.Generator().manual_seed(0)
    return {"imgs": torch.rand(*shape, generator=draw), "chn_ids": torch.arange(shape[-3]).expand(shape[:-2])}


@pytest.mark.parametrize("size", [(16, 16), (24, 16), (17, 40), (8, 12)])
def test_windows_make_one_seamless_map(size):
    view = view_of(3, 2, *size)
    encoded = encode(MODEL, view, size, 16)
    torch.testing.assert_close(encoded.predict(first_band), view["imgs"][:, :1])
    # the same as one window after the other, where what is seen depends on the window
    mean = lambda f, size, *_: f[0].mean((2, 3), keepdim=True).expand(-1, -1, *size)  # noqa: E731
    expected = slide(lambda tiles, which: mean([tiles], (16, 16)), view["imgs"], 16, batch=1)
    torch.testing.assert_close(encoded.predict(mean), expected)


def test_logits_have_the_targets_size():
    view = view_of(2, 3, 16, 16)
    assert encode(MODEL, view, (40, 40)).predict(first_band).shape == (2, 1, 40, 40)
    assert encode(MODEL, view, (40, 40), 8).predict(first_band).shape == (2, 1, 40, 40)
    per_image = lambda f, size, *_: f[0].mean((2, 3))  # noqa: E731
    torch.testing.assert_close(encode(MODEL, view, (), 8).predict(per_image), view["imgs"].mean((2, 3)))
    torch.testing.assert_close(encode(MODEL, view, ()).predict(per_image), view["imgs"].mean((2, 3)))


def test_dates_one_after_the_other_or_together():
    view = view_of(2, 3, 4, 16, 16)
    fine, coarse = look(MODEL, view)
    assert torch.equal(fine, view["imgs"]) and coarse.shape == (2, 3, 4, 4, 4)

    class Together(Pixels):
        def maps(self, x):
            assert x["imgs"].shape == (2, 4, 3, 16, 16) and x["chn_ids"].shape == (2, 4)
            return [x["imgs"]]

    class Three(Model):
        frames = 3

    (both,) = look(Three("three", "floor", "0", Together()), view)
    assert torch.equal(both, view["imgs"])


def test_a_head_gets_the_dates_of_every_window():
    days = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    encoded = encode(MODEL, view_of(2, 2, 3, 24, 16), (24, 16), 16, days=days, padding=days > 3)
    seen = {}

    def head(features, size, days, padding):
        seen.update(days=days, padding=padding)
        return features[0][:, 0, :1]

    encoded.predict(head)
    assert seen["days"].tolist() == [[1, 2], [1, 2], [3, 4], [3, 4]] and seen["padding"].sum() == 2


def test_rows_join_to_what_they_were():
    encoded = encode(MODEL, view_of(3, 2, 16, 16), (16, 16), target=torch.arange(3))
    again = Encoded.join([encoded.row(i) for i in range(3)])
    assert all(torch.equal(a, b) for a, b in zip(again.features, encoded.features, strict=True))
    assert torch.equal(again.target, encoded.target) and again.size == encoded.size


def encodings(images=4, batch=2):
    for _ in range(0, images, batch):
        yield encode(MODEL, view_of(batch, 2, 16, 16), (16, 16))


SIZE = 2 * (16 * 16 + 4 * 4) * 4  # bytes of an image: two bands in float32


def test_a_store_keeps_what_fits_and_only_of_the_latest_model():
    made = []

    def make():
        made.append(1)
        return encodings()

    store = Store(8 * SIZE)
    kept = store.get(("m", "data", "val", ""), 4, make)
    assert isinstance(kept, list) and store.get(("m", "data", "val", ""), 4, make) is kept and len(made) == 1
    assert store.used == 4 * SIZE and len(list(store.get(("m", "data", "test", ""), 4, make))) == 2
    streamed = store.get(("m", "data", "train", ""), 4, make)  # no room; val and test stay
    assert not isinstance(streamed, list) and sum(map(len, streamed)) == 4 and store.used == 8 * SIZE
    assert isinstance(store.get(("m", "other", "val", ""), 4, make), list) and store.used == 4 * SIZE
    store.get(("n", "other", "val", ""), 4, make)
    assert {key[0] for key in store.held} == {"n"}


def test_a_frozen_encoder_leaves_no_graph_and_a_trained_one_does():
    data = dataset()
    trial = Trial.of(load_model("random:vit_tiny?patch_size=4&img_size=16&embed_dim=32&depth=2&num_heads=2"), data, CPU)
    batch = next(trial.batches("val"))
    assert not encode(trial.model, batch.views[VIEW], (16, 16)).features[0].requires_grad
    trial.model.unfreeze("finetune")
    assert encode(trial.model, batch.views[VIEW], (16, 16)).features[0].requires_grad
