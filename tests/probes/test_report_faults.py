"""A report is whole or not there: wherever the process dies, the disk fills up, or a second writer comes."""

from __future__ import annotations

import hashlib
import json
import re
import shutil

import pytest

from probes.compare import read_report
from probes.report import write_report
from probes.report.publish import publish, settle
from probes.report.sections import files
from tccd.errors import BusyError, ConfigError
from tccd.locking import locked
from tests import faults
from tests.probes.probed import probed

SMALL = ("report.html", "report.json", "a.csv", "b.csv")
OLD = {"report.html": b"old page", "a.csv": b"old table", "report.json": b"old json"}
NEW = {"report.html": b"new page" * 2000, "b.csv": b"new table", "report.json": b"new json"}


def seen(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name in SMALL}


def old(folder):
    publish(folder, OLD, SMALL)


def new(folder):
    publish(folder, NEW, SMALL)


@pytest.mark.parametrize("before", [{}, OLD], ids=["first", "second"])
def test_killed_at_any_write_it_is_the_old_set_or_the_new_one(tmp_path, before):
    found = set()
    for fault in faults.kills(new, tmp_path, lambda folder: publish(folder, before, SMALL) if before else None):
        # The next to come, whoever it is, finds a whole set.
        settle(fault.folder, SMALL)
        assert seen(fault.folder) in (before, NEW), fault
        found.add("new" if seen(fault.folder) == NEW else "old")
        new(fault.folder)
        assert seen(fault.folder) == NEW, fault
        assert {path.name for path in fault.folder.iterdir()} == set(NEW), fault
    assert found == {"old", "new"}


def test_killed_while_putting_in_order_it_is_put_in_order_by_the_next(tmp_path):
    def killed_after_the_step(folder):
        old(folder)
        (folder / ".report-ready").mkdir()
        for name, data in {**NEW, "names": "\n".join(NEW).encode()}.items():
            (folder / ".report-ready" / name).write_bytes(data)

    for fault in faults.kills(lambda folder: settle(folder, SMALL), tmp_path, killed_after_the_step):
        settle(fault.folder, SMALL)
        assert seen(fault.folder) == NEW, fault


@pytest.mark.parametrize("kind", [faults.full_disks, faults.small_disks])
def test_on_a_full_disk_the_old_set_stays(tmp_path, kind):
    for fault in kind(new, tmp_path, old):
        if fault.error is None:
            assert seen(fault.folder) == NEW, fault
        else:
            assert fault.error.startswith("WriteError: disk is full: could not write "), fault.where
            assert seen(fault.folder) in (OLD, NEW), fault
        settle(fault.folder, SMALL)
        assert seen(fault.folder) in (OLD, NEW), fault
        assert {path.name for path in fault.folder.iterdir()} in (set(OLD), set(NEW)), fault


def test_what_a_stranger_left_is_not_obeyed(tmp_path):
    folder, mine = tmp_path / "report", tmp_path / "mine"
    mine.write_text("mine")
    (folder / ".report-ready").mkdir(parents=True)
    (folder / ".report-ready" / "names").write_text("../mine\nreport.json")
    (folder / ".report-ready" / "report.json").write_text("{}")
    settle(folder, SMALL)
    assert mine.read_text() == "mine"
    assert (folder / "report.json").read_text() == "{}"


def test_a_folder_in_the_way_is_found_before_anything_is_replaced(tmp_path):
    old(tmp_path)
    (tmp_path / "b.csv").mkdir()
    with pytest.raises(ConfigError, match=r"b\.csv is a folder"):
        new(tmp_path)
    assert (tmp_path / "report.json").read_bytes() == OLD["report.json"]


def test_a_report_killed_at_any_write_is_the_old_one_or_the_new_one(tmp_path):
    first, second = tmp_path / "first", {**probed(n=24, seed=1), "title": "The second"}
    title = probed()["title"]
    write_report(probed(n=24), first)
    for part in ("tccd_cells", "protocols"):
        del second[part]
    made = {path.name: path.read_bytes() for path in write_report(second, tmp_path / "second")}
    known = ("report.html", "report.json", *files())
    for fault in faults.kills(
        lambda folder: publish(folder, made, known),
        tmp_path,
        lambda folder: shutil.copytree(first, folder, dirs_exist_ok=True),
    ):
        read = read_report(fault.folder)["title"]
        assert read in (title, "The second")
        settle(fault.folder, known)
        assert json.loads((fault.folder / "report.json").read_text())["title"] == read, fault
        assert f"<h1>{read}</h1>" in (fault.folder / "report.html").read_text(), fault
        assert (fault.folder / "report-tccd.csv").exists() == (read == title), fault


def test_a_second_writer_is_refused(tmp_path):
    write_report(probed(n=24), tmp_path)
    before = (tmp_path / "report.json").read_bytes()
    other = {**probed(n=24), "title": "Another"}
    with locked(tmp_path, "tccd probe replacement"):
        with pytest.raises(BusyError, match="in use by tccd probe replacement"):
            write_report(other, tmp_path)
        assert (tmp_path / "report.json").read_bytes() == before
        write_report(other, tmp_path, held=True)
    assert read_report(tmp_path)["title"] == "Another"


def test_the_page_tells_which_json_it_is_of(tmp_path):
    path, page, *_ = write_report(probed(n=24), tmp_path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert re.findall(r"<code>([0-9a-f]{64})</code>", page.read_text()) == [digest]
