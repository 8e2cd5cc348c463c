import pytest
import torch

from dinov2.distributed import gather, mean, rank, sum_, world
from tests.ranks import assert_rank_law, run_ranks


def collect(offset):
    own = torch.tensor([[rank() + offset]])
    return {"all": gather(own), "mean": mean(own), "sum": sum_(own), "world": world()}


def fail_on_last_rank():
    if rank() == world() - 1:
        raise ValueError("this rank is unwell")


def breaks_the_law():
    return {"loss": torch.tensor(float(rank()) + 1.0)}


def test_ranks_see_each_other():
    for result in run_ranks(collect, 3, 0.5):
        assert result["all"].flatten().tolist() == [0.5, 1.5, 2.5]
        assert float(result["mean"]) == 1.5 and float(result["sum"]) == 4.5 and result["world"] == 3


def test_a_failing_rank_raises_here_with_its_traceback():
    with pytest.raises(Exception, match="this rank is unwell"):
        run_ranks(fail_on_last_rank, 2)


def test_the_law_can_fail():
    with pytest.raises(AssertionError, match="loss on rank 1 of 2"):
        assert_rank_law(breaks_the_law, worlds=(2,))
