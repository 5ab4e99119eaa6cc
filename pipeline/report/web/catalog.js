"use strict";
/* The assets, and which of them fit a filter. Data arrives as scripts that call `gallery.data` and `gallery.sample`: a
   page opened from a folder may load scripts and nothing else. */

const gallery = {
  dataset: "",
  groups: [],
  limits: {},
  columns: {},
  count: 0,
  arrived: null,

  data(value) {
    Object.assign(this, value);
    this.count = value.columns.uid.length;
    this.place = new Map(value.columns.uid.map((uid, index) => [uid, index]));
  },

  sample(entry) {
    this.arrived = entry;
  },

  /* The entry of one sample, from its own script. */
  async load(index) {
    const uid = this.columns.uid[index];
    await loadScript(`samples/${this.columns.shard[index]}/${uid}.js`);
    if (this.arrived?.uid !== uid) throw new Error(`${uid}.js holds another sample`);
    return this.arrived;
  },

  value(column, index) {
    return this.columns[column][index];
  },

  /* Measurements that are numbers, seconds among them: what ranges and sorting offer. */
  numeric() {
    const names = ["seconds", ...this.groups.flatMap((group) => group.names)];
    return names.filter((name) => this.columns[name].some((value) => typeof value === "number"));
  },

  /* [value, how often], most frequent first. */
  tally(column) {
    const counts = new Map();
    for (const value of this.columns[column]) counts.set(value, (counts.get(value) || 0) + 1);
    return [...counts].sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1));
  },

  extent(column) {
    let low = Infinity, high = -Infinity;
    for (const value of this.columns[column]) {
      if (value === null) continue;
      if (value < low) low = value;
      if (value > high) high = value;
    }
    return [low, high];
  },

  /* Thresholds on a measurement in words, and whether a value misses one of them. */
  limit(column, value) {
    const rules = (this.limits[column] || []).filter(([side, bound]) => side === "most" || bound > 0);
    return {
      words: rules.map(([side, bound]) => `at ${side} ${shortNumber(bound)}`).join(", "),
      missed: rules.some(([side, bound]) => (side === "least" ? value < bound : value > bound)),
    };
  },
};

function loadScript(path) {
  return new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = path;
    script.addEventListener("load", () => resolve(script.remove()));
    script.addEventListener("error", () => reject(new Error(`${path} cannot be loaded`)));
    document.head.append(script);
  });
}

const SHOWS = ["pictures", "table", "charts"];
const EVERYTHING = {
  show: "pictures", text: "", outcomes: [], reasons: [], licence: null, ranges: [], sort: "", descending: false, page: 0,
};

/* Indices of the assets that fit, in the order asked for; what has no value comes last. */
function fitting(state) {
  const { uid, name, title, author, caption, uri, detail, outcome, reason, licence } = gallery.columns;
  const words = state.text.toLowerCase().split(/\s+/).filter(Boolean);
  const outcomes = new Set(state.outcomes), reasons = new Set(state.reasons);
  const found = [];
  for (let i = 0; i < gallery.count; i += 1) {
    if (outcomes.size && !outcomes.has(outcome[i])) continue;
    if (reasons.size && !reasons.has(reason[i])) continue;
    if (state.licence !== null && licence[i] !== state.licence) continue;
    if (!state.ranges.every((range) => inRange(range, i))) continue;
    if (words.length) {
      const text = `${uid[i]} ${name[i]} ${title[i]} ${author[i]} ${caption[i]} ${uri[i]} ${detail[i]}`.toLowerCase();
      if (!words.every((word) => text.includes(word))) continue;
    }
    found.push(i);
  }
  return state.sort ? sorted(found, gallery.columns[state.sort], state.descending) : found;
}

function inRange(range, index) {
  const value = gallery.columns[range.column][index];
  if (range.low === null && range.high === null) return true;
  return value !== null && (range.low === null || value >= range.low) && (range.high === null || value <= range.high);
}

function sorted(indices, values, descending) {
  const sign = descending ? -1 : 1;
  const absent = (value) => value === null || value === "";
  return indices.sort((a, b) => {
    const x = values[a], y = values[b];
    if (absent(x) || absent(y)) return absent(x) - absent(y) || a - b;
    return x < y ? -sign : x > y ? sign : a - b;
  });
}

/* A filter as the part of the URL after #, and back; `open` are the uids of opened assets. */
function toHash(state, open = []) {
  const query = new URLSearchParams();
  if (state.show !== "pictures") query.set("show", state.show);
  if (state.text) query.set("text", state.text);
  for (const outcome of state.outcomes) query.append("outcome", outcome);
  for (const reason of state.reasons) query.append("reason", reason);
  if (state.licence !== null) query.set("licence", state.licence);
  for (const { column, low, high } of state.ranges) query.append("range", `${column}:${low ?? ""}:${high ?? ""}`);
  if (state.sort) query.set("sort", `${state.descending ? "-" : ""}${state.sort}`);
  if (state.page) query.set("page", state.page + 1);
  for (const uid of open) query.append("open", uid);
  return query.toString();
}

function fromHash(hash) {
  const query = new URLSearchParams(hash.replace(/^#/, ""));
  const number = (text) => (text === undefined || text === "" || Number.isNaN(Number(text)) ? null : Number(text));
  const sort = query.get("sort") || "";
  const ranges = query.getAll("range").map((text) => {
    const [column, low, high] = text.split(":");
    return { column, low: number(low), high: number(high) };
  });
  const state = {
    show: SHOWS.includes(query.get("show")) ? query.get("show") : "pictures",
    text: query.get("text") || "",
    outcomes: query.getAll("outcome"),
    reasons: query.getAll("reason"),
    licence: query.get("licence"),
    ranges: ranges.filter((range) => Object.hasOwn(gallery.columns, range.column)),
    sort: sort.replace(/^-/, ""),
    descending: sort.startsWith("-"),
    page: Math.max(0, (number(query.get("page") ?? "") || 1) - 1),
  };
  if (!Object.hasOwn(gallery.columns, state.sort)) state.sort = "";
  const asked = query.getAll("open");
  return { state, open: asked.filter((uid) => gallery.place.has(uid)).slice(0, 2), absent: asked.filter((uid) => !gallery.place.has(uid)) };
}

// elements and words that all scripts use

/* An element with text and children; text never becomes markup. */
function element(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in node) node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

function button(label, onclick, properties = {}) {
  return element("button", { type: "button", onclick, ...properties }, label);
}

function words(name) {
  return name.replaceAll("_", " ").replace(/\b(uv|psnr)\b/g, (word) => word.toUpperCase());
}

/* A number of things: 1 asset, 1,200 assets. */
function counted(number, noun) {
  return `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
}

function shortNumber(value) {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number") return String(value);
  return Number.isInteger(value) ? value.toLocaleString("en") : String(Number(value.toPrecision(4)));
}

/* A measurement as text, with the same decimals wherever it stands: PSNR 34.5, seconds 1.20, others in four digits. */
function figure(column, value) {
  if (typeof value !== "number") return shortNumber(value);
  if (column.endsWith("_psnr")) return value.toFixed(1);
  return column === "seconds" ? value.toFixed(2) : shortNumber(value);
}

/* A word of a shell's command line. */
function quoted(word) {
  return /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'"'"'`)}'`;
}

/* A button that copies a text, such as a command; the text stands in its title. */
function copyButton(label, text) {
  const node = button(label, async () => {
    await copied(text());
    node.textContent = "copied";
    setTimeout(() => (node.textContent = label), 1500);
  });
  Object.assign(node, { title: text(), ariaLive: "polite" });
  return node;
}

async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = element("textarea", { value: text, className: "away" });
    (document.querySelector("dialog[open]") || document.body).append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
}
