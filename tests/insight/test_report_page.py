"""The report in a browser: drawn, silent, played, followed; and its server for live runs."""

import http.client
import json
import shutil
import socket
import threading
import time
from pathlib import Path

import pytest

from commands.command_line import proximo, refusal, rows, succeeded, train, wait_for
from insight.hostile_run import HOSTILE, OLD, hostile
from proximo.errors import UsageError, printable
from proximo.insight.live import LiveReport

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
READING = "Canvas2D: Multiple readback operations"
"""What Chromium says of a test that reads a canvas twice."""
OF_COLOR = """(canvas, [r, g, b]) => {
    const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    let count = 0;
    for (let i = 0; i < pixels.length; i += 4)
        if (pixels[i + 3] > 200 && Math.abs(pixels[i] - r) < 20 && Math.abs(pixels[i + 1] - g) < 20
            && Math.abs(pixels[i + 2] - b) < 20) count++;
    return count;
}"""
"""Pixels of a canvas that have a colour, or nearly so."""
BLUE, ORANGE = (0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)
"""Of the first and the second group in light."""
BLUE_IN_DARK, ORANGE_IN_DARK = (0x56, 0xB4, 0xE9), (0xF0, 0x85, 0x3A)
LEAST = 20
"""Pixels of the shortest curve."""


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium of this machine."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed here")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def visit(browser):
    """Opens a page; in the end nothing was said on its console, and nothing asked for outside."""
    said, asked, contexts = [], [], []

    def go(place, **options):
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))  # warnings too
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        url = place if isinstance(place, str) else place.absolute().as_uri()
        page.goto(url)
        page.wait_for_selector("main section")
        return page

    yield go
    for context in contexts:
        context.close()
    assert [text for text in said if not text.startswith(READING)] == []
    allowed = ("file://", "data:", "http://127.0.0.1:")
    assert [url for url in asked if not url.startswith(allowed)] == []


def until(page, expression):
    """Waits for it, by questions from outside: the page's policy lets nothing evaluate text."""
    wait_for(lambda: page.evaluate(expression) or page.wait_for_timeout(20))


def chart(page, key):
    return page.locator(f'figure[data-key="{key}"]')


def drawn(page, key, color=BLUE):
    """Pixels of a curve."""
    return chart(page, key).locator("canvas").evaluate(OF_COLOR, color)


def test_the_page_of_a_run_shows_every_curve_and_plays_the_replay(here, trained, visit):
    succeeded(proximo("report", trained, "--out", "page.html"))
    page = visit(here / "page.html")
    data = json.loads(page.locator("#data").text_content())
    constant = page.locator(".constants li span").all_text_contents()
    for key, reading in data["readings"].items():
        if reading["title"] in constant:
            continue
        assert drawn(page, key) > LEAST, key
        assert chart(page, key).locator(".legend b").first.text_content(), key
    assert page.locator("h1").text_content() == "PPO on CartPole-v1"
    # Hover shows the value there, in this chart and in all others.
    chart(page, "return_mean").locator(".u-over").hover()
    for key in ("return_mean", "entropy"):
        assert chart(page, key).locator(".at").text_content().startswith("at ")
    # Keys read single values, for who cannot see the curve.
    chart(page, "return_mean").locator(".plot").focus()
    page.keyboard.press("Home")
    first = page.locator("#said").text_content()
    page.keyboard.press("ArrowRight")
    assert first.startswith("environment steps 64: ")
    assert page.locator("#said").text_content().startswith("environment steps 128: ")
    page.select_option("#axis", "seconds")
    assert drawn(page, "return_mean") > LEAST
    # The replay moves.
    video = page.locator("video").last
    assert video.evaluate("video => video.readyState >= 2 || video.networkState === 1")
    button = page.locator(".replays button").last
    # Its words are noted as they change: a short replay may be over before one can look.
    button.evaluate(
        "button => { window.words = []; new MutationObserver(() => words.push(button.textContent))"
        ".observe(button, { childList: true, characterData: true, subtree: true }) }"
    )
    button.click()
    until(page, "[...document.querySelectorAll('video')].at(-1).currentTime > 0")
    until(page, "words.length > 0")
    assert page.evaluate("words[0]") == "Pause"


def test_several_groups_have_an_entry_each_in_light_and_dark_and_on_a_phone(here, trained, visit):
    assert train("--run-dir", "a", "--quiet", "--seed", "3", "--algorithm.clip", "0.1").code == 0
    assert train("--run-dir", "b", "--quiet", "--seed", "4", "--algorithm.clip", "0.1").code == 0
    succeeded(proximo("report", trained, "a", "b", "--no-play", "--out", "page.html"))
    phone = {"width": 390, "height": 844}
    colors = set()
    for options in ({"color_scheme": "light"}, {"color_scheme": "dark"}, {"viewport": phone}):
        page = visit(here / "page.html", **options)
        assert chart(page, "return_mean").locator("[data-group]").count() == 2
        colors.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        dark = options.get("color_scheme") == "dark"
        for color in (BLUE_IN_DARK, ORANGE_IN_DARK) if dark else (BLUE, ORANGE):
            assert drawn(page, "return_mean", color) > LEAST
    assert len(colors) == 2
    page.locator("#theme").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") in colors
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.locator("#seeds").uncheck()
    assert drawn(page, "return_mean", ORANGE_IN_DARK) > LEAST
    assert drawn(page, "return_mean", ORANGE) == 0
    assert page.pdf(format="A4")[:4] == b"%PDF"


def test_hostile_text_is_shown_as_text_and_runs_nothing(here, trained, visit):
    run = hostile(trained, here)
    succeeded(proximo("report", run, "--no-play", "--out", "page.html"))
    page = visit(here / "page.html")
    shown = printable(HOSTILE, keep="")
    assert page.evaluate("window.ran") is None
    assert page.title() == f"PPO on evil{shown}:Env · Proximo"
    assert page.locator("img").count() == 0
    assert page.locator("script").count() == 3
    assert shown in page.locator("figure figcaption").last.text_content()
    assert shown in page.locator(".warnings").text_content()
    page.locator("#log summary").click()
    assert page.locator("pre.log").text_content().startswith(shown)
    assert shown in page.locator(".stats").text_content()


def test_a_language_model_has_samples_and_its_score_against_kl(here, visit):
    pytest.importorskip("transformers")
    shutil.copytree(OLD / "tokens", "r")
    sample = {"update": 3, "prompt": HOSTILE, "completion": HOSTILE, "score": 1.5, "kl": 0.1}
    with (here / "r/samples.jsonl").open("a") as file:
        file.write(json.dumps({**sample, "update": 4}) + "\n")
    assert proximo("report", "r", "--out", "page.html").code == 0
    page = visit(here / "page.html")
    assert drawn(page, "score-kl") > LEAST
    table = page.locator("#samples table")
    assert printable(HOSTILE) in table.text_content()
    page.locator("#samples input").fill("0")
    assert "update 1" in page.locator("#samples output").text_content()
    assert "aaa" in table.text_content()


# ---- Live -----------------------------------------------------------------------------------


@pytest.fixture
def live(here, trained):
    """A server that follows the run `r`, of which four updates are there."""
    shutil.copytree(trained, here / "r")
    (here / "r/result.json").unlink()
    whole = (here / "r/metrics.jsonl").read_text().splitlines(keepends=True)
    (here / "r/metrics.jsonl").write_text("".join(whole[:4]))
    with LiveReport([here / "r"]) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(server, path, method="GET", **headers):
    """Status, headers and body of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, answer.headers, body


def test_the_page_follows_a_run_that_is_training(here, trained, live, visit):
    page = visit(live.url)
    assert "256 steps" in page.locator(".lede").text_content()
    with (here / "r/metrics.jsonl").open("a") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows(trained)[4:]))
    until(page, "document.querySelector('.lede').textContent.includes('512 steps')")
    assert page.locator("#pulse").text_content() == "live"
    assert drawn(page, "return_mean") > LEAST
    page.evaluate("document.getElementById('settings').querySelector('details').open = true")
    shutil.copy(trained / "result.json", here / "r/result.json")
    until(page, "document.getElementById('pulse').textContent === 'ended'")
    assert "Trained its 512 steps" in page.locator(".stats").text_content()
    assert page.locator("#settings details").first.evaluate("details => details.open")


def test_the_server_answers_this_machine_by_its_own_name_alone(live):
    place = f"/{live.token}/"
    status, headers, body = ask(live, place)
    assert status == 200
    assert b"<!doctype html>" in body
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert ask(live, place, Host=f"localhost:{live.server_port}")[0] == 200
    for host in ("evil.example", f"evil.example:{live.server_port}", "127.0.0.1", ""):
        assert ask(live, place, Host=host)[0] == 403
    for path in ("/", "/data.json", f"{place}../etc/passwd", f"{place}page.js", "/x" * 100):
        assert ask(live, path)[0] == 404
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert ask(live, place, method)[0] == 501
    assert live.server_address[0] == "127.0.0.1"
    assert len(live.token) >= 20


def test_what_has_not_changed_is_not_sent_again(live, here, trained):
    path = f"/{live.token}/data.json"
    status, headers, body = ask(live, path)
    assert status == 200
    assert json.loads(body)["runs"][0]["updates"] == 4
    assert ask(live, path, **{"If-None-Match": headers["ETag"]})[::2] == (304, b"")
    shutil.copy(trained / "metrics.jsonl", here / "r/metrics.jsonl")
    wait_for(lambda: ask(live, path, **{"If-None-Match": headers["ETag"]})[0] == 200)
    shutil.rmtree(here / "r")
    wait_for(lambda: ask(live, path)[0] == 503)
    assert b"is no run folder" in ask(live, path)[2]


def test_reading_the_runs_again_takes_a_small_share_of_the_time(live, here, trained):
    live._cost = 3600.0  # as if the last reading had taken an hour
    shutil.copy(trained / "metrics.jsonl", here / "r/metrics.jsonl")
    assert live.latest()[1]["runs"][0]["updates"] == 4


def test_a_run_that_has_only_begun_can_be_followed(here, trained):
    shutil.copytree(trained, "r")
    (here / "r/metrics.jsonl").write_text("")
    (here / "r/result.json").unlink()
    with LiveReport([Path("r")]) as server:
        assert server.latest()[1]["runs"][0]["updates"] == 0


def test_a_port_that_is_taken_is_named(here, trained):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"--port is {port}, which cannot be used"):
            LiveReport([trained], port)
        assert f"--port is {port}" in refusal(proximo("report", trained, "--live", "--port", port))


def test_the_command_serves_until_ctrl_c(here, trained, monkeypatch):
    def stop(self):
        time.sleep(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr(LiveReport, "serve_forever", stop)
    said = succeeded(proximo("report", trained, "--live")).out
    assert said.startswith("report at http://127.0.0.1:")
