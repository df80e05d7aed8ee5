"""What a person does with the page: drop, caption, ask, classify, search, copy; on a desktop and on a phone."""

from __future__ import annotations

import base64
import html
import json
from pathlib import Path

import pytest
from tests import served
from tests.browser import chromium, steps
from tests.browser.steps import ATTACK, DROP, PASTE, assert_sound, open_page, press, scroll, texts, until, write
from tests.served import TOKEN, Client, picture, serving

client, driver = steps.client, steps.driver


@pytest.mark.parametrize("size", [chromium.DESKTOP, chromium.PHONE], ids=["desktop", "phone"])
def test_a_person_describes_pictures(driver, client: Client, size: tuple[int, int], tmp_path: Path) -> None:
    open_page(driver, client, size)
    predictor = client.service.engine.predictor
    driver.execute_script(DROP, "drop", f"{ATTACK}.png", base64.b64encode(picture(1)).decode())
    wanted = predictor.caption([picture(1)])[0]
    until(driver, "document.querySelector('.card .caption:not(.writing)')?.textContent")
    assert texts(driver, ".card .caption") == [wanted] and texts(driver, ".card .name") == [f"{ATTACK}.png"]

    (tmp_path / "chosen.png").write_bytes(picture(2))
    driver.find_element("id", "files").send_keys(str(tmp_path / "chosen.png"))
    driver.execute_script(PASTE, base64.b64encode(picture(3)).decode())
    until(driver, "document.querySelectorAll('.card .caption:not(.writing)').length === 3")
    assert texts(driver, "#how-many") == ["3 pictures"]
    assert sorted(texts(driver, ".card .caption")) == sorted(predictor.caption([picture(i)])[0] for i in (1, 2, 3))

    write(driver, "question", "red?")
    until(driver, "document.querySelectorAll('.card .answer').length === 3")
    assert texts(driver, ".card .answer b") == ["red?"] * 3

    write(driver, "labels", f"red circle, {ATTACK}, cat")
    until(driver, "document.querySelectorAll('.card .bars li').length === 9")
    shown = texts(driver, ".card:first-child .bars .number")
    assert sum(int(number.removesuffix(" %")) for number in shown) in (99, 100, 101)
    assert ATTACK in texts(driver, ".card .bars .word")

    driver.execute_cdp_cmd(
        "Browser.grantPermissions", {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
    )
    driver.find_element("css selector", ".card:last-child .row button").click()
    until(driver, "document.getElementById('toast').textContent === 'Copied'")
    pasted = driver.execute_async_script("navigator.clipboard.readText().then(arguments[0])")
    assert pasted == texts(driver, ".card:last-child .caption")[0]
    driver.find_element("id", "copy-all").click()
    until(driver, "!document.getElementById('toast').hidden")
    pasted = driver.execute_async_script("navigator.clipboard.readText().then(arguments[0])")
    assert len(pasted.splitlines()) == 3 and f"{ATTACK}.png\t{wanted}" in pasted

    driver.find_element("css selector", ".card [aria-label^='Remove']").click()
    until(driver, "document.querySelectorAll('.card').length === 2")
    assert driver.execute_script("return document.activeElement.tagName") == "BUTTON"  # the focus isn't lost
    assert_sound(driver)


@pytest.mark.parametrize("size", [chromium.DESKTOP, chromium.PHONE], ids=["desktop", "phone"])
def test_a_person_searches_the_folder(driver, client: Client, size: tuple[int, int]) -> None:
    open_page(driver, client, size)
    driver.find_element("id", "tab-search").click()
    write(driver, "query", "a boat")
    until(driver, "document.querySelector('.hit img')?.naturalWidth > 0")
    assert texts(driver, ".hit .caption")[0] == f"{ATTACK} a boat 0"
    until(driver, "scrollTo(0, document.body.scrollHeight), document.querySelectorAll('.hit').length === 60")
    assert texts(driver, ".hit .caption") == [f"{ATTACK} a boat {i}" for i in range(60)]
    driver.execute_script("scrollTo(0, 0)")
    while driver.execute_script("return scrollY + innerHeight < document.documentElement.scrollHeight - 1"):
        scroll(driver, size[1] // 2)  # as a person with a wheel does; what came past is there to be seen
    until(driver, "[...document.querySelectorAll('.hit img')].every((image) => image.naturalWidth > 0)")
    driver.execute_script("scrollTo(0, 0)")
    driver.find_elements("css selector", ".hit .row button")[1].click()
    until(driver, "document.querySelector('.hit .caption')?.textContent.includes('id:0')")
    write(driver, "query", "nothing")
    until(driver, "document.getElementById('verdict').textContent.startsWith('No good match')")
    assert_sound(driver)


def test_a_person_searches_by_a_picture_with_words_and_filters(driver, client: Client) -> None:
    open_page(driver, client, chromium.PHONE)
    driver.find_element("id", "tab-search").click()
    driver.execute_script(DROP, "find", f"{ATTACK}.png", base64.b64encode(picture(1)).decode())
    until(driver, "document.querySelector('.hit .caption')?.textContent.endsWith('the picture 0')")
    assert texts(driver, "#like-name") == [f"{ATTACK}.png"] and not texts(driver, ".card")
    write(driver, "query", "- red")
    until(driver, "document.querySelector('.hit .caption')?.textContent.endsWith('the picture + red 0')")
    driver.find_element("css selector", "#filters summary").click()
    write(driver, "within", "../elsewhere")
    said = until(driver, "document.querySelector('#search > .problem')?.textContent")
    assert "leaves what is indexed" in said
    write(driver, "within", "2024/summer")
    driver.find_element("id", "like-remove").click()
    write(driver, "query", "a boat")
    until(driver, "document.querySelector('.hit .caption')?.textContent.endsWith('a boat 0')")
    assert not driver.find_element("id", "like").is_displayed() and texts(driver, "#search > .problem") == []
    failed = [line for line in driver.get_log("browser") if line["level"] == "SEVERE" and "422" not in line["message"]]
    assert failed == []
    assert_sound(driver)


def test_the_page_can_be_used_by_keyboard_and_read_aloud(driver, client: Client) -> None:
    from selenium.webdriver.common.keys import Keys

    open_page(driver, client, chromium.DESKTOP)
    press(driver, Keys.TAB)
    assert driver.switch_to.active_element.text == "Skip to the content"
    reached = []
    for _ in range(6):
        press(driver, Keys.TAB)
        reached.append(driver.switch_to.active_element.get_attribute("id") or driver.switch_to.active_element.text)
    assert reached[:4] == ["API", "Policy", "tab-describe", "files"]
    driver.find_element("id", "tab-describe").send_keys(Keys.ARROW_RIGHT)
    assert driver.switch_to.active_element.get_attribute("id") == "tab-search"
    assert (
        driver.find_element("id", "search").is_displayed() and not driver.find_element("id", "describe").is_displayed()
    )
    driver.find_element("id", "tab-search").send_keys(Keys.ARROW_LEFT)
    driver.execute_script(DROP, "drop", "a.png", base64.b64encode(picture(1)).decode())
    until(driver, "document.getElementById('status').textContent.startsWith('a.png: ')")  # the live region
    nameless = """
      return [...document.querySelectorAll("button, input, a, img")].filter((one) =>
        !(one.labels?.length || one.textContent.trim() || one.getAttribute("aria-label") || one.hasAttribute("alt")
          || one.getAttribute("aria-labelledby"))).map((one) => one.outerHTML)"""
    assert driver.execute_script(nameless) == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_words_stand_out_from_their_ground(driver, client: Client, dark: bool) -> None:
    scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
    open_page(driver, client, chromium.DESKTOP)
    names = ("ink", "quiet", "accent", "on-accent", "bad", "back", "card", "soft", "bad-soft")
    found = driver.execute_script(
        "const style = getComputedStyle(document.documentElement);"
        "return arguments[0].map((name) => style.getPropertyValue('--' + name).trim())",
        names,
    )
    colours = dict(zip(names, found, strict=True))
    pairs = [("ink", "back"), ("ink", "card"), ("ink", "soft"), ("quiet", "back"), ("quiet", "card")]
    pairs += [("accent", "back"), ("accent", "card"), ("on-accent", "accent"), ("bad", "bad-soft")]
    for words, ground in pairs:
        assert contrast(colours[words], colours[ground]) >= 4.5, (words, ground)  # WCAG 2.2, AA


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    digits = colour.lstrip("#")
    digits = "".join(2 * digit for digit in digits) if len(digits) == 3 else digits
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_the_token_is_asked_for_once(driver) -> None:
    with serving(served.predictor(), token=TOKEN) as client:
        chromium.resize(driver, chromium.PHONE)
        driver.get(f"http://127.0.0.1:{client.port}/")
        until(driver, "document.getElementById('token').open")
        write(driver, "token-value", "a wrong token, and long")
        until(driver, "document.getElementById('token').open && !document.getElementById('token-wrong').hidden")
        write(driver, "token-value", TOKEN)
        until(driver, "document.documentElement.dataset.ready === 'true'")
        assert not driver.find_element("id", "tabs").is_displayed()  # there is no folder to search
        driver.execute_script(DROP, "drop", "a.png", base64.b64encode(picture(1)).decode())
        until(driver, "document.querySelector('.card .caption:not(.writing)')?.textContent")


def test_the_description_of_the_api_is_shown(driver, client: Client) -> None:
    chromium.resize(driver, chromium.PHONE)
    driver.get(f"http://127.0.0.1:{client.port}/docs")
    until(driver, "document.documentElement.dataset.ready === 'true'")
    assert {"POST/caption", "POST/v1/embeddings"} <= set(texts(driver, "h2"))
    assert "`" not in html.unescape("".join(texts(driver, "#routes p")))
    wide = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert driver.execute_script(wide) <= 0
    assert json.loads(client.ask("GET", "/openapi.json").body)["info"]["title"] == "OpenCoCa"
