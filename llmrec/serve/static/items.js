// How items look: their codes, their fields, and lists to pick from.

import { el } from "./dom.js";
import { openPrefix } from "./prefix.js";
import { addToHistory, setFilter, titleOf } from "./visit.js";

const SHORT = 60; // longest text of a field that is a filter to click rather than a text to read

/** The item tokens of a semantic ID: "<a_12><b_3>" -> ["<a_12>", "<b_3>"]. */
export const tokensOf = (semanticId) => semanticId.match(/<[^<>]*>/g) ?? [];

/** The codes of an item; each is a button for the items that share the codes up to it. */
export function codesOf(semanticId) {
  const tokens = tokensOf(semanticId);
  return el("span", { class: "codes", role: "group", "aria-label": "Codes" }, ...tokens.map((_, level) => codeButton(tokens, level)));
}

function codeButton(tokens, level) {
  const prefix = tokens.slice(0, level + 1);
  const [, letter, code] = tokens[level].match(/([a-z])_(\d+)>$/);
  const label = `${letter}${code}: items whose codes begin with ${prefix.join("")}`;
  const button = el("button", { type: "button", class: "code", "aria-label": label, title: label, onclick: () => openPrefix(prefix) },
    el("span", { class: "level" }, letter), code);
  button.style.setProperty("--hue", (Number(code) * 137.5 + level * 40) % 360); // the same code has the same colour
  return button;
}

/** The fields of an item: short ones are buttons that set a filter. */
export function fieldsOf(item) {
  const texts = Object.entries(item.fields).filter(([, text]) => text);
  const chips = texts.filter(([, text]) => text.length <= SHORT).flatMap(([field, text]) =>
    text.split(",").map((part) => part.trim()).filter(Boolean).map((part) => {
      const label = `Only ${field}: ${part}`;
      return el("button", { type: "button", "aria-label": label, title: label, onclick: () => setFilter(field, part) }, part);
    }));
  const long = texts.filter(([, text]) => text.length > SHORT).map(([, text]) => el("p", { class: "text" }, text));
  return [el("div", { class: "fields" }, ...chips), ...long];
}

/** Marks an item that the model has not seen in training. */
export const coldMark = (item) => (item.training_events === 0 ? el("span", { class: "mark", title: "No training events: known by its text only" }, "cold") : null);

/** A list entry whose button adds the item to the history. */
export function pickable(item, picked = () => {}) {
  const pick = () => {
    addToHistory(item);
    picked();
  };
  const short = Object.values(item.fields).filter((text) => text && text.length <= SHORT).slice(0, 2);
  return el("li", {},
    el("button", { type: "button", class: "pick", onclick: pick },
      el("span", { class: "title" }, item.title || item.item_id, " ", coldMark(item)),
      el("span", { class: "quiet" }, [item.item_id, ...short].join(" · "))));
}

/** The title of an item as a quotation. */
export const quoted = (id) => `“${titleOf(id)}”`;
