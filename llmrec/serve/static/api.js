// Asks the server that the page came from. Every error has the server's own words as message.

import { $ } from "./dom.js";

const TOKEN = "llmrec-token";
let asking = null;

/** The answer to `GET path`, or to `POST path` with a body. */
export async function ask(path, { body, method = body ? "POST" : "GET", signal } = {}) {
  for (;;) {
    const token = sessionStorage.getItem(TOKEN);
    const headers = { ...(body && { "content-type": "application/json" }), ...(token && { authorization: `Bearer ${token}` }) };
    let response;
    try {
      response = await fetch(path, { method, headers, signal, body: body && JSON.stringify(body) });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Error("The server does not answer.");
    }
    if (response.status === 401) {
      await newToken(token);
      continue;
    }
    const answer = await response.json();
    if (response.ok) return answer;
    throw Object.assign(new Error(answer.error.message), { status: response.status });
  }
}

/** Wait until the model is loaded; `wait` is called before each pause. */
export async function ready(wait) {
  while (!(await fetch("readyz").catch(() => null))?.ok) {
    wait();
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
}

/** Ask the visitor for a token; requests that are refused meanwhile wait for the same one. */
function newToken(refused) {
  if (sessionStorage.getItem(TOKEN) !== refused) return null; // another request has got a new one
  $("token-error").hidden = !refused;
  asking ??= new Promise((resolve) => {
    $("token-form").onsubmit = (event) => {
      event.preventDefault();
      sessionStorage.setItem(TOKEN, $("token-value").value.trim());
      asking = null;
      $("token").close();
      resolve();
    };
    $("token").onclose = () => asking && $("token").showModal(); // nothing works without it
    $("token-value").value = "";
    $("token").showModal();
  });
  return asking;
}
