"""The file of a report: whole or not at all, and made with the standard library only."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests import report_pages

from opencoca import report
from opencoca.errors import OpenCoCaError

data = report_pages.data


def test_write_makes_the_folder_and_leaves_only_the_file(data: report.ReportData, tmp_path: Path) -> None:
    path = report.write(tmp_path / "new" / "report.html", data)
    assert path.read_text(encoding="utf-8") == report.render(data)
    assert [entry.name for entry in path.parent.iterdir()] == ["report.html"]
    report.write(str(path), dataclasses.replace(data, title="Another"))
    assert "<h1 dir=\"auto\">Another</h1>" in path.read_text(encoding="utf-8")  # fmt: skip


def test_a_write_that_fails_keeps_the_old_report_and_leaves_nothing(
    data: report.ReportData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.html"
    path.write_text("the old one")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OpenCoCaError, match=r"report\.html \(No space left on device\); free some space"):
        report.write(path, data)
    assert path.read_text() == "the old one"
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


def test_the_bytes_are_on_the_disk_before_the_name_is(
    data: report.ReportData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda f: (calls.append("fsync"), fsync(f)))
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("replace"), replace(a, b)))
    report.write(tmp_path / "report.html", data)
    assert calls[:2] == ["fsync", "replace"]


def test_a_report_needs_the_standard_library_only() -> None:
    code = "import sys, opencoca.report; print(*{'torch', 'numpy', 'PIL'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == ""
