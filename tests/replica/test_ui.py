"""The UI in a browser, by the laptop's own port: somebody logs in and finds the flights."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from whole_replica import FLIGHTS, Replica

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
PATIENCE_S = 60


@pytest.fixture
def browser(replica: Replica) -> Iterator[Any]:
    if not BROWSER or not DRIVER:
        pytest.skip("there is no chromium with chromedriver here (Debian: chromium, chromium-driver)")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in ("--headless=new", "--window-size=1400,1000", "--no-proxy-server", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")
    one = webdriver.Chrome(options=options, service=Service(DRIVER))
    one.set_page_load_timeout(PATIENCE_S)
    try:
        yield one
    finally:
        one.quit()


def log_in(browser: Any, url: str, user: str, password: str) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.wait import WebDriverWait

    browser.get(url)
    form = WebDriverWait(browser, PATIENCE_S)
    form.until(lambda b: b.find_element(By.NAME, "username")).send_keys(user)
    browser.find_element(By.NAME, "password").send_keys(password)
    browser.find_element(By.CSS_SELECTOR, "[type=submit]").click()


def test_the_flights_are_seen_by_who_logs_in(
    replica: Replica, year: dict[str, Any], browser: Any, tmp_path: Path
) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.wait import WebDriverWait

    log_in(browser, replica.url, "admin", replica.env["AIRFLOW_ADMIN_PASSWORD"])
    WebDriverWait(browser, PATIENCE_S).until(lambda b: "login" not in b.current_url)
    browser.get(f"{replica.url}/dags/{FLIGHTS}")
    tasks = ("ingest_flights", "curate", "publish", "mart", "check")

    def grid(b: Any) -> bool:
        text = b.find_element(By.TAG_NAME, "body").text
        return all(task in text for task in tasks)

    WebDriverWait(browser, PATIENCE_S).until(grid)
    kept = Path(os.environ.get("TRILAKE_SCREENSHOTS", str(tmp_path)))
    kept.mkdir(parents=True, exist_ok=True)
    assert browser.save_screenshot(str(kept / "flights.png"))
    assert (kept / "flights.png").stat().st_size > 20_000


def test_a_wrong_password_shows_nothing(replica: Replica, browser: Any) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.wait import WebDriverWait

    log_in(browser, replica.url, "admin", "not-the-password")
    WebDriverWait(browser, PATIENCE_S).until(
        lambda b: "login" in b.current_url and b.find_elements(By.NAME, "username")
    )
    assert FLIGHTS not in browser.find_element(By.TAG_NAME, "body").text
