import torch

from eval.decoders import build_decoder, build_neck


def test_difference_is_after_minus_before():
    neck = build_neck("difference", [3])
    before, after = torch.randn(2, 5, 3, 4, 4).unbind(0)
    (maps,) = neck([torch.stack([before, after], 1)])
    assert torch.equal(maps, after - before) and neck.out_channels == [3]


def test_concat_keeps_before_first():
    neck = build_neck("concat", [3, 2])
    before, after = torch.randn(2, 5, 3, 4, 4).unbind(0)
    maps = neck([torch.stack([before, after], 1), torch.randn(5, 2, 2, 4, 4)])
    assert torch.equal(maps[0], torch.cat([before, after], 1)) and neck.out_channels == [6, 4]


def test_equal_images_leave_the_bias_only():
    neck = build_neck("difference", [3])
    decoder = build_decoder("linear", neck.out_channels, 2)
    x = torch.randn(1, 1, 3, 4, 4).expand(1, 2, 3, 4, 4)
    logits = decoder(neck([x]), (8, 8))
    torch.testing.assert_close(logits, decoder.mlp[0].bias.view(1, 2, 1, 1).expand(1, 2, 8, 8))
