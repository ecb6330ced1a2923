// Two faces, one slider for each action unit: the networks run in a worker of onnxruntime-web, this file draws.
import * as ort from "./ort.wasm.min.mjs";

ort.env.wasm.numThreads = 1; // threads would need headers that a plain file server does not send
ort.env.wasm.proxy = true; // in a worker, so that sliders stay smooth

const $ = (id) => document.getElementById(id);
const MOST = 1.5;
let about, encode, generate;
const sliders = []; // one for each action unit
const features = []; // of each face, once it was chosen: {pixels, face, map, f_r, au, rest}

const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};

// The worker takes the memory of what it is given: it gets a copy.
const copy = (tensor) => new ort.Tensor(tensor.type, tensor.data.slice(), tensor.dims);

const show = (canvas, tensor) => {
  canvas.width = canvas.height = about.size;
  canvas.getContext("2d").putImageData(new ImageData(new Uint8ClampedArray(tensor.data), about.size), 0, 0);
};

const chosen = (side) => Number(document.querySelector(`input[name=${side}]:checked`).value);

async function featuresOf(k) {
  if (!features[k]) {
    const image = new Image();
    image.src = about.faces[k];
    await image.decode();
    const canvas = make("canvas", { width: about.size, height: about.size });
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(image, 0, 0);
    const data = new Uint8Array(context.getImageData(0, 0, about.size, about.size).data.buffer);
    const pixels = new ort.Tensor("uint8", data, [1, about.size, about.size, 4]);
    features[k] = { pixels, ...(await encode.run({ pixels: copy(pixels) })) };
  }
  return features[k];
}

// On a narrow screen the faces are a strip that scrolls sideways.
function inView(input) {
  const [strip, label] = [input.closest(".thumbs"), input.parentElement];
  strip.scrollLeft = label.offsetLeft - strip.offsetLeft - (strip.clientWidth - label.clientWidth) / 2;
}

let shownPair = "";
async function picture() {
  const began = performance.now();
  const pair = [chosen("a"), chosen("b")];
  const [a, b] = [await featuresOf(pair[0]), await featuresOf(pair[1])];
  const amount = Number($("amount").value);
  const weights = new ort.Tensor("float32", Float32Array.from(sliders, (s) => amount * Number(s.value)), [sliders.length]);
  const inputs = { face: copy(a.face), map: copy(a.map), a: copy(a.f_r), b: copy(b.f_r), weights };
  show($("mixed"), (await generate.run(inputs)).pixels);
  if (shownPair !== String(pair)) {
    shownPair = String(pair);
    document.querySelectorAll(".thumbs :checked").forEach(inView);
    show($("show-a"), a.pixels);
    show($("rest"), a.rest);
    show($("show-b"), b.pixels);
    sliders.forEach((slider, k) => {
      const bars = slider.closest(".slider").querySelector(".reads");
      [a, b].forEach((face, i) => (bars.children[i].style.width = `${20 * face.au.data[k]}%`));
      bars.ariaLabel = `read in A ${a.au.data[k].toFixed(1)}, in B ${b.au.data[k].toFixed(1)} of 5`;
    });
  }
  $("status").textContent = `Drawn in ${Math.round(performance.now() - began)} ms.`;
}

// Only the newest state is drawn: what was asked for while a picture was made is drawn once, afterwards.
let wanted = false, busy = false;
async function draw() {
  wanted = true;
  if (busy) return;
  busy = true;
  $("mixed").ariaBusy = "true";
  try {
    while (wanted) {
      wanted = false;
      await picture();
    }
  } catch (error) {
    fail(error);
  }
  busy = false;
  $("mixed").ariaBusy = "false";
}

function fail(error) {
  $("status").textContent = location.protocol === "file:"
    ? "A browser does not run this page from a file. Serve its folder: python -m http.server"
    : `The network does not run here: ${error.message ?? error}`;
  throw error;
}

function listen(slider) {
  const output = slider.closest(".slider").querySelector("output");
  const say = () => {
    output.textContent = Number(slider.value).toFixed(2);
    slider.ariaValueText = `${slider.value}; 0 is A, 1 is B`;
  };
  slider.addEventListener("input", () => (say(), draw()));
  slider.addEventListener("reset", say);
  say();
}

function reset() {
  for (const slider of [$("amount"), ...sliders]) {
    slider.value = 1;
    slider.dispatchEvent(new Event("reset"));
  }
  draw();
}

function exchange() {
  const [a, b] = [chosen("a"), chosen("b")];
  document.querySelector(`input[name=a][value="${b}"]`).checked = true;
  document.querySelector(`input[name=b][value="${a}"]`).checked = true;
  draw();
}

async function save() {
  const canvas = make("canvas", { width: about.size, height: about.size });
  const context = canvas.getContext("2d");
  const height = Math.max(12, about.size / 16);
  context.drawImage($("mixed"), 0, 0);
  context.font = `bold ${height}px sans-serif`;
  context.fillStyle = "#000a";
  context.fillRect(0, about.size - 1.6 * height, context.measureText("synthetic").width + height, 1.6 * height);
  context.fillStyle = "#fff";
  context.fillText("synthetic", height / 2, about.size - 0.5 * height);
  const url = URL.createObjectURL(await new Promise((done) => canvas.toBlob(done)));
  make("a", { href: url, download: "synthetic-face.png" }).click();
  URL.revokeObjectURL(url);
}

function pickers(side, first) {
  const thumbs = make("div", { className: "thumbs" });
  about.faces.forEach((file, k) => {
    const input = make("input", { type: "radio", name: side, value: k, checked: k === first, onchange: draw });
    input.ariaLabel = `face ${k + 1}`;
    thumbs.append(make("label", {}, input, make("img", { src: file, alt: "" })));
  });
  $(side).append(thumbs);
}

function units() {
  for (const region of new Set(about.aus.map((au) => au.region))) {
    const group = make("fieldset", {}, make("legend", { textContent: region }));
    for (const [k, au] of about.aus.entries()) {
      if (au.region !== region) continue;
      const slider = make("input", { type: "range", id: au.name, min: 0, max: MOST, step: 0.01, value: 1 });
      const label = make("label", { htmlFor: au.name, textContent: `${au.words} ` }, make("small", { textContent: au.name }));
      const reads = make("div", { className: "reads", role: "img" }, make("i"), make("i"));
      group.append(make("div", { className: "slider" }, label, reads, make("div", { className: "track" }, slider), make("output")));
      sliders[k] = slider;
    }
    $("regions").append(group);
  }
}

try {
  about = await (await fetch("about.json")).json();
  $("about").textContent = `expr-lib ${about.version}, weights ${about.weights}.`;
  pickers("a", 2 % about.faces.length);
  pickers("b", 9 % about.faces.length);
  units();
  [$("amount"), ...sliders].forEach(listen);
  encode = await ort.InferenceSession.create("encode.onnx");
  generate = await ort.InferenceSession.create("generate.onnx");
  $("reset").onclick = reset;
  $("exchange").onclick = exchange;
  $("save").onclick = save;
  await draw();
} catch (error) {
  fail(error);
}
