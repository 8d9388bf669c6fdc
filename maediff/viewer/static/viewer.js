// The viewer's page: NiiVue draws, this file chooses what. All paths are relative, so the token stays in the address.
"use strict";

const STEPS = 200; // of the threshold slider
const BLINK_MS = 650;
const MASK = "mask", MAP = "anomaly", BASE = "reconstruction", SPREAD = "uncertainty", TRUTH = "truth", SCAN = "scan";
const FIXED = { R: 255, G: 149, B: 0 }, TRUE = { R: 0, G: 200, B: 220 }; // the report's colours of mask and truth
const $ = id => document.getElementById(id);

const state = { run: null, number: 0, wanted: 0, details: null, threshold: null, opacity: 0.75, map: true, base: false, mask: false,
  uncertainty: false, truth: false, cut: false, window: null, finding: 0, mm: null, ratings: new Map() };
let blinking = null, swapped = false; // swapped: scan and reconstruction have changed places
const nv = new niivue.Niivue({
  isRadiologicalConvention: true, showAllOrientationMarkers: true, sagittalNoseLeft: true, multiplanarShowRender: 1, multiplanarLayout: 2, tileMargin: 6,
  multiplanarPadPixels: 6, backColor: [0, 0, 0, 1], crosshairColor: [0.55, 0.71, 1, 0.65], crosshairWidth: 0.5,
  crosshairWidthUnit: "mm", crosshairGap: 12,
  fontColor: [0.79, 0.83, 0.92, 1], dragAndDropEnabled: false, dragMode: 3, logLevel: "error", isAntiAlias: true, loadingText: "",
  viewModeHotKey: "none", clipPlaneHotKey: "none", cycleClipPlaneHotKey: "none", renderOverlayBlend: 0.7,
  clipPlaneColor: [0, 0, 0, 0], isClipAllVolumes: true,
});

const number = (value, digits = 3) => value === null || value === undefined ? "–" : value.toFixed(digits);
const plain = value => Number(value.toPrecision(3)).toString();
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
  const [low, high] = state.window;
  if (kind === MAP) return { colormap: "maediff", cal_min: state.threshold, cal_max: top_() };
  if (kind === SPREAD) return { colormap: "maediff", cal_min: 0, cal_max: state.details.uncertainty_top };
  if (kind === MASK) return { colormap: "maediff-mask", cal_min: 0.5, cal_max: 1 };
  if (kind === TRUTH) return { colormap: "maediff-truth", cal_min: 0.5, cal_max: 1 };
  return { colormap: "gray", cal_min: low, cal_max: high };
}

function opacity(kind) {
  if (kind === MAP) return state.map && !state.uncertainty ? state.opacity : 0;
  if (kind === MASK) return state.mask ? state.opacity : 0;
  if (kind === SPREAD) return state.uncertainty ? state.opacity : 0;
  if (kind === TRUTH) return state.truth ? state.opacity : 0;
  return kind === BASE && has(SCAN) ? Number(state.base && !swappable()) : 1;
}

// The reconstruction takes the scan's place at the bottom, so that the map stays above it, in the 3-D pane too.
const swappable = () => has(SCAN) && has(BASE) && layer(SCAN)?.img.constructor === layer(BASE)?.img.constructor
  && layer(SCAN).hdr.scl_slope === layer(BASE).hdr.scl_slope && layer(SCAN).hdr.scl_inter === layer(BASE).hdr.scl_inter;
function swap() {
  const wanted = state.base && swappable();
  if (wanted === swapped) return;
  const scan = layer(SCAN), base = layer(BASE);
  [scan.img, base.img] = [base.img, scan.img];
  swapped = wanted;
}

let waiting = false;
function redraw() { // at most once a frame, however fast a slider moves
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    if (!layer(MAP)) return; // another scan is loading
    state.details.layers.forEach((kind, index) => {
      if (nv.volumes[index]) nv.volumes[index].opacity = opacity(kind);
    });
    layer(MAP).cal_min = state.threshold;
    swap();
    for (const kind of [SCAN, BASE]) if (has(kind)) [layer(kind).cal_min, layer(kind).cal_max] = state.window;
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
  $("cut").textContent = number(state.threshold) + (state.threshold === calibrated ? (current().chosen ? " (chosen)" : " (calibrated)") : "");
  $("above").textContent = `${number(above(), 1)} ml`;
  $("threshold").value = String(STEPS * state.threshold / top_());
  $("shade").style.width = `calc(${Math.min(100, 100 * state.threshold / top_())}% - 2px)`;
  $("mark").hidden = calibrated === null;
  $("mark").style.left = `${100 * calibrated / top_()}%`;
  $("reset").disabled = calibrated === null;
  $("opacity").value = String(Math.round(100 * state.opacity));
  $("opacity-value").textContent = `${Math.round(100 * state.opacity)} %`;
  for (const [id, kind] of [["base", BASE], ["mask", MASK], ["uncertainty", SPREAD], ["truth", TRUTH]]) {
    $(id).setAttribute("aria-pressed", String(state[id]));
    $(id).disabled = !has(kind) || (kind === BASE && !has(SCAN));
  }
  $("blink").disabled = $("base").disabled;
  $("blink").setAttribute("aria-pressed", String(blinking !== null));
  $("truth").hidden = !has(TRUTH);
  const [low, high] = state.window, [first, last] = state.details.window, span = last - first;
  $("level").value = String(Math.round(100 * ((low + high) / 2 - first) / (span / 2)));
  $("width").value = String(Math.round(100 * (high - low) / span));
  $("level-value").textContent = plain((low + high) / 2);
  $("width-value").textContent = plain(high - low);
  keepAddress();
  $("uncertainty").hidden = !has(SPREAD);
  $("units").textContent = state.uncertainty ? `uncertainty in these colours, from 0 to ${state.details.uncertainty_top}` : state.run.units;
  for (const button of $("views").children) button.setAttribute("aria-pressed", String(Number(button.dataset.view) === nv.opts.sliceType));
}

// --- from scan to scan

let latest = 0, queue = Promise.resolve();
function open(index, place) { // scans that are passed over while one loads are not loaded
  const ticket = ++latest;
  state.wanted = index;
  queue = queue.then(() => ticket === latest ? show(index, place) : undefined)
    .catch(error => say(`This scan cannot be shown: ${error.message}`, "error"));
  return queue;
}

async function show(index, place) {
  const chosen = state.run.cases[index];
  say(`Loading ${chosen.case} …`, "loading");
  const details = await getJson(`cases/${index}.json`);
  clearInterval(blinking);
  blinking = null;
  state.base = swapped = false;
  state.number = index;
  state.details = details;
  state.window = [...details.window];
  state.uncertainty &&= has(SPREAD);
  state.truth &&= has(TRUTH);
  if (state.threshold === null) state.threshold = chosen.threshold ?? top_() / 2;
  await nv.loadVolumes(details.layers.map(kind => ({ url: `cases/${index}/${kind}.nii.gz`, name: `${kind}.nii.gz`,
    opacity: opacity(kind), ...look(kind) })));
  layer(MAP).colormapType = 2; // colours from 0, nothing below cal_min
  nv.updateGLVolume();
  describe(chosen);
  listFindings();
  await loadRatings();
  if (place) goTo(place);
  else if (details.findings?.length) goToFinding(0);
  else goToPeak();
  controls();
  say("", "ready");
  keepAddress();
  document.body.dataset.number = String(index);
}

function describe(chosen) {
  $("name").textContent = chosen.case;
  const percentile = chosen.percentile === null ? [] : [["Healthy scans below it", chosen.healthy ? `${Math.round(chosen.healthy * chosen.percentile)} of ${chosen.healthy}` : `${Math.round(100 * chosen.percentile)} %`]];
  pairs($("facts"), [["Score", number(chosen.score)], ...percentile,
    ["Anomalous volume", chosen.volume_ml === null ? "–" : `${number(chosen.volume_ml, 1)} ml`],
    ["Scan", `${state.number + 1} of ${state.run.cases.filter(item => item.finished).length}, by score`]]);
  const levels = state.details.note_levels;
  const notes = state.details.notes.filter((_, index) => levels[index] === "warning");
  const information = state.details.notes.filter((_, index) => levels[index] === "information");
  if (chosen.chosen) notes.push(chosen.chosen);
  if (chosen.threshold === null) {
    const why = chosen.suspended ? `the model's calibration is suspended (${chosen.suspended})` : "the model has no calibration";
    notes.push(`${why}: there is no threshold and no mask, and the slider starts anywhere.`);
  }
  for (const [id, texts] of [["notes", notes], ["information", information]]) {
    $(id).textContent = texts.map(text => text[0].toUpperCase() + text.slice(1).replace(/\.?$/, ".")).join(" ");
    $(id).hidden = texts.length === 0;
  }
  for (const button of $("scans").querySelectorAll("button")) {
    const isCurrent = Number(button.dataset.number) === state.number;
    button.setAttribute("aria-current", String(isCurrent));
    if (isCurrent) button.scrollIntoView({ block: "nearest" });
  }
}

function goTo(mm) {
  nv.scene.crosshairPos = nv.mm2frac(mm, 0, true);
  nv.createOnLocationChange();
  nv.drawScene();
}

const goToPeak = () => goTo(state.details.place_mm);
const tidy = (value, digits) => (Math.abs(value) < 0.5 * 10 ** -digits ? 0 : value).toFixed(digits);
const times = (matrix, [x, y, z]) => matrix.slice(0, 3).map(row => Math.round(row[0] * x + row[1] * y + row[2] * z + row[3]));

function here(location) {
  const value = kind => {
    const other = { [SCAN]: BASE, [BASE]: SCAN }[kind], shown = swapped && other ? other : kind;
    const index = state.details ? state.details.layers.indexOf(shown) : -1;
    return index < 0 || !location.values[index] ? null : location.values[index].value;
  };
  state.mm = [...location.mm].slice(0, 3);
  const rows = [["Anomaly map", number(value(MAP))], ["Scan", number(value(SCAN), 1)], ["Reconstruction", number(value(BASE), 1)]];
  if (value(SPREAD) !== null) rows.push(["Uncertainty", number(value(SPREAD))]);
  if (state.details) {
    const slice = times(state.details.to_slice, state.mm), { shape } = state.details;
    rows.push(["Voxel", times(state.details.to_voxel, state.mm).join(", ")]);
    for (const [name, axis] of [["Axial slice", 2], ["Coronal slice", 1], ["Sagittal slice", 0]]) rows.push([name, `${slice[axis] + 1} of ${shape[axis]}`]);
  }
  pairs($("here"), [...rows, ["RAS, mm", state.mm.map(v => tidy(v, 1)).join(", ")]]);
  if (state.details) keepAddress();
}

// --- findings and what a reader says of them

const findings = () => state.details.findings ?? [];
const key = index => `${state.number}/${index + 1}`;

function listFindings() {
  const count = findings().length, total = findings().reduce((sum, part) => sum + part.ml, 0);
  $("finding-count").textContent = state.details.findings ? `${count}, ${number(total, 1)} ml` : "none: no threshold";
  $("findings-section").classList.toggle("empty", !count);
  $("rating").hidden = !count;
  $("findings").replaceChildren(...findings().map((part, index) => {
    const row = document.createElement("li"), button = document.createElement("button");
    const cell = (name, text) => { const e = document.createElement("span"); e.className = name; e.textContent = text; return e; };
    const place = [part.side, part.lobe].filter(Boolean).join(" ") || part.mm.map(v => tidy(v, 0)).join(", ");
    const share = part.share === null ? "" : part.share > 0 ? `, ${Math.max(1, Math.round(100 * part.share))} % lesion` : ", no lesion";
    button.type = "button";
    button.append(cell("soft", String(part.number)), cell("", `${part.ml < 1 ? part.ml.toFixed(2) : part.ml.toFixed(1)} ml`), cell("place", place + share), cell("mark", ""));
    button.addEventListener("click", () => goToFinding(index));
    row.append(button);
    return row;
  }));
}

function goToFinding(index) {
  if (!findings().length) return;
  state.finding = (index + findings().length) % findings().length;
  goTo(findings()[state.finding].mm);
  markFindings();
}

function markFindings() {
  [...$("findings").children].forEach((row, index) => {
    const rating = state.ratings.get(key(index)), mark = row.querySelector(".mark");
    row.firstChild.setAttribute("aria-current", String(index === state.finding));
    mark.textContent = rating?.rating ?? "";
    mark.className = `mark ${rating?.rating ?? ""}`;
    if (index === state.finding) row.scrollIntoView({ block: "nearest" });
  });
  const rating = state.ratings.get(key(state.finding)), counted = findings().filter((_, index) => state.ratings.has(key(index))).length;
  for (const button of document.querySelectorAll("[data-rating]")) button.setAttribute("aria-pressed", String(button.dataset.rating === rating?.rating));
  $("comment").value = rating?.comment ?? "";
  $("rated").textContent = `Finding ${state.finding + 1}; ${counted} of ${findings().length} rated. Kept in ratings.tsv.`;
}

async function loadRatings() { // the reader's own: what others said is not shown
  state.ratings = new Map();
  const reader = $("reader").value.trim();
  if (reader) {
    for (const item of await getJson(`ratings?reader=${encodeURIComponent(reader)}`)) {
      const part = item.number === state.number ? findings()[item.finding - 1] : null;
      if (part && item.mm?.every((v, k) => Math.abs(v - part.mm[k]) < 0.01)) state.ratings.set(key(item.finding - 1), item);
    }
  }
  if (findings().length) markFindings();
}

async function rate(rating) {
  if (!findings().length) return;
  const reader = $("reader").value.trim();
  if (!reader) {
    $("rated").textContent = "Give your name first: ratings of two readers are kept apart.";
    $("reader").focus();
    return;
  }
  const index = state.finding, where = key(index), comment = $("comment").value.trim();
  const response = await fetch("ratings", { method: "POST", headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ number: state.number, finding: index + 1, reader, rating, comment }) });
  if (!response.ok) {
    $("rated").textContent = `Not stored: ${(await response.text()).trim()}`;
    return;
  }
  state.ratings.set(where, await response.json());
  markFindings();
}
const sayFailed = error => { $("rated").textContent = `Not stored: ${error.message}`; };

// --- an address that keeps what is shown

let addressDue = null;
function keepAddress() { // not at every step of a drag: browsers count
  clearTimeout(addressDue);
  addressDue = setTimeout(writeAddress, 200);
}

function writeAddress() {
  if (!state.mm || document.body.dataset.state !== "ready") return;
  const parts = { scan: current().case, mm: state.mm.map(v => v.toFixed(1)).join(","), threshold: state.threshold.toFixed(4), view: nv.opts.sliceType };
  history.replaceState(null, "", `#${new URLSearchParams(parts)}`);
}

function fromAddress() {
  const parts = new URLSearchParams(location.hash.slice(1)), index = state.run.cases.findIndex(item => item.case === parts.get("scan") && item.finished);
  const mm = (parts.get("mm") ?? "").split(",").map(Number), threshold = parseFloat(parts.get("threshold"));
  if (threshold >= 0 && threshold <= top_()) state.threshold = threshold;
  if ([0, 1, 2, 3, 4].includes(Number(parts.get("view"))) && parts.has("view")) nv.setSliceType(Number(parts.get("view")));
  return open(Math.max(index, 0), index >= 0 && mm.length === 3 && mm.every(Number.isFinite) ? mm : undefined);
}

async function copy(text, button) {
  const before = button.lastChild.textContent;
  await navigator.clipboard.writeText(text);
  button.lastChild.textContent = "Copied";
  setTimeout(() => { button.lastChild.textContent = before; }, 1200);
}
const copyPlace = () => copy(`${current().case}: voxel ${times(state.details.to_voxel, state.mm).join(", ")}; RAS mm ${state.mm.map(v => tidy(v, 1)).join(", ")}`, $("copy-place"));
const copyLink = () => { writeAddress(); return copy(location.href, $("copy-link")); };
const screenshot = () => nv.saveScene(`${current().case}_${state.mm.map(v => tidy(v, 0)).join("_")}.png`);

// --- what a person does

const setThreshold = value => { state.threshold = Math.min(top_(), Math.max(0, value)); redraw(); };
const setOpacity = value => { state.opacity = Math.min(1, Math.max(0, value)); redraw(); };
const toggle = name => { state[name] = !state[name]; redraw(); };
function blink(on = blinking === null) {
  clearInterval(blinking);
  blinking = on && !$("base").disabled ? setInterval(() => toggle("base"), BLINK_MS) : null;
  if (!on && state.base && state.details) toggle("base");
  $("blink").setAttribute("aria-pressed", String(blinking !== null));
}
const setWindow = (level, width) => { // 100 and 100: what is shown at first
  const [first, last] = state.details.window, centre = first + (last - first) * level / 200, half = (last - first) * Math.max(width, 1) / 200;
  state.window = [centre - half, centre + half];
  redraw();
};
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
  b: () => !$("base").disabled && blink(), g: () => has(TRUTH) && toggle("truth"), w: () => setWindow(100, 100),
  j: () => goToFinding(state.finding - 1), k: () => goToFinding(state.finding + 1), s: screenshot, l: copyLink,
  y: () => rate("real").catch(sayFailed), x: () => rate("artefact").catch(sayFailed), v: () => rate("unsure").catch(sayFailed),
  a: goToPeak, t: calibrate, c: cut, 1: () => setView(3), 2: () => setView(0), 3: () => setView(1), 4: () => setView(2), 5: () => setView(4),
};

function listen() {
  window.addEventListener("keydown", event => {
    const action = KEYS[event.key.toLowerCase()];
    const pressing = event.key === " " && event.target instanceof HTMLButtonElement;
    const typing = event.target instanceof HTMLInputElement && event.target.type === "text";
    if (!action || pressing || typing || event.ctrlKey || event.metaKey || event.altKey || !state.details) return;
    event.preventDefault();
    event.stopPropagation();
    action();
  }, { capture: true });
  $("threshold").addEventListener("input", event => setThreshold(top_() * event.target.value / STEPS));
  $("opacity").addEventListener("input", event => setOpacity(event.target.value / 100));
  $("reset").addEventListener("click", calibrate);
  $("peak").addEventListener("click", goToPeak);
  for (const [id, by] of [["finding-before", -1], ["finding-after", 1]]) $(id).addEventListener("click", () => goToFinding(state.finding + by));
  for (const button of document.querySelectorAll("[data-rating]")) button.addEventListener("click", () => rate(button.dataset.rating).catch(sayFailed));
  $("comment").addEventListener("change", () => { // a comment alone changes nothing yet
    const rating = state.ratings.get(key(state.finding));
    if (rating) rate(rating.rating).catch(sayFailed);
  });
  $("reader").addEventListener("change", () => loadRatings().catch(sayFailed));
  for (const id of ["level", "width"]) $(id).addEventListener("input", () => setWindow(Number($("level").value), Number($("width").value)));
  $("grey").addEventListener("click", () => setWindow(100, 100));
  $("blink").addEventListener("click", () => blink());
  $("shot").addEventListener("click", screenshot);
  $("copy-place").addEventListener("click", copyPlace);
  $("copy-link").addEventListener("click", copyLink);
  for (const name of ["base", "mask", "uncertainty", "truth"]) $(name).addEventListener("click", () => toggle(name));
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
  nv.addColormap("maediff-truth", { R: [0, TRUE.R], G: [0, TRUE.G], B: [0, TRUE.B], A: [0, 255], I: [0, 255] });
  nv.onLocationChange = here;
  $("reader").value = state.run.reader;
  await nv.attachToCanvas($("canvas"));
  list();
  listen();
  await fromAddress();
  $("canvas").focus();
}

start().catch(error => say(`The viewer cannot start: ${error.message}`, "error"));
