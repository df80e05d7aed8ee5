// The server's own description of itself, as a page: text nodes only, and nothing from elsewhere.

import { $, element } from "./dom.js";

function kind(schema, all) {
  if (schema.$ref) return kind(all[schema.$ref.split("/").pop()] ?? {}, all);
  if (schema.anyOf) return schema.anyOf.filter((one) => one.type !== "null").map((one) => kind(one, all)).join(" or ");
  if (schema.enum) return schema.enum.map((one) => JSON.stringify(one)).join(" or ");
  if (schema.type === "array") return `list of ${kind(schema.items ?? {}, all)}`;
  const bounds = [["minimum", "≥ "], ["exclusiveMinimum", "> "], ["maximum", "≤ "]].filter(([name]) => name in schema).map(([name, sign]) => sign + schema[name]);
  return [schema.type ?? "anything", ...bounds].join(" ");
}

function row(name, schema, required, all) {
  const about = "default" in schema && schema.default !== null ? `default ${JSON.stringify(schema.default)}` : required ? "must be given" : "";
  return element("tr", {}, element("th", { scope: "row" }, element("code", {}, name)), element("td", {}, kind(schema, all)), element("td", {}, about));
}

function table(rows) {
  const head = element("tr", {}, ...["field", "what", ""].map((word) => element("th", { scope: "col" }, word)));
  return rows.length ? element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows)) : null;
}

const api = await (await fetch("/openapi.json")).json();
for (const [path, methods] of Object.entries(api.paths)) {
  for (const [method, route] of Object.entries(methods)) {
    const schema = route.requestBody?.content?.["application/json"]?.schema;
    const all = api.components.schemas;
    const fields = Object.entries(schema?.properties ?? {}).map(([name, one]) => row(name, one, schema.required?.includes(name), all));
    const parameters = (route.parameters ?? []).map((one) => row(one.name, one.schema, one.required, all));
    $("routes").append(element("h2", {}, element("span", { class: "method" }, method.toUpperCase()), path),
      element("p", {}, (route.description ?? "").replaceAll("`", "")), ...[table([...parameters, ...fields])].filter(Boolean));
  }
}
document.documentElement.dataset.ready = "true";
