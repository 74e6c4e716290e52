"""The command as typed, on tensors small enough to be quick."""

import numpy as np
import pytest

import bench.__main__ as cli
from bench.core import report
from bench.core.case import Accuracy

native = pytest.importorskip("fastops._lib._native")
TINY = ["--tensor-mb", "0.03", "--seconds", "0.001", "--device", "cpu", "--threads", "1"]


def test_list_names_cases_and_peers(capsys):
    assert cli.main(["--list", "--device", "cpu", "--op", "softmax", "--shapes", "vit"]) == 0
    text = capsys.readouterr().out
    assert "12×197×197 ViT-B/16" in text and "peer triton" in text
    assert "log_softmax" not in text


def test_cases_of_a_gpu_are_listed_without_one(monkeypatch, capsys):
    monkeypatch.setattr(cli.torch.cuda, "is_available", lambda: False)
    command = ["--device", "cuda", "--op", "attention_backward", "nm_linear"]
    assert cli.main(["--list", *command]) == 0
    text = capsys.readouterr().out
    assert "attention_backward dense bf16 cuda 1×16×16384×128 dense" in text
    assert "nm_linear nm_gemm bf16 cuda 8192×8192×8192 2:4" in text
    with pytest.raises(SystemExit, match="sees no GPU"):
        cli.main(command)


def test_a_tiny_run_writes_everything(tmp_path, capsys):
    names = {kind: tmp_path / f"run.{kind}" for kind in ("json", "csv", "html", "png")}
    files = [arg for kind, path in names.items() for arg in (f"--{kind}", str(path))]
    assert cli.main([*TINY, "--quick", "--check", *files]) == 0
    assert all(path.stat().st_size for path in names.values())
    run = report.read_json(names["json"])
    assert {r.case.suite for r in run.results} >= {
        "sweep",
        "overhead",
        "cache",
        "dims",
        "vit",
        "llm",
    }
    assert run.machine["options"]["quick"] and str(tmp_path) not in names["json"].read_text()
    assert run.machine["torch"] and run.ceilings.copy[1] > 0
    text = capsys.readouterr().out
    assert "roof:" in text and "cells are right" in text
    assert "Bars" not in text  # bars are for full-size tensors


def test_a_failing_peer_is_named_and_stops_nothing(monkeypatch, capsys):
    def broken(case, inputs):
        return lambda: 1 / 0

    monkeypatch.setattr("bench.softmax.ops._copy", broken)
    assert (
        cli.main([*TINY, "--quick", "--op", "softmax", "--shapes", "vit", "--dtype", "fp32"]) == 0
    )
    text = capsys.readouterr().out
    assert "copy in 1 cells: failed: ZeroDivisionError: division by zero" in text
    assert "1 cells are right" in text


def test_an_interrupted_run_keeps_what_it_has_and_has_not_passed(tmp_path, monkeypatch, capsys):
    run, calls = cli.Runner.run, []

    def interrupted(self, *args):
        if calls:
            raise KeyboardInterrupt
        calls.append(args)
        return run(self, *args)

    monkeypatch.setattr(cli.Runner, "run", interrupted)
    assert cli.main([*TINY, "--quick", "--json", str(tmp_path / "run.json")]) == 1
    assert len(report.read_json(tmp_path / "run.json").results) == 1
    assert "Interrupted after 1 of" in capsys.readouterr().out


def test_what_was_measured_before_is_kept(tmp_path, monkeypatch, capsys):
    run, path = cli.Runner.run, tmp_path / "run.json"
    measured = []

    def counted(self, family, case, *args):
        measured.append(case.key)
        if len(measured) == 2:
            raise KeyboardInterrupt
        return run(self, family, case, *args)

    monkeypatch.setattr(cli.Runner, "run", counted)
    command = [*TINY, "--quick", "--op", "softmax", "--dtype", "fp32", "--json", str(path)]
    assert cli.main(command) == 1
    assert cli.main([*command, "--keep"]) == 0
    assert measured[0] not in measured[1:] and measured[1] in measured[2:]
    assert len(report.read_json(path).results) == len(set(measured))


def test_a_case_that_fails_is_named_and_stops_nothing(tmp_path, monkeypatch, capsys):
    run, path = cli.Runner.run, tmp_path / "run.json"
    tried = []

    def broken(self, *args):
        tried.append(args)
        if len(tried) == 1:
            raise RuntimeError("out of memory\nsecond line")
        return run(self, *args)

    monkeypatch.setattr(cli.Runner, "run", broken)
    command = [*TINY, "--quick", "--op", "softmax", "--dtype", "fp32", "--json", str(path)]
    assert cli.main(command) == 1
    assert len(report.read_json(path).results) == len(tried) - 1 > 0
    text = capsys.readouterr().out
    assert "1 cells FAILED" in text and "RuntimeError: out of memory" in text
    assert "second line" not in text


def test_missing_peers_are_named(capsys):
    command = [*TINY, "--quick", "--op", "softmax", "--shapes", "vit", "--dtype", "fp32"]
    assert cli.main([*command, "--baseline", "triton"]) == 0
    text = capsys.readouterr().out
    assert "peer triton is missing: runs on a GPU only" in text
    assert "/triton" not in text and "/copy" not in text


def test_check_fails_on_a_wrong_result(monkeypatch, capsys):
    wrong = Accuracy(1.0, 1e-7, 6e-8)
    monkeypatch.setattr("bench.softmax.ops._accuracy", lambda *args: wrong)
    command = [*TINY, "--quick", "--op", "softmax", "--shapes", "vit"]
    assert cli.main(command) == 0
    assert cli.main([*command, "--check"]) == 1
    assert "WRONG" in capsys.readouterr().out


@pytest.mark.parametrize("bad", [["--op", "sofmax"], ["--shapes", "nothing"], ["--dtype", "int8"]])
def test_unknown_names_are_refused(bad):
    with pytest.raises(SystemExit) as error:
        cli.main(bad)
    assert error.value.code == 2


def test_stream_copy_at_any_offset_and_size():
    source = np.arange(20000, dtype=np.uint32).view(np.uint8)
    for offset in (0, 1, 63, 64):
        for size in (0, 1, 63, 64, 65, 4097, 70000):
            for threads in (1, 2, 3):
                target = np.zeros(size + 128, np.uint8)
                part = target[offset : offset + size]
                native.stream_copy(part, source[7 : 7 + size], threads)
                assert np.array_equal(part, source[7 : 7 + size])
                assert not target[:offset].any() and not target[offset + size :].any()


def test_stream_copy_refuses_what_it_cannot_copy():
    a, b = np.zeros(8, np.float32), np.zeros(9, np.float32)
    with pytest.raises(ValueError, match="contiguous buffers of one size"):
        native.stream_copy(a, b, 1)
    with pytest.raises(ValueError, match="contiguous buffers of one size"):
        native.stream_copy(a[::2], b[:4], 1)
    b.flags.writeable = False
    with pytest.raises((BufferError, ValueError)):
        native.stream_copy(b, np.zeros(9, np.float32), 1)
