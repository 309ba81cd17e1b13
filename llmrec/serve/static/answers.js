// The recommendations: one list with reasons, or the rankings side by side.

import { ask } from "./api.js";
import { $, el, say } from "./dom.js";
import { codesOf, coldMark, fieldsOf, quoted } from "./items.js";
import { addToHistory, model, remember, request, titleOf, update, visit } from "./visit.js";

const ABOUT = {
  beam: "The language model spells codes.",
  dense: "Its dense head compares vectors.",
  fusion: "All that the bundle knows, weighted.",
  experts: "What others took next.",
};
const IN_WORDS = { ...ABOUT, experts: "They know no words; the model ranks." };
let current = new AbortController();
let sideBySide = false;

/** Ask for recommendations and show them; a request that is not answered yet is dropped. */
export async function refresh() {
  current.abort();
  current = new AbortController();
  const { signal } = current;
  const body = request();
  say($("error"), "");
  $("results").removeAttribute("aria-busy");
  if (!body) return showStart(signal);
  $("results").setAttribute("aria-busy", "true");
  say($("state"), "Asking…");
  const rankings = sideBySide ? model.rankings : [model.ranking];
  try {
    const answers = await Promise.all(rankings.map((name) => ask(sideBySide ? `v1/recommend?ranking=${name}` : "v1/recommend", { body, signal })));
    for (const { items } of answers) remember(items);
    const focused = $("results").contains(document.activeElement);
    $("results").replaceChildren(sideBySide ? columns(rankings, answers) : list(answers[0], body, signal));
    if (focused) $("answers").focus({ preventScroll: true }); // what had the focus is gone
    say($("state"), summary(answers));
    showAdded(answers[0].items);
  } catch (error) {
    if (signal.aborted) return;
    $("results").replaceChildren();
    say($("state"), "");
    $("error").replaceChildren(error.message, " ", el("button", { type: "button", onclick: refresh }, "Try again"));
  } finally {
    if (!signal.aborted) $("results").removeAttribute("aria-busy");
  }
}

function summary(answers) {
  const [{ items, reason, notes, seconds }] = answers;
  const counted = sideBySide ? `${answers.length} rankings.` : `${items.length} ${items.length === 1 ? "item" : "items"} in ${Math.max(1, Math.round(seconds * 1000))} ms, ranked by ${model.ranking}.`;
  return [counted, ...(reason ? [`${reason}.`] : []), ...notes].join(" ");
}

/** Before anything is asked: a few items to start with. */
async function showStart(signal) {
  say($("state"), "");
  showAdded(null);
  try {
    const offset = Math.floor(Math.random() * Math.max(1, model.items - 6));
    const { items } = await ask(`v1/items?limit=6&offset=${offset}`, { signal });
    remember(items);
    $("results").replaceChildren(el("div", { class: "start" },
      el("p", {}, "What would this shopper like next? Add an item to the history, type a wish, or both. Some items to start with:"),
      el("div", { class: "chips" }, ...items.map((item) => el("button", { type: "button", onclick: () => addToHistory(item) }, item.title || item.item_id)))));
  } catch (error) {
    if (!signal.aborted) say($("error"), error.message);
  }
}

function list({ items }, body, signal) {
  if (!items.length) return el("p", { class: "start" }, "No item passes the filters. Remove one of them.");
  const best = items[0].score;
  return el("ol", { class: "answers" }, ...items.map((item) => entry(item, best, body, signal)));
}

function entry(item, best, body, signal) {
  const why = el("div", { class: "why", id: `why-${item.rank}`, hidden: true });
  const toggle = el("button", { type: "button", "aria-expanded": "false", "aria-controls": why.id, onclick: () => {
    why.hidden = !why.hidden;
    toggle.setAttribute("aria-expanded", String(!why.hidden));
    if (!why.hidden && !why.firstChild) explain(item, why, body, signal);
  } }, "Why?");
  const bar = el("span", { class: "share", "aria-hidden": "true" });
  bar.style.setProperty("--share", Math.exp(item.score - best));
  return el("li", { class: item.item_id === visit.added?.item_id ? "answer new" : "answer", "data-id": item.item_id },
    el("span", { class: "rank" }, String(item.rank)),
    el("div", { class: "body" },
      el("h3", {}, item.title || item.item_id, " ", coldMark(item)),
      el("div", { class: "row tight" }, codesOf(item.semantic_id), el("span", { class: "quiet" }, item.item_id)),
      ...fieldsOf(item)),
    el("div", { class: "side" },
      el("span", { class: "score", title: "Score" }, el("span", { class: "hidden" }, "Score "), signed(item.score, "")), bar,
      toggle,
      el("button", { type: "button", "aria-label": `Add to history: ${item.title || item.item_id}`, onclick: () => addToHistory(item) }, "Add to history")),
    why);
}

async function explain(item, box, body, signal) {
  box.replaceChildren(el("p", { class: "quiet", role: "status" }, "Asking again without each part of the request…"));
  try {
    const found = await ask("v1/explain", { body: { item_id: item.item_id, request: body }, signal });
    box.replaceChildren(...reasons(found, body));
  } catch (error) {
    if (!signal.aborted) box.replaceChildren(el("p", { class: "error", role: "alert" }, error.message));
  }
}

const signed = (number, plus) => `${number < 0 ? "−" : plus}${Math.abs(number).toFixed(2)}`;
const nameOf = (part) => (part.kind === "prompt" ? "The whole wish" : part.kind === "word" ? `“${part.text}”` : titleOf(part.text));

function reasons({ parts, notes }, body) {
  if (!parts.length) return [el("p", {}, "Nothing can be left out: this answer is by popularity.")];
  const sorted = [...parts].sort((a, b) => Math.abs(b.change) - Math.abs(a.change));
  const most = Math.max(...parts.map((part) => Math.abs(part.change)), 1e-9);
  const fine = sorted.filter((part) => part.kind !== "prompt" || !parts.some(({ kind }) => kind === "word"));
  const [up, down] = [1, -1].map((sign) => fine.filter((part) => part.change * sign > most / 20).slice(0, 2).map((part) => (part.kind === "prompt" ? "the wish" : quoted(part.text))));
  const words = [up.length ? `Moved up most by ${up.join(" and ")}` : "Nothing moved it up", ...(down.length ? [`held back by ${down.join(" and ")}`] : [])].join("; ");
  const rows = sorted.map((part) => {
    const bar = el("span", { class: part.change < 0 ? "bar less" : "bar" });
    bar.style.setProperty("--size", Math.abs(part.change) / most);
    return el("tr", {},
      el("th", { scope: "row" }, nameOf(part), el("span", { class: "quiet" }, { prompt: "", word: " word", history: " history" }[part.kind])),
      el("td", { class: "bars", "aria-hidden": "true" }, bar),
      el("td", { class: "number" }, signed(part.change, "+")),
      el("td", { class: "number" }, part.rank ? String(part.rank) : `> ${body.k}`));
  });
  const head = el("tr", {}, el("th", { scope: "col" }, "Part"), el("td", {}),
    el("th", { scope: "col", class: "number" }, "What it brings"), el("th", { scope: "col", class: "number" }, "Place without it"));
  return [el("p", {}, `${words}.`), el("table", {}, el("thead", {}, head), el("tbody", {}, ...rows)),
    ...notes.map((note) => el("p", { class: "quiet" }, note))];
}

/** The rankings beside each other; an item under the pointer or the focus is marked in all of them. */
function columns(rankings, answers) {
  const places = answers.map(({ items }) => new Map(items.map((item) => [item.item_id, item.rank])));
  const made = el("div", { class: "columns" }, ...answers.map(({ items }, own) => el("section", { "aria-label": `Ranking ${rankings[own]}` },
    el("h3", {}, rankings[own], rankings[own] === model.ranking ? el("span", { class: "mark" }, "default") : null),
    el("p", { class: "quiet" }, (visit.wish.trim() ? IN_WORDS : ABOUT)[rankings[own]] ?? ""),
    el("ol", {}, ...items.map((item) => el("li", { "data-id": item.item_id, class: item.item_id === visit.added?.item_id ? "new" : false },
      el("span", { class: "rank" }, String(item.rank)),
      el("div", {},
        el("button", { type: "button", class: "pick title", onclick: () => addToHistory(item) }, item.title || item.item_id),
        el("span", { class: "quiet" }, rankings.map((name, other) => (other === own ? null : `${name} ${places[other].get(item.item_id) ?? "–"}`)).filter(Boolean).join(" · ")))))))));
  const mark = ({ target }) => {
    const id = target.closest?.("li")?.dataset.id;
    for (const each of made.querySelectorAll("li")) each.classList.toggle("same", each.dataset.id === id);
  };
  made.addEventListener("pointerover", mark);
  made.addEventListener("focusin", mark);
  return made;
}

/** Say where the item that was added last is; `items` is null if nothing is asked. */
function showAdded(items) {
  const { added } = visit;
  $("added").hidden = !added;
  if (!added) return;
  const found = items?.find((item) => item.item_id === added.item_id);
  const place = found ? `It is at place ${found.rank} of these recommendations. ` : `It is not among these ${items?.length} recommendations. `;
  const remove = async () => {
    try {
      await ask(`v1/items/${encodeURIComponent(added.item_id)}`, { method: "DELETE" });
      update({ added: null, history: visit.history.filter((id) => id !== added.item_id) });
    } catch (error) {
      say($("error"), error.message);
    }
  };
  $("added").replaceChildren(
    el("p", {}, el("strong", {}, `Added ${quoted(added.item_id)}. `), "The model knows it by ", codesOf(added.semantic_id), "."),
    el("p", {}, items ? place : null,
      found ? null : el("button", { type: "button", onclick: () => update({ wish: added.title || added.item_id }) }, "Wish for it"), " ",
      el("button", { type: "button", onclick: remove }, "Remove it"), " ",
      el("button", { type: "button", onclick: () => update({ added: null }) }, "Hide")));
}

/** Choose between one list and the rankings side by side. */
function choose(compare) {
  sideBySide = compare;
  $("view-list").setAttribute("aria-pressed", String(!compare));
  $("view-compare").setAttribute("aria-pressed", String(compare));
  refresh();
}

$("view-list").addEventListener("click", () => choose(false));
$("view-compare").addEventListener("click", () => choose(true));
