"""What tests of the page have in common: a folder to search, a server, a browser, and what a person does.

Test modules take the fixtures by assignment, so that each names those it uses.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.browser import chromium
from tests.served import Client, picture, serving

WAIT_S = 20
ATTACK = "<img src=x onerror=document.title='pwned'>"
DROP = """
const [target, name, data] = arguments;
const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
const dropped = new DataTransfer();
dropped.items.add(new File([bytes], name, { type: "image/png" }));
const target_ = document.getElementById(target);
for (const kind of ["dragover", "drop"])
  target_.dispatchEvent(new DragEvent(kind, { dataTransfer: dropped, bubbles: true, cancelable: true }));
"""
PASTE = """
const bytes = Uint8Array.from(atob(arguments[0]), (letter) => letter.charCodeAt(0));
const pasted = new DataTransfer();
pasted.items.add(new File([bytes], "image.png", { type: "image/png" }));
document.body.dispatchEvent(new ClipboardEvent("paste", { clipboardData: pasted, bubbles: true, cancelable: true }));
"""


class Folder:
    """An index of 60 pictures, whose names and captions would be scripts if they were read as HTML."""

    folder = Path("/pictures")

    def __len__(self) -> int:
        return 60

    def embed_terms(self, terms, pictures=None) -> str:
        names = {"picture": "the picture", "id": "id:{}", "text": "{}"}
        return " + ".join(names[term.kind].format(term.value) for term in terms)

    def search(self, query, k: int, filters=None, blend: float = 0.0) -> list:
        query = query if isinstance(query, str) else "the picture"
        good = query != "nothing"
        return [
            SimpleNamespace(
                id=i,
                path=self.folder / f"{i}{ATTACK}.png",
                score=0.5,
                caption=f"{ATTACK} {query} {i}",
                why=ATTACK,
                good=good,
            )
            for i in range(min(k, 60))
        ]

    def thumbnail(self, id: int, size_px: int) -> bytes:
        return picture(id, (40, 30), "JPEG")


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with serving(index=Folder()) as started:
        yield started


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory):
    started = chromium.start(tmp_path_factory.mktemp("chromium"))
    yield started
    started.quit()


def until(driver, condition: str, *arguments):
    """What a condition in JavaScript gives, once that is true."""
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(driver, WAIT_S, 0.05).until(
        lambda d: d.execute_script(f"return {condition}", *arguments), condition
    )


def texts(driver, selector: str) -> list[str]:
    return driver.execute_script(
        "return [...document.querySelectorAll(arguments[0])].map((one) => one.textContent)", selector
    )


def write(driver, field: str, words: str) -> None:
    found = driver.find_element("id", field)
    found.clear()
    found.send_keys(words + "\n")


def press(driver, key: str) -> None:
    from selenium.webdriver import ActionChains

    ActionChains(driver).send_keys(key).perform()


def scroll(driver, pixels: int) -> None:
    from selenium.webdriver import ActionChains

    ActionChains(driver).scroll_by_amount(0, pixels).perform()


def open_page(driver, client: Client, size: tuple[int, int]) -> None:
    chromium.resize(driver, size)
    driver.get("about:blank")
    driver.get_log("browser")
    driver.get(f"http://127.0.0.1:{client.port}/")
    until(driver, "document.documentElement.dataset.ready === 'true'")


def assert_sound(driver) -> None:
    """Nothing was logged, nothing ran, nothing sticks out sideways, and nothing came from elsewhere."""
    assert not [line for line in driver.get_log("browser") if line["level"] == "SEVERE"]
    assert driver.title == "OpenCoCa"
    wide = driver.execute_script("return document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0
    loaded = driver.execute_script("return performance.getEntriesByType('resource').map((one) => one.name)")
    here = driver.execute_script("return location.origin")
    assert loaded and all(name.startswith((here, f"blob:{here}")) for name in loaded), loaded
