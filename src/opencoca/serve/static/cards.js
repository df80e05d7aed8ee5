// Pictures that were dropped, pasted or chosen: each a card with its caption, answers and bars.

import { Refused, events, postPicture } from "./api.js";
import { $, announce, copy, element, problem } from "./dom.js";

const AT_ONCE = 4;
const NAMED = 3; // files that are named where they are left out
const cards = new Set();
const waiting = [];
let working = 0;
let provenance = null;

/** Runs tasks, a few at a time: browsers and the server both have only so many places. */
function enqueue(task) {
  waiting.push(task);
  next();
}

function next() {
  while (working < AT_ONCE && waiting.length) {
    working++;
    waiting.shift()().finally(() => { working--; next(); });
  }
}

class Card {
  constructor(file, name) {
    this.file = file;
    this.name = name;
    this.caption = "";
    this.answers = [];
    this.labels = [];
    this.gone = new AbortController();
    this.url = URL.createObjectURL(file);
    this.image = element("img", { src: this.url, alt: name });
    this.image.addEventListener("error", () => this.image.replaceWith(element("span", { class: "quiet small" }, "no preview")));
    this.captionAt = element("p", { class: "caption writing" });
    this.results = element("div", { class: "results" });
    const remove = element("button", { class: "plain", type: "button", "aria-label": `Remove ${name}`, onclick: () => this.remove() }, "Remove");
    this.copyAt = element("button", { class: "plain", type: "button", "aria-label": `Copy the caption of ${name}`, disabled: true, onclick: () => copy(this.caption) }, "Copy");
    this.answersAt = element("div");
    this.barsAt = element("ul", { class: "bars", "aria-label": `Labels of ${name}`, hidden: true });
    this.root = element("li", { class: "card" },
      element("div", { class: "frame" }, this.image),
      element("div", { class: "text" }, this.captionAt, element("p", { class: "name", title: name }, name),
        this.answersAt, this.barsAt, element("div", { class: "row" }, this.copyAt, remove)));
  }

  /** Does something with the server; what goes wrong stands on the card. */
  async attempt(work) {
    try {
      await work();
    } catch (error) {
      if (error.name === "AbortError") return;
      const words = error instanceof Refused ? error.message : "Something went wrong on this page.";
      if (!(error instanceof Refused)) console.error(error);
      this.captionAt.classList.remove("writing");
      const said = problem(words);
      for (const one of this.answersAt.querySelectorAll(".problem")) if (one.textContent === said.textContent) one.remove();
      this.answersAt.append(said);
    }
  }

  describe() {
    return this.attempt(async () => {
      const response = await postPicture("/caption", this.file, { stream: "true" }, { signal: this.gone.signal });
      for await (const [kind, data] of events(response)) {
        if (kind === "partial") this.captionAt.textContent = data.text;
        if (kind === "caption") {
          this.caption = data.caption;
          this.captionAt.textContent = data.caption || "(no words)";
          this.image.alt = data.caption;
        }
        if (kind === "done") provenance = data.provenance;
        if (kind === "error") throw new Refused(data.error.message);
      }
      this.captionAt.classList.remove("writing");
      this.copyAt.disabled = false;
      announce(`${this.name}: ${this.caption}`);
    });
  }

  ask(question) {
    return this.attempt(async () => {
      const response = await postPicture("/ask", this.file, { question }, { signal: this.gone.signal });
      const answer = (await response.json()).results[0].answer;
      this.answers.push({ question, answer });
      this.answersAt.append(element("p", { class: "answer" }, element("b", {}, question), answer || "(no words)"));
      announce(`${this.name}: ${answer}`);
    });
  }

  classify(labels) {
    return this.attempt(async () => {
      const response = await postPicture("/classify", this.file, labels.map((label) => ["labels", label]), { signal: this.gone.signal });
      this.labels = (await response.json()).results[0].labels;
      this.barsAt.hidden = false;
      this.barsAt.replaceChildren(...this.labels.map(({ label, probability }) => {
        const fill = element("div", { class: "fill" });
        requestAnimationFrame(() => requestAnimationFrame(() => { fill.style.width = `${100 * probability}%`; }));
        return element("li", {}, element("span", { class: "word" }, label),
          element("span", { class: "number" }, `${Math.round(100 * probability)} %`),
          element("div", { class: "track", "aria-hidden": "true" }, fill));
      }));
      announce(`${this.name}: ${this.labels[0].label}, ${Math.round(100 * this.labels[0].probability)} percent`);
    });
  }

  remove() {
    const neighbour = this.root.nextElementSibling ?? this.root.previousElementSibling;
    this.gone.abort();
    URL.revokeObjectURL(this.url);
    cards.delete(this);
    this.root.remove();
    refresh();
    (neighbour?.querySelector("button:not(:disabled)") ?? $("files")).focus();
  }
}

function refresh() {
  const some = cards.size > 0;
  $("tools").hidden = $("all").hidden = !some;
  $("drop").classList.toggle("slim", some);
  $("how-many").textContent = cards.size === 1 ? "1 picture" : `${cards.size} pictures`;
}

function leftOut(names) {
  if (!names.length) return "";
  if (names.length === 1) return `${names[0]} is no picture; left out`;
  const more = names.length > NAMED ? ` and ${names.length - NAMED} more` : "";
  return `${names.slice(0, NAMED).join(", ")}${more} are no pictures; left out`;
}

export function add(files) {
  const pictures = [...files].filter((file) => file.type.startsWith("image/") || /\.(heic|heif|avif|tiff?|bmp|webp|jpe?g|png|gif)$/i.test(file.name));
  $("left-out").textContent = leftOut([...files].filter((file) => !pictures.includes(file)).map((file) => file.name));
  for (const file of pictures.reverse()) {
    const card = new Card(file, file.name || "pasted picture");
    cards.add(card);
    $("cards").prepend(card.root);
    enqueue(() => card.describe());
  }
  refresh();
}

const SEPARATORS = { "\t": " ", "\r": " ", "\n": " " };
const plain = (text) => text.replace(/[\t\r\n]/g, (found) => SEPARATORS[found]);

function chosen() {
  return [...new Set($("labels").value.split(",").map((label) => label.trim()).filter(Boolean))];
}

function inOrder() {
  return [...$("cards").children].map((root) => [...cards].find((card) => card.root === root));
}

function save() {
  const pictures = inOrder().map(({ name, caption, answers, labels }) => ({ name, caption, answers, labels }));
  const content = JSON.stringify({ provenance, made: new Date().toISOString(), pictures }, null, 2);
  const url = URL.createObjectURL(new Blob([content], { type: "application/json" }));
  element("a", { href: url, download: "captions.json" }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/** `take` is called with the files that were dropped or pasted anywhere. */
export function setUp(take) {
  const input = $("files");
  const over = (is) => ["drop", "find"].forEach((id) => $(id).classList.toggle("over", is));
  input.addEventListener("change", () => { add(input.files); input.value = ""; });
  addEventListener("dragover", (event) => { event.preventDefault(); over(true); });
  addEventListener("dragleave", (event) => { if (!event.relatedTarget) over(false); });
  addEventListener("drop", (event) => {
    event.preventDefault();
    over(false);
    if (event.dataTransfer?.files.length) take(event.dataTransfer.files);
  });
  addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (files.length) { event.preventDefault(); take(files); }
  });
  $("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    const question = $("question").value.trim();
    if (question) for (const card of inOrder()) enqueue(() => card.ask(question));
  });
  $("classify").addEventListener("submit", (event) => {
    event.preventDefault();
    const labels = chosen();
    if (labels.length < 2) {
      $("labels").setCustomValidity("Give two labels or more, with commas between");
      $("labels").reportValidity();
      return;
    }
    for (const card of inOrder()) enqueue(() => card.classify(labels));
  });
  $("labels").addEventListener("input", () => $("labels").setCustomValidity(""));
  $("copy-all").addEventListener("click", () => copy(inOrder().map(({ name, caption }) => `${plain(name)}\t${plain(caption)}`).join("\n")));
  $("save").addEventListener("click", save);
  $("clear").addEventListener("click", () => {
    for (const card of [...cards]) card.remove();
    $("left-out").textContent = "";
  });
}
