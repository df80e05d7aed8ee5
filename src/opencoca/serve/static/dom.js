// Elements are made of text nodes only: nothing that a model, a file name or a server says is ever read as HTML.

export const $ = (id) => document.getElementById(id);

export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "onclick") made.addEventListener("click", value);
    else if (value !== undefined && value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** Tells those who don't see the page. */
export function announce(text) {
  $("status").textContent = text;
}

let toastTimer = 0;
export function toast(text) {
  $("toast").textContent = text;
  $("toast").hidden = false;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => { $("toast").hidden = true; }, 1800);
  announce(text);
}

/** Puts text on the clipboard; without https, browsers offer only the old way. */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = element("textarea", { class: "hidden", "aria-hidden": "true" });
    area.value = text;
    const before = document.activeElement;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    before?.focus();
    if (!done) return toast("Your browser doesn't let this page copy");
  }
  toast("Copied");
}

/** What went wrong, in words; the page sends one picture at a time, whose number says nothing. */
export function problem(text) {
  return element("p", { class: "problem", role: "alert" }, text.replace(/^images\[0\] /, "This "));
}
