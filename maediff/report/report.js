// The report's page: draws pictures from the sheets of each card, and keeps list, table and cards in step.
"use strict";

const AXES = { axial: [2, 1, 0], coronal: [1, 2, 0], sagittal: [0, 2, 1] }; // world axis of slice, row, column
const SIDES = { axial: ["R", "L", "A", "P"], coronal: ["R", "L", "S", "I"], sagittal: ["A", "P", "S", "I"] }; // left right top bottom
const KINDS = { scan: "Scan", reconstruction: "Healthy reconstruction", map: "Anomaly map", uncertainty: "Uncertainty" };
const MASK = "rgb(255, 149, 0)", TRUTH = "rgb(0, 200, 220)", MASK_BIT = 85, TRUTH_BIT = 170;
const MAX_LOADED = 4; // cards whose sheets are unpacked at a time

const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};
const number = (value, digits) => (Math.abs(value) < 0.5 * 10 ** -digits ? 0 : value).toFixed(digits);
const apply = (matrix, [x, y, z]) => matrix.slice(0, 3).map(row => row[0] * x + row[1] * y + row[2] * z + row[3]);
const scale = document.getElementById("scale");
const LEVELS = scale ? Number(scale.dataset.levels) : 1, TOP = scale ? Number(scale.dataset.top) : 1;
const CALIBRATED = scale?.dataset.calibrated ?? null; // the text of all thresholds: contrasts have their own
const COLOURS = scale ? JSON.parse(document.getElementById("colours").textContent) : [];
// step: of the slider, null at each scan's calibrated threshold, where the mask that infer wrote is shown
const view = { step: scale && CALIBRATED === null ? Number(document.getElementById("threshold").value) : null, mask: true, truth: true };

async function picture(uri) {
  const image = new Image();
  image.src = uri;
  await image.decode();
  return image;
}

async function plain(uri) { // the grey values of a sheet
  const image = await picture(uri), canvas = make("canvas", { width: image.width, height: image.height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  const rgba = context.getImageData(0, 0, image.width, image.height).data, grey = new Uint8Array(rgba.length / 4);
  for (let i = 0; i < grey.length; i++) grey[i] = rgba[4 * i];
  return { grey, width: image.width };
}

class Card {
  constructor(article) {
    this.article = article;
    this.data = JSON.parse(article.querySelector("script.data").textContent);
    this.place = [...this.data.places[0].at];
    this.kinds = Object.keys(KINDS).filter(kind => kind in this.data.planes.axial.sheets);
    this.blinking = null;
    this.other = false; // whether a blinking picture shows the reconstruction just now
    this.sheets = null;
    this.rows = {};
    this.build();
  }

  build() {
    const goto = this.article.querySelector(".goto"), planes = this.article.querySelector(".planes");
    for (const { name, at } of this.data.places) goto.append(make("button", { type: "button", textContent: name, onclick: () => this.go(at) }));
    if (this.kinds.includes("scan") && this.kinds.includes("reconstruction")) {
      this.blinker = make("button", { type: "button", textContent: "Blink scan and reconstruction", onclick: () => this.blink(), ariaPressed: "false" });
      goto.append(this.blinker);
    }
    for (const [plane, { slices }] of Object.entries(this.data.planes)) {
      const slider = make("input", { type: "range", min: 0, max: slices.length - 1, value: 0, ariaLabel: `${plane} slice` });
      slider.addEventListener("input", () => this.slide(plane, Number(slider.value)));
      const say = make("span", { className: "say" });
      const figures = this.kinds.map(kind => {
        const canvas = make("canvas"), caption = make("figcaption", { textContent: KINDS[kind] });
        const button = make("button", { type: "button", className: "picture", ariaLabel: `Enlarge: ${KINDS[kind]}, ${plane}` }, canvas, ...letters(plane));
        button.addEventListener("click", () => enlarge(this, plane, kind));
        return { kind, canvas, caption, figure: make("figure", {}, caption, button) };
      });
      const panels = make("div", { className: "panels" }, ...figures.map(item => item.figure));
      panels.dataset.count = figures.length;
      planes.append(make("div", { className: "plane" }, make("div", { className: "line" }, make("b", { textContent: plane[0].toUpperCase() + plane.slice(1) }), slider, say), panels));
      this.rows[plane] = { slider, say, figures };
    }
    for (const row of this.article.querySelectorAll("tr[data-at]")) {
      const open = () => {
        this.go(JSON.parse(row.dataset.at));
        for (const other of this.article.querySelectorAll("tr[aria-current]")) other.removeAttribute("aria-current");
        row.setAttribute("aria-current", "true");
        this.article.scrollIntoView({ block: "start" });
      };
      row.addEventListener("click", open);
      row.addEventListener("keydown", event => { if (event.key === "Enter") open(); });
    }
    this.article.querySelector("button.save")?.addEventListener("click", () => this.save());
  }

  async load() {
    if (!this.sheets) {
      this.sheets = Promise.all(Object.entries(this.data.planes).map(async ([plane, { sheets }]) => {
        const names = Object.keys(sheets), grey = name => name === "scan" || name === "reconstruction";
        const ready = await Promise.all(names.map(name => grey(name) ? picture(sheets[name]) : plain(sheets[name])));
        return [plane, Object.fromEntries(names.map((name, index) => [name, ready[index]]))];
      })).then(Object.fromEntries);
    }
    return this.sheets;
  }

  nearest(plane) { // position of the stored slice that is nearest to the place
    const { slices } = this.data.planes[plane], wanted = this.place[AXES[plane][0]];
    return slices.reduce((best, slice, index) => Math.abs(slice - wanted) < Math.abs(slices[best] - wanted) ? index : best, 0);
  }

  go(at) {
    this.place = [...at];
    return this.draw();
  }

  slide(plane, index) {
    this.place[AXES[plane][0]] = this.data.planes[plane].slices[index];
    return this.draw();
  }

  voxel(place = this.place) { return apply(this.data.toVoxel, place).map(Math.round); }
  mm(place = this.place) { return apply(this.data.affine, this.voxel(place)); }

  async draw() {
    const sheets = await this.load();
    for (const plane of Object.keys(this.data.planes)) {
      const { slider, say, figures } = this.rows[plane], index = this.nearest(plane);
      slider.value = index;
      say.textContent = this.describe(sheets, plane, index);
      for (const { kind, canvas, caption } of figures) {
        const shown = kind === "scan" && this.other ? "reconstruction" : kind;
        caption.textContent = KINDS[shown];
        paint(canvas, this, sheets, { plane, index, kind: shown, outlines: kind === "scan" || this.kinds[0] !== "scan", size: 420 });
      }
    }
    const voxel = this.voxel().join(", "), mm = this.mm().map(v => number(v, 1)).join(", "), where = this.article.querySelector(".where");
    const copy = make("button", { type: "button", className: "plain", textContent: "Copy", onclick: () => copyText(`voxel ${voxel}; RAS mm ${mm}`, copy) });
    where.replaceChildren("Voxel ", make("code", { textContent: voxel }), ", RAS mm ", make("code", { textContent: mm }), " ", copy);
    for (const [index, button] of [...this.article.querySelectorAll(".goto button")].entries()) {
      const target = this.data.places[index]?.at;
      if (target) button.setAttribute("aria-pressed", String(target.every((v, k) => v === this.place[k])));
    }
    this.article.dataset.drawn = String(Number(this.article.dataset.drawn ?? 0) + 1);
  }

  describe(sheets, plane, index) {
    const [axis] = AXES[plane], slice = this.data.planes[plane].slices[index];
    const place = [...this.place];
    place[axis] = slice;
    const away = Math.hypot(...this.mm(place).map((v, k) => v - this.mm()[k]));
    const texts = [`slice ${slice + 1} of ${this.data.shape[axis]}, ${"xyz"[axis]} = ${number(this.mm(place)[axis], 1)} mm`];
    if (away > 0.01) texts.push(`the nearest slice in this file, ${number(away, 1)} mm away`);
    const marks = tile(this.data.planes[plane], index, sheets[plane].labels), above = this.above(sheets, plane, index);
    if (above && !above.some(Boolean)) texts.push(view.step === null ? "no finding in this slice" : "nothing above the threshold in this slice");
    if (marks && this.data.lesions && !marks.some(v => v >= TRUTH_BIT)) texts.push("no lesion in this slice");
    return texts.join("; ");
  }

  above(sheets, plane, index) { // what is outlined as anomalous; null without a threshold
    const marks = tile(this.data.planes[plane], index, sheets[plane].labels);
    if (view.step === null) return this.data.maskMl === null ? null : marks?.map(v => Number(v === MASK_BIT || v === 255));
    return tile(this.data.planes[plane], index, sheets[plane].map).map(v => Number(v > view.step));
  }

  blink(on = this.blinking === null) {
    clearInterval(this.blinking);
    this.blinking = on ? setInterval(() => { this.other = !this.other; this.draw(); dialog.redraw?.(); }, 650) : null;
    if (!on) this.other = false;
    this.blinker?.setAttribute("aria-pressed", String(on));
    return this.draw();
  }

  save() {
    const heads = [...this.article.querySelectorAll(".below table")[0].tHead.rows[0].cells].map(cell => cell.textContent);
    const rows = [...this.article.querySelectorAll(".below table")[0].tBodies[0].rows].map(row => [...row.cells].map(cell => cell.textContent));
    const blob = new Blob([[heads, ...rows].map(row => row.join("\t")).join("\n") + "\n"], { type: "text/tab-separated-values" });
    const link = make("a", { href: URL.createObjectURL(blob), download: `${this.article.dataset.case}_findings.tsv` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }
}

async function copyText(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // files have no clipboard in some browsers
    const area = make("textarea", { value: text });
    button.parentElement.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = "Copy"; }, 1200);
}

const letters = plane => SIDES[plane].map((text, index) => make("span", { className: `side ${"lrtb"[index]}`, textContent: text }));

function tile({ across, size: [height, width] }, index, sheet) { // grey values of one slice, or undefined
  if (!sheet) return undefined;
  const out = new Uint8Array(height * width), left = index % across * width, top = Math.floor(index / across) * height;
  for (let row = 0; row < height; row++) {
    const start = (top + row) * sheet.width + left;
    out.set(sheet.grey.subarray(start, start + width), row * width);
  }
  return out;
}

function paint(canvas, card, sheets, { plane, index, kind, outlines, size }) {
  const info = card.data.planes[plane], [height, width] = info.size, [tall, wide] = [height * info.mm[0], width * info.mm[1]];
  const pixels = Math.min(4, Math.max(1, size * (window.devicePixelRatio || 1) / Math.max(tall, wide) ));
  canvas.width = Math.round(wide * pixels);
  canvas.height = Math.round(tall * pixels);
  const context = canvas.getContext("2d"), sheet = sheets[plane][kind];
  context.imageSmoothingQuality = "high";
  if (sheet instanceof Image) {
    context.drawImage(sheet, index % info.across * width, Math.floor(index / info.across) * height, width, height, 0, 0, canvas.width, canvas.height);
  } else {
    const values = tile(info, index, sheet), pixelsOf = new ImageData(width, height);
    values.forEach((value, i) => pixelsOf.data.set([...COLOURS[value], 255], 4 * i));
    const small = make("canvas", { width, height });
    small.getContext("2d").putImageData(pixelsOf, 0, 0);
    context.drawImage(small, 0, 0, canvas.width, canvas.height);
  }
  if (outlines) {
    const marks = tile(info, index, sheets[plane].labels);
    if (view.truth && card.data.lesions) outline(context, marks.map(v => Number(v >= TRUTH_BIT)), info, canvas, TRUTH);
    const above = view.mask ? card.above(sheets, plane, index) : null;
    if (above) outline(context, above, info, canvas, MASK);
  }
  crosshair(context, card, plane, canvas);
}

function outline(context, mask, { size: [height, width] }, canvas, colour) {
  const [sx, sy] = [canvas.width / width, canvas.height / height], at = (r, c) => r >= 0 && c >= 0 && r < height && c < width && mask[r * width + c];
  context.beginPath();
  for (let r = 0; r < height; r++) {
    for (let c = 0; c < width; c++) {
      if (!mask[r * width + c]) continue;
      if (!at(r - 1, c)) { context.moveTo(c * sx, r * sy); context.lineTo((c + 1) * sx, r * sy); }
      if (!at(r + 1, c)) { context.moveTo(c * sx, (r + 1) * sy); context.lineTo((c + 1) * sx, (r + 1) * sy); }
      if (!at(r, c - 1)) { context.moveTo(c * sx, r * sy); context.lineTo(c * sx, (r + 1) * sy); }
      if (!at(r, c + 1)) { context.moveTo((c + 1) * sx, r * sy); context.lineTo((c + 1) * sx, (r + 1) * sy); }
    }
  }
  context.strokeStyle = colour;
  context.lineWidth = Math.max(1.25, Math.max(canvas.width, canvas.height) / 330);
  context.stroke();
}

function pixelOf(card, plane) { // row and column of the place in a plane's picture
  const info = card.data.planes[plane];
  return AXES[plane].slice(1).map((axis, k) => (card.data.shape[axis] - 1 - card.place[axis] - info.origin[k]) / info.step);
}

function crosshair(context, card, plane, canvas) { // short marks at the edges that point at the place
  const info = card.data.planes[plane], [row, column] = pixelOf(card, plane);
  const x = (column + 0.5) * canvas.width / info.size[1], y = (row + 0.5) * canvas.height / info.size[0], length = 0.045 * Math.max(canvas.width, canvas.height);
  context.beginPath();
  for (const [from, to] of [[[x, 0], [x, length]], [[x, canvas.height - length], [x, canvas.height]], [[0, y], [length, y]], [[canvas.width - length, y], [canvas.width, y]]]) {
    context.moveTo(...from);
    context.lineTo(...to);
  }
  context.strokeStyle = "rgba(141, 180, 255, 0.9)";
  context.lineWidth = Math.max(1, canvas.width / 400);
  context.stroke();
}

// --- one picture, large

const dialog = document.getElementById("large");
function enlarge(card, plane, kind) {
  const [line, stage] = [dialog.querySelector(".line"), dialog.querySelector(".stage > div")], { slices } = card.data.planes[plane];
  const canvas = make("canvas"), slider = make("input", { type: "range", min: 0, max: slices.length - 1, ariaLabel: "Slice" });
  const text = make("span"), under = make("code"), state = { kind };
  const buttons = card.kinds.map(name => make("button", { type: "button", className: "plain", textContent: KINDS[name], onclick: () => { state.kind = name; redraw(); } }));
  const blink = make("button", { type: "button", className: "plain", textContent: "Blink", hidden: !card.blinker, onclick: () => { state.kind = "scan"; card.blink().then(redraw); } });
  const copy = make("button", { type: "button", className: "plain", textContent: "Copy", onclick: () => copyText(`voxel ${card.voxel().join(", ")}; RAS mm ${card.mm().map(v => number(v, 1)).join(", ")}`, copy) });
  const close = make("button", { type: "button", className: "plain", textContent: "Close", onclick: () => dialog.close() });
  line.replaceChildren(...buttons, blink, slider, text, under, copy, close);
  stage.replaceChildren(canvas, ...letters(plane));
  const redraw = async () => {
    const sheets = await card.load(), index = card.nearest(plane), info = card.data.planes[plane], box = dialog.querySelector(".stage");
    const shown = state.kind === "scan" && card.other ? "reconstruction" : state.kind;
    text.textContent = `${KINDS[shown]}, ${plane}, ${card.describe(sheets, plane, index)}`;
    under.textContent = `voxel ${card.voxel().join(", ")}; RAS mm ${card.mm().map(v => number(v, 1)).join(", ")}`;
    const [tall, wide] = [info.size[0] * info.mm[0], info.size[1] * info.mm[1]], factor = Math.min((box.clientWidth - 8) / wide, (box.clientHeight - 8) / tall);
    paint(canvas, card, sheets, { plane, index, kind: shown, outlines: state.kind !== "map" && state.kind !== "uncertainty", size: Math.max(tall, wide) * factor });
    canvas.style.width = `${wide * factor}px`;
    canvas.style.height = `${tall * factor}px`;
    slider.value = index;
    buttons.forEach((button, k) => button.setAttribute("aria-pressed", String(card.kinds[k] === state.kind)));
    blink.setAttribute("aria-pressed", String(card.blinking !== null));
  };
  const at = event => {
    const info = card.data.planes[plane], box = canvas.getBoundingClientRect(), place = [...card.place];
    const pixel = [Math.floor((event.clientY - box.top) / box.height * info.size[0]), Math.floor((event.clientX - box.left) / box.width * info.size[1])];
    AXES[plane].slice(1).forEach((axis, k) => { place[axis] = card.data.shape[axis] - 1 - info.origin[k] - pixel[k] * info.step; });
    place[AXES[plane][0]] = info.slices[card.nearest(plane)];
    return { place, index: pixel[0] * info.size[1] + pixel[1] };
  };
  canvas.addEventListener("pointermove", async event => {
    const { place, index } = at(event), sheets = await card.load();
    const level = tile(card.data.planes[plane], card.nearest(plane), sheets[plane].map)[index] ?? 0;
    under.textContent = `voxel ${card.voxel(place).join(", ")}; RAS mm ${card.mm(place).map(v => number(v, 1)).join(", ")}; map ${level >= LEVELS ? "≥" : "≈"} ${number(level / LEVELS * TOP, 2)}`;
  });
  canvas.addEventListener("click", event => card.go(at(event).place).then(redraw));
  const step = by => card.slide(plane, Math.min(slices.length - 1, Math.max(0, card.nearest(plane) + by))).then(redraw);
  slider.addEventListener("input", () => card.slide(plane, Number(slider.value)).then(redraw));
  dialog.onkeydown = event => {
    const action = { ArrowUp: () => step(1), ArrowRight: () => step(1), ArrowDown: () => step(-1), ArrowLeft: () => step(-1), b: () => blink.click() }[event.key];
    if (!action || event.target === slider) return;
    event.preventDefault();
    action();
  };
  dialog.onwheel = event => { event.preventDefault(); step(event.deltaY < 0 ? 1 : -1); };
  dialog.redraw = redraw;
  dialog.onclose = () => { dialog.redraw = null; if (card.blinking !== null) card.blink(false); };
  if (!dialog.open) dialog.showModal();
  return redraw();
}
window.addEventListener("resize", () => dialog.redraw?.());

// --- cards come and go with the window

const cards = new Map(), loaded = [], near = new Set();
const cardOf = article => {
  if (!cards.has(article)) cards.set(article, new Card(article));
  return cards.get(article);
};
const watcher = new IntersectionObserver(entries => {
  for (const { target, isIntersecting } of entries) {
    if (!isIntersecting) { near.delete(target); continue; }
    near.add(target);
    const card = cardOf(target);
    card.draw();
    if (loaded.includes(card)) loaded.splice(loaded.indexOf(card), 1);
    loaded.push(card);
    if (loaded.length > MAX_LOADED) loaded.shift().sheets = null; // the canvases keep what is drawn
  }
}, { rootMargin: "500px" });
for (const article of document.querySelectorAll("article.case")) if (article.querySelector("script.data")) watcher.observe(article);

function redrawAll() {
  for (const article of near) cardOf(article).draw();
  dialog.redraw?.();
}

// --- threshold and outlines

const articles = new Map([...document.querySelectorAll("article.case")].filter(a => a.querySelector("script.data")).map(a => [a.dataset.case, a]));
const volumeAbove = data => view.step === null ? data.maskMl : data.above[view.step];
function showVolumes() {
  document.getElementById("cut").textContent = view.step === null ? CALIBRATED : number(view.step * TOP / LEVELS, 3);
  const button = document.getElementById("calibrated");
  if (button) button.disabled = view.step === null;
  for (const article of articles.values()) {
    const now = article.querySelector(".now"), ml = volumeAbove(cardOf(article).data);
    now.hidden = view.step === null || ml === null;
    if (ml !== null) now.querySelector("b").textContent = number(ml, 1);
  }
  for (const item of document.querySelectorAll("#scans li:not([data-failed])")) {
    const article = articles.get(item.dataset.case);
    if (!article) continue;
    const ml = volumeAbove(cardOf(article).data);
    item.dataset.now = ml;
    if (ml !== null) item.querySelector(".ml").textContent = `${number(ml, 1)} ml`;
  }
  filter();
}
if (scale) {
  const slider = document.getElementById("threshold");
  slider.addEventListener("input", () => { view.step = Number(slider.value); showVolumes(); redrawAll(); });
  document.getElementById("calibrated")?.addEventListener("click", () => {
    view.step = null;
    slider.value = slider.defaultValue;
    showVolumes();
    redrawAll();
  });
  for (const name of ["mask", "truth"]) {
    document.getElementById(`show-${name}`)?.addEventListener("change", event => { view[name] = event.target.checked; redrawAll(); });
  }
  if (view.step !== null) showVolumes();
}

// --- the list of scans

function filter() {
  const list = document.getElementById("scans");
  if (!list) return;
  const wanted = document.getElementById("find").value.trim().toLowerCase(), least = Number(document.getElementById("least")?.value || 0);
  const on = name => document.querySelector(`[data-filter="${name}"]`)?.checked;
  const hidden = new Set();
  let shown = 0;
  for (const item of list.children) {
    const { dataset } = item, ml = Number(dataset.now ?? dataset.ml);
    const passes = (!wanted || dataset.case.toLowerCase().includes(wanted)) && (!on("failed") || "failed" in dataset)
      && (!on("warned") || "warned" in dataset) && (!on("above") || ml > least);
    item.hidden = !passes;
    shown += passes;
    if (!passes) hidden.add(dataset.case);
  }
  document.getElementById("none").hidden = shown > 0;
  for (const element of document.querySelectorAll("article.case, #cohort tr[data-case]")) element.hidden = hidden.has(element.dataset.case);
}
function sortList() {
  const list = document.getElementById("scans"), by = document.getElementById("sort").value;
  const key = item => by === "name" ? item.dataset.case.toLowerCase() : -(parseFloat(by === "ml" ? item.dataset.now ?? item.dataset.ml : item.dataset.score));
  const order = (a, b) => by !== "name" && (isNaN(a) || isNaN(b)) ? isNaN(a) - isNaN(b) : a < b ? -1 : a > b ? 1 : 0;
  list.append(...[...list.children].sort((a, b) => order(key(a), key(b))));
}
if (document.getElementById("scans")) {
  for (const control of document.querySelectorAll(".list .controls input")) control.addEventListener("input", filter);
  document.getElementById("sort").addEventListener("change", sortList);
  if (matchMedia("(max-width: 1179px)").matches) document.querySelector(".list details").open = false;
  const links = new Map([...document.querySelectorAll("#scans a")].map(link => [link.getAttribute("href").slice(1), link]));
  const current = new IntersectionObserver(entries => {
    for (const { target, isIntersecting } of entries) if (isIntersecting) {
      for (const link of links.values()) link.removeAttribute("aria-current");
      links.get(target.id)?.setAttribute("aria-current", "true");
    }
  }, { rootMargin: "-30% 0px -60% 0px" });
  for (const article of document.querySelectorAll("article.case")) current.observe(article);
}

// --- tables sort by any column

for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button")?.addEventListener("click", () => {
    const numeric = head.classList.contains("n");
    const previous = head.getAttribute("aria-sort");
    const rising = previous ? previous === "descending" : !numeric;
    const key = row => {
      const cell = row.cells[column];
      return numeric ? parseFloat(cell.dataset.value) : cell.textContent.trim().toLowerCase();
    };
    const rows = [...table.tBodies[0].rows].sort((a, b) => {
      const x = key(a), y = key(b);
      if (numeric && (isNaN(x) || isNaN(y))) return isNaN(x) - isNaN(y);
      return (rising ? 1 : -1) * (x < y ? -1 : x > y ? 1 : 0);
    });
    table.tBodies[0].append(...rows);
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", rising ? "ascending" : "descending");
  }));
}
