"""Files and pictures: what is written comes back, and stands alone."""

import csv
import json
import re

import pytest

from bench.core import bars, report
from bench.core.table import losses, make_console, means, seconds, summarise


def test_json_round_trip(tmp_path, run):
    path = tmp_path / "deep" / "run.json"
    report.write_json(path, run)
    again = report.read_json(path)
    assert again == run
    assert again.results[0].speedup() == pytest.approx(2.0)


def test_json_of_another_schema_is_refused(tmp_path, run):
    path = tmp_path / "run.json"
    report.write_json(path, run)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": 99}))
    with pytest.raises(ValueError, match=r"expected schema \d+, got 99"):
        report.read_json(path)


def test_csv_has_a_row_per_result_and_empty_cells_for_missing_peers(tmp_path, run):
    del run.results[0].times["copy"]
    report.write_csv(tmp_path / "run.csv", run)
    rows = list(csv.DictReader((tmp_path / "run.csv").open(encoding="utf-8")))
    assert len(rows) == len(run.results)
    assert float(rows[0]["us"]) == pytest.approx(1000)
    assert rows[0]["copy_us"] == ""
    assert float(rows[1]["copy_us"]) == pytest.approx(800)


def test_html_stands_alone_and_shows_losses(tmp_path, run):
    bar = bars.Bar("at least 3×", lambda r: True, bars.speedup(), each=3.0)
    run.verdicts = bars.judge([bar], run.results)
    report.write_html(tmp_path / "run.html", run)
    page = (tmp_path / "run.html").read_text(encoding="utf-8")
    assert page.count("<svg") >= 2  # the throughput figure and the heat map
    assert not re.search(r"<(script|link|img|iframe)|(src|href)=\"(?!#)http", page)
    assert "at least 3×" in page and "✗" in page
    assert "0.67×" in page  # the loss
    assert "mask &lt;25 %&gt;" in page  # text is escaped


def test_html_of_nothing_but_a_cache_case(tmp_path, run):
    run.results = run.results[-1:]
    report.write_html(tmp_path / "run.html", run)
    assert "No cell is slower than a peer" in (tmp_path / "run.html").read_text(encoding="utf-8")


def test_png_is_a_picture(tmp_path, run):
    report.write_png(tmp_path / "run.png", run)
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")


def test_losses_are_rivals_only_worst_first(run):
    run.results[0].times["compile"] = run.results[0].times["copy"]  # 0.8 ms against our 1 ms
    lost = losses(run.results)
    # The copy is faster everywhere and is no rival.
    assert [(round(value, 2), peer) for value, peer, _ in lost] == [
        (0.67, "torch"),
        (0.8, "compile"),
    ]


def test_means_are_geometric_with_the_worst_cell(run):
    (key, count, mean, worst), *_ = means(run.results)
    assert key == ("softmax", "sweep", "fp32 1T") and count == 3
    assert mean == pytest.approx(2 / (1.0 * 1.1 * 1.2) ** (1 / 3))
    assert worst.case.n == 1 << 20


def test_summary_puts_what_is_wrong_before_everything(run, capsys):
    run.results[0].accuracy = type(run.results[0].accuracy)(1.0, 1e-7, 6e-8)
    summarise(make_console(), run.results, [])
    text = capsys.readouterr().out
    assert text.index("WRONG") < text.index("slower than a peer") < text.index("geometric means")


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (1.5, "1.5 s"), (4e-3, "4 ms"), (1.234e-5, "12.3 µs"), (5e-8, "50 ns")],
)
def test_seconds(value, text):
    assert seconds(value) == text
