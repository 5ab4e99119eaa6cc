"use strict";
/* The page: filters, the grid of assets in pages, and the URL, which holds what is shown. */

const PER_PAGE = 120;
const OUTCOMES = { textured: "textured", mv_only: "multi-view only", rejected: "rejected", failed: "failed" };
const form = document.getElementById("filters");
let state = EVERYTHING;
let shown = [];
let written = "";

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

function words(name) {
  return name.replaceAll("_", " ");
}

function shortNumber(value) {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number") return String(value);
  return Number.isInteger(value) ? value.toLocaleString("en") : String(Number(value.toPrecision(4)));
}

function titleOf(index) {
  const { title, caption, uid } = gallery.columns;
  return title[index].trim() || caption[index].trim() || uid[index];
}

// filters

function checkboxes(place, name, entries) {
  place.replaceChildren(
    ...entries.map(([value, label, count]) =>
      element(
        "label",
        { className: "check" },
        element("input", { type: "checkbox", name, value }),
        element("span", {}, label),
        element("span", { className: "count" }, count.toLocaleString("en")),
      ),
    ),
  );
}

function buildFilters() {
  const outcomes = new Map(gallery.tally("outcome"));
  checkboxes(
    document.getElementById("outcomes"), "outcome",
    Object.entries(OUTCOMES).filter(([outcome]) => outcomes.has(outcome)).map(([outcome, label]) => [outcome, label, outcomes.get(outcome)]),
  );
  const reasons = gallery.tally("reason").filter(([reason]) => reason);
  checkboxes(document.getElementById("reasons"), "reason", reasons.map(([reason, n]) => [reason, words(reason), n]));
  document.getElementById("reasons-field").hidden = !reasons.length;
  const licences = gallery.tally("licence");
  document.getElementById("licence-field").hidden = licences.length < 2;
  form.licence.replaceChildren(
    element("option", { value: "" }, "any"),
    ...licences.map(([licence, n]) => element("option", { value: `=${licence}` }, `${licence || "not stated"} (${n})`)),
  );
  form.sort.replaceChildren(
    element("option", { value: "" }, "job and uid"),
    ...["uid", "caption", "licence", ...gallery.numeric()].map((name) => element("option", { value: name }, words(name))),
  );
}

function addRange(range) {
  const numeric = gallery.numeric();
  const select = element(
    "select", { name: "range-column", ariaLabel: "Measurement" },
    ...numeric.map((name) => element("option", { value: name }, words(name))),
  );
  select.value = range.column;
  const low = element("input", { type: "number", step: "any", ariaLabel: "at least", value: range.low ?? "" });
  const high = element("input", { type: "number", step: "any", ariaLabel: "at most", value: range.high ?? "" });
  const remove = element("button", { type: "button", className: "remove", ariaLabel: "Remove this range" }, "×");
  const row = element("div", { className: "range" }, select, low, high, remove);
  const hint = () => {
    const [least, most] = gallery.extent(select.value);
    [low.placeholder, high.placeholder] = [shortNumber(least), shortNumber(most)];
  };
  select.addEventListener("change", () => {
    low.value = high.value = "";
    hint();
  });
  remove.addEventListener("click", () => {
    row.remove();
    filtersChanged();
  });
  hint();
  document.getElementById("ranges").append(row);
  return row;
}

function readFilters() {
  const checked = (name) => [...form.querySelectorAll(`input[name="${name}"]:checked`)].map((box) => box.value);
  const number = (input) => (input.value === "" ? null : Number(input.value));
  const ranges = [...document.querySelectorAll("#ranges .range")].map((row) => {
    const [low, high] = row.querySelectorAll("input");
    return { column: row.querySelector("select").value, low: number(low), high: number(high) };
  });
  return {
    text: form.text.value.trim(),
    outcomes: checked("outcome"),
    reasons: checked("reason"),
    licence: form.licence.value ? form.licence.value.slice(1) : null,
    ranges,
    sort: form.sort.value,
    descending: form.order.value === "down",
    page: 0,
  };
}

function writeFilters() {
  form.text.value = state.text;
  for (const box of form.querySelectorAll('input[type="checkbox"]')) {
    box.checked = (box.name === "outcome" ? state.outcomes : state.reasons).includes(box.value);
  }
  form.licence.value = state.licence === null ? "" : `=${state.licence}`;
  document.getElementById("ranges").replaceChildren();
  state.ranges.forEach(addRange);
  form.sort.value = state.sort;
  form.order.value = state.descending ? "down" : "up";
}

// grid

function card(index) {
  const outcome = gallery.value("outcome", index), reason = words(gallery.value("reason", index));
  const shard = gallery.value("shard", index), uid = gallery.value("uid", index), title = titleOf(index);
  const picture = shard
    ? element("img", {
        src: `samples/${shard}/${uid}.webp`, alt: `${title} from the front`, loading: "lazy", width: 192, height: 192,
      })
    : element("span", { className: `blank ${outcome}` }, reason || "no pictures");
  const figure = cardFigure(index, outcome, reason);
  const button = element(
    "button", { type: "button", className: "card", title },
    picture,
    element("span", { className: "name" }, title),
    ...(title === uid ? [] : [element("span", { className: "uid" }, uid)]),
    element(
      "span", { className: "line" },
      element("span", { className: `tag ${outcome}` }, OUTCOMES[outcome]), element("span", { className: "figure" }, figure),
    ),
  );
  button.addEventListener("click", () => openSample(shown.indexOf(index)));
  return element("li", {}, button);
}

/* The measurement that assets are sorted by, else the main one of this outcome. */
function cardFigure(index, outcome, reason) {
  if (state.sort && !["uid", "caption"].includes(state.sort)) return shortNumber(gallery.value(state.sort, index));
  if (outcome === "textured") return `${shortNumber(gallery.value("round_trip_psnr", index))} dB`;
  return outcome === "mv_only" ? reason : "";
}

function show() {
  shown = selected(state);
  const pages = Math.max(1, Math.ceil(shown.length / PER_PAGE));
  const page = Math.min(state.page, pages - 1);
  const first = page * PER_PAGE, last = Math.min(first + PER_PAGE, shown.length);
  document.getElementById("grid").replaceChildren(...shown.slice(first, last).map(card));
  const range = pages > 1 ? `, ${(first + 1).toLocaleString("en")} to ${last.toLocaleString("en")} shown` : "";
  document.getElementById("selection").textContent =
    `${shown.length.toLocaleString("en")} of ${gallery.count.toLocaleString("en")} assets${range}`;
  const step = (label, to) => {
    const disabled = to < 0 || to >= pages || to === page;
    return element("button", { type: "button", disabled, onclick: () => turnTo(to) }, label);
  };
  document.getElementById("pages").replaceChildren(
    ...(pages > 1
      ? [
          step("First", 0), step("Previous", page - 1), element("span", {}, `page ${page + 1} of ${pages}`),
          step("Next", page + 1), step("Last", pages - 1),
        ]
      : []),
  );
}

function turnTo(page) {
  state = { ...state, page };
  show();
  writeUrl();
  document.getElementById("assets").scrollIntoView();
}

// URL

function writeUrl(uid) {
  written = toHash(state, uid);
  location.replace(`#${written}`);
}

function filtersChanged() {
  state = readFilters();
  show();
  writeUrl();
}

function readUrl() {
  if (location.hash.replace(/^#/, "") === written || location.hash === "#assets") return;
  const { state: requested, uid } = fromHash(location.hash);
  state = requested;
  writeFilters();
  show();
  const place = uid ? shown.indexOf(gallery.columns.uid.indexOf(uid)) : -1;
  if (place >= 0) openSample(place);
}

buildFilters();
form.addEventListener("input", filtersChanged);
form.addEventListener("submit", (event) => event.preventDefault());
document.getElementById("add-range").addEventListener("click", () => {
  const preferred = ["round_trip_psnr", "faces", ...gallery.numeric()].find((name) => gallery.numeric().includes(name));
  addRange({ column: preferred, low: null, high: null }).querySelector("select").focus();
});
document.getElementById("clear").addEventListener("click", () => {
  state = EVERYTHING;
  writeFilters();
  show();
  writeUrl();
});
window.addEventListener("hashchange", readUrl);
writeFilters();
show();
readUrl();
