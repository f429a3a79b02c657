"""The page beside `bicot train`, both as users start them, in a real browser."""

import pytest
from playwright.sync_api import expect

from tests.cluster.commands import ONE_EACH
from tests.cluster.live_run import LiveRun

STEPS = 12


@pytest.mark.slow
@pytest.mark.e2e
def test_a_run_that_is_being_trained_shows_its_steps_and_pictures_without_a_reload(runs, open_page):
    patient = [f"{role}.timeout_s=100" for role in ("actors", "learner", "rewards")]
    run = LiveRun(runs, STEPS, *ONE_EACH, "train.show_every=1", *patient)
    try:
        run.reach(1)
        with run.paused() as step:
            page = open_page("run/shapes")
            page.evaluate("window.untouched = true")
            status, points = page.locator("#status"), page.locator("#charts svg path").first
            expect(status).to_contain_text("running")
            expect(status).to_contain_text(f"step {step} of {STEPS}")
            seen = points.get_attribute("d")
        run.reach(step + 2)
        with run.paused() as later:
            assert step < later < STEPS
            expect(status).to_contain_text(f"step {later} of {STEPS}")
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
