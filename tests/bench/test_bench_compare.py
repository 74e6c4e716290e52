"""The regression gate: what counts as slower, and the exit status."""

from bench import compare
from bench.core.report import write_json

from .made_up import made_up


def files(tmp_path, run, old, new):
    paths = []
    for name, results in (("old", old), ("new", new)):
        run.results = results
        write_json(tmp_path / f"{name}.json", run)
        paths.append(str(tmp_path / f"{name}.json"))
    return paths


def test_slower_beyond_noise_fails_and_is_named(tmp_path, run, capsys):
    old, new = [made_up(), made_up(op="log_softmax")], [made_up(1.3), made_up(op="log_softmax")]
    assert compare.main(files(tmp_path, run, old, new)) == 1
    text = capsys.readouterr().out
    assert "1 slower" in text and "1.30×" in text and "log_softmax" not in text


def test_the_same_and_the_faster_pass(tmp_path, run, capsys):
    old, new = (
        [made_up(), made_up(op="log_softmax")],
        [made_up(1.04), made_up(0.5, op="log_softmax")],
    )
    assert compare.main(files(tmp_path, run, old, new)) == 0
    assert "0 slower, 1 faster" in capsys.readouterr().out


def test_a_slower_machine_is_not_a_regression_unless_asked(tmp_path, run):
    paths = files(tmp_path, run, [made_up(1.0, 2.0)], [made_up(1.5, 3.0)])
    assert compare.main(paths) == 0
    assert compare.main([*paths, "--absolute"]) == 1


def test_noise_excuses(tmp_path, run):
    old, new = [made_up(1.0, spread=0.3)], [made_up(1.15, spread=0.3)]
    assert compare.main(files(tmp_path, run, old, new)) == 0
    assert compare.main(files(tmp_path, run, [made_up(1.0)], [made_up(1.15)])) == 1


def test_nothing_in_common(tmp_path, run):
    assert compare.main(files(tmp_path, run, [made_up()], [made_up(op="logsumexp")])) == 2


def test_a_result_that_has_become_wrong_fails(tmp_path, run, capsys):
    old = [made_up(), made_up(op="logsumexp", right=False)]
    new = [made_up(right=False), made_up(op="logsumexp", right=False)]
    assert compare.main(files(tmp_path, run, old, new)) == 1
    text = capsys.readouterr().out
    assert "1 WRONG now" in text and "logsumexp" not in text
    assert compare.main(files(tmp_path, run, old, old)) == 0


def test_what_is_gone_is_named(tmp_path, run, capsys):
    assert compare.main(files(tmp_path, run, [made_up(), made_up(op="gone_op")], [made_up()])) == 0
    assert "1 gone:\n  gone_op" in capsys.readouterr().out


def test_folders_of_results(tmp_path, run):
    for name, ours in (("old", 1.0), ("new", 1.5)):
        (tmp_path / name).mkdir()
        run.results = [made_up(ours)]
        write_json(tmp_path / name / "softmax.json", run)
    assert compare.main([str(tmp_path / "old"), str(tmp_path / "new")]) == 1
    assert compare.main([str(tmp_path / "old"), str(tmp_path / "old")]) == 0
