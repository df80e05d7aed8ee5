// The indexed folder: a grid that grows as one scrolls, its pictures named by number and never by path.

import { Refused, call, postJson } from "./api.js";
import { $, announce, copy, element, problem, toast } from "./dom.js";

const TOP = 24;
const BLEND = 0.3; // how much captions count, where they do
let state = { asked: {}, offset: 0, more: false, loading: false, turn: 0 };
let picture = null; // that is searched by, as { url, name }
let near; // the end of the grid is about to be seen

const seen = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    seen.unobserve(target);
    load(target);
  }
}, { rootMargin: "400px" });

async function load(image) {
  try {
    const response = await call(`/thumbnail/${image.dataset.id}?size=400`); // by fetch: an img element sends no token
    image.src = URL.createObjectURL(await response.blob());
    image.addEventListener("load", () => URL.revokeObjectURL(image.src), { once: true });
  } catch {
    image.replaceWith(element("span", { class: "quiet small" }, "can't be shown"));
  }
}

function hitElement(hit) {
  const image = element("img", { alt: hit.caption || hit.name, "data-id": hit.id });
  seen.observe(image);
  const words = hit.caption || hit.name;
  return element("li", { class: hit.good ? "hit" : "hit weak" },
    element("div", { class: "frame" }, image),
    element("div", { class: "text" },
      element("p", { class: "caption" }, words),
      hit.caption ? element("p", { class: "name", title: hit.name }, hit.name) : null,
      element("p", { class: "quiet small" }, [hit.good ? "" : "weak match", hit.why].filter(Boolean).join(": ")),
      element("div", { class: "row" },
        element("button", { class: "plain", type: "button", "aria-label": `Copy: ${words}`, onclick: () => copy(words) }, "Copy"),
        element("button", { class: "plain", type: "button", "aria-label": `Similar to ${words}`, onclick: () => { forget(); $("query").value = `id:${hit.id}`; start(); } }, "Similar"))));
}

async function page() {
  if (state.loading || !state.more) return;
  state.loading = true;
  const turn = state.turn;
  try {
    const found = await postJson("/search", { ...state.asked, top: TOP, offset: state.offset });
    if (turn !== state.turn) return; // another search has begun
    if (state.offset === 0) verdict(found);
    $("hits").append(...found.hits.map(hitElement));
    state.offset += found.hits.length;
    state.more = found.more && found.hits.length > 0;
  } catch (error) {
    if (turn !== state.turn) return;
    state.more = false;
    $("verdict").hidden = true;
    $("hits").after(problem(error instanceof Refused ? error.message : "Something went wrong on this page."));
    if (!(error instanceof Refused)) console.error(error);
  } finally {
    if (turn === state.turn) state.loading = false;
  }
  near.unobserve($("more")); // looked at again: the grid may still end within sight
  near.observe($("more"));
}

function verdict({ hits }) {
  const words = !hits.length ? "Nothing was found." : !hits.some((hit) => hit.good) ? "No good match. These come closest." : "";
  $("verdict").hidden = !words;
  $("verdict").textContent = words;
  if (!words) announce(`Pictures were found. The first: ${hits[0].caption || hits[0].name}`);
}

/** What the form asks for, or null where it asks for nothing. */
function asked() {
  const query = $("query").value.trim(), bytes = (id) => ($(id).value === "" ? "" : Math.round(1000 * Number($(id).value)));
  if (!query && !picture) return null;
  const fields = { query, image: picture?.url, after: $("after").value, before: $("before").value, folder: $("within").value.trim(),
    min_bytes: bytes("least-kb"), max_bytes: bytes("most-kb"), blend: $("captions-count").checked ? BLEND : "" };
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined && value !== ""));
}

function start() {
  const wanted = asked();
  if (!wanted) return $("query").focus();
  document.querySelector("#search > .problem")?.remove();
  $("hits").replaceChildren();
  $("verdict").hidden = true;
  state = { asked: wanted, offset: 0, more: true, loading: false, turn: state.turn + 1 };
  scrollTo({ top: 0 });
  page();
}

/** Searches by a picture, alone or with the words that stand there. */
export function by(file) {
  const reader = new FileReader();
  reader.onload = () => {
    picture = { url: reader.result.replace(/^data:[^,]*,/, "data:image/*;base64,"), name: file.name || "pasted picture" };
    $("like-image").src = URL.createObjectURL(file);
    $("like-name").textContent = picture.name;
    $("like").hidden = false;
    $("like-choose").hidden = true;
    if (/^id:\d+$/.test($("query").value.trim())) $("query").value = "";
    start();
  };
  reader.onerror = () => toast("This file can't be read");
  reader.readAsDataURL(file);
}

function forget() {
  if (!picture) return;
  picture = null;
  URL.revokeObjectURL($("like-image").src);
  $("like").hidden = true;
  $("like-choose").hidden = false;
}

export function setUp() {
  near = new IntersectionObserver((entries) => { if (entries.some((one) => one.isIntersecting)) page(); }, { rootMargin: "600px" });
  near.observe($("more"));
  $("find").addEventListener("submit", (event) => {
    event.preventDefault();
    start();
  });
  $("like-file").addEventListener("change", ({ target }) => { if (target.files.length) by(target.files[0]); target.value = ""; });
  $("like-remove").addEventListener("click", () => { forget(); $("query").focus(); });
}
