// What the visitor has asked so far. It is in the address, so that a reload or a link shows the same.

import { ask } from "./api.js";

export const visit = { history: [], wish: "", where: {}, k: 10 };
/** The answer of GET /v1/model. */
export const model = {};
const items = new Map();
const listeners = [];

/** Call a function at each change of the visit. */
export const onChange = (listener) => listeners.push(listener);

/** Change the visit: update({ wish: "..." }). */
export function update(change) {
  Object.assign(visit, change);
  const address = new URLSearchParams(visit.history.map((id) => ["item", id]));
  if (visit.wish) address.set("wish", visit.wish);
  for (const [field, value] of Object.entries(visit.where)) address.append("only", `${field}=${value}`);
  if (visit.k !== 10) address.set("k", visit.k);
  history.replaceState(null, "", `#${address}`);
  for (const listener of listeners) listener();
}

/** Read the visit from the address, and the titles of its history from the server. */
export async function restore() {
  const address = new URLSearchParams(location.hash.slice(1));
  const only = address.getAll("only").map((text) => [text.split("=")[0], text.slice(text.indexOf("=") + 1)]);
  const history = address.getAll("item");
  await Promise.all(history.map((id) => ask(`v1/items/${encodeURIComponent(id)}`).then((item) => remember([item]), () => null)));
  update({ history, wish: address.get("wish") ?? "", where: Object.fromEntries(only), k: clamp(address.get("k") ?? 10) });
}

/** The body of POST /v1/recommend; null if there is nothing to go by. */
export function request() {
  const { history, where, k } = visit;
  const wish = visit.wish.trim();
  if (!history.length && !wish) return null;
  return { ...(history.length && { history }), ...(wish && { prompt: wish }), where, k };
}

/** A number of answers from 1 to 100. */
export const clamp = (text) => Math.min(100, Math.max(1, Math.round(Number(text)) || 10));

/** Keep items that the server has sent. */
export function remember(some) {
  for (const item of some) items.set(item.item_id, item);
}

/** The title of an item, or its id. */
export const titleOf = (id) => items.get(id)?.title || id;

/** The values of a field in the items that the server has sent. */
export function valuesOf(field) {
  const texts = [...items.values()].map((item) => item.fields[field] ?? "").filter((text) => text.length <= 60);
  return [...new Set(texts.flatMap((text) => text.split(",").map((part) => part.trim())).filter(Boolean))].sort();
}

export const addToHistory = (item) => {
  remember([item]);
  update({ history: [...visit.history, item.item_id] });
};

export const setFilter = (field, value) => update({ where: { ...visit.where, [field]: value } });
