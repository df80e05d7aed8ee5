// The page: who answers, and the two tabs.

import { call } from "./api.js";
import * as cards from "./cards.js";
import { $ } from "./dom.js";
import * as search from "./search.js";

const TABS = ["describe", "search"];

function show(name, focus = false) {
  for (const one of TABS) {
    const chosen = one === name, tab = $(`tab-${one}`);
    $(one).hidden = !chosen;
    tab.setAttribute("aria-selected", String(chosen));
    tab.tabIndex = chosen ? 0 : -1;
    if (chosen && focus) tab.focus();
  }
  if (location.hash !== `#${name}`) history.replaceState(null, "", `#${name}`);
}

function setUpTabs() {
  $("tabs").hidden = false;
  $("describe").setAttribute("role", "tabpanel");
  $("describe").setAttribute("aria-labelledby", "tab-describe");
  for (const [place, name] of TABS.entries()) {
    $(`tab-${name}`).addEventListener("click", () => show(name));
    $(`tab-${name}`).addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (step) show(TABS[(place + step + TABS.length) % TABS.length], true);
    });
  }
  search.setUp();
  show(location.hash === "#search" ? "search" : "describe");
}

cards.setUp((files) => ($("search").hidden ? cards.add(files) : search.by(files[0])));
const about = await (await call("/about")).json();
$("model").textContent = about.model;
$("provenance").textContent = `${about.generator}, model ${about.model} (${about.fingerprint.slice(0, 8)}).`;
$("untrained").hidden = about.answers;
if (about.pictures !== null) {
  $("count").textContent = about.pictures.toLocaleString();
  setUpTabs();
}
document.documentElement.dataset.ready = "true";
