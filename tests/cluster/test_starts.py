"""What a run notes of how it was started."""

import re
import subprocess

from cluster.watch.starts import commit


def test_a_commit_is_named_with_a_mark_where_files_differ_from_it(tmp_path):
    assert commit(tmp_path) == ""
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "a").write_text("1")
    for arguments in (["init", "-q"], ["add", "a"], ["commit", "-qm", "one"]):
        subprocess.run([*git, *arguments], check=True)
    found = commit(tmp_path)
    assert re.fullmatch("[0-9a-f]{12}", found)
    (tmp_path / "a").write_text("2")
    assert commit(tmp_path) == f"{found}+"
