// The dialog that adds an item to the catalogue.

import { ask } from "./api.js";
import { $, el, say } from "./dom.js";
import { model, remember, update } from "./visit.js";

/** Prepare the dialog, once the fields of the catalogue are known. */
export function prepareAdding() {
  $("add-open").hidden = !model.can_change_items;
  const names = ["item_id", "title", ...model.fields];
  $("add-fields").replaceChildren(...names.map((name) => el("div", { class: "field" },
    el("label", { for: `new-${name}` }, name === "item_id" ? "Id" : name[0].toUpperCase() + name.slice(1)),
    el(name === "description" ? "textarea" : "input", { id: `new-${name}`, name, autocomplete: "off", required: name === "item_id" || name === "title" }))));
}

async function add(event) {
  event.preventDefault();
  say($("add-error"), "");
  const { item_id, title, ...fields } = Object.fromEntries([...new FormData($("add-form"))].filter(([, text]) => text.trim()));
  const button = $("add-form").querySelector("button[type=submit]");
  button.disabled = true;
  try {
    const done = await ask("v1/items", { body: { items: [{ item_id, title, fields }] } });
    const added = await ask(`v1/items/${encodeURIComponent(item_id)}`); // as the catalogue has it
    remember([added]);
    model.items = done.items;
    $("add-form").reset();
    $("add").close();
    update({ added });
  } catch (error) {
    say($("add-error"), error.message);
  } finally {
    button.disabled = false;
  }
}

$("add-open").addEventListener("click", () => {
  say($("add-error"), "");
  $("add").showModal();
});
$("add-form").addEventListener("submit", add);
