// The page: gathers a question, asks the server it came from, and shows the answer as it is denoised.

import { OPEN, schemaOf, valuesOf } from "./fields.js";
import { Recorder, dataUrl, imageUrl, wavOf } from "./media.js";
import { ServerProblem, errorText, events } from "./stream.js";

const at = (id) => document.getElementById(id);
const given = { image: null, audio: null }; // files
let model = "tiny";
let running = null; // what stops the answer on its way
let recorder = null;
let frames = []; // one list of tokens a step
let replaying = null;

// Asking

async function ask() {
  const question = at("question");
  const spoken = given.audio && at("role").querySelector("input:checked").value === "question";
  if (!question.value.trim() && !spoken) {
    question.focus();
    throw new Error("There is no question; write one, or record it.");
  }
  const audio = given.audio && (await wavOf(given.audio));
  let doubt = "";
  if (spoken) {
    tell("Listening to the question …");
    const transcript = await transcribe(audio);
    question.value = transcript.text;
    doubt = transcript.unsure ? ` Not sure of the question: "${transcript.text}" may hold a wrong word.` : "";
    if (!question.value) throw new Error("No speech was found in the audio; say it again, nearer to the microphone.");
  }
  const body = await bodyOf(question.value, spoken ? null : audio);
  showCurl(body);
  tell("Asking …");
  const response = await post("v1/chat/completions", JSON.stringify(body), { "Content-Type": "application/json" });
  const fields = body.response_format !== undefined;
  let text = "";
  for await (const event of events(response)) {
    const draft = event.mmdiff?.draft ?? event.mmdiff;
    if (Array.isArray(draft?.tokens)) addFrame(draft.tokens, fields);
    text += event.choices?.[0]?.delta?.content ?? "";
  }
  at("text").textContent = text;
  if (fields) showFields(text);
  tell((frames.length ? `Done in ${frames.length} ${frames.length === 1 ? "step" : "steps"}.` : "Done.") + doubt);
}

async function bodyOf(question, audio) {
  const content = [];
  if (given.image) content.push({ type: "image_url", image_url: { url: await imageUrl(given.image) } });
  if (audio) {
    const data = (await dataUrl(audio)).split(",")[1];
    content.push({ type: "input_audio", input_audio: { data, format: "wav" } });
  }
  content.push({ type: "text", text: question });
  const body = {
    model, messages: [{ role: "user", content }], max_tokens: Number(at("length").value),
    temperature: Number(at("temperature").value), seed: Number(at("seed").value), stream: true, diffusing: true,
  };
  if (at("steps").value) body.steps = Number(at("steps").value);
  if (at("as-json").checked) {
    const schema = schemaOf(at("fields").value);
    body.response_format = { type: "json_schema", json_schema: { name: "answer", schema, strict: true } };
  }
  return body;
}

async function transcribe(audio) {
  const form = new FormData();
  form.append("file", audio, "question.wav");
  form.append("model", model);
  const response = await post("v1/audio/transcriptions", form);
  if (!response.ok) throw new ServerProblem(await errorText(response));
  const transcript = await response.json();
  return { text: transcript.text.trim(), unsure: transcript.mmdiff.unsure.length > 0 };
}

function post(path, body, headers = {}) {
  return fetch(path, { method: "POST", body, headers: { ...headers, ...keyHeader() }, signal: running.signal });
}

function keyHeader() {
  const key = at("key").value;
  return key ? { Authorization: `Bearer ${key}` } : {};
}

at("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  if (running) return;
  running = new AbortController();
  clear();
  try {
    await ask();
  } catch (error) {
    if (error.name === "AbortError") tell("Stopped.");
    else complain(error);
  } finally {
    running = null;
    busy(false);
  }
});

at("stop").addEventListener("click", () => running?.abort());

function clear() {
  busy(true);
  stopReplay();
  frames = [];
  at("problem").textContent = at("text").textContent = "";
  at("watch").hidden = at("filled").hidden = true;
}

function busy(yes) {
  at("ask").disabled = yes;
  at("stop").disabled = !yes;
  at("answer").setAttribute("aria-busy", String(yes));
}

function tell(words) {
  at("status").textContent = words;
}

function complain(error) {
  tell("");
  const ours = error instanceof ServerProblem || !(error instanceof TypeError);
  at("problem").textContent = ours ? error.message : "The server cannot be reached.";
}

// The answer on its way

function addFrame(tokens, fields) {
  const following = Number(at("step").value) >= frames.length - 1;
  frames.push(tokens);
  at("watch").hidden = false;
  at("step").max = String(frames.length - 1);
  at("filled").hidden = !fields;
  showStep(following ? frames.length - 1 : Number(at("step").value));
}

function showStep(number) {
  const tokens = frames[number];
  const before = frames[number - 1] ?? [];
  at("canvas").replaceChildren(...tokens.map((token, place) => mark(token, !!token && !before[place])));
  const decided = tokens.filter(Boolean).length;
  const words = `step ${number + 1} of ${frames.length}: ${decided} of ${tokens.length} positions decided`;
  at("step").value = String(number);
  at("step").setAttribute("aria-valuetext", words);
  at("step-name").textContent = words;
  if (!at("filled").hidden) showFields(tokens.map((token) => (token ? token.text : OPEN)).join(""));
}

function mark(token, isNew) {
  const span = document.createElement("span");
  if (!token) {
    span.className = "token open";
    span.textContent = OPEN;
    span.title = "open";
    return span;
  }
  const class_ = [0.5, 0.75, 0.9, 0.99].filter((edge) => token.confidence >= edge).length;
  span.className = `token c${class_}${isNew ? " new" : ""}`;
  span.textContent = token.text;
  span.title = `${(100 * token.confidence).toFixed(1)} %, decided in step ${token.step + 1}`;
  return span;
}

function showFields(text) {
  at("filled").hidden = false;
  const rows = valuesOf(text).flatMap(({ path, value, complete }) => {
    const [name, content] = [document.createElement("dt"), document.createElement("dd")];
    name.textContent = path;
    content.textContent = value;
    content.className = complete ? "" : "partial";
    return [name, content];
  });
  at("values").replaceChildren(...rows);
}

at("step").addEventListener("input", () => {
  stopReplay();
  showStep(Number(at("step").value));
});

at("play").addEventListener("click", () => {
  if (replaying) return stopReplay();
  let number = 0;
  at("play").textContent = "Pause";
  showStep(0);
  replaying = setInterval(() => (number < frames.length - 1 ? showStep(++number) : stopReplay()), 400);
});

function stopReplay() {
  clearInterval(replaying);
  replaying = null;
  at("play").textContent = "Replay";
}

// Images and audio

function takeImage(file) {
  URL.revokeObjectURL(at("preview").src);
  given.image = file;
  at("preview").hidden = at("no-image").hidden = !file;
  if (file) at("preview").src = URL.createObjectURL(file);
  else at("image").value = "";
  refreshCurl();
}

function takeAudio(file) {
  URL.revokeObjectURL(at("player").src);
  given.audio = file;
  at("player").hidden = at("no-audio").hidden = at("role").hidden = !file;
  if (file) at("player").src = URL.createObjectURL(file);
  else at("audio").value = "";
  refreshCurl();
}

function take(files) {
  for (const file of files) {
    if (file.type.startsWith("image/")) takeImage(file);
    else if (file.type.startsWith("audio/")) takeAudio(file);
    else at("problem").textContent = `"${file.name}" is neither an image nor audio.`;
  }
}

at("image").addEventListener("change", (event) => event.target.files[0] && takeImage(event.target.files[0]));
at("audio").addEventListener("change", (event) => event.target.files[0] && takeAudio(event.target.files[0]));
at("no-image").addEventListener("click", () => { takeImage(null); at("image").focus(); });
at("no-audio").addEventListener("click", () => { takeAudio(null); at("audio").focus(); });
document.addEventListener("paste", (event) => event.clipboardData.files.length && take(event.clipboardData.files));
document.addEventListener("dragover", (event) => { event.preventDefault(); at("drop").classList.add("over"); });
document.addEventListener("dragleave", (event) => event.relatedTarget || at("drop").classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  at("drop").classList.remove("over");
  take(event.dataTransfer.files);
});

at("record").addEventListener("click", async () => {
  try {
    if (recorder) {
      const stopping = recorder;
      recorder = null;
      takeAudio(await stopping.stop());
    } else {
      const starting = new Recorder();
      await starting.start();
      recorder = starting;
    }
    at("problem").textContent = "";
  } catch {
    at("problem").textContent = "There is no microphone that this page may use.";
  }
  at("record").textContent = recorder ? "Stop recording" : "Record";
  at("record").setAttribute("aria-pressed", String(recorder !== null));
});

at("as-json").addEventListener("change", () => {
  at("json-box").hidden = !at("as-json").checked;
  refreshCurl();
});

at("question").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  at("form").requestSubmit();
});

// The command

let command = "";

function showCurl(body) {
  const key = at("key").value ? ` \\\n  -H "Authorization: Bearer $MMDIFF_API_KEY"` : "";
  const start = `curl ${new URL("v1/chat/completions", location.href)} -N${key} \\\n`;
  const type = `  -H "Content-Type: application/json" -d @- <<'JSON'\n`;
  const text = (asked, space) => `${start}${type}${JSON.stringify(asked, null, space)}\nJSON`;
  command = text(body);
  at("curl").textContent = text(JSON.parse(JSON.stringify(body, (key, value) =>
    typeof value === "string" && value.length > 200 ? `${value.slice(0, 60)}…` : value)), 1);
}

async function refreshCurl() {
  try {
    const role = at("role").querySelector("input:checked").value;
    showCurl(await bodyOf(at("question").value, given.audio && role === "subject" ? await wavOf(given.audio) : null));
  } catch {
    at("curl").textContent = ""; // what is wrong is shown when it is sent
  }
}

at("copy").addEventListener("click", async () => {
  await refreshCurl();
  try {
    await navigator.clipboard.writeText(command);
  } catch { // no clipboard without https, except on this machine
    const box = document.createElement("textarea");
    box.value = command;
    document.body.append(box);
    box.select();
    document.execCommand("copy");
    box.remove();
  }
  at("copied").textContent = "Copied.";
});

at("form").addEventListener("change", refreshCurl);

async function start() {
  at("not-running")?.remove();
  try {
    const response = await fetch("v1/models", { headers: keyHeader() });
    if (response.ok) model = (await response.json()).data[0].id;
    else if (response.status === 401) document.querySelector("details").open = true;
    else at("problem").textContent = await errorText(response);
  } catch {
    at("problem").textContent = "The server cannot be reached.";
  }
  refreshCurl();
}

at("key").addEventListener("change", start);
start();
