"""The page in a real browser: a run that grows, a comparison, a drawing, text that means harm."""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from playwright.sync_api import Page, expect

from cluster.serve_config import ServeConfig
from cluster.watch.recorder import save_samples
from studio.images_api import build_app
from tests.studio.conftest import GrowingRun, HereModel, scored, serving

HOSTILE = (
    "<script>document.title='taken'</script><svg onload=\"document.title='taken'\">"
    "<img src=x onerror=\"document.title='taken'\">\u202eesrever&lt;" + "x" * 30_000
)


def fits(page: Page) -> bool:
    """Nothing has to be scrolled to the side."""
    return page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_run_that_grows_shows_new_points_and_pictures_without_a_reload(runs, open_page):
    run = GrowingRun(runs / "mine")
    run.step(1, reward_circles=0.5, expert_circles__constant=0.0)
    run.account(1, "trained")
    page = open_page("run/mine")
    charts, status = page.locator("#charts"), page.locator("#status")
    expect(status).to_contain_text("step 1 of 10")
    expect(charts).to_contain_text("Expert: circles")
    expect(page.locator("#samples")).to_contain_text("None yet")
    page.evaluate("window.untouched = true")

    run.step(2, reward_circles=0.875, kl_cot=0.125)
    expect(charts).to_contain_text("reward/circles 0.875")
    expect(charts).to_contain_text("KL to the reference")
    expect(status).to_contain_text("step 2 of 10")

    save_samples([scored("a red circle", 0.75)], runs / "mine" / "samples" / "step_000002")
    first = page.locator(".sample").first
    expect(first).to_contain_text("a red circle")
    expect(first).to_contain_text("0.75")

    run.evaluate(3, scored("two squares", 0.25, circles=0.25), scored("a circle", 1.0, circles=1.0))
    expect(first).to_contain_text("two squares")
    expect(first).to_contain_text("circles saw a circle")
    assert first.locator("img").evaluate("image => image.decode().then(() => image.naturalWidth)") == 24

    run.step(4, expert_circles__constant=1.0)
    run.account(4, "dropped", "circles: <b>no answer</b>")
    expect(page.locator("#warnings")).to_contain_text(
        "expert circles gave every image of the step the same score"
    )
    expect(page.locator("#ledger")).to_contain_text("1 x circles: <b>no answer</b>")
    assert page.evaluate("window.untouched")


def test_samples_are_shown_best_and_worst_first_with_their_boxes(runs, open_page):
    run = GrowingRun(runs / "mine")
    run.step(1)
    middle, best = scored("middle", 0.5, circles=0.5), scored("best", 0.1, circles=1.0)
    run.evaluate(1, middle, best, scored("worst", 0.9, task="spatial", circles=0.0))
    page = open_page("run/mine")
    prompts = page.locator(".sample .text-block:nth-of-type(1)")
    expect(page.locator(".sample")).to_have_count(3)
    page.get_by_label("order").select_option("best")
    page.get_by_label("score").select_option("circles")
    expect(prompts.first).to_have_text("best")
    page.get_by_label("order").select_option("worst")
    expect(prompts.first).to_have_text("worst")
    page.get_by_label("boxes").check()
    expect(page.locator(".sample rect").first).to_have_attribute("width", "0.5")
    page.get_by_label("task type").select_option("color")
    expect(prompts.first).to_have_text("middle")
    expect(page.locator(".sample")).to_have_count(2)


def test_runs_are_listed_overlaid_and_compared(runs, open_page):
    for name, steps in (("first", 3), ("second", 10)):
        run = GrowingRun(runs / name, steps)
        for step in range(1, 4):
            run.step(step)
    page = open_page("")
    rows = page.locator("#runs tbody tr")
    expect(rows.filter(has_text="first")).to_contain_text("finished")
    expect(rows.filter(has_text="second")).to_contain_text("stopped")
    expect(page.locator(".chart path")).to_have_count(2)
    box = page.locator(".chart svg").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 50)
    expect(page.locator(".legend")).to_contain_text("step 2")
    page.get_by_label("show second").uncheck()
    expect(page.locator(".chart path")).to_have_count(1)

    page.get_by_role("link", name="second").click()
    page.get_by_label("another run").select_option("first")
    page.get_by_label("only what differs").check()
    expect(page.locator("#config tr.differs")).to_have_count(2)
    expect(page.locator("#config")).to_contain_text("train.steps")


def test_pairs_are_stepped_through_by_keys_and_votes_are_stored(runs, open_page):
    run = GrowingRun(runs / "mine")
    run.step(1)
    before = [scored("same", 0.5), scored("much", 0.0, task="spatial"), scored("some", 0.5)]
    after = [scored("same", 0.5), scored("much", 1.0, task="spatial"), scored("some", 0.25)]
    run.evaluate(0, *before)
    run.evaluate(1, *after)
    page = open_page("compare")
    pair, place = page.locator("#pair"), page.locator("#place")
    expect(place).to_have_text("1 of 3")
    expect(pair).to_contain_text("B is 1 above A")
    page.keyboard.press("b")
    expect(pair).to_contain_text("B is 0.25 below A")
    page.keyboard.press("a")
    expect(place).to_have_text("3 of 3")
    page.keyboard.press("t")
    expect(page.locator("#tally")).to_have_text("votes: A 1, B 1, tie 1")
    page.keyboard.press("ArrowLeft")
    expect(pair).to_contain_text("some")
    expect(page.locator("button.chosen")).to_contain_text("A is better")

    votes = [json.loads(line) for line in (runs / "votes.jsonl").read_text().splitlines()]
    assert [(v["vote"], v["a"], v["b"]) for v in votes] == [
        (vote, "mine/samples/eval_000000", "mine/samples/eval_000001") for vote in ("b", "a", "tie")
    ]
    page.get_by_label("task type").select_option("spatial")
    expect(place).to_have_text("1 of 1")
    expect(pair).to_contain_text("much")
    page.reload()
    expect(page.locator("#tally")).to_have_text("votes: A 1, B 1, tie 1")


@pytest.fixture
def model_url(replica):
    """The shapes model behind the images API, over HTTP."""
    with ThreadPoolExecutor(1) as other:  # the browser has an event loop in this thread
        card = other.submit(asyncio.run, replica.card()).result(60)
    with serving(build_app(ServeConfig(), card, HereModel(replica))) as url:
        yield url


def test_a_model_thinks_and_draws_from_a_changed_cot(runs, open_page, model_url):
    page = open_page("playground", model_url, f"{model_url}/v1/")
    expect(page.locator(".model")).to_have_count(2)
    page.fill("#prompt", "a red circle")
    page.fill("#seed", "7")
    page.click("#think")
    expect(page.locator("#cot")).not_to_have_value("")
    expect(page.locator("#draw")).to_be_enabled()

    page.fill("#cot", "blue square top left")
    page.fill("#n", "2")
    page.click("#draw")
    drawn = page.locator('.picture[data-done="true"] img')
    expect(drawn).to_have_count(4)  # two of each model
    expect(page.locator(".model .cot").first).to_have_text("blue square top left")
    sources = [image.get_attribute("src") for image in drawn.all()]
    assert sources[:2] == sources[2:]  # the same weights and seed
    assert drawn.first.evaluate("image => image.decode().then(() => image.naturalWidth)") == 24


def test_a_model_that_is_not_there_shows_no_answer(open_page):
    page = open_page("playground", "http://127.0.0.1:9")
    expect(page.locator(".model")).to_contain_text("no answer: ConnectError")


@pytest.mark.parametrize("width", [1280, 390])
def test_a_hostile_prompt_changes_nothing_and_shows_as_text(runs, open_page, model_url, width):
    run = GrowingRun(runs / "<b>&amp;")
    run.step(1)
    for step in (0, 1):
        run.evaluate(step, scored(HOSTILE, 0.5, task="<i>", cot=HOSTILE, circles=0.5))
    page = open_page(f"run/{'%3Cb%3E&amp;'}", model_url)
    page.set_viewport_size({"width": width, "height": 844})
    expect(page.locator(".sample .text-block").first).to_have_text(HOSTILE)
    expect(page.locator("h1")).to_have_text("<b>&amp;")
    assert page.title() == "<b>&amp; - bicot studio"
    assert page.locator("main script, main [onload], main [onerror]").count() == 0
    assert fits(page)
    page.get_by_role("link", name="Compare").click()
    expect(page.locator("#pair .text-block").first).to_have_text(HOSTILE)
    assert fits(page)
    page.get_by_role("link", name="Playground").click()
    page.fill("#prompt", HOSTILE)
    page.fill("#cot", HOSTILE)
    page.click("#draw")
    expect(page.locator('.picture[data-done="true"]')).to_have_count(1)
    expect(page.locator(".model .cot")).to_have_text(HOSTILE)
    assert page.title() == "bicot studio"
    assert fits(page)
