// The page to try a model: it asks the same APIs that every client asks.
"use strict";
const $ = (id) => document.getElementById(id);
const turns = [];
let about = null;
let stopping = null;

function headers() {
  const sent = { "Content-Type": "application/json" };
  if ($("key").value) sent.Authorization = `Bearer ${$("key").value}`;
  return sent;
}

async function problem(answer) {
  const body = await answer.json().catch(() => null);
  return new Error(body?.error?.message ?? `${answer.status} ${answer.statusText}`);
}

async function load() {
  const answer = await fetch("/about", { headers: headers() });
  if (answer.status === 401) $("access").open = true;
  if (!answer.ok) throw await problem(answer);
  about = await answer.json();
  $("model").textContent = document.title = about.model;
  const kind = about.chat ? "Conversations" : "No chat template: your text is continued";
  $("about").textContent = `${kind}; ${about.limit} tokens at most.`;
  $("kernels").replaceChildren(...about.kernels.map((kernel) => {
    const row = document.createElement("tr");
    for (const key of ["slot", "source", "version", "variant", "signature", "reason"]) row.insertCell().textContent = kernel[key];
    return row;
  }));
}

function show(role, text) {
  const turn = document.createElement("p");
  turn.className = `turn ${role}`;
  turn.textContent = text;
  $("log").append(turn);
  $("log").scrollTop = $("log").scrollHeight;
  return turn;
}

async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let held = ""; ;) {
    const { value, done } = await reader.read();
    if (done) return;
    held += value;
    const found = held.split("\n\n");
    held = found.pop();
    for (const event of found) {
      if (!event.startsWith("data: ") || event === "data: [DONE]") continue;
      const data = JSON.parse(event.slice(6));
      if (data.error) throw new Error(data.error.message);
      yield data;
    }
  }
}

async function ask(text) {
  if (about === null) await load();
  const body = {
    model: about.model,
    max_tokens: Number($("tokens").value),
    temperature: Number($("temperature").value),
    stream: true,
    stream_options: { include_usage: true },
  };
  if (about.chat) body.messages = [...turns, { role: "user", content: text }];
  else body.prompt = text;
  stopping = new AbortController();
  const began = performance.now();
  const answer = await fetch(about.chat ? "/v1/chat/completions" : "/v1/completions", {
    method: "POST", headers: headers(), body: JSON.stringify(body), signal: stopping.signal,
  });
  if (!answer.ok) throw await problem(answer);
  const shown = show("assistant", "");
  let first = null;
  for await (const data of events(answer)) {
    const choice = data.choices[0];
    const piece = choice ? (choice.delta?.content ?? choice.text ?? "") : "";
    if (piece) {
      first ??= performance.now();
      shown.textContent += piece;
      $("log").scrollTop = $("log").scrollHeight;
    }
    if (data.usage) report(data.usage, began, first ?? performance.now());
  }
  if (about.chat) turns.push({ role: "user", content: text }, { role: "assistant", content: shown.textContent });
}

function report(usage, began, first) {
  const seconds = (performance.now() - first) / 1000;
  const rate = usage.completion_tokens > 1 ? (usage.completion_tokens - 1) / Math.max(seconds, 1e-3) : 0;
  $("speed").textContent = `${usage.completion_tokens} tokens, ${rate.toFixed(1)} tokens/s, first after ` +
    `${((first - began) / 1000).toFixed(2)} s; prompt ${usage.prompt_tokens} tokens, ` +
    `${usage.prompt_tokens_details.cached_tokens} of them from the cache`;
}

$("ask").addEventListener("submit", async (event) => {
  event.preventDefault();
  const text = $("text").value;
  show("user", text);
  $("text").value = "";
  $("speed").textContent = "";
  $("send").disabled = true;
  $("stop").disabled = false;
  try {
    await ask(text);
  } catch (error) {
    if (error.name === "AbortError") $("speed").textContent = "Stopped.";
    else show("error", error.message);
  } finally {
    $("send").disabled = false;
    $("stop").disabled = true;
    $("text").focus();
  }
});
$("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !$("send").disabled) {
    event.preventDefault();
    $("ask").requestSubmit();
  }
});
$("stop").addEventListener("click", () => stopping?.abort());
$("clear").addEventListener("click", () => {
  turns.length = 0;
  $("log").replaceChildren();
  $("speed").textContent = "";
});
$("key").addEventListener("change", () => load().catch((error) => show("error", error.message)));
load().catch((error) => show("error", error.message));
