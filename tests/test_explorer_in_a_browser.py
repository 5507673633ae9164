"""The explorer as a person meets it: JupyterLab in a browser, a slider moved by mouse, a run on real vLLM watched."""

import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress

import httpx
import pytest
from playwright.sync_api import sync_playwright
from smoke_notebooks import copy_notebook

from driftsched_lib.validation import PROJECT

SCREENSHOTS = PROJECT / "runs" / "screenshots"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
OFFLINE = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
LAB = ["--IdentityProvider.token=", "--no-browser", "--allow-root"]
PATIENCE_MS = 120_000


@contextmanager
def jupyter_lab(root):
    """Yield the URL of a JupyterLab that serves a folder."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options, url = [f"--port={port}", f"--ServerApp.root_dir={root}", *LAB], f"http://127.0.0.1:{port}"
    env = os.environ | {"JUPYTER_CONFIG_DIR": str(root / "config"), "PATH": f"{sys.prefix}/bin:{os.environ['PATH']}"}
    with open(root / "lab.log", "w") as log:
        lab = subprocess.Popen([sys.executable, "-m", "jupyterlab", *options], env=env, stdout=log, stderr=log)
    try:
        up = False
        while not up:
            assert lab.poll() is None, (root / "lab.log").read_text()
            time.sleep(0.2)
            with suppress(httpx.TransportError):
                up = httpx.get(f"{url}/api/status").is_success
        yield url
    finally:
        lab.terminate()
        lab.wait()


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_slider_is_moved_and_a_setting_runs_on_real_vllm(tmp_path):
    notebook = copy_notebook("10_explorer", tmp_path, {"requests": 60})
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    with jupyter_lab(tmp_path) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=OFFLINE)
        page = browser.new_page(viewport={"width": 1440, "height": 1800})
        page.set_default_timeout(PATIENCE_MS)
        page.goto(f"{url}/lab/tree/notebooks/{notebook.name}")
        page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()
        for role, name in (("button", "No"), ("menuitem", "Run"), ("menuitem", "Run All Cells")):  # no news
            page.get_by_role(role, name=name, exact=True).click()
        picture = page.locator("img.jupyter-widgets >> visible=true")
        picture.wait_for()
        table = page.locator(".widget-html table")
        before, differences = picture.get_attribute("src"), table.inner_text()

        handle = page.locator(".widget-slider", has_text="load factor").locator(".noUi-handle")
        handle.scroll_into_view_if_needed()
        box = handle.bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(x + 40, y, steps=4)
        page.mouse.up()
        page.wait_for_function("([image, src]) => image.src != src", arg=[picture.element_handle(), before])
        page.wait_for_function("([table, text]) => table.innerText != text", arg=[table.element_handle(), differences])
        page.screenshot(path=SCREENSHOTS / "explorer.png")

        page.get_by_role("button", name="Run A on real vLLM").click()
        page.locator(".widget-hprogress >> visible=true").wait_for()
        queue = page.locator("img.jupyter-widgets >> visible=true").nth(0)
        page.get_by_text("A on real vLLM, kept in").wait_for()
        assert queue.bounding_box()["y"] < picture.nth(1).bounding_box()["y"]  # above the simulator's picture
        assert page.locator(".widget-html thead tr").count() == 2  # of two tables: headings stand in one row each
        bar = page.locator(".widget-hprogress .progress-bar")
        assert bar.bounding_box()["width"] == pytest.approx(bar.locator("..").bounding_box()["width"], rel=0.02)
        page.screenshot(path=SCREENSHOTS / "explorer-on-real-vllm.png")
        browser.close()
