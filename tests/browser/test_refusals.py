"""What the page says of files and labels that it can't use: once, and where it is seen and heard."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image
from tests.browser import chromium, steps
from tests.browser.steps import ATTACK, assert_sound, open_page, texts, until, write
from tests.served import Client, picture

client, driver = steps.client, steps.driver

DROP_TEXTS = """
const dropped = new DataTransfer();
for (const name of arguments) dropped.items.add(new File(["words"], name, { type: "text/plain" }));
document.getElementById("drop").dispatchEvent(
  new DragEvent("drop", { dataTransfer: dropped, bubbles: true, cancelable: true }));
"""
UNREADABLE = "This can't be read as a picture; give a whole JPEG, PNG, WebP, GIF, BMP or AVIF file"


def large() -> bytes:
    file = io.BytesIO()
    Image.new("1", (9000, 7000)).save(file, "PNG")
    return file.getvalue()


def test_a_picture_that_cannot_be_used_says_so_once(driver, client: Client, tmp_path: Path) -> None:
    files = {"good.png": picture(1), "large.png": large(), "damaged.png": picture(2)[:60]}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    open_page(driver, client, chromium.DESKTOP)
    driver.find_element("id", "files").send_keys("\n".join(str(tmp_path / name) for name in files))
    until(driver, "document.querySelectorAll('.card .problem').length === 2")
    write(driver, "question", "red?")
    until(driver, "document.querySelectorAll('.card .answer').length === 1")
    write(driver, "labels", "cat, dog")
    until(driver, "document.querySelectorAll('.card .bars li').length === 2")
    until(
        driver, "performance.getEntriesByType('resource').filter((one) => one.initiatorType === 'fetch').length >= 10"
    )
    assert texts(driver, ".card .problem") == ["This has more than 40 million pixels; make it smaller", UNREADABLE]
    driver.get_log("browser")  # the refusals
    assert_sound(driver)


@pytest.mark.parametrize("size", [chromium.DESKTOP, chromium.PHONE], ids=["desktop", "phone"])
def test_a_file_that_is_no_picture_is_named(driver, client: Client, size: tuple[int, int]) -> None:
    open_page(driver, client, size)
    note = driver.find_element("id", "left-out")
    assert note.get_attribute("aria-live") == "polite" and note.size["height"] == 0
    driver.execute_script(DROP_TEXTS, "notes.txt")
    assert note.text == "notes.txt is no picture; left out" and not texts(driver, ".card")
    driver.execute_script(DROP_TEXTS, ATTACK, "b.txt", "c.txt", "d.txt", "e.txt")
    assert note.text == f"{ATTACK}, b.txt, c.txt and 2 more are no pictures; left out"
    assert_sound(driver)


def test_one_label_is_no_choice(driver, client: Client, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture(1))
    open_page(driver, client, chromium.DESKTOP)
    driver.find_element("id", "files").send_keys(str(tmp_path / "a.png"))
    until(driver, "document.querySelector('.card .caption:not(.writing)')?.textContent")
    write(driver, "labels", "cat, cat")
    said = until(driver, "document.getElementById('labels').validationMessage")
    assert said == "Give two labels or more, with commas between"
    write(driver, "labels", "cat, dog")
    until(driver, "document.querySelectorAll('.card .bars li').length === 2")
    assert_sound(driver)
