// The viewer's page: NiiVue draws, this file chooses what. All paths are relative, so the token stays in the address.
"use strict";

const STEPS = 200; // of the threshold slider
const MASK = "mask", MAP = "anomaly", BASE = "reconstruction", SPREAD = "uncertainty";
const FIXED = { R: 255, G: 149, B: 0 }; // the report's colour of the mask
const $ = id => document.getElementById(id);

const state = { run: null, number: 0, wanted: 0, details: null, threshold: null, opacity: 0.75, map: true, base: false, mask: false,
  uncertainty: false, cut: false };
const nv = new niivue.Niivue({
  isRadiologicalConvention: true, sagittalNoseLeft: true, multiplanarShowRender: 1, multiplanarLayout: 2, tileMargin: 6,
  multiplanarPadPixels: 6, backColor: [0, 0, 0, 1], crosshairColor: [0.55, 0.71, 1, 0.65], crosshairWidth: 0.5,
  crosshairWidthUnit: "mm", crosshairGap: 12,
  fontColor: [0.79, 0.83, 0.92, 1], dragAndDropEnabled: false, dragMode: 3, logLevel: "error", isAntiAlias: true, loadingText: "",
  viewModeHotKey: "none", clipPlaneHotKey: "none", cycleClipPlaneHotKey: "none", renderOverlayBlend: 0.7,
  clipPlaneColor: [0, 0, 0, 0], isClipAllVolumes: true,
});

const number = (value, digits = 3) => value === null || value === undefined ? "–" : value.toFixed(digits);
const top_ = () => state.run.top;
const current = () => state.run.cases[state.number];
const layer = kind => nv.volumes[state.details.layers.indexOf(kind)];
const has = kind => state.details.layers.includes(kind);

function say(text, condition) {
  $("hint").textContent = text;
  if (condition) document.body.dataset.state = condition;
}

function pairs(list, rows) {
  list.replaceChildren(...rows.flatMap(([name, value]) => {
    const dt = document.createElement("dt"), dd = document.createElement("dd");
    dt.textContent = name;
    dd.textContent = value;
    return [dt, dd];
  }));
}

async function getJson(path) {
  const response = await fetch(path);
  if (!response.ok) throw new Error(`${path}: ${(await response.text()).trim()}`);
  return response.json();
}

// --- what a scan is drawn with

function look(kind) {
  const [low, high] = state.details.window;
  if (kind === MAP) return { colormap: "maediff", cal_min: state.threshold, cal_max: top_() };
  if (kind === SPREAD) return { colormap: "maediff", cal_min: 0, cal_max: state.details.uncertainty_top };
  if (kind === MASK) return { colormap: "maediff-mask", cal_min: 0.5, cal_max: 1 };
  return { colormap: "gray", cal_min: low, cal_max: high };
}

function opacity(kind) {
  if (kind === MAP) return state.map && !state.uncertainty ? state.opacity : 0;
  if (kind === MASK) return state.mask ? state.opacity : 0;
  if (kind === SPREAD) return state.uncertainty ? state.opacity : 0;
  return kind === BASE && has("scan") ? Number(state.base) : 1;
}

let waiting = false;
function redraw() { // at most once a frame, however fast a slider moves
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    state.details.layers.forEach((kind, index) => {
      if (nv.volumes[index]) nv.volumes[index].opacity = opacity(kind);
    });
    layer(MAP).cal_min = state.threshold;
    nv.updateGLVolume();
    controls();
  });
}

function above() { // ml of the map above the threshold
  const map = layer(MAP);
  let count = 0;
  for (const value of map.img) count += value > state.threshold;
  const [, x, y, z] = map.hdr.pixDims;
  return count * Math.abs(x * y * z) / 1000;
}

function controls() {
  const calibrated = current().threshold;
  $("cut").textContent = number(state.threshold) + (state.threshold === calibrated ? " (calibrated)" : "");
  $("above").textContent = `${number(above(), 1)} ml`;
  $("threshold").value = String(STEPS * state.threshold / top_());
  $("shade").style.width = `calc(${Math.min(100, 100 * state.threshold / top_())}% - 2px)`;
  $("mark").hidden = calibrated === null;
  $("mark").style.left = `${100 * calibrated / top_()}%`;
  $("reset").disabled = calibrated === null;
  $("opacity").value = String(Math.round(100 * state.opacity));
  $("opacity-value").textContent = `${Math.round(100 * state.opacity)} %`;
  for (const [id, kind] of [["base", BASE], ["mask", MASK], ["uncertainty", SPREAD]]) {
    $(id).setAttribute("aria-pressed", String(state[id]));
    $(id).disabled = !has(kind) || (kind === BASE && !has("scan"));
  }
  $("uncertainty").hidden = !has(SPREAD);
  $("units").textContent = state.uncertainty ? `uncertainty in these colours, from 0 to ${state.details.uncertainty_top}` : state.run.units;
  for (const button of $("views").children) button.setAttribute("aria-pressed", String(Number(button.dataset.view) === nv.opts.sliceType));
}

// --- from scan to scan

let latest = 0, queue = Promise.resolve();
function open(index) { // scans that are passed over while one loads are not loaded
  const ticket = ++latest;
  state.wanted = index;
  queue = queue.then(() => ticket === latest ? show(index) : undefined)
    .catch(error => say(`This scan cannot be shown: ${error.message}`, "error"));
  return queue;
}

async function show(index) {
  const chosen = state.run.cases[index];
  say(`Loading ${chosen.case} …`, "loading");
  const details = await getJson(`cases/${index}.json`);
  state.number = index;
  state.details = details;
  state.uncertainty &&= has(SPREAD);
  if (state.threshold === null) state.threshold = chosen.threshold ?? top_() / 2;
  await nv.loadVolumes(details.layers.map(kind => ({ url: `cases/${index}/${kind}.nii.gz`, name: `${kind}.nii.gz`,
    opacity: opacity(kind), ...look(kind) })));
  layer(MAP).colormapType = 2; // colours from 0, nothing below cal_min
  nv.updateGLVolume();
  describe(chosen);
  goToPeak();
  controls();
  say("", "ready");
  document.body.dataset.number = String(index);
}

function describe(chosen) {
  $("name").textContent = chosen.case;
  const percentile = chosen.percentile === null ? [] : [["Healthy scans below it", `${Math.round(100 * chosen.percentile)} %`]];
  pairs($("facts"), [["Score", number(chosen.score)], ...percentile,
    ["Anomalous volume", chosen.volume_ml === null ? "–" : `${number(chosen.volume_ml, 1)} ml`],
    ["Scan", `${state.number + 1} of ${state.run.cases.filter(item => item.finished).length}, by score`]]);
  const notes = [...state.details.notes];
  if (chosen.threshold === null) notes.push("the model has no calibration: there is no threshold and no mask, and the slider starts anywhere.");
  $("notes").textContent = notes.map(note => note[0].toUpperCase() + note.slice(1).replace(/\.?$/, ".")).join(" ");
  $("notes").hidden = notes.length === 0;
  for (const button of $("scans").querySelectorAll("button")) {
    const isCurrent = Number(button.dataset.number) === state.number;
    button.setAttribute("aria-current", String(isCurrent));
    if (isCurrent) button.scrollIntoView({ block: "nearest" });
  }
}

function goToPeak() {
  nv.scene.crosshairPos = nv.mm2frac(state.details.place_mm, 0, true);
  nv.createOnLocationChange();
  nv.drawScene();
}

function here(location) {
  const value = kind => {
    const index = state.details ? state.details.layers.indexOf(kind) : -1;
    return index < 0 || !location.values[index] ? null : location.values[index].value;
  };
  const rows = [["Anomaly map", number(value(MAP))], ["Scan", number(value("scan"), 1)], ["Reconstruction", number(value(BASE), 1)]];
  if (value(SPREAD) !== null) rows.push(["Uncertainty", number(value(SPREAD))]);
  const [x, y, z] = location.mm;
  pairs($("here"), [...rows, ["RAS, mm", [x, y, z].map(v => v.toFixed(0)).join(", ")]]);
}

// --- what a person does

const setThreshold = value => { state.threshold = Math.min(top_(), Math.max(0, value)); redraw(); };
const setOpacity = value => { state.opacity = Math.min(1, Math.max(0, value)); redraw(); };
const toggle = name => { state[name] = !state[name]; redraw(); };
const setView = view => { nv.setSliceType(view); controls(); };
const calibrate = () => { if (current().threshold !== null) setThreshold(current().threshold); };
const step = by => {
  const count = state.run.cases.filter(item => item.finished).length;
  open((state.wanted + by + count) % count);
};
const cut = () => { // the near half of the 3-D view away, so that the inside shows
  state.cut = !state.cut;
  nv.setClipPlane(state.cut ? [0, nv.scene.renderAzimuth + 180, -nv.scene.renderElevation] : [2, 0, 0]);
};

const KEYS = {
  n: () => step(1), p: () => step(-1), ",": () => setThreshold(state.threshold - top_() / 50),
  ".": () => setThreshold(state.threshold + top_() / 50), "-": () => setOpacity(state.opacity - 0.1),
  "+": () => setOpacity(state.opacity + 0.1), "=": () => setOpacity(state.opacity + 0.1), " ": () => toggle("map"),
  r: () => !$("base").disabled && toggle("base"), m: () => has(MASK) && toggle("mask"), u: () => has(SPREAD) && toggle("uncertainty"),
  a: goToPeak, t: calibrate, c: cut, 1: () => setView(3), 2: () => setView(0), 3: () => setView(1), 4: () => setView(2), 5: () => setView(4),
};

function listen() {
  window.addEventListener("keydown", event => {
    const action = KEYS[event.key.toLowerCase()];
    const pressing = event.key === " " && event.target instanceof HTMLButtonElement;
    if (!action || pressing || event.ctrlKey || event.metaKey || event.altKey || !state.details) return;
    event.preventDefault();
    event.stopPropagation();
    action();
  }, { capture: true });
  $("threshold").addEventListener("input", event => setThreshold(top_() * event.target.value / STEPS));
  $("opacity").addEventListener("input", event => setOpacity(event.target.value / 100));
  $("reset").addEventListener("click", calibrate);
  $("peak").addEventListener("click", goToPeak);
  for (const name of ["base", "mask", "uncertainty"]) $(name).addEventListener("click", () => toggle(name));
  for (const button of $("views").children) button.addEventListener("click", () => setView(Number(button.dataset.view)));
}

function list() {
  const highest = Math.max(...state.run.cases.map(item => item.score ?? 0), 1e-9);
  $("scans").replaceChildren(...state.run.cases.map((item, index) => {
    const row = document.createElement("li");
    const part = (tag, name, text) => { const e = document.createElement(tag); e.className = name; e.textContent = text; return e; };
    if (!item.finished) {
      row.className = "failed";
      row.append(part("b", "", item.case), `no map: ${item.message || "no reason given"}`);
      return row;
    }
    const button = document.createElement("button"), meter = part("span", "meter", ""), fill = document.createElement("i");
    fill.style.width = `${100 * (item.score ?? 0) / highest}%`;
    meter.append(fill);
    button.dataset.number = String(index);
    button.append(part("span", "id", item.case), part("span", "score", number(item.score)), meter);
    button.addEventListener("click", () => open(index));
    row.append(button);
    return row;
  }));
}

async function start() {
  state.run = await getJson("run.json");
  const finished = state.run.cases.filter(item => item.finished).length, failed = state.run.cases.length - finished;
  $("counts").textContent = `${finished} scan${finished === 1 ? "" : "s"}${failed ? `, ${failed} without a map` : ""}`;
  $("top").textContent = String(state.run.top);
  const colours = state.run.colours, channel = index => colours.map(colour => colour[index]);
  $("bar").style.background = `linear-gradient(90deg, ${colours.filter((_, i) => i % 15 === 0).map(c => `rgb(${c})`).join(", ")})`;
  const every = colours.map((_, index) => index);
  nv.addColormap("maediff", { R: channel(0), G: channel(1), B: channel(2), A: every.map(i => i ? 255 : 0), I: every });
  nv.addColormap("maediff-mask", { R: [0, FIXED.R], G: [0, FIXED.G], B: [0, FIXED.B], A: [0, 255], I: [0, 255] });
  nv.onLocationChange = here;
  await nv.attachToCanvas($("canvas"));
  list();
  listen();
  await open(0);
  $("canvas").focus();
}

start().catch(error => say(`The viewer cannot start: ${error.message}`, "error"));
