"use strict";

// What is asked for is POST /explain, as with curl; the file goes along each time, as the server
// keeps nothing. Answers that come after something else was chosen are let go.

const MOST = 5; // classes that are listed

const part = (id) => document.getElementById(id);
const state = { file: null, asked: 0, maps: new Map(), most: new Map() };

class Refused extends Error {}

async function ask(address, options = {}) {
  const headers = {};
  if (part("token").value) headers.Authorization = `Bearer ${part("token").value}`;
  let answer;
  try {
    answer = await fetch(address, { ...options, headers });
  } catch {
    throw new Refused("The server can't be reached. Is it running?");
  }
  if (answer.ok) return answer;
  if (answer.status === 401) part("token-field").hidden = false;
  let reason = `The server answered with status ${answer.status}.`;
  try {
    reason = (await answer.json()).error || reason;
  } catch {
    // Something between here and the server may answer with a page of its own.
  }
  throw new Refused(reason);
}

function explain(query) {
  const body = new FormData();
  body.append("image", state.file);
  const words = new URLSearchParams({ model: part("model").value, ...query });
  return ask(`explain?${words}`, { method: "POST", body });
}

function show(text, { isError = false, isCaption = false } = {}) {
  part("status").classList.toggle("heard", isCaption);
  part("error").hidden = !isError;
  part("error").textContent = isError ? text : "";
  part("status").textContent = isError ? "" : text;
}

// Runs a task, unless another one begins before it ends; shows what went wrong.
async function run(task) {
  const turn = ++state.asked;
  const isNewest = () => turn === state.asked;
  part("result").setAttribute("aria-busy", "true");
  try {
    await task(isNewest);
  } catch (error) {
    if (!isNewest()) return;
    if (!(error instanceof Refused)) throw error;
    show(error.message, { isError: true });
  } finally {
    if (isNewest()) part("result").setAttribute("aria-busy", "false");
  }
}

// A map that is still on its way comes into the old collection, never beside another image.
function forgetMaps() {
  for (const url of state.maps.values()) URL.revokeObjectURL(url);
  state.maps = new Map();
}

function chosen(name) {
  return document.querySelector(`input[name=${name}]:checked`)?.value;
}

async function mapOf(rank, view) {
  const [maps, key] = [state.maps, `${rank} ${view}`];
  if (!maps.has(key)) {
    const found =
      view === "image" ? state.file : await (await explain({ rank, format: view })).blob();
    if (maps !== state.maps) return null;
    maps.set(key, URL.createObjectURL(found));
  }
  return maps.get(key);
}

async function showMap(isNewest) {
  const [rank, view] = [Number(chosen("class")), chosen("view")];
  const url = await mapOf(rank, view);
  if (!isNewest() || url === null) return;
  const label = part("classes").querySelector(`[value="${rank}"]`).dataset.label;
  const words = {
    png: `Evidence map of ${label} over ${state.file.name}`,
    heatmap: `Evidence map of ${label}`,
    image: `${state.file.name}, as it was given`,
  }[view];
  part("shown").src = url;
  part("shown").alt = words;
  part("caption").textContent = words;
  show(words, { isCaption: true });
}

function choice(found, rank) {
  const label = document.createElement("label");
  const button = document.createElement("input");
  button.type = "radio";
  button.name = "class";
  button.value = String(rank);
  button.checked = rank === 1;
  button.dataset.label = found.label;
  const name = document.createElement("span");
  name.textContent = found.label;
  const numbers = document.createElement("span");
  numbers.className = "numbers";
  const evidence = found.evidence === null ? "" : `, evidence ${found.evidence.toFixed(3)}`;
  numbers.textContent = `${(100 * found.probability).toFixed(1)} %${evidence}`;
  label.append(button, name, numbers);
  return label;
}

// How many classes of an image a model can explain at once: some choose them themselves.
async function mostOf(model) {
  if (!state.most.has(model)) {
    const found = await (await ask(`v1/models/${encodeURIComponent(model)}`)).json();
    state.most.set(model, Math.min(MOST, found.most_classes));
  }
  return state.most.get(model);
}

async function showImage(isNewest) {
  part("result").hidden = true; // what is there is of another image, or of another model
  forgetMaps();
  if (!state.file) return;
  show("Reading the image and asking the model ...");
  const most = await mostOf(part("model").value);
  const answer = await explain({ top_k: most, format: "json" });
  const { explanations } = await answer.json();
  if (!isNewest()) return;
  for (const old of part("classes").querySelectorAll("label")) old.remove();
  part("classes").append(...explanations.map((one, place) => choice(one, place + 1)));
  part("result").hidden = false;
  await showMap(isNewest);
}

async function listModels(isNewest) {
  const { models } = await (await ask("v1/models")).json();
  if (!isNewest()) return;
  if (!models.length) throw new Refused("No model is loaded.");
  const before = part("model").value;
  part("model").replaceChildren(...models.map((name) => new Option(name, name)));
  if (models.includes(before)) part("model").value = before;
  part("model-field").hidden = false;
  show("");
  await showImage(isNewest);
}

function take(file) {
  if (!file) return;
  state.file = file;
  run(part("model").value ? showImage : listModels);
}

part("form").addEventListener("submit", (event) => event.preventDefault());
part("model").addEventListener("change", () => run(showImage));
part("token").addEventListener("change", () => run(listModels));
part("file").addEventListener("change", () => take(part("file").files[0]));
part("result").addEventListener("change", () => run(showMap));

document.addEventListener("dragover", (event) => {
  event.preventDefault();
  part("drop").classList.add("over");
});
document.addEventListener("dragleave", () => part("drop").classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  part("drop").classList.remove("over");
  const file = event.dataTransfer.files[0];
  if (file) take(file);
  else show("What was dropped is no file: save the image first, and drop the file.", { isError: true });
});
document.addEventListener("paste", (event) => take(event.clipboardData.files[0]));

run(listModels);
