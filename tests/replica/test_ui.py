"""The UI in a browser: somebody logs in and finds the flights, by the laptop's own port and through the VPN."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hosts_network import Network, await_true, docker
from vpn_client import Client, profile_of
from whole_replica import FLIGHTS, Replica

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
PATIENCE_S = 300
REFUSED_S = 15
# What a browser says of an address from which nothing comes, or to which no way leads
NO_WAY = "timeout|ERR_CONNECTION|ERR_ADDRESS_UNREACHABLE|ERR_NETWORK|ERR_TIMED_OUT"
DRIVER_PORT = 9515


def options_of(*more: str) -> Any:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in (
        "--headless=new",
        "--window-size=1400,1000",
        "--no-proxy-server",
        "--disable-dev-shm-usage",
        *more,
    ):
        options.add_argument(argument)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")
    return options


@pytest.fixture
def browser(replica: Replica) -> Iterator[Any]:
    """On this machine."""
    if not BROWSER or not DRIVER:
        pytest.skip("there is no chromium with chromedriver here (Debian: chromium, chromium-driver)")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    one = webdriver.Chrome(options=options_of(), service=Service(DRIVER))
    one.set_page_load_timeout(PATIENCE_S)
    try:
        yield one
    finally:
        one.quit()


@pytest.fixture
def browser_of_client(replica: Replica, network: Network, client: Client) -> Iterator[Any]:
    """A browser of this machine in the network of a machine outside, which is asked by that one's address."""
    if not BROWSER or not DRIVER:
        pytest.skip("there is no chromium with chromedriver here (Debian: chromium, chromium-driver)")
    if os.geteuid() != 0 or not shutil.which("nsenter"):
        pytest.skip("entering a container's network takes root and nsenter")
    from selenium import webdriver

    pid = docker("inspect", client.id, "--format", "{{.State.Pid}}")
    command = [
        "nsenter",
        "--target",
        pid,
        "--net",
        DRIVER,
        f"--port={DRIVER_PORT}",
        "--allowed-ips=",
        "--allowed-origins=*",
    ]
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    address = f"http://{client.address(network.edge)}:{DRIVER_PORT}"
    one = None
    try:
        await_true(lambda: answers(f"{address}/status"), PATIENCE_S, "chromedriver in the client's network")
        # the name stands in the profile's person's /etc/hosts (docs/operations/network.md)
        names = f"--host-resolver-rules=MAP vps-1 {network.address['vps-1']}"
        one = webdriver.Remote(address, options=options_of(names))
        one.set_page_load_timeout(PATIENCE_S)
        yield one
    finally:
        if one is not None:
            one.quit()
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()


def answers(url: str) -> bool:
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=5):
            return True
    except OSError:
        return False


def log_in(browser: Any, url: str, user: str, password: str) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.wait import WebDriverWait

    browser.get(url)
    form = WebDriverWait(browser, PATIENCE_S)
    form.until(lambda b: b.find_element(By.NAME, "username")).send_keys(user)
    browser.find_element(By.NAME, "password").send_keys(password)
    browser.find_element(By.CSS_SELECTOR, "[type=submit]").click()


def see_flights(browser: Any, url: str, password: str, picture: Path) -> None:
    """Log in, open the DAG, and find its tasks there."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.wait import WebDriverWait

    log_in(browser, url, "admin", password)
    WebDriverWait(browser, PATIENCE_S).until(lambda b: "login" not in b.current_url)
    browser.get(f"{url}/dags/{FLIGHTS}")
    tasks = ("ingest_flights", "curate", "publish", "mart", "check")

    def grid(b: Any) -> bool:
        text = b.find_element(By.TAG_NAME, "body").text
        return all(task in text for task in tasks)

    WebDriverWait(browser, PATIENCE_S).until(grid)
    picture.parent.mkdir(parents=True, exist_ok=True)
    assert browser.save_screenshot(str(picture))
    assert picture.stat().st_size > 20_000


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return Path(os.environ.get("TRILAKE_SCREENSHOTS", str(tmp_path)))


@pytest.mark.rotates(6)
def test_the_flights_are_seen_by_who_logs_in(
    replica: Replica, published: dict[str, Any], browser: Any, pictures: Path
) -> None:
    see_flights(browser, replica.url, replica.env["AIRFLOW_ADMIN_PASSWORD"], pictures / "flights.png")


@pytest.mark.rotates(6)
def test_the_ui_is_there_through_the_vpn_and_nowhere_else(
    replica: Replica,
    network: Network,
    client: Client,
    published: dict[str, Any],
    browser_of_client: Any,
    tmp_path: Path,
    pictures: Path,
) -> None:
    from selenium.common.exceptions import WebDriverException

    url, name = "http://vps-1:8080", f"browser-{datetime.now(UTC):%H%M%S}"
    browser_of_client.set_page_load_timeout(REFUSED_S)
    with pytest.raises(WebDriverException, match=NO_WAY):
        browser_of_client.get(url)

    profile = profile_of(network, tmp_path, name, "engineer")
    client.connect(profile)
    browser_of_client.set_page_load_timeout(PATIENCE_S)
    see_flights(browser_of_client, url, replica.env["AIRFLOW_ADMIN_PASSWORD"], pictures / "flights-vpn.png")

    network.vpn.revoke(name)
    browser_of_client.set_page_load_timeout(REFUSED_S)
    with pytest.raises(WebDriverException, match=NO_WAY):
        browser_of_client.get(f"{url}/dags/{FLIGHTS}")
    client.disconnect()
    assert client.is_refused(profile)


@pytest.mark.rotates(6)
def test_a_wrong_password_shows_nothing(replica: Replica, browser: Any) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.wait import WebDriverWait

    log_in(browser, replica.url, "admin", "not-the-password")
    WebDriverWait(browser, PATIENCE_S).until(
        lambda b: "login" in b.current_url and b.find_elements(By.NAME, "username")
    )
    assert FLIGHTS not in browser.find_element(By.TAG_NAME, "body").text
