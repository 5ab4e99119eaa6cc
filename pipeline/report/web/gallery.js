"use strict";
/* The page: filters, the grid of assets in pages, and the address that says what is shown. */

const PER_PAGE = 120;
const FATES = { textured: "textured", mv_only: "multi-view only", rejected: "rejected", failed: "failed" };
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
  const fates = new Map(gallery.tally("fate"));
  checkboxes(
    document.getElementById("fates"), "fate",
    Object.entries(FATES).filter(([fate]) => fates.has(fate)).map(([fate, label]) => [fate, label, fates.get(fate)]),
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
    fates: checked("fate"),
    reasons: checked("reason"),
    licence: form.licence.value ? form.licence.value.slice(1) : null,
    ranges,
    sort: form.sort.value,
    falling: form.order.value === "down",
    page: 0,
  };
}

function writeFilters() {
  form.text.value = state.text;
  for (const box of form.querySelectorAll('input[type="checkbox"]')) {
    box.checked = (box.name === "fate" ? state.fates : state.reasons).includes(box.value);
  }
  form.licence.value = state.licence === null ? "" : `=${state.licence}`;
  document.getElementById("ranges").replaceChildren();
  state.ranges.forEach(addRange);
  form.sort.value = state.sort;
  form.order.value = state.falling ? "down" : "up";
}

// grid

function card(index) {
  const fate = gallery.value("fate", index), reason = words(gallery.value("reason", index));
  const shard = gallery.value("shard", index), uid = gallery.value("uid", index), title = titleOf(index);
  const picture = shard
    ? element("img", {
        src: `samples/${shard}/${uid}.webp`, alt: `${title} from the front`, loading: "lazy", width: 192, height: 192,
      })
    : element("span", { className: `blank ${fate}` }, reason || "no pictures");
  const figure = cardFigure(index, fate, reason);
  const button = element(
    "button", { type: "button", className: "card", title },
    picture,
    element("span", { className: "name" }, title),
    ...(title === uid ? [] : [element("span", { className: "uid" }, uid)]),
    element(
      "span", { className: "line" },
      element("span", { className: `tag ${fate}` }, FATES[fate]), element("span", { className: "figure" }, figure),
    ),
  );
  button.addEventListener("click", () => openSample(shown.indexOf(index)));
  return element("li", {}, button);
}

/* What the assets are sorted by; else what says most about this one. */
function cardFigure(index, fate, reason) {
  if (state.sort && !["uid", "caption"].includes(state.sort)) return shortNumber(gallery.value(state.sort, index));
  if (fate === "textured") return `${shortNumber(gallery.value("round_trip_psnr", index))} dB`;
  return fate === "mv_only" ? reason : "";
}

function show() {
  shown = selected(state);
  const pages = Math.max(1, Math.ceil(shown.length / PER_PAGE));
  const page = Math.min(state.page, pages - 1);
  const first = page * PER_PAGE, last = Math.min(first + PER_PAGE, shown.length);
  document.getElementById("grid").replaceChildren(...shown.slice(first, last).map(card));
  const range = pages > 1 ? `, ${(first + 1).toLocaleString("en")} to ${last.toLocaleString("en")} shown` : "";
  document.getElementById("told").textContent =
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
  writeAddress();
  document.getElementById("assets").scrollIntoView();
}

// address

function writeAddress(uid) {
  written = toHash(state, uid);
  location.replace(`#${written}`);
}

function filtersChanged() {
  state = readFilters();
  show();
  writeAddress();
}

function readAddress() {
  if (location.hash.replace(/^#/, "") === written || location.hash === "#assets") return;
  const { state: asked, uid } = fromHash(location.hash);
  state = asked;
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
  writeAddress();
});
window.addEventListener("hashchange", readAddress);
writeFilters();
show();
readAddress();
