"use strict";
/* The page: filters, the assets in pages as pictures or as a table, what is selected, and the URL, which holds what is
   shown. */

const PER_PAGE = 120;
const OUTCOMES = { textured: "textured", mv_only: "views only", rejected: "rejected", failed: "failed" };
const SORTS = {
  "": "pictures first", uid: "uid", round_trip_psnr: "round trip PSNR", faces: "faces", uv_score: "UV score", seconds: "seconds",
};
const TABLE = ["outcome", "reason", "round_trip_psnr", "faces", "layout_charts", "seconds"];
const form = document.getElementById("filters");
let state = EVERYTHING;
let shown = [];
let open = [];
const picked = new Set();

function titleOf(index) {
  const { title, caption, uid } = gallery.columns;
  return title[index].trim() || caption[index].trim() || uid[index];
}

// filters

function buildFilters() {
  const reasons = gallery.tally("reason").filter(([reason]) => reason);
  document.getElementById("reasons").replaceChildren(...reasons.map(([reason, count]) =>
    element("label", { className: "check" },
      element("input", { type: "checkbox", name: "reason", value: reason }),
      element("span", {}, words(reason)), element("span", { className: "count" }, count.toLocaleString("en")))));
  document.getElementById("reasons-field").hidden = !reasons.length;
  const licences = gallery.tally("licence");
  document.getElementById("licence-field").hidden = licences.length < 2;
  form.licence.replaceChildren(
    element("option", { value: "" }, "any"),
    ...licences.map(([licence, n]) => element("option", { value: `=${licence}` }, `${licence || "not stated"} (${n})`)),
  );
  form.sort.replaceChildren(
    ...Object.entries(SORTS).map(([value, label]) => element("option", { value }, label)),
    element("option", { value: "other" }, "another measurement …"),
  );
  const others = ["caption", "licence", ...gallery.numeric()];
  document.getElementById("measurements").replaceChildren(...others.map((name) => element("option", { value: words(name) })));
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
  const remove = button("×", () => {
    row.remove();
    filtersChanged();
  }, { className: "remove", ariaLabel: "Remove this range" });
  const row = element("div", { className: "range" }, select, low, high, remove);
  const hint = () => {
    const [least, most] = gallery.extent(select.value);
    [low.placeholder, high.placeholder] = [shortNumber(least), shortNumber(most)];
  };
  select.addEventListener("change", () => {
    low.value = high.value = "";
    hint();
  });
  hint();
  document.getElementById("ranges").append(row);
  return row;
}

function checkedValues(name) {
  return [...form.elements].filter((field) => field.name === name && field.checked).map((field) => field.value);
}

function readSort() {
  const other = form.sort.value === "other";
  form.other.hidden = !other;
  if (!other) return form.sort.value;
  const name = form.other.value.trim().toLowerCase().replaceAll(" ", "_");
  return Object.hasOwn(gallery.columns, name) ? name : "";
}

function readFilters() {
  const number = (input) => (input.value === "" ? null : Number(input.value));
  const ranges = [...document.querySelectorAll("#ranges .range")].map((row) => {
    const [low, high] = row.querySelectorAll("input");
    return { column: row.querySelector("select").value, low: number(low), high: number(high) };
  });
  return {
    show: checkedValues("show")[0],
    text: form.text.value.trim(),
    outcomes: checkedValues("outcome"),
    reasons: checkedValues("reason"),
    licence: form.licence.value ? form.licence.value.slice(1) : null,
    ranges,
    sort: readSort(),
    descending: form.order.value === "down",
    page: 0,
  };
}

function writeFilters() {
  form.text.value = state.text;
  for (const field of form.elements) {
    if (field.name === "outcome") field.checked = state.outcomes.includes(field.value);
    if (field.name === "reason") field.checked = state.reasons.includes(field.value);
    if (field.name === "show") field.checked = field.value === state.show;
  }
  form.licence.value = state.licence === null ? "" : `=${state.licence}`;
  document.getElementById("ranges").replaceChildren();
  state.ranges.forEach(addRange);
  const known = Object.hasOwn(SORTS, state.sort);
  form.sort.value = known ? state.sort : "other";
  form.other.value = known ? "" : words(state.sort);
  form.other.hidden = known;
  form.order.value = state.descending ? "down" : "up";
}

function clearFilters() {
  go({ ...EVERYTHING, show: state.show === "charts" ? "pictures" : state.show });
}

// pictures

function linkTo(index) {
  return `#${toHash(state, [gallery.columns.uid[index]])}`;
}

function picture(index) {
  const path = gallery.value("picture", index), outcome = gallery.value("outcome", index);
  const reason = words(gallery.value("reason", index));
  return path
    ? element("img", { src: path, alt: "", loading: "lazy", width: 192, height: 192 })
    : element("span", { className: `blank ${outcome}`, ariaHidden: "true" }, reason || "no picture");
}

function pickBox(index, label = "") {
  const uid = gallery.columns.uid[index];
  const box = element("input", { type: "checkbox", className: "pick", value: uid, checked: picked.has(uid), ariaLabel: `Select ${titleOf(index)}` });
  box.addEventListener("change", () => {
    if (box.checked) picked.add(uid);
    else picked.delete(uid);
    showPicks();
    for (const twin of document.querySelectorAll("#list .pick")) {
      if (twin.value === uid) twin.checked = box.checked;
    }
  });
  return label ? element("label", { className: "check" }, box, element("span", {}, label)) : box;
}

function card(index) {
  const outcome = gallery.value("outcome", index), title = titleOf(index);
  return element(
    "li", { className: "card" }, pickBox(index),
    element("a", { href: linkTo(index), title },
      picture(index),
      element("span", { className: "name", dir: "auto" }, title),
      ...uidLine(index),
      element("span", { className: "line" }, outcomeTag(index), element("span", { className: "figure" }, cardFigure(index, outcome)))),
  );
}

/* The uid, where the title is another text. */
function uidLine(index) {
  const uid = gallery.value("uid", index);
  return titleOf(index) === uid ? [] : [element("span", { className: "uid" }, uid)];
}

/* The measurement that assets are sorted by, else the main one of this outcome. */
function cardFigure(index, outcome) {
  if (state.sort && !["uid", "caption"].includes(state.sort)) return figure(state.sort, gallery.value(state.sort, index));
  if (outcome === "textured") return `${figure("round_trip_psnr", gallery.value("round_trip_psnr", index))} dB`;
  return words(gallery.value("reason", index));
}

// table

function table(indices) {
  const columns = state.sort && !["uid", ...TABLE].includes(state.sort) ? [...TABLE, state.sort] : TABLE;
  const head = (column, label) => {
    const mine = state.sort === column, order = !mine ? "none" : state.descending ? "descending" : "ascending";
    const sort = () => go({ ...state, sort: column, descending: mine && !state.descending, page: 0 });
    const numbers = gallery.columns[column].some((value) => typeof value === "number");
    return element("th", { scope: "col", ariaSort: order, className: numbers ? "number" : "" },
      button(`${label}${!mine ? "" : state.descending ? " ↓" : " ↑"}`, sort, { name: `sort-${column}` }));
  };
  const cell = (index, column) => {
    const value = gallery.value(column, index), missed = typeof value === "number" && gallery.limit(column, value).missed;
    const content = column === "outcome" ? outcomeTag(index) : column === "reason" ? words(value) : figure(column, value);
    return element("td", { className: `${typeof value === "number" || value === null ? "number" : ""}${missed ? " missed" : ""}` }, content);
  };
  const row = (index) =>
    element("tr", {},
      element("td", {}, pickBox(index)), element("td", { className: "small" }, picture(index)),
      element("th", { scope: "row" }, element("a", { href: linkTo(index), dir: "auto" }, titleOf(index)), ...uidLine(index)),
      ...columns.map((column) => cell(index, column)));
  const blank = () => element("td", {});
  return element("div", { className: "wide", tabIndex: 0, role: "group", ariaLabel: "Assets as a table" },
    element("table", { className: "assets" },
      element("thead", {}, element("tr", {}, blank(), blank(), head("uid", "asset"), ...columns.map((column) => head(column, words(column))))),
      element("tbody", {}, ...indices.map(row))));
}

// the page

function show() {
  const assets = document.getElementById("assets"), focused = assets.contains(document.activeElement) && document.activeElement;
  shown = fitting(state);
  const charts = state.show === "charts";
  document.getElementById("charts").hidden = !charts;
  document.getElementById("browse").hidden = charts;
  document.getElementById("everything").setAttribute("aria-pressed", String(!state.outcomes.length));
  const pages = Math.max(1, Math.ceil(shown.length / PER_PAGE));
  const page = Math.min(state.page, pages - 1);
  const first = page * PER_PAGE, last = Math.min(first + PER_PAGE, shown.length), part = shown.slice(first, last);
  document.getElementById("list").replaceChildren(
    !shown.length
      ? element("div", { className: "empty" }, ...(gallery.count
        ? [element("p", {}, "No asset fits these filters."), button("Clear all filters", clearFilters)]
        : [element("p", {}, "No asset of this dataset is done yet.")]))
      : state.show === "table" ? table(part) : element("ul", { className: "grid" }, ...part.map(card)));
  const range = pages > 1 ? `, ${(first + 1).toLocaleString("en")} to ${last.toLocaleString("en")} shown` : "";
  document.getElementById("selection").textContent =
    `${shown.length.toLocaleString("en")} of ${counted(gallery.count, "asset")}${range}`;
  const step = (label, to) => button(label, () => turnTo(to), { name: label, disabled: to < 0 || to >= pages || to === page });
  document.getElementById("pages").replaceChildren(
    ...(pages > 1
      ? [
          step("First", 0), step("Previous", page - 1), element("span", {}, `page ${page + 1} of ${pages}`),
          step("Next", page + 1), step("Last", pages - 1),
        ]
      : []),
  );
  showPicks();
  if (focused && !focused.isConnected) refocus(focused.name, assets);
}

/* Keep the place of the keyboard: controls that were made anew have the name of those before. */
function refocus(name, otherwise) {
  const twin = name && otherwise.querySelector(`button[name="${CSS.escape(name)}"]:enabled`);
  (twin || otherwise).focus({ preventScroll: true });
}

/* What can be done with the selected assets. */
function showPicks() {
  const uids = [...picked], status = document.getElementById("picked");
  const all = button(`Select all ${shown.length.toLocaleString("en")}`, () => {
    for (const index of shown) picked.add(gallery.columns.uid[index]);
    show();
  }, { name: "all", disabled: !shown.length });
  const controls = (...buttons) => {
    while (status.nextSibling) status.nextSibling.remove();
    status.after(...buttons);
  };
  status.textContent = uids.length ? `${uids.length.toLocaleString("en")} selected` : "";
  if (!uids.length) {
    controls(all);
    return;
  }
  const text = () => `${uids.join("\n")}\n`;
  controls(
    button("Save uids.txt", () => save("uids.txt", text())),
    copyButton("Copy uids", text),
    copyButton("Copy retry command", () => `seqtex retry ${quoted(gallery.dataset)} --uid @uids.txt`),
    button("Compare", () => openUids(uids), { disabled: uids.length !== 2, title: "two selected assets side by side" }),
    all,
    button("Select none", () => {
      picked.clear();
      show();
    }),
  );
}

function save(name, text) {
  const url = URL.createObjectURL(new Blob([text], { type: "text/plain" }));
  element("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

function turnTo(page) {
  go({ ...state, page });
  document.getElementById("assets").scrollIntoView();
}

// URL: every change goes through it

function go(next, uids = []) {
  const hash = toHash(next, uids);
  if (hash !== location.hash.slice(1)) history.pushState(null, "", `#${hash}`);
  readUrl();
}

function openUids(uids) {
  if (uids.join() !== open.join()) go(state, uids);
}

function filtersChanged() {
  const next = readFilters();
  history.replaceState(null, "", `#${toHash(next)}`);
  state = next;
  show();
}

function readUrl() {
  const found = fromHash(location.hash), before = toHash(state);
  state = found.state;
  open = found.open;
  writeFilters();
  if (toHash(state) !== before || !shown.length) show();
  document.getElementById("absent").textContent = found.absent.length ? `Not listed in this gallery: ${found.absent.join(", ")}` : "";
  openSamples(open);
}

buildFilters();
form.addEventListener("input", filtersChanged);
for (const field of document.querySelectorAll('[form="filters"]')) field.addEventListener("input", filtersChanged);
form.addEventListener("submit", (event) => event.preventDefault());
document.getElementById("everything").addEventListener("click", () => go({ ...state, outcomes: [], page: 0 }));
document.getElementById("add-range").addEventListener("click", () => {
  const preferred = ["round_trip_psnr", "faces", ...gallery.numeric()].find((name) => gallery.numeric().includes(name));
  addRange({ column: preferred, low: null, high: null }).querySelector("select").focus();
});
document.getElementById("clear").addEventListener("click", clearFilters);
document.getElementById("skip").addEventListener("click", (event) => {
  event.preventDefault();  // the URL holds what is shown
  document.getElementById(state.show === "charts" ? "charts" : "assets").focus();
});
document.getElementById("side").open = matchMedia("(min-width: 821px)").matches;
window.addEventListener("hashchange", readUrl);
readUrl();
