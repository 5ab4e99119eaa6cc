"use strict";
/* One asset in full: pictures, 3D view, source and measurements. */

const dialog = document.getElementById("sample");
let opened = -1;
let modelUrl = "";

function openSample(place) {
  opened = place;
  const index = shown[place];
  forgetModel();
  dialog.replaceChildren(...sampleParts(index));
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
  dialog.querySelector(".close").focus({ preventScroll: true });
  writeUrl(gallery.value("uid", index));
  if (gallery.value("shard", index)) fillSample(index);
}

function sampleParts(index) {
  const stored = Boolean(gallery.value("shard", index));
  const pictures = element("div", { className: "pictures", id: "pictures" }, stored ? "Loading the pictures …" : "");
  const model = element("div", { className: "model", id: "model" });
  const facts = element("div", { className: "facts" }, ...result(index), ...source(index));
  return [
    sampleHead(index),
    element("div", { className: stored ? "top" : "top alone" }, ...(stored ? [model] : []), facts),
    ...(stored ? [pictures] : []),
    element("h3", {}, "Measurements"),
    element("div", { className: "measured" }, ...gallery.groups.map((group) => measurements(group, index)).filter(Boolean)),
  ];
}

function sampleHead(index) {
  const step = (label, key, by) =>
    element("button", {
      type: "button", disabled: !(opened + by in shown), title: `${label} (${key})`, onclick: () => openSample(opened + by),
    }, label);
  return element(
    "div", { className: "head" },
    element("h2", { id: "sample-title" }, titleOf(index)),
    element("span", { className: `tag ${gallery.value("outcome", index)}` }, OUTCOMES[gallery.value("outcome", index)]),
    element("span", { className: "steps" }, step("Previous", "←", -1), step("Next", "→", 1),
      element("button", { type: "button", className: "close", onclick: () => dialog.close() }, "Close")),
  );
}

/* Outcome, reason and the main measurements. */
function result(index) {
  const reason = words(gallery.value("reason", index)), detail = gallery.value("detail", index);
  const suspicion = gallery.value("suspicion", index);
  const parts = [];
  if (reason) parts.push(element("p", { className: "reason" }, element("strong", {}, reason), detail ? ` ${detail}` : ""));
  else if (detail) parts.push(element("p", { className: "reason" }, detail));
  if (suspicion) parts.push(element("p", { className: "reason" }, element("strong", {}, "suspicious: "), suspicion));
  const share = gallery.value("round_trip_off_share", index);
  const figures = [
    ["round trip", gallery.value("round_trip_psnr", index), (value) => `${shortNumber(value)} dB`],
    ["pixels off by more than 8 of 255", share, (value) => `${Number((100 * value).toPrecision(3))} %`],
    ["faces", gallery.value("faces", index), shortNumber],
    ["seconds", gallery.value("seconds", index), shortNumber],
  ];
  const known = figures.filter(([, value]) => value !== null);
  parts.push(
    element("dl", { className: "figures" },
      ...known.map(([label, value, form]) => element("div", {}, element("dt", {}, label), element("dd", {}, form(value))))),
  );
  return parts;
}

function source(index) {
  const rows = {
    uid: gallery.value("uid", index),
    source: gallery.value("name", index),
    title: gallery.value("title", index),
    author: gallery.value("author", index),
    caption: gallery.value("caption", index),
    licence: gallery.value("licence", index) || "not stated",
    attribution: gallery.value("attribution", index) || "not stated",
    page: gallery.value("page", index),
    file: gallery.value("uri", index),
    shard: gallery.value("shard", index) ? `${gallery.value("shard", index)}.tar` : "",
    sandbox: gallery.value("sandbox", index),
  };
  const known = Object.entries(rows).filter(([, value]) => value);
  return [
    element("dl", { className: "source" },
      ...known.map(([label, value]) => element("div", {}, element("dt", {}, label), element("dd", {}, value)))),
  ];
}

function measurements(group, index) {
  const known = group.names.filter((name) => gallery.value(name, index) !== null);
  if (!known.length) return null;
  const rows = known.map((name) =>
    element("tr", {}, element("th", { scope: "row" }, words(name)), element("td", {}, shortNumber(gallery.value(name, index)))));
  return element("table", {}, element("caption", {}, group.title), element("tbody", {}, ...rows));
}

async function fillSample(index) {
  try {
    const entry = await gallery.load(index);
    if (dialog.open && shown[opened] === index) await fillPictures(entry, index);
  } catch (error) {
    if (dialog.open && shown[opened] === index) {
      document.getElementById("model").textContent = `${error.message}; run seqtex report again.`;
    }
  }
}

async function fillPictures(entry, index) {
  const figures = entry.pictures.map(({ kind, title, src }) =>
    element("figure", { className: kind },
      element("img", { src, alt: `${titleOf(index)}, ${title.toLowerCase()}` }), element("figcaption", {}, title)));
  document.getElementById("pictures").replaceChildren(...figures);
  await showModel(entry.model, index);
}

// 3D view

async function showModel(model, index) {
  const place = document.getElementById("model");
  if (!model) {
    place.remove();
    return;
  }
  if (!document.createElement("canvas").getContext("webgl2")) {
    place.textContent = "This browser has no WebGL, which the 3D view needs.";
    return;
  }
  place.textContent = "Loading the 3D view …";
  if (!customElements.get("model-viewer")) await loadScript("model-viewer.js");
  const file = await unpacked(model.glb);
  if (!dialog.open || shown[opened] !== index) return;
  forgetModel();
  modelUrl = URL.createObjectURL(file);
  const viewer = element("model-viewer", {
    alt: `${titleOf(index)}, to turn around`, "camera-controls": "", "interaction-prompt": "none",
  });
  viewer.addEventListener("error", () => {
    place.textContent = "The 3D view cannot show this mesh.";
  });
  viewer.src = modelUrl;
  viewer.append(element("div", { slot: "progress-bar" }));
  place.replaceChildren(viewer, element("p", {}, `${model.title}. Drag or use the arrow keys to turn it.`));
}

/* A gzipped file in base64. */
function unpacked(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).blob();
}

function forgetModel() {
  if (modelUrl) URL.revokeObjectURL(modelUrl);
  modelUrl = "";
}

dialog.addEventListener("close", () => {
  forgetModel();
  dialog.replaceChildren();
  writeUrl();
});
dialog.addEventListener("keydown", (event) => {
  const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (by && event.target.localName !== "model-viewer" && opened + by in shown) openSample(opened + by);
});
