// The playground: one prompt under several safety configurations. Text of a model only ever becomes text nodes, and the
// key lives in its field and in the requests' header, nowhere else.

const FEWEST = 2, MOST = 4;
const UNFILTERED = "uncensored";
const $ = (id) => document.getElementById(id);

let configurations = [];  // what /v1/safety says of this key: [{name, system, takes_persona}]
let byDefault = null;     // the configuration of a request that names none
let connectedBy = null;   // the key that they hold for; null: none was shown to the server yet
let running = null;       // the AbortController of the answers under way
let focused = null;       // what had the focus when they began
let numColumns = 0;       // columns made so far, for their labels

// ---- the server -----------------------------------------------------------------------------------------------------

/** A problem that is told to the user in words. */
class Problem extends Error {}

async function request(path, options = {}) {
  const headers = { ...options.headers };
  const key = typedKey();
  if (/[^\x21-\x7e]/.test(key)) throw new Problem("This is no API key: it has a character that no key has.");
  if (key) headers.Authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers, credentials: "omit", cache: "no-store", redirect: "error" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The server can’t be reached. Is it still running?");
  }
  if (!response.ok) throw new Problem(await inWords(response));
  return response;
}

const typedKey = () => $("key").value.trim();

async function inWords(response) {
  let said = "";
  try {
    said = String((await response.json()).error.message);
  } catch (error) {
    if (error.name === "AbortError") throw error;
  }
  const wait = Number(response.headers.get("retry-after"));
  const again = wait > 0 ? `Try again in ${duration(wait)}.` : "Try again a little later.";
  const words = {
    401: "The server doesn’t know this key, or it has expired.",
    403: "This key may not use this.",
    404: "The server doesn’t have this.",
    408: "The server waited too long for the request.",
    413: "The prompt is too long.",
    429: `Too many requests or tokens for this key. ${again}`,
    503: `The server is not ready. ${again}`,
  }[response.status] || (response.status < 500 ? "The request doesn’t pass." : "The server failed.");
  return `${words}${said ? ` (${response.status}: ${said})` : ` (${response.status})`}`;
}

function duration(seconds) {
  if (seconds < 100) return `${Math.ceil(seconds)} s`;
  return seconds < 5400 ? `${Math.ceil(seconds / 60)} minutes` : `${Math.ceil(seconds / 3600)} hours`;
}

/** The data of server-sent events, one by one, wherever the network cuts the bytes. */
export async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "", data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      rest += value;
      // A return at the end may be the first half of a line's end.
      const lines = rest.split(/\r\n|\n|\r(?!$)/);
      rest = lines.pop();
      for (const line of lines) {
        if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
        else if (line === "" && data.length) {
          yield data.join("\n");
          data = [];
        }
      }
    }
  } finally {
    reader.cancel().catch(() => {});  // it may have failed already; that was told
  }
}

// ---- connecting -----------------------------------------------------------------------------------------------------

async function connect() {
  const key = typedKey();
  tell("Connecting …");
  try {
    const [safety, models] = await Promise.all(["v1/safety", "v1/models"].map(async (path) => (await request(path)).json()));
    if (!safety.data.length) throw new Problem("This key may use no configuration.");
    configurations = safety.data;
    byDefault = safety.default;
    connectedBy = key;
    offerModels(models.data.map((model) => model.id));
  } catch (error) {
    connectedBy = null;
    tell(error instanceof Problem ? error.message : "The server’s answer makes no sense.", true);
    return false;
  }
  const several = configurations.length === 1 ? "one configuration" : `${configurations.length} configurations`;
  tell(`Connected. This key may use ${several}.`);
  $("nothing").hidden = true;
  offerConfigurations();
  return true;
}

function tell(text, wrong = false) {
  $("connection").textContent = text;
  $("connection").classList.toggle("wrong", wrong);
}

function offerModels(ids) {
  const own = ids.filter((id) => !id.includes("+"));
  fill($("model"), own.map((id) => [id, id]));
  $("model-field").hidden = own.length < 2;
}

/** Options of a select, its choice kept where it can be. */
function fill(select, pairs) {
  const chosen = select.value;
  select.replaceChildren(...pairs.map(([value, text]) => new Option(text, value)));
  if (pairs.some(([value]) => value === chosen)) select.value = chosen;
}

function offerConfigurations() {
  for (const column of columns()) {
    fill(column.querySelector(".preset"), presetOptions());
    showPreset(column);
  }
  while (columns().length < Math.min(FEWEST, configurations.length)) addColumn();
  showCounts();
}

/** A configuration's name as people read it. */
const title = (name) => (name.charAt(0).toUpperCase() + name.slice(1)).replaceAll("_", " ");
const presetOptions = () => configurations.map(({ name }) => [name, title(name)]);

// ---- columns --------------------------------------------------------------------------------------------------------

const columns = () => [...$("columns").children];

function addColumn() {
  numColumns += 1;
  const column = $("column").content.firstElementChild.cloneNode(true);
  const id = `column-${numColumns}`;
  label(column.querySelector(".head label"), column.querySelector(".preset"), `${id}-preset`);
  label(column.querySelector(".persona label"), column.querySelector(".persona textarea"), `${id}-persona`);
  const select = column.querySelector(".preset");
  fill(select, presetOptions());
  select.value = nextPreset();
  select.addEventListener("change", () => showPreset(column));
  column.querySelector(".remove").addEventListener("click", () => removeColumn(column));
  $("columns").append(column);
  showPreset(column);
  showCounts();
  return column;
}

function label(element, control, id) {
  control.id = id;
  element.htmlFor = id;
}

/** The key's default first, then uncensored, then whatever isn't shown yet. */
function nextPreset() {
  const shown = new Set(columns().map((column) => column.querySelector(".preset").value));
  const known = configurations.map(({ name }) => name);
  const wanted = [byDefault, UNFILTERED, ...known].filter((name) => known.includes(name));
  return wanted.find((name) => !shown.has(name)) ?? known[0];
}

function removeColumn(column) {
  if (running || columns().length <= Math.min(FEWEST, configurations.length)) return;
  const beside = column.nextElementSibling ?? column.previousElementSibling;
  column.remove();
  showCounts();
  beside.querySelector(".preset").focus();
}

function showCounts() {
  const few = columns().length <= Math.min(FEWEST, configurations.length);
  for (const column of columns()) column.querySelector(".remove").hidden = few;
  $("add").hidden = !configurations.length || columns().length >= MOST;
}

/** Show what a column's configuration is, and that nothing was answered under it yet. */
function showPreset(column) {
  const name = column.querySelector(".preset").value;
  const { system, takes_persona: takesPersona } = configurations.find((item) => item.name === name);
  column.classList.toggle("unfiltered", name === UNFILTERED);
  column.querySelector(".mark").hidden = name !== UNFILTERED;
  column.querySelector(".persona").hidden = !takesPersona;
  column.querySelector(".system").textContent = system;
  column.querySelector(".answer").setAttribute("aria-label", `Answer under ${title(name)}`);
  column.querySelector(".remove").setAttribute("aria-label", `Remove ${title(name)}`);
  clear(column);
}

function clear(column) {
  column.querySelector(".answer").replaceChildren();
  column.querySelector(".answer").dataset.empty = "No answer yet.";
  for (const fact of column.querySelectorAll(".facts dd")) fact.textContent = "–";
  problem(column, "");
}

function problem(column, text, calm = false) {
  const place = column.querySelector(".problem");
  place.textContent = text;
  place.classList.toggle("calm", calm);
  place.hidden = !text;
}

// ---- asking ---------------------------------------------------------------------------------------------------------

async function send() {
  if (running) return;
  const prompt = $("prompt").value;
  running = new AbortController();
  busy(true);
  try {
    if (connectedBy !== typedKey() && !(await connect())) return;
    announce(`Asking under ${columns().length} configurations.`);
    const ended = await Promise.all(columns().map((column) => ask(column, prompt, running.signal)));
    const wrong = ended.filter((good) => !good).length;
    if (running.signal.aborted) announce("Stopped.");
    else announce(wrong ? `Ended; ${wrong} of ${ended.length} without a whole answer.` : "All answers are there.");
  } finally {
    running = null;
    busy(false);
  }
}

function stop() {
  running?.abort();
}

/** What may not change while answers come is locked, and the focus stays where it was. */
function busy(on) {
  if (on) focused = document.activeElement;
  $("send").setAttribute("aria-disabled", String(on));
  $("stop").setAttribute("aria-disabled", String(!on));
  for (const control of document.querySelectorAll("#key, #model, #connect button, #add, #columns select, #columns textarea, .remove")) {
    control.disabled = on;
  }
  if (!on && document.activeElement === document.body) focused?.focus();
}

function announce(text) {
  $("status").textContent = text;
}

/** Ask under one column's configuration and show the answer as it comes; whether it came whole. */
async function ask(column, prompt, signal) {
  clear(column);
  const answer = column.querySelector(".answer");
  answer.dataset.empty = "";
  answer.setAttribute("aria-busy", "true");
  const seen = { started: performance.now(), first: null, chunks: 0, tokens: null, whole: false };
  try {
    const response = await request("v1/chat/completions", {
      method: "POST", signal, headers: { "Content-Type": "application/json" }, body: JSON.stringify(asked(column, prompt)),
    });
    showApplied(column, response.headers);
    for await (const data of events(response.body)) take(JSON.parse(data === "[DONE]" ? '{"done": true}' : data), seen, column);
    if (!seen.whole) throw new Problem("The answer broke off before its end.");
    if (!answer.textContent) answer.dataset.empty = "The answer is empty.";
  } catch (error) {
    if (error.name === "AbortError") problem(column, "Stopped.", true);
    else problem(column, error instanceof Problem ? error.message : "The answer broke off.");
  } finally {
    answer.removeAttribute("aria-busy");
    showFacts(column, seen);
  }
  return seen.whole;
}

function asked(column, prompt) {
  const preset = column.querySelector(".preset").value;
  const { takes_persona: takesPersona } = configurations.find((item) => item.name === preset);
  const persona = column.querySelector(".persona textarea").value;
  return {
    model: $("model").value,
    messages: [{ role: "user", content: prompt }],
    safety: takesPersona ? { preset, persona } : preset,
    max_tokens: $("max-tokens").valueAsNumber,
    temperature: $("temperature").valueAsNumber,
    stream: true,
    stream_options: { include_usage: true },
  };
}

/** Take in one event of a stream. */
function take(event, seen, column) {
  if (event.error) throw new Problem(`The server failed. (${event.error.message})`);
  if (event.done) seen.whole = true;
  if (event.usage) seen.tokens = event.usage.completion_tokens;
  const text = event.choices?.[0]?.delta?.content;
  if (!text) return;
  seen.first ??= performance.now();
  seen.chunks += 1;
  column.querySelector(".answer").append(document.createTextNode(text));
  showFacts(column, seen);
}

function showApplied(column, headers) {
  const name = headers.get("x-trimtab-safety");
  const place = column.querySelector(".applied");
  if (!name) {
    place.textContent = "the server doesn’t say";
    return;
  }
  const hash = document.createElement("code");
  hash.textContent = headers.get("x-trimtab-safety-hash") ?? "";
  hash.title = "Hash of the system prompt";
  place.replaceChildren(title(name), " ", hash);
  if (name !== column.querySelector(".preset").value) problem(column, `The server applied ${title(name)} instead.`);
}

function showFacts(column, seen) {
  const seconds = (from) => `${((performance.now() - from) / 1000).toFixed(2)} s`;
  column.querySelector(".time").textContent = seconds(seen.started);
  column.querySelector(".tokens").textContent = seen.tokens ?? (seen.chunks ? `about ${seen.chunks}` : "–");
  if (seen.first) column.querySelector(".first").textContent = `${((seen.first - seen.started) / 1000).toFixed(2)} s`;
}

// ---- hands ----------------------------------------------------------------------------------------------------------

$("connect").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!running) connect();
});
$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
$("stop").addEventListener("click", stop);
$("add").addEventListener("click", () => {
  if (!running) addColumn().querySelector(".preset").focus();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") stop();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !event.repeat) {
    event.preventDefault();
    if ($("ask").reportValidity()) send();
  }
});
