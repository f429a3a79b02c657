"""Words from elsewhere do not steer the terminal of whoever reads them."""

import io
import json
import subprocess
import sys
from dataclasses import asdict

import pytest
from rich.console import Console
from rich.table import Table

from cluster import cli
from cluster.checkpoint import State
from cluster.commands.runs import show_ledger, show_status
from cluster.config import dump_config, load_config
from cluster.ledger import Entry, Ledger
from cluster.terminal import TerminalConsole, visible
from cluster.watch.console import TrainProgress, evaluation_table
from tests.cluster.commands import TRAIN
from tests.cluster.test_report import evaluation
from tests.conftest import ROOT

pytestmark = pytest.mark.unit

EVIL = "\x1b]0;owned\x07 \x1b[2J \x9b2J \u202egnp.exe \ud800"


def harmless(shown: str) -> bool:
    shown.encode()
    return not any(piece in shown for piece in ("\x1b]", "\x1b[2J", "\x9b", "\u202e"))


def test_control_characters_are_written_out():
    assert visible("\x1b[2J") == r"\x1b[2J"
    assert visible("one\ttwo\nthree ä 字 👩‍🚀") == "one\ttwo\nthree ä 字 👩‍🚀"
    assert harmless(visible(EVIL))


def test_a_console_keeps_its_own_colours():
    out = io.StringIO()
    console = TerminalConsole(file=out, force_terminal=True, width=200)
    console.print(EVIL, style="red", markup=False, highlight=False)
    table = Table("a", title=EVIL)
    table.add_row(EVIL)
    console.print(table)
    assert harmless(out.getvalue())
    assert "\x1b[31m" in out.getvalue()
    assert out.getvalue().count(r"\x1b[2J") == 3


def test_what_a_run_says_and_what_its_ledger_holds(tmp_path):
    out = io.StringIO()
    TrainProgress(Console(file=out, force_terminal=True), 1).say(EVIL)
    ledger = Ledger(tmp_path)
    ledger.add([Entry(0, 1, "p", 0, 0, "dropped", why="\x1b]0;owned\x07 \x1b[2J")])
    ledger.close()
    show_ledger(tmp_path, TerminalConsole(file=out, force_terminal=True))
    assert out.getvalue().count(r"\x1b[2J") == 2
    assert harmless(out.getvalue())
    assert isinstance(cli.console, TerminalConsole)


def test_logs_and_tracebacks():
    code = (
        "import logging; from cluster.terminal import guard_terminal; guard_terminal();"
        "logging.warning('\\x1b[2J'); raise RuntimeError('\\x1b]0;owned')"
    )
    log = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60).stderr
    assert b"\x1b" not in log
    assert rb"WARNING root: \x1b[2J" in log
    assert rb"RuntimeError: \x1b]0;owned" in log


def test_a_log_on_a_full_disk_changes_no_exit_status(tmp_path):
    """/dev/full has no room for anything."""
    command = [sys.executable, "-m", "cluster", "estimate", TRAIN]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_progress_goes_on_where_there_is_no_room():
    """The file itself complains when it is closed, and only then."""
    done = []

    def talk():
        with open("/dev/full", "w") as full:
            with TrainProgress(TerminalConsole(file=full, force_terminal=True), 3) as progress:
                progress.say("one more line")
            done.append(True)

    with pytest.raises(OSError, match="No space left"):
        talk()
    assert done


def test_no_table_cuts_a_path(tmp_path):
    """In a terminal of 40 columns, a path of hundreds."""
    folder = tmp_path / "a_long_name" / ("of_a_run_" * 20)
    checkpoint = folder / "checkpoints" / "step_000010"
    checkpoint.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text('{"step": 10, "time/step": 1.0}\n')
    (folder / "config.yaml").write_text(dump_config(load_config(ROOT / TRAIN)))
    (checkpoint / "state.json").write_text(json.dumps(asdict(State(10, 10, 1, {}))))
    shown = Console(file=io.StringIO(), width=40)
    show_status(folder, shown)
    lines = shown.file.getvalue().splitlines()
    assert lines[0] == str(folder)
    assert lines[-1] == f"newest checkpoint: {checkpoint}"
    assert max(map(len, lines[1:-1])) <= 40
    Ledger(folder).close()
    shown = Console(file=io.StringIO(), width=40)
    show_ledger(folder, shown)
    assert shown.file.getvalue().startswith(f"{folder}: 0 groups in 0 steps\n")
    shown = Console(file=io.StringIO(), width=40)
    found = {str(checkpoint): evaluation(10, 0.5)}
    shown.print(evaluation_table("held-out prompts", found))
    table = shown.file.getvalue()
    assert "…" not in table
    cells = [line.split("┃")[2].strip() for line in table.splitlines() if line.startswith("┃")]
    assert "".join(cells) == str(checkpoint)
