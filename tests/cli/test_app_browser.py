"""The page of `ifdd app` in headless Chromium, driven by Selenium."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ifdd.prediction import Predictor
from ifdd.view.app import Limits, build_page, serve

from .conftest import write_video

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
MISSING = [
    name
    for name, there in (
        ("Gradio (extra app)", importlib.util.find_spec("gradio") is not None),
        ("Selenium (pip install selenium)", importlib.util.find_spec("selenium") is not None),
        ("Chromium with chromedriver (Debian: chromium, chromium-driver)", CHROMIUM and DRIVER),
    )
    if not there
]
pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
    pytest.mark.slow,
]
SECONDS = 120  # nothing takes that long but on a machine that does something else


@pytest.fixture(scope="module")
def asked() -> Iterator[set[str]]:
    """Hosts that this process asks."""
    hosts: set[str] = set()
    listening = True

    def listen(event: str, arguments: tuple[Any, ...]) -> None:
        if listening and event == "socket.connect" and isinstance(arguments[1], tuple):
            hosts.add(str(arguments[1][0]))
        elif listening and event == "socket.getaddrinfo":
            hosts.add(str(arguments[0]))

    sys.addaudithook(listen)  # for good: there is no way to take one away
    yield hosts
    listening = False


@pytest.fixture(scope="module")
def url(checkpoint: Path, asked: set[str]) -> Iterator[str]:
    ready, stop = threading.Event(), threading.Event()
    found: list[str] = []

    def say(address: str) -> None:
        found.append(address)
        ready.set()

    before = dict(os.environ)
    served = threading.Thread(
        target=serve, args=(Predictor(checkpoint), Limits(200_000, 3.0), None, say, stop), daemon=True
    )
    served.start()
    assert ready.wait(SECONDS)
    yield found[0]
    stop.set()
    served.join(SECONDS)
    os.environ.clear()
    os.environ.update(before)


def test_the_page_shares_nothing(checkpoint: Path, tmp_path: Path) -> None:
    page = build_page(Predictor(checkpoint), tmp_path, Limits(1000, 1.0))
    config = page.get_config_file()
    assert page.analytics_enabled is False
    buttons = [part["props"].get("buttons") or [] for part in config["components"]]
    assert not any("share" in each for each in buttons)


class Browser:
    """A user with a window of their own."""

    def __init__(self, url: str, downloads: Path) -> None:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        options = webdriver.ChromeOptions()
        options.binary_location = str(CHROMIUM)
        for argument in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage"):
            options.add_argument(f"--{argument}")
        options.add_argument("--window-size=1200,2200")
        options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
        options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
        self.downloads = downloads
        self.driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
        self.driver.get(url)
        self.find("#analyse")

    def wait(self, condition: Callable[[], Any]) -> Any:
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.driver, SECONDS).until(lambda _: condition())

    def find(self, selector: str) -> Any:
        return self.wait(lambda: next(iter(self.driver.find_elements("css selector", selector)), None))

    def choose(self, video: Path, face: str = "off") -> None:
        self.find("#video input[type=file]").send_keys(str(video))
        self.find(f"#face input[value={face}]").click()
        self.wait(lambda: video.stem in self.find("#video").text)

    def analyse(self) -> None:
        self.find("#analyse").click()

    def status(self) -> str:
        return str(self.wait(lambda: self.find("#status [role=alert], #status [role=status]").text))

    def download(self, button: str, ending: str) -> Path:
        self.find(f"#{button}").click()
        return self.wait(lambda: next(self.downloads.glob(f"*{ending}"), None))  # type: ignore[no-any-return]

    def requests(self) -> list[str]:
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [
            message["params"]["request"]["url"]
            for message in messages
            if message["method"] == "Network.requestWillBeSent"
        ]


@pytest.fixture
def browser(url: str, tmp_path: Path) -> Iterator[Browser]:
    user = Browser(url, tmp_path)
    yield user
    user.driver.quit()


def test_upload_result_downloads_and_no_other_host(
    browser: Browser, url: str, video: Path, checkpoint: Path, asked: set[str]
) -> None:
    assert "nothing is sent anywhere" in browser.find("body").text
    assert "Article 5(1)(f)" in browser.find("body").text
    browser.choose(video)
    browser.analyse()
    assert browser.status() == f"{video.name}: 20 frames, 2.0 seconds"
    predicted = Predictor(checkpoint).predict(video)
    assert predicted.label in browser.find("#status table").text
    for figure in ("#strip img", "#explanation img", "#faces img"):
        image = browser.find(figure)
        browser.wait(lambda image=image: image.get_property("naturalWidth") > 20)
    shown = browser.find("#annotated video")
    browser.wait(lambda: shown.get_property("videoWidth") == 480)
    result = json.loads(browser.download("json", ".json").read_text())
    assert result["label"] == predicted.label
    assert browser.download("download", ".mp4").stat().st_size > 1000

    # On a narrow screen pictures stand below each other, and the table scrolls by itself.
    narrow = {"width": 400, "height": 900, "deviceScaleFactor": 1, "mobile": True}
    browser.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", narrow)
    browser.wait(lambda: browser.find("#annotated").rect["width"] > 300)
    assert browser.find("#faces").rect["width"] > 300
    assert browser.find("#status [role=region]").rect["width"] < 400
    browser.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})

    # What is chosen now is not what was analysed.
    browser.find("#face input[value=largest]").click()
    browser.find("#window input").clear()
    browser.find("#window input").send_keys("0")
    browser.find("#explain").click()
    browser.wait(lambda: "Window 0 is explained below" in browser.find("#explained").text)
    assert predicted.label in browser.find("#status table").text, "the result stays"

    hosts = {address.split("/")[2] for address in browser.requests() if address.startswith(("http", "ws"))}
    assert hosts == {url.split("/")[2]}
    assert asked <= {"127.0.0.1", "localhost", "::1"}


def test_bad_files_give_one_line(browser: Browser, tmp_path: Path, video: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video at all" * 20)
    browser.choose(broken)
    browser.analyse()
    assert browser.status().startswith("broken.mp4: not a readable video")
    browser.find("#video button[aria-label='Clear'], #video button[aria-label='Remove this file']").click()

    large = tmp_path / "large.mp4"
    large.write_bytes(video.read_bytes() + bytes(300_000))
    browser.find("#video input[type=file]").send_keys(str(large))
    browser.wait(lambda: "exceed the maximum allowed size" in browser.find("body").text)

    browser.driver.refresh()
    browser.choose(write_video(tmp_path / "long.mp4", fps=5))  # 4 seconds
    browser.analyse()
    assert browser.status() == "long.mp4: longer than the 3 seconds this page takes (--max_seconds)"


def test_two_users_at_once(browser: Browser, url: str, video: Path, tmp_path: Path) -> None:
    """Each waits for the network, and gets the own result."""
    other_video = tmp_path / "other.mp4"
    shutil.copy(video, other_video)
    (tmp_path / "second").mkdir()
    other = Browser(url, tmp_path / "second")
    try:
        browser.choose(video)
        other.choose(other_video)
        browser.analyse()
        other.analyse()
        assert browser.status().startswith(f"{video.name}: 20 frames")
        assert other.status().startswith("other.mp4: 20 frames")
    finally:
        other.driver.quit()


def test_keyboard_only(browser: Browser, video: Path) -> None:
    """Everything is reached with Tab, and chosen or pressed with Space or Enter."""
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    def press(*keys: str) -> None:
        ActionChains(browser.driver).send_keys(*keys).perform()

    def inside(selector: str) -> bool:
        script = "return document.activeElement.closest(arguments[0]) !== null"
        return bool(browser.driver.execute_script(script, selector))

    def tab_to(selector: str) -> None:
        for _ in range(40):
            if inside(selector):
                return
            press(Keys.TAB)
        raise AssertionError(f"Tab does not reach {selector}")

    browser.driver.execute_cdp_cmd("Page.enable", {})
    browser.driver.execute_cdp_cmd("Page.setInterceptFileChooserDialog", {"enabled": True})
    tab_to("#video")
    press(Keys.ENTER)
    opened = time.monotonic() + 10
    while time.monotonic() < opened:
        log = [json.loads(entry["message"])["message"] for entry in browser.driver.get_log("performance")]
        if any(message["method"] == "Page.fileChooserOpened" for message in log):
            break
    else:
        raise AssertionError("Enter on the focused upload does not open the file chooser")
    # The dialog of the system belongs to no page: the file is handed over as it would.
    browser.find("#video input[type=file]").send_keys(str(video))
    browser.wait(lambda: video.stem in browser.find("#video").text)
    tab_to("#face")
    tab_to("#face input[value=off]")
    press(Keys.SPACE)
    assert browser.find("#face input:checked").get_property("value") == "off"
    tab_to("#analyse")
    press(Keys.ENTER)
    assert browser.status() == f"{video.name}: 20 frames, 2.0 seconds"
    tab_to("#json")
