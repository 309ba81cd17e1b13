// Makes elements. Texts become text nodes, never HTML: what the catalogue says is data.

export const $ = (id) => document.getElementById(id);

/** An element: el("p", { class: "quiet", onclick: f }, "text", another). */
export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value != null) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child != null));
  return made;
}

/** Show text in an element; the style sheet hides an empty error. */
export function say(element, text) {
  element.textContent = text;
}

/** Let the arrow keys move between the buttons of a list; above the first one is `before`. */
export function arrows(list, selector, before = null) {
  const move = (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    const buttons = [...list.querySelectorAll(selector)];
    const next = buttons.indexOf(document.activeElement) + step;
    event.preventDefault();
    (next < 0 ? before : buttons[Math.min(next, buttons.length - 1)])?.focus();
  };
  list.addEventListener("keydown", move);
  before?.addEventListener("keydown", (event) => event.key === "ArrowDown" && move(event));
}

/** Call a function once the calls have paused. */
export function later(milliseconds, call) {
  let timer;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(call, milliseconds);
  };
}

for (const button of document.querySelectorAll("dialog .close")) {
  button.addEventListener("click", () => button.closest("dialog").close());
}
