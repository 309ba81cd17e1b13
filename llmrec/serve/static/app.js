// The page: the request on one side, the recommendations on the other. Each change of the request asks again.

import { prepareAdding } from "./add.js";
import { refresh } from "./answers.js";
import { ask, ready } from "./api.js";
import { $, arrows, el, later, say } from "./dom.js";
import { pickable } from "./items.js";
import { clamp, model, onChange, remember, restore, setFilter, titleOf, update, valuesOf, visit } from "./visit.js";

const FOUND = 8;

function showModel() {
  const cold = model.cold_items ? `, ${model.cold_items.toLocaleString("en")} of them cold` : "";
  say($("model"), `${model.items.toLocaleString("en")} items${cold} · ranked by ${model.ranking} · ${model.base_model}`);
  $("views").hidden = model.rankings.length < 2;
  $("filter").hidden = !model.fields.length;
  $("filter-field").replaceChildren(...model.fields.filter((field) => field !== "description").map((field) => el("option", { value: field }, field)));
}

function showRequest() {
  $("history-empty").hidden = visit.history.length > 0;
  $("history").replaceChildren(...visit.history.map((id, place) => el("li", {}, el("span", {}, titleOf(id)),
    remover(`Remove from the history: ${titleOf(id)}`, () => {
      update({ history: visit.history.filter((_, other) => other !== place) });
      ($("history").querySelectorAll("button")[place] ?? $("search")).focus();
    }))));
  $("filters").replaceChildren(...Object.entries(visit.where).map(([field, value]) => el("li", {}, `${field}: ${value} `,
    remover(`Remove the filter ${field}: ${value}`, () => {
      const { [field]: _, ...where } = visit.where;
      update({ where });
      $("filter-value").focus();
    }))));
  $("filters").hidden = !Object.keys(visit.where).length;
  if (document.activeElement !== $("wish")) $("wish").value = visit.wish;
  if (document.activeElement !== $("k")) $("k").value = visit.k;
}

const remover = (label, onclick) => el("button", { type: "button", class: "remove", "aria-label": label, title: label, onclick }, "×");

let searching = new AbortController();

async function search() {
  searching.abort();
  searching = new AbortController();
  const { signal } = searching;
  const query = $("search").value.trim();
  if (!query) {
    $("found").replaceChildren();
    return say($("found-state"), "");
  }
  try {
    const { items, total } = await ask(`v1/items?${new URLSearchParams({ query, limit: FOUND })}`, { signal });
    remember(items);
    $("found").replaceChildren(...items.map((item) => pickable(item)));
    const more = total > items.length ? `, the first ${items.length} shown` : "";
    say($("found-state"), total ? `${total.toLocaleString("en")} found${more}.` : "No item has all these words.");
  } catch (error) {
    if (!signal.aborted) say($("found-state"), error.message);
  }
}

$("search").addEventListener("input", later(150, search));
arrows($("found"), ".pick", $("search"));
$("found").addEventListener("keydown", (event) => event.key === "Escape" && $("search").focus());
$("wish").addEventListener("input", later(400, () => {
  if ($("wish").value !== visit.wish) update({ wish: $("wish").value }); // Enter may have asked already
}));
$("wish").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey) return;
  event.preventDefault();
  update({ wish: $("wish").value });
});
$("k").addEventListener("change", () => update({ k: clamp($("k").value) }));
$("filter-value").addEventListener("focus", () => {
  $("values").replaceChildren(...valuesOf($("filter-field").value).map((value) => el("option", { value })));
});
$("filter").addEventListener("submit", (event) => {
  event.preventDefault();
  const value = $("filter-value").value.trim();
  if (!value) return $("filter-value").focus();
  $("filter-value").value = "";
  setFilter($("filter-field").value, value);
});
$("clear").addEventListener("click", () => {
  $("search").value = "";
  search();
  update({ history: [], wish: "", where: {}, k: 10 });
  $("search").focus();
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "/" || event.target.closest("input, textarea, select, dialog")) return;
  event.preventDefault();
  $("search").focus();
});

try {
  await ready(() => say($("model"), "The model is being loaded…"));
  Object.assign(model, await ask("v1/model"));
  showModel();
  prepareAdding();
  onChange(showRequest);
  onChange(refresh);
  await restore();
} catch (error) {
  say($("model"), "");
  say($("error"), error.message);
}
