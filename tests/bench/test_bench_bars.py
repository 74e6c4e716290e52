"""Bars judge by the mean and by the worst cell."""

import pytest

from bench import softmax
from bench.core.bars import Bar, error_ratio, extra_us, judge, speedup, times_copy

from .made_up import made_up

ALL = lambda result: True  # noqa: E731


def test_mean_and_worst_are_judged_apart():
    results = [made_up(torch=4.0), made_up(torch=1.0)]
    assert Bar("", ALL, speedup(), mean=2.0).judge(results).met
    assert not Bar("", ALL, speedup(), mean=2.1).judge(results).met
    assert not Bar("", ALL, speedup(), mean=2.0, each=1.5).judge(results).met
    verdict = Bar("", ALL, speedup(), mean=2.0, each=1.0).judge(results)
    assert verdict.met and verdict.worst == pytest.approx(1.0) and verdict.at is results[1]


def test_at_most_takes_the_greatest_as_the_worst():
    results = [made_up(ours=0.8), made_up(ours=1.2)]  # the copy takes 0.8
    verdict = Bar("", ALL, times_copy, each=1.3, at_most=True).judge(results)
    assert verdict.worst == pytest.approx(1.5) and not verdict.met


def test_negative_values_have_no_mean_and_may_pass():
    verdict = Bar("", ALL, extra_us, each=3.0, at_most=True).judge([made_up(ours=1.0, torch=2.0)])
    assert verdict.mean is None and verdict.met
    assert verdict.worst == pytest.approx(-1000)


def test_error_ratio():
    assert error_ratio(made_up(right=False)) == pytest.approx(1e4)


def test_a_bar_without_results_is_no_verdict():
    assert Bar("", lambda r: False, speedup(), each=1.0).judge([made_up()]) is None
    assert Bar("", ALL, speedup("triton"), each=1.0).judge([made_up()]) is None


def test_missed_bars_come_first():
    met, missed = (Bar(str(x), ALL, speedup(), each=x) for x in (1.0, 3.0))
    assert [v.met for v in judge([met, missed], [made_up()])] == [False, True]


def test_the_16m_row_is_judged_on_two_threads_in_fp32_only():
    (bar,) = [bar for bar in softmax.BARS if bar.title.startswith("one row of 16M")]
    row = {"shape": (1, 1 << 24)}
    assert bar.judge([made_up(**row), made_up(**row, threads=2, dtype="bf16")]) is None
    assert not bar.judge([made_up(ours=1.2, **row, threads=2)]).met
    assert bar.judge([made_up(**row, threads=2)]).met
