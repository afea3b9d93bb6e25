"""Report and study in a real browser: nothing fails, everything can be read and reached."""

import json
import shutil
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from ecgan.evaluation.report import page as report
from ecgan.evaluation.report import study
from ecgan.evaluation.report.document import Report
from ecgan_cli.main import cli
from tests.evaluation.test_report import MARKED, WORTH
from tests.evaluation.test_report import illustrations as small
from tests.evaluation.test_study import write_set

pytestmark = pytest.mark.slow

FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--window-size=1200,900",
]

SENT = "Network.requestWillBeSent"

# Of every element with text of its own: contrast of its colour against what lies behind it
CONTRASTS = """
const rgb = (text) => {
  const m = text.match(/[\\d.]+/g).map(Number);
  return m.length > 3 && m[3] === 0 ? null : m;
};
const linear = (v) => v / 255 <= 0.03928 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4;
const light = (c) => 0.2126 * linear(c[0]) + 0.7152 * linear(c[1]) + 0.0722 * linear(c[2]);
const found = [];
for (const node of document.querySelectorAll("main *")) {
  const own = [...node.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
  if (!own || !node.getClientRects().length || node.closest(".confusion td")) continue;
  let back = null;
  for (let up = node; up && !back; up = up.parentElement) {
    back = rgb(getComputedStyle(up).backgroundColor);
  }
  const [a, b] = [light(rgb(getComputedStyle(node).color)), light(back || [255, 255, 255])];
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  found.push([ratio, node.textContent.trim().slice(0, 40)]);
}
return found;
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("Chromium and its driver are not installed (Debian: chromium-driver)")
    folder = tmp_path_factory.mktemp("browser")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"download.default_directory": str(folder)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    found = webdriver.Chrome(options, webdriver.ChromeService(driver))
    found.downloads = folder
    yield found
    found.quit()


def errors(browser):
    return [e["message"] for e in browser.get_log("browser") if e["level"] in {"SEVERE", "WARNING"}]


def requests(browser):
    """Addresses that the page asked for."""
    events = [json.loads(e["message"])["message"] for e in browser.get_log("performance")]
    sent = [e["params"]["request"]["url"] for e in events if e["method"] == SENT]
    return [url for url in sent if not url.startswith("chrome")]  # the browser's first page


def media(browser, scheme):
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A report with everything that a report can hold."""
    folder = tmp_path_factory.mktemp("report")
    document = MARKED | {"downstream": WORTH, "samples": "datasets/city"}
    report.write(Report.of_document(document), folder, [small()])
    return (folder / "report.html").as_uri()


def test_report_loads_without_errors_or_requests(browser, page):
    browser.get(page)
    assert errors(browser) == []
    assert [u for u in requests(browser) if not u.startswith(("file:", "data:"))] == []
    script = "return [...document.images].map((i) => i.complete && i.naturalWidth > 0)"
    loaded = browser.execute_script(script)
    assert loaded
    assert all(loaded)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_report_can_be_read(browser, page, scheme):
    media(browser, scheme)
    browser.get(page)
    for details in browser.find_elements("tag name", "details"):
        browser.execute_script("arguments[0].open = true", details)
    found = browser.execute_script(CONTRASTS)
    assert len(found) > 60
    assert [pair for pair in found if pair[0] < 4.5] == []
    dark = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, dark[4:-1].split(","))) < 200) == (scheme == "dark")


def test_report_fits_a_telephone_and_is_reached_by_keys(browser, page):
    from selenium.webdriver.common.keys import Keys

    metrics = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get(page)
    width = browser.execute_script("return document.documentElement.scrollWidth")
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert width <= 360
    reached = []
    for _ in range(30):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        active = browser.switch_to.active_element
        reached.append(active.get_attribute("aria-label") or active.text)
    assert reached[0].startswith("Skip")
    assert {"IoU of each class", "Samples", "Confusion matrix"} <= set(reached)


def test_study_is_begun_with_enter_and_its_keys_are_not_typed_into_the_name(
    browser, tmp_path, monkeypatch
):
    from selenium.webdriver.common.keys import Keys

    a, b = (write_set(tmp_path / name, ["x", "y", "z"], 90) for name in "ab")
    monkeypatch.chdir(tmp_path)
    command = ["report", "study", str(a), str(b), "--out", "study"]
    made = CliRunner().invoke(cli, command)
    assert made.exit_code == 0, made.output
    assert {p.name for p in Path("study").iterdir()} == {"study.html", "assignment.json"}
    browser.get((tmp_path / "study" / "study.html").as_uri())
    name = browser.find_element("id", "participant")

    def says():
        return browser.find_element("id", "progress").text

    def press(*keys):
        browser.switch_to.active_element.send_keys(*keys)

    press("1")  # no name was asked for: the keys answer at once
    assert (says(), name.get_attribute("value")) == ("2 of 3", "")
    name.click()
    press("Zoë 2", Keys.ARROW_LEFT, "1")  # in the name they are letters and move the caret
    assert (says(), name.get_attribute("value")) == ("2 of 3", "Zoë 12")
    press(Keys.ENTER)
    assert browser.switch_to.active_element.get_attribute("id") == "question"
    assert says() == "2 of 3"  # no answer yet
    press("2")
    press(Keys.ENTER)
    press("1")
    assert (says(), name.get_attribute("value")) == ("All 3 answered", "Zoë 12")
    browser.find_element("id", "export").click()
    study_id = json.loads(Path("study/assignment.json").read_text())["study"]
    file = Path(browser.downloads) / f"answers-{study_id}-Zo_12.json"
    wait_for(file)
    assert file in {*file.parent.glob("answers-*.json")}  # as docs/evaluating.md has it
    read = CliRunner().invoke(cli, ["report", "study-results", str(file)])
    assert read.exit_code == 0, read.output
    assert "1 participant, 3 layouts" in read.output
    assert errors(browser) == []


def wait_for(file):
    end = time.monotonic() + 10
    while not file.is_file() and time.monotonic() < end:
        time.sleep(0.05)
    assert file.is_file()


def test_study_is_clicked_through(browser, tmp_path):
    from selenium.webdriver.common.keys import Keys

    layouts = ["a", "bb", "c", "dd"]
    a = write_set(tmp_path / "a", layouts, 180)
    b = write_set(tmp_path / "b", layouts, 40)
    study.write(a, b, tmp_path / "study")
    known = json.loads((tmp_path / "study" / "assignment.json").read_text())
    page = (tmp_path / "study" / "study.html").as_uri()
    media(browser, "light")
    browser.get(page)

    def says():
        return browser.find_element("id", "progress").text

    def press(key):
        browser.find_element("tag name", "body").send_keys(key)

    def bright_side():
        """Which side shows the set a, by looking."""
        return browser.execute_script(
            """const look = (id) => {
              const canvas = document.createElement("canvas");
              canvas.width = canvas.height = 1;
              const context = canvas.getContext("2d");
              context.drawImage(document.getElementById(id), 0, 0, 1, 1);
              return context.getImageData(0, 0, 1, 1).data[0];
            };
            return look("image-1") > look("image-2") ? 1 : 2"""
        )

    def decoded():
        for name in ("layout", "image-1", "image-2"):
            image = browser.find_element("id", name)
            browser.execute_async_script("arguments[0].decode().then(() => arguments[1]())", image)

    browser.find_element("id", "participant").send_keys("Ann 1")  # 1 is no answer here
    assert says() == "1 of 4"
    decoded()
    press(str(bright_side()))
    assert says() == "2 of 4"
    decoded()
    browser.find_element("id", f"choose-{3 - bright_side()}").click()  # against a ...
    press(Keys.ARROW_LEFT)
    assert says() == "2 of 4"
    pressed = browser.find_element("css selector", '.choice[aria-pressed="true"]')
    decoded()
    assert pressed.get_attribute("id") == f"choose-{3 - bright_side()}"
    press(str(bright_side()))  # ... changed to a
    browser.refresh()
    assert says() == "3 of 4"
    assert browser.find_element("id", "participant").get_attribute("value") == "Ann 1"
    decoded()
    press(str(bright_side()))
    decoded()
    press(str(3 - bright_side()))
    assert says() == "All 4 answered"
    assert browser.find_element("id", "end").is_displayed()
    assert not browser.find_element("id", "trial").is_displayed()
    browser.find_element("id", "export").click()
    file = Path(browser.downloads) / f"answers-{known['study']}-Ann_1.json"
    wait_for(file)
    results = study.read([file], tmp_path / "study" / "assignment.json")
    assert results.votes == {"Ann 1": (3, 1)}
    assert errors(browser) == []
    contrasts = browser.execute_script(CONTRASTS)
    assert [pair for pair in contrasts if pair[0] < 4.5] == []
    asked = requests(browser)
    assert [u for u in asked if not u.startswith(("file:", "data:", "blob:"))] == []
