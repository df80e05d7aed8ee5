// Requests to the server that this page came from: its token, its "come back later", and its event streams.

import { $ } from "./dom.js";

const KEY = "opencoca-token";
const TRIES = 6;
let asking = null;

export class Refused extends Error {}

/** A response that is fine. Raises Refused with the server's own words. */
export async function call(path, options = {}) {
  for (let attempt = 1; ; attempt++) {
    const token = sessionStorage.getItem(KEY);
    const headers = { ...options.headers, ...(token ? { Authorization: `Bearer ${token}` } : {}) };
    let response;
    try {
      response = await fetch(path, { ...options, headers });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Refused("The server can't be reached. Is it still running?");
    }
    if (response.ok) return response;
    if (response.status === 401) {
      await askForToken(token);
      continue;
    }
    if (response.status === 503 && attempt < TRIES) {
      const seconds = Number(response.headers.get("Retry-After")) || 1;
      await new Promise((wake) => setTimeout(wake, 1000 * seconds * (0.75 + Math.random() / 2)));
      continue;
    }
    let words = `The server answered ${response.status}.`;
    try {
      words = (await response.json()).error.message;
    } catch { /* it isn't JSON */ }
    throw new Refused(words);
  }
}

export async function postJson(path, content, options = {}) {
  const headers = { "Content-Type": "application/json" };
  return (await call(path, { ...options, method: "POST", headers, body: JSON.stringify(content) })).json();
}

/** Sends a picture's file as it is; the options are in the query. */
export function postPicture(path, file, options = {}, more = {}) {
  const query = new URLSearchParams(options);
  const type = file.type.startsWith("image/") ? file.type : "application/octet-stream";
  return call(`${path}?${query}`, { ...more, method: "POST", headers: { "Content-Type": type }, body: file });
}

/** The events of a stream, as [name, data]. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value;
    const blocks = rest.split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const fields = Object.fromEntries(block.split("\n").map((line) => {
        const colon = line.indexOf(": ");
        return [line.slice(0, colon), line.slice(colon + 2)];
      }));
      yield [fields.event, JSON.parse(fields.data)];
    }
  }
}

/** Asks once, however many requests are waiting for it. */
function askForToken(wrong) {
  asking ??= new Promise((answer) => {
    const dialog = $("token"), form = $("token-form"), input = $("token-value");
    $("token-wrong").hidden = !wrong;
    input.value = "";
    dialog.showModal();
    form.onsubmit = (event) => {
      event.preventDefault();
      sessionStorage.setItem(KEY, input.value.trim());
      dialog.close();
    };
    dialog.oncancel = (event) => event.preventDefault();
    dialog.onclose = () => { asking = null; answer(); };
  });
  return asking;
}
