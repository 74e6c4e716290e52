"""The tables of README and docs are what bench/results says."""

import shutil

import pytest

from bench import tables
from bench.core.report import write_json
from bench.families import FAMILIES, name_of

from .made_up import made_up

TEXT = "before\n<!-- results: {} -->\nold\n<!-- end of results -->\nafter\n"


@pytest.fixture
def runs(tmp_path, run):
    """One machine measured, one folder without results."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "proof.json").write_text('{"steps": []}')
    (tmp_path / "some-cpu").mkdir()
    run.results = [
        made_up(1.0, 2.0, dtype="fp32"),
        made_up(1.0, 8.0, op="log_softmax"),
        made_up(1.0, 3.0, op="match_merge", suite="vit", variant="ViT-B", threads=2),
    ]
    write_json(tmp_path / "some-cpu" / "softmax.json", run)
    return tables.runs(tmp_path)


def test_tables_are_current():
    """Else: make tables."""
    assert tables.main(["--check"]) == 0


def test_a_table_that_is_not_current_is_named(tmp_path, monkeypatch, capsys):
    for page in tables.pages():
        copy = tmp_path / page.relative_to(tables.ROOT)
        copy.parent.mkdir(exist_ok=True)
        shutil.copy(page, copy)
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    readme = tmp_path / "README.md"
    before = readme.read_text()
    assert "<!-- results:" in before
    readme.write_text(before.replace("| softmax |", "| softmax | 99.00× |"))
    assert tables.main(["--check"]) == 1 and "README.md" in capsys.readouterr().out
    assert tables.main([]) == 0 and readme.read_text() == before


def test_means_by_family_and_by_op(runs):
    assert [row[1:5] for row in tables.means(runs, FAMILIES)[1:]] == [
        ("softmax", "1", "2", "4.00× (2.00×)"),
        ("merge", "2", "1", "3.00× (3.00×)"),
    ]
    softmax = [family for family in FAMILIES if name_of(family) == "softmax"]
    assert [row[1:5] for row in tables.ops(runs, softmax)[1:]] == [
        ("softmax", "1", "1", "2.00× (2.00×)"),
        ("log_softmax", "1", "1", "8.00× (8.00×)"),
    ]


def test_bars_say_what_is_missed(runs):
    table = tables.bars(runs, FAMILIES)
    assert table[0] == ("", "asked", "Some CPU, avx512")
    rows = {row[0]: row[1:] for row in table[1:]}
    assert rows["match + plan + merge, ViT-B"] == ("each ≥ 10×", "least 3.00× **missed**")
    assert rows["log_softmax"] == ("each ≥ 1.5×", "least 8.00×")
    assert not any("CUDA" in title for title in rows), "a device never measured has no row"


def test_a_device_never_measured_has_no_row(runs):
    assert list(runs) == ["some-cpu"] and len(tables.devices(runs, FAMILIES)) == 2
    assert tables.rewrite(TEXT.format("devices"), {}).splitlines()[3] == (
        "*Nothing has been measured.*"
    )


def test_only_tables_are_rewritten(runs):
    text = tables.rewrite(TEXT.format("means softmax"), runs)
    assert text.startswith("before\n") and text.endswith("<!-- end of results -->\nafter\n")
    assert "old" not in text and "match_merge" not in text
    assert tables.rewrite(text, runs) == text


@pytest.mark.parametrize("bad", ["nothing", "means nobody"])
def test_what_cannot_be_read_is_refused(bad, runs):
    with pytest.raises(ValueError, match="cannot read"):
        tables.rewrite(TEXT.format(bad), runs)
    with pytest.raises(ValueError, match="has no end"):
        tables.rewrite("<!-- results: means -->\n", runs)
