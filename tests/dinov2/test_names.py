import pytest

from dinov2.names import check_options, suggest


def taker(data, *, width=1, depth=2):
    pass


def test_close_names_are_suggested():
    assert suggest("sentinel", ["landsat", "sentinel2"]) == "; did you mean 'sentinel2'?"
    assert suggest("x", ["landsat"]) == "."


def test_options_are_keyword_only_arguments_and_further_ones():
    check_options("it", ["width", "depth", "side"], taker, more=["side"])
    with pytest.raises(ValueError, match="^it has no option 'widht'; did you mean 'width'\\? Known: width, depth$"):
        check_options("it", ["depth", "widht"], taker)
    with pytest.raises(ValueError, match="no option 'data'. Known: width, depth$"):
        check_options("it", ["data"], taker)
