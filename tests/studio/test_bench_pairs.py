"""Results of a benchmark, pair by pair."""

import pytest

from policy.errors import UserError
from studio.bench_pairs import bench_pairs
from studio.pairs import biggest_first, comparable, compare
from studio.run_folders import RunFolders
from studio.samples import SampleFiles
from tests.evaluation.test_compare import HOSTILE, known, runs  # noqa: F401 (fixtures)


def test_each_prompt_has_both_images_and_the_mean_scores(runs, tmp_path):  # noqa: F811
    found = bench_pairs(tmp_path, *runs)
    pairs = biggest_first(found["pairs"])
    assert (pairs[0]["key"], len(pairs)) == ("001/0", 4)
    first = pairs[0]
    assert first["difference"] == pytest.approx(100 / 255)
    assert first["a"]["score"] == pytest.approx(30 / 255)
    assert first["a"]["cot"] == HOSTILE and "meter" in first["a"]["explanation"]
    folders = RunFolders(tmp_path)
    for pair in pairs:
        for name in ("a", "b"):
            assert folders.picture(pair[name]["image"])[0].is_relative_to(tmp_path)
    assert bench_pairs(runs[0], *runs)["pairs"][0]["b"]["image"] is None  # it lies elsewhere


def test_results_are_found_and_a_wrong_one_is_refused(runs, tmp_path):  # noqa: F811
    folders, files = RunFolders(tmp_path), SampleFiles()
    assert [one["path"] for one in comparable(folders)] == ["after", "before"]
    (runs[0] / "result.json").write_text("{}")
    with pytest.raises(UserError, match=r"could not be read: .*not the result of a benchmark"):
        compare(folders, files, "before", "after")
