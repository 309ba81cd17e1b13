// The dialog with the items whose codes begin with a prefix.

import { ask } from "./api.js";
import { $, arrows, el, say } from "./dom.js";
import { codesOf, pickable } from "./items.js";
import { remember } from "./visit.js";

const PAGE = 50;
let shown = 0;
let prefix = "";

/** Show the items whose semantic IDs begin with these item tokens. */
export function openPrefix(tokens) {
  prefix = tokens.join("");
  shown = 0;
  $("prefix-codes").replaceChildren(codesOf(prefix));
  $("prefix-items").replaceChildren();
  if (!$("prefix").open) $("prefix").showModal();
  more();
}

async function more() {
  const wanted = prefix;
  say($("prefix-state"), "Loading…");
  $("prefix-more").hidden = true;
  try {
    const found = await ask(`v1/items?${new URLSearchParams({ prefix, limit: PAGE, offset: shown })}`);
    if (wanted !== prefix) return;
    remember(found.items);
    shown += found.items.length;
    $("prefix-items").append(...found.items.map((item) => {
      const entry = pickable(item, () => say($("prefix-state"), `Added “${item.title || item.item_id}” to the history.`));
      entry.append(codesOf(item.semantic_id));
      return entry;
    }));
    say($("prefix-state"), `${found.total.toLocaleString("en")} ${found.total === 1 ? "item begins" : "items begin"} with these codes. Click one to add it to the history.`);
    $("prefix-more").hidden = shown >= found.total;
  } catch (error) {
    say($("prefix-state"), error.message);
  }
}

$("prefix-more").addEventListener("click", more);
arrows($("prefix-items"), ".pick");
