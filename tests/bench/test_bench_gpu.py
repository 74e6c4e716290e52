"""`python -m bench.gpu` without a GPU: its plan, its limits, what it keeps, what it says."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from bench.core import results
from bench.core.report import read_json, write_json
from bench.families import FAMILIES
from bench.gpu import __main__ as cli
from bench.gpu import library, publish, runner, steps
from bench.gpu.runner import FAILED, LEFT, MISSING, PASSED, STOPPED, Proof
from bench.gpu.steps import Step

from .made_up import made_up

MACHINE = {"gpu": "NVIDIA Test", "cuda": "13.0", "torch": "2.13.0", "date": "2026-01-01 00:00 UTC"}


def python(code, name="a", **more):
    return Step("benchmarks", name, (sys.executable, "-c", code), **more)


def writes(path: Path, run, results, then="", name="a"):
    """A step that writes results, as `python -m bench --json` does after each case."""
    run.results = results
    source = path.with_suffix(".source")
    write_json(source, run)
    code = f"import shutil, time, sys; shutil.copyfile({str(source)!r}, {str(path)!r}); {then}"
    return python(code, name, result=path)


@pytest.fixture
def proof(tmp_path):
    return Proof(tmp_path / "device" / "proof.json", "library 1")


def outcomes(steps, proof, tmp_path, **more):
    return runner.run(steps, proof, tmp_path / "logs", say=lambda text: None, **more)


# ---- what is run ---------------------------------------------------------------------------------


def test_the_plan_has_every_family_and_op(tmp_path):
    plan = steps.plan(steps.PARTS, None, tmp_path)
    benchmarks = [s for s in plan if s.part == "benchmarks"]
    assert (
        len(benchmarks) == sum(len(f.OPS) for f in FAMILIES) == len({s.result for s in benchmarks})
    )
    assert {s.name for s in plan if s.part == "sanitizers"} == set(steps.TOOLS)
    folders = {s.name for s in plan if s.part == "correctness"}
    root = steps.ROOT / "csrc"
    families = {path.parent.name for path in root.glob("*/torch*.cpp")} - {"bindings"}
    assert families
    for name in families:  # one way or the other, or both
        assert folders & {f"tests/{name}", f"tests/{name}, carried"}, name
    carried = [s for s in plan if s.name.endswith("carried")]
    assert all(s.environment == {"FASTOPS_TESTS_ON": "cuda"} for s in carried)
    parts = [s.part for s in plan]
    assert parts == sorted(parts, key=steps.PARTS.index)


def test_hopper_kernels_are_proved_and_measured_apart(tmp_path):
    plain = steps.plan(steps.PARTS, None, tmp_path)
    both = steps.plan(steps.PARTS, None, tmp_path, hopper=True)
    assert both[: len(plain)] == plain
    again = both[len(plain) :]
    assert all(s.environment["FASTOPS_SM90"] == "1" for s in again)
    assert len({s.key for s in both}) == len(both)
    tested = {s.name for s in again if s.part == "correctness"}
    for folder in ("tests/cuda", "tests/softmax", "tests/nm, carried", "tests/attention"):
        assert f"{folder}, Hopper kernels" in tested, folder
    assert not [name for name in tested if "merge" in name or "record" in name]
    assert {s.name for s in again if s.part == "sanitizers"} == {
        f"{tool}, Hopper kernels" for tool in steps.TOOLS
    }
    measured = {s.result for s in again if s.part == "benchmarks"}
    assert tmp_path / "hopper" / "nm_linear.json" in measured
    assert all(str(s.result) in s.command for s in again if s.result)
    assert all(path.parent == tmp_path / "hopper" for path in measured)


def test_one_part_of_one_op(tmp_path):
    assert [s.name for s in steps.plan(["benchmarks"], ["merge"], tmp_path)] == ["merge, merge"]
    names = [s.name for s in steps.plan(["correctness"], ["sparsemax"], tmp_path)]
    assert names == ["tests/cuda", "tests/softmax", "tests/softmax, carried"]
    sanitizers = steps.plan(["sanitizers"], ["softmax", "merge"], tmp_path)
    assert all(s.command[-2:] == ("-k", "softmax or merge") for s in sanitizers)


def test_without_a_gpu_it_says_so_and_fails(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.main([]) == cli.NO_DEVICE != 0
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and "nothing was run" in err


def test_list_needs_no_gpu_and_names_what_is_missing(capsys, monkeypatch):
    monkeypatch.setattr(steps.shutil, "which", lambda *args, **kwargs: None)
    assert cli.main(["--list"]) == 0
    text = capsys.readouterr().out
    assert "sanitizers: racecheck (compute-sanitizer is not installed)" in text
    assert cli.main(["--list", "--op", "nothing"]) == cli.UNUSABLE


# ---- how it is run -------------------------------------------------------------------------------


def test_a_failure_stops_nothing(proof, tmp_path):
    todo = [
        python("import sys; print('it broke'); sys.exit(3)", "breaks"),
        python("print('5 passed, 1 skipped in 0.10s')", "passes"),
        python("", "lacks", missing="no such tool"),
        Step("sanitizers", "nowhere", ("/nowhere/at/all",)),
    ]
    found = outcomes(todo, proof, tmp_path)
    assert [o.status for o in found] == [FAILED, PASSED, MISSING, FAILED]
    assert found[0].detail == "it broke" and found[1].detail == "5 passed, 1 skipped in 0.10s"
    assert found[2].detail == "no such tool" and "No such file" in found[3].detail
    assert (tmp_path / "logs" / found[0].log).read_text() == "it broke\n"


def test_no_tests_is_no_pass(proof, tmp_path):
    test = tmp_path / "test_nothing.py"
    test.write_text("def test_other(): pass")
    step = Step("correctness", "none", steps._pytest(str(test), "-k", "cuda"))
    (found,) = outcomes([step], proof, tmp_path)
    assert found.status == FAILED and "1 deselected" in found.detail


def test_what_a_sanitizer_finds_is_a_failure(proof, tmp_path):
    step = python(f"import sys; sys.exit({steps.FOUND})")
    (found,) = outcomes([step], proof, tmp_path)
    assert found.status == FAILED and "the sanitizer found errors" in found.detail


def test_outcomes_are_kept_as_they_come(proof, tmp_path):
    """Each step sees, in the file, what came of those before."""
    seen = tmp_path / "seen"
    look = python(f"import shutil; shutil.copyfile({str(proof.path)!r}, {str(seen)!r})", "looks")
    outcomes([python("raise SystemExit(1)", "before"), look], proof, tmp_path)
    assert [(s["name"], s["status"]) for s in json.loads(seen.read_text())["steps"]] == [
        ("before", FAILED)
    ]


def test_a_wrong_result_fails_the_benchmark(proof, tmp_path, run):
    good = writes(tmp_path / "good.json", run, [made_up(), made_up(1.1)], name="good")
    wrong = writes(tmp_path / "wrong.json", run, [made_up(), made_up(right=False)], name="wrong")
    found = outcomes([good, wrong], proof, tmp_path)
    assert [(o.status, o.detail) for o in found] == [
        (PASSED, "2 cells"),
        (FAILED, "2 cells, 1 WRONG"),
    ]


def test_results_of_an_earlier_run_do_not_count(proof, tmp_path, run):
    write_json(tmp_path / "old.json", run)
    (found,) = outcomes([python("pass", result=tmp_path / "old.json")], proof, tmp_path)
    assert found.status == FAILED and found.detail == "nothing measured"


def test_nothing_to_measure_against_is_missing(proof, tmp_path, run):
    (found,) = outcomes([writes(tmp_path / "none.json", run, [])], proof, tmp_path)
    assert found.status == MISSING


def test_the_time_limit_interrupts_and_keeps_what_there_is(proof, tmp_path, run, monkeypatch):
    monkeypatch.setattr(runner, "LEAST_S", 0.5)
    slow = writes(tmp_path / "slow.json", run, [made_up()], "time.sleep(60)", "slow")
    begin = time.monotonic()
    found = outcomes([slow, python("pass", "later")], proof, tmp_path, seconds=2.0)
    assert time.monotonic() - begin < 20
    assert [o.status for o in found] == [STOPPED, LEFT]
    assert found[0].detail.startswith("1 cells")
    assert len(read_json(tmp_path / "slow.json").results) == 1


def test_what_ignores_the_interrupt_is_ended(proof, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "LEAST_S", 0.1)
    monkeypatch.setattr(runner, "GRACE_S", 0.5)
    code = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(60)"
    begin = time.monotonic()
    (found,) = outcomes([python(code)], proof, tmp_path, seconds=1.5)
    assert found.status == STOPPED and time.monotonic() - begin < 20


def test_a_later_run_goes_on(proof, tmp_path):
    todo = [python("pass", "one"), python("raise SystemExit(1)", "two")]
    outcomes(todo, proof, tmp_path)
    again = Proof(proof.path, "library 1")
    assert [again.passed(s) for s in todo] == [True, False]
    # Out of time: what has passed before has still passed.
    outcomes(todo, again, tmp_path, seconds=0.0)
    assert [Proof(proof.path, "library 1").passed(s) for s in todo] == [True, False]
    assert not any(Proof(proof.path, "library 2").passed(s) for s in todo)


def test_what_hangs_is_stopped(proof, tmp_path):
    (found,) = outcomes([python("import time; time.sleep(60)", limit_s=0.5)], proof, tmp_path)
    assert found.status == STOPPED and found.seconds < 20


def test_a_stopped_benchmark_goes_on_where_it_was(proof, tmp_path):
    measured, other = python("", "m", result=tmp_path / "m.json"), python("", "o")
    proof.keep(*(runner.Outcome(s.part, s.name, STOPPED) for s in (measured, other)))
    first, second = proof.left([measured, other])
    assert first.command == (*measured.command, "--keep") and second.command == other.command
    proof.keep(runner.Outcome(measured.part, measured.name, PASSED))
    assert proof.left([measured, other]) == [other]


@pytest.mark.parametrize("built_here, expected", [(True, ["build"]), (False, [])])
def test_a_library_built_here_is_kept_current(built_here, expected, tmp_path, monkeypatch):
    (tmp_path / library.NAME).write_text("")
    done = []
    monkeypatch.setattr(library, "FOLDER", tmp_path)
    monkeypatch.setattr(library, "build", lambda capability: done.append("build"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    folder = tmp_path if built_here else tmp_path / "nowhere"
    monkeypatch.setattr(library, "build_folder", lambda: folder)
    cli.prepare(cli.parse([]))
    assert done == expected
    (tmp_path / library.NAME).unlink()
    cli.prepare(cli.parse([]))
    assert done == [*expected, "build"]


# ---- the command, on a GPU made up ---------------------------------------------------------------


@pytest.fixture
def gpu(monkeypatch, tmp_path, run):
    """A machine whose steps are given by the test; returns (steps, folder of results)."""
    todo = []
    monkeypatch.setattr(cli, "why_no_device", lambda: "")
    monkeypatch.setattr(cli, "prepare", lambda args: None)
    monkeypatch.setattr(cli, "missing", lambda: {"cupy": "not installed"})
    monkeypatch.setattr(library, "name", lambda: "library 1")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA Test")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr("bench.core.env.describe", lambda device: MACHINE)
    monkeypatch.setattr(results, "FOLDER", tmp_path / "results")
    monkeypatch.setattr(cli, "LOGS", tmp_path / "logs")
    monkeypatch.setattr(cli, "ROOT", tmp_path)
    monkeypatch.setattr(steps, "plan", lambda parts, *_: [s for s in todo if s.part in parts])
    run.machine = MACHINE
    folder = tmp_path / "results" / "nvidia-test"
    folder.mkdir(parents=True)
    return todo, folder


def test_a_whole_run(gpu, run, capsys):
    todo, folder = gpu
    todo += [
        Step("correctness", "tests/merge", (sys.executable, "-c", "print('3 passed in 0.1s')")),
        writes(folder / "softmax.json", run, [made_up()], name="softmax"),
    ]
    assert cli.main([]) == 0
    text = capsys.readouterr().out
    for said in ("missing: cupy: not installed", "3 passed", "1 cells", "2 of 2 steps passed"):
        assert said in text
    assert "wrote results/nvidia-test/report.html" in text and (folder / "report.html").exists()
    kept = json.loads((folder / "proof.json").read_text())
    assert kept["library"] == "library 1" and kept["facts"]["machine"] == MACHINE
    assert [s["status"] for s in kept["steps"]] == [PASSED, PASSED]


def test_a_failed_step_fails_the_run_which_reports_all_the_same(gpu, run, capsys):
    todo, folder = gpu
    todo += [
        Step("sanitizers", "racecheck", (sys.executable, "-c", "raise SystemExit(99)")),
        writes(folder / "softmax.json", run, [made_up()], name="softmax"),
    ]
    assert cli.main([]) == 1
    text = capsys.readouterr().out
    assert "1 of 2 steps passed" in text and "sanitizers: racecheck: failed" in text
    assert "racecheck" in (folder / "report.html").read_text()
    assert cli.main(["--part", "benchmarks", "report"]) == 0
    # What has passed is left out; what has not is run again.
    capsys.readouterr()
    assert cli.main(["--continue"]) == 1
    assert "[1/1] sanitizers: racecheck" in capsys.readouterr().out


def test_without_a_library_nothing_is_run(gpu, capsys, monkeypatch):
    def broken(args):
        raise subprocess.CalledProcessError(1, "cmake")

    monkeypatch.setattr(cli, "prepare", broken)
    assert cli.main([]) == cli.UNUSABLE
    assert "nothing was run: there is no library" in capsys.readouterr().err


def test_tests_need_no_package_of_the_report():
    code = (
        "import sys; sys.modules |= dict.fromkeys(('rich', 'jinja2', 'matplotlib'))\n"
        "from bench.gpu.__main__ import main\n"
        "sys.exit(main(['--list', '--part', 'correctness']))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=steps.ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0 and "tests/cuda" in run.stdout, run.stderr


def test_a_report_that_fails_loses_no_results(gpu, run, capsys, monkeypatch):
    todo, folder = gpu
    todo.append(writes(folder / "softmax.json", run, [made_up()], name="softmax"))
    monkeypatch.setattr(publish, "publish", lambda *args: 1 / 0)
    assert cli.main([]) == 1
    assert "report failed: ZeroDivisionError" in capsys.readouterr().out
    assert len(read_json(folder / "softmax.json").results) == 1


# ---- what is published ---------------------------------------------------------------------------


def test_the_report_has_outcomes_results_and_what_was_missing(proof, tmp_path, run):
    folder = proof.path.parent
    proof.keep(
        runner.Outcome("correctness", "tests/merge", PASSED, 3.0, "12 passed"),
        runner.Outcome("sanitizers", "racecheck", MISSING, detail="no such tool"),
    )
    run.machine = MACHINE
    write_json(folder / "softmax.json", run)
    written = publish.publish(folder, list(proof.outcomes.values()), {"cupy": "not here"}, MACHINE)
    assert {p.name for p in written} == {"report.html", "speedups.png", "summary.png"}
    assert all(p.stat().st_size > 1000 for p in written)
    text = (folder / "report.html").read_text()
    for said in ("12 passed", "racecheck", "no such tool", "not here", "NVIDIA Test"):
        assert said in text
    assert "masked_softmax" in text


def test_a_report_of_nothing_measured_says_so(proof, tmp_path):
    proof.keep(runner.Outcome("correctness", "tests/merge", FAILED, 1.0, "1 failed"))
    written = publish.publish(proof.path.parent, list(proof.outcomes.values()), {}, MACHINE)
    assert [p.name for p in written] == ["report.html"]
    text = written[0].read_text()
    assert "Nothing has been measured" in text and "1 failed" in text and "are right" not in text


def test_a_device_is_its_newest_results_under_its_best_ceilings(tmp_path, run):
    run.results, run.ceilings.copy = [made_up(1.0), made_up(1.0, op="logsumexp")], {0: 3e12}
    run.machine = {**MACHINE, "date": "2026-01-01 00:00 UTC"}
    write_json(tmp_path / "b.json", run)
    run.results, run.ceilings.copy = [made_up(2.0)], {0: 2e12}
    run.machine = {**MACHINE, "date": "2026-01-02 00:00 UTC"}
    write_json(tmp_path / "a.json", run)
    (tmp_path / "proof.json").write_text('{"steps": []}')
    whole = results.device_run(tmp_path)
    assert {r.case.op: r.ours.median for r in whole.results} == {"softmax": 2e-3, "logsumexp": 1e-3}
    assert whole.ceilings.copy == {0: 3e12} and whole.machine["date"].startswith("2026-01-02")


def test_device_names_are_folder_names():
    assert results.folder_of("NVIDIA H200") == "nvidia-h200"
    assert results.folder_of("NVIDIA A100-SXM4-80GB") == "nvidia-a100-sxm4-80gb"


# ---- the library ---------------------------------------------------------------------------------


def test_a_prebuilt_library_is_taken(tmp_path):
    built, here = tmp_path / "built", tmp_path / "here"
    built.mkdir()
    with pytest.raises(FileNotFoundError, match=r"there is no libfastops_cuda\.so"):
        library.take(built, here)
    for name in ("libfastops_cuda.so", "libfastops.so", "build.json", "notes.txt"):
        (built / name).write_text('{"commit": "abc"}')
    library.take(built, here)
    assert {p.name for p in here.iterdir()} == {"libfastops_cuda.so", "libfastops.so", "build.json"}
    first = library.name(here)
    assert first.startswith("abc ")
    (here / "libfastops_cuda.so").write_text("another")
    assert library.name(here) != first


@pytest.mark.parametrize(
    "capability, expected",
    [((8, 0), "8.0"), ((8, 6), "8.6"), ((9, 0), "9.0a"), ((10, 0), "8.0+PTX")],
)
def test_what_is_built_for_a_gpu(capability, expected):
    assert library.architecture(capability) == expected
