"""The page beside `bicot train`, both as users start them, in a real browser."""

import pytest
from playwright.sync_api import expect

from tests.cluster.live_run import LiveRun

STEPS = 5


@pytest.mark.slow
@pytest.mark.e2e
def test_a_run_that_is_being_trained_shows_its_steps_and_pictures_without_a_reload(runs, open_page):
    one_each = ("actors.count=1", "learner.ranks=1", "train.show_every=1")
    run = LiveRun(runs, STEPS, *one_each)
    try:
        run.reach(1)
        page = open_page("run/shapes")
        page.evaluate("window.untouched = true")
        status, points = page.locator("#status"), page.locator("#charts svg path").first
        expect(status).to_contain_text("step 1 of 5")
        seen = points.get_attribute("d")
        run.reach(3)
        expect(status).to_contain_text("step 3 of 5")
        assert points.get_attribute("d") != seen
        picture = page.locator(".sample img").first
        assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") == 24
        expect(page.locator("#ledger")).to_contain_text("trained")
        earlier = picture.get_attribute("src")
        run.wait_for_success()
        expect(status).to_contain_text("finished")
        expect(picture).not_to_have_attribute("src", earlier)
        expect(page.locator("#charts")).to_contain_text("Expert: count")
        assert page.evaluate("window.untouched")
    finally:
        run.process.terminate()
        run.process.wait(60)
