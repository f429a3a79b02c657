"""Benchmarks of a run: what it is configured to look at, what its judges take, and what is reported."""

import io
import json

import pytest
from rich.console import Console

from cluster.benchmarks import with_judges
from cluster.config import load_config
from cluster.placement import placement_table, roles
from cluster.validate import validate_run
from cluster.watch.benchmarks import BenchmarkSlice, benchmark_metrics, benchmark_tables
from cluster.watch.console import TrainProgress
from cluster.watch.curves import charts
from cluster.watch.recorder import Recorder
from cluster.watch.report import write_report
from evaluation.generators import as_png
from evaluation.result import score
from evaluation.run_folder import RunFolder, identity
from policy.errors import UserError
from rewards.config import RewardsConfig
from tests.cluster.commands import TRAIN
from tests.conftest import ROOT
from tests.evaluation.toy import Toy, gray

TOY = "tests.evaluation.toy:Toy"
BOTH = f"evaluate.benchmarks=[shapes, '{TOY}']"


def config_of(*overrides):
    return load_config(ROOT / TRAIN, overrides)


def test_a_slice_holds_prompts_of_every_task_and_a_run_without_benchmarks_none():
    assert validate_run(config_of()).benchmarks == []
    shapes, toy = BenchmarkSlice.all_of(config_of(BOTH, "evaluate.benchmark_prompts=6", "seed=7"))
    assert {item.task for item in shapes.items} == {
        "color",
        "numeracy",
        "complex",
        "spatial",
        "riddle",
    }
    assert [len(look.items) for look in (shapes, toy)] == [6, 4]
    assert (shapes.images, toy.images, shapes.config.seed) == (24, 8, 7)


def test_judges_take_room_beside_the_experts_and_only_where_there_is_training():
    config = config_of(BOTH, "evaluate.judges.eyes={replicas: 2, num_gpus: 0.5}", "rewards.retries=0")
    found = {role.name: role for role in roles(config)}
    eyes = found["judge shapes.eyes"]
    assert (eyes.count, eyes.gpus, eyes.cpus, eyes.strategy) == (2, 0.5, 0.1, "")
    assert "judge tests_evaluation_toy_Toy.meter" in found
    assert [role.name for role in roles(config, learn=False)] == [
        "rollout",
        *(f"expert {name}" for name in config.rewards.experts),
    ]
    console = Console(file=io.StringIO(), width=200)
    console.print(placement_table(roles(config)))
    assert "judge shapes.eyes" in console.file.getvalue()


def test_judges_are_served_beside_the_experts_under_names_that_no_expert_can_have():
    config = config_of(BOTH, "rewards.retries=0", "rewards.timeout_s=5")
    served = with_judges(config)
    judges = set(served.experts) - set(config.rewards.experts)
    assert judges == {"shapes.eyes", "tests_evaluation_toy_Toy.meter"}
    assert (served.timeout_of("shapes.eyes"), served.retries_of("shapes.eyes")) == (600, 2)
    assert (served.timeout_of("count"), served.retries_of("count")) == (5, 0)
    for name in judges:
        with pytest.raises(ValueError, match="pattern"):
            RewardsConfig.model_validate({"experts": {name: {"use": "a:B"}}})


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["evaluate.benchmarks=[genevil]"], "evaluate.benchmarks: no benchmark is called 'genevil'"),
        (["evaluate.benchmarks=[shapes, shapes]"], "evaluate.benchmarks: a benchmark is named twice"),
        (
            ["evaluate.benchmarks=[geneval]", "evaluate.benchmark_data={geneval: TMP}"],
            "TMP/object_names.txt: not there yet: `bicot fetch geneval` gets it",
        ),
        (
            ["evaluate.benchmarks=[shapes]", "evaluate.benchmark_data={geneval: TMP}"],
            "evaluate.benchmark_data.geneval: not of evaluate.benchmarks, which have shapes",
        ),
        (
            ["evaluate.benchmarks=[shapes]", "evaluate.judges.ears={replicas: 2}"],
            "evaluate.judges.ears: not of evaluate.benchmarks, which have eyes",
        ),
        (
            ["evaluate.benchmarks=[shapes]", "evaluate.judges.eyes.num_gpus=many"],
            "evaluate.judges: of shapes: num_gpus: ",
        ),
        (
            ["evaluate.benchmarks=[shapes]", "evaluate.judges.eyes.options.keen=true"],
            "evaluate.judges.eyes: options: got an unexpected keyword argument 'keen'",
        ),
        (
            [
                "evaluate.benchmarks=[shapes]",
                "evaluate.judges.eyes={use: 'evaluation.judges.vlm:VlmReplies', options: {url: ''}}",
            ],
            "evaluate.judges.eyes.options.url: shapes is judged by a model on a server: name its url",
        ),
    ],
)
def test_what_cannot_work_is_refused_in_one_line_before_anything_starts(tmp_path, overrides, complaint):
    config = config_of(*(override.replace("TMP", str(tmp_path)) for override in overrides))
    with pytest.raises(UserError) as caught:
        validate_run(config)
    assert complaint.replace("TMP", str(tmp_path)) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert validate_run(config, learn=False).benchmarks == []


def looked_at(run, step, levels, judged=4, keys=4):
    """A look at the toy benchmark: images of some gray, of which the first are judged."""
    folder = RunFolder(run / "samples" / f"bench_toy_{step:06d}", Toy())
    folder.folder.mkdir(parents=True)
    folder.open(identity(Toy(), {"kind": "policy"}, 0, {}, None), {})
    items = Toy().items[:keys]
    for n, (item, level) in enumerate(zip(items, levels, strict=True)):
        for index in range(2):
            path = folder.images / folder.benchmark.files(item)[index]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(as_png(gray(level)))
            reply = {"brightness": float(level)} if n < judged else {"unusable": "it fell asleep"}
            by = {"model": "meter", "revision": "1"} if n < judged else {}
            folder.add_reply(item, index, "meter", {**reply, "by": by})
    return score(folder, items, may_be_empty=True)


def test_an_image_that_nobody_judged_is_counted_and_never_zero(tmp_path):
    result = looked_at(tmp_path, 0, [51, 51, 51, 51], judged=1)
    assert benchmark_metrics("toy", result) == {
        "bench/toy/even": 0.2,
        "bench/toy/overall": 0.2,
        "bench/toy/unjudged": 6.0,
    }
    result = looked_at(tmp_path, 1, [51, 51, 51, 51], judged=0)
    assert benchmark_metrics("toy", result) == {"bench/toy/unjudged": 8.0}


@pytest.mark.parametrize("as_json", [False, True])
def test_the_console_says_the_score_and_what_is_not_in_it(tmp_path, as_json):
    console = Console(file=io.StringIO(), width=200)
    result = looked_at(tmp_path, 0, [51] * 4, judged=1)
    TrainProgress(console, 10, as_json=as_json).benchmark(3, "toy", result)
    first, *others = console.file.getvalue().splitlines()
    if as_json:
        event = json.loads(first)
        assert (event["event"], event["step"], event["bench/toy/overall"]) == ("benchmark", 3, 0.2)
    else:
        message = "benchmark at step 3: toy: overall 0.2000, 6 of 8 images not judged"
        assert first == message
    assert any("it fell asleep" in line for line in others)


def test_the_report_sets_the_last_look_beside_the_first_of_the_same_prompts(tmp_path):
    recorder, messages = Recorder(tmp_path), []
    looks = {0: ([10, 10], 2), 5: ([51] * 4, 4), 10: ([102, 102, 102, 51], 4)}
    for step, (levels, keys) in looks.items():
        result = looked_at(tmp_path, step, levels, keys=keys)
        recorder.step(step, benchmark_metrics("toy", result))
    (table,) = benchmark_tables(tmp_path, messages.append)
    assert (table.before, table.now) == (5, 10)
    even, odd, overall = table.rows
    assert (even.label, even.before, even.now) == ("even", "0.2000", "0.4000")
    assert (even.difference, odd.label, overall.label) == ("+0.2000", "odd", "overall")
    assert any("no interval" in note for note in table.notes)
    page = write_report(tmp_path).read_text()
    assert "Toy, 4 of 4 prompts" in page and "Benchmark: toy" in page

    looked_at(tmp_path, 15, [51] * 4, judged=0)
    recorder.close()
    (table,) = benchmark_tables(tmp_path, messages.append)
    assert [row.now for row in table.rows] == ["-", "-", "-", "8"]
    assert {row.difference for row in table.rows[:3]} == {"-"}
    assert any("it fell asleep" in note for note in table.notes)
    assert not messages
    (tmp_path / "samples/bench_toy_000015/result.json").write_text("[]")
    (table,) = benchmark_tables(tmp_path, messages.append)
    assert table.now == 10
    (message,) = messages
    assert "bench_toy_000015/result.json" in message


def test_every_benchmark_has_a_chart_and_its_gaps_another():
    curves = {f"bench/{name}": [(0, 0.1), (5, 0.2)] for name in ("a/overall", "a/x/y", "b/unjudged")}
    found = {chart.title: [line.name for line in chart.lines] for chart in charts(curves, [])}
    assert found == {
        "Benchmark: a": ["bench/a/overall", "bench/a/x/y"],
        "Benchmarks: images not judged": ["bench/b/unjudged"],
    }
