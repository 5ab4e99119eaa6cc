"use strict";
/* Opened assets: one, or two side by side. */

const dialog = document.getElementById("sample");
const VIEW_LOOKS = {
  compare: "Source | baked", error: "Error", source: "Source", baked: "Baked", lit: "Lit", normal: "Normal", position: "Position",
};
const MAP_LOOKS = {
  color: "Colour", metallic: "Metallic", roughness: "Roughness", normal_detail: "Normal detail", normal_tangent: "Normal map",
  emissive: "Emission", normal: "Normal", position: "Position", opacity: "Opacity",
};
/* Channels of a material in views: label, and the measurement that proves its map with words before and after it. */
const CHANNELS = {
  color: ["Colour", "round_trip_psnr", "colour PSNR", "dB"],
  metallic: ["Metallic", "metallic_psnr", "metallic PSNR", "dB"],
  roughness: ["Roughness", "roughness_psnr", "roughness PSNR", "dB"],
  normal_detail: ["Normal detail", "normal_error_deg", "mean error of normals", "degrees"],
  emissive: ["Emission", "emissive_psnr", "emission PSNR", "dB"],
};
let opened = [];
let choices = 0;

/* Open the assets of some uids; the dialog shows what it shows already. */
function openSamples(uids) {
  if (uids.join() === opened.map((panel) => panel.uid).join()) return;
  const step = document.activeElement.closest(".step")?.name;
  closePanels();
  if (!uids.length) {
    if (dialog.open) dialog.close();
    return;
  }
  opened = uids.map((uid) => new SamplePanel(gallery.place.get(uid), uids.length === 1));
  const both = opened.length === 2 ? [comparison(...opened.map((panel) => panel.index))] : [];
  dialog.replaceChildren(sampleHead(), element("div", { className: `panels of${opened.length}` }, ...opened.map((panel) => panel.node)), ...both);
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
  const title = document.getElementById("sample-title");
  (dialog.querySelector(`.step[name="${step}"]:enabled`) || title).focus({ preventScroll: true });
  for (const panel of opened) panel.fill();
}

function closePanels() {
  for (const panel of opened) panel.free();
  opened = [];
  dialog.replaceChildren();
}

function sampleHead() {
  const [panel] = opened, place = shown.indexOf(panel.index);
  const step = (label, key, by) =>
    button(label, () => openUids([gallery.columns.uid[shown[place + by]]]), {
      disabled: place < 0 || !(place + by in shown), title: `${label} (${key})`, name: label, className: "step", "aria-describedby": "sample-title",
    });
  const one = opened.length === 1;
  return element(
    "div", { className: "head" },
    element("h2", { id: "sample-title", tabIndex: -1, dir: "auto" }, one ? titleOf(panel.index) : "Two assets compared"),
    ...(one ? [outcomeTag(panel.index)] : []),
    element("span", { className: "steps" },
      ...(one ? [step("Previous", "←", -1), step("Next", "→", 1), pickBox(panel.index, "Select")] : []),
      button("Close", () => openUids([]), { className: "close" })),
  );
}

/* A group of radio buttons in one row; `labels` by value. */
function segmented(legend, labels, value, onchange) {
  const name = `choice${(choices += 1)}`;
  const radio = ([key, label]) =>
    element("label", {}, element("input", { type: "radio", name, value: key, checked: key === value, onchange: () => onchange(key) }), element("span", {}, label));
  return element("div", { className: "tabs small", role: "radiogroup", ariaLabel: legend }, ...Object.entries(labels).map(radio));
}

function checkbox(label, onchange, checked = false) {
  const box = element("input", { type: "checkbox", checked, onchange: () => onchange(box.checked) });
  return element("label", { className: "check" }, box, element("span", {}, label));
}

class SamplePanel {
  constructor(index, alone) {
    this.index = index;
    this.uid = gallery.columns.uid[index];
    this.view = null;
    this.model = element("div", { className: "model" });
    this.pictures = element("div", {});
    const stored = Boolean(gallery.value("shard", index)), picture = gallery.value("picture", index);
    if (stored) {
      this.model.textContent = "Loading …";
    } else if (picture) {
      this.model.append(element("img", { className: "rejected", src: picture, alt: `${titleOf(index)}, a small picture` }));
      if (gallery.value("reason", index) === "duplicate") this.model.append(element("p", {}, "The asset that stands for it"));
    }
    const top = [...(stored || picture ? [this.model] : []), element("div", { className: "facts" }, ...result(index, alone), ...source(index), commands(index), details(index))];
    this.node = element(
      "div", { className: "panel" },
      element("div", { className: top.length > 1 ? "top" : "top alone" }, ...top),
      this.pictures,
      ...(alone ? [measured(index)] : []),
    );
  }

  async fill() {
    if (!gallery.value("shard", this.index)) return;
    try {
      const entry = await gallery.load(this.index);
      if (!opened.includes(this)) return;
      const mesh = entry.mesh && (await unpackMesh(entry.mesh));
      this.pictures.replaceChildren(...this.views(entry), ...this.maps(entry, mesh));
      await this.showModel(entry, mesh);
    } catch (error) {
      const remedy = error instanceof NoWebGL ? "" : "; run seqtex report again, or seqtex verify";
      if (opened.includes(this)) this.model.textContent = `${error.message}${remedy}.`;
    }
  }

  // 3D view

  async showModel(entry, mesh) {
    if (!mesh) {
      this.model.remove();
      return;
    }
    const decoded = async (src) => {
      const image = element("img", { src });
      await image.decode();
      return image;
    };
    const image = await decoded(entry.mesh.texture === "map" ? entry.maps.color : entry.strips.source);
    const parts = Object.keys(PARTS).filter((part) => part !== "color" && entry.maps[part]);
    const maps = {};
    for (const part of parts) maps[part] = await decoded(entry.maps[part]);
    if (!opened.includes(this)) return;
    this.view = new MeshView(mesh, image, {
      front: entry.front, cut: Boolean(entry.maps.opacity), label: `${titleOf(this.index)} in 3D; arrow keys turn it, plus and minus zoom, Home goes back`,
      maps, strength: entry.strength,
    });
    const { material, ...plain } = LOOKS;
    const looks = !entry.maps.color ? { texture: "Colour", normals: "Normals", clay: "Clay" } : parts.length ? { texture: plain.texture, material, ...plain } : plain;
    const switches = element("div", { className: "bar switches", hidden: true, role: "group", ariaLabel: "Parts of the material" },
      ...["color", ...parts].map((part) => checkbox(PARTS[part], (on) => this.view.show({ on: { ...this.view.on, [part]: on } }), true)));
    const choose = (look) => {
      switches.hidden = look !== "material";
      this.view.show({ look });
    };
    this.model.replaceChildren(
      this.view.canvas,
      element("div", { className: "bar" },
        segmented("Look of the mesh", looks, "texture", choose),
        checkbox("Wireframe", (wire) => this.view.show({ wire })),
        element("span", { className: "moves", role: "group", ariaLabel: "Turn the mesh" },
          ...Object.entries(MOVES).map(([key, [sign, name]]) => button(sign, () => this.view.move(key), { ariaLabel: name, title: name })))),
      ...(parts.length ? [switches] : []),
      element("p", {}, `${entry.mesh.title}: ${counted(entry.mesh.faces, "face")}${entry.maps.color ? `, ${counted(gallery.value("layout_charts", this.index) ?? 0, "chart")}` : ""}. Drag to turn it.`),
    );
    this.view.draw();
  }

  // views

  views(entry) {
    const { strips } = entry, channels = Object.keys(CHANNELS).filter((name) => name === "color" || strips[`${name}_source`]);
    let channel = "color", shown = "";
    const strip = (look) => strips[channel === "color" ? look : `${channel}_${look}`];
    const available = () => Object.fromEntries(Object.entries(VIEW_LOOKS).filter(([look]) => strip(look === "compare" ? "baked" : look)));
    const grid = element("div", { className: "cells", style: `--views: ${entry.views}; --aspect: ${entry.aspect}` });
    const cut = element("input", { type: "range", min: 0, max: 100, value: 50, ariaLabel: "Share of the source, from the left" });
    const slide = element("label", { className: "slide" }, "source ", cut, " baked");
    const bound = element("span", {});
    const legend = element("p", { className: "legend" }, "0 ", element("i", {}), " ", bound);
    const proof = element("p", { className: "note proof", hidden: channels.length === 1 });
    const tabs = element("span", {});
    const setCut = (share) => {
      cut.value = share;
      grid.style.setProperty("--cut", `${share}%`);
      grid.style.setProperty("--share", share / 100);
    };
    const picture = (name, view, extra = "") =>
      element("img", { src: strip(name), className: extra, alt: `${titleOf(this.index)}, view ${view + 1}, ${name}`, style: `--view: ${view}`, draggable: false });
    const show = (look) => {
      shown = look;
      grid.replaceChildren(
        ...Array.from({ length: entry.views }, (_, view) =>
          element("div", { className: "cell" },
            ...(look === "compare" ? [picture("source", view, "left"), picture("baked", view, "right"), element("i", { className: "cut" })] : [picture(look, view)]))),
      );
      slide.hidden = look !== "compare";
      legend.hidden = look !== "error";
    };
    cut.addEventListener("input", () => setCut(cut.value));
    grid.addEventListener("pointermove", (event) => {
      const cell = event.target.closest?.(".cell")?.getBoundingClientRect();
      if (!cell || slide.hidden || (event.pointerType === "mouse" && !event.buttons)) return;
      setCut(Math.max(0, Math.min(100, (100 * (event.clientX - cell.left)) / cell.width)));
    });
    const turnTo = (name) => {
      channel = name;
      const looks = available();
      tabs.replaceChildren(segmented("Look of the views", looks, shown in looks ? shown : Object.keys(looks)[0], show));
      bound.textContent = name === "normal_detail" ? "16 degrees or more" : "64 of 255 or more, largest channel";
      proof.textContent = proofOf(this.index, name);
      show(shown in looks ? shown : Object.keys(looks)[0]);
    };
    setCut(50);
    turnTo("color");
    const names = Object.fromEntries(channels.map((name) => [name, CHANNELS[name][0]]));
    const choice = channels.length > 1 ? [element("div", { className: "bar" }, segmented("Channel of the views", names, "color", turnTo))] : [];
    const note = entry.shading ? [element("p", { className: "note" }, `Lit views: ${entry.shading.renderer || JSON.stringify(entry.shading)}`)] : [];
    return [
      element("h3", {}, "Views"),
      ...choice, element("div", { className: "bar" }, tabs, slide, legend), proof, grid, ...note,
    ];
  }

  // maps

  maps(entry, mesh) {
    if (!entry.maps.color) return [];
    const looks = Object.fromEntries(Object.entries(MAP_LOOKS).filter(([look]) => entry.maps[look]));
    const image = element("img", { alt: "" });
    const canvas = element("canvas", { width: 1024, height: 1024, ariaHidden: "true" });
    const over = { wire: false, seams: false };
    const redraw = () => {
      canvas.getContext("2d").clearRect(0, 0, 1024, 1024);
      if (over.wire) drawLayout(canvas, mesh, mesh.edges, "rgb(20 255 200 / 70%)", 0.7);
      if (over.seams) drawLayout(canvas, mesh, mesh.seams, "rgb(255 60 60)", 2.2);
    };
    const show = (look) => {
      image.src = entry.maps[look];
      image.alt = `${titleOf(this.index)}, UV map, ${looks[look].toLowerCase()}`;
    };
    const toggle = (name) => (on) => {
      over[name] = on;
      redraw();
    };
    show("color");
    return [
      element("h3", {}, "UV maps"),
      element("div", { className: "bar" },
        segmented("Map", looks, "color", show), checkbox("UV wireframe", toggle("wire")), checkbox("Seams", toggle("seams"))),
      element("div", { className: "map" }, image, canvas),
    ];
  }

  free() {
    this.view?.free();
  }
}

// text

function outcomeTag(index) {
  const outcome = gallery.value("outcome", index);
  return element("span", { className: `tag ${outcome}` }, OUTCOMES[outcome]);
}

/* Outcome, reason, and the main measurements with their thresholds. */
function result(index, alone) {
  const reason = words(gallery.value("reason", index)), detail = gallery.value("detail", index);
  const suspicion = gallery.value("suspicion", index);
  const parts = [];
  if (!alone) parts.push(element("p", { className: "name" }, element("span", { dir: "auto" }, titleOf(index)), " ", outcomeTag(index)));
  if (reason) parts.push(element("p", { className: "reason" }, element("strong", {}, reason), detail ? ` ${detail}` : ""));
  else if (detail) parts.push(element("p", { className: "reason" }, detail));
  if (suspicion) parts.push(element("p", { className: "reason" }, element("strong", {}, "suspicious: "), suspicion));
  const figures = [
    ["PSNR of the round trip", "round_trip_psnr", (value) => `${figure("round_trip_psnr", value)} dB`],
    ["pixels off by more than 8 of 255", "round_trip_off_share", (value) => `${Number((100 * value).toPrecision(3))} %`],
    ["faces", "faces", shortNumber],
    ["seconds", "seconds", (value) => figure("seconds", value)],
  ];
  const row = ([label, column, form]) => {
    const value = gallery.value(column, index);
    if (value === null) return [];
    const { words: bounds, missed } = gallery.limit(column, value);
    const bound = bounds && (missed || column === "round_trip_psnr") ? [element("small", {}, ` (${bounds})`)] : [];
    return [element("div", { className: missed ? "missed" : "" }, element("dt", {}, label), element("dd", {}, form(value), ...bound))];
  };
  parts.push(element("dl", { className: "figures" }, ...figures.flatMap(row)));
  return parts;
}

/* The proof of a channel's map in words: "roughness PSNR 34.5 dB (at least 30)". */
function proofOf(index, channel) {
  const [, column, before, unit] = CHANNELS[channel], value = gallery.value(column, index);
  if (value === null) return "";
  const { words: bounds } = gallery.limit(column, value);
  return `Views of the baked map: ${before} ${unit === "dB" ? figure(column, value) : value.toFixed(2)} ${unit}${bounds ? ` (${bounds})` : ""}`;
}

function described(rows, index) {
  const known = rows.map(([label, value]) => [label, value]).filter(([, value]) => value);
  return element("dl", { className: "source" },
    ...known.map(([label, value]) => element("div", {}, element("dt", {}, label), element("dd", { dir: "auto" }, value))));
}

function source(index) {
  const value = (column) => gallery.value(column, index);
  return [described([
    ["uid", value("uid")], ["source", value("name")], ["title", value("title")], ["author", value("author")],
    ["caption", value("caption")], ["licence", value("licence") || "not stated"],
    ["attribution", value("attribution") || "not stated"], ["page", value("page")], ["file", value("uri")],
  ])];
}

function commands(index) {
  const uid = gallery.value("uid", index), place = quoted(gallery.dataset);
  return element("p", { className: "commands" },
    copyButton("Copy uid", () => uid),
    copyButton("Copy inspect command", () => `seqtex inspect ${place} --uid ${quoted(uid)}`),
    copyButton("Copy retry command", () => `seqtex retry ${place} --uid ${quoted(uid)}`));
}

function details(index) {
  const value = (column) => gallery.value(column, index), shard = value("shard");
  return element("details", { className: "more" }, element("summary", {}, "Details"),
    described([
      ["shard", shard ? `${shard}.tar` : ""], ["sha256", value("sha256")], ["signature", value("signature")], ["sandbox", value("sandbox")],
    ]));
}

const HIDDEN = ["signature"];

function measuredRows(group, indices) {
  const names = group.names.filter((name) => !HIDDEN.includes(name) && indices.some((index) => gallery.value(name, index) !== null));
  const cells = (name) => indices.map((index) => {
    const value = gallery.value(name, index), { words: bounds, missed } = value === null ? { words: "" } : gallery.limit(name, value);
    return element("td", { className: missed ? "missed" : "" }, figure(name, value), ...(bounds ? [element("small", {}, ` (${bounds})`)] : []));
  });
  return names.map((name) => element("tr", {}, element("th", { scope: "row" }, words(name)), ...cells(name)));
}

function measured(index) {
  const table = (group) => {
    const rows = measuredRows(group, [index]);
    return rows.length ? [element("table", {}, element("caption", {}, group.title), element("tbody", {}, ...rows))] : [];
  };
  return element("div", {}, element("h3", {}, "Measurements"), element("div", { className: "measured" }, ...gallery.groups.flatMap(table)));
}

/* Measurements of two assets; rows that differ are marked. */
function comparison(one, other) {
  const rows = gallery.groups.flatMap((group) => measuredRows(group, [one, other]));
  for (const row of rows) if (row.cells[1].textContent !== row.cells[2].textContent) row.className = "differs";
  const head = element("tr", {}, element("th", {}, "measurement"), ...[one, other].map((index) => element("th", { scope: "col" }, titleOf(index))));
  return element("div", { className: "wide", tabIndex: 0, role: "group", ariaLabel: "Measurements of both" }, element("h3", {}, "Measurements"),
    element("table", { className: "both" }, element("thead", {}, head), element("tbody", {}, ...rows)));
}

dialog.addEventListener("close", () => openUids([]));
dialog.addEventListener("cancel", (event) => {
  event.preventDefault();
  openUids([]);
});
dialog.addEventListener("keydown", (event) => {
  const by = { ArrowLeft: 0, ArrowRight: 1 }[event.key];
  if (event.altKey || event.ctrlKey || event.metaKey) return;  // the browser's own
  if (by !== undefined && !["CANVAS", "INPUT"].includes(event.target.tagName)) dialog.querySelectorAll(".step")[by]?.click();
});
