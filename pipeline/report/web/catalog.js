"use strict";
/* The assets, and which of them fit a selection. Data arrives as scripts that call `gallery.data` and
   `gallery.sample`: a page opened from a folder may load scripts and nothing else. */

const gallery = {
  groups: [],
  columns: {},
  count: 0,
  arrived: null,

  data(value) {
    this.groups = value.groups;
    this.columns = value.columns;
    this.count = value.columns.uid.length;
  },

  sample(entry) {
    this.arrived = entry;
  },

  /* The entry of one sample, from its own script. */
  async load(index) {
    await loadScript(`samples/${this.columns.shard[index]}/${this.columns.uid[index]}.js`);
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

const EVERYTHING = { text: "", outcomes: [], reasons: [], licence: null, ranges: [], sort: "", descending: false, page: 0 };

/* Indices of the assets that fit, in the order asked for; what has no value comes last. */
function selected(state) {
  const { uid, name, title, author, caption, uri, outcome, reason, licence } = gallery.columns;
  const words = state.text.toLowerCase().split(/\s+/).filter(Boolean);
  const outcomes = new Set(state.outcomes), reasons = new Set(state.reasons);
  const fitting = [];
  for (let i = 0; i < gallery.count; i += 1) {
    if (outcomes.size && !outcomes.has(outcome[i])) continue;
    if (reasons.size && !reasons.has(reason[i])) continue;
    if (state.licence !== null && licence[i] !== state.licence) continue;
    if (!state.ranges.every((range) => inRange(range, i))) continue;
    if (words.length) {
      const text = `${uid[i]} ${name[i]} ${title[i]} ${author[i]} ${caption[i]} ${uri[i]}`.toLowerCase();
      if (!words.every((word) => text.includes(word))) continue;
    }
    fitting.push(i);
  }
  return state.sort ? sorted(fitting, gallery.columns[state.sort], state.descending) : fitting;
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

/* A selection as the part of the URL after #, and back. */
function toHash(state, uid) {
  const query = new URLSearchParams();
  if (state.text) query.set("text", state.text);
  for (const outcome of state.outcomes) query.append("outcome", outcome);
  for (const reason of state.reasons) query.append("reason", reason);
  if (state.licence !== null) query.set("licence", state.licence);
  for (const { column, low, high } of state.ranges) query.append("range", `${column}:${low ?? ""}:${high ?? ""}`);
  if (state.sort) query.set("sort", `${state.descending ? "-" : ""}${state.sort}`);
  if (state.page) query.set("page", state.page + 1);
  if (uid) query.set("open", uid);
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
  return { state, uid: query.get("open") };
}
